"""Checkpoints and saved files: no teacher in them, and training goes on exactly where it stopped."""

import copy
import os
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd


def make(teacher, **compile_options):
    student = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, "relu", name="hidden"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=5),
            keras.layers.Dense(3),
        ]
    )
    distillation_losses = [keras_kd.losses.SoftLabels(3.0), keras_kd.losses.Hint("hidden_0", "hidden", weight=0.1)]
    distiller = keras_kd.Distiller(teacher, student, distillation_losses, soft_weight=0.5)
    distiller.compile("adam", crossentropy(), metrics=["accuracy"], **compile_options)
    return distiller


def ramps():
    return [
        keras_kd.LambdaRamp(0.1, 1.0, hold_epochs=1, ramp_epochs=4),
        keras_kd.LambdaRamp(4.0, 1.0, ramp_steps=20, temperature_of="soft_labels"),
    ]


def weights_by_layer(distiller):
    return [variable.numpy() for variable in distiller.student.variables]


def assert_equal_weights(ours, others):
    for one, other in zip(weights_by_layer(ours), weights_by_layer(others), strict=True):
        np.testing.assert_array_equal(one, other)


def fit(distiller, data, epochs, initial_epoch=0, callbacks=()):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [*ramps(), *callbacks]}
    return distiller.fit(*data, epochs=epochs, initial_epoch=initial_epoch, **options).history


def test_a_loaded_distiller_goes_on_exactly_where_it_stopped(data, tmp_path):
    teacher = dense_model(64, 3)
    distiller = make(teacher)
    fit(distiller, data, epochs=3)
    distiller.save(tmp_path / "distiller.keras")
    expected = fit(distiller, data, epochs=6, initial_epoch=3)

    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher)
    assert float(loaded.soft_weight) == pytest.approx(0.1 + 0.9 * 0.25)
    assert float(loaded.distillation_losses[0].temperature) == pytest.approx(4.0 - 3.0 * 14 / 20)
    assert int(loaded.optimizer.iterations) == 15
    assert fit(loaded, data, epochs=6, initial_epoch=3) == expected
    assert_equal_weights(loaded, distiller)


def test_mixed_float16_goes_on_where_it_stopped(data, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    teacher = dense_model(64, 3)
    distiller = make(teacher)
    fit(distiller, data, epochs=2)
    distiller.save(tmp_path / "distiller.keras")
    expected = fit(distiller, data, epochs=4, initial_epoch=2)
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher)
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    assert fit(loaded, data, epochs=4, initial_epoch=2) == expected
    assert_equal_weights(loaded, distiller)


def test_no_file_holds_the_teacher(data, tmp_path):
    """A 512 x 512 teacher beside a 6-unit student: its size would show, and so would its name."""
    teacher = dense_model(512, 512, 3, name="giant")
    distiller = make(teacher)
    fit(distiller, data, epochs=1)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    tf.train.Checkpoint(distiller=distiller).write(str(tmp_path / "checkpoint"))
    teacher_bytes = 4 * teacher.count_params()
    for path in tmp_path.iterdir():
        assert path.stat().st_size < teacher_bytes / 5, path.name
    with zipfile.ZipFile(tmp_path / "distiller.keras") as archive:
        assert b"giant" not in archive.read("config.json")
    assert not {id(v) for v in teacher.variables} & {id(v) for v in distiller.variables}


def test_weights_alone_bring_back_student_projection_and_hyperparameters(data, tmp_path):
    teacher = dense_model(64, 3)
    trained, fresh = make(teacher), make(teacher)
    fit(trained, data, epochs=3)
    trained.save_weights(tmp_path / "distiller.weights.h5")
    fresh.load_weights(tmp_path / "distiller.weights.h5")
    assert [float(hyperparameter) for hyperparameter in fresh.hyperparameters.values()] == [
        float(hyperparameter) for hyperparameter in trained.hyperparameters.values()
    ]
    assert float(fresh.soft_weight) == pytest.approx(0.1 + 0.9 / 4)
    for one, other in zip(trained.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


class Margin(keras_kd.losses.DistillationLoss):
    """A loss of a user's own, not registered with Keras."""

    def __init__(self, power, **options):
        super().__init__(**options)
        self.power = power

    def call(self, teacher, student):
        return keras.ops.mean(keras.ops.abs(teacher - student) ** self.power, axis=-1)

    def get_config(self):
        return {**super().get_config(), "power": self.power}


class Doubling(keras.layers.Layer):
    """A layer of a user's own, likewise."""

    def call(self, inputs):
        return 2.0 * inputs


def test_classes_of_ones_own_come_back_through_custom_objects(data, tmp_path):
    """With the compiled state, and without it for a compilation of one's own; frozen layers stay frozen."""
    teacher = dense_model(16, 3)
    frozen = keras.layers.Dense(5, trainable=False, name="frozen")
    student = keras.Sequential([keras.Input((8,)), frozen, Doubling(), keras.layers.Dense(3)])
    distiller = keras_kd.Distiller(teacher, student, Margin(3.0))
    distiller.compile("adam", crossentropy())
    distiller.fit(*data, shuffle=False, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    own = {"Margin": Margin, "Doubling": Doubling}
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher, custom_objects=own)
    assert loaded.distillation_losses[0].power == 3.0
    assert not loaded.student.get_layer("frozen").trainable
    expected = distiller.fit(*data, shuffle=False, verbose=0).history
    assert loaded.fit(*data, shuffle=False, verbose=0).history == expected
    uncompiled = keras.saving.load_model(tmp_path / "distiller.keras", custom_objects=own, compile=False)
    uncompiled.teacher = teacher
    with pytest.raises(ValueError, match=r"call `compile\(\)` before"):
        uncompiled.fit(*data, verbose=0)
    uncompiled.compile("sgd", crossentropy())
    assert np.isfinite(uncompiled.fit(*data, verbose=0).history["margin"][0])


@pytest.mark.parametrize("fitted", [False, True])
def test_an_exported_distiller_is_the_student(data, tmp_path, fitted):
    distiller = make(dense_model(64, 3))
    if fitted:
        fit(distiller, data, epochs=1)
    distiller.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(data[0]), distiller.student.predict(data[0], verbose=0), atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, keras.models.clone_model], ids=["deepcopy", "clone_model"])
def test_copies_leave_the_teacher_behind(data, copied):
    distiller = make(dense_model(64, 3))
    fit(distiller, data, epochs=1)
    other = copied(distiller)
    assert type(other) is keras_kd.Distiller and other.teacher is None
    other.teacher = distiller.teacher
    other.compile("sgd", crossentropy())
    assert np.isfinite(other.fit(*data, verbose=0).history["hint"][0])


def test_a_loaded_distiller_without_its_teacher_says_so(data, tmp_path):
    distiller = make(dense_model(64, 3))
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher is None
    np.testing.assert_array_equal(loaded.predict(data[0], verbose=0), distiller.predict(data[0], verbose=0))
    with pytest.raises(ValueError, match=r"no teacher.*distiller.teacher = teacher"):
        loaded.fit(*data, verbose=0)
    loaded.teacher = dense_model(64, 3)
    assert np.isfinite(loaded.fit(*data, verbose=0).history["soft_labels"][0])


def test_another_kind_of_model_is_refused(tmp_path):
    dense_model(4, 3).save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match=r"must hold a saved Distiller, but .* holds a Sequential"):
        keras_kd.load_distiller(tmp_path / "model.keras", dense_model(4, 3))


def test_a_teacher_that_does_not_fit_is_refused_on_loading(tmp_path):
    make(dense_model(64, 3)).save(tmp_path / "distiller.keras")
    with pytest.raises(ValueError, match="same number of classes"):
        keras_kd.load_distiller(tmp_path / "distiller.keras", dense_model(64, 4))
    with pytest.raises(ValueError, match=r"\(None, 32\).*\(None, 64\)"):
        keras_kd.load_distiller(tmp_path / "distiller.keras", dense_model(32, 3))


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    """Ends a run in the middle of an epoch, as a lost machine would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.when = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            raise Killed


class Record(keras.callbacks.Callback):
    """λ and T of every batch, by training step."""

    def __init__(self, record):
        super().__init__()
        self.record = record

    def on_train_batch_begin(self, batch, logs=None):
        model = self.model
        step = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        self.record[step] = (float(model.soft_weight), float(model.distillation_losses[0].temperature))


def test_a_run_killed_in_mid_ramp_and_resumed_is_the_uninterrupted_run(data, tmp_path):
    """By epoch and by step at once; `BackupAndRestore` as Keras ships it, in a distiller made anew."""
    teacher = dense_model(64, 3)
    keras.utils.set_random_seed(9)
    whole, whole_record = make(teacher), {}
    start = whole.student.get_weights()
    fit(whole, data, epochs=6, callbacks=[Record(whole_record)])

    resumed_record = {}
    for stop in [KillAt(3, 2), None]:
        keras.utils.set_random_seed(9)
        distiller = make(teacher)
        distiller.student.set_weights(start)
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), Record(resumed_record)]
        try:
            fit(distiller, data, epochs=6, callbacks=callbacks + ([stop] if stop else []))
        except Killed:
            assert os.path.getsize(tmp_path / "backup" / "latest.weights.h5") < 200_000
    assert resumed_record == whole_record
    assert len({soft_weight for soft_weight, _ in whole_record.values()}) == 5
    assert_equal_weights(distiller, whole)


def test_an_unregistered_loss_of_ones_own_is_named_with_the_way_out(data, tmp_path):
    class Unregistered(keras_kd.losses.DistillationLoss):
        undoes = "softmax"

        def call(self, teacher, student):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)

    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3), Unregistered(name="mine"))
    distiller.compile("sgd", crossentropy())
    distiller.fit(*data, verbose=0)
    distiller.save(tmp_path / "d.keras")
    with pytest.raises(TypeError, match=r"^the loss 'mine' is a Unregistered, a class that Keras does not know"):
        keras_kd.load_distiller(tmp_path / "d.keras")
    custom_objects = {"Unregistered": Unregistered}
    loaded = keras_kd.load_distiller(tmp_path / "d.keras", distiller.teacher, custom_objects=custom_objects)
    assert loaded.distillation_losses[0].name == "mine"
