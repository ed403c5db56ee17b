"""What the metrics share: sums over examples, and the labels and weights of these."""

import keras
from keras import ops

from keras_kd._assertions import require_all
from keras_kd._checks import require_choice
from keras_kd._keras_private import get_mask, set_direction
from keras_kd.losses.base import class_labels, with_rank


class ExampleMetric(keras.metrics.Metric):
    """Base class of the metrics whose state is sums over examples (tokens), each with its weight.

    Sums add up over batches and over replicas: the result is that of all the data at once, whatever share of the last
    batch each replica got.

    Attributes:
        lower_is_better: which way callbacks with `mode="auto"` take for the better one.
    """

    lower_is_better = False

    def __init__(self, *, name, dtype):
        super().__init__(name=name, dtype=require_choice(dtype, "dtype", ("float32", "float64")))
        set_direction(self, self.lower_is_better)

    def add_sum(self, name, shape=()):
        """A variable that starts at 0 and is summed over replicas."""
        return self.add_variable(shape, "zeros", dtype=self.dtype, aggregation="sum", name=name)

    def outputs_and_weights(self, outputs, sample_weight):
        """Outputs in the metric's dtype, and the weight of each example (token): sample weight times Keras mask."""
        # (batch, ..., classes), (batch,) or (batch, ...) -> (batch, ..., classes), (batch, ...)
        mask = get_mask(outputs)
        outputs = ops.cast(ops.convert_to_tensor(outputs), self.dtype)
        if len(outputs.shape) < 2 or (outputs.shape[-1] is not None and outputs.shape[-1] < 2):
            raise ValueError(
                f"{self.name} needs outputs of shape (batch, ..., classes), two classes or more, got "
                f"{tuple(outputs.shape)}. For one sigmoid unit p, give the model the outputs [1 - p, p]."
            )
        weights = ops.ones(ops.shape(outputs)[:-1], dtype=self.dtype)
        for factor in (mask, sample_weight):
            if factor is not None:
                factor = ops.convert_to_tensor(factor, dtype=self.dtype)
                weights = weights * per_example(factor, len(weights.shape), "sample_weight")
        return outputs, weights

    def labels_and_weights(self, y_true, outputs, weights):
        """Labels as integers, and the weights, 0 where a label is negative: such examples are unlabelled."""
        # (batch, ...), (batch, ..., 1) or one-hot (batch, ..., classes) -> (batch, ...) int32, (batch, ...)
        labels, classes = class_labels(ops.convert_to_tensor(y_true), outputs), outputs.shape[-1]
        if len(labels.shape) != len(outputs.shape) - 1:
            raise ValueError(
                f"{self.name} needs labels y that are integers, one per example (token), or one-hot, for outputs of "
                f"shape {tuple(outputs.shape)}, got shape {tuple(labels.shape)}."
            )
        weights = ops.where(labels >= 0, weights, ops.zeros_like(weights))
        inside = ops.logical_or(labels < classes, weights == 0)
        message = f"{self.name}: labels must lie in 0 … {classes - 1}, or below 0 where there is none; got"
        return labels, require_all(inside, message, labels, weights)


def per_example(values, rank, argument):
    """Values `(batch,)`, `(batch, 1)` or `(batch, length)` with as many axes as one value per token has."""
    if len(values.shape) == rank + 1 and values.shape[-1] == 1:
        values = ops.squeeze(values, axis=-1)
    if not 1 <= len(values.shape) <= rank:
        expected = "(batch,)" if rank == 1 else "(batch,) or that of the tokens"
        raise ValueError(f"{argument} must have the shape {expected}, got {tuple(values.shape)}.")
    return with_rank(values, rank)
