"""Temperature and weight by language: each example as if alone with its language's values."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model
from formulas import soft_labels
from loss_table import LABELS, LOSSES, STUDENT, TEACHER

import keras_kd
from keras_kd._keras_private import set_mask

LANGUAGES = np.array(["en", "sw", "en", "fi"])
TEMPERATURES = {"en": 4.0, "sw": 1.5, "fi": 2.0}
WEIGHTS = {"en": 1.0, "sw": 3.0, "fi": 0.0}
TEMPERED = [
    name
    for name, row in LOSSES.items()
    if getattr(row.make(), "scales_with_temperature", False) and row.make().name != "dist"
]


def by_language(loss=None, **options):
    tables = {"temperatures": TEMPERATURES, "weights": WEIGHTS} | options
    return keras_kd.losses.ByLanguage(loss or keras_kd.losses.SoftLabels(temperature=3.0), **tables)


def expected(languages, teacher, student):
    rows = zip(languages, teacher, student, strict=True)
    return np.array([WEIGHTS[one] * soft_labels(t, s, TEMPERATURES[one]) for one, t, s in rows])


def batch(rows=12):
    rng = np.random.default_rng(0)
    x = {"features": rng.normal(size=(rows, 8)).astype("float32"), "language": rng.choice(list(TEMPERATURES), rows)}
    return tf.data.Dataset.from_tensor_slices((x, np.arange(rows) % 3)).batch(rows), x


def classifier(width):
    inputs = keras.Input((8,), name="features")
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(width, "relu")(inputs)))


def test_each_example_has_the_temperature_and_weight_of_its_language():
    value = by_language()(TEACHER, STUDENT, languages=LANGUAGES)
    assert float(value) == pytest.approx(expected(LANGUAGES, TEACHER, STUDENT).mean(), rel=1e-6)
    values = expected(LANGUAGES, TEACHER, STUDENT)
    weighted = by_language()(TEACHER, STUDENT, np.array([1.0, 2.0, 0.0, 5.0]), languages=LANGUAGES)
    assert float(weighted) == pytest.approx(np.mean(values * [1.0, 2.0, 0.0, 5.0]), rel=1e-6)


@pytest.mark.parametrize("name", TEMPERED)
def test_every_loss_that_allows_it_is_as_at_that_temperature(name):
    """One language for all examples equals the loss made with that temperature."""
    row = LOSSES[name]
    options = {"labels": LABELS} if row.labelled else {}
    plain = row.make()
    plain.temperature.assign(1.5)
    loss = keras_kd.losses.ByLanguage(row.make(), temperatures={"sw": 1.5})
    value = loss(TEACHER, STUDENT, languages=np.array(["sw"] * 4), **options)
    assert float(value) == pytest.approx(float(plain(TEACHER, STUDENT, **options)), rel=1e-5)


def test_weights_alone_work_for_any_loss():
    loss = keras_kd.losses.ByLanguage(keras_kd.losses.NormalizedKD(reduction=None), weights={0: 2.0, 1: 0.5})
    values = loss(TEACHER, STUDENT, languages=np.array([0, 1, 1, 0]), labels=LABELS)
    plain = keras_kd.losses.NormalizedKD(reduction=None)(TEACHER, STUDENT, labels=LABELS)
    np.testing.assert_allclose(values, plain * np.array([2.0, 0.5, 0.5, 2.0]), rtol=1e-6)


def test_masked_tokens_of_sequences_are_left_out():
    teacher, student = (np.stack([logits, logits[::-1] * 0.5]) for logits in (TEACHER, STUDENT))
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    masked = set_mask(tf.constant(student), tf.constant(mask))
    values = expected(["sw", "en"], teacher, student)
    value = by_language()(teacher, masked, languages=np.array(["sw", "en"]))
    assert float(value) == pytest.approx(values[mask].mean(), rel=1e-6)


def test_inside_a_distiller_the_language_is_an_entry_of_x(tmp_path):
    teacher, student = classifier(16), classifier(4)
    data, x = batch()
    logits = [model.predict(x["features"], verbose=0).astype("float64") for model in (teacher, student)]
    distiller = keras_kd.Distiller(teacher, student, by_language())
    distiller.compile("sgd", crossentropy())
    assert distiller.fit(data, verbose=0).history["soft_labels"][0] == pytest.approx(
        expected(x["language"], *logits).mean(), rel=1e-4
    )
    assert "soft_labels_weight" in distiller.hyperparameters
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher)
    assert (
        loaded.distillation_losses[0].temperatures == TEMPERATURES and loaded.distillation_losses[0].weights == WEIGHTS
    )
    assert loaded.fit(data, verbose=0).history == distiller.fit(data, verbose=0).history


def test_integers_run_under_xla():
    teacher, student = classifier(16), classifier(4)
    x = {"features": np.random.default_rng(0).normal(size=(12, 8)).astype("float32"), "language": np.arange(12) % 2}
    loss = keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels(), temperatures={0: 1.0, 1: 5.0})
    values = []
    for jit_compile in (False, True):
        distiller = keras_kd.Distiller(teacher, keras.models.clone_model(student), loss)
        distiller.student.set_weights(student.get_weights())
        distiller.compile("sgd", None, jit_compile=jit_compile)
        values.append(distiller.fit(x, batch_size=12, verbose=0).history["soft_labels"][0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_language_without_an_entry_is_named():
    with pytest.raises(ValueError, match=r"weights must have an entry for each language .*; it has en, fi, sw, not de"):
        keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels(), weights=WEIGHTS)(
            TEACHER, STUDENT, languages=np.array(["en", "de", "de", "fi"])
        )
    student = classifier(4)
    distiller = keras_kd.Distiller(
        classifier(16), student, keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels(), weights={"en": 1.0})
    )
    distiller.compile("sgd", crossentropy())
    weights = student.get_weights()
    with pytest.raises(ValueError, match=r"for each language in the batch; it has en, not (sw|fi)\.$"):
        distiller.fit(batch()[0], verbose=0)
    np.testing.assert_array_equal(student.get_weights()[0], weights[0])


def test_a_batch_without_languages_is_refused():
    distiller = keras_kd.Distiller(dense_model(16, 5), dense_model(4, 5), by_language())
    distiller.compile("sgd", None)
    with pytest.raises(ValueError, match=r"soft_labels needs each example's language: x must be a dict with the entry"):
        distiller.fit(np.zeros((4, 8), "float32"), verbose=0)
    with pytest.raises(ValueError, match=r"soft_labels needs each example's language, got none\. Pass languages="):
        by_language()(TEACHER, STUDENT)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels()),
            ValueError,
            "give temperatures, weights or both",
        ),
        (
            lambda: keras_kd.losses.ByLanguage("soft", weights={"en": 1.0}),
            TypeError,
            "loss must be a keras_kd.losses.DistillationLoss",
        ),
        (lambda: by_language(weights={"en": 1.0}), ValueError, r"same languages; only one has \['fi', 'sw'\]"),
        (
            lambda: by_language(keras_kd.losses.LogitsMSE()),
            ValueError,
            "temperatures need a loss .* logits_mse is not one",
        ),
        (lambda: by_language(keras_kd.losses.NormalizedKD()), ValueError, "temperatures need a loss whose"),
        (
            lambda: by_language(keras_kd.losses.SoftLabels(standardize=True)),
            ValueError,
            "temperatures need a loss whose",
        ),
        (
            lambda: by_language(temperatures={**TEMPERATURES, "en": 0.0}),
            ValueError,
            r"temperatures\['en'\] must be > 0",
        ),
        (lambda: by_language(weights={**WEIGHTS, "en": "1"}), TypeError, r"weights\['en'\] must be >= 0 \(a number\)"),
        (
            lambda: keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels(), weights={"en": 1.0, 2: 1.0}),
            TypeError,
            "weights must hold languages that are all str or all int",
        ),
        (
            lambda: by_language(keras_kd.losses.SoftLabels(reduction="mean_with_sample_weight")),
            ValueError,
            "loss must not divide by the sample weights",
        ),
    ],
)
def test_bad_tables_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
