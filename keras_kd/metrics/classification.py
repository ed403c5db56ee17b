"""Calibration error and macro-F1 (of all examples, and by language), with scikit-learn's definition of F1."""

import math

import keras
import tensorflow as tf
from keras import ops

from keras_kd._assertions import require_all
from keras_kd._checks import require_count, require_flag
from keras_kd._languages import LanguageTable
from keras_kd.metrics.example_metric import ExampleMetric, per_example


@keras.saving.register_keras_serializable(package="keras_kd")
class ExpectedCalibrationError(ExampleMetric):
    """Expected calibration error (ECE), in [0, 1]: lower is better.

    `ECE = Σ_b (n_b / n) |acc_b − conf_b|`. An example's confidence is its largest probability; bin b = 1 … B holds the
    confidences in ((b − 1)/B, b/B]; n_b is how many they are, acc_b the share of them that are right, conf_b their mean
    confidence. Tokens of sequences count as examples do.

    Few examples to a bin make it too large, for chance then counts as error: compare values of as many examples only.
    Weights, masks and unlabelled examples: as `MacroF1`.

    Args:
        bins: B ≥ 1, the number of bins of equal width.
        from_logits: Whether outputs are logits. False: probabilities, whose largest is taken as it is.
        name, dtype: As in `MacroF1`.

    Call arguments: as `MacroF1`, but logits and probabilities are not the same: see `from_logits`.

    Raises:
        TypeError: `bins` is not a whole number, or `from_logits` no bool.
        ValueError: `bins` < 1; outputs are outside [0, 1] in spite of `from_logits=False`; and as `MacroF1`.

    Example:

    >>> ece = keras_kd.metrics.ExpectedCalibrationError(from_logits=False)
    >>> ece.update_state(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]))  # surely right, surely wrong
    >>> float(ece.result())
    0.45...

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (https://arxiv.org/abs/1706.04599),
    section 2.
    """

    lower_is_better = True

    def __init__(self, bins=15, *, from_logits=True, name="ece", dtype="float32"):
        super().__init__(name=name, dtype=dtype)
        self.bins = require_count(bins, "bins", at_least=1)
        self.from_logits = require_flag(from_logits, "from_logits")
        self.gaps = self.add_sum("gaps", (self.bins,))  # Σ w (right − confidence) in each bin
        self.weight = self.add_sum("weight")

    def update_state(self, y_true, y_pred, sample_weight=None):
        outputs, weights = self.outputs_and_weights(y_pred, sample_weight)
        labels, weights = self.labels_and_weights(y_true, outputs, weights)
        # `initial`, without which Keras refuses an empty batch, as a replica may get, in eager execution
        confidence = ops.max(ops.softmax(outputs) if self.from_logits else outputs, axis=-1, initial=-math.inf)
        if not self.from_logits:
            inside = ops.all(ops.logical_and(outputs > -1e-3, outputs < 1 + 1e-3), axis=-1)
            message = f"{self.name}: outputs must be probabilities (logits need from_logits=True), got the largest"
            weights = require_all(ops.logical_or(inside, weights == 0), message, confidence, weights)
        right = ops.cast(ops.equal(ops.argmax(outputs, axis=-1), labels), self.dtype)
        confidence = ops.where(weights == 0, ops.zeros_like(confidence), confidence)  # padding may hold NaN
        gaps = weights * (right - confidence)
        segments = ops.reshape(confidence_bin(confidence, self.bins), (-1,))
        self.gaps.assign_add(ops.segment_sum(ops.reshape(gaps, (-1,)), segments, num_segments=self.bins))
        self.weight.assign_add(ops.sum(weights))

    def result(self):
        return calibration_error(self.gaps, self.weight)

    def get_config(self):
        return {**super().get_config(), "bins": self.bins, "from_logits": self.from_logits}


def calibration_error(gaps, weight):
    """ECE from each bin's sum of gaps (right − confidence) and the weight of all: `(..., bins)`, `(...)` -> `(...)`."""
    return ops.divide_no_nan(ops.sum(ops.abs(gaps), axis=-1), weight)


def confidence_bin(confidence, bins):
    """The index 0 … bins − 1 of the bin ((b − 1)/bins, b/bins] that each confidence is in, int32.

    A confidence within 1e-6 of a boundary is on it, so that 3/5 is in one bin however it was rounded. NaN is in the
    first bin, whose sum it makes NaN.
    """
    number = ops.ceil((ops.nan_to_num(confidence) - 1e-6) * bins) - 1
    return ops.cast(ops.clip(number, 0, bins - 1), "int32")


def class_f1(hits, occurrences):
    """F1 = 2 · hits / (predictions + labels), 0 for a class that does not occur: `(..., classes)` x2 -> the same."""
    return ops.divide_no_nan(2 * hits, occurrences)


def macro_f1(hits, occurrences):
    """Mean F1 of the classes in predictions or labels, and how many these are: `(..., classes)` x2 -> `(...)` x2."""
    f1 = class_f1(hits, occurrences)
    classes = ops.sum(ops.cast(ops.not_equal(occurrences, 0), f1.dtype), axis=-1)
    return ops.divide_no_nan(ops.sum(f1, axis=-1), classes), classes


@keras.saving.register_keras_serializable(package="keras_kd")
class MacroF1(ExampleMetric):
    """Macro-F1, in [0, 1]: higher is better. The mean of the classes' F1 = 2 · hits / (predictions + labels).

    As scikit-learn's `f1_score(average="macro")`, and so as `keras_kd.evaluate`: over the classes that occur among the
    labels or the predictions. Tokens of sequences count as examples do.

    With sample weights, counts are weighted; what a Keras mask leaves out and labels below 0 (unlabelled examples)
    weigh 0, and what weighs 0 does not occur. 0 before the first labelled example.

    Args:
        classes: The number of classes, the width of the outputs; at least 2.
        name: Name in the logs.
        dtype: "float32", or "float64" to count more than 16 million tokens exactly.

    Call arguments:
        y_true: Integer labels `(batch,)` or `(batch, 1)`, or one-hot rows `(batch, classes)`; `(batch, length)` and so
            on for sequences.
        y_pred: Logits or probabilities, `(batch, classes)` or `(batch, length, classes)`.
        sample_weight: `(batch,)` or `(batch, length)`, or None. Keras hands it to `weighted_metrics` only.

    Raises:
        TypeError: `classes` is not a whole number.
        ValueError: `classes` < 2; shapes do not fit; a label is not among the classes (in a graph
            `tf.errors.InvalidArgumentError`; under XLA, which drops assertions, the result is NaN).

    Example:

    >>> macro_f1 = keras_kd.metrics.MacroF1(classes=3)
    >>> macro_f1.update_state(np.array([0, 0, 1]), np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> float(macro_f1.result())  # of classes 0 and 1; class 2 does not occur
    0.6666...
    """

    groups = 1  # of examples, counted apart

    def __init__(self, classes, *, name="macro_f1", dtype="float32"):
        super().__init__(name=name, dtype=dtype)
        self.classes = require_count(classes, "classes", at_least=2)
        self.hits = self.add_sum("hits", (self.groups, self.classes))
        self.predicted = self.add_sum("predicted", (self.groups, self.classes))
        self.actual = self.add_sum("actual", (self.groups, self.classes))

    def update_state(self, y_true, y_pred, sample_weight=None):
        self._count(y_true, y_pred, sample_weight, lambda weights: (0, weights))

    def _count(self, y_true, y_pred, sample_weight, group_index):
        """Add a batch. `group_index(weights)` gives the group of each example and the weights."""
        outputs, weights = self.outputs_and_weights(y_pred, sample_weight)
        if outputs.shape[-1] != self.classes:
            raise ValueError(
                f"{self.name} was made for classes={self.classes}, but the outputs have shape {tuple(outputs.shape)}."
            )
        labels, weights = self.labels_and_weights(y_true, outputs, weights)
        group, weights = group_index(weights)
        predicted = ops.cast(ops.argmax(outputs, axis=-1), "int32")
        hit = ops.where(ops.equal(predicted, labels), weights, ops.zeros_like(weights))
        self.hits.assign_add(self._by_class(hit, group, predicted))
        self.predicted.assign_add(self._by_class(weights, group, predicted))
        self.actual.assign_add(self._by_class(weights, group, ops.clip(labels, 0, self.classes - 1)))

    def _by_class(self, weights, group, index):
        """The sums of weights `(batch, ...)` by group and class: `(groups, classes)`."""
        segments = ops.reshape(group * self.classes + index, (-1,))
        sums = ops.segment_sum(ops.reshape(weights, (-1,)), segments, num_segments=self.groups * self.classes)
        return ops.reshape(sums, (self.groups, self.classes))

    def result(self):
        values, _ = macro_f1(self.hits, self.predicted + self.actual)
        return values[0]

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


@keras.saving.register_keras_serializable(package="keras_kd")
class MacroF1ByLanguage(MacroF1):
    """`MacroF1` of each language, and its mean over the languages that have had examples: each weighs the same.

    `result()` is a dict, `{"macro_f1_en": …, "macro_f1_sw": …, "macro_f1_mean": …}`: the names are those of the logs.
    They begin with `name`, less an ending "_by_language". A language without examples is 0 and stays out of the
    mean, as in `keras_kd.evaluate`, which knows only languages that occur. Callbacks that monitor one of these
    need `mode="max"`, for Keras looks for a direction by the metric's own name.

    It needs each example's language beside labels and outputs. A plain Keras model does not hand that to the metrics
    of `compile`; call it in the model's `compute_metrics`.

    Args:
        classes: The number of classes, the width of the outputs; at least 2.
        languages: The languages, all strings or all integers, in the order of the results. Integers, for a dataset
            that holds numbers, run under XLA (`jit_compile=True`) as well; strings do not.
        language_key: Name of the entry of `x` that holds each example's language, where `x` is a dict.
        name: Name of the metric; see above.
        dtype: As in `MacroF1`.

    Call arguments, besides those of `MacroF1`:
        languages: Each example's language, `(batch,)` or `(batch, 1)`.

    Raises:
        TypeError: `classes` is no whole number; `languages` are not strings or integers, or of the other kind than
            those of a batch.
        ValueError: `languages` is empty, holds one twice, or "mean"; a batch comes without languages, or a labelled
            example with one that is not among them (in a graph `tf.errors.InvalidArgumentError`; under XLA the result
            is NaN); and as `MacroF1`.

    Example:

    >>> by_language = keras_kd.metrics.MacroF1ByLanguage(classes=2, languages=["en", "sw"])
    >>> labels, outputs = np.array([0, 1, 1]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> by_language.update_state(labels, outputs, languages=np.array(["en", "en", "sw"]))
    >>> {name: float(value) for name, value in by_language.result().items()}
    {'macro_f1_en': 1.0, 'macro_f1_sw': 0.0, 'macro_f1_mean': 0.5}
    """

    def __init__(self, classes, languages, *, language_key="language", name="macro_f1_by_language", dtype="float32"):
        self._table = LanguageTable(languages, "languages")
        if "mean" in self._table.languages:
            raise ValueError('languages must not hold "mean": the result calls the mean over languages that.')
        self.groups = len(self._table)
        super().__init__(classes, name=name, dtype=dtype)
        if not isinstance(language_key, str):
            raise TypeError(f"language_key must be the name of an entry of x, got {language_key!r}.")
        self.languages = self._table.languages
        self.language_key = language_key

    def update_state(self, y_true, y_pred, sample_weight=None, languages=None):
        if languages is None:
            raise ValueError(
                f"{self.name} needs each example's language, got none. Pass languages= to update_state; in the compile "
                "of a plain Keras model, take keras_kd.metrics.MacroF1."
            )
        self._count(y_true, y_pred, sample_weight, lambda weights: self._index(languages, weights))

    def _index(self, languages, weights):
        """The number of each example's language among `self.languages`, and the weights, checked."""
        # (batch,) or (batch, 1) -> (batch, ...) int32, (batch, ...)
        languages = per_example(tf.convert_to_tensor(languages), 1, "languages")
        counted = ops.any(ops.not_equal(weights, 0), axis=tuple(range(1, len(weights.shape))))
        positions = self._table.known_positions(languages, counted)
        positions = per_example(positions, len(weights.shape), "languages")
        # NaN for an unknown language: XLA drops the error.
        known = ops.logical_or(positions >= 0, weights == 0)
        return ops.maximum(positions, 0), ops.where(known, weights, float("nan"))

    def result(self):
        by_language, occurring = macro_f1(self.hits, self.predicted + self.actual)
        met = ops.cast(ops.not_equal(occurring, 0), self.dtype)
        mean = ops.divide_no_nan(ops.sum(met * by_language), ops.sum(met))
        start = self.name.removesuffix("_by_language")
        names = [f"{start}_{language}" for language in (*self.languages, "mean")]
        return dict(zip(names, [*ops.unstack(by_language), mean], strict=True))

    def get_config(self):
        return {**super().get_config(), "languages": list(self.languages), "language_key": self.language_key}
