"""MeanTeacher against the recursion in float64 NumPy, wherever a step is taken."""

import contextlib

import keras
import numpy as np
import pytest
from conftest import crossentropy, dense_model, strategy_of

import keras_kd
from keras_kd._keras_private import backend_variable

DECAY = 0.8


def normalized_model(policy=None):
    """A classifier with everything that a teacher may have: kernels, moving statistics, Dropout's random state."""
    layers = [
        keras.layers.Dense(6, "relu", dtype=policy),
        keras.layers.BatchNormalization(dtype=policy),
        keras.layers.Dropout(0.2, dtype=policy),
        keras.layers.Dense(3, dtype=policy),
    ]
    return keras.Sequential([keras.Input((8,)), *layers])


class Record(keras.callbacks.Callback):
    """The student's weights and the optimizer's step after each execution."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self.seen.append((step, self.model.student.get_weights()))


def average_by_hand(initial, seen, warmup_steps=10**9):
    """teacher ← d · teacher + (1 − d) · student, d = min(DECAY, 1 − 1 / (n + 1)), once for each recorded student."""
    average, done = [weight.astype("float64") for weight in initial], 0
    for step, student in seen:
        kept = 1.0
        for n in range(done + 1, step + 1):
            kept *= min(DECAY, 1 - 1 / (n + 1)) if n <= warmup_steps else DECAY
        average = [kept * old + (1 - kept) * new for old, new in zip(average, student, strict=True)]
        done = step
    return average


def assert_equal(weights, expected, atol=1e-6):
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=atol)


def train(data, *, optimizer=None, scope=None, teacher_in_scope=False, make=normalized_model, warmup=None, **compiled):
    """Train 8 steps over 2 epochs; return the teacher, its initial weights, and what `Record` saw."""
    teacher = None if teacher_in_scope else make()
    with scope or contextlib.nullcontext():
        teacher, student = teacher or make(), make()
        distiller = keras_kd.Distiller(teacher, student)
        distiller.compile(optimizer() if optimizer else keras.optimizers.SGD(0.2), crossentropy(), **compiled)
    initial, record = teacher.get_weights(), Record()
    callbacks = [record, keras_kd.teachers.MeanTeacher(DECAY, warmup_steps=warmup)]
    distiller.fit(data[0][:32], data[1][:32], batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    return teacher, initial, record.seen


# MeanTeacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_teacher_is_the_average_of_the_student(data, jit_compile):
    teacher, initial, seen = train(data, jit_compile=jit_compile)
    assert [step for step, _ in seen] == list(range(1, 9))
    assert_equal(teacher.get_weights(), average_by_hand(initial, seen))


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_warm_up_ends_after_warmup_steps(data, warmup):
    teacher, initial, seen = train(data, warmup=warmup)
    assert_equal(teacher.get_weights(), average_by_hand(initial, seen, warmup_steps=warmup))


def test_during_the_warm_up_it_is_the_plain_mean_of_all_students_and_the_first_teacher(data):
    """d_n = n / (n + 1) up to n = 4, where it reaches 0.8: the mean of 5 models."""
    teacher = normalized_model()
    student = keras.models.clone_model(teacher)
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile(keras.optimizers.SGD(0.2), crossentropy())
    initial, record = teacher.get_weights(), Record()
    callbacks = [record, keras_kd.teachers.MeanTeacher(DECAY)]
    distiller.fit(data[0][:32], data[1][:32], batch_size=8, verbose=0, callbacks=callbacks)
    models = [initial, *(weights for _, weights in record.seen)]
    assert_equal(teacher.get_weights(), [np.mean(weights, axis=0) for weights in zip(*models, strict=True)])


def test_several_steps_per_execution_decay_as_much(data):
    """Once for 2 steps, with the product of their decays."""
    teacher, initial, seen = train(data, steps_per_execution=2)
    assert [step for step, _ in seen] == [2, 4, 6, 8]
    assert_equal(teacher.get_weights(), average_by_hand(initial, seen))


def test_with_gradient_accumulation_it_moves_when_the_student_does(data):
    teacher, initial, seen = train(data, optimizer=lambda: keras.optimizers.SGD(0.2, gradient_accumulation_steps=4))
    assert [step for step, _ in seen] == [0, 0, 0, 1, 1, 1, 1, 2]
    updates = [
        seen[3],
        seen[7],
    ]  # BatchNormalization's statistics, which move each batch, are read when the weights move
    assert_equal(teacher.get_weights(), average_by_hand(initial, updates))


def test_in_mixed_precision_the_average_is_kept_in_float32(data):
    teacher, initial, seen = train(data, make=lambda: normalized_model("mixed_float16"))
    assert {weight.dtype for weight in teacher.weights} == {"float32"}
    assert_equal(teacher.get_weights(), average_by_hand(initial, seen))


@pytest.mark.parametrize("teacher_in_scope", [False, True])
def test_over_two_replicas_it_is_the_same_average(data, teacher_in_scope):
    teacher, initial, seen = train(data, scope=strategy_of(2).scope(), teacher_in_scope=teacher_in_scope)
    expected = average_by_hand(initial, seen)
    assert_equal(teacher.get_weights(), expected)
    if teacher_in_scope:
        copies = [[copy.numpy() for copy in backend_variable(weight).values] for weight in teacher.trainable_weights]
        trained = [value for value, weight in zip(expected, teacher.weights, strict=True) if weight.trainable]
        for replica in range(2):
            assert_equal([each[replica] for each in copies], trained)


def test_the_student_learns_from_the_current_average(data):
    """The soft loss of the second step is that of the average after the first one."""
    x, y = data[0][:16], data[1][:16]
    teacher, student = dense_model(6, 3), dense_model(6, 3)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(1.0))
    distiller.compile(keras.optimizers.SGD(0.5), crossentropy())
    callbacks = [keras_kd.teachers.MeanTeacher(DECAY)]
    distiller.fit(x, y, batch_size=16, verbose=0, callbacks=callbacks)
    expected = float(keras_kd.losses.SoftLabels(1.0)(teacher(x), student(x)))
    logs = distiller.fit(x, y, batch_size=16, verbose=0, callbacks=callbacks).history
    assert logs["soft_labels"][0] == pytest.approx(expected, rel=1e-4)


def test_training_continues_exactly_where_it_stopped(data, tmp_path):
    def make():
        keras.utils.set_random_seed(3)
        teacher, student = normalized_model(), normalized_model()
        distiller = keras_kd.Distiller(teacher, student)
        distiller.compile(keras.optimizers.Adam(0.01), crossentropy())
        return distiller, teacher

    def fit(distiller, epochs):
        options = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [keras_kd.teachers.MeanTeacher(DECAY)]}
        distiller.fit(*data, epochs=epochs, **options)

    distiller, uninterrupted = make()
    fit(distiller, 3)
    distiller, teacher = make()
    fit(distiller, 1)
    distiller.save(tmp_path / "distiller.keras")
    teacher.save_weights(tmp_path / "teacher.weights.h5")
    teacher = normalized_model()
    teacher.load_weights(tmp_path / "teacher.weights.h5")
    fit(keras_kd.load_distiller(tmp_path / "distiller.keras", teacher), 2)
    assert_equal(teacher.get_weights(), uninterrupted.get_weights())


def test_only_the_weights_of_the_teacher_change(data):
    teacher = normalized_model()
    teacher.layers[0].trainable = False
    distiller = keras_kd.Distiller(teacher, normalized_model())
    distiller.compile("sgd", crossentropy())
    distiller.fit(*data, verbose=0, callbacks=[keras_kd.teachers.MeanTeacher(DECAY)])
    assert [layer.trainable for layer in teacher.layers] == [False, True, True, True]


class Counter(keras.layers.Layer):
    """Counts the batches that it is trained on, in an integer weight."""

    def build(self, input_shape):
        self.count = self.add_weight(shape=(), dtype="int32", trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.count.assign_add(1)
        return inputs


def test_integer_weights_are_copied(data):
    teacher, student = (
        keras.Sequential([keras.Input((8,)), Counter(dtype="float32"), keras.layers.Dense(3)]) for _ in range(2)
    )
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    distiller.fit(*data, batch_size=10, verbose=0, callbacks=[keras_kd.teachers.MeanTeacher(DECAY)])
    assert int(teacher.layers[0].count.numpy()) == int(student.layers[0].count.numpy()) == 4


def test_decays_are_those_of_the_authors_code():
    """`min(1 - 1 / (global_step + 1), alpha)`, global_step counting from 1."""
    mean_teacher = keras_kd.teachers.MeanTeacher(0.99)
    expected = [min(1 - 1 / (step + 1), 0.99) for step in range(1, 200)]
    assert [mean_teacher.decay_at(step) for step in range(1, 200)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, "decay must be < 1, got 1.0: at 1 the teacher never changes"),
        ({"decay": -0.1}, ValueError, r"decay must be >= 0, got -0.1. 0.99 to 0.9999 is usual"),
        ({"decay": "0.9"}, TypeError, "decay must be >= 0 .a number., got '0.9'"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0, got -1"),
        ({"warmup_steps": 1.5}, TypeError, "warmup_steps must be a whole number >= 0, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_kd.teachers.MeanTeacher(**arguments)


def sharing_a_frozen_layer():
    shared = keras.layers.Dense(4, trainable=False)
    return [keras.Sequential([keras.Input((8,)), shared, keras.layers.Dense(3)], name=name) for name in ("one", "two")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: (dense_model(4, 5, 3), dense_model(4, 3)),
            "the teacher has 6 weights, the student 4. MeanTeacher needs",
        ),
        (lambda: (dense_model(5, 3), dense_model(4, 3)), r"teacher weight '.*kernel' is \(8, 5\), student .* \(8, 4\)"),
        (sharing_a_frozen_layer, "the student shares 2 weights with 'one': training one would change the other"),
        (
            lambda: (dense_model(4, 3, dtype="bfloat16"), dense_model(4, 3)),
            "is bfloat16, too coarse for the small steps",
        ),
    ],
)
def test_a_teacher_that_cannot_be_the_average_is_refused(data, make, message):
    teacher, student = make()
    before = teacher.get_weights()
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=message):
        distiller.fit(*data, verbose=0, callbacks=[keras_kd.teachers.MeanTeacher()])
    for now, then in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_another_model_is_refused(data):
    model = dense_model(4, 3)
    model.compile("sgd", crossentropy())
    with pytest.raises(TypeError, match=r"MeanTeacher works with a keras_kd.Distiller, got Sequential"):
        model.fit(*data, verbose=0, callbacks=[keras_kd.teachers.MeanTeacher()])
