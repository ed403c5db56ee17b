"""Checks inside the step: they stop a batch before anything is learnt from it, and name it."""

import contextlib
import warnings

import keras
import tensorflow as tf
from keras import ops

from keras_kd._assertions import PLACE, asserted, value_error
from keras_kd._keras_private import backend_variable, get_mask, set_mask
from keras_kd.steps import replicas
from keras_kd.steps.data_checks import UNLABELLED

_EXPLANATIONS = {
    "teacher": (
        f"the teacher's output holds NaN or infinite values in training batch {PLACE} (counted from 0 over all "
        "epochs); nothing was learnt from that batch. Check the teacher on it: its inputs, its weights, an overflow in "
        "float16."
    ),
    "labels": (
        f"y holds a label outside the student's classes in training batch {PLACE} (counted from 0 over all epochs); "
        f"no weight was trained on that batch. Labels are integers from 0 to classes - 1. {UNLABELLED}"
    ),
}
_CHECKS = list(_EXPLANATIONS)
_CLEAN = [-1, -1]  # step and check of a note
_UNSEEN, _LOGITS, _PROBABILITIES = range(3)
_TOLERANCE = 1e-3  # of the sum of a row of probabilities, in half precision as well


def all_finite(tensors):
    """Whether every floating tensor of a structure is free of NaN and infinities, as a scalar bool tensor."""
    present = [tensor for tensor in keras.tree.flatten(tensors) if tensor is not None]
    return _all(ops.all(ops.isfinite(tensor)) for tensor in present if keras.backend.is_float_dtype(tensor.dtype))


def labels_in_range(targets):
    """Whether all labels of `(labels, classes, ignore_class)`s are in `[0, classes)` or equal to `ignore_class`."""

    def inside(labels, classes, ignore_class):
        labels = ops.cast(labels, "int")
        valid = ops.logical_and(labels >= 0, labels < classes)
        return valid if ignore_class is None else ops.logical_or(valid, ops.equal(labels, ignore_class))

    return _all(ops.all(inside(*target)) for target in targets)


def require(condition, check, step, tensors):
    """Return `tensors`, which can be used only where `condition` holds on all replicas; else the step fails on all."""
    condition = replicas.all_replicas(condition)
    assertion = asserted(condition, _EXPLANATIONS[check], step)
    with tf.control_dependencies([] if assertion is None else [assertion]):
        return keras.tree.map_structure(_identity, tensors)


class Note:
    """The first failed check of steps that XLA compiles, where assertions are dropped.

    From a failed check on, the steps are to leave everything as it is (`is_clean`); after the call, `explain` raises.
    `variable` holds step and check, `(2,)` integers, -1 where nothing is noted.
    """

    def __init__(self):
        self.variable = keras.Variable(_CLEAN, dtype="int", trainable=False, name="failed_check")

    def is_clean(self):
        """Whether no check has failed, as a scalar bool tensor."""
        return self.variable[0] < 0

    def take(self, condition, check, step):
        """Note the step if `condition` does not hold and nothing is noted yet."""
        failed = ops.logical_and(ops.logical_not(condition), self.is_clean())
        noted = ops.stack([ops.cast(part, self.variable.dtype) for part in (step, _CHECKS.index(check))])
        self.variable.assign(ops.where(failed, noted, ops.convert_to_tensor(self.variable)))

    @contextlib.contextmanager
    def undoing(self, variables):
        """Give variables the values back that they had before the block, if a check has failed when it ends.

        Instead of a tf.cond around the block, in which an optimizer cannot run under a `tf.distribute` strategy.
        """
        before = [tf.identity(backend_variable(variable)) for variable in variables]
        yield
        clean = self.is_clean()
        for variable, value in zip(variables, before, strict=True):
            variable.assign(tf.where(clean, backend_variable(variable), value))

    def explain(self):
        """Raise ValueError if a check has failed, and be clean again."""
        noted = self.variable.numpy()
        self.clear()
        explain(noted)

    def clear(self):
        """Forget what is noted."""
        self.variable.assign(_CLEAN)


def explain(noted):
    """Raise ValueError for the step and check of a note, unless it is clean."""
    step, check = noted
    if step >= 0:
        raise value_error(_EXPLANATIONS[_CHECKS[check]], step)


class ProbabilityCheck:
    """Notices, in the first batch, outputs that a loss takes for logits and that look like probabilities.

    Only for outputs whose last activation is unknown. `take` is traced into the step, and costs nothing where all are
    known; `warn` is called after each step. Make it in the strategy's scope.
    """

    def __init__(self):
        options = {"dtype": "int32", "trainable": False, "aggregation": "only_first_replica"}
        self._verdicts = {side: keras.Variable(_UNSEEN, **options) for side in ("teacher", "student")}
        self._pending = {}

    def take(self, pairing, teacher, student):
        """Look at the outputs of a batch, `ModelOutputs`."""
        for loss_name, side, tensors in pairing.outputs_of_unknown_ending(teacher, student):
            verdict = self._verdicts[side]
            seen = ops.where(_are_probabilities(tensors), _PROBABILITIES, _LOGITS)
            verdict.assign(ops.where(ops.equal(verdict, _UNSEEN), seen, ops.convert_to_tensor(verdict)))
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
                    stacklevel=3,
                )


def _are_probabilities(tensors):
    """Whether all rows along the last axis sum to 1 and hold nothing below 0, as a scalar bool tensor."""
    rows = [ops.cast(tensor, "float32") for tensor in tensors]
    sums = [ops.all(ops.abs(ops.sum(one, axis=-1) - 1.0) < _TOLERANCE) for one in rows]
    return _all([ops.size(tensors[0]) > 0, *(ops.all(one >= 0.0) for one in rows), *sums])


def _identity(tensor):
    """The tensor, after the control dependencies, with its Keras mask."""
    return None if tensor is None else set_mask(tf.identity(tensor), get_mask(tensor))


def _all(conditions):
    return ops.all(ops.stack([ops.convert_to_tensor(one) for one in (True, *conditions)]))
