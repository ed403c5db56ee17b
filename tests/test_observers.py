"""Metrics of `compile` that need the teacher or languages, inside a distiller."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of
from formulas import kl, softmax
from sklearn.metrics import f1_score

import keras_kd
from keras_kd.metrics import Agreement, ExpectedCalibrationError, MacroF1, MacroF1ByLanguage, MeanKL


def frozen_distiller(metrics, last=None, **options):
    """A learning rate of 0: the epoch's logs describe the weights as they are."""
    teacher, student = dense_model(16, 3, last=last), dense_model(4, 3, last=last)
    distiller = keras_kd.Distiller(teacher, student)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=last is None, ignore_class=-1)
    distiller.compile(keras.optimizers.SGD(0.0), loss, metrics=metrics, **options)
    return distiller


def probabilities(model, x):
    outputs = model.predict(x, verbose=0).astype("float64")
    return outputs if model.layers[-1].activation.__name__ == "softmax" else softmax(outputs)


@pytest.mark.parametrize(("last", "jit_compile"), [("softmax", False), (None, True)])
def test_fit_and_evaluate_compare_student_and_teacher(data, last, jit_compile):
    x, y = data
    distiller = frozen_distiller(["accuracy", Agreement(), MeanKL()], last, jit_compile=jit_compile)
    p, q = (probabilities(model, x) for model in (distiller.teacher, distiller.student))
    expected = {"agreement": np.mean(p.argmax(-1) == q.argmax(-1)), "kl": kl(p, q).mean()}
    logs = distiller.fit(x, y, batch_size=8, validation_data=(x, y), verbose=0).history
    for name, value in expected.items():
        assert logs[name][0] == pytest.approx(value, rel=1e-4)
        assert logs[f"val_{name}"][0] == pytest.approx(value, rel=1e-4)
    assert logs["accuracy"][0] == pytest.approx(np.mean(q.argmax(-1) == y), rel=1e-5)


def test_weighted_metrics_get_the_sample_weights_and_the_others_do_not(data):
    x, y = data
    weights = np.linspace(0.0, 2.0, len(x))
    teacher, student = dense_model(16, 3), dense_model(4, 3)
    distiller = keras_kd.Distiller(teacher, student)
    metrics = {"metrics": [Agreement()], "weighted_metrics": [Agreement(name="weighted")]}
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy(), **metrics)
    agreed = teacher.predict(x, verbose=0).argmax(-1) == student.predict(x, verbose=0).argmax(-1)
    logs = distiller.evaluate(x, y, sample_weight=weights, return_dict=True, verbose=0)
    assert logs["agreement"] == pytest.approx(agreed.mean(), rel=1e-5)
    assert logs["weighted"] == pytest.approx(np.average(agreed, weights=weights), rel=1e-5)


def test_no_labels_are_needed(data):
    distiller = frozen_distiller([Agreement(), MacroF1ByLanguage(3, ["en"])])
    assert 0 < distiller.fit(data[0], verbose=0).history["agreement"][0] <= 1
    assert set(distiller.evaluate(data[0], return_dict=True, verbose=0)) == {"loss", "agreement"}


def test_without_such_metrics_evaluate_does_not_run_the_teacher(data):
    """And with them it does."""
    calls = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, keras.layers.Dense(3)(Counted()(inputs)))
    for metrics, count in (([], 0), ([Agreement()], 1)):
        distiller = keras_kd.Distiller(teacher, dense_model(4, 3))
        distiller.compile("sgd", crossentropy(), metrics=metrics, run_eagerly=True)
        calls.clear()
        distiller.evaluate(*data, batch_size=64, verbose=0)
        assert len(calls) == count


def languages_and_classifier(rows=24):
    rng = np.random.default_rng(0)
    x = {"features": rng.normal(size=(rows, 8)).astype("float32"), "language": rng.choice(["en", "sw"], rows)}
    inputs = keras.Input((8,), name="features")
    models = [keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(n, "relu")(inputs))) for n in (16, 4)]
    return x, np.arange(rows) % 3, models


def test_macro_f1_by_language_reads_the_language_from_the_batch():
    x, y, (teacher, student) = languages_and_classifier()
    y = np.where(np.arange(len(y)) < 4, -1, y)
    distiller = keras_kd.Distiller(teacher, student)
    metrics = [MacroF1ByLanguage(3, ["en", "sw"]), MacroF1(3), ExpectedCalibrationError()]
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy(ignore_class=-1), metrics=metrics)
    predicted = student.predict(x["features"], verbose=0).argmax(-1)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    logs = distiller.fit(data, validation_data=data, verbose=0).history
    scores = []
    for language in ("en", "sw"):
        rows = (x["language"] == language) & (y >= 0)
        scores.append(f1_score(y[rows], predicted[rows], average="macro"))
        assert logs[f"macro_f1_{language}"][0] == pytest.approx(scores[-1], rel=1e-5)
        assert logs[f"val_macro_f1_{language}"][0] == pytest.approx(scores[-1], rel=1e-5)
    assert logs["macro_f1_mean"][0] == pytest.approx(np.mean(scores), rel=1e-5)
    assert logs["macro_f1"][0] == pytest.approx(f1_score(y[y >= 0], predicted[y >= 0], average="macro"), rel=1e-5)
    assert 0 <= logs["ece"][0] <= 1


def test_two_replicas_measure_what_one_measures(data):
    logs = []
    for strategy in (tf.distribute.get_strategy(), strategy_of(2)):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            distiller = frozen_distiller([Agreement(), MeanKL(), ExpectedCalibrationError()])
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
        logs.append(distiller.fit(dataset, shuffle=False, validation_data=dataset, verbose=0).history)
    assert logs[0].keys() == logs[1].keys()
    for name, values in logs[0].items():
        assert logs[1][name][0] == pytest.approx(values[0], rel=1e-5), name


def test_callbacks_find_them_and_a_saved_distiller_keeps_them(data, tmp_path):
    distiller = frozen_distiller(["accuracy", Agreement()])
    stopping = keras.callbacks.EarlyStopping(monitor="val_agreement", mode="max", patience=1)
    history = distiller.fit(*data, epochs=9, validation_data=data, callbacks=[stopping], verbose=0).history
    assert len(history["val_agreement"]) == 2
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", distiller.teacher)
    assert loaded.evaluate(*data, return_dict=True, verbose=0) == distiller.evaluate(*data, return_dict=True, verbose=0)


def test_each_epoch_starts_anew(data):
    """The metrics are reset: an epoch's value is of its own batches."""
    distiller = frozen_distiller([MeanKL()])
    first, second = distiller.fit(*data, epochs=2, verbose=0).history["kl"]
    assert first == pytest.approx(second, rel=1e-5)
    distiller.student.set_weights([w * 3.0 for w in distiller.student.get_weights()])
    assert distiller.fit(*data, verbose=0).history["kl"][0] != pytest.approx(second, rel=1e-2)


def test_what_they_cannot_compare_is_refused(data):
    with pytest.raises(ValueError, match=r"metrics must name \['agreement'\] in a flat list, not by output"):
        frozen_distiller({"logits": [Agreement()]})
    inputs = keras.Input((8,))
    two = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)])
    distiller = keras_kd.Distiller(two, keras.models.clone_model(two))
    distiller.compile("sgd", None, metrics=[Agreement()])
    with pytest.raises(ValueError, match=r"a teacher and a student with one output each, got 2 and 2\."):
        distiller.fit(data[0], verbose=0)
    distiller = frozen_distiller([MacroF1ByLanguage(3, ["en"])])
    with pytest.raises(ValueError, match=r"macro_f1_by_language needs each example's language: x must be a dict"):
        distiller.fit(*data, verbose=0)
