"""Checks inside the step: they stop a batch before anything is learnt from it, and name it."""

import contextlib
import functools

import keras
import tensorflow as tf
from keras import ops

from keras_kd._assertions import PLACE, asserted, explained, value_error
from keras_kd._keras_private import backend_variable, get_mask, set_mask
from keras_kd.steps import replicas

_EXPLANATIONS = {
    "teacher": (
        f"the teacher's output holds NaN or infinite values in training batch {PLACE} (counted from 0 over all "
        "epochs); nothing was learnt from that batch. Check the teacher on it: its inputs, its weights, an overflow in "
        "float16."
    ),
    "labels": (
        f"y holds a label outside the student's classes in training batch {PLACE} (counted from 0 over all epochs); "
        "no weight was trained on that batch. Labels are integers from 0 to classes - 1; for unlabelled examples use "
        "-1 and SparseCategoricalCrossentropy(ignore_class=-1)."
    ),
}
_CHECKS = list(_EXPLANATIONS)
_CLEAN = [-1, -1]  # step and check of a note


def all_finite(tensors):
    """Whether every floating tensor of a structure is free of NaN and infinities, as a scalar bool tensor."""
    present = [tensor for tensor in keras.tree.flatten(tensors) if tensor is not None]
    floating = [tensor for tensor in present if keras.backend.is_float_dtype(tensor.dtype)]
    return _all([ops.all(ops.isfinite(tensor)) for tensor in floating])


def labels_in_range(targets):
    """Whether all labels are in `[0, classes)` or equal to `ignore_class`, as a scalar bool tensor.

    Args:
        targets: `(labels, classes, ignore_class)` of each output.
    """

    def inside(labels, classes, ignore_class):
        labels = ops.cast(labels, "int")
        valid = ops.logical_and(labels >= 0, labels < classes)
        return valid if ignore_class is None else ops.logical_or(valid, ops.equal(labels, ignore_class))

    return _all([ops.all(inside(*target)) for target in targets])


def require(condition, check, step, tensors):
    """Return `tensors`, which can be used only where `condition` holds on all replicas; else the step fails on all."""
    condition = replicas.all_replicas(condition)
    assertion = asserted(condition, _EXPLANATIONS[check], step)
    with tf.control_dependencies([] if assertion is None else [assertion]):
        return keras.tree.map_structure(_identity, tensors)


class Note:
    """The first failed check of steps that XLA compiles, where assertions are dropped.

    From a failed check on, the steps are to leave everything as it is (`is_clean`); after the call, `explain` raises.

    Attributes:
        variable: Step and check, `(2,)` integers, -1 where nothing is noted.
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


def raising_value_errors(function, check_after=lambda: None):
    """Wrap a train or test function: an error with a marked message surfaces as the ValueError that explains it.

    `check_after()` runs after each call, for checks that cannot stop a step from within.
    """

    @functools.wraps(function)
    def wrapped(iterator):
        try:
            logs = function(iterator)
        except tf.errors.OpError as error:
            explanation = explained(error)
            if explanation is None:
                raise
            raise explanation from None
        check_after()
        return logs

    return wrapped


def _identity(tensor):
    """The tensor, after the control dependencies, with its Keras mask."""
    return None if tensor is None else set_mask(tf.identity(tensor), get_mask(tensor))


def _all(conditions):
    return ops.all(ops.stack([ops.convert_to_tensor(True), *conditions]))
