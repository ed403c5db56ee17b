"""Losses of Keras as losses here, and losses of ours in `keras.distillation.Distiller`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd


def fitted(distillation_losses, data, **fit_options):
    """Teacher and student before training, the distiller after one epoch of one batch, and its logs."""
    teacher, student = dense_model(16, 3), dense_model(6, 3)
    logits = [model.predict(data[0], verbose=0) for model in (teacher, student)]
    distiller = keras_kd.Distiller(teacher, student, distillation_losses)
    distiller.compile("sgd", crossentropy())
    logs = distiller.fit(*data, batch_size=len(data[0]), verbose=0, **fit_options).history
    return logits, distiller, logs


def test_a_loss_of_keras_is_an_loss_with_sample_weights(data):
    weights = np.linspace(0.0, 2.0, len(data[0]))
    (teacher, student), _, logs = fitted(keras.losses.MeanAbsoluteError(), data, sample_weight=weights)
    expected = (weights * np.abs(teacher - student).mean(-1)).mean()
    assert logs["mean_absolute_error"][0] == pytest.approx(expected, rel=1e-5)


def test_a_distillation_loss_of_keras_is_an_loss(data):
    loss = keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.MeanSquaredError())
    expected_of = [loss.compute_loss(*map(tf.constant, fitted([loss], data)[0]))]
    keras.utils.set_random_seed(1)
    (teacher, student), _, logs = fitted([loss], data)
    assert logs["logits_distillation"][0] == pytest.approx(float(loss.compute_loss(teacher, student)), rel=1e-5)
    assert float(expected_of[0]) > 0


def test_a_distillation_loss_brings_its_layers(data):
    teacher, student = dense_model(16, 3), dense_model(16, 3)
    hidden = [keras.Model(m.inputs, m.get_layer("hidden_0").output) for m in (teacher, student)]
    expected = np.mean(np.square(hidden[0].predict(data[0], verbose=0) - hidden[1].predict(data[0], verbose=0)))
    features = keras.distillation.FeatureDistillation(
        loss="mse", teacher_layer_name="hidden_0", student_layer_name="hidden_0"
    )
    distiller = keras_kd.Distiller(teacher, student, [features])
    distiller.compile("sgd", crossentropy())
    logs = distiller.fit(*data, batch_size=37, verbose=0).history
    assert logs["feature_distillation"][0] == pytest.approx(expected, rel=1e-4)


def test_a_wrapped_loss_has_a_weight_and_is_saved(data, tmp_path):
    distillation_loss = keras_kd.losses.KerasLoss(keras.losses.MeanAbsoluteError(), weight=0.25, name="mae_of_logits")
    _, distiller, _ = fitted([distillation_loss, keras_kd.losses.SoftLabels()], data)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", dense_model(16, 3))
    restored = loaded.distillation_losses[0]
    assert (restored.name, float(restored.weight)) == ("mae_of_logits", 0.25)
    assert float(restored(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]]))) == 1.5


@pytest.mark.parametrize("loss", ["mse", None, keras.metrics.Mean(), keras.losses.mean_squared_error])
def test_anything_else_is_refused(loss):
    with pytest.raises(TypeError, match=r"loss must be a keras.losses.Loss or a keras.distillation.DistillationLoss"):
        keras_kd.losses.KerasLoss(loss)
    if loss is not None:
        with pytest.raises(
            TypeError, match=r"losses must be a keras_kd.losses.DistillationLoss, a keras.losses.Loss or a list"
        ):
            keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3), loss)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras_kd.losses.SoftLabels(2.0),
        lambda: keras_kd.losses.SkewKL(0.1),
        lambda: keras_kd.losses.UniversalLogitDistillation(),
        lambda: keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(), teacher_ids=[2, 0, 1]),
        lambda: keras_kd.losses.Hint("hidden_0", "hidden_0"),
        lambda: keras_kd.losses.CosineFeatures("hidden_0", "hidden_0"),
        lambda: keras_kd.losses.RelationalKD(teacher_layer="hidden_0", student_layer="hidden_0"),
    ],
)
def test_ours_work_in_the_distiller_of_keras(data, make):
    """There, too, the logged distillation loss is the loss's value on the models' own outputs."""
    teacher, student = dense_model(16, 3), dense_model(16, 3)
    distillation_loss = make()
    sides = (teacher, student)
    if distillation_loss.teacher_layer is not None:
        sides = [keras.Model(m.inputs, m.get_layer("hidden_0").output) for m in sides]
    expected = float(distillation_loss(*(model.predict(data[0], verbose=0) for model in sides)))
    distiller = keras.distillation.Distiller(teacher, student, distillation_losses=[distillation_loss])
    distiller.compile("sgd", crossentropy())
    logs = distiller.fit(*data, batch_size=37, verbose=0).history
    assert logs["distillation_loss"][0] == pytest.approx(expected, rel=1e-4)
