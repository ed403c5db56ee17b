"""keras_kd.metrics: values from scikit-learn and float64 NumPy; weights, masks, replicas, XLA, precision, saving."""

import functools

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of
from formulas import calibration_error, softmax

import keras_kd
from keras_kd._keras_private import set_mask
from keras_kd.losses.base import class_labels
from keras_kd.metrics import Agreement, ExpectedCalibrationError, FidelityMetric, MacroF1, MacroF1ByLanguage, MeanKL

CLASSES = 4
LANGUAGES = ["en", "sw", "zh"]


@pytest.fixture(scope="module")
def batch():
    """60 examples: logits of teacher and student, labels of which a quarter is missing, weights, languages.

    Of class 3 there is no label, and the student never chooses it.
    """
    rng = np.random.default_rng(3)
    labels = rng.integers(3, size=60)
    teacher = 2.0 * np.eye(CLASSES)[labels] + rng.normal(size=(60, CLASSES))
    student = teacher + rng.normal(size=(60, CLASSES))
    student[:, 3] = -9.0
    parts = {
        "labels": np.where(rng.random(60) < 0.25, -1, labels),
        "teacher": teacher.astype("float32"),
        "student": student.astype("float32"),
        "weights": rng.uniform(0.0, 2.0, 60).astype("float32"),
        "languages": np.array(LANGUAGES)[rng.integers(3, size=60)],
    }
    for array in parts.values():
        array.flags.writeable = False  # all tests share them
    return parts


def kl(teacher, student, temperature=1.0):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (p * np.log(p / q)).sum(axis=-1)


def agreed(teacher, student):
    return teacher.argmax(axis=-1) == student.argmax(axis=-1)


def macro_f1(labels, logits, weights=None):
    return sklearn.metrics.f1_score(labels, logits.argmax(axis=-1), average="macro", sample_weight=weights)


def value_of(metric, *batches, **options):
    for arguments in batches:
        metric.update_state(*arguments, **options)
    result = metric.result()
    return {name: float(v) for name, v in result.items()} if isinstance(result, dict) else float(result)


# --- Fidelity -------------------------------------------------------------------------------------------------------


def test_agreement_and_kl_equal_numpy(batch):
    teacher, student, weights = batch["teacher"], batch["student"], batch["weights"]
    for metric, values in [
        (Agreement, agreed(teacher, student)),
        (MeanKL, kl(teacher, student)),
        (lambda: MeanKL(3.0), kl(teacher, student, 3.0)),
    ]:
        assert value_of(metric(), (teacher, student)) == pytest.approx(values.mean(), rel=1e-6)
        weighted = value_of(metric(), (teacher, student, weights))
        assert weighted == pytest.approx(np.average(values, weights=weights), rel=1e-6)


def test_batches_of_any_size_give_the_mean_over_all_examples(batch):
    teacher, student, weights = batch["teacher"], batch["student"], batch["weights"]
    parts = [(teacher[rows], student[rows], weights[rows]) for rows in (slice(0, 50), slice(50, 57), slice(57, 60))]
    assert value_of(MeanKL(), *parts) == pytest.approx(np.average(kl(teacher, student), weights=weights), rel=1e-6)


def test_kl_is_soft_labels_without_the_squared_temperature(batch):
    distillation_loss = keras_kd.losses.SoftLabels(temperature=4.0)
    expected = float(distillation_loss(batch["teacher"], batch["student"])) / 16.0
    assert value_of(MeanKL(4.0), (batch["teacher"], batch["student"])) == pytest.approx(expected, rel=1e-6)


def test_kl_of_equal_logits_is_zero_and_of_huge_ones_finite():
    logits = np.array([[1e4, -1e4], [0.3, 0.2]], "float32")
    assert value_of(MeanKL(), (logits, logits)) == 0.0
    # p = (1, 0) and q = (0, 1) up to e^-20000: KL = 20000.
    assert value_of(MeanKL(), (logits[:1], -logits[:1])) == 20000.0


@pytest.mark.parametrize("weights_shape", [None, (5,), (5, 1), (5, 3)])
def test_padded_tokens_stay_out(weights_shape):
    """Where the mask is off, the outputs hold NaN: nothing of them may come through."""
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 5, 3, CLASSES)).astype("float32")
    labels = rng.integers(CLASSES, size=(5, 3))
    mask = np.arange(3) < np.array([[3], [1], [2], [3], [0]])
    weights = None if weights_shape is None else rng.uniform(0.0, 2.0, weights_shape).astype("float32")
    w = np.broadcast_to(1.0 if weights is None else weights.reshape(5, -1), (5, 3))[mask]
    expected = {
        "agreement": np.average(agreed(teacher, student)[mask], weights=w),
        "kl": np.average(kl(teacher, student)[mask], weights=w),
        "ece": calibration_error(labels[mask], softmax(student[mask]), w),
        "macro_f1": macro_f1(labels[mask], student[mask], w),
        "macro_f1_en": macro_f1(labels[:3][mask[:3]], student[:3][mask[:3]], w[: mask[:3].sum()]),
    }
    student[~mask] = np.nan
    masked = set_mask(tf.constant(student), tf.constant(mask))
    found = {metric.name: value_of(metric, (teacher, masked, weights)) for metric in (Agreement(), MeanKL())}
    for metric in (ExpectedCalibrationError(), MacroF1(CLASSES)):
        found[metric.name] = value_of(metric, (labels, masked, weights))
    by_language = MacroF1ByLanguage(CLASSES, ["en", "sw"])
    by_language = value_of(by_language, (labels, masked, weights), languages=["en", "en", "en", "sw", "sw"])
    assert found | {"macro_f1_en": by_language["macro_f1_en"]} == pytest.approx(expected, rel=1e-5)


def test_a_fidelity_metric_of_ones_own():
    class Margin(FidelityMetric):
        def compare(self, teacher, student):
            return keras.ops.max(teacher, axis=-1) - keras.ops.max(student, axis=-1)

    assert Margin.needs_teacher
    metric = Margin()
    assert metric.name == "margin"
    assert value_of(metric, ([[3.0, 1.0], [2.0, 5.0]], [[0.0, 1.0], [1.0, 0.0]])) == 3.0
    with pytest.raises(NotImplementedError, match=r"FidelityMetric must implement compare\(teacher, student\)"):
        FidelityMetric().update_state([[3.0, 1.0]], [[0.0, 1.0]])


# --- Calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_error_equals_numpy(batch, bins, weighted):
    labelled = batch["labels"] >= 0
    weights = batch["weights"] if weighted else None
    labels, logits = batch["labels"], batch["student"]
    expected = calibration_error(
        labels[labelled], softmax(logits[labelled]), weights[labelled] if weighted else None, bins
    )
    from_logits, from_probabilities = (ExpectedCalibrationError(bins, from_logits=flag) for flag in (True, False))
    assert value_of(from_logits, (labels, logits, weights)) == pytest.approx(expected, rel=1e-5)
    assert value_of(from_probabilities, (labels, softmax(logits), weights)) == pytest.approx(expected, rel=1e-5)


def test_four_examples_of_which_three_are_right_by_hand():
    # Bins of a fifth. Confidence 0.7, 0.75 (one right): |0.5 - 0.725| of 2; 0.9, 1.0 (both right): |1 - 0.95| of 2.
    probabilities = np.array([[0.7, 0.3], [0.25, 0.75], [0.1, 0.9], [1.0, 0.0]])
    ece = value_of(ExpectedCalibrationError(5, from_logits=False), ([0, 0, 1, 0], probabilities))
    assert ece == pytest.approx(0.5 * 0.225 + 0.5 * 0.05)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_confidence_on_a_boundary_belongs_to_the_bin_below(dtype):
    """9/15 from logits in float32 is 0.59999996 in float32 and 0.600000004 in float64: in (8/15, 9/15] all the same."""
    metric = ExpectedCalibrationError(15, dtype=dtype)
    metric.update_state([0], np.log([[0.6, 0.4]]).astype("float32"))
    assert np.flatnonzero(metric.gaps.numpy()).tolist() == [8]
    sure = ExpectedCalibrationError(15, from_logits=False, dtype=dtype)
    sure.update_state([1], [[1.0, 0.0]])
    assert np.flatnonzero(sure.gaps.numpy()).tolist() == [14]


def test_outputs_that_are_nan_show_in_the_result():
    assert np.isnan(value_of(ExpectedCalibrationError(), ([0, 1], [[1.0, 0.0], [np.nan, np.nan]])))


# --- Macro-F1 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_macro_f1_equals_scikit_learn(batch, weighted):
    labelled = batch["labels"] >= 0
    weights = batch["weights"] if weighted else None
    expected = macro_f1(batch["labels"][labelled], batch["student"][labelled], weights[labelled] if weighted else None)
    metric = MacroF1(CLASSES)
    assert value_of(metric, (batch["labels"], batch["student"], weights)) == pytest.approx(expected, rel=1e-6)


def test_a_class_that_is_only_predicted_counts_as_zero():
    # Class 0: precision 1, recall 1/2; class 2: never right; class 1 does not occur.
    assert value_of(MacroF1(3), ([0, 0], [[1.0, 0, 0], [0, 0, 1.0]])) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("kind", ["strings", "bytes", "integers", "columns"])
def test_macro_f1_by_language_equals_scikit_learn(batch, kind):
    labels, logits, languages = batch["labels"], batch["student"], batch["languages"]
    known, given = LANGUAGES, languages
    if kind == "bytes":
        given = np.array([language.encode() for language in languages], dtype=object)
    if kind == "integers":
        known, given = [7, 8, 9], np.array([7 + LANGUAGES.index(language) for language in languages])
    if kind == "columns":
        given, labels = languages[:, None], labels[:, None]
    found = value_of(MacroF1ByLanguage(CLASSES, known), (labels, logits, batch["weights"]), languages=given)
    by_language = {}
    for name, language in zip(known, LANGUAGES, strict=True):
        rows = (languages == language) & (batch["labels"] >= 0)
        by_language[f"macro_f1_{name}"] = macro_f1(batch["labels"][rows], logits[rows], batch["weights"][rows])
    expected = by_language | {"macro_f1_mean": np.mean(list(by_language.values()))}
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(found) == list(expected)


def test_a_language_without_examples_stays_out_of_the_mean():
    metric = MacroF1ByLanguage(2, ["en", "fr", "sw"])
    assert set(value_of(metric).values()) == {0.0}
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    found = value_of(metric, ([0, 0, -1], [right, wrong, wrong]), languages=["en", "sw", "fr"])
    assert found == {"macro_f1_en": 1.0, "macro_f1_fr": 0.0, "macro_f1_sw": 0.0, "macro_f1_mean": 0.5}


UNLABELLED = {
    "integers": lambda labels: labels,
    "other negatives": lambda labels: np.where(labels < 0, -100, labels),
    "columns": lambda labels: labels[:, None],
    "floats": lambda labels: labels.astype("float32"),
    "one-hot": lambda labels: np.eye(CLASSES)[labels] * (labels >= 0)[:, None],
}


@pytest.mark.parametrize("form", UNLABELLED)
@pytest.mark.parametrize("weighted", [False, True])
def test_unlabelled_examples_are_left_out(batch, form, weighted):
    """Whatever they hold: NaN outputs, NaN weights, a language that the metric does not know."""
    labelled = batch["labels"] >= 0
    logits, weights = batch["student"].copy(), batch["weights"].copy()
    logits[~labelled], weights[~labelled] = np.nan, np.nan
    languages = np.where(labelled, batch["languages"], "unknown")
    y = UNLABELLED[form](batch["labels"])
    kept = [part[labelled] for part in (batch["labels"], batch["student"], batch["weights"])]
    for make in (ExpectedCalibrationError, lambda: MacroF1(CLASSES), lambda: MacroF1ByLanguage(CLASSES, LANGUAGES)):
        metric, expected = make(), make()
        by_language = isinstance(metric, MacroF1ByLanguage)
        options = [{"languages": each} if by_language else {} for each in (languages, languages[labelled])]
        found = value_of(metric, (y, logits, weights if weighted else None), **options[0])
        assert found == pytest.approx(value_of(expected, kept if weighted else kept[:2], **options[1]), rel=1e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 5)])
def test_a_batch_without_examples_changes_nothing(shape):
    empty = np.zeros(shape, int), np.zeros((*shape, CLASSES))
    for metric in (ExpectedCalibrationError(), MacroF1(CLASSES)):
        assert value_of(metric, empty) == 0.0
    assert value_of(MacroF1ByLanguage(CLASSES, [7]), empty, languages=np.zeros(0, int))["macro_f1_mean"] == 0.0


def test_unlabelled_tokens_are_left_out(batch):
    labels, logits = batch["labels"].reshape(12, 5).copy(), batch["student"].reshape(12, 5, CLASSES)
    labels[0] = -1
    languages, labelled = np.array(["unknown"] + ["en"] * 11), labels >= 0
    found = value_of(MacroF1ByLanguage(CLASSES, ["en"]), (labels, logits), languages=languages)
    assert found["macro_f1_en"] == pytest.approx(macro_f1(labels[labelled], logits[labelled]), rel=1e-6)
    for make, score in [(lambda: MacroF1(CLASSES), macro_f1), (ExpectedCalibrationError, calibration_error)]:
        outputs = logits[labelled] if score is macro_f1 else softmax(logits[labelled])
        assert value_of(make(), (labels, logits)) == pytest.approx(score(labels[labelled], outputs), rel=1e-5)


def test_results_by_language_are_those_of_evaluate(batch):
    labels, logits, languages = batch["labels"], batch["student"], batch["languages"]
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Identity()])
    evaluation = keras_kd.evaluate({"m": model}, (logits, labels), languages=languages, bootstrap=0, latency=False)
    found = value_of(MacroF1ByLanguage(CLASSES, LANGUAGES), (labels, logits), languages=languages)
    for language in LANGUAGES:
        assert found[f"macro_f1_{language}"] == pytest.approx(evaluation.score("m", language=language).value)
    assert found["macro_f1_mean"] == pytest.approx(evaluation.score("m", language="mean over languages").value)


def test_the_name_is_that_of_the_results():
    found = MacroF1ByLanguage(2, [3], name="topic_f1_by_language").result()
    assert list(found) == ["topic_f1_3", "topic_f1_mean"]
    assert list(MacroF1ByLanguage(2, ["en"], name="f1").result()) == ["f1_en", "f1_mean"]


# --- What all have in common ----------------------------------------------------------------------------------------

LABELLED = [ExpectedCalibrationError, lambda: MacroF1(CLASSES)]
ALL = [
    lambda: Agreement(),
    lambda: MeanKL(2.5, name="softened_kl", dtype="float64"),
    lambda: ExpectedCalibrationError(10, from_logits=False, name="calibration"),
    lambda: MacroF1(CLASSES),
    lambda: MacroF1ByLanguage(CLASSES, LANGUAGES, language_key="lang"),
    lambda: MacroF1ByLanguage(CLASSES, [4, 2], name="topic_f1"),
]


@pytest.mark.parametrize("make", LABELLED)
def test_labels_may_be_integers_columns_or_one_hot(batch, make):
    rows = batch["labels"] >= 0
    labels, logits = batch["labels"][rows], batch["student"][rows]
    expected = value_of(make(), (labels, logits))
    for form in (labels[:, None], np.eye(CLASSES)[labels], labels.astype("float32"), labels.tolist()):
        assert value_of(make(), (form, logits)) == expected
    tokens = labels[:40].reshape(8, 5), logits[:40].reshape(8, 5, CLASSES)
    in_a_row = value_of(make(), (labels[:40], logits[:40]))
    for form in (tokens[0], tokens[0][..., None], np.eye(CLASSES)[tokens[0]]):
        assert value_of(make(), (form, tokens[1])) == pytest.approx(in_a_row, rel=1e-6)


@pytest.mark.parametrize("make", [Agreement, MeanKL, *LABELLED])
def test_outputs_in_half_precision_are_summed_in_float32(batch, make):
    """4,000 examples: a sum in bfloat16 would stop at 256."""
    metric = make()
    first = batch["teacher"] if isinstance(metric, FidelityMetric) else batch["labels"]
    rounded = np.tile(tf.cast(batch["student"], "bfloat16").numpy().astype("float32"), (67, 1))
    first = np.tile(first, (67, 1) if first.ndim == 2 else 67)
    expected = value_of(make(), (first, rounded))
    assert value_of(metric, (first, tf.cast(rounded, "bfloat16"))) == pytest.approx(expected, rel=1e-6)
    assert {variable.dtype for variable in metric.variables} == {"float32"}


@pytest.mark.parametrize("make", ALL)
def test_a_metric_is_the_same_after_serialization(make):
    metric = make()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()
    assert [v.shape for v in again.variables] == [v.shape for v in metric.variables]


@pytest.mark.parametrize("make", [Agreement, MeanKL, *LABELLED])
def test_reset_and_no_examples_give_zero(batch, make):
    metric = make()
    first = batch["teacher"] if isinstance(metric, FidelityMetric) else batch["labels"]
    assert value_of(metric) == 0.0
    expected = value_of(metric, (first, batch["student"]))
    metric.reset_state()
    assert value_of(metric) == 0.0
    assert value_of(metric, (first, batch["student"])) == expected > 0
    metric.reset_state()
    assert value_of(metric, (first, batch["student"], np.zeros(60))) == 0.0


def test_float64_counts_what_float32_cannot():
    """2^24 + 1 is no float32: weights stand in for that many tokens."""
    teacher, student = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
    many, one = (teacher, student, [2.0**24, 0.0]), (teacher, student, [0.0, 1.0])
    assert value_of(Agreement(), many, one) == 1.0
    assert value_of(Agreement(dtype="float64"), many, one) == 2.0**24 / (2.0**24 + 1)


# --- In compile -----------------------------------------------------------------------------------------------------


@functools.cache
def two_replicas():
    """One strategy object per process: TensorFlow's collectives clash when two are made over the same devices."""
    return strategy_of(2)


def split_columns(labels_and_languages):
    return labels_and_languages[:, 0], labels_and_languages[:, 1]


class ReadingLanguages(MacroF1ByLanguage):
    """Labels and languages come as two columns of y, for a plain Keras model hands a metric nothing else."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels, languages = split_columns(y_true)
        super().update_state(labels, y_pred, sample_weight, languages=languages)


class OfLabels(keras.losses.Loss):
    def call(self, y_true, y_pred):
        labels, _ = split_columns(y_true)
        return keras.losses.sparse_categorical_crossentropy(labels, y_pred, from_logits=True, ignore_class=-1)


@pytest.fixture
def rows(data):
    """37 inputs, labels of which a third is missing, logits of a teacher, languages and weights."""
    x, y = data
    rng = np.random.default_rng(5)
    return {
        "x": x,
        "labels": np.where(np.arange(37) % 3 == 0, -1, y),
        "teacher": rng.normal(size=(37, 3)).astype("float32"),
        "languages": rng.integers(2, size=37),
        "weights": rng.uniform(0, 2, 37).astype("float32"),
    }


def evaluated(x, y, weights, *, loss, metrics, strategy=None, **options):
    """Logs of `evaluate` of a plain Keras model, in batches of 16, 16 and 5; and the model's outputs."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(4)
        model = dense_model(6, 3)
        model.compile("sgd", loss, weighted_metrics=metrics(), **options)
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(16)
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    del logs["loss"]
    return logs, model(x).numpy()


RUNS = {
    "graph": dict,
    "eager": lambda: {"run_eagerly": True},
    "XLA": lambda: {"jit_compile": True},
    "2 replicas": lambda: {"strategy": two_replicas()},
}


@pytest.mark.parametrize("run", RUNS)
def test_labelled_metrics_in_a_plain_model(rows, run):
    metrics = lambda: [ExpectedCalibrationError(), MacroF1(3)]  # noqa: E731
    loss = crossentropy(ignore_class=-1)
    logs, logits = evaluated(rows["x"], rows["labels"], rows["weights"], loss=loss, metrics=metrics, **RUNS[run]())
    kept = rows["labels"] >= 0
    labels, logits, weights = rows["labels"][kept], logits[kept], rows["weights"][kept]
    expected = {
        "ece": calibration_error(labels, softmax(logits), weights),
        "macro_f1": macro_f1(labels, logits, weights),
    }
    assert logs == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_fidelity_metrics_in_a_plain_model(rows, run):
    """Where y is the teacher's logits, as in distillation from a file, no Distiller is needed."""
    metrics = lambda: [Agreement(), MeanKL(2.0)]  # noqa: E731
    logs, logits = evaluated(rows["x"], rows["teacher"], rows["weights"], loss="mse", metrics=metrics, **RUNS[run]())
    expected = {
        "agreement": np.average(agreed(rows["teacher"], logits), weights=rows["weights"]),
        "kl": np.average(kl(rows["teacher"], logits, 2.0), weights=rows["weights"]),
    }
    assert logs == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_a_result_by_language_stands_in_the_logs(rows, run):
    metrics = lambda: [ReadingLanguages(3, [0, 1])]  # noqa: E731
    y = np.stack([rows["labels"], rows["languages"]], axis=1)
    logs, logits = evaluated(rows["x"], y, rows["weights"], loss=OfLabels(), metrics=metrics, **RUNS[run]())
    expected = {}
    for language in (0, 1):
        kept = (rows["labels"] >= 0) & (rows["languages"] == language)
        expected[f"macro_f1_{language}"] = macro_f1(rows["labels"][kept], logits[kept], rows["weights"][kept])
    expected["macro_f1_mean"] = np.mean(list(expected.values()))
    assert logs == pytest.approx(expected, rel=1e-5)


def test_metrics_made_outside_the_scope_of_two_replicas_count_the_same(rows):
    made = [ExpectedCalibrationError(), MacroF1(3)]
    loss = crossentropy(ignore_class=-1)
    x, labels, weights = rows["x"], rows["labels"], rows["weights"]
    one, _ = evaluated(x, labels, weights, loss=loss, metrics=lambda: [ExpectedCalibrationError(), MacroF1(3)])
    two, _ = evaluated(x, labels, weights, loss=loss, metrics=lambda: made, strategy=two_replicas())
    assert two == pytest.approx(one, rel=1e-6)


class ModelByLanguage(keras.Model):
    """How a plain Keras model hands the entry of x that holds the languages to the metric."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.by_language = MacroF1ByLanguage(3, ["en", "sw"])

    def call(self, x):
        return self.dense(x["features"])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.by_language.update_state(y, y_pred, sample_weight, languages=x[self.by_language.language_key])
        return self.get_metrics_result()


def expected_f1_by_language(rows, languages, logits):
    expected = {}
    for language in ("en", "sw"):
        kept = (rows["labels"] >= 0) & (languages == language)
        expected[f"macro_f1_{language}"] = macro_f1(rows["labels"][kept], logits[kept])
    return expected | {"macro_f1_mean": np.mean(list(expected.values()))}


def test_languages_as_strings_in_a_model_that_reads_them_from_x(rows):
    languages = np.array(["en", "sw"])[rows["languages"]]
    inputs = {"features": rows["x"], "language": tf.constant(languages)}
    model = ModelByLanguage()
    model.compile("sgd", crossentropy(ignore_class=-1))
    dataset = tf.data.Dataset.from_tensor_slices((inputs, rows["labels"])).batch(16)
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    del logs["loss"]
    assert logs == pytest.approx(expected_f1_by_language(rows, languages, model(inputs).numpy()), rel=1e-5)


def test_languages_as_strings_over_two_replicas(rows):
    """In a loop of one's own: Keras adds up the first batch over replicas, and so fails at strings."""
    languages = np.array(["en", "sw"])[rows["languages"]]
    dataset = tf.data.Dataset.from_tensor_slices((rows["labels"], rows["teacher"], languages)).batch(16)
    with two_replicas().scope():
        metric = MacroF1ByLanguage(3, ["en", "sw"])

    def count(labels, outputs, languages):
        metric.update_state(labels, outputs, languages=languages)

    step = tf.function(lambda *batch: two_replicas().run(count, batch))
    for batch in two_replicas().experimental_distribute_dataset(dataset):
        step(*batch)
    assert value_of(metric) == pytest.approx(expected_f1_by_language(rows, languages, rows["teacher"]), rel=1e-5)
    assert float(keras.ops.sum(metric.actual)) == (rows["labels"] >= 0).sum()


def test_in_a_distiller(rows):
    distiller = keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3))
    metrics = [ExpectedCalibrationError(), MacroF1(3)]
    distiller.compile("sgd", crossentropy(ignore_class=-1), metrics=metrics)
    x, labels = rows["x"], rows["labels"]
    history = distiller.fit(x, labels, batch_size=16, verbose=0, validation_data=(x, labels)).history
    assert {"ece", "macro_f1"} < set(history)
    kept, logits = labels >= 0, distiller.predict(x, verbose=0)
    assert history["val_macro_f1"][-1] == pytest.approx(macro_f1(labels[kept], logits[kept]), rel=1e-5)
    ece = calibration_error(labels[kept], softmax(logits[kept]))
    assert history["val_ece"][-1] == pytest.approx(ece, rel=1e-5)


def test_a_saved_model_has_its_metrics_again(rows, tmp_path):
    model = dense_model(6, 3)
    model.compile("sgd", crossentropy(ignore_class=-1), metrics=[ExpectedCalibrationError(10), MacroF1(3)])
    expected = model.evaluate(rows["x"], rows["labels"], verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(rows["x"], rows["labels"], verbose=0, return_dict=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("y", "loss", "higher", "lower"),
    [
        ("teacher", "mse", Agreement(), MeanKL()),
        ("labels", crossentropy(ignore_class=-1), MacroF1(3), ExpectedCalibrationError()),
    ],
)
def test_callbacks_know_which_way_a_metric_improves(rows, y, loss, higher, lower):
    model = dense_model(6, 3)
    model.compile("sgd", loss, metrics=[higher, lower])
    up, down = (keras.callbacks.EarlyStopping(monitor=metric.name) for metric in (higher, lower))
    model.fit(rows["x"], rows[y], verbose=0, callbacks=[up, down])
    assert up.monitor_op is keras.ops.greater
    assert down.monitor_op is keras.ops.less


# --- Bad input ------------------------------------------------------------------------------------------------------

OUTPUTS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "float32")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MeanKL(0.0), ValueError, r"temperature must be > 0, got 0\.0"),
        (lambda: MeanKL("4"), TypeError, "temperature must be > 0 .a number., got '4'"),
        (lambda: Agreement(dtype="bfloat16"), ValueError, r"dtype must be one of \['float32', 'float64'\], got 'bfl"),
        (lambda: ExpectedCalibrationError(0), ValueError, "bins must be >= 1, got 0"),
        (lambda: ExpectedCalibrationError(1.5), TypeError, "bins must be a whole number >= 1, got 1.5"),
        (lambda: ExpectedCalibrationError(from_logits="no"), TypeError, "from_logits must be True or False, got 'no'"),
        (lambda: MacroF1(1), ValueError, "classes must be >= 2, got 1"),
        (lambda: MacroF1ByLanguage(2, "en"), TypeError, "languages must hold languages, got the single 'en'"),
        (lambda: MacroF1ByLanguage(2, ["en", 1]), TypeError, r"all str or all int, got \['en', 1\]"),
        (
            lambda: MacroF1ByLanguage(2, []),
            ValueError,
            r"languages must hold different languages, at least one, got \[\]",
        ),
        (
            lambda: MacroF1ByLanguage(2, ["en", "en"]),
            ValueError,
            r"different languages, at least one, got \['en', 'en'\]",
        ),
        (lambda: MacroF1ByLanguage(2, ["en", "mean"]), ValueError, 'languages must not hold "mean"'),
        (
            lambda: MacroF1ByLanguage(2, ["en"], language_key=3),
            TypeError,
            "language_key must be the name of an entry of x, got 3",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            Agreement,
            ([0, 1], OUTPUTS),
            r"agreement compares logits .* of equal rank, but the teacher gives \(2,\)",
        ),
        (MeanKL, (OUTPUTS[:, :2], OUTPUTS), r"kl needs the same number of classes on both sides"),
        (MeanKL, (OUTPUTS[:, :1], OUTPUTS[:, :1]), r"kl needs outputs of shape .*two classes or more, got \(2, 1\)"),
        (Agreement, (OUTPUTS, OUTPUTS, OUTPUTS), r"sample_weight must have the shape \(batch,\), got \(2, 3\)"),
        (ExpectedCalibrationError, ([[0, 1]], OUTPUTS), r"ece needs labels y .* got shape \(1, 2\)"),
        (ExpectedCalibrationError, ([0, 3], OUTPUTS), "ece: labels must lie in 0 … 2, or below 0 .*; got 3"),
        (lambda: MacroF1(3), ([0, 5], OUTPUTS), "macro_f1: labels must lie in 0 … 2, or below 0 .*; got 5"),
        (lambda: MacroF1(4), ([0, 1], OUTPUTS), r"was made for classes=4, but the outputs have shape \(2, 3\)"),
        (
            lambda: ExpectedCalibrationError(from_logits=False),
            ([0, 1], 3 * OUTPUTS),
            r"outputs must be probabilities \(logits need from_logits=True\), got the largest 3\.0",
        ),
        (lambda: MacroF1ByLanguage(3, ["en"]), ([0, 1], OUTPUTS), "needs each example's language, got none. Pass"),
    ],
)
def test_bad_batches(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make().update_state(*arguments)


@pytest.mark.parametrize(
    ("known", "given", "error", "message"),
    [
        (["en", "sw"], ["en", "xx"], ValueError, r"it has en, sw, not xx"),
        ([1, 2], [1, 3], ValueError, r"it has 1, 2, not 3"),
        ([1, 2], ["en", "sw"], TypeError, r"holds the languages \[1, 2\], but those of the batch are string"),
        (["en"], [["en", "en"]] * 2, ValueError, r"languages must have the shape \(batch,\), got \(2, 2\)"),
    ],
)
def test_bad_languages(known, given, error, message):
    with pytest.raises(error, match=message):
        MacroF1ByLanguage(3, known).update_state([0, 1], OUTPUTS, languages=given)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    "labels",
    [
        np.array([2**32, 1]),
        np.array([1, 2**40 + 2]),
        np.array([2**32 - 1, 1], "uint32"),
        np.array([2**63, 1], "uint64"),
        *(np.array([label, 1.0]) for label in (3e9, 1e30, np.inf, np.nan, 0.5)),
        np.array([2.0**31, 1.0], "float32"),
    ],
    ids=str,
)
def test_labels_that_are_no_class_are_refused(labels, column):
    """A plain cast to int32 makes class 0 of 2**32 and of 0.5, and an unlabelled example of 2**32 - 1 and NaN."""
    labels = labels[:, None] if column else labels
    for metric in (ExpectedCalibrationError(), MacroF1(3), MacroF1ByLanguage(3, ["en"])):
        languages = {"languages": ["en", "en"]} if isinstance(metric, MacroF1ByLanguage) else {}
        with pytest.raises(ValueError, match="labels must lie in 0 … 2, or below 0 where there is none"):
            metric.update_state(labels, OUTPUTS, **languages)


def test_a_large_vocabulary_keeps_its_ids():
    """Above 2**24, where float32 does not hold every integer."""
    labels = np.array([2**24 + 1, 2**31 - 2, -5])
    for dtype in ("int32", "int64", "float64"):
        np.testing.assert_array_equal(class_labels(labels.astype(dtype), np.zeros((3, 2))), labels)


def test_labels_far_below_zero_are_unlabelled():
    assert value_of(MacroF1(3), (np.array([-(2**32), 1]), OUTPUTS)) == 1.0


def test_in_a_graph_the_error_names_the_language_too():
    metric = MacroF1ByLanguage(3, ["en", "sw"])
    step = tf.function(lambda labels, languages: metric.update_state(labels, OUTPUTS, languages=languages))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"languages must have an entry .*, not\] \[xx\]"):
        step(tf.constant([0, 1]), tf.constant(["en", "xx"]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must lie in 0 … 2.*got\] \[7\]"):
        step(tf.constant([7, 1]), tf.constant(["en", "sw"]))


def test_under_xla_which_drops_assertions_the_result_is_nan():
    metric, ece = MacroF1ByLanguage(3, [1, 2]), ExpectedCalibrationError()

    @tf.function(jit_compile=True)
    def step(labels, languages):
        metric.update_state(labels, OUTPUTS, languages=languages)
        ece.update_state(labels, OUTPUTS)

    step(tf.constant([0, 1]), tf.constant([1, 2]))
    assert float(metric.result()["macro_f1_mean"]) == 1.0 and float(ece.result()) > 0.0
    step(tf.constant([0, 7]), tf.constant([1, 2]))
    assert np.isnan(float(metric.result()["macro_f1_mean"])) and np.isnan(float(ece.result()))
    metric.reset_state()
    step(tf.constant([0, -1]), tf.constant([1, 3]))
    assert float(metric.result()["macro_f1_mean"]) == 1.0
    step(tf.constant([0, 1]), tf.constant([1, 3]))
    assert np.isnan(float(metric.result()["macro_f1_mean"]))
