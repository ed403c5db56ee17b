"""Every objective through the same laws, and each against published values or float64 NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd

ROWS, COLUMNS = np.arange(4)[:, None], np.arange(5)
STUDENT = 2 * np.sin(1 + 5 * ROWS + COLUMNS)
TEACHER = 3 * np.cos(2 + 5 * ROWS + COLUMNS)

# One row an objective: how to make it. Every law below runs on each.
OBJECTIVES = {
    "soft_labels": lambda **options: keras_kd.SoftLabels(temperature=3.0, **options),
    "hint": lambda **options: keras_kd.Hint("teacher_layer", "student_layer", **options),
}


def numpy_soft_labels(teacher, student, temperature):
    """T² Σ p (log p − log q) by the formula, float64: one value a row."""

    def log_softmax(logits):
        shifted = logits / temperature - np.max(logits / temperature, axis=-1, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))

    teacher_log, student_log = log_softmax(teacher), log_softmax(student)
    return temperature**2 * np.sum(np.exp(teacher_log) * (teacher_log - student_log), axis=-1)


def numpy_hint(teacher, student):
    return np.mean((teacher - student) ** 2, axis=-1)


FORMULAS = {
    "soft_labels": lambda teacher, student: numpy_soft_labels(teacher, student, 3.0),
    "hint": numpy_hint,
}


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def values_and_gradient(objective, teacher, student, jit_compile=False):
    @tf.function(jit_compile=jit_compile)
    def run(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = objective(teacher, student)
        return loss, tape.gradient(loss, student)

    loss, gradient = run(tf.constant(teacher), tf.constant(student))
    return float(loss), gradient.numpy()


# Laws of every objective ------------------------------------------------------------------------------------------


def test_equals_its_formula(name):
    expected = FORMULAS[name](TEACHER, STUDENT)
    objective = OBJECTIVES[name]()
    np.testing.assert_allclose(objective.call(tf.constant(TEACHER), tf.constant(STUDENT)), expected, rtol=1e-12)
    assert float(objective(TEACHER, STUDENT)) == pytest.approx(expected.mean(), rel=1e-6)


def test_gradient_equals_the_formulas_derivative(name):
    step, numeric = 1e-6, np.zeros_like(STUDENT)
    for index in np.ndindex(*STUDENT.shape):
        for sign in (1, -1):
            moved = STUDENT.copy()
            moved[index] += sign * step
            numeric[index] += sign * FORMULAS[name](TEACHER, moved).mean() / (2 * step)
    _, gradient = values_and_gradient(OBJECTIVES[name](dtype="float64"), TEACHER, STUDENT)
    np.testing.assert_allclose(gradient, numeric, atol=1e-9)
    _, gradient = values_and_gradient(OBJECTIVES[name](), TEACHER.astype("float32"), STUDENT.astype("float32"))
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)


def test_is_zero_with_zero_gradient_at_equality(name):
    loss, gradient = values_and_gradient(OBJECTIVES[name](), TEACHER, TEACHER)
    assert loss == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_is_finite_with_a_useful_gradient_far_out(name, scale):
    teacher = np.array([[scale, 0.0, -scale]], "float32")
    loss, gradient = values_and_gradient(OBJECTIVES[name](), teacher, -teacher)
    assert np.isfinite(loss) and loss > 0
    assert np.all(np.isfinite(gradient)) and np.abs(gradient).max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_signals_are_compared_in_float32(name, dtype):
    teacher, student = (tf.cast(logits, dtype) for logits in (TEACHER, STUDENT))
    expected = FORMULAS[name](tf.cast(teacher, "float64").numpy(), tf.cast(student, "float64").numpy()).mean()
    loss = OBJECTIVES[name]()(teacher, student)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_xla_gives_the_same(name):
    teacher, student = TEACHER.astype("float32"), STUDENT.astype("float32")
    loss, gradient = values_and_gradient(OBJECTIVES[name](), teacher, student)
    xla_loss, xla_gradient = values_and_gradient(OBJECTIVES[name](), teacher, student, jit_compile=True)
    assert xla_loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(xla_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_sample_weights_weigh_samples(name):
    weights = np.array([0.0, 1.0, 2.0, 0.5])
    expected = np.mean(FORMULAS[name](TEACHER, STUDENT) * weights)  # Keras divides by the count, not by the weights
    assert float(OBJECTIVES[name]()(TEACHER, STUDENT, weights)) == pytest.approx(expected, rel=1e-6)


def test_masked_tokens_of_sequences_are_left_out(name):
    teacher, student = (np.stack([logits, logits[::-1] * 0.5]) for logits in (TEACHER, STUDENT))
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    masked = tf.constant(student)
    keras_kd._keras_private.set_mask(masked, tf.constant(mask))
    expected = FORMULAS[name](teacher, student)[mask].mean()
    assert float(OBJECTIVES[name]()(teacher, masked)) == pytest.approx(expected, rel=1e-6)


def test_survives_serialization_with_the_current_hyperparameters(name):
    objective = OBJECTIVES[name](weight=0.25, name="mine")
    for variable in objective.hyperparameters().values():
        variable.assign(float(variable) + 1.0)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert type(restored) is type(objective)
    assert restored.get_config() == objective.get_config()
    assert float(restored.weight) == 1.25
    assert float(restored(TEACHER, STUDENT)) == float(objective(TEACHER, STUDENT))


def test_is_named_after_its_class_unless_given_a_name(name):
    assert OBJECTIVES[name]().name == name
    assert OBJECTIVES[name](name="mine").name == "mine"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_refuses_a_weight_out_of_range(name, weight):
    with pytest.raises(ValueError, match=r"weight must be >= 0.*got"):
        OBJECTIVES[name](weight=weight)


def test_refuses_shapes_that_do_not_fit(name):
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 1, 5\)"):
        OBJECTIVES[name]()(TEACHER, STUDENT[:, None])
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 4\)"):
        OBJECTIVES[name]()(TEACHER, STUDENT[:, :4])


# SoftLabels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "expected"), [(1, 3.0153552029), (2, 4.4667952945), (4, 5.1712414437)])
def test_soft_labels_equal_published_code(temperature, expected):
    """Values of mdistiller's `distillers/KD.py` `kd_loss` on these logits, float64: forward KL times T², batch mean."""
    teacher, student = TEACHER.astype("float32"), STUDENT.astype("float32")
    assert float(keras_kd.SoftLabels(temperature)(teacher, student)) == pytest.approx(expected, rel=1e-6)


def test_soft_labels_gradient_is_t_times_the_difference_of_the_distributions():
    """∂L/∂student = T (q − p) / batch, by hand; float64 NumPy."""
    temperature = 4.0
    softmax = [np.exp(z / temperature) / np.exp(z / temperature).sum(-1, keepdims=True) for z in (TEACHER, STUDENT)]
    _, gradient = values_and_gradient(keras_kd.SoftLabels(temperature, dtype="float64"), TEACHER, STUDENT)
    np.testing.assert_allclose(gradient, temperature * (softmax[1] - softmax[0]) / 4, atol=1e-12)


def test_soft_labels_do_not_change_when_a_constant_is_added_to_the_logits():
    objective = keras_kd.SoftLabels(2.0)
    shifted = objective(TEACHER + 7.0 * ROWS, STUDENT - 3.0 * ROWS)
    assert float(shifted) == pytest.approx(float(objective(TEACHER, STUDENT)), rel=1e-5)


def test_soft_labels_gradient_keeps_its_scale_when_the_temperature_changes():
    """At high T the gradient tends to (student − teacher, centred) / (classes · batch): Hinton et al., equation 4."""
    _, gradient = values_and_gradient(keras_kd.SoftLabels(1e3, dtype="float64"), TEACHER, STUDENT)
    centred = [z - z.mean(-1, keepdims=True) for z in (TEACHER, STUDENT)]
    np.testing.assert_allclose(gradient, (centred[1] - centred[0]) / (5 * 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_soft_labels_refuse_a_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match=r"temperature must be > 0.*got .*2 to 8 is usual"):
        keras_kd.SoftLabels(temperature)


@pytest.mark.parametrize("temperature", ["4", None, True, [4.0]])
def test_soft_labels_refuse_a_temperature_that_is_no_number(temperature):
    with pytest.raises(TypeError, match=r"temperature must be > 0 \(a number\), got"):
        keras_kd.SoftLabels(temperature)


def test_soft_labels_refuse_a_single_class():
    with pytest.raises(ValueError, match="at least 2 classes"):
        keras_kd.SoftLabels()(TEACHER[:, :1], STUDENT[:, :1])
