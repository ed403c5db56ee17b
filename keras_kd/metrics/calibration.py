"""Calibration: whether a model is as often right as it is sure."""

import math

import keras
from keras import ops

from keras_kd._checks import require_count
from keras_kd.metrics.metric import ExampleMetric, require_all


@keras.saving.register_keras_serializable(package="keras_kd")
class ExpectedCalibrationError(ExampleMetric):
    """Expected calibration error (ECE), in [0, 1]: lower is better.

    `ECE = Σ_b (n_b / n) |acc_b − conf_b|`. An example's confidence is its largest probability; bin b = 1 … B holds the
    confidences in ((b − 1)/B, b/B]; n_b is how many they are, acc_b the share of them that are right, conf_b their mean
    confidence. Tokens of sequences count as examples do.

    Few examples to a bin make it too large, for chance then counts as error: compare values of as many examples only.

    With sample weights, counts and means are weighted; what a Keras mask leaves out and labels below 0 (unlabelled
    examples) weigh 0. 0 before the first labelled example.

    Args:
        bins: B, the number of bins of equal width.
        from_logits: Whether outputs are logits. False: probabilities, whose largest is taken as it is.
        name: Name in the logs.
        dtype: "float32", or "float64" to count more than 16 million tokens exactly.

    Call arguments:
        y_true: Integer labels `(batch,)` or `(batch, 1)`, or one-hot rows `(batch, classes)`; `(batch, length)` and so
            on for sequences.
        y_pred: `(batch, classes)` or `(batch, length, classes)`.
        sample_weight: `(batch,)` or `(batch, length)`, or None. Keras hands it to `weighted_metrics` only.

    Raises:
        TypeError: `bins` is not a whole number, or `from_logits` no bool.
        ValueError: `bins` < 1; shapes do not fit; a label is not among the classes; outputs are outside [0, 1] in
            spite of `from_logits=False`. (In a graph, the last two are `tf.errors.InvalidArgumentError`; under XLA,
            which drops assertions, the result is NaN.)

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
        if not isinstance(from_logits, bool):
            raise TypeError(f"from_logits must be True or False, got {from_logits!r}.")
        self.bins = require_count(bins, "bins", at_least=1)
        self.from_logits = from_logits
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
