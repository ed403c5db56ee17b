"""Losses of Keras in `keras_kd.Distiller`, and losses of keras_kd in `keras.distillation.Distiller`."""

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


def test_a_loss_of_keras_heeds_sample_weights(data):
    weights = np.linspace(0.0, 2.0, len(data[0]))
    (teacher, student), _, logs = fitted(keras.losses.MeanAbsoluteError(), data, sample_weight=weights)
    expected = (weights * np.abs(teacher - student).mean(-1)).mean()
    assert logs["mean_absolute_error"][0] == pytest.approx(expected, rel=1e-5)


def test_a_distillation_loss_of_keras_keeps_its_value(data):
    loss = keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.MeanSquaredError())
    expected_of = [loss.compute_loss(*map(tf.constant, fitted([loss], data)[0]))]
    keras.utils.set_random_seed(1)
    (teacher, student), _, logs = fitted([loss], data)
    assert logs["logits_distillation"][0] == pytest.approx(float(loss.compute_loss(teacher, student)), rel=1e-5)
    assert float(expected_of[0]) > 0


def test_the_layers_of_a_distillation_loss_of_keras_are_used(data):
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
def test_other_objects_are_refused(loss):
    with pytest.raises(TypeError, match=r"loss must be a keras.losses.Loss or a keras.distillation.DistillationLoss"):
        keras_kd.losses.KerasLoss(loss)
    if loss is not None:
        with pytest.raises(
            TypeError,
            match=r"distillation_losses must be a keras_kd.losses.DistillationLoss, a keras.losses.Loss or a list",
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
def test_losses_work_in_the_distiller_of_keras(data, make):
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


WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0])
REDUCTIONS = {  # of the values of each example, v, by hand
    "sum": lambda v: (WEIGHTS * v).sum(),
    "mean": lambda v: (WEIGHTS * v).mean(),
    "sum_over_batch_size": lambda v: (WEIGHTS * v).mean(),
    "mean_with_sample_weight": lambda v: (WEIGHTS * v).sum() / WEIGHTS.sum(),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", [keras.losses.MeanSquaredError, keras.losses.Huber, keras.losses.LogCosh])
def test_a_loss_of_keras_keeps_its_reduction(make, reduction, data):
    teacher, student = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    each = np.array(make(reduction=None)(teacher, student))
    loss = keras_kd.losses.KerasLoss(make(reduction=reduction))
    assert loss.reduction == reduction
    assert float(loss(teacher, student, WEIGHTS)) == pytest.approx(REDUCTIONS[reduction](each), rel=1e-5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.reduction == reduction
    overridden = keras_kd.losses.KerasLoss(make(reduction="sum"), reduction="sum_over_batch_size")
    assert overridden.reduction == "sum_over_batch_size"
    (teacher, student), _, logs = fitted(make(reduction="sum"), data)
    assert logs[make().name][0] == pytest.approx(float(make(reduction="sum")(teacher, student)), rel=1e-4)


def test_a_loss_of_keras_without_a_reduction_is_refused():
    with pytest.raises(ValueError, match=r"\['mean_squared_error'\] have reduction=None"):
        keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3), keras.losses.MeanSquaredError(reduction=None))


def test_a_loss_of_keras_keeps_its_dtype():
    loss = keras_kd.losses.KerasLoss(keras.losses.MeanSquaredError(dtype="float64"))
    assert loss(np.ones((2, 3)), np.zeros((2, 3))).dtype == tf.float64
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.dtype == "float64"


OVER_PROBABILITIES = [
    keras.losses.KLDivergence(),
    keras.losses.CategoricalCrossentropy(),
    keras.losses.CategoricalFocalCrossentropy(),
    keras.losses.CategoricalGeneralizedCrossEntropy(),
    keras.losses.BinaryCrossentropy(),
    keras.losses.BinaryFocalCrossentropy(),
    keras.losses.Poisson(),
    keras.losses.Dice(),
    keras.losses.Tversky(),
]


@pytest.mark.parametrize("loss", OVER_PROBABILITIES, ids=lambda loss: loss.name)
def test_losses_over_probabilities_refuse_models_that_end_in_logits(loss):
    soft = {"last": "softmax"}
    for teacher, student in (({}, {}), (soft, {}), ({}, soft)):
        with pytest.raises(ValueError, match=r"needs probabilities from the .* ends in linear.*losses\.SoftLabels"):
            keras_kd.Distiller(dense_model(16, 3, **teacher), dense_model(6, 3, **student), loss)
    keras_kd.Distiller(dense_model(16, 3, **soft), dense_model(6, 3, **soft), loss)


@pytest.mark.parametrize(
    "make",
    [keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy],
)
@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
def test_losses_from_logits_refuse_a_student_that_ends_in_probabilities(make, last):
    """And a teacher that gives logits, which they take as `y_true`."""
    loss = make(from_logits=True)
    with pytest.raises(ValueError, match=rf"needs logits from the student, but the student ends in {last}"):
        keras_kd.Distiller(dense_model(16, 3, last=last), dense_model(6, 3, last=last), loss)
    with pytest.raises(ValueError, match="needs probabilities from the teacher, but the teacher ends in linear"):
        keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3), loss)
    keras_kd.Distiller(dense_model(16, 3, last=last), dense_model(6, 3), loss)


def test_losses_over_outputs_as_they_are_refuse_logits_with_probabilities():
    for loss in (keras.losses.MeanSquaredError(), keras_kd.losses.CosineFeatures(), keras_kd.losses.RelationalKD()):
        with pytest.raises(ValueError, match="teacher ends in softmax and the student in linear"):
            keras_kd.Distiller(dense_model(16, 3, last="softmax"), dense_model(6, 3), loss)
