"""The step: what it computes, and that everything `keras.Model.fit` offers works in it."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd

TEMPERATURE = 3.0


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def soft_values(teacher_logits, student_logits, temperature=TEMPERATURE):
    """T² KL by its formula in float64, one value per distribution."""
    teacher, student = (
        log_softmax(np.asarray(logits, "float64") / temperature) for logits in (teacher_logits, student_logits)
    )
    return temperature**2 * (np.exp(teacher) * (teacher - student)).sum(axis=-1)


def hard_values(labels, student_logits):
    """Cross-entropy by its formula in float64, one value per distribution."""
    logs = log_softmax(np.asarray(student_logits, "float64"))
    return -np.take_along_axis(logs, np.asarray(labels)[..., None], axis=-1)[..., 0]


def make(soft_weight=0.5, distillation_losses=None, student=None, teacher=None, **options):
    teacher = teacher or dense_model(32, 3, name="teacher")
    student = student or dense_model(6, 3, name="student")
    distillation_losses = distillation_losses or keras_kd.losses.SoftLabels(TEMPERATURE)
    return keras_kd.Distiller(teacher, student, distillation_losses, soft_weight=soft_weight, **options)


def fitted_logs(distiller, *args, **options):
    """Logs of one epoch without learning, so that expected values can be computed from the weights."""
    distiller.compile(keras.optimizers.SGD(0.0), **{"loss": crossentropy(), **options.pop("compile", {})})
    history = distiller.fit(*args, verbose=0, epochs=1, shuffle=False, **options)
    return {name: values[0] for name, values in history.history.items()}


# What is computed -------------------------------------------------------------------------------------------------


def test_loss_is_the_sum_of_its_parts(data):
    x, y = data
    distiller = make(
        soft_weight=0.5, hard_weight=2.0, distillation_losses=keras_kd.losses.SoftLabels(TEMPERATURE, weight=3.0)
    )
    teacher_logits, student_logits = distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0)
    hard, soft = hard_values(y, student_logits).mean(), soft_values(teacher_logits, student_logits).mean()
    logs = fitted_logs(distiller, x, y)
    assert logs["hard_loss"] == pytest.approx(hard, rel=1e-5)
    assert logs["soft_labels"] == pytest.approx(soft, rel=1e-5)
    assert logs["loss"] == pytest.approx(2.0 * hard + 0.5 * 3.0 * soft, rel=1e-5)
    assert logs["soft_weight"] == 0.5


def test_one_step_equals_a_step_written_by_hand(data):
    x, y = data
    distiller = make()
    teacher, student = distiller.teacher, keras.models.clone_model(distiller.student)
    student.set_weights(distiller.student.get_weights())
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    distiller.fit(x, y, batch_size=len(x), verbose=0)

    with tf.GradientTape() as tape:
        logits = student(x, training=True)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        p = tf.nn.softmax(teacher(x) / TEMPERATURE)
        soft = tf.reduce_sum(p * (tf.math.log(p) - tf.nn.log_softmax(logits / TEMPERATURE)), axis=-1)
        loss = tf.reduce_mean(hard) + 0.5 * TEMPERATURE**2 * tf.reduce_mean(soft)
    for variable, gradient in zip(
        student.trainable_variables, tape.gradient(loss, student.trainable_variables), strict=True
    ):
        variable.assign_sub(0.1 * gradient)
    for ours, by_hand in zip(distiller.student.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, by_hand, atol=1e-6)


def test_soft_weight_and_temperature_change_without_retracing(data):
    traces = []

    class Counting(keras_kd.losses.SoftLabels):
        def call(self, teacher, student):
            traces.append(1)
            return super().call(teacher, student)

    x, y = data
    distillation_loss = Counting(TEMPERATURE, name="soft_labels")
    distiller = make(distillation_losses=distillation_loss)
    first = fitted_logs(distiller, x, y, batch_size=37)
    traced = len(traces)
    distiller.soft_weight.assign(2.0)
    distillation_loss.temperature.assign(1.0)
    logs = distiller.fit(x, y, verbose=0, batch_size=37).history
    expected = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0), 1.0).mean()
    assert len(traces) == traced
    assert logs["soft_labels"][0] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"][0] == pytest.approx(first["hard_loss"] + 2.0 * expected, rel=1e-5)


def test_predict_evaluate_and_call_are_the_students(data):
    x, y = data
    distiller = make()
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    student = distiller.student
    student.compile("sgd", crossentropy(), metrics=["accuracy"])
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))
    np.testing.assert_array_equal(distiller(x), student(x))
    assert distiller.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(
        student.evaluate(x, y, verbose=0, return_dict=True)
    )


class CountingModel(keras.Model):
    """A subclassed model that counts how often Keras or we run it."""

    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.calls = []

    def call(self, inputs, training=None):
        self.calls.append(training)
        return self.dense(inputs)


def test_teacher_and_student_run_once_a_step_and_evaluate_never_runs_the_teacher(data):
    x, y = data
    teacher, student = CountingModel(3), CountingModel(3)
    teacher(x), student(x)
    distiller = make(teacher=teacher, student=student)
    distiller.compile("sgd", crossentropy(), run_eagerly=True)
    teacher.calls.clear(), student.calls.clear()
    distiller.fit(x, y, batch_size=37, verbose=0)
    assert (teacher.calls, student.calls) == ([False], [True])
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    distiller(x)
    assert teacher.calls == [False]


def test_layers_are_read_from_the_same_single_pass(data):
    """Each model is entered once a step, with layer outputs too: BatchNorm moves once, by the batch's statistics."""
    x, y = data
    teacher = dense_model(16, 3)
    student = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(5, name="thin"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dense(3),
        ]
    )
    hint = keras_kd.losses.Hint("hidden_0", "thin", weight=0.1)
    distiller = make(teacher=teacher, student=student, distillation_losses=[keras_kd.losses.SoftLabels(), hint])
    batch_mean = np.asarray(student.layers[0](x)).mean(axis=0)
    logs = fitted_logs(distiller, x, y, batch_size=37)
    assert {"soft_labels", "hint", "hard_loss"} <= set(logs)
    np.testing.assert_allclose(student.layers[1].moving_mean, 0.1 * batch_mean, rtol=1e-4, atol=1e-6)


def test_a_hints_projection_is_trained_and_stays_out_of_the_student(data):
    x, y = data
    distiller = make(distillation_losses=[keras_kd.losses.Hint("hidden_0", "hidden_0")])
    projection = distiller.projections["hint"]
    kernel = projection.kernel.numpy()
    assert kernel.shape == (6, 32)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    distiller.fit(x, y, verbose=0)
    assert np.abs(projection.kernel.numpy() - kernel).max() > 1e-4
    assert all("projection" not in variable.path for variable in distiller.student.variables)
    assert any("projection" in variable.path for variable in distiller.variables)


def test_a_hint_without_a_difference_in_width_needs_no_projection(data):
    x, y = data
    distiller = make(distillation_losses=[keras_kd.losses.Hint("logits", "logits")])
    assert distiller.projections == {}
    difference = distiller.teacher.predict(x, verbose=0) - distiller.predict(x, verbose=0)
    assert fitted_logs(distiller, x, y)["hint"] == pytest.approx((difference**2).mean(), rel=1e-5)


# What fit offers --------------------------------------------------------------------------------------------------


def test_sample_weights_weigh_both_losses(data):
    x, y = data
    weights = np.linspace(0.0, 2.0, len(x))
    distiller = make()
    hard = hard_values(y, distiller.predict(x, verbose=0))
    soft = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0))
    logs = fitted_logs(distiller, x, y, sample_weight=weights, batch_size=37)
    assert logs["hard_loss"] == pytest.approx((weights * hard).mean(), rel=1e-5)
    assert logs["soft_labels"] == pytest.approx((weights * soft).mean(), rel=1e-5)


def test_class_weights_weigh_both_losses(data):
    x, y = data
    distiller = make()
    soft = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0))
    logs = fitted_logs(distiller, x, y, class_weight={0: 0.0, 1: 1.0, 2: 3.0}, batch_size=37)
    assert logs["soft_labels"] == pytest.approx((np.array([0.0, 1.0, 3.0])[y] * soft).mean(), rel=1e-5)


def token_model(width):
    return keras.Sequential(
        [keras.Input((6,), dtype="int32"), keras.layers.Embedding(20, width, mask_zero=True), keras.layers.Dense(4)]
    )


@pytest.mark.parametrize("sample_weight", [None, np.linspace(0.5, 2.0, 5)[:, None]], ids=["mask", "mask and weights"])
def test_masked_tokens_count_in_neither_loss(sample_weight):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (5, 6))
    ids[np.arange(6) >= np.array([6, 4, 2, 1, 5])[:, None]] = 0
    labels, mask = rng.integers(0, 4, (5, 6)), ids != 0
    distiller = make(teacher=token_model(9), student=token_model(3))
    teacher_logits, student_logits = distiller.teacher.predict(ids, verbose=0), distiller.predict(ids, verbose=0)
    weights = np.ones((5, 6)) * (1.0 if sample_weight is None else sample_weight)
    logs = fitted_logs(distiller, ids, labels, sample_weight=sample_weight, batch_size=5)
    hard, soft = hard_values(labels, student_logits), soft_values(teacher_logits, student_logits)
    assert logs["hard_loss"] == pytest.approx((weights * hard)[mask].mean(), rel=1e-5)
    assert logs["soft_labels"] == pytest.approx((weights * soft)[mask].mean(), rel=1e-5, abs=1e-6)


def test_masked_tokens_do_not_count_in_a_hint():
    """Through the projection, which widens the student's tokens."""

    def model(width):
        tokens = keras.layers.Embedding(20, width, mask_zero=True, name="tokens")
        return keras.Sequential([keras.Input((6,), dtype="int32"), tokens, keras.layers.Dense(4)])

    ids = np.random.default_rng(0).integers(1, 20, (5, 6))
    ids[np.arange(6) >= np.array([6, 4, 2, 1, 5])[:, None]] = 0
    distiller = make(teacher=model(9), student=model(3), distillation_losses=keras_kd.losses.Hint("tokens", "tokens"))
    teacher, student = (m.layers[0].embeddings.numpy()[ids] for m in (distiller.teacher, distiller.student))
    difference = teacher - student @ distiller.projections["hint"].kernel.numpy()
    logs = fitted_logs(distiller, ids, compile={"loss": None}, batch_size=5)
    assert logs["hint"] == pytest.approx((difference**2).mean(axis=-1)[ids != 0].mean(), rel=1e-5)


@pytest.mark.parametrize("hints", [False, True])
def test_losses_that_layers_of_the_student_add_are_added_once(data, hints):
    """An activity regularizer and `add_loss`, by hand; the teacher adds losses as well, which count for nothing."""

    class Adding(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(0.25 * keras.ops.mean(keras.ops.square(inputs)))
            return inputs

    def model(width):
        hidden = keras.layers.Dense(width, name="hidden", activity_regularizer=keras.regularizers.L2(0.1))
        return keras.Sequential([keras.Input((8,)), hidden, Adding(), keras.layers.Dense(3)])

    x, y = data
    distillation_losses = [keras_kd.losses.SoftLabels(), keras_kd.losses.Hint("hidden", "hidden")][: 1 + hints]
    distiller = make(teacher=model(5), student=model(5), distillation_losses=distillation_losses)
    squares = np.asarray(distiller.student.layers[0](x), "float64") ** 2
    expected = 0.1 * squares.sum() / len(x) + 0.25 * squares.mean()
    logs = fitted_logs(distiller, x, y, batch_size=37)
    soft = sum(0.5 * logs[distillation_loss.name] for distillation_loss in distillation_losses)
    assert logs["loss"] - logs["hard_loss"] - soft == pytest.approx(expected, rel=1e-4)


def test_regularization_losses_of_the_student_are_added(data):
    x, y = data
    student = dense_model(6, 3, kernel_regularizer=keras.regularizers.L2(0.1))
    distiller = make(student=student, teacher=dense_model(32, 3, kernel_regularizer=keras.regularizers.L2(0.1)))
    expected = 0.1 * sum(float((layer.kernel.numpy() ** 2).sum()) for layer in student.layers)
    logs = fitted_logs(distiller, x, y)
    assert logs["loss"] - logs["hard_loss"] - 0.5 * logs["soft_labels"] == pytest.approx(expected, rel=1e-4)
    evaluated = distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert evaluated == pytest.approx(logs["hard_loss"] + expected, rel=1e-5)


def test_metrics_and_validation_data(data):
    x, y = data
    distiller = make()
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"], weighted_metrics=["accuracy"])
    logs = distiller.fit(x, y, validation_data=(x, y), verbose=0, epochs=2).history
    assert set(logs) == {
        "loss", "hard_loss", "soft_labels", "soft_weight", "accuracy", "weighted_accuracy",
        "val_loss", "val_accuracy", "val_weighted_accuracy",
    }  # fmt: skip
    accuracy = (distiller.predict(x, verbose=0).argmax(-1) == y).mean()
    assert logs["val_accuracy"][-1] == pytest.approx(accuracy)


def test_kinds_of_losses_and_labels(data):
    """By name, function, list, dict; labels as a column, as a tensor, one-hot and smoothed: all the same value."""
    x, y = data
    distiller = make(student=dense_model(6, 3, last="softmax"))
    expected = -np.log(distiller.predict(x, verbose=0)[np.arange(37), y]).mean()
    name, function = "sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy
    for loss in (name, function, [name], {"logits": name}):
        assert fitted_logs(distiller, x, y[:, None], compile={"loss": loss})["hard_loss"] == pytest.approx(expected)
    assert fitted_logs(distiller, x, tf.constant(y), compile={"loss": name})["hard_loss"] == pytest.approx(expected)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.0)
    assert fitted_logs(distiller, x, np.eye(3)[y], compile={"loss": loss})["hard_loss"] == pytest.approx(expected)
    smoothed = {"loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.3)}
    uniform = -np.log(distiller.predict(x, verbose=0)).mean()
    hard_loss = fitted_logs(distiller, x, np.eye(3)[y], compile=smoothed)["hard_loss"]
    assert hard_loss == pytest.approx(0.7 * expected + 0.3 * uniform, rel=1e-5)


def test_compiled_anew(data):
    x, y = data
    distiller = make()
    fitted_logs(distiller, x, y, compile={"metrics": ["accuracy"]})
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    logs = fitted_logs(distiller, x, np.eye(3)[y], compile={"loss": loss, "metrics": ["mse"]})
    assert set(logs) == {"loss", "hard_loss", "soft_labels", "soft_weight", "mse"}
    assert set(fitted_logs(distiller, x, compile={"loss": None})) == {"loss", "soft_labels", "soft_weight"}


def test_another_teacher_between_two_fits(data):
    x, y = data
    distiller = make()
    fitted_logs(distiller, x, y)
    distiller.teacher = dense_model(9, 3)
    expected = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0)).mean()
    logs = distiller.fit(x, y, verbose=0, batch_size=37).history
    assert logs["soft_labels"][0] == pytest.approx(expected, rel=1e-5)


def test_a_student_without_trainable_weights_learns_nothing_and_says_so(data):
    student = dense_model(6, 3)
    student.trainable = False
    distiller = make(student=student)
    distiller.compile("adam", crossentropy())
    with pytest.warns(UserWarning, match=r"the student has no trainable weights"):
        distiller.fit(*data, verbose=0)


def test_frozen_layers_of_the_student_stay_as_they_are(data):
    student = noisy_model(6)
    student.layers[0].trainable = student.layers[1].trainable = False
    frozen = [variable.numpy() for layer in student.layers[:2] for variable in layer.variables]
    last = student.layers[3].get_weights()
    distiller = make(student=student)
    distiller.compile("adam", crossentropy())
    distiller.fit(*data, verbose=0)
    variables = [variable for layer in student.layers[:2] for variable in layer.variables]
    for before, variable in zip(frozen, variables, strict=True):
        np.testing.assert_array_equal(before, variable.numpy())
    assert np.abs(student.layers[3].get_weights()[0] - last[0]).max() > 0


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.1),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 8), momentum=0.9),
    ],
    ids=["ema", "decay and clipping", "schedule"],
)
def test_with_soft_weight_zero_it_is_plain_fit(data, optimizer):
    weights = []
    for distil in (True, False):
        keras.utils.set_random_seed(3)
        student = dense_model(6, 3, kernel_regularizer="l2")
        model = make(soft_weight=0.0, student=student) if distil else student
        model.compile(optimizer(), crossentropy())
        model.fit(*data, batch_size=8, epochs=2, shuffle=False, validation_split=0.2, verbose=0)
        weights.append(student.get_weights())
    for ours, plain in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def two_headed(width, structure):
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(width, "relu")(inputs)
    topic, tone = keras.layers.Dense(3, name="topic")(hidden), keras.layers.Dense(4, name="tone")(hidden)
    return keras.Model(inputs, {"topic": topic, "tone": tone} if structure is dict else [topic, tone])


@pytest.mark.parametrize("structure", [dict, list])
def test_several_outputs(data, structure):
    x, topic = data
    tone = np.arange(len(x)) % 4
    distiller = make(
        teacher=two_headed(16, structure),
        student=two_headed(4, structure),
        distillation_losses=[
            keras_kd.losses.SoftLabels(TEMPERATURE),
            keras_kd.losses.SoftLabels(TEMPERATURE, output="tone", name="tone_only"),
        ],
    )
    labels = {"topic": topic, "tone": tone} if structure is dict else [topic, tone]
    losses = {"topic": crossentropy(), "tone": crossentropy()}
    teacher_logits, student_logits = distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0)
    topic_key, tone_key = ("topic", "tone") if structure is dict else (0, 1)
    soft = {key: soft_values(teacher_logits[key], student_logits[key]).mean() for key in (topic_key, tone_key)}
    hard = hard_values(topic, student_logits[topic_key]).mean() + hard_values(tone, student_logits[tone_key]).mean()
    logs = fitted_logs(distiller, x, labels, compile={"loss": losses})
    assert logs["hard_loss"] == pytest.approx(hard, rel=1e-5)
    assert logs["soft_labels"] == pytest.approx(sum(soft.values()), rel=1e-5)
    assert logs["tone_only"] == pytest.approx(soft[tone_key], rel=1e-5)
    assert {"topic_loss", "tone_loss"} <= set(logs)

    weights = {"topic": np.linspace(0.0, 2.0, 37), "tone": np.linspace(1.0, 0.0, 37)}
    tone_soft = soft_values(teacher_logits[tone_key], student_logits[tone_key])
    sample_weight = weights if structure is dict else list(weights.values())
    logs = fitted_logs(distiller, x, labels, sample_weight=sample_weight, batch_size=37, compile={"loss": losses})
    assert logs["tone_only"] == pytest.approx((weights["tone"] * tone_soft).mean(), rel=1e-5)


@pytest.mark.parametrize("structure", [dict, list])
def test_a_loss_for_one_output_only_and_weights_of_losses(data, structure):
    x, topic = data
    distiller = make(teacher=two_headed(9, structure), student=two_headed(4, structure))
    logits = distiller.predict(x, verbose=0)["topic" if structure is dict else 0]
    losses, labels = {"topic": crossentropy(), "tone": None}, {"topic": topic, "tone": topic}
    one = {"loss": losses if structure is dict else list(losses.values())}
    logs = fitted_logs(distiller, x, labels if structure is dict else list(labels.values()), compile=one)
    assert logs["hard_loss"] == pytest.approx(hard_values(topic, logits).mean(), rel=1e-5)
    weighted = {
        "loss": {"topic": crossentropy(), "tone": crossentropy()},
        "loss_weights": {"topic": 2.0, "tone": 0.0},
        "metrics": {"tone": ["accuracy"]},
    }
    logs = fitted_logs(distiller, x, labels if structure is dict else list(labels.values()), compile=weighted)
    assert logs["hard_loss"] == pytest.approx(2.0 * hard_values(topic, logits).mean(), rel=1e-5)
    assert "tone_accuracy" in logs


def test_heads_of_other_kinds_stand_beside_the_one_that_is_compared(data):
    """A softmax, a sigmoid and a regression head: soft labels for the first."""
    x, y = data

    def model(width):
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(width, "relu")(inputs)
        heads = {"kind": (3, "softmax"), "flag": (1, "sigmoid"), "size": (1, None)}
        return keras.Model(inputs, {key: keras.layers.Dense(*head, name=key)(hidden) for key, head in heads.items()})

    distiller = make(
        teacher=model(16), student=model(4), distillation_losses=keras_kd.losses.SoftLabels(TEMPERATURE, output="kind")
    )
    teacher, student = (np.log(m.predict(x, verbose=0)["kind"]) for m in (distiller.teacher, distiller.student))
    losses = {"kind": "sparse_categorical_crossentropy", "flag": "binary_crossentropy", "size": "mse"}
    labels = {"kind": y, "flag": (y > 0)[:, None], "size": x[:, :1]}
    logs = fitted_logs(distiller, x, labels, compile={"loss": losses})
    assert logs["soft_labels"] == pytest.approx(soft_values(teacher, student).mean(), rel=1e-4)


def test_a_teacher_may_also_give_integers(data):
    """For a loss of one's own; integers cannot be NaN."""

    class Decision(keras_kd.losses.DistillationLoss):
        def compared_axes(self, rank):
            return (0,)

        def call(self, teacher, student):
            labels = keras.ops.cast(teacher[:, 0], "int32")
            return keras.ops.sparse_categorical_crossentropy(labels, student, from_logits=True)

    x, _ = data
    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, keras.ops.argmax(keras.layers.Dense(3)(inputs), axis=-1, keepdims=True))
    distiller = make(teacher=teacher, distillation_losses=Decision())
    expected = hard_values(teacher.predict(x, verbose=0)[:, 0], distiller.predict(x, verbose=0)).mean()
    assert fitted_logs(distiller, x, compile={"loss": None})["decision"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("structure", [dict, list])
def test_an_loss_that_needs_labels_gets_those_of_its_output(data, structure):
    x, topic = data
    tone = np.arange(len(x)) % 4
    teacher, student = two_headed(16, structure), two_headed(4, structure)
    distillation_loss = keras_kd.losses.DecoupledKD(temperature=2.0, output="tone")
    key, labels = ("tone", {"topic": topic, "tone": tone}) if structure is dict else (1, [topic, tone])
    logits = [model.predict(x, verbose=0)[key] for model in (teacher, student)]
    expected = float(distillation_loss(*logits, labels=tone))
    distiller = make(teacher=teacher, student=student, distillation_losses=[distillation_loss])
    losses = {"topic": crossentropy(), "tone": crossentropy()}
    logs = fitted_logs(distiller, x, labels, batch_size=37, compile={"loss": losses})
    assert logs["decoupled_kd"] == pytest.approx(expected, rel=1e-5)


def test_dict_inputs(data):
    x, y = data

    def model(width):
        left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
        hidden = keras.layers.Dense(width, "relu", name="hidden")(keras.layers.Concatenate()([left, right]))
        return keras.Model({"left": left, "right": right}, keras.layers.Dense(3)(hidden))

    distillation_losses = [keras_kd.losses.SoftLabels(TEMPERATURE), keras_kd.losses.Hint("hidden", "hidden")]
    distiller = make(teacher=model(16), student=model(4), distillation_losses=distillation_losses)
    inputs = {"right": x[:, 4:], "left": x[:, :4]}
    expected = soft_values(distiller.teacher.predict(inputs, verbose=0), distiller.predict(inputs, verbose=0)).mean()
    assert fitted_logs(distiller, inputs, y)["soft_labels"] == pytest.approx(expected, rel=1e-5)


def test_teacher_and_student_may_read_other_parts_of_the_same_inputs(data):
    x, y = data

    def model(*names):
        inputs = {name: keras.Input((4,), name=name) for name in names}
        joined = keras.layers.Concatenate()([*inputs.values(), *inputs.values()])
        return keras.Model(inputs, keras.layers.Dense(3)(joined))

    distiller = make(teacher=model("left", "right"), student=model("left"))
    inputs = {"left": x[:, :4], "right": x[:, 4:]}
    student_inputs = {"left": x[:, :4]}
    expected = soft_values(
        distiller.teacher.predict(inputs, verbose=0), distiller.student.predict(student_inputs, verbose=0)
    ).mean()
    assert fitted_logs(distiller, inputs, y)["soft_labels"] == pytest.approx(expected, rel=1e-5)


def reader_of(kind, name, features):
    """A classifier of `features` numbers whose input has a name, in each of the forms that Keras has."""
    inputs = keras.Input((features,), name=name)
    if kind == "sequential":
        return keras.Sequential([inputs, keras.layers.Dense(3)])
    logits = keras.layers.Dense(3, name="logits")(inputs)
    return keras.Model({name: inputs} if kind == "dict" else inputs, logits)


@pytest.mark.parametrize("student_kind", ["dict", "single", "sequential"])
@pytest.mark.parametrize("teacher_kind", ["dict", "single", "sequential"])
def test_teacher_and_student_read_different_entries_of_a_dict(data, teacher_kind, student_kind):
    """ "a" stands before "b": taken by order, the student would read the teacher's entry. Both are equally wide."""
    x, y = data
    batch = {"a": x, "b": x[:, ::-1] * 2.0, "unused": x[:, :1]}
    teacher, student = reader_of(teacher_kind, "a", 8), reader_of(student_kind, "b", 8)
    read = {"dict": lambda name: {name: batch[name]}}
    logits = [
        model.predict(read.get(kind, batch.get)(name), verbose=0)
        for model, kind, name in ((teacher, teacher_kind, "a"), (student, student_kind, "b"))
    ]
    distiller = make(teacher=teacher, student=student)
    np.testing.assert_allclose(distiller.predict(batch, verbose=0), logits[1], atol=1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The structure of `inputs` doesn't match")
        logs = fitted_logs(distiller, batch, y, validation_data=(batch, y), batch_size=37)
    assert logs["soft_labels"] == pytest.approx(soft_values(*logits).mean(), rel=1e-5)
    assert logs["hard_loss"] == pytest.approx(hard_values(y, logits[1]).mean(), rel=1e-5)


def test_a_dict_without_the_entry_that_a_model_reads_is_refused(data):
    distiller = make(teacher=reader_of("single", "a", 8), student=reader_of("single", "b", 8))
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=r"x must hold the teacher's inputs \['a'\], got the entries \['b', 'c'\]"):
        distiller.fit({"b": data[0], "c": data[0]}, data[1], verbose=0)


def weights_after_fit(data, epochs=2, optimizer=None, **options):
    keras.utils.set_random_seed(3)
    distiller = make()
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), crossentropy(), **options)
    distiller.fit(*data, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return distiller.student.get_weights()


@pytest.mark.parametrize(
    "options", [{"steps_per_execution": 3}, {"jit_compile": True}, {"run_eagerly": True}], ids=lambda o: next(iter(o))
)
def test_execution_modes_give_the_same_weights(data, options):
    for ours, plain in zip(weights_after_fit(data, **options), weights_after_fit(data), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_gradient_accumulation_equals_a_larger_batch(data):
    x, y = data[0][:32], data[1][:32]
    accumulated = weights_after_fit(
        (x, y), optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), epochs=1
    )
    keras.utils.set_random_seed(3)
    distiller = make()
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    distiller.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    for ours, large in zip(accumulated, distiller.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, large, atol=1e-6)


@pytest.mark.parametrize("teacher_policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("student_policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_dtype_policies_of_teacher_and_student_are_their_own(data, teacher_policy, student_policy):
    x, y = data
    keras.config.set_dtype_policy(teacher_policy)
    teacher = dense_model(32, 3)
    keras.config.set_dtype_policy(student_policy)
    student = dense_model(6, 3)
    keras.config.set_dtype_policy("float32")
    distiller = make(teacher=teacher, student=student)
    before = [variable.numpy() for variable in student.variables]
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    expected = soft_values(teacher.predict(x, verbose=0), student.predict(x, verbose=0)).mean()
    logs = distiller.fit(x, y, batch_size=37, epochs=1, verbose=0).history
    assert logs["soft_labels"][0] == pytest.approx(expected, rel=0.05, abs=0.02)
    scaled = student_policy == "mixed_float16"
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    assert any(np.abs(v.numpy() - old).max() > 1e-3 for v, old in zip(student.variables, before, strict=True))
    if student_policy == "float32" and teacher_policy == "float32":
        return
    assert all(variable.dtype == "float32" for variable in student.trainable_variables)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale(data, jit_compile):
    keras.config.set_dtype_policy("mixed_float16")
    distiller = make(student=dense_model(6, 3), teacher=dense_model(32, 3, dtype="float32"))
    weights = distiller.student.get_weights()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.1), initial_scale=2.0**40)
    distiller.compile(optimizer, crossentropy(), jit_compile=jit_compile)
    distiller.fit(*data, batch_size=37, verbose=0)
    for before, after in zip(weights, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert float(distiller.optimizer.dynamic_scale) == 2.0**39
    distiller.fit(*data, batch_size=37, epochs=40, verbose=0)
    assert np.abs(distiller.student.get_weights()[0] - weights[0]).max() > 1e-3


def test_predict_casts_as_the_student_does():
    """Ids given as floats, as arrays from a file often are: 4,001 is no float16."""
    keras.config.set_dtype_policy("mixed_float16")

    def model(width):
        layers = [keras.layers.Embedding(5000, width), keras.layers.Flatten(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((3,)), *layers])

    ids = np.random.default_rng(0).integers(4000, 5000, (9, 3)).astype("float32")
    distiller = make(teacher=model(8), student=model(4))
    np.testing.assert_array_equal(distiller.predict(ids, verbose=0), distiller.student.predict(ids, verbose=0))
    np.testing.assert_array_equal(distiller(ids), distiller.student(ids))


def test_float64(data):
    x, y = data
    keras.config.set_dtype_policy("float64")
    distiller = make(teacher=dense_model(32, 3), student=dense_model(6, 3, kernel_regularizer="l2"))
    soft = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0)).mean()
    logs = fitted_logs(distiller, x, y, compile={"metrics": ["accuracy"]})
    assert distiller.student.weights[0].dtype == "float64"
    assert logs["soft_labels"] == pytest.approx(soft, rel=1e-5)


@pytest.mark.parametrize("between", ["nothing", "evaluate"])
def test_labels_may_come_after_unlabelled_data(data, between):
    """Loss and metrics are built by the first labels, whichever step meets them."""
    x, y = data
    distiller = make()
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    assert "accuracy" not in distiller.fit(x, epochs=2, verbose=0).history
    assert set(distiller.evaluate(x, verbose=0, return_dict=True)) == {"loss"}
    if between == "evaluate":
        assert set(distiller.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}
    assert {"accuracy", "hard_loss"} <= set(distiller.fit(x, y, verbose=0).history)
    assert "hard_loss" not in distiller.fit(x, verbose=0).history


def test_unlabelled_data_is_validated_with_labels(data):
    x, y = data
    distiller = make()
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    logs = distiller.fit(x, validation_data=(x, y), epochs=2, verbose=0).history
    assert set(logs) == {"loss", "soft_labels", "soft_weight", "val_loss", "val_accuracy"}


def test_unlabelled_data_without_a_loss_or_without_labels(data):
    x = data[0]
    for compiled, arguments in (({"loss": None}, (x,)), ({"loss": crossentropy(), "metrics": ["accuracy"]}, (x,))):
        distiller = make()
        expected = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0)).mean()
        logs = fitted_logs(distiller, *arguments, compile=compiled)
        assert logs["loss"] == pytest.approx(0.5 * expected, rel=1e-5)
        assert "hard_loss" not in logs
    distiller.compile("sgd", None)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    assert "soft_labels" in distiller.fit(dataset, verbose=0).history
    assert distiller.evaluate(x, verbose=0, return_dict=True) == {"loss": 0.0}


def test_partly_labelled_data(data):
    x, y = data
    partly = np.where(np.arange(len(y)) < 10, y, -1)
    distiller = make()
    hard = hard_values(y[:10], distiller.predict(x[:10], verbose=0)).mean()
    soft = soft_values(distiller.teacher.predict(x, verbose=0), distiller.predict(x, verbose=0)).mean()
    logs = fitted_logs(distiller, x, partly, batch_size=37, compile={"loss": crossentropy(ignore_class=-1)})
    assert logs["hard_loss"] == pytest.approx(hard, rel=1e-5)
    assert logs["soft_labels"] == pytest.approx(soft, rel=1e-5)


def noisy_model(width):
    """BatchNorm and Dropout, in which training and inference differ."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(width, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )


def test_batchnorm_and_dropout_learn_in_the_student_and_rest_in_the_teacher(data):
    x, y = data
    teacher, student = noisy_model(32), noisy_model(6)
    teacher.layers[0].trainable = False
    flags = [layer.trainable for layer in teacher.layers]
    weights, student_mean = teacher.get_weights(), student.layers[1].moving_mean.numpy()
    distiller = make(teacher=teacher, student=student)
    distiller.compile("adam", crossentropy())
    logs = distiller.fit(x, y, epochs=2, verbose=0, validation_data=(x, y)).history
    assert np.isfinite(logs["loss"]).all()
    assert [layer.trainable for layer in teacher.layers] == flags
    for before, after in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert np.abs(student.layers[1].moving_mean.numpy() - student_mean).max() > 0


def test_the_teacher_is_as_it_was_when_fit_raises(data):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("stopped by hand")

    x, y = data
    distiller = make(teacher=noisy_model(16))
    weights, flags = distiller.teacher.get_weights(), [layer.trainable for layer in distiller.teacher.layers]
    distiller.compile("adam", crossentropy())
    with pytest.raises(RuntimeError, match="stopped by hand"):
        distiller.fit(x, y, verbose=0, callbacks=[Stop()])
    for before, after in zip(weights, distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert [layer.trainable for layer in distiller.teacher.layers] == flags


# Models that end in softmax ----------------------------------------------------------------------------------------


def softmax_ended(ending, width):
    """The same logits, ended in softmax in each of the ways that Keras offers."""
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(width, "relu")(inputs)
    if ending == "dense":
        outputs = keras.layers.Dense(3, "softmax")(hidden)
    else:
        logits = keras.layers.Dense(3)(hidden)
        outputs = {
            "activation": lambda: keras.layers.Activation("softmax")(logits),
            "layer": lambda: keras.layers.Softmax()(logits),
            "operation": lambda: keras.ops.softmax(logits),
            "then dropout": lambda: keras.layers.Dropout(0.0)(keras.layers.Softmax()(logits)),
            "then linear": lambda: keras.layers.Activation("linear", dtype="float32")(keras.layers.Softmax()(logits)),
            "nested": lambda: keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])(logits),
            "of tensorflow": lambda: keras.layers.Activation(tf.nn.softmax)(logits),
            "as activation": lambda: keras.layers.Activation(keras.layers.Softmax())(logits),
            "axis by number": lambda: keras.layers.Softmax(axis=1)(logits),
            "average": lambda: keras.layers.Average()([keras.layers.Softmax()(logits)] * 2),
            "logits": lambda: logits,
        }[ending]()
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    "ending",
    [
        "dense", "activation", "layer", "operation", "then dropout", "then linear", "nested", "of tensorflow",
        "as activation", "axis by number", "average",
    ],
)  # fmt: skip
def test_a_model_that_ends_in_softmax_teaches_and_learns_as_its_logits_do(data, ending):
    x, y = data
    logs = {}
    for kind in ("logits", ending):
        keras.utils.set_random_seed(5)
        teacher, student = softmax_ended(kind, 32), softmax_ended(kind, 6)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=kind == "logits")
        compiled = {"loss": loss, "run_eagerly": True}
        logs[kind] = fitted_logs(make(teacher=teacher, student=student), x, y, compile=compiled)
    assert keras_kd.outputs.ends_in_softmax(teacher) == [True]
    assert logs[ending] == pytest.approx(logs["logits"], rel=1e-4)


@pytest.mark.parametrize(
    ("last", "activation"),
    [
        (keras.layers.TimeDistributed(keras.layers.Dense(3, activation="softmax")), "softmax"),
        (keras.layers.TimeDistributed(keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])), "softmax"),
        (keras.layers.Conv1DTranspose(3, 1, activation="softmax"), "softmax"),
        (keras.layers.Softmax(axis=1), "softmax over axis 1"),
        (keras.layers.Dense(3, "sigmoid"), "sigmoid"),
        (keras.layers.Lambda(keras.ops.softmax), "unknown"),
        (keras.layers.LSTM(3, activation="softmax"), "unknown"),
    ],
)
def test_last_activations(last, activation):
    assert keras_kd.outputs.output_activations(keras.Sequential([keras.Input((4, 2)), last])) == [activation]


def test_a_functional_model_with_a_call_of_its_own_counts_as_subclassed(data):
    class LogProbabilities(keras.Model):
        def __init__(self):
            inputs = keras.Input((8,))
            super().__init__(inputs, keras.layers.Dense(3, "softmax")(inputs))

        def call(self, inputs, training=None, mask=None):
            return keras.ops.log(super().call(inputs))

    x, y = data
    teacher = LogProbabilities()
    distiller = make(teacher=teacher)
    expected = soft_values(np.asarray(teacher(x)), distiller.predict(x, verbose=0)).mean()
    assert fitted_logs(distiller, x, y)["soft_labels"] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_ending_counts_as_logits():
    assert keras_kd.outputs.ends_in_softmax(softmax_ended("logits", 4)) == [False]
    assert keras_kd.outputs.ends_in_softmax(CountingModel(3)) == []


def test_taking_logits_for_probabilities_or_the_reverse_is_warned_of():
    distiller = make()
    with pytest.warns(UserWarning, match=r"student ends in linear, so it gives logits.*from_logits=True") as warned:
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    assert warned[0].filename == __file__
    distiller = make(student=dense_model(6, 3, last="softmax"))
    with pytest.warns(UserWarning, match=r"student ends in softmax, so it gives probabilities.*from_logits=False"):
        distiller.compile("sgd", crossentropy())
    distiller = make(teacher=two_headed(4, dict), student=two_headed(4, dict))
    with pytest.warns(UserWarning, match=r"student ends in linear, so it gives logits \(output 'tone'\)") as warned:
        distiller.compile("sgd", {"topic": crossentropy(), "tone": "sparse_categorical_crossentropy"})
    assert len(warned) == 1


# Kinds of data ----------------------------------------------------------------------------------------------------


def test_generators_and_train_on_batch(data):
    x, y = data
    distiller = make()
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])

    def batches():
        while True:
            yield x, y

    logs = distiller.fit(batches(), steps_per_epoch=3, epochs=2, verbose=0).history
    assert len(logs["loss"]) == 2
    by_batch = distiller.train_on_batch(x, y, return_dict=True)
    assert by_batch["loss"] < logs["loss"][0]
    assert distiller.test_on_batch(x, y, return_dict=True)["loss"] > 0


def test_python_datasets_and_repeated_datasets(data):
    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return data[0][8 * index : 8 * index + 8], data[1][8 * index : 8 * index + 8]

    repeated = tf.data.Dataset.from_tensor_slices((data[0][:32], data[1][:32])).batch(8).repeat()
    logs = []
    for arguments in ({"x": Rows(), "shuffle": False}, {"x": repeated, "steps_per_epoch": 4}):
        keras.utils.set_random_seed(3)
        distiller = make()
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
        logs.append(distiller.fit(**arguments, epochs=2, verbose=0).history)
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"])


def test_ragged_and_string_inputs():
    """What plain `fit` takes, fit takes."""

    class Mean(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.embedding, self.dense = keras.layers.Embedding(10, width, "normal"), keras.layers.Dense(3)

        def call(self, ids):
            return self.dense(tf.reduce_mean(self.embedding(ids.to_tensor()), axis=1))

    def of_strings(width):
        lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"])
        layers = [lookup, keras.layers.Embedding(5, width, "normal"), keras.layers.Flatten(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((1,), dtype="string"), *layers])

    ragged = tf.ragged.constant([[1, 2], [3], [4, 5, 6]])
    strings = tf.constant([["a"], ["b"], ["z"]])
    for x, model in ((ragged, Mean), (strings, of_strings)):
        teacher, student = model(8), model(4)
        teacher(x), student(x)
        dataset = tf.data.Dataset.from_tensor_slices((x, [0, 1, 2])).batch(3)
        expected = soft_values(np.asarray(teacher(x)), np.asarray(student(x))).mean()
        logs = fitted_logs(make(teacher=teacher, student=student), dataset)
        assert logs["soft_labels"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("gpu", [False, True])
def test_automatic_xla_minds_the_teacher(data, gpu, monkeypatch):
    """Keras turns XLA on where there is a GPU and every layer can be compiled; the teacher is none of its layers."""

    class OnTheHost(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_jit = False

        def call(self, inputs):
            return tf.ensure_shape(tf.numpy_function(lambda x: x, [inputs], tf.float32), inputs.shape)

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, keras.layers.Dense(3)(OnTheHost()(inputs)))
    distiller = make(teacher=teacher)
    with monkeypatch.context() as patch:
        if gpu:
            device = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
            patch.setattr(tf.config, "list_physical_devices", lambda kind=None: [device])
        distiller.compile("sgd", crossentropy())
    assert distiller.jit_compile is gpu
    expected = pytest.warns(UserWarning, match="jit_compile is turned off") if gpu else contextlib.nullcontext()
    with expected:
        assert np.isfinite(distiller.fit(*data, verbose=0).history["loss"][0])


def test_inside_another_model(data):
    """As a layer it is the student: the same outputs, and its weights learn."""
    x, _ = data
    distiller = make()
    inputs = keras.Input((8,))
    model = keras.Model(inputs, distiller(inputs))
    np.testing.assert_array_equal(model.predict(x, verbose=0), distiller.student.predict(x, verbose=0))
    kernel = distiller.student.layers[0].kernel.numpy()
    model.compile("sgd", "mse")
    model.fit(x, x[:, :3], verbose=0)
    assert np.abs(distiller.student.layers[0].kernel.numpy() - kernel).max() > 0
    lines = []
    distiller.summary(print_fn=lines.append)
    assert f"Trainable params: {distiller.student.count_params()}" in "".join(lines)


def test_metrics_of_the_students_layers_are_in_the_logs(data):
    class Watching(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.mean = keras.metrics.Mean(name="watched")

        def call(self, inputs):
            self.mean.update_state(inputs)
            return inputs

    x, y = data
    distiller = make(student=keras.Sequential([keras.Input((8,)), Watching(), keras.layers.Dense(3)]))
    assert fitted_logs(distiller, x, y, batch_size=37)["watched"] == pytest.approx(x.mean(), rel=1e-4)


def test_a_subclassed_student_is_built_for_the_teachers_input(data):
    x, y = data
    distiller = make(student=CountingModel(3))
    assert distiller.student.built
    assert np.isfinite(fitted_logs(distiller, x, y)["soft_labels"])
