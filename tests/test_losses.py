"""Every loss through the same laws, and each against published values and float64 NumPy."""

import functools
import json
import pathlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model
from formulas import binary_soft_labels
from loss_table import LABELS, LOSSES, PUBLISHED, ROWS, STUDENT, TEACHER

import keras_kd
from keras_kd._keras_private import set_mask
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.reader import OutputReader


@pytest.fixture(params=LOSSES)
def row(request):
    return LOSSES[request.param]


def labels_for(row, labels=LABELS):
    return {"labels": labels} if row.labelled else {}


def expected_values(row, teacher, student, labels=LABELS):
    return row.formula(teacher, student, **labels_for(row, labels))


def eager_value_and_gradient(distillation_loss, teacher, student, **labels):
    student = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = distillation_loss(tf.convert_to_tensor(teacher), student, **labels)
    return loss, tape.gradient(loss, student)


def values_and_gradient(distillation_loss, teacher, student, jit_compile=False, **labels):
    """In a graph, as `fit` computes them."""
    run = tf.function(
        lambda *outputs: eager_value_and_gradient(distillation_loss, *outputs, **labels), jit_compile=jit_compile
    )
    loss, gradient = run(tf.constant(teacher), tf.constant(student))
    return float(loss), gradient.numpy()


@functools.cache
def size_of_gradient(name):
    """The norm of the gradient of a row of the table at its own outputs."""
    teacher, student = (output.astype("float32") for output in LOSSES[name].outputs)
    return np.linalg.norm(
        eager_value_and_gradient(LOSSES[name].make(), teacher, student, **labels_for(LOSSES[name]))[1]
    )


def numeric_gradient(function, student, step=1e-6):
    gradient = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
        for sign in (1, -1):
            moved = student.copy()
            moved[index] += sign * step
            gradient[index] += sign * function(moved).mean() / (2 * step)
    return gradient


def output_of(model, layer, part, x):
    """What a model, or a part of one of its layers, gives."""
    if layer is None:
        return model.predict(x, verbose=0)
    hook = Hook(layer, part)
    return np.array(OutputReader(model, [hook], role="teacher")(x, training=False).layers[hook])


# Laws of every loss ------------------------------------------------------------------------------------------


def test_equals_its_formula(row):
    expected = expected_values(row, *row.outputs)
    each = row.make(dtype="float64", reduction=None)(*row.outputs, **labels_for(row))
    np.testing.assert_allclose(each, expected, rtol=1e-6)
    assert float(row.make()(*row.outputs, **labels_for(row))) == pytest.approx(expected.mean(), rel=1e-6)


def test_gradient_equals_the_formulas_derivative(row):
    teacher, student = row.outputs
    numeric = numeric_gradient(lambda student: expected_values(row, teacher, student), student)
    _, gradient = values_and_gradient(row.make(dtype="float64"), teacher, student, **labels_for(row))
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)
    teacher, student = teacher.astype("float32"), student.astype("float32")
    _, gradient = values_and_gradient(row.make(), teacher, student, **labels_for(row))
    np.testing.assert_allclose(gradient, numeric, atol=2e-6)


def test_has_no_gradient_at_equality_and_is_zero_there(row):
    teacher, _ = row.outputs
    loss, gradient = values_and_gradient(row.make(), teacher, teacher, **labels_for(row))
    if row.least_is_zero:
        assert loss == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    else:
        numeric = numeric_gradient(lambda student: expected_values(row, teacher, student), teacher)
        np.testing.assert_allclose(gradient, numeric, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_is_finite_with_a_useful_gradient_far_out(row, scale):
    teacher, student = (output.astype("float32") for output in row.far(scale))
    loss, gradient = values_and_gradient(row.make(), teacher, student, **labels_for(row, np.array([0])))
    assert np.isfinite(loss) and loss > 0
    assert np.all(np.isfinite(gradient))
    if not row.saturates:
        assert np.abs(gradient).max() > 0.1


def flat_first(output):
    return np.concatenate([np.zeros_like(output[:1]), output[1:]])


def constant_class(output):
    return np.concatenate([np.ones_like(output[..., :1]), output[..., 1:]], axis=-1)


def constant_over_batch(output):
    return np.broadcast_to(output[:1], output.shape).copy()


DEGENERATE = {
    "both flat": lambda t, s: (0 * t, 0 * s),
    "student flat": lambda t, s: (t, 0 * s),
    "student flat, not at zero": lambda t, s: (t, 0 * s + 0.1),
    "student nearly flat": lambda t, s: (t, 1e-7 * s),
    "one example of the student flat": lambda t, s: (t, flat_first(s)),
    "teacher flat": lambda t, s: (0 * t, s),
    "one example of the teacher flat": lambda t, s: (flat_first(t), s),
    "a class of the student constant": lambda t, s: (t, constant_class(s)),
    "a class of the teacher constant": lambda t, s: (constant_class(t), s),
    "student alike for all examples": lambda t, s: (t, constant_over_batch(s)),
    "teacher alike for all examples": lambda t, s: (constant_over_batch(t), s),
    "batch of one": lambda t, s: (t[:1], s[:1]),
    "batch of one, student flat": lambda t, s: (t[:1], 0 * s[:1]),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", LOSSES)
def test_is_finite_with_a_bounded_gradient_where_outputs_are_flat(name, case):
    """A zero-initialized last layer, dead relus, a batch of one."""
    row = LOSSES[name]
    labels = labels_for(row, LABELS[:1] if "batch of one" in case else LABELS)
    teacher, student = (output.astype("float32") for output in DEGENERATE[case](*row.outputs))
    loss, gradient = eager_value_and_gradient(row.make(), teacher, student, **labels)
    assert np.isfinite(loss) and np.all(np.isfinite(gradient))
    if "nearly" not in case or row.saturates is False or row.make().undoes:  # directions of tiny features stay exact
        assert np.linalg.norm(gradient) <= 1e3 * size_of_gradient(name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_outputs_are_compared_in_float32(row, dtype):
    teacher, student = (tf.cast(output, dtype) for output in row.outputs)
    rounded = (tf.cast(tensor, "float64").numpy() for tensor in (teacher, student))
    loss = row.make()(teacher, student, **labels_for(row))
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected_values(row, *rounded).mean(), rel=1e-5)


def test_xla_gives_the_same(row):
    teacher, student = (output.astype("float32") for output in row.outputs)
    loss, gradient = values_and_gradient(row.make(), teacher, student, **labels_for(row))
    xla_loss, xla_gradient = values_and_gradient(row.make(), teacher, student, jit_compile=True, **labels_for(row))
    assert xla_loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(xla_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_sample_weights_weigh_samples(row):
    values = expected_values(row, *row.outputs)
    weights = np.array([0.0, 1.0, 2.0, 0.5]).reshape(4, *[1] * (values.ndim - 1))
    loss = row.make()(*row.outputs, weights, **labels_for(row))
    assert float(loss) == pytest.approx(np.mean(values * weights), rel=1e-6)  # divided by the count, not the weights


@pytest.mark.parametrize("masked", ["student", "teacher", "both"])
def test_masked_tokens_of_sequences_are_left_out(row, masked):
    """Whichever side masks them: the value is that of the other tokens, however large the masked ones are."""
    teacher, student = (np.stack([logits, logits[::-1] * 0.5]) for logits in (TEACHER, STUDENT))
    labels = np.stack([LABELS, LABELS[::-1]])
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    kept = mask[..., None]  # for maps over all positions; elsewhere a token's value is its own
    expected = expected_values(row, teacher * kept, student * kept, labels)[mask].mean() if row.sequences else None
    outputs = [tf.constant(np.where(kept, output, 50.0)) for output in (teacher, student)]
    for side, output in zip(("teacher", "student"), outputs, strict=True):
        if masked in (side, "both"):
            set_mask(output, tf.constant(mask))
    if not row.sequences:
        with pytest.raises(ValueError, match=row.refusal):
            row.make()(*outputs)
    else:
        assert float(row.make()(*outputs, **labels_for(row, labels))) == pytest.approx(expected, rel=1e-6)


def test_survives_serialization_with_the_current_hyperparameters(row):
    distillation_loss = row.make(weight=0.25, name="mine")
    for variable in distillation_loss.hyperparameters().values():
        variable.assign(float(variable) + 1.0)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(distillation_loss))
    assert type(restored) is type(distillation_loss)
    assert restored.get_config() == distillation_loss.get_config()
    assert float(restored.weight) == 1.25
    values = [float(one(*row.outputs, **labels_for(row))) for one in (restored, distillation_loss)]
    assert values[0] == values[1]


class Power(keras_kd.losses.DistillationLoss):
    """A loss of a user's own, without `get_config`."""

    def __init__(self, power=1.0, **options):
        super().__init__(**options)
        self.power = power


def test_arguments_kept_as_attributes_of_their_names_are_in_the_config():
    restored = Power.from_config(Power(3.0, weight=0.5, output="kind").get_config())
    assert (restored.power, float(restored.weight), restored.output) == (3.0, 0.5, "kind")


def test_is_named_after_its_class_unless_given_a_name(row):
    snake_case = next(name for name, other in LOSSES.items() if other is row).split(" ")[0]
    assert row.make().name == snake_case
    assert row.make(name="mine").name == "mine"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_refuses_a_weight_out_of_range(row, weight):
    with pytest.raises(ValueError, match=r"weight must be >= 0.*got"):
        row.make(weight=weight)


def test_refuses_shapes_that_do_not_fit(row):
    for shapes in row.refused:
        with pytest.raises(ValueError, match=".*".join(re.escape(str(shape)) for shape in shapes)):
            row.make()(*map(np.ones, shapes), **labels_for(row))


def sequences(shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


@pytest.mark.parametrize("steps", [(16, 1), (1, 16), (8, 16)])
def test_refuses_outputs_of_other_steps(row, steps):
    """They would broadcast, or fail inside TensorFlow."""
    shapes = [(2, length, 5) for length in steps]
    if row.any_positions:
        row.make()(*map(sequences, shapes))
        return
    labels = {"labels": np.zeros((2, steps[1]), int)} if row.labelled else {}
    with pytest.raises(ValueError) as error:
        row.make()(*map(sequences, shapes), **labels)
    assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_refuses_other_steps_that_show_only_at_run_time(row, jit_compile):
    if not row.sequences or row.any_positions:
        pytest.skip("refuses sequences, or compares any number of steps")
    labels = {"labels": tf.zeros((2, 1), "int32")} if row.labelled else {}
    signature = [tf.TensorSpec((None, None, 5)), tf.TensorSpec((None, None, 5))]
    loss = row.make()
    run = tf.function(lambda t, s: loss(t, s, **labels), input_signature=signature, jit_compile=jit_compile)
    teacher, student = (sequences((2, length, 5)).astype("float32") for length in (16, 1))
    message = "along axis 1 teacher and student give" if not jit_compile else ""
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        run(teacher, student)
    assert np.isfinite(run(student, student))


def ending_in(activation, logits_model):
    outputs = logits_model.outputs[0]
    return keras.Model(logits_model.inputs, keras.layers.Activation(activation)(outputs))


@pytest.mark.parametrize("sides", ["teacher", "student", "both"])
def test_a_softmax_ending_changes_nothing_or_is_refused(row, sides):
    """Only losses that compare outputs as they are take two models that both end in softmax."""
    loss = row.make(name="mine")
    if loss.teacher_layer is not None:
        pytest.skip("compares layers, not outputs")
    x, y = np.random.default_rng(0).normal(size=(12, 8)).astype("float32"), np.arange(12) % 5
    logits_models = {"teacher": row.model(16), "student": row.model(6)}
    models = {
        side: ending_in("softmax", model) if sides in (side, "both") else model for side, model in logits_models.items()
    }
    as_it_is = loss.undoes is None and loss.expected_ending("student") is None
    if loss.undoes != "softmax" and not (as_it_is and sides == "both"):
        with pytest.raises(ValueError, match="softmax"):
            keras_kd.Distiller(models["teacher"], models["student"], loss)
        return
    values = []
    for pair in (models, logits_models):
        distiller = keras_kd.Distiller(pair["teacher"], pair["student"], row.make(name="mine"))
        hard_loss = "mse" if not row.labelled else "sparse_categorical_crossentropy"
        distiller.compile(keras.optimizers.SGD(0.0), hard_loss, run_eagerly=True)
        targets = y if row.labelled else np.zeros((12, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values.append(distiller.fit(x, targets, batch_size=12, verbose=0).history["mine"][0])
    if not as_it_is:
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_trains_inside_a_distiller_on_its_own_value(row):
    """The value that `fit` logs before the first update is the formula's on the models' outputs."""
    teacher, student = row.model(16), row.model(6)
    distillation_loss = row.make(name="mine")
    x = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
    y = np.arange(12) % 5
    layers = [next(iter(distillation_loss.layers_of(side)), None) for side in ("teacher", "student")]
    sides = zip((teacher, student), layers, strict=True)
    outputs = (output_of(model, layer, row.part, x).astype("float64") for model, layer in sides)
    expected = expected_values(row, *outputs, y).mean()
    distiller = keras_kd.Distiller(teacher, student, distillation_loss)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(x, y, batch_size=12, epochs=20, verbose=0).history["mine"]
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]


# A loss of one's own ------------------------------------------------------------------------------------------------


class OwnLoss(keras_kd.losses.DistillationLoss):
    def call(self, teacher, student):
        return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)


@pytest.mark.parametrize(("teacher", "student"), [((4, 16, 5), (4, 1, 5)), ((4, 5), (4, 1)), ((1, 5), (4, 5))])
def test_a_loss_of_ones_own_needs_no_check_of_shapes(teacher, student):
    with pytest.raises(ValueError, match=r"own_loss compares outputs of one shape") as error:
        OwnLoss()(np.ones(teacher), np.ones(student))
    assert str(teacher) in str(error.value) and str(student) in str(error.value)


def pooled_model(steps):
    inputs = keras.Input((16, 3))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.AveragePooling1D(steps)(inputs)))


@pytest.mark.parametrize("loss", [None, OwnLoss(), keras.losses.MeanSquaredError()])
@pytest.mark.parametrize("pools", [(1, 16), (2, 1)])
def test_other_steps_are_refused_when_the_distiller_is_made(loss, pools):
    with pytest.raises(ValueError, match=r"of one shape, but the teacher gives \(None, \d+, 4\), the student \(None, "):
        keras_kd.Distiller(*map(pooled_model, pools), loss)


def test_a_loss_of_ones_own_that_keras_does_not_know_is_named_when_it_is_loaded():
    mapped = keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(), [1, 0])
    config = mapped.get_config()
    config["loss"] = {**config["loss"], "module": "mine", "class_name": "Mine", "registered_name": "mine>Mine"}
    with pytest.raises(TypeError, match=r"'soft_labels' is a Mine.*register_keras_serializable.*custom_objects"):
        keras_kd.losses.VocabularyMap.from_config(config)


def test_shapes_with_a_better_loss_name_it():
    with pytest.raises(ValueError, match=r"VocabularyMap.*UniversalLogitDistillation"):
        keras_kd.losses.SoftLabels()(TEACHER, STUDENT[:, :4])
    with pytest.raises(ValueError, match="BinarySoftLabels"):
        keras_kd.losses.SoftLabels()(TEACHER[:, :1], STUDENT[:, :1])


# Published values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PUBLISHED)
def test_equals_published_code(source):
    """Values that published code gives in float64 on these logits and labels."""
    make, expected = PUBLISHED[source]
    distillation_loss, labels = make(), {"labels": LABELS} if make().needs_labels else {}
    teacher, student = TEACHER.astype("float32"), STUDENT.astype("float32")
    assert float(distillation_loss(teacher, student, **labels)) == pytest.approx(expected, rel=1e-6)


def test_published_values_are_those_of_the_reference_file():
    path = pathlib.Path(__file__).parents[2] / "shared" / "reference" / "losses.json"
    if not path.exists():
        pytest.skip("the file of reference values is not beside this checkout")

    def numbers(node):
        if isinstance(node, float):
            yield node
        elif isinstance(node, (dict, list)):
            for child in node.values() if isinstance(node, dict) else node:
                yield from numbers(child)

    known = set(numbers(json.loads(path.read_text())["values"]))
    assert {expected for _, expected in PUBLISHED.values()} <= known


# SoftLabels -------------------------------------------------------------------------------------------------------


def test_soft_labels_gradient_is_t_times_the_difference_of_the_distributions():
    """∂L/∂student = T (q − p) / batch, by hand; float64 NumPy."""
    temperature = 4.0
    softmax = [np.exp(z / temperature) / np.exp(z / temperature).sum(-1, keepdims=True) for z in (TEACHER, STUDENT)]
    _, gradient = values_and_gradient(keras_kd.losses.SoftLabels(temperature, dtype="float64"), TEACHER, STUDENT)
    np.testing.assert_allclose(gradient, temperature * (softmax[1] - softmax[0]) / 4, atol=1e-12)


def test_soft_labels_do_not_change_when_a_constant_is_added_to_the_logits():
    distillation_loss = keras_kd.losses.SoftLabels(2.0)
    shifted = distillation_loss(TEACHER + 7.0 * ROWS, STUDENT - 3.0 * ROWS)
    assert float(shifted) == pytest.approx(float(distillation_loss(TEACHER, STUDENT)), rel=1e-5)


def test_soft_labels_gradient_keeps_its_scale_when_the_temperature_changes():
    """At high T the gradient tends to (student − teacher, centred) / (classes · batch): Hinton et al., equation 4."""
    _, gradient = values_and_gradient(keras_kd.losses.SoftLabels(1e3, dtype="float64"), TEACHER, STUDENT)
    centred = [z - z.mean(-1, keepdims=True) for z in (TEACHER, STUDENT)]
    np.testing.assert_allclose(gradient, (centred[1] - centred[0]) / (5 * 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_soft_labels_refuse_a_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match=r"temperature must be > 0.*got .*2 to 8 is usual"):
        keras_kd.losses.SoftLabels(temperature)


@pytest.mark.parametrize("temperature", ["4", None, True, [4.0]])
def test_soft_labels_refuse_a_temperature_that_is_no_number(temperature):
    with pytest.raises(TypeError, match=r"temperature must be > 0 \(a number\), got"):
        keras_kd.losses.SoftLabels(temperature)


def test_soft_labels_refuse_a_single_class():
    with pytest.raises(ValueError, match="at least 2 classes"):
        keras_kd.losses.SoftLabels()(TEACHER[:, :1], STUDENT[:, :1])


@pytest.mark.parametrize("standardize", ["yes", 1, None])
def test_soft_labels_refuse_a_standardize_that_is_no_bool(standardize):
    with pytest.raises(TypeError, match="standardize must be True or False, got"):
        keras_kd.losses.SoftLabels(standardize=standardize)


# The others ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras_kd.losses.JensenShannon(beta=1.2), r"beta must be >= 0 and <= 1, got 1.2"),
        (lambda: keras_kd.losses.SkewKL(alpha=-0.1), r"alpha must be >= 0 and <= 1, got -0.1"),
        (lambda: keras_kd.losses.SkewReverseKL(alpha=2), r"alpha must be >= 0 and <= 1, got 2"),
        (lambda: keras_kd.losses.DecoupledKD(beta=-1.0), r"beta must be >= 0, got -1.0"),
        (lambda: keras_kd.losses.NormalizedKD(gamma=float("nan")), r"gamma must be >= 0, got nan"),
        (lambda: keras_kd.losses.DIST(gamma=-0.5), r"gamma must be >= 0, got -0.5"),
        (lambda: keras_kd.losses.BinarySoftLabels(temperature=0.0), r"temperature must be > 0, got 0.0"),
        (lambda: keras_kd.losses.AttentionTransfer(p=0.5), r"p must be >= 1, got 0.5\. 2 is usual"),
        (lambda: keras_kd.losses.RelationalKD(distance=-1), r"distance must be >= 0, got -1"),
        (lambda: keras_kd.losses.RelationalKD(angle=float("nan")), r"angle must be >= 0, got nan"),
        (lambda: keras_kd.losses.CorrelationCongruence(gamma=0.0), r"gamma must be > 0, got 0.0\. 0.4 is usual"),
        (lambda: keras_kd.losses.CorrelationCongruence(order=0), r"order must be >= 1, got 0"),
        (
            lambda: keras_kd.losses.ContrastiveKD(temperature=0.0),
            r"temperature must be > 0, got 0.0\. 0.05 to 0.5 is usual",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_skewed_divergences_end_where_they_should():
    """α = 0: the plain divergence. α = 1: a distribution against itself."""
    reverse = float(keras_kd.losses.ReverseKL()(TEACHER, STUDENT))
    assert float(keras_kd.losses.SkewKL(alpha=0.0)(TEACHER, STUDENT)) == float(
        keras_kd.losses.SoftLabels(1.0)(TEACHER, STUDENT)
    )
    assert float(keras_kd.losses.SkewReverseKL(alpha=0.0)(TEACHER, STUDENT)) == reverse
    assert float(keras_kd.losses.SkewKL(alpha=1.0)(TEACHER, STUDENT)) == 0.0


def test_skewed_divergence_is_bounded_by_minus_log_alpha():
    far = np.array([[1e4, 0.0, -1e4]])
    assert float(keras_kd.losses.SkewKL(alpha=0.1)(far, -far)) == pytest.approx(-np.log(0.1), rel=1e-6)


@pytest.mark.parametrize("make", [keras_kd.losses.DecoupledKD, keras_kd.losses.NormalizedKD])
def test_labels_may_be_integers_columns_or_one_hot(make):
    values = {float(make()(TEACHER, STUDENT, labels=y)) for y in (LABELS, LABELS[:, None], np.eye(5)[LABELS])}
    assert len(values) == 1


@pytest.mark.parametrize("make", [keras_kd.losses.DecoupledKD, keras_kd.losses.NormalizedKD])
def test_unlabelled_examples_are_skipped(make):
    labels = np.where(np.arange(4) == 2, -1, LABELS)
    values = np.array(make(reduction=None)(TEACHER, STUDENT, labels=LABELS))
    partly = np.array(make(reduction=None)(TEACHER, STUDENT, labels=labels))
    np.testing.assert_array_equal(partly, np.where(np.arange(4) == 2, 0.0, values))


@pytest.mark.parametrize("make", [keras_kd.losses.DecoupledKD, keras_kd.losses.NormalizedKD])
def test_missing_labels_are_refused(make):
    with pytest.raises(ValueError, match=r"needs labels, got none\. Pass labels="):
        make()(TEACHER, STUDENT)
    distiller = keras_kd.Distiller(dense_model(16, 5), dense_model(6, 5), make())
    distiller.compile("sgd", None)
    with pytest.raises(ValueError, match="needs labels, got none"):
        distiller.fit(np.zeros((4, 8), "float32"), verbose=0)


def headed(activation, width):
    """A model whose output is `activation` of its logits, and a model of the logits."""
    inputs = keras.Input((8,))
    logits = keras.layers.Dense(3)(keras.layers.Dense(width, "relu")(inputs))
    return keras.Model(inputs, keras.layers.Activation(activation)(logits)), keras.Model(inputs, logits)


def test_binary_soft_labels_undo_a_sigmoid_ending():
    x = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
    (teacher, teacher_logits), (student, student_logits) = headed("sigmoid", 16), headed("sigmoid", 4)
    expected = binary_soft_labels(*(m.predict(x, verbose=0) for m in (teacher_logits, student_logits)), 2.0).mean()
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.BinarySoftLabels(temperature=2.0))
    distiller.compile("sgd", "binary_crossentropy")
    logs = distiller.fit(x, np.zeros((12, 3)), batch_size=12, verbose=0).history
    assert logs["binary_soft_labels"][0] == pytest.approx(expected, rel=1e-4)


def test_binary_soft_labels_refuse_a_softmax_ending():
    with pytest.raises(ValueError, match=r"compares independent probabilities.*the teacher ends in softmax"):
        keras_kd.Distiller(headed("softmax", 16)[0], headed("linear", 4)[0], keras_kd.losses.BinarySoftLabels())


def test_logits_mse_serves_regression_heads_of_one_unit():
    x = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
    teacher, student = dense_model(16, 1), dense_model(4, 1)
    expected = np.mean((teacher.predict(x, verbose=0) - student.predict(x, verbose=0)) ** 2)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.LogitsMSE())
    distiller.compile("sgd", "mse")
    logs = distiller.fit(x, np.zeros((12, 1)), batch_size=12, verbose=0).history
    assert logs["logits_mse"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [keras_kd.losses.DecoupledKD(), keras_kd.losses.NormalizedKD()])
def test_a_one_hot_row_without_a_class_is_unlabelled(loss):
    """As -1 is: all zeros is how one-hot labels leave an example unlabelled."""
    labels = np.array([2, -1, 0, 1])
    one_hot = np.eye(5)[labels] * (labels >= 0)[:, None]
    expected = float(loss(TEACHER, STUDENT, labels=labels))
    assert float(loss(TEACHER, STUDENT, labels=one_hot)) == pytest.approx(expected, rel=1e-6)
    metric = keras_kd.metrics.MacroF1(classes=5)
    metric.update_state(one_hot, STUDENT)
    other = keras_kd.metrics.MacroF1(classes=5)
    other.update_state(labels, STUDENT)
    assert float(metric.result()) == float(other.result())
