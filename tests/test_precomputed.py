"""Batches that bring their teacher's outputs along: no teacher runs, and the student learns the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of

import keras_kd
from keras_kd.metrics import Agreement, MeanKL
from keras_kd.outputs.precomputed import PrecomputedBatch

HIDDEN = {"teacher_layer": "hidden_0", "student_layer": "hidden_0"}


def outputs_of(teacher, x, layers=()):
    outputs = {name: teacher.get_layer(name).output for name in layers}
    model = keras.Model(teacher.inputs, {"logits": teacher.layers[-1].output, **outputs})
    outputs = model.predict(x, verbose=0)
    return outputs.pop("logits"), outputs


def brought(teacher, x, y=None, layers=(), batch=8):
    prediction, hidden = outputs_of(teacher, x, layers)
    batches = (PrecomputedBatch(x, prediction, hidden),) if y is None else (PrecomputedBatch(x, prediction, hidden), y)
    return tf.data.Dataset.from_tensor_slices(batches).batch(batch)


def distiller_of(teacher, student, distillation_losses=None, loss=True, **options):
    distiller = keras_kd.Distiller(teacher, student, distillation_losses)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy() if loss else None, **options)
    return distiller


def twins():
    teacher, student = dense_model(16, 3), dense_model(4, 3)
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    return teacher, student, copy


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_student_learns_what_it_learns_from_the_live_teacher(data, jit_compile):
    x, y = data
    teacher, live, cached = twins()
    distillation_losses = [keras_kd.losses.SoftLabels(2.0), keras_kd.losses.RelationalKD(**HIDDEN)]
    plain = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    histories = []
    for teacher_or_none, student, dataset in (
        (teacher, live, plain),
        (None, cached, brought(teacher, x, y, ["hidden_0"])),
    ):
        distiller = distiller_of(teacher_or_none, student, distillation_losses, jit_compile=jit_compile)
        histories.append(distiller.fit(dataset, epochs=2, shuffle=False, validation_data=plain, verbose=0).history)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(live.get_weights(), cached.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_projections_are_made_for_hidden_states_that_come_along(data):
    x, y = data
    teacher, student = dense_model(16, 3), dense_model(4, 3)
    distiller = distiller_of(None, student, keras_kd.losses.Hint("hidden_0", "hidden_0"))
    history = distiller.fit(brought(teacher, x, y, ["hidden_0"]), epochs=9, verbose=0).history
    assert distiller.projections["hint"].kernel.shape == (4, 16)
    assert history["hint"][-1] < history["hint"][0]


def test_unlabelled_batches_and_fidelity_metrics(data):
    x, _ = data
    teacher, student, _ = twins()
    distiller = distiller_of(None, student, loss=False, metrics=[Agreement(), MeanKL()])
    dataset = brought(teacher, x)
    expected = np.mean(teacher.predict(x, verbose=0).argmax(-1) == student.predict(x, verbose=0).argmax(-1))
    assert distiller.evaluate(dataset, return_dict=True, verbose=0)["agreement"] == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(distiller.fit(dataset, validation_data=dataset, verbose=0).history["val_kl"][0])


def test_a_distiller_with_a_teacher_takes_what_comes_along_and_goes_back_to_its_teacher(data):
    x, y = data
    teacher, student, _ = twins()
    distiller = distiller_of(teacher, student)
    other = dense_model(16, 3)
    value = {}
    for name, dataset in (
        ("live", tf.data.Dataset.from_tensor_slices((x, y)).batch(37)),
        ("brought", brought(other, x, y, batch=37)),
        ("live again", tf.data.Dataset.from_tensor_slices((x, y)).batch(37)),
    ):
        distiller.optimizer.learning_rate = 0.0
        value[name] = distiller.fit(dataset, shuffle=False, verbose=0).history["soft_labels"][0]
    assert value["live"] == pytest.approx(value["live again"], rel=1e-6)
    assert value["live"] != pytest.approx(value["brought"], rel=1e-2)


def test_predict_reads_what_the_student_reads(data):
    x, _ = data
    teacher, student, _ = twins()
    distiller = distiller_of(None, student)
    np.testing.assert_allclose(
        distiller.predict(brought(teacher, x), verbose=0), student.predict(x, verbose=0), rtol=1e-5
    )


def test_two_replicas_learn_what_one_learns(data):
    x, y = data
    weights = []
    for strategy in (tf.distribute.get_strategy(), strategy_of(2)):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            teacher, student = dense_model(16, 3), dense_model(4, 3)
            distiller = distiller_of(None, student)
        distiller.fit(brought(teacher, x, y), epochs=2, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_outputs_that_do_not_fit_are_refused_before_anything_is_learnt(data):
    x, y = data
    teacher, student = dense_model(16, 5), dense_model(4, 3)
    with pytest.raises(ValueError, match=r"same number of classes on both sides, but the teacher gives \(None, 5\)"):
        distiller_of(None, student).fit(brought(teacher, x, y), verbose=0)
    distiller = distiller_of(None, student, keras_kd.losses.Hint("hidden_1", "hidden_0"))
    with pytest.raises(ValueError, match=r"teacher_layer='hidden_1' is not among the precomputed outputs"):
        distiller.fit(brought(teacher, x, y, ["hidden_0"]), verbose=0)
    with pytest.raises(
        ValueError, match=r"has no teacher. Assign it before fit.* or give fit a dataset with precomputed"
    ):
        distiller_of(None, student).fit(x, y, verbose=0)


def test_nan_that_comes_along_stops_the_step(data):
    x, y = data
    teacher, student, _ = twins()
    prediction, _ = outputs_of(teacher, x)
    prediction[20, 1] = np.nan
    dataset = tf.data.Dataset.from_tensor_slices((PrecomputedBatch(x, prediction, {}), y)).batch(8)
    with pytest.raises(ValueError, match="teacher's output holds NaN or infinite values in training batch 2"):
        distiller_of(None, student).fit(dataset, shuffle=False, verbose=0)
