"""evaluate_embeddings: retrieval, cosine and squared error by language."""

import keras
import numpy as np
import pytest

import keras_kd
from keras_kd.evaluation import Evaluation

LANGUAGES = ["de", "en", "sw"]
TARGETS = 40
generator = np.random.default_rng(0)
targets = generator.normal(size=(TARGETS, 16)).astype("float32")
matches = np.tile(np.arange(TARGETS), len(LANGUAGES))
languages = np.repeat(LANGUAGES, TARGETS)
noise = {"de": 0.3, "en": 0.0, "sw": 2.0}
x = (targets[matches] + [[noise[language]] for language in languages] * generator.normal(size=(120, 16))).astype("f4")


def linear(units, seed):
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(units, use_bias=False)])
    model.set_weights([np.random.default_rng(seed).normal(size=(16, units))])
    return model


MODELS = {"teacher": linear(8, 1), "student": linear(8, 2), "copy": linear(8, 1)}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors(model, data, dimensions=None):
    return unit((data @ np.array(model.weights[0]))[:, :dimensions])


@pytest.fixture(scope="module")
def evaluation():
    return keras_kd.evaluate_embeddings(
        MODELS, x, targets, matches, languages=languages, groups={"near": ["de", "en"]}, bootstrap=200, latency=False
    )


@pytest.mark.parametrize("dimensions", [None, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_scores_are_those_of_plain_numpy(name, dimensions):
    found = keras_kd.evaluate_embeddings(
        MODELS, x, targets, matches, languages=languages, dimensions=dimensions, bootstrap=0, latency=False
    )
    mine, teacher = (vectors(MODELS[model], x, dimensions) for model in (name, "teacher"))
    own, filled = (vectors(MODELS[model], targets, dimensions) for model in (name, "teacher"))
    values = {
        "retrieval": [np.argmax(row) for row in mine @ own.T] == matches,
        "retrieval_teacher": [np.argmax(row) for row in mine @ filled.T] == matches,
        "cosine": [float(a @ b) for a, b in zip(mine, teacher, strict=True)],
        "mse": ((mine - teacher) ** 2).mean(1),
    }
    for metric, expected in values.items():
        for language in LANGUAGES:
            rows = np.flatnonzero(languages == language)
            score = found.score(name, metric, language=language)
            np.testing.assert_allclose(score.value, np.mean(np.array(expected)[rows]), atol=1e-6)
            assert score.examples == TARGETS
        np.testing.assert_allclose(found.score(name, metric).value, np.mean(expected), atol=1e-6)


def test_more_noise_finds_fewer(evaluation):
    found = [evaluation.score("teacher", language=language).value for language in ("en", "de", "sw")]
    assert found[0] == 1.0 > found[1] > found[2]
    near = evaluation.score("teacher", language="mean of near").value
    np.testing.assert_allclose(near, (found[0] + found[1]) / 2)


def test_intervals_hold_the_value_and_equal_models_do_not_differ(evaluation):
    for (_, _, _), score in evaluation.scores.items():
        assert score.low - 1e-9 <= score.value <= score.high + 1e-9
    same = evaluation.difference("copy", "teacher", language="sw")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    other = evaluation.difference("teacher", "student", "retrieval_teacher")
    assert other.low > 0


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution(evaluation):
    score = evaluation.score("teacher", language="sw")
    width = 2 * 1.96 * np.sqrt(score.value * (1 - score.value) / TARGETS)
    assert 0.75 * width < score.high - score.low < 1.25 * width


def test_it_is_printed_drawn_and_stored_as_other_evaluations_are(evaluation, tmp_path):
    printed = str(evaluation)
    for part in (
        "nearest of its own, %",
        "nearest of the teacher's, %",
        "cosine",
        "MSE",
        "by language",
        "120 examples",
    ):
        assert part in printed.replace("\n", " ") or part.split(", ")[0] in printed
    assert evaluation.main_metric == "retrieval"
    evaluation.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    evaluation.plot(metric="mse")
    evaluation.to_json(tmp_path / "evaluation.json")
    assert Evaluation.from_json(tmp_path / "evaluation.json") == evaluation
    assert evaluation.models["student"].outputs == "vectors"


def test_without_a_teacher_widths_may_differ_and_models_find_by_themselves():
    found = keras_kd.evaluate_embeddings(
        {"a": linear(8, 1), "b": linear(5, 1)}, x, targets, matches, bootstrap=0, latency=False
    )
    assert found.metrics == ("retrieval",)
    assert "cosine" not in str(found).replace("by the cosine", "").replace("by cosine", "")


def test_dicts_and_files_are_read(tmp_path):
    student = keras.Model(inputs := keras.Input((16,), name="pixels"), keras.layers.Dense(8, use_bias=False)(inputs))
    keras_kd.export(student, tmp_path / "student.tflite", compare_with=x[:8])
    found = keras_kd.evaluate_embeddings(
        {"teacher": student, "file": str(tmp_path / "student.tflite")},
        {"pixels": x, "unused": matches}, {"pixels": targets, "unused": matches[:TARGETS]}, matches, bootstrap=0,
    )  # fmt: skip
    assert found.score("file", "cosine").value > 0.9999
    assert found.models["file"].latency_ms > 0


def test_bad_input_is_named():
    def refused(error, message, models=MODELS, data=x, find=targets, index=matches, **options):
        with pytest.raises(error, match=message):
            keras_kd.evaluate_embeddings(models, data, find, index, bootstrap=0, latency=False, **options)

    refused(TypeError, "models must be a dict", models=[linear(8, 1)])
    refused(ValueError, "matches must be one integer for each of the 120 texts", index=matches[:-1])
    refused(ValueError, "matches must be one integer", index=matches / 1.0)
    refused(ValueError, "matches must be rows of the 40 targets, 0 to 39, got 1 to 40", index=matches + 1)
    refused(ValueError, "x must be an array, or a dict of arrays", data=x[:0])
    refused(ValueError, "dict of arrays, with a row for each text", data={"a": x, "b": x[:3]})
    refused(ValueError, "gives vectors of 5 numbers, the teacher of 8", models={**MODELS, "other": linear(5, 0)})
    refused(ValueError, "dimensions must be <= 8", dimensions=9)
    refused(ValueError, "dimensions must be >= 1", dimensions=0)
    refused(ValueError, "zeros, NaN or infinity for 1 of 120", data=np.concatenate([x[:-1], np.zeros((1, 16), "f4")]))
    refused(ValueError, "languages has 3 entries", languages=["a", "b", "c"])
    refused(ValueError, r"groups\['g'\] must list languages", languages=languages, groups={"g": ["xx"]})
    refused(ValueError, "teacher must be one of the models", teacher="nobody")
