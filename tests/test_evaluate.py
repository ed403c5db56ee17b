"""evaluate: values from scikit-learn and by hand, intervals from explicit resamples and the textbook, bad input."""

import csv
import json
import math
import time

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from conftest import dense_model
from formulas import calibration_error, softmax

from keras_kd.evaluation import Estimate, Evaluation, evaluate
from keras_kd.evaluation.examples import class_indices, language_rows
from keras_kd.evaluation.predictions import are_probabilities, confidence, divergence, predictions_from
from keras_kd.evaluation.scores import OVERALL, bootstrap_scores, resampling_weights, summarize
from keras_kd.metrics import ExpectedCalibrationError

CLASSES = 3


def model_of(name, names, classes=CLASSES):
    """A model whose outputs are the input of the given name: tests choose every output by choosing the data."""
    inputs = {each: keras.Input((classes,), name=each) for each in names}
    return keras.Model(inputs, keras.layers.Identity()(inputs[name]))


def evaluate_outputs(outputs, labels, **options):
    """Evaluate models with the given outputs, {model name: (examples, classes)}."""
    keys = {name: f"in_{i}" for i, name in enumerate(outputs)}
    x = {keys[name]: np.asarray(array, "float32") for name, array in outputs.items()}
    models = {name: model_of(keys[name], list(x), np.shape(outputs[name])[1]) for name in outputs}
    options = {"latency": False, "bootstrap": 200, **options}
    return evaluate(models, (x, np.asarray(labels)), **options)


@pytest.fixture(scope="module")
def noisy():
    """Logits of three models for 240 examples in four languages.

    In language "sw" no label is of class 2, and "a" never chooses it either, while the others do.
    """
    rng = np.random.default_rng(7)
    labels = rng.integers(CLASSES, size=240)
    languages = np.array(["de", "en", "fi", "sw"])[rng.integers(4, size=240)]
    labels[languages == "sw"] %= 2
    clean = 2.0 * np.eye(CLASSES)[labels]
    outputs = {name: clean + s * rng.normal(size=clean.shape) for name, s in [("teacher", 1), ("a", 2), ("b", 3)]}
    swahili = languages == "sw"
    outputs["a"][swahili, 2] = outputs["a"][swahili].min(axis=1) - 1
    assert (outputs["b"][swahili].argmax(axis=1) == 2).any()
    outputs = {name: array.astype("float32") for name, array in outputs.items()}
    for array in (*outputs.values(), labels, languages):
        array.flags.writeable = False  # all tests share them
    return outputs, labels, languages


# --- Values ---------------------------------------------------------------------------------------------------------


def test_four_examples_by_hand():
    # Labels 0 0 1 1. The teacher predicts 0 0 1 1, the student 0 1 1 1 with logits (0, ln 3) or (ln 3, 0).
    high = math.log(3)
    teacher = [[high, 0], [high, 0], [0, high], [0, high]]
    student = [[high, 0], [0, high], [0, high], [0, high]]
    evaluation = evaluate_outputs({"teacher": teacher, "student": student}, [0, 0, 1, 1])
    assert evaluation.score("student", "accuracy").value == 0.75
    # F1 of class 0: precision 1, recall 1/2 -> 2/3; of class 1: precision 2/3, recall 1 -> 4/5.
    assert evaluation.score("student", "macro_f1").value == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert evaluation.score("student", "agreement").value == 0.75
    # All confidences are 3/4, and so is the share that is right; the teacher is right every time.
    assert evaluation.score("student", "ece").value == pytest.approx(0.0, abs=1e-7)
    assert evaluation.score("teacher", "ece").value == pytest.approx(0.25)
    # One example of four with p = (3/4, 1/4), q = (1/4, 3/4): KL = (3/4 - 1/4) ln 3.
    assert evaluation.score("student", "kl").value == pytest.approx(0.5 * math.log(3) / 4, rel=1e-6)
    assert evaluation.score("student", "kl").examples == 4
    assert evaluation.score("teacher", "agreement") == Estimate(1.0, 1.0, 1.0, 4)
    assert evaluation.score("teacher", "kl") == Estimate(0.0, 0.0, 0.0, 4)


def test_every_language_equals_scikit_learn(noisy):
    outputs, labels, languages = noisy
    evaluation = evaluate_outputs(outputs, labels, languages=languages, bootstrap=0)
    assert evaluation.languages == ("de", "en", "fi", "sw")
    for language in (OVERALL, *evaluation.languages):
        rows = np.ones(len(labels), bool) if language == OVERALL else languages == language
        p = softmax(outputs["teacher"][rows])
        for name, logits in outputs.items():
            predicted = logits[rows].argmax(axis=1)
            q = softmax(logits[rows])
            expected = {
                "accuracy": sklearn.metrics.accuracy_score(labels[rows], predicted),
                "macro_f1": sklearn.metrics.f1_score(labels[rows], predicted, average="macro"),
                "ece": calibration_error(labels[rows], q),
                "agreement": np.mean(predicted == p.argmax(axis=1)),
                "kl": np.mean(np.sum(p * np.log(p / q), axis=1)),
            }
            for metric, value in expected.items():
                assert evaluation.score(name, metric, language=language).value == pytest.approx(value, abs=1e-9)
            assert evaluation.score(name, language=language).examples == rows.sum()


def test_each_model_reads_the_entries_named_after_its_inputs():
    """Two models of one input each on a dict that holds both, as teacher and student with inputs of their own do."""
    right, wrong = np.eye(2, dtype="float32"), np.eye(2, dtype="float32")[::-1]
    models = {"teacher": model_of("a", ["a"], 2), "student": model_of("b", ["b"], 2)}
    evaluation = evaluate(models, ({"a": right, "b": wrong}, np.array([0, 1])), bootstrap=0)
    assert evaluation.score("teacher", "accuracy").value == 1.0
    assert evaluation.score("student", "accuracy").value == 0.0
    assert evaluation.score("student", "agreement").value == 0.0


def test_mean_over_languages_weighs_languages_alike():
    # "en" has three examples, all right; "sw" has one, wrong.
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    evaluation = evaluate_outputs({"m": [right, right, right, wrong]}, [0, 0, 0, 0], languages=["en", "en", "en", "sw"])
    assert evaluation.score("m", "accuracy").value == 0.75
    assert evaluation.score("m", "accuracy", language="mean over languages") == Estimate(0.5, 0.5, 0.5, 4)


def test_group_means(noisy):
    outputs, labels, languages = noisy
    groups = {"labelled": ["en", "de"], "unlabelled": ["sw"]}
    evaluation = evaluate_outputs(outputs, labels, languages=languages, groups=groups)
    by_language = [evaluation.score("a", language=language).value for language in ("en", "de")]
    mean = evaluation.score("a", language="mean of labelled")
    assert mean.value == pytest.approx(np.mean(by_language))
    assert mean.low < mean.value < mean.high
    assert mean.examples == np.isin(languages, ["en", "de"]).sum()
    assert evaluation.score("a", language="mean of unlabelled") == evaluation.score("a", language="sw")


def test_f1_of_each_class_equals_scikit_learn(noisy):
    outputs, labels, _ = noisy
    evaluation = evaluate_outputs(outputs, labels, class_names=["place", "script", "day"])
    predicted = outputs["b"].argmax(axis=1)
    expected = sklearn.metrics.f1_score(labels, predicted, average=None)
    for name, value in zip(["place", "script", "day"], expected, strict=True):
        score = evaluation.score("b", f"f1:{name}")
        assert score.value == pytest.approx(value)
        assert score.low < value < score.high


def test_probabilities_and_logits_give_the_same_divergence(noisy):
    outputs, labels, _ = noisy
    logits = evaluate_outputs(outputs, labels)
    probabilities = evaluate_outputs({name: softmax(array) for name, array in outputs.items()}, labels)
    mixed = evaluate_outputs({**outputs, "a": softmax(outputs["a"])}, labels)
    assert {facts.outputs for facts in logits.models.values()} == {"logits"}
    assert {facts.outputs for facts in probabilities.models.values()} == {"probabilities"}
    assert [facts.outputs for facts in mixed.models.values()] == ["logits", "probabilities", "logits"]
    for other in (probabilities, mixed):
        for metric in ("kl", "ece"):
            assert other.score("a", metric).value == pytest.approx(logits.score("a", metric).value, rel=1e-5)


def test_quantized_softmax_counts_as_probabilities_and_stays_finite(noisy):
    probabilities = softmax(4 * noisy[0]["a"])
    rounded = (np.clip(np.round(probabilities * 256), 0, 255) / 256).astype("float32")
    assert (rounded == 0).any() and (np.abs(rounded.sum(axis=1) - 1) > 1e-3).any()
    assert are_probabilities(rounded)
    assert 0 <= divergence(probabilities, rounded).max() < 0.05


@pytest.mark.parametrize("from_logits", [True, False])
def test_the_calibration_error_is_that_of_the_metric(noisy, from_logits):
    outputs, labels, languages = noisy
    outputs = outputs if from_logits else {name: softmax(array) for name, array in outputs.items()}
    evaluation = evaluate_outputs(outputs, labels, languages=languages, bootstrap=0)
    for language in (OVERALL, "sw"):
        rows = np.ones(len(labels), bool) if language == OVERALL else languages == language
        metric = ExpectedCalibrationError(from_logits=from_logits)
        metric.update_state(labels[rows], outputs["b"][rows])
        assert evaluation.score("b", "ece", language=language).value == pytest.approx(float(metric.result()), abs=1e-6)


def test_confidence_in_blocks_of_rows():
    logits = np.random.default_rng(0).normal(size=(9000, 3)).astype("float32")
    np.testing.assert_allclose(confidence(logits), softmax(logits).max(axis=1), rtol=1e-12)


def test_confidence_of_probabilities_is_taken_as_it_is():
    """An 8-bit softmax drops small probabilities: what is left is what an application sees."""
    rounded = np.array([[0.75, 0.123, 0.123], [0.5, 0.25, 0.25]], "float32")
    np.testing.assert_array_equal(confidence(rounded), [0.75, 0.5])


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8], [1.0, 0.9]], False),  # two sigmoids
        ([[-0.1, 1.1], [0.5, 0.5]], False),  # sums to 1, but negative
        ([[2.0, -1.0], [0.5, 0.5]], False),
    ],
)
def test_are_probabilities(outputs, expected):
    assert are_probabilities(np.array(outputs, "float32")) is expected


def test_divergence_of_huge_logits_is_finite():
    # p = (1, 0) and q = (0, 1) up to e^-20000: KL = 20000.
    teacher, model = np.array([[1e4, -1e4]], "float32"), np.array([[-1e4, 1e4]], "float32")
    np.testing.assert_allclose(divergence(teacher, model), [20000.0])


def test_divergence_in_blocks_of_rows():
    rng = np.random.default_rng(0)
    teacher, model = rng.normal(size=(2, 9000, 3)).astype("float32")
    p, q = softmax(teacher), softmax(model)
    np.testing.assert_allclose(divergence(teacher, model), (p * np.log(p / q)).sum(axis=1), rtol=1e-9)


# --- Intervals ------------------------------------------------------------------------------------------------------


def test_bootstrap_equals_scikit_learn_on_explicit_resamples(noisy):
    outputs, labels, languages = noisy
    predictions = [predictions_from(outputs[name], outputs["teacher"]) for name in ("a", "b")]
    rows_by_language = language_rows(languages, labels >= 0)
    names = ["place", "script", "day"]
    scores = bootstrap_scores(labels, predictions, rows_by_language, CLASSES, resamples=25, seed=3, class_names=names)
    generator = np.random.default_rng(3)
    drawn = {
        language: [np.repeat(rows, weights) for weights in resampling_weights(len(rows), 25, generator)]
        for language, rows in rows_by_language.items()
    }
    drawn[OVERALL] = [np.concatenate(parts) for parts in zip(*drawn.values(), strict=True)]
    for language, resamples in drawn.items():
        for model, prediction in enumerate(predictions):
            for i, rows in enumerate(resamples):
                found = {metric: values[model, i] for metric, values in scores[language].items()}
                probabilities = softmax(outputs["ab"[model]])
                expected = explicit_scores(labels, prediction, probabilities, rows, language == OVERALL, names)
                assert found == pytest.approx(expected)


def explicit_scores(labels, prediction, probabilities, rows, by_class, names):
    y, predicted = labels[rows], prediction.predicted[rows]
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(y, predicted),
        "macro_f1": sklearn.metrics.f1_score(y, predicted, average="macro"),
        "ece": calibration_error(y, probabilities[rows]),
        "agreement": prediction.agreed[rows].mean(),
        "kl": prediction.divergence[rows].mean(),
    }
    if by_class:
        f1 = sklearn.metrics.f1_score(y, predicted, average=None, labels=range(CLASSES))
        expected |= {f"f1:{name}": value for name, value in zip(names, f1, strict=True)}
    return expected


def test_resampling_weights_are_multinomial():
    weights = resampling_weights(50, 4000, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 50).all()
    # Counts of one example: mean 1, variance 1 - 1/50.
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.07)
    np.testing.assert_allclose(weights.var(), 1 - 1 / 50, rtol=0.02)


def test_accuracy_interval_is_the_binomial_one():
    labels = np.zeros(2000, int)
    outputs = np.tile([1.0, 0.0], (2000, 1))
    outputs[:600] = [0.0, 1.0]
    score = evaluate_outputs({"m": outputs}, labels, bootstrap=2000).score("m", "accuracy")
    spread = 1.96 * math.sqrt(0.7 * 0.3 / 2000)
    assert score.value == pytest.approx(0.7)
    assert score.low == pytest.approx(0.7 - spread, abs=0.002)
    assert score.high == pytest.approx(0.7 + spread, abs=0.002)


def test_intervals_of_the_calibration_error_are_mirrored_at_its_value(noisy):
    """With the same seed the resamples are those of `bootstrap_scores`; only where they end up differs."""
    outputs, labels, languages = noisy
    evaluation = evaluate_outputs(outputs, labels, languages=languages, bootstrap=300, seed=4)
    predictions = [predictions_from(outputs[name], outputs["teacher"]) for name in outputs]
    rows_by_language = language_rows(languages, labels >= 0)
    scores = bootstrap_scores(labels, predictions, rows_by_language, CLASSES, resamples=300, seed=4)
    for language in (OVERALL, "fi"):
        for model, name in enumerate(outputs):
            value, low, high, _ = evaluation.score(name, "ece", language=language)
            bottom, top = np.percentile(scores[language]["ece"][model], [2.5, 97.5])
            assert (low, high) == pytest.approx((max(0, 2 * value - top), max(0, 2 * value - bottom)))
            assert evaluation.score(name, "accuracy", language=language)[1:3] == pytest.approx(
                tuple(np.percentile(scores[language]["accuracy"][model], [2.5, 97.5]))
            )
        gap = evaluation.difference("a", "b", "ece", language=language)
        bottom, top = np.percentile(scores[language]["ece"][1] - scores[language]["ece"][2], [2.5, 97.5])
        assert gap[1:3] == pytest.approx((2 * gap.value - top, 2 * gap.value - bottom))


def test_intervals_of_the_calibration_error_cover_the_true_one():
    """Of 60 samples of 300 examples: percentiles of the resamples as they are cover it in about a third."""
    rng = np.random.default_rng(0)

    def sample(examples):
        logits = 1.5 * rng.normal(size=(examples, CLASSES))
        labels = (rng.random((examples, 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1)
        return 1.3 * logits, labels  # surer than it should be

    logits, labels = sample(400_000)
    truth, covered = calibration_error(labels, softmax(logits)), 0
    for _ in range(60):
        logits, labels = sample(300)
        scores, _ = summarize(
            {"m": predictions_from(logits)}, labels, {}, {}, classes=CLASSES, class_names=(), bootstrap=200, seed=0
        )
        covered += scores["m", OVERALL, "ece"].low <= truth <= scores["m", OVERALL, "ece"].high
    assert covered >= 45


def test_blocks_of_resamples_are_all_different_and_as_wide(noisy, monkeypatch):
    outputs, labels, languages = noisy
    whole = evaluate_outputs(outputs, labels, languages=languages, bootstrap=1000).score("a")
    monkeypatch.setattr("keras_kd.evaluation.scores._DRAWS_AT_A_TIME", 70 * len(labels))
    blocks = evaluate_outputs(outputs, labels, languages=languages, bootstrap=1000).score("a")
    assert blocks.value == whole.value
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), abs=0.012)
    rows_by_language = language_rows(languages, labels >= 0)
    scores = bootstrap_scores(
        labels, [predictions_from(outputs["a"])], rows_by_language, CLASSES, resamples=150, seed=0
    )
    assert scores[OVERALL]["accuracy"].shape == (1, 150)
    assert not np.array_equal(scores[OVERALL]["accuracy"][:, :70], scores[OVERALL]["accuracy"][:, 70:140])


def test_same_seed_same_intervals(noisy):
    outputs, labels, languages = noisy
    first, again, other = (evaluate_outputs(outputs, labels, languages=languages, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.score("a") != other.score("a")
    # Resamples depend on the data and the seed, not on which models are compared.
    alone = evaluate_outputs({"a": outputs["a"]}, labels, languages=languages, seed=5)
    assert alone.score("a") == first.score("a")


def test_difference_is_paired(noisy):
    outputs, labels, languages = noisy
    twin = outputs["a"].copy()
    wrong = np.flatnonzero(twin.argmax(axis=1) != labels)[:5]
    twin[wrong] = np.eye(CLASSES)[labels[wrong]]  # as good as "a", and five examples better
    evaluation = evaluate_outputs({"a": outputs["a"], "twin": twin}, labels, languages=languages, bootstrap=1000)
    gap = evaluation.difference("twin", "a", "accuracy")
    own = evaluation.score("a", "accuracy")
    assert gap.value == pytest.approx(5 / 240)
    assert 0 < gap.low < gap.value < gap.high < 11 / 240
    assert evaluation.score("twin", "accuracy").low < own.high  # the models' own intervals overlap all the same
    opposite = evaluation.difference("a", "twin", "accuracy")
    assert opposite == Estimate(-gap.value, -gap.high, -gap.low, 240)
    assert evaluation.difference("a", "a") == Estimate(0.0, 0.0, 0.0, 240)
    by_language = evaluation.difference("twin", "a", "macro_f1", language="mean over languages")
    values = [evaluation.score(name, language="mean over languages").value for name in ("twin", "a")]
    assert by_language.value == pytest.approx(values[0] - values[1])


def test_no_bootstrap(noisy):
    outputs, labels, _ = noisy
    evaluation = evaluate_outputs(outputs, labels, bootstrap=0)
    assert evaluation.score("a")[1:3] == (None, None)
    assert evaluation.difference("b", "a")[1:3] == (None, None)
    assert evaluation.difference("a", "a")[1:3] == (None, None)
    assert "[" not in str(evaluation)


def test_a_thousand_resamples_of_thirty_languages_take_seconds():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=10_000)
    rows_by_language = language_rows([f"l{i}" for i in rng.integers(30, size=10_000)], labels >= 0)
    teacher = rng.normal(size=(10_000, 4))
    predictions = [predictions_from(teacher + rng.normal(size=teacher.shape), teacher) for _ in range(4)]
    start = time.perf_counter()
    scores = bootstrap_scores(labels, predictions, rows_by_language, 4, resamples=1000, seed=0)
    assert time.perf_counter() - start < 10  # 1 s on two cores
    assert scores["l7"]["macro_f1"].shape == (4, 1000)


# --- Data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_models():
    """A teacher and a student, 8 features to 3 classes."""
    return {"teacher": dense_model(16, 3), "student": dense_model(4, 3)}


def test_arrays_datasets_and_label_forms_agree(two_models, data):
    x, y = data
    languages = ["en" if i % 3 else "sw" for i in range(len(y))]
    options = {"languages": languages, "latency": False, "bootstrap": 20}
    expected = evaluate(two_models, (x, y), **options)
    weights = np.linspace(0, 9, len(y)).astype("float32")  # not used
    forms = {
        "one-hot": (x, np.eye(3)[y]),
        "column": (x, y[:, None]),
        "float labels": (x, y.astype("float32")),
        "weights": (x, y, weights),
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
        "weighted dataset": tf.data.Dataset.from_tensor_slices((x, np.eye(3)[y], weights)).batch(10),
    }
    for form, examples in forms.items():
        assert evaluate(two_models, examples, **options).scores == expected.scores, form
    predicted = two_models["student"].predict(x, verbose=0).argmax(axis=1)
    assert expected.score("student", "accuracy").value == pytest.approx(np.mean(predicted == y))


@pytest.mark.parametrize("form", ["integers", "column", "floats", "one-hot", "dataset"])
def test_unlabelled_examples_are_left_out_of_every_score(noisy, form):
    """A language without labels, and a third of the others': the scores are those of the labelled examples alone."""
    outputs, labels, languages = noisy
    labelled = (np.arange(len(labels)) % 3 > 0) & (languages != "fi")
    y = np.where(labelled, labels, np.where(np.arange(len(labels)) % 2, -1, -100))
    if form == "one-hot":
        y = np.eye(CLASSES)[labels] * labelled[:, None]
    y = {"column": y[:, None], "floats": y.astype("float32")}.get(form, y)
    options = {"groups": {"some": ["en", "sw"]}, "class_names": ["place", "script", "day"], "bootstrap": 20}
    if form == "dataset":
        x = np.concatenate([outputs["teacher"], outputs["a"]], axis=1)
        inputs = keras.Input((2 * CLASSES,))
        models = {
            "teacher": keras.Model(inputs, keras.layers.Identity()(inputs[:, :CLASSES])),
            "a": keras.Model(inputs, keras.layers.Identity()(inputs[:, CLASSES:])),
        }
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
        found = evaluate(models, data, languages=languages, latency=False, **options)
    else:
        found = evaluate_outputs({name: outputs[name] for name in ("teacher", "a")}, y, languages=languages, **options)
    kept = {name: outputs[name][labelled] for name in ("teacher", "a")}
    expected = evaluate_outputs(kept, labels[labelled], languages=languages[labelled], **options)
    assert found.languages == ("de", "en", "sw")
    assert found.scores == expected.scores
    assert found.differences == expected.differences
    assert found.score("a", "kl").examples == labelled.sum()


def test_a_group_of_a_language_without_labels_is_refused_before_any_model_runs():
    with pytest.raises(ValueError, match=r"\['sw'\] .* labelled example"):
        evaluate_outputs({"m": LOGITS}, [0, -1], languages=["en", "sw"], groups={"g": ["sw"]})


def test_dataset_of_dicts_is_read_once_and_in_order():
    reads = []

    def examples():
        reads.append(1)
        for i in range(10):
            yield {"a": np.eye(2)[i % 2], "b": np.eye(2)[0]}, i % 2

    row = tf.TensorSpec((2,))
    dataset = tf.data.Dataset.from_generator(
        examples, output_signature=({"a": row, "b": row}, tf.TensorSpec((), tf.int32))
    )
    models = {name: model_of(name, ["a", "b"], 2) for name in ("a", "b")}
    languages = [b"even", b"odd"] * 5  # bytes, as TensorFlow gives them
    evaluation = evaluate(models, dataset.batch(4), languages=languages, latency=False, bootstrap=0)
    assert len(reads) == 1
    assert evaluation.score("a", "accuracy").value == 1.0
    assert evaluation.score("b", "accuracy", language="even").value == 1.0
    assert evaluation.score("b", "accuracy", language="odd").value == 0.0


def test_caller_keeps_models_and_data_as_they_were(two_models, data):
    x, y = data
    before = [w.copy() for w in two_models["teacher"].get_weights()], x.copy(), y.copy()
    evaluate(two_models, (x, y), latency=False, bootstrap=5)
    after = two_models["teacher"].get_weights(), x, y
    for old, new in zip([*before[0], *before[1:]], [*after[0], *after[1:]], strict=True):
        np.testing.assert_array_equal(old, new)
    assert two_models["teacher"].trainable


# --- Models, files ---------------------------------------------------------------------------------------------------


def test_files_beside_the_model_they_came_from(two_models, data, tmp_path):
    x, y = data
    student = two_models["student"]
    student.save(tmp_path / "student.keras")
    student.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    student.export(tmp_path / "student.tflite", format="litert", verbose=False)
    models = {
        **two_models,
        "keras file": tmp_path / "student.keras",
        "saved model": str(tmp_path / "saved"),
        "litert": tmp_path / "student.tflite",
    }
    evaluation = evaluate(models, (x, y), bootstrap=50)
    assert list(evaluation.models) == list(models)
    for name in ("keras file", "saved model", "litert"):
        gap = evaluation.difference(name, "student", "kl")
        assert abs(gap.value) < 1e-5
        assert evaluation.difference(name, "student", "agreement").value == 0
        assert evaluation.models[name].size_bytes > 0
    assert evaluation.models["litert"].size_bytes == (tmp_path / "student.tflite").stat().st_size
    assert evaluation.models["student"].parameters == 8 * 4 + 4 + 4 * 3 + 3
    assert all(facts.latency_ms > 0 for facts in evaluation.models.values())


def test_without_a_teacher_there_is_no_agreement(two_models, data):
    for models, options in [({"student": two_models["student"]}, {}), (two_models, {"teacher": None})]:
        evaluation = evaluate(models, data, latency=False, bootstrap=10, **options)
        assert evaluation.teacher is None
        assert evaluation.metrics == ("accuracy", "macro_f1", "ece")
        assert "agreement" not in str(evaluation)
        with pytest.raises(ValueError, match="There was no teacher to compare with"):
            evaluation.score("student", "kl")


def test_teacher_may_have_another_name_and_place(two_models, data):
    models = {"small": two_models["student"], "large": two_models["teacher"]}
    evaluation = evaluate(models, data, teacher="large", latency=False, bootstrap=10)
    assert list(evaluation.models) == ["small", "large"]
    assert evaluation.score("large", "agreement").value == 1.0
    assert evaluation.score("small", "kl").value > 0


# --- The result ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(noisy):
    outputs, labels, languages = noisy
    return evaluate_outputs(
        outputs,
        labels,
        languages=languages,
        groups={"labelled [1]": ["en", "de"]},
        class_names=["place", "script", "day"],
    )


def test_an_estimate_prints_as_a_number_with_its_interval():
    assert str(Estimate(0.1234, 0.1, 0.25, 7)) == "0.1234 [0.1000, 0.2500]"
    assert str(Estimate(-0.5, None, None, 7)) == "-0.5000"


def test_json_round_trip(evaluation, tmp_path):
    path = tmp_path / "new folder" / "evaluation.json"
    evaluation.to_json(path)
    again = Evaluation.from_json(path)
    assert again == evaluation
    assert again.difference("b", "a") == evaluation.difference("b", "a")
    assert str(again) == str(evaluation)
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_from_json_refuses_other_files(tmp_path):
    for content in ({"accuracy": 1.0}, [1, 2]):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"must be a file written by Evaluation\.to_json"):
            Evaluation.from_json(tmp_path / "other.json")


def test_csv_is_long(evaluation, tmp_path):
    evaluation.to_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "language", "metric", "value", "low", "high", "examples"]
    # 3 models x (4 languages + 2 means + overall) x 5 metrics, and 3 classes each overall.
    assert len(rows) == 3 * 7 * 5 + 3 * 3
    found = [r for r in rows if (r["model"], r["language"], r["metric"]) == ("a", "sw", "kl")]
    score = evaluation.score("a", "kl", language="sw")
    assert [float(found[0][name]) for name in ("value", "low", "high")] == [score.value, score.low, score.high]
    assert int(found[0]["examples"]) == score.examples


def test_tables_show_every_score(evaluation):
    text = str(evaluation)
    for model in evaluation.models:
        score = evaluation.score(model, "accuracy")
        assert f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]" in text
    lines = {line.split("  ")[1].strip(): line for line in text.splitlines() if line.startswith("  ")}
    for row in evaluation.rows:
        score = evaluation.score("b", language=row)
        assert f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]" in lines[row]
        assert f"{score.examples}" in lines[row]
    assert "labelled [1]" in lines["de"] and "labelled [1]" not in lines["sw"]
    assert {"place", "script", "day"} <= set(lines)
    assert "\x1b" not in text


def test_print_chooses_the_metric_and_fits_a_narrow_console(evaluation):
    import io

    import rich.console

    page = io.StringIO()
    evaluation.print("kl", console=rich.console.Console(file=page, width=80))
    text = page.getvalue()
    assert "KL, nats, by language" in text
    assert f"{evaluation.score('b', 'kl', language='sw').value:.3f}" in text
    assert "…" not in text and "0.0, " not in text
    assert max(map(len, text.splitlines())) <= 80
    with pytest.raises(ValueError, match="metric must be one of"):
        evaluation.print("f1:place")  # by class there is no table by language


def test_plot_draws_every_row_and_model(evaluation, tmp_path):
    figure = evaluation.plot(tmp_path / "by language.png")
    assert (tmp_path / "by language.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.get_yticklabels()} == set(evaluation.rows)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(evaluation.models)
    drawn = {
        points.get_label(): points.get_offsets()[:, 0] for points in axes.collections if points.get_label()[0] != "_"
    }
    rows = [text.get_text() for text in axes.get_yticklabels()]
    expected = [100 * evaluation.score("b", language=row).value for row in rows]
    np.testing.assert_allclose(drawn["b"], expected)
    labelled = [evaluation.score("teacher", language=row).value for row in rows if row in ("de", "en")]
    assert labelled == sorted(labelled, reverse=True)


def test_the_table_of_scores_fits_a_console_of_120_columns(evaluation):
    lines = str(evaluation).splitlines()
    table = lines[: lines.index("size and latency")]
    assert any("ECE" in line for line in table)
    assert max(map(len, table)) <= 120


def test_plot_of_calibration_puts_the_lowest_first(evaluation):
    rows = [text.get_text() for text in evaluation.plot(metric="ece").figure.axes[0].get_yticklabels()]
    errors = [evaluation.score("teacher", "ece", language=row).value for row in rows if row in ("de", "en")]
    assert errors == sorted(errors)


def test_a_file_from_before_the_calibration_error_can_still_be_read(evaluation, tmp_path):
    evaluation.to_json(tmp_path / "new.json")
    content = json.loads((tmp_path / "new.json").read_text())
    content["metrics"].remove("ece")
    for records in ("scores", "differences"):
        content[records] = [record for record in content[records] if record["metric"] != "ece"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = Evaluation.from_json(tmp_path / "old.json")
    assert "ECE" not in str(old) and "macro-F1" in str(old)
    assert old.score("a") == evaluation.score("a")


def test_plot_of_agreement_leaves_the_teacher_out(evaluation, tmp_path):
    figure = evaluation.plot(tmp_path / "agreement.svg", metric="agreement")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert "<svg" in (tmp_path / "agreement.svg").read_text()


def test_plot_without_languages_or_intervals(noisy):
    outputs, labels, _ = noisy
    figure = evaluate_outputs(outputs, labels, bootstrap=0, class_names=["p", "s", "d"]).plot(metric="f1:s")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["overall"]
    assert figure.axes[0].get_xlabel() == "F1 of s, %"


def test_whoever_reads_the_older_file_reads_all_of_it(evaluation, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with path.open() as reader:
        evaluation.to_json(path)
        assert reader.read() == "old"
    assert Evaluation.from_json(path) == evaluation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "c"}, r"model must be one of \['teacher', 'a', 'b'\], got 'c'"),
        ({"metric": "f1"}, r"metric must be one of \['accuracy', 'macro_f1', 'ece', 'agreement', 'kl', 'f1:place'"),
        ({"language": "xx"}, r"language must be one of \['de', 'en', 'fi', 'sw', 'mean of labelled \[1\]'"),
        ({"metric": "f1:place", "language": "de"}, r"metric must be one of \['accuracy', .*'kl'\], got 'f1:place'"),
    ],
)
def test_unknown_names_list_the_known_ones(evaluation, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.score(**{"model": "a", **arguments})
    with pytest.raises(ValueError, match=message.replace("model must", "(model|other) must")):
        evaluation.difference("a", arguments.get("model", "b"), arguments.get("metric", "kl"), **{
            key: value for key, value in arguments.items() if key == "language"
        })  # fmt: skip


# --- Bad input -------------------------------------------------------------------------------------------------------

LOGITS = np.array([[1, 0, 0], [0, 1, 0]], "float32")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"teacher": "big"}, ValueError, r"teacher must be one of the models, \['m'\], or None, got 'big'"),
        ({"languages": ["en"]}, ValueError, "languages has 1 entries, data has 2 examples"),
        ({"languages": "en"}, TypeError, "languages must hold one string per example, got the single string 'en'"),
        ({"languages": [1, 2]}, TypeError, "languages must hold strings, got int: 1"),
        ({"languages": ["en", "overall"]}, ValueError, r"languages must not be called \['overall'\]"),
        ({"groups": {"g": ["en"]}}, ValueError, r"groups\['g'\] must list languages, out of \[\]; \['en'\]"),
        ({"languages": ["en", "de"], "groups": {"g": []}}, ValueError, r"groups\['g'\] must list .*; it is empty"),
        ({"class_names": ["a", "b"]}, ValueError, r"class_names must be 3 different names, .* got 2: \('a', 'b'\)"),
        ({"class_names": ["a", "b", "a"]}, ValueError, "class_names must be 3 different names"),
        ({"class_names": "abc"}, ValueError, r"class_names must be 3 different names, .* got 1: \('abc',\)"),
        ({"bootstrap": -1}, ValueError, "bootstrap must be >= 0, got -1"),
        ({"bootstrap": True}, TypeError, "bootstrap must be a whole number"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number >= 0, got 0.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        evaluate_outputs({"m": LOGITS}, [0, 1], **options)


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ({}, ValueError, "models must hold at least one model"),
        ([keras.Sequential()], TypeError, "models must be a dict of name to model or path, got list"),
        ({1: "a.tflite"}, TypeError, "models must have strings for names, got 1"),
        ({"m": 3}, TypeError, r"must be a keras.Model, or the path of .*, got int: 3"),
    ],
)
def test_bad_models(models, error, message):
    with pytest.raises(error, match=message):
        evaluate(models, (LOGITS, [0, 1]))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            [0, 3],
            ValueError,
            r"labels must lie in 0 … 2, for the models give 3 classes; got 3 \(smallest 0, largest 3\)",
        ),
        ([-1, 3], ValueError, r"got 3 \(smallest 3, largest 3\)"),
        ([2**32, 0], ValueError, "got 4294967296"),
        ([-1, -2], ValueError, "at least one labelled example, got 2 without a label"),
        ([[0, 0, 0], [0, 0, 0]], ValueError, "at least one labelled example, got 2 without a label"),
        ([[1, 1, 0], [0, 1, 0]], ValueError, "must be one-hot"),
        ([0], ValueError, "x.* has 2 examples, y has 1"),
        ([0.5, 1], ValueError, "whole numbers"),
        ([np.nan, 1], ValueError, "whole numbers .* or NaN"),
        ([np.inf, 1], ValueError, "whole numbers"),
        ([-np.inf, 1], ValueError, "whole numbers"),
        (np.array([2**63, 1], "uint64"), ValueError, "whole numbers"),
        (["a", "b"], TypeError, "y must be integer labels or one-hot rows, got dtype <U1"),
        ([[0.5, 0.5, 0], [0, 1, 0]], ValueError, "must be one-hot.* For soft labels, pass numpy.argmax"),
        ([[0, 1], [1, 0]], ValueError, r"one-hot, \(examples, 3\), got shape \(2, 2\)"),
        (1, ValueError, "one row per example, got a scalar"),
        ([[0], [1, 2]], ValueError, "y must be an array, got rows of different shapes"),
    ],
)
def test_bad_labels(labels, error, message):
    models = {"m": model_of("x", ["x"])}
    with pytest.raises(error, match=message):
        evaluate(models, ({"x": LOGITS}, labels), latency=False)


def test_no_examples():
    models = {"m": model_of("x", ["x"])}
    empty = np.zeros((0, 3), "float32"), np.zeros(0, int)
    for data in (empty, tf.data.Dataset.from_tensor_slices(empty).batch(4)):
        with pytest.raises(ValueError, match="data must hold at least one example, got"):
            evaluate(models, data)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (lambda d: d, TypeError, r"data must give batches of dense tensors, .* dataset.batch\(256\) makes batches"),
        (lambda d: d.batch(2).repeat(), ValueError, "data never ends"),
        (lambda d: d.map(lambda x, y: x), TypeError, "data must be a dataset of "),
        (lambda d: d.map(lambda x, y: (x, {"y": y})).batch(2), TypeError, "a dict of them, y a tensor, got"),
        (
            lambda d: d.map(lambda x, y: ((x, x), y)).batch(2),
            TypeError,
            r"x a tensor or a dict of them, .* got elements of \(\(TensorSpec",
        ),
        (
            lambda d: d.map(lambda x, y: (x[: y + 1], y)).ragged_batch(2),
            TypeError,
            "batches of dense tensors, .*Ragged",
        ),
        (
            lambda d: d.enumerate().map(lambda i, e: (tf.repeat(e[0], i + 1, axis=0), e[1])).batch(1),
            ValueError,
            r"data must have batches of one shape; pad them .* size 3 .* size 6",
        ),
        (lambda d: 5, TypeError, r"data must be a tuple \(x, y\) of arrays or a batched tf.data.Dataset .*, got int"),
    ],
)
def test_bad_datasets(dataset, error, message):
    examples = dataset(tf.data.Dataset.from_tensor_slices((LOGITS, [0, 1])))
    with pytest.raises(error, match=message):
        evaluate({"m": keras.Sequential([keras.Input((3,)), keras.layers.Identity()])}, examples)


def test_models_must_give_the_same_classes():
    outputs = {"teacher": LOGITS, "student": LOGITS[:, :2]}
    with pytest.raises(ValueError, match=r"models\['teacher'\] gives 3 and models\['student'\] gives 2"):
        keys = {"teacher": "in_0", "student": "in_1"}
        inputs = {keys[name]: keras.Input((array.shape[1],), name=keys[name]) for name, array in outputs.items()}
        models = {name: keras.Model(inputs, keras.layers.Identity()(inputs[key])) for name, key in keys.items()}
        evaluate(models, ({keys[name]: array for name, array in outputs.items()}, [0, 1]), latency=False)


def test_errors_inside_a_model_name_it(two_models, data, tmp_path):
    for models in ({"m": tmp_path / "none.tflite"}, {"a": two_models["student"], "m": model_of("x", ["x"])}):
        with pytest.raises((FileNotFoundError, ValueError)) as raised:
            evaluate(models, data, latency=False)
        assert raised.value.__notes__ == ["This came from models['m']."]


def test_nan_outputs_name_the_model():
    spoilt = LOGITS.copy()
    spoilt[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"models\['b'\] gave NaN or infinite outputs for 1 of 2 examples"):
        evaluate_outputs({"a": LOGITS, "b": spoilt}, [0, 1])


@pytest.mark.parametrize(
    ("layers", "came"),
    [
        ([keras.layers.Dense(1, "sigmoid")], r"got shape \(2, 1\).*\[1 - p, p\]"),
        ([keras.layers.Reshape((3, 1))], r"got shape \(2, 3, 1\)"),
    ],
)
def test_outputs_must_be_one_row_of_classes(layers, came):
    model = keras.Sequential([keras.Input((3,)), *layers])
    with pytest.raises(ValueError, match=rf"models\['m'\] must be a classifier with one output .*{came}"):
        evaluate({"m": model}, (LOGITS, [0, 1]))


def test_several_outputs_are_refused():
    x = keras.Input((3,))
    model = keras.Model(x, {"a": keras.layers.Dense(2)(x), "b": keras.layers.Dense(2)(x)})
    with pytest.raises(ValueError, match="one output"):
        evaluate({"m": model}, (LOGITS, [0, 1]))


def test_one_hot_of_three_columns_is_not_an_index():
    np.testing.assert_array_equal(class_indices(np.eye(3)[[2, 0]]), [2, 0])
