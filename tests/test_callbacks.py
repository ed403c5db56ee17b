"""LambdaRamp: the values by hand, on every hyperparameter, without retracing, in the logs."""

import csv
import gc
import math
import os

import keras
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd


def make(*distillation_losses):
    distiller = keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3), list(distillation_losses) or None)
    distiller.compile("sgd", crossentropy())
    return distiller


def values(ramp, count=7):
    return [ramp.value(time) for time in range(count)]


def test_linear_holds_then_ramps_then_stays():
    ramp = keras_kd.LambdaRamp(0.1, 0.5, hold_epochs=2, ramp_epochs=2)
    assert values(ramp) == pytest.approx([0.1, 0.1, 0.1, 0.3, 0.5, 0.5, 0.5])


def test_linear_ramps_down():
    assert values(keras_kd.LambdaRamp(1.0, 0.0, ramp_epochs=4), 5) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_cosine_starts_and_ends_gently():
    """start + (end − start) (1 − cos πp) / 2 at p = 0, ¼, ½, ¾, 1."""
    half_root = math.sqrt(0.5)
    expected = [0.0, (1 - half_root), 1.0, (1 + half_root), 2.0]
    assert values(keras_kd.LambdaRamp(0.0, 2.0, ramp_epochs=4, schedule="cosine"), 5) == pytest.approx(expected)


def test_a_callable_gives_the_share_of_the_way():
    ramp = keras_kd.LambdaRamp(1.0, 3.0, ramp_epochs=4, schedule=lambda progress: progress**2)
    assert values(ramp, 5) == pytest.approx([1.0, 1.125, 1.5, 2.125, 3.0])


def test_a_learning_rate_schedule_gives_the_value_itself():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=1, decay_rate=0.5)
    ramp = keras_kd.LambdaRamp(1.0, 0.0, hold_epochs=1, ramp_epochs=3, schedule=schedule)
    assert values(ramp, 6) == pytest.approx([1.0, 1.0, 0.25, 0.125, 0.0, 0.0])


def traced(distiller):
    """Count the traces of the distiller's first loss."""
    traces, call = [], distiller.distillation_losses[0].call

    def counting(teacher, student):
        traces.append(1)
        return call(teacher, student)

    distiller.distillation_losses[0].call = counting
    return traces


def test_lambda_by_epoch_is_in_the_logs_and_nothing_is_traced_anew(data, tmp_path):
    distiller = make()
    traces = traced(distiller)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    ramp = keras_kd.LambdaRamp(0.0, 1.0, hold_epochs=1, ramp_epochs=2)
    logs = distiller.fit(*data, batch_size=37, epochs=5, verbose=0, callbacks=[logger, ramp]).history
    assert logs["soft_weight"] == [0.0, 0.0, 0.5, 1.0, 1.0]
    parts = (logs[name] for name in ("loss", "hard_loss", "soft_labels", "soft_weight"))
    for loss, hard, soft, soft_weight in zip(*parts, strict=True):
        assert loss == pytest.approx(hard + soft_weight * soft, rel=1e-5)
    assert len(traces) == 1
    with open(tmp_path / "log.csv") as file:
        assert [float(row["soft_weight"]) for row in csv.DictReader(file)] == logs["soft_weight"]


def test_lambda_by_step_goes_on_across_epochs(data):
    seen = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(self.model.soft_weight))

    distiller = make()
    ramp = keras_kd.LambdaRamp(0.0, 1.0, hold_steps=2, ramp_steps=4)
    distiller.fit(*data, batch_size=13, epochs=3, verbose=0, callbacks=[ramp, Record()])  # 3 steps an epoch
    assert seen == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_lambda_by_step_is_set_once_an_execution(data):
    seen = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(self.model.soft_weight))

    distiller = make()
    distiller.compile("sgd", crossentropy(), steps_per_execution=2)
    ramp = keras_kd.LambdaRamp(0.0, 1.0, ramp_steps=4)
    distiller.fit(data[0][:32], data[1][:32], batch_size=8, epochs=2, verbose=0, callbacks=[ramp, Record()])
    assert seen == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("hyperparameter", ["weight", "temperature"])
def test_one_losses_weight_or_temperature_is_ramped(data, hyperparameter):
    soft, hint = (
        keras_kd.losses.SoftLabels(2.0, name="answers"),
        keras_kd.losses.Hint("hidden_0", "hidden_0", weight=0.5),
    )
    distiller = make(hint, soft)
    ramp = keras_kd.LambdaRamp(1.0, 3.0, ramp_epochs=2, **{f"{hyperparameter}_of": "answers"})
    logs = distiller.fit(*data, epochs=3, verbose=0, callbacks=[ramp]).history
    assert logs[f"answers_{hyperparameter}"] == [1.0, 2.0, 3.0]
    assert logs["soft_weight"] == [1.0, 1.0, 1.0]
    assert float(distiller.soft_weight) == 1.0
    assert float(hint.weight) == 0.5


def test_callbacks_of_keras_work_as_in_plain_fit(data, tmp_path):
    """Learning rate 0: the first epoch stays the best one, so that each of them has to act."""
    distiller = make()
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy(), metrics=["accuracy"])
    distiller.evaluate(*data, verbose=0)
    whole, weights = tmp_path / "best.keras", tmp_path / "best.weights.h5"
    callbacks = [
        keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=4),
        keras.callbacks.ModelCheckpoint(whole, save_best_only=True),
        keras.callbacks.ModelCheckpoint(weights, save_best_only=True, save_weights_only=True),
        keras.callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=1),
        keras.callbacks.TerminateOnNaN(),
    ]
    logs = distiller.fit(*data, validation_data=data, epochs=9, verbose=0, callbacks=callbacks).history
    assert logs["soft_weight"] == [0.0, 0.25, 0.5, 0.75]
    assert logs["loss"] == sorted(logs["loss"])
    assert "learning_rate" in logs
    assert float(distiller.soft_weight) == 0.75  # no weight of the model: restore_best_weights leaves it alone
    loaded = keras_kd.load_distiller(whole, distiller.teacher)
    assert float(loaded.soft_weight) == 0.0
    distiller.soft_weight.assign(5.0)
    distiller.load_weights(weights)
    assert float(distiller.soft_weight) == 0.0


def test_a_loss_that_is_nan_terminates(data):
    distiller = make()
    distiller.compile(keras.optimizers.SGD(float("inf")), crossentropy())
    distiller.fit(*data, batch_size=8, epochs=3, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert int(distiller.optimizer.iterations) == 2


def test_tensorboard_records_lambda(data, tmp_path):
    distiller = make()
    callbacks = [keras.callbacks.TensorBoard(tmp_path), keras_kd.LambdaRamp(0.25, 1.0, ramp_epochs=2)]
    distiller.fit(*data, epochs=2, verbose=0, callbacks=callbacks)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"epoch_soft_weight" in written


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": -0.1}, ValueError, "start must be >= 0, got -0.1"),
        ({"end": float("nan")}, ValueError, "end must be >= 0, got nan"),
        ({"end": "1"}, TypeError, "end must be >= 0 .a number., got '1'"),
        ({"ramp_epochs": 0}, ValueError, "ramp_epochs must be > 0, got 0"),
        ({"hold_epochs": -1}, ValueError, "hold_epochs must be >= 0, got -1"),
        ({"ramp_steps": 5}, ValueError, "either ramp_epochs or ramp_steps"),
        ({"ramp_epochs": None}, ValueError, "either ramp_epochs or ramp_steps"),
        ({"hold_steps": 3}, ValueError, "hold_steps does not go with ramp_epochs: use hold_epochs"),
        ({"schedule": "square"}, ValueError, r"schedule must be one of \['linear', 'cosine'\], got 'square'"),
        ({"weight_of": "a", "temperature_of": "b"}, ValueError, "weight_of or temperature_of, not both"),
        ({"start": 0.0, "temperature_of": "soft_labels"}, ValueError, "start must be > 0, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_kd.LambdaRamp(**{"start": 0.0, "end": 1.0, "ramp_epochs": 2, **arguments})


@pytest.mark.parametrize("arguments", [{"weight_of": "nobody"}, {"temperature_of": "hint"}])
def test_an_unknown_hyperparameter_is_refused_and_the_known_ones_listed(data, arguments):
    distiller = make(keras_kd.losses.SoftLabels(), keras_kd.losses.Hint("logits", "logits"))
    ramp = keras_kd.LambdaRamp(1.0, 2.0, ramp_epochs=2, **arguments)
    with pytest.raises(ValueError, match=r"no hyperparameter.*'hint_weight'.*'soft_labels_temperature'"):
        distiller.fit(*data, verbose=0, callbacks=[ramp])


def test_a_schedule_that_leaves_the_range_is_refused(data):
    ramp = keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=2, schedule=lambda progress: -1.0)
    with pytest.raises(ValueError, match=r"weight given by schedule at 1 must be >= 0, got -1"):
        make().fit(*data, epochs=3, verbose=0, callbacks=[ramp])


def test_another_model_is_refused(data):
    model = dense_model(4, 3)
    model.compile("sgd", crossentropy())
    with pytest.raises(TypeError, match=r"LambdaRamp works with a keras_kd.Distiller, got Sequential"):
        model.fit(*data, verbose=0, callbacks=[keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=2)])


def test_no_python_number_is_assigned_while_training(data, monkeypatch):
    """TensorFlow keeps a copy of each Python number that it has turned into a tensor, for ever."""
    x, y = data
    teacher = dense_model(16, 3)
    distillation_losses = [keras_kd.losses.SoftLabels(3.0), keras_kd.losses.Hint("logits", "logits")]
    distiller = keras_kd.Distiller(
        teacher, dense_model(6, 3), distillation_losses, balance=keras_kd.UncertaintyBalance()
    )
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    ramps = [
        keras_kd.LambdaRamp(0.0, 1.0, ramp_steps=90),
        keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=2),
        keras_kd.LambdaRamp(0.0, 1.0, ramp_steps=90, weight_of="hint"),
        keras_kd.LambdaRamp(4.0, 1.0, ramp_steps=90, temperature_of="soft_labels"),
    ]
    assigned = []
    original = keras.Variable.assign

    def recording(variable, value):
        assigned.append((variable.path, type(value)))
        return original(variable, value)

    monkeypatch.setattr(keras.Variable, "assign", recording)
    distiller.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=ramps)
    hyperparameters = {
        distiller.soft_weight.path,
        *(v.path for o in distillation_losses for v in o.hyperparameters().values()),
    }
    assert len([path for path, _ in assigned if path in hyperparameters]) > 15 * 3
    assert [path for path, kind in assigned if issubclass(kind, (int, float)) and path in hyperparameters] == []


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the size of the process from /proc")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # which pytest would keep, one for each step
def test_a_ramp_by_step_does_not_grow(data):
    """680 bytes for each of 6,000 steps would be 4 MB."""
    distiller = keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3))
    distiller.compile("sgd", crossentropy())
    ramp = keras_kd.LambdaRamp(0.0, 1.0, ramp_steps=30_000)
    ramp.set_model(distiller)
    ramp.on_train_begin()

    def resident():
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def steps(count):
        for _ in range(count):
            distiller.optimizer.iterations.assign_add(one)
            ramp.on_train_batch_begin(0)

    one = tf.constant(1, distiller.optimizer.iterations.dtype)
    steps(2_000)
    before = resident()
    steps(6_000)
    assert float(distiller.soft_weight.numpy()) == pytest.approx(7_999 / 30_000, abs=1e-4)
    assert resident() - before < 3e6
