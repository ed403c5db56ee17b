"""Predictions of a model: outputs checked, their classes, confidences and divergence from the teacher."""

import dataclasses

import numpy as np
from keras import ops

from keras_kd.losses.logits import kl_divergence
from keras_kd.metrics.classification import confidence_bin

CALIBRATION_BINS = 15  # as many as `keras_kd.metrics.ExpectedCalibrationError` has by default
# A quantized softmax rounds small probabilities to zero, where the divergence would be infinite.
SMALLEST_PROBABILITY = 1e-7
_ROWS_AT_A_TIME = 4096  # float64 copies of all outputs at once would take gigabytes with many classes


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of one model, (examples,) each."""

    kind: str  # of the outputs: "logits" or "probabilities"
    predicted: np.ndarray  # the class of the largest output
    confidence: np.ndarray  # the probability of that class
    bin: np.ndarray  # of that probability
    agreed: np.ndarray | None = None  # whether the teacher predicts the same class; None without a teacher
    divergence: np.ndarray | None = None  # KL(teacher || model), nats; None without a teacher


def checked_outputs(outputs, name, examples):
    """Return `outputs` if they are finite, (examples, classes), with two classes or more; else raise ValueError."""
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or outputs.shape[1] < 2:
        came = f"shape {outputs.shape}" if isinstance(outputs, np.ndarray) else type(outputs).__name__
        raise ValueError(
            f"models[{name!r}] must be a classifier with one output of shape (batch, classes), two classes or more, "
            f"got {came}. For one sigmoid unit p, evaluate a model with the outputs [1 - p, p]."
        )
    if len(outputs) != examples:
        raise ValueError(f"models[{name!r}] gave {len(outputs)} outputs for {examples} examples.")
    spoilt = int((~np.isfinite(outputs)).any(axis=1).sum())
    if spoilt:
        raise ValueError(f"models[{name!r}] gave NaN or infinite outputs for {spoilt} of {examples} examples.")
    return outputs


def are_probabilities(outputs):
    """Return whether outputs (examples, classes) are distributions: in [0, 1], and every row's sum near 1.

    Near means within 0.001 and half a step of 1/256 per class (at most 0.5): an 8-bit softmax rounds each probability.
    """
    tolerance = 1e-3 + min(outputs.shape[1] / 512, 0.5)
    inside = outputs.min() >= -1e-3 and outputs.max() <= 1 + 1e-3
    return bool(inside and (np.abs(outputs.sum(axis=1, dtype=np.float64) - 1) <= tolerance).all())


def predictions_from(outputs, teacher_outputs=None):
    """Return `Predictions` from outputs (examples, classes), compared with the teacher's where given."""
    kind = "probabilities" if are_probabilities(outputs) else "logits"
    predicted, sure = outputs.argmax(axis=1), confidence(outputs)
    binned = ops.convert_to_numpy(confidence_bin(sure, CALIBRATION_BINS))
    if teacher_outputs is None:
        return Predictions(kind, predicted, sure, binned)
    agreed = predicted == teacher_outputs.argmax(axis=1)
    return Predictions(kind, predicted, sure, binned, agreed, divergence(teacher_outputs, outputs))


def confidence(outputs):
    """Return the probability of the class that each example is given, (examples,), float64."""
    if are_probabilities(outputs):
        return outputs.max(axis=1).astype(np.float64)
    return np.concatenate([np.exp(block.max(axis=1)) for block in log_prob_blocks(outputs)])


def divergence(teacher_outputs, outputs):
    """Return KL(teacher || model) of each example, (examples,), float64, in nats."""
    blocks = zip(log_prob_blocks(teacher_outputs), log_prob_blocks(outputs), strict=True)
    return np.concatenate([ops.convert_to_numpy(kl_divergence(teacher, model)) for teacher, model in blocks])


def log_prob_blocks(outputs):
    """Log-probabilities, float64, of some rows at a time."""
    probabilities = are_probabilities(outputs)
    for start in range(0, len(outputs), _ROWS_AT_A_TIME):
        block = outputs[start : start + _ROWS_AT_A_TIME].astype(np.float64)
        if probabilities:
            block = np.maximum(block, SMALLEST_PROBABILITY)
            yield np.log(block / block.sum(axis=1, keepdims=True))
        else:
            yield ops.convert_to_numpy(ops.log_softmax(block))
