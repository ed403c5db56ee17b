"""Losses over layers and over relations between examples: inside a `Distiller`, and where examples are alike."""

import itertools

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd

VECTOR_LOSSES = {
    "cosine_features": (keras_kd.losses.CosineFeatures, formulas.cosine_features),
    "hint": (keras_kd.losses.Hint, lambda t, s: np.mean((t - s) ** 2, axis=-1)),
    "contrastive_kd": (keras_kd.losses.ContrastiveKD, lambda t, s: formulas.contrastive_kd(t, s, 0.1, symmetric=True)),
}
RELATION_LOSSES = {
    "relational_kd": (keras_kd.losses.RelationalKD, lambda t, s: formulas.relational_kd(t, s, 25.0, 50.0)),
    "similarity_preserving": (keras_kd.losses.SimilarityPreserving, formulas.similarity_preserving),
    "correlation_congruence": (
        keras_kd.losses.CorrelationCongruence,
        lambda t, s: formulas.correlation_congruence(t, s, gamma=0.4, order=2),
    ),
}


def output_of(model, layer, x):
    return keras.Model(model.inputs, model.get_layer(layer).output).predict(x, verbose=0).astype("float64")


def image_model(channels, stride=1):
    """8 x 8 images in 3 classes; `maps` gives `(batch, 8 / stride, 8 / stride, channels)`, `pooled` their mean."""
    inputs = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(channels, 3, strides=stride, padding="same", activation="relu", name="maps")(inputs)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(maps)
    return keras.Model(inputs, keras.layers.Dense(3)(pooled))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 8, 8, 1)).astype("float32"), np.arange(12) % 3


def fitted(distiller, x, y, epochs=1, rate=0.0, **options):
    distiller.compile(keras.optimizers.SGD(rate), crossentropy())
    return distiller.fit(x, y, batch_size=len(x), epochs=epochs, shuffle=False, verbose=0, **options).history


# Inside a Distiller -----------------------------------------------------------------------------------------------


HIDDEN = {"teacher_layer": "hidden_0", "student_layer": "hidden_0"}


def test_each_pair_of_layers_has_a_projection_of_its_own_unless_they_share_one(data):
    x, y = data
    layers = [["hidden_0", "hidden_1"]] * 2
    teacher, student = dense_model(16, 12, 3), dense_model(5, 4, 3)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.Hint(*layers))
    shapes = {name: tuple(layer.kernel.shape) for name, layer in distiller.projections.items()}
    assert shapes == {"hint": (5, 16), "hint_1": (4, 12)}
    expected = 0.0
    for layer, name in zip(layers[0], distiller.projections, strict=True):
        kernel, bias = (weight.numpy().astype("float64") for weight in distiller.projections[name].weights)
        projected = output_of(student, layer, x) @ kernel + bias
        expected += np.mean((output_of(teacher, layer, x) - projected) ** 2)
    assert fitted(distiller, x, y)["hint"][0] == pytest.approx(expected, rel=1e-4)
    shared = keras_kd.Distiller(
        dense_model(16, 16, 3), dense_model(5, 5, 3), keras_kd.losses.Hint(*layers, shared_projection=True)
    )
    assert list(shared.projections) == ["hint"]
    with pytest.raises(ValueError, match=r"one projection, from 5 features to 16, but one of its pairs has"):
        keras_kd.Distiller(teacher, student, keras_kd.losses.Hint(*layers, shared_projection=True))


@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_unequal_widths_are_compared_through_a_projection_that_trains(data, name):
    x, y = data
    make, formula = VECTOR_LOSSES[name]
    teacher, student = dense_model(16, 3), dense_model(5, 3)
    distiller = keras_kd.Distiller(teacher, student, make(**HIDDEN, weight=10.0))
    kernel = distiller.projections[name].kernel.numpy()
    assert kernel.shape == (5, 16)
    expected = formula(output_of(teacher, "hidden_0", x), output_of(student, "hidden_0", x) @ kernel).mean()
    history = fitted(distiller, x, y, epochs=20, rate=0.02)[name]
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]
    assert np.abs(distiller.projections[name].kernel.numpy() - kernel).max() > 1e-4


def test_the_projection_is_saved_with_the_distiller_and_not_exported(data, tmp_path):
    teacher, student = dense_model(16, 3), dense_model(5, 3)
    distillation_loss = keras_kd.losses.ContrastiveKD(0.2, symmetric=False, **HIDDEN)
    distiller = keras_kd.Distiller(teacher, student, distillation_loss)
    fitted(distiller, *data, rate=0.1)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher)
    kernels = [one.projections["contrastive_kd"].kernel.numpy() for one in (distiller, loaded)]
    np.testing.assert_array_equal(*kernels)
    assert loaded.distillation_losses[0].get_config() == distillation_loss.get_config()
    distiller.export(tmp_path / "exported", format="tf_saved_model", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    assert sorted(tuple(v.shape) for v in exported.variables) == sorted(tuple(v.shape) for v in student.variables)


@pytest.mark.parametrize("name", RELATION_LOSSES)
def test_relations_need_no_projection_whatever_the_widths_and_ranks(images, name):
    x, y = images
    make, formula = RELATION_LOSSES[name]
    teacher, student = image_model(9), image_model(4)
    distiller = keras_kd.Distiller(teacher, student, make(teacher_layer="pooled", student_layer="maps", weight=10.0))
    assert distiller.projections == {}
    weights = np.linspace(0.0, 2.0, len(x))
    outputs = output_of(teacher, "pooled", x), output_of(student, "maps", x).reshape(len(x), -1)
    expected = np.mean(weights * formula(*outputs))
    history = fitted(distiller, x, y, epochs=20, rate=0.01, sample_weight=weights)[name]
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]


def test_attention_is_transferred_between_unequal_numbers_of_channels(images):
    x, y = images
    teacher, student = image_model(9), image_model(4)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.AttentionTransfer("maps", "maps", weight=1e3))
    assert distiller.projections == {}
    expected = formulas.attention_transfer(output_of(teacher, "maps", x), output_of(student, "maps", x), p=2).mean()
    history = fitted(distiller, x, y, epochs=20, rate=0.01)["attention_transfer"]
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]


def test_an_encoder_of_one_language_teaches_an_encoder_of_another():
    """The student, on translations, comes to give the teacher's vectors of the English sentences."""
    rng = np.random.default_rng(0)
    english, text = rng.integers(0, 9, (32, 4)), rng.integers(0, 20, (32, 6))
    text[:, 0] = english[:, 0] + 9

    def encoder(entry, length, words):
        ids = keras.Input((length,), dtype="int32", name=entry)
        pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(words, 8)(ids))
        return keras.Model(ids, keras.layers.Dense(4)(pooled))

    teacher, student = encoder("english", 4, 9), encoder("text", 6, 20)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.Hint())
    distiller.compile(keras.optimizers.Adam(0.02), None)
    x = {"english": english, "text": text}
    error = lambda: np.mean((teacher.predict(english, verbose=0) - student.predict(text, verbose=0)) ** 2)  # noqa: E731
    before = error()
    history = distiller.fit(x, batch_size=32, epochs=40, verbose=0).history["hint"]
    assert history[0] == pytest.approx(before, rel=1e-4)
    assert error() < 0.2 * before


@pytest.mark.parametrize(
    ("distillation_loss", "message"),
    [
        (
            lambda: keras_kd.losses.AttentionTransfer("maps", "maps"),
            r"same positions, but the teacher's layer 'maps' gives \(None, 8, 8, 9\), the student's layer 'maps' "
            r"\(None, 4, 4, 4\)\. Only the channels may differ",
        ),
        (
            lambda: keras_kd.losses.AttentionTransfer("pooled", "pooled"),
            r"the teacher's layer 'pooled' gives \(None, 9\), the student's layer 'pooled' \(None, 4\)",
        ),
        (
            lambda: keras_kd.losses.Hint("maps", "maps"),
            r"of one shape, but the teacher's layer 'maps' gives \(None, 8, 8, 9\), the student's layer 'maps' "
            r"\(None, 4, 4, 4\)\. Only the last dimension may differ",
        ),
        (
            lambda: keras_kd.losses.CosineFeatures("maps", "pooled"),
            r"the teacher's layer 'maps' gives \(None, 8, 8, 9\), the student's layer 'pooled' \(None, 4\)",
        ),
        (
            lambda: keras_kd.losses.Hint(student_layer="maps"),
            r"of one shape, but the teacher gives \(None, 3\), the student's layer 'maps' \(None, 4, 4, 4\)",
        ),
        (
            lambda: keras_kd.losses.ContrastiveKD(teacher_layer="maps", student_layer="pooled"),
            r"one vector per example, \(batch, features\), but the teacher's layer 'maps' gives \(None, 8, 8, 9\), the "
            r"student's layer 'pooled' \(None, 4\)\. Pool tokens or positions first",
        ),
    ],
)
def test_layers_that_cannot_be_compared_are_refused_at_construction(distillation_loss, message):
    with pytest.raises(ValueError, match=message):
        keras_kd.Distiller(image_model(9), image_model(4, stride=2), distillation_loss())


def test_the_temperature_of_contrastive_kd_is_a_hyperparameter():
    distiller = keras_kd.Distiller(dense_model(9, 3), dense_model(6, 3), keras_kd.losses.ContrastiveKD(0.2))
    assert float(distiller.hyperparameters["contrastive_kd_temperature"]) == pytest.approx(0.2)


@pytest.mark.parametrize("symmetric", ["yes", 1, None])
def test_contrastive_kd_refuses_a_symmetric_that_is_no_bool(symmetric):
    with pytest.raises(TypeError, match="symmetric must be True or False, got"):
        keras_kd.losses.ContrastiveKD(symmetric=symmetric)


# Where examples are alike, few or zero --------------------------------------------------------------------------------


def gradient_of(distillation_loss, teacher, student):
    student = tf.constant(student, "float32")
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = distillation_loss(tf.constant(teacher, "float32"), student)
    return float(loss), tape.gradient(loss, student).numpy()


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("name", RELATION_LOSSES)
def test_relations_of_examples_of_which_two_are_the_same_have_a_small_gradient(name):
    teacher, student = features(6, 4), features(6, 3, seed=1)
    student[3] = student[1]
    loss, gradient = gradient_of(RELATION_LOSSES[name][0](), teacher, student)
    assert np.isfinite(loss) and np.abs(gradient).max() < 10.0


@pytest.mark.parametrize("name", [*VECTOR_LOSSES, *RELATION_LOSSES])
def test_a_replica_without_examples_counts_as_nothing(name):
    """As the graph of a step sees it: the size of the batch is not known when it is traced."""
    distillation_loss = {**VECTOR_LOSSES, **RELATION_LOSSES}[name][0]()

    @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((4, 4))])
    def run(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = distillation_loss(x, x @ kernel)
        return loss, tape.gradient(loss, kernel)

    loss, gradient = run(np.zeros((0, 4), "float32"), np.eye(4, dtype="float32"))
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", RELATION_LOSSES)
def test_relations_of_a_single_example_are_zero_without_a_gradient(name):
    loss, gradient = gradient_of(RELATION_LOSSES[name][0](), features(1, 4), features(1, 3, seed=1))
    assert loss == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_relational_kd_counts_two_equal_examples_as_a_pair_at_distance_zero():
    """As the published code does: by hand, distances 0, 1 and 1 have the mean 2/3; the teacher's are 1, 1 and √2."""
    teacher, student = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([[0.0], [0.0], [1.0]])
    teacher_distances = np.array([1.0, 1.0, 2**0.5]) * 3 / (2 + 2**0.5)
    student_distances = np.array([0.0, 1.0, 1.0]) * 3 / 2
    expected = 2 * formulas.huber(teacher_distances - student_distances).sum() / 9
    assert float(keras_kd.losses.RelationalKD(1.0, 0.0)(teacher, student)) == pytest.approx(expected, rel=1e-6)


def test_relational_kd_does_not_change_when_features_are_moved_turned_and_scaled():
    teacher, student = features(8, 4), features(8, 3, seed=1)
    rotation, _ = np.linalg.qr(features(3, 3, seed=2))
    distillation_loss = keras_kd.losses.RelationalKD()
    moved = distillation_loss(teacher, 100.0 * (student @ rotation) + 1000.0)
    assert float(moved) == pytest.approx(float(distillation_loss(teacher, student)), rel=1e-4)


def test_near_neighbours_far_from_the_origin_keep_their_distances():
    """Float32 products of features near 1,000 would leave nothing of distances near 1."""
    student = (1000.0 + features(8, 16, seed=1)).astype("float32")
    expected = formulas.relational_kd(features(8, 4), student.astype("float64"), 25.0, 50.0).mean()
    assert float(keras_kd.losses.RelationalKD()(features(8, 4), student)) == pytest.approx(expected, rel=1e-5)


def test_correlation_congruence_tends_to_the_gaussian_kernel():
    teacher, student = formulas.unit(features(6, 4)), formulas.unit(features(6, 3, seed=1))
    gaussian = [np.exp(-0.4 * np.sum((x[:, None] - x[None]) ** 2, axis=-1)) for x in (teacher, student)]
    distillation_loss = keras_kd.losses.CorrelationCongruence(gamma=0.4, order=12)
    assert float(distillation_loss(teacher, student)) == pytest.approx(
        np.mean((gaussian[0] - gaussian[1]) ** 2), rel=1e-5
    )


@pytest.mark.parametrize(
    "distillation_loss",
    [keras_kd.losses.CosineFeatures(), keras_kd.losses.ContrastiveKD(), keras_kd.losses.SimilarityPreserving()],
)
def test_a_student_whose_features_are_zero_gets_a_finite_gradient(distillation_loss):
    """Zeros of a dead relu have no direction."""
    student = features(6, 4, seed=1)
    student[2] = 0.0
    loss, gradient = gradient_of(distillation_loss, features(6, 4), student)
    assert np.isfinite(loss) and np.abs(gradient).max() < 10.0


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1e3, 1e9])
@pytest.mark.parametrize(
    "distillation_loss",
    [
        keras_kd.losses.CosineFeatures(),
        keras_kd.losses.AttentionTransfer(),
        keras_kd.losses.RelationalKD(),
        keras_kd.losses.SimilarityPreserving(),
    ],
    ids=lambda distillation_loss: distillation_loss.name,
)
def test_the_size_of_the_features_does_not_matter(distillation_loss, scale):
    teacher, student = features(6, 3, 4), features(6, 3, 4, seed=1)
    value = float(distillation_loss(scale * teacher, scale * student))
    assert value == pytest.approx(float(distillation_loss(teacher, student)), rel=1e-4)


def test_attention_is_one_where_the_layers_are_active_at_different_positions():
    """By hand: the teacher's map is 1 at one position, the student's 1/√2 at two others: (1 + ½ + ½) / 4."""
    teacher, student = np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 1))
    teacher[0, 0, 0] = [5.0, -1.0, 2.0]
    student[0, 0, 1], student[0, 1, 0] = 3.0, -3.0
    assert float(keras_kd.losses.AttentionTransfer()(teacher, student)) == pytest.approx(0.5, rel=1e-6)


# Channels on axis 1 -----------------------------------------------------------------------------------------------


def convolution(width, channels, **options):
    return keras.layers.Conv2D(width, 2, data_format=channels, **options)


def channel_axis(channels):
    return 1 if channels == "channels_first" else -1


def branched(width, channels):
    """Two convolutions side by side, as in a DenseNet."""
    inputs = keras.Input((2, 6, 6) if channels == "channels_first" else (6, 6, 2))
    branches = [convolution(width, channels)(inputs) for _ in range(2)]
    return keras.Model(inputs, keras.layers.Concatenate(axis=channel_axis(channels))(branches))


class Subclassed(keras.Model):
    """A subclassed model, whose graph is not known."""

    def __init__(self, layers):
        super().__init__()
        self.all_layers = layers

    def call(self, inputs):
        for layer in self.all_layers:
            inputs = layer(inputs)
        return inputs


# The layers of a model up to the hooked one, "maps": of a width, with the channels where `c` says.
IMAGE_LAYERS = {
    "convolution": lambda w, c: [convolution(w, c, name="maps")],
    "transposed": lambda w, c: [keras.layers.Conv2DTranspose(w, 2, data_format=c, name="maps")],
    "upsampling": lambda w, c: [convolution(w, c), keras.layers.UpSampling2D(data_format=c, name="maps")],
    "pooling": lambda w, c: [convolution(w, c), keras.layers.MaxPooling2D(data_format=c, name="maps")],
    "nested": lambda w, c: [keras.Sequential([convolution(w, c), keras.layers.ReLU()], name="maps")],
    "activation": lambda w, c: [convolution(w, c), keras.layers.ReLU(name="maps")],
    "normalization": lambda w, c: [convolution(w, c), keras.layers.BatchNormalization(channel_axis(c), name="maps")],
    "branches": lambda w, c: [branched(w, c), keras.layers.ReLU(name="maps")],
}
SHOW_THEIR_FORMAT = ["convolution", "transposed", "upsampling", "pooling"]
OVER_MAPS = {
    "hint": keras_kd.losses.Hint,
    "cosine_features": keras_kd.losses.CosineFeatures,
    "attention_transfer": keras_kd.losses.AttentionTransfer,
    "relational_kd": keras_kd.losses.RelationalKD,
    "similarity_preserving": keras_kd.losses.SimilarityPreserving,
    "correlation_congruence": keras_kd.losses.CorrelationCongruence,
    "keras_loss": lambda **o: keras_kd.losses.KerasLoss(keras.losses.CosineSimilarity(), **o),
}


def image_twins(layers_of, width, kind=keras.Sequential, seed=0, end=True):
    """Two models of one function of `(6, 6, 2)` images: with the channels on axis 1, and with the channels last."""
    twins = []
    for channels in ("channels_first", "channels_last"):
        layers = layers_of(width, channels)
        if channels == "channels_first":
            layers = [keras.layers.Permute((3, 1, 2)), *layers]
        if end:
            layers += [keras.layers.GlobalMaxPooling2D(data_format=channels), keras.layers.Dense(3)]
        twins.append(kind(layers))
        twins[-1](np.zeros((1, 6, 6, 2)))
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=weight.shape) ** 2 for weight in twins[0].get_weights()]
    for twin in twins:
        twin.set_weights(weights)
    return twins


def expect_equal_losses(make, layers_of, kind=keras.Sequential, end=True):
    """A loss is the same wherever teacher and student have their channels."""
    x = np.random.default_rng(2).normal(size=(6, 6, 6, 2)).astype("float32")
    sides = [image_twins(layers_of, 4, kind, seed, end) for seed in (0, 1)]
    losses = []
    for teacher, student in itertools.product(*sides):
        distiller = keras_kd.Distiller(teacher, student, make())
        (loss,), pairing = distiller.distillation_losses, distiller._live.pairing
        (pair,) = pairing.pairs(loss, pairing.read_teacher(x), pairing.read_student(x, training=False))
        losses.append(float(loss(pair.teacher, distiller.project(pair))))
    assert losses[-1] > 0.001 or losses[-1] < 0
    np.testing.assert_allclose(losses, losses[-1], rtol=1e-4)


@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_channels_on_axis_1_of_a_layer_are_the_features(name):
    expect_equal_losses(lambda: keras_kd.losses.CosineFeatures("maps", "maps"), IMAGE_LAYERS[name])


@pytest.mark.parametrize("loss", OVER_MAPS)
def test_every_loss_over_maps_finds_the_channels_of_a_layer(loss):
    make = lambda: OVER_MAPS[loss](teacher_layer="maps", student_layer="maps")  # noqa: E731
    expect_equal_losses(make, IMAGE_LAYERS["activation"])


@pytest.mark.parametrize("loss", OVER_MAPS)
def test_channels_on_axis_1_of_an_output_are_the_features(loss):
    expect_equal_losses(OVER_MAPS[loss], IMAGE_LAYERS["activation"], end=False)


@pytest.mark.parametrize("name", SHOW_THEIR_FORMAT)
def test_channels_on_axis_1_are_the_features_in_a_subclassed_model(name):
    expect_equal_losses(lambda: keras_kd.losses.CosineFeatures("maps", "maps"), IMAGE_LAYERS[name], Subclassed)


@pytest.mark.parametrize("name", ["activation", "normalization", "branches"])
def test_a_layer_of_a_subclassed_model_that_may_have_them_there_is_refused(name):
    first, last = image_twins(IMAGE_LAYERS[name], 4, Subclassed)
    distiller = keras_kd.Distiller(first, last, keras_kd.losses.CosineFeatures("maps", "maps"))
    distiller.compile("sgd", None)
    with pytest.raises(ValueError, match=r"teacher_layer='maps' may have its channels on axis 1.*the convolution befo"):
        distiller.fit(np.zeros((4, 6, 6, 2)), verbose=0)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([convolution(4, "channels_first"), keras.layers.Permute((2, 3, 1), name="maps")], (5, 5, 4)),
        (
            [convolution(5, "channels_first"), keras.layers.Permute((2, 3, 1)), keras.layers.ReLU(name="maps")],
            (5, 5, 5),
        ),
        ([keras.layers.TimeDistributed(convolution(4, "channels_first"), name="maps")], (3, 5, 5, 4)),
        ([keras.layers.Conv1D(4, 2, data_format="channels_first", name="maps")], (5, 4)),
        ([convolution(4, "channels_first"), keras.layers.Dense(7, name="maps")], (4, 5, 7)),
        (
            [keras.layers.ConvLSTM2D(4, 2, data_format="channels_first", return_sequences=True, name="maps")],
            (3, 5, 5, 4),
        ),
    ],
)
def test_where_the_channels_of_a_layer_go(layers, shape):
    """Sizes tell the axes apart; the square one does not, but `Permute` has put its channels last."""
    inputs = {3: (2, 6), 4: (2, 6, 6), 5: (3, 2, 6, 6)}[len(shape) + 1]
    model = keras.Sequential([keras.Input(inputs), *layers])
    read = keras_kd.outputs.OutputReader(model, [keras_kd.outputs.Hook("maps")], role="teacher")
    x = np.random.default_rng(0).normal(size=(2, *inputs)).astype("float32")
    (maps,) = read(x, training=False).layers.values()
    assert maps.shape[1:] == shape
    output = model.predict(x, verbose=0)
    axis = output.shape.index(4) if shape[-1] == 4 else -1
    np.testing.assert_allclose(maps, np.moveaxis(output, axis, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [3, 4])
def test_a_projection_is_of_the_channels_also_on_axis_1(width):
    teacher, _ = image_twins(IMAGE_LAYERS["activation"], 4)
    student, _ = image_twins(IMAGE_LAYERS["activation"], width)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.Hint("maps", "maps"))
    assert [layer.kernel.shape for layer in distiller.projections.values()] == ([(3, 4)] if width == 3 else [])
