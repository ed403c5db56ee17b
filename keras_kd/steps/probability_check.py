"""Notices outputs that look like probabilities where a loss takes them for logits, and their ending is unknown."""

import warnings

import keras
from keras import ops

_UNSEEN, _LOGITS, _PROBABILITIES = range(3)
_TOLERANCE = 1e-3  # of the sum of a row of probabilities, in half precision as well


class ProbabilityCheck:
    """What the first batch shows of outputs whose last activation is unknown. Make it in the strategy's scope.

    `take` is traced into the step, and costs nothing where all endings are known; `warn` is called after each step, and
    reads the verdict once.
    """

    def __init__(self):
        self._verdicts = {
            side: keras.Variable(
                _UNSEEN, dtype="int32", trainable=False, name=f"ending_of_{side}", aggregation="only_first_replica"
            )
            for side in ("teacher", "student")
        }
        self._pending = {}

    def take(self, pairing, teacher, student):
        """Look at the outputs of a batch, `ModelOutputs`."""
        for loss_name, side, tensors in pairing.outputs_of_unknown_ending(teacher, student):
            verdict = self._verdicts[side]
            new = ops.where(_are_probabilities(tensors), _PROBABILITIES, _LOGITS)
            verdict.assign(
                ops.where(ops.equal(verdict, _UNSEEN), ops.cast(new, "int32"), ops.convert_to_tensor(verdict))
            )
            self._pending[side] = loss_name

    def warn(self):
        """Warn if the outputs of the first batch looked like probabilities; once."""
        while self._pending:
            side, loss_name = self._pending.popitem()
            if int(self._verdicts[side].numpy()) == _PROBABILITIES:
                warnings.warn(
                    f"the {side} gives what looks like probabilities (rows of numbers from 0 to 1 that sum to 1), "
                    f"which {loss_name} takes for logits: its last activation is unknown, as of subclassed models and "
                    "Lambda layers. End it in a linear layer, or in a Dense or Softmax layer of a functional model.",
                    stacklevel=4,
                )


def _are_probabilities(tensors):
    """Whether all rows along the last axis sum to 1 and hold nothing below 0, as a scalar bool tensor."""
    found = [ops.greater(ops.size(tensors[0]), 0)]
    for tensor in tensors:
        rows = ops.cast(tensor, "float32")
        found.append(ops.all(rows >= 0.0))
        found.append(ops.all(ops.abs(ops.sum(rows, axis=-1) - 1.0) < _TOLERANCE))
    return ops.all(ops.stack([ops.convert_to_tensor(one) for one in found]))
