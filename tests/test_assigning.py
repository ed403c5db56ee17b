"""What looks assignable is: without a new trace, in effect at the next step; or it raises at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model
from loss_table import LOSSES

import keras_kd
from keras_kd import losses


def make(distillation_losses=None, **options):
    distiller = keras_kd.Distiller(dense_model(6, 3), dense_model(4, 3), distillation_losses, **options)
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    return distiller


def logged(distiller, data):
    return {name: values[0] for name, values in distiller.fit(*data, verbose=0).history.items()}


def test_weights_and_temperatures_take_effect_at_the_next_step_without_a_new_trace(data):
    distiller = make(losses.SoftLabels(4.0), soft_weight=1.0)
    before = logged(distiller, data)
    function = distiller.train_function
    distiller.soft_weight, distiller.hard_weight = 0.0, 2.0
    loss = distiller.distillation_losses[0]
    loss.temperature, loss.weight = 1.0, 3.0
    after = logged(distiller, data)
    assert distiller.train_function is function
    assert after["loss"] == pytest.approx(2.0 * before["hard_loss"], rel=1e-6)
    fresh = logged(make_twin(distiller, losses.SoftLabels(1.0)), data)
    assert after["soft_labels"] == pytest.approx(fresh["soft_labels"], rel=1e-6)
    distiller.soft_weight = 1.0
    assert logged(distiller, data)["loss"] == pytest.approx(
        2.0 * before["hard_loss"] + 3.0 * fresh["soft_labels"], rel=1e-6
    )


def make_twin(distiller, loss):
    twin = keras_kd.Distiller(distiller.teacher, distiller.student, loss)
    twin.compile(keras.optimizers.SGD(0.0), crossentropy())
    return twin


@pytest.mark.parametrize("row", LOSSES.values(), ids=list(LOSSES))
def test_every_hyperparameter_of_every_loss_takes_numbers_and_checks_them(row):
    loss = row.make()
    for name, variable in loss.hyperparameters().items():
        setattr(loss, name, 0.5)
        assert loss.hyperparameters()[name] is variable and float(variable) == 0.5
        assert losses_config(loss)[name] == 0.5
        with pytest.raises(ValueError, match=rf"{name} must be >"):
            setattr(loss, name, -1.0)
        with pytest.raises(TypeError, match=rf"{name} must be >.*a number"):
            setattr(loss, name, "2")
        assert float(variable) == 0.5


def losses_config(loss):
    """The configuration of a loss, or of the one that it wraps."""
    return loss.loss.get_config() if isinstance(loss, losses.base.DistillationLossWrapper) else loss.get_config()


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (lambda: losses.JensenShannon(0.5), "beta", 0.1),
        (lambda: losses.SoftLabels(), "standardize", True),
        (lambda: losses.SoftLabels(), "output", "logits"),
        (lambda: losses.Hint("hidden_0", "hidden_0"), "student_layer", "logits"),
        (lambda: losses.AttentionTransfer(), "p", 1.0),
        (lambda: losses.SoftLabels(), "reduction", "sum"),
    ],
)
def test_what_a_step_was_traced_with_cannot_be_changed_silently(loss, name, value):
    free = loss()
    setattr(free, name, value)  # by itself a loss may be changed
    used = loss()
    used.mark_in_use()
    with pytest.raises(AttributeError, match=rf"{name} of .* cannot be changed once the loss is part of a distiller"):
        setattr(used, name, value)


@pytest.mark.parametrize("name", ["student", "distillation_losses", "balance", "fuse_logits", "projections"])
def test_parts_of_a_distiller_cannot_be_replaced(name):
    distiller = make()
    with pytest.raises(AttributeError, match=rf"{name} of a distiller cannot be replaced.*teacher, soft_weight"):
        setattr(distiller, name, getattr(distiller, name))
    assert isinstance(distiller.distillation_losses, tuple)


def test_a_users_loss_may_count_its_calls(data):
    @keras.saving.register_keras_serializable(package="tests")
    class Counting(losses.SoftLabels):
        calls = 0

        def call(self, teacher, student):
            self.calls += 1
            return super().call(teacher, student)

    loss = Counting(name="counting")
    logged(make(loss), data)
    assert loss.calls >= 1


def test_hyperparameters_are_no_weights_but_in_files_and_checkpoints(data, tmp_path):
    """Early stopping with restore_best_weights=True rolls back weights, and no schedule."""
    distiller = make(losses.SoftLabels(4.0))
    weights = distiller.get_weights()
    assert len(weights) == len(distiller.student.get_weights())
    distiller.soft_weight = 0.25
    distiller.distillation_losses[0].temperature = 7.0
    distiller.set_weights(weights)
    assert float(distiller.soft_weight) == 0.25
    distiller.save_weights(tmp_path / "a.weights.h5")
    other = make(losses.SoftLabels(4.0))
    other.load_weights(tmp_path / "a.weights.h5")
    assert float(other.soft_weight) == 0.25 and float(other.distillation_losses[0].temperature) == 7.0


def test_under_a_strategy_and_xla(data):
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        distiller = make(losses.SoftLabels(4.0))
    first = logged(distiller, data)
    distiller.soft_weight = 0.0
    assert logged(distiller, data)["loss"] == pytest.approx(first["hard_loss"], rel=1e-5)
    compiled = make(losses.SoftLabels(4.0))
    compiled.compile(keras.optimizers.SGD(0.0), crossentropy(), jit_compile=True)
    first = logged(compiled, data)
    compiled.soft_weight = 0.0
    assert logged(compiled, data)["loss"] == pytest.approx(first["hard_loss"], rel=1e-5)


# Outputs by name, state by name -------------------------------------------------------------------------------------


def two_heads(names, seed=0, as_dict=False):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8,))
    heads = {name: keras.layers.Dense(3, name=name) for name in sorted(names)}
    outputs = {name: heads[name](inputs) for name in names}
    return keras.Model(inputs, outputs if as_dict else list(outputs.values()))


@pytest.mark.parametrize("dicts", [(False, False), (True, False), (False, True)])
def test_outputs_of_the_same_names_are_compared_by_name(data, dicts):
    """Equal models whose heads come in another order: the loss is 0."""
    x, _ = data
    teacher = two_heads(["a", "b"], as_dict=dicts[0])
    student = two_heads(["b", "a"], as_dict=dicts[1])
    for head in ("a", "b"):
        student.get_layer(head).set_weights(teacher.get_layer(head).get_weights())
    distiller = keras_kd.Distiller(teacher, student, losses.LogitsMSE())
    distiller.compile(keras.optimizers.SGD(0.0), None)
    assert distiller.fit(x, verbose=0).history["logits_mse"] == [pytest.approx(0.0, abs=1e-10)]


def test_precomputed_outputs_of_the_same_names_are_compared_by_name(data):
    x, _ = data
    teacher, student = two_heads(["a", "b"]), two_heads(["b", "a"])
    for head in ("a", "b"):
        student.get_layer(head).set_weights(teacher.get_layer(head).get_weights())
    batch = keras_kd.PrecomputedBatch.with_output_names(("a", "b"))
    dataset = tf.data.Dataset.from_tensor_slices((batch(x, tuple(teacher.predict(x, verbose=0)), {}),)).batch(8)
    distiller = keras_kd.Distiller(None, student, losses.LogitsMSE())
    distiller.compile(keras.optimizers.SGD(0.0), None)
    assert distiller.fit(dataset, verbose=0).history["logits_mse"] == [pytest.approx(0.0, abs=1e-10)]


def test_outputs_of_other_names_are_compared_by_position(data):
    x, _ = data
    teacher, student = two_heads(["a", "b"]), two_heads(["x", "y"])
    expected = sum(
        np.mean((t - s) ** 2) for t, s in zip(teacher.predict(x, verbose=0), student.predict(x, verbose=0), strict=True)
    )
    distiller = keras_kd.Distiller(teacher, student, losses.LogitsMSE())
    distiller.compile(keras.optimizers.SGD(0.0), None)
    assert distiller.fit(x, verbose=0).history["logits_mse"] == [pytest.approx(expected, rel=1e-5)]


def test_state_is_restored_by_name_whatever_the_order_of_the_losses(tmp_path):
    def pair(order):
        made = {
            "mse": losses.LogitsMSE(weight=0.5, name="mse"),
            "kl": losses.SoftLabels(4.0, weight=0.25, name="kl"),
            "hint": losses.Hint("hidden_0", "hidden_0", name="hint"),
            "other": losses.Hint("hidden_0", "hidden_0", name="other"),
        }
        distiller = make([made[name] for name in order])
        distiller.compile(keras.optimizers.Adam(), crossentropy())
        distiller.optimizer.build(distiller.trainable_variables)
        return distiller

    one = pair(["mse", "kl", "hint", "other"])
    one.distillation_losses[0].weight, one.distillation_losses[1].temperature = 0.75, 3.0
    one.save_weights(tmp_path / "one.weights.h5")
    other = pair(["other", "kl", "hint", "mse"])
    other.load_weights(tmp_path / "one.weights.h5")
    by_name = {loss.name: loss for loss in other.distillation_losses}
    assert float(by_name["mse"].weight) == 0.75 and float(by_name["kl"].weight) == 0.25
    assert float(by_name["kl"].temperature) == 3.0
    for name in ("hint", "other"):
        np.testing.assert_array_equal(other.projections[name].kernel, one.projections[name].kernel)
    assert [v.path.split("/")[-2] for v in one.trainable_variables] == [
        v.path.split("/")[-2] for v in other.trainable_variables
    ]


def test_state_of_other_losses_is_refused_and_both_sides_are_named(tmp_path):
    make(losses.LogitsMSE()).save_weights(tmp_path / "one.weights.h5")
    with pytest.raises(
        ValueError, match=r"only the file has \['logits_mse_weight'\], only this distiller has \['soft_labels"
    ):
        make(losses.SoftLabels()).load_weights(tmp_path / "one.weights.h5")
