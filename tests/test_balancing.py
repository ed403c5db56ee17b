"""Factors of the losses that are found while training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of

import keras_kd


def distiller_with(balance, distillation_losses=None, student=None, **options):
    distiller = keras_kd.Distiller(
        dense_model(16, 3), student or dense_model(4, 3), distillation_losses, soft_weight=0.5, balance=balance
    )
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), **options)
    return distiller


def losses_by_hand(distiller, x, y):
    """L_raw and T² KL at T = 4."""
    logits, teacher = distiller.student(x), distiller.teacher(x)
    log_p, log_q = (tf.nn.log_softmax(z / 4.0) for z in (teacher, logits))
    soft = 16.0 * tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1))
    return [crossentropy()(y, logits), soft]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_uncertainty_follows_the_formula_for_a_step(data, jit_compile):
    """∂L/∂s = −exp(−s) · weight · loss + ½, at s = 0, with SGD of 0.1."""
    x, y = data
    distiller = distiller_with(keras_kd.UncertaintyBalance(), jit_compile=jit_compile)
    losses = losses_by_hand(distiller, x, y)
    weighted = np.array([float(losses[0]), 0.5 * float(losses[1])])
    history = distiller.fit(x, y, batch_size=64, verbose=0).history
    assert history["loss"][0] == pytest.approx(weighted.sum(), rel=1e-5)  # the factors are 1, the penalty is 0
    np.testing.assert_allclose(distiller.balance.log_variances, -0.1 * (0.5 - weighted), rtol=1e-4)
    factors = [history["hard_loss_balance"][0], history["soft_labels_balance"][0]]
    np.testing.assert_allclose(factors, np.exp(0.1 * (0.5 - weighted)), rtol=1e-5)


def test_uncertainty_tends_to_one_half_over_the_loss(data):
    """Where a loss stays as it is: 1 / (2 L)."""
    x, y = data
    distiller = distiller_with(keras_kd.UncertaintyBalance())
    distiller.student.trainable = False
    distiller.compile(keras.optimizers.SGD(0.2), crossentropy())
    losses = losses_by_hand(distiller, x, y)
    history = distiller.fit(x, y, batch_size=64, epochs=150, verbose=0).history
    assert history["hard_loss_balance"][-1] == pytest.approx(0.5 / float(losses[0]), rel=1e-2)


def test_unlabelled_data_balances_the_losses_alone(data):
    distiller = keras_kd.Distiller(
        dense_model(16, 3),
        dense_model(4, 3),
        [keras_kd.losses.SoftLabels(), keras_kd.losses.LogitsMSE()],
        balance=keras_kd.UncertaintyBalance(),
    )
    distiller.compile("adam", None)
    history = distiller.fit(data[0], epochs=3, verbose=0).history
    assert history["hard_loss_balance"] == [1.0] * 3
    assert history["logits_mse"][-1] < history["logits_mse"][0]


def test_a_saved_distiller_goes_on_with_its_factors(data, tmp_path):
    distiller = distiller_with(keras_kd.UncertaintyBalance())
    distiller.fit(*data, epochs=2, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", distiller.teacher)
    np.testing.assert_array_equal(loaded.balance.factors(), distiller.balance.factors())
    histories = [one.fit(*data, shuffle=False, verbose=0).history for one in (distiller, loaded)]
    assert histories[0] == histories[1]
    assert not any("balance" in variable.path for variable in distiller.student.variables)


def test_mixed_precision_keeps_the_factors_finite(data):
    keras.config.set_dtype_policy("mixed_float16")
    distiller = distiller_with(keras_kd.UncertaintyBalance())
    distiller.compile(keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1)), crossentropy())
    history = distiller.fit(*data, epochs=4, verbose=0).history
    assert np.all(np.isfinite(history["soft_labels_balance"]))
    assert history["soft_labels_balance"][-1] != 1.0


def test_two_replicas_learn_the_uncertainties_that_one_learns(data):
    learnt = []
    for strategy in (tf.distribute.get_strategy(), strategy_of(2)):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            distiller = distiller_with(keras_kd.UncertaintyBalance())
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
        distiller.fit(dataset, shuffle=False, verbose=0)
        learnt.append(np.array(distiller.balance.factors()))
    np.testing.assert_allclose(learnt[0], learnt[1], rtol=1e-5)


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(TypeError, match=r"balance must be a keras_kd\.UncertaintyBalance or None"):
        distiller_with("uncertainty")
    used = keras_kd.UncertaintyBalance()
    distiller_with(used)
    with pytest.raises(
        ValueError, match=r"balance belongs to a distiller with the losses \['hard_loss', 'soft_labels'\]"
    ):
        distiller_with(used, keras_kd.losses.LogitsMSE())
