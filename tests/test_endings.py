"""How outputs end is found through layers that leave the last axis alone; what cannot be compared is refused."""

import keras
import numpy as np
import pytest
from conftest import crossentropy, dense_model
from keras import layers, ops

import keras_kd
from keras_kd import losses
from keras_kd.outputs import output_activations

IMAGE = (8, 8, 2)


def head(*after, activation="softmax", **options):
    """A fully convolutional head of 5 classes, and layers after it."""
    return keras.Sequential([keras.Input(IMAGE), layers.Conv2D(5, 1, activation=activation, **options), *after])


def functional(function):
    inputs = keras.Input(IMAGE)
    return keras.Model(inputs, function(layers.Conv2D(5, 1, activation="softmax")(inputs)))


LEAVE_THE_LAST_AXIS_ALONE = {
    "reshape": lambda: head(layers.Reshape((64, 5))),
    "reshape twice": lambda: head(layers.Reshape((64, 5)), layers.Reshape((8, 8, 5))),
    "permute": lambda: head(layers.Permute((2, 1, 3))),
    "cropping": lambda: head(layers.Cropping2D(1)),
    "upsampling": lambda: head(layers.UpSampling2D()),
    "average pooling": lambda: head(layers.AveragePooling2D(2)),
    "global average pooling": lambda: head(layers.GlobalAveragePooling2D()),
    "dropout": lambda: head(layers.SpatialDropout2D(0.0), layers.Reshape((64, 5))),
    "repeat": lambda: head(layers.GlobalAveragePooling2D(), layers.RepeatVector(3)),
    "flatten of one position": lambda: head(layers.AveragePooling2D(8), layers.Flatten()),
    "operations": lambda: functional(lambda x: ops.transpose(ops.reshape(x, (-1, 8, 8, 5)), (0, 2, 1, 3))),
    "a position": lambda: functional(lambda x: x[:, 0, 0]),
    "squeezed": lambda: functional(lambda x: ops.squeeze(layers.AveragePooling2D(8)(x), (1, 2))),
    "concatenated": lambda: functional(
        lambda x: layers.Concatenate(1)([x, layers.UpSampling2D()(layers.AveragePooling2D(2)(x))])
    ),
    "nested": lambda: keras.Sequential([keras.Input(IMAGE), head(), layers.Reshape((64, 5))]),
    "mixed precision": lambda: head(layers.Reshape((64, 5), dtype="float16")),
}


@pytest.mark.parametrize("name", LEAVE_THE_LAST_AXIS_ALONE)
def test_a_softmax_before_layers_that_only_move_numbers_is_undone(name):
    """The value is that of the logits whose softmax the teacher gives, at a temperature."""
    model = LEAVE_THE_LAST_AXIS_ALONE[name]()
    assert output_activations(model) == ["softmax"]
    student = (
        keras.Sequential([keras.Input(IMAGE), layers.Conv2D(5, 1), *model.layers[1:]]) if name == "reshape" else model
    )
    x = np.random.default_rng(0).normal(size=(4, *IMAGE)).astype("float32")
    distiller = keras_kd.Distiller(
        model, student if student is not model else keras.models.clone_model(model), losses.SoftLabels(4.0)
    )
    distiller.compile(keras.optimizers.SGD(0.0), None)
    value = distiller.fit(x, verbose=0).history["soft_labels"][0]
    probabilities = [one.predict(x, verbose=0) for one in (model, distiller.student)]
    logs = [
        np.log(p) if output_activations(one) == ["softmax"] else p
        for p, one in zip(probabilities, (model, distiller.student), strict=True)
    ]
    assert value == pytest.approx(float(losses.SoftLabels(4.0)(*logs)), rel=1e-4)


@pytest.mark.parametrize(
    "after",
    [
        [layers.Reshape((5, 64))],
        [layers.Permute((3, 1, 2))],
        [layers.Flatten()],
        [layers.MaxPooling2D()],
        [layers.ZeroPadding2D()],
        [layers.Rescaling(2.0)],
    ],
)
def test_what_changes_the_distributions_is_unknown(after):
    assert output_activations(head(*after)) == ["unknown"]


CHANNELS_FIRST = {
    "convolution": lambda last: [layers.Conv2D(4, 1, data_format="channels_first", activation=last)],
    "transposed": lambda last: [layers.Conv2DTranspose(4, 1, data_format="channels_first", activation=last)],
    "separable": lambda last: [layers.SeparableConv2D(4, 1, data_format="channels_first", activation=last)],
    "activation after it": lambda last: [layers.Conv2D(4, 1, data_format="channels_first"), layers.Activation(last)],
    "dropout after it": lambda last: [
        layers.Conv2D(4, 1, data_format="channels_first", activation=last),
        layers.Dropout(0.1),
    ],
    "normalization before it": lambda last: [
        layers.Conv2D(4, 1, data_format="channels_first"),
        layers.BatchNormalization(axis=1),
        layers.Activation(last),
    ],
    "pooling": lambda last: [
        layers.Conv2D(4, 1, data_format="channels_first", activation=last),
        layers.AveragePooling2D(2, data_format="channels_first"),
    ],
}


@pytest.mark.parametrize("last", [None, "softmax"])
@pytest.mark.parametrize("name", CHANNELS_FIRST)
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_heads_with_their_classes_on_axis_1_are_refused(name, last, side):
    def model(channels_first):
        body = CHANNELS_FIRST[name](last) if channels_first else [layers.Conv2D(8, 1)]
        return keras.Sequential([keras.Input((2, 8, 8)), *body])

    with pytest.raises(ValueError, match=rf"the {side} ends in a layer with data_format=\"channels_first\".*Permute"):
        keras_kd.Distiller(model(side == "teacher"), model(side == "student"), losses.SoftLabels())


class Probabilities(keras.Model):
    """A subclassed model, of whose ending nothing is known, that gives probabilities."""

    def __init__(self):
        super().__init__()
        self.layer = layers.Dense(3)

    def call(self, inputs):
        return ops.softmax(self.layer(inputs))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_unknown_ending_that_gives_probabilities_is_warned_of(data, jit_compile):
    teacher = Probabilities()
    teacher(data[0])
    distiller = keras_kd.Distiller(teacher, dense_model(4, 3))
    distiller.compile("sgd", crossentropy(), jit_compile=jit_compile)
    with pytest.warns(
        UserWarning, match="the teacher gives what looks like probabilities .*soft_labels takes for logits"
    ):
        distiller.fit(*data, epochs=2, verbose=0)


def test_an_unknown_ending_that_gives_logits_is_not_warned_of(data, recwarn):
    inputs = keras.Input((8,))
    models = [keras.Model(inputs, layers.Rescaling(2.0)(layers.Dense(3)(inputs))) for _ in range(2)]
    distiller = keras_kd.Distiller(*models)
    distiller.compile("sgd", crossentropy())
    distiller.fit(*data, verbose=0)
    assert not [warning for warning in recwarn if "probabilities" in str(warning.message)]


LOGITS, PROBABILITIES = None, "softmax"
MISTAKEN = [
    (keras.losses.BinaryCrossentropy(), LOGITS, r"BinaryCrossentropy\(from_logits=True\)"),
    ("binary_crossentropy", LOGITS, r"BinaryCrossentropy\(from_logits=True\)"),
    (keras.losses.BinaryCrossentropy(from_logits=True), "sigmoid", r"BinaryCrossentropy\(from_logits=False\)"),
    (keras.losses.BinaryFocalCrossentropy(), LOGITS, r"BinaryFocalCrossentropy\(from_logits=True\)"),
    (keras.losses.CategoricalCrossentropy(), LOGITS, r"CategoricalCrossentropy\(from_logits=True\)"),
    (keras.losses.CategoricalFocalCrossentropy(from_logits=True), PROBABILITIES, r"\(from_logits=False\)"),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), PROBABILITIES, r"\(from_logits=False\)"),
    (keras.losses.sparse_categorical_crossentropy, LOGITS, r"SparseCategoricalCrossentropy\(from_logits=True\)"),
    (keras.losses.KLDivergence(), LOGITS, "End the student in softmax or sigmoid"),
    ("kl_divergence", LOGITS, "End the student in softmax or sigmoid"),
    (keras.losses.Dice(), LOGITS, "End the student in softmax or sigmoid"),
]


@pytest.mark.parametrize(("loss", "last", "way_out"), MISTAKEN)
def test_a_compiled_loss_that_expects_another_ending_is_warned_of(loss, last, way_out):
    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3, last=last), losses.Hint("hidden_0", "hidden_0"))
    with pytest.warns(UserWarning, match=rf"the student ends in .* but the loss expects .*{way_out}"):
        distiller.compile("sgd", loss)


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        ("mse", LOGITS),
        (keras.losses.Huber(), PROBABILITIES),
        (keras.losses.BinaryCrossentropy(), "sigmoid"),
        (keras.losses.KLDivergence(), PROBABILITIES),
        (keras.losses.CategoricalHinge(), LOGITS),
        (crossentropy(), LOGITS),
    ],
)
def test_losses_that_fit_are_not_warned_of(loss, last, recwarn):
    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3, last=last), losses.Hint("hidden_0", "hidden_0"))
    distiller.compile("sgd", loss)
    assert not [warning for warning in recwarn if "the loss expects" in str(warning.message)]
