"""Checks inside the step: they stop a batch before anything is learnt from it, and name it."""

import functools
import re

import keras
import tensorflow as tf

_MARK = re.compile(r"keras_kd: (teacher|labels) at step (\d+)")
_EXPLANATIONS = {
    "teacher": (
        "the teacher's output holds NaN or infinite values in training batch {step} (counted from 0 over all epochs); "
        "nothing was learnt from that batch. Check the teacher on it: its inputs, its weights, an overflow in float16."
    ),
    "labels": (
        "y holds a label outside the student's classes in training batch {step} (counted from 0 over all epochs); "
        "nothing was learnt from that batch. Labels are integers from 0 to classes - 1; for unlabelled examples use "
        "-1 and SparseCategoricalCrossentropy(ignore_class=-1)."
    ),
}


def all_finite(tensors):
    """Whether every floating tensor of a structure is free of NaN and infinities, as a scalar bool tensor."""
    floating = [tensor for tensor in keras.tree.flatten(tensors) if tensor.dtype.is_floating]
    return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in floating]))


def require(condition, what, step, tensors):
    """Return `tensors`, which can be used only where `condition` holds; else the step fails before it learns."""
    mark = tf.strings.join(["keras_kd: ", what, " at step ", tf.strings.as_string(step)])
    with tf.control_dependencies([tf.debugging.Assert(condition, [mark])]):
        return keras.tree.map_structure(tf.identity, tensors)


def keep_where(condition, gradients):
    """The gradients, or zeros where the scalar `condition` does not hold; `None` as condition keeps them."""
    if condition is None:
        return gradients
    return tf.nest.map_structure(
        lambda part: (
            tf.where(condition, part, tf.zeros_like(part)) if part is not None and part.dtype.is_floating else part
        ),
        gradients,
        expand_composites=True,
    )


def labels_in_range(labels, classes, ignore_class):
    """Whether all integer labels are in `[0, classes)` or equal to `ignore_class`, as a scalar bool tensor."""
    inside = tf.logical_and(labels >= 0, labels < classes)
    if ignore_class is not None:
        inside = tf.logical_or(inside, tf.equal(labels, ignore_class))
    return tf.reduce_all(inside)


def explain(what, step):
    """The ValueError for a check that failed."""
    return ValueError(_EXPLANATIONS[what].format(step=step))


def raising_value_errors(function, check_after):
    """Wrap a train function: a failed check of `require` surfaces as the ValueError that explains it.

    `check_after()` runs behind each call, for checks that cannot stop a step from within.
    """

    @functools.wraps(function)
    def wrapped(iterator):
        try:
            logs = function(iterator)
        except tf.errors.InvalidArgumentError as error:
            mark = _MARK.search(str(error))
            if mark is None:
                raise
            raise explain(mark[1], mark[2]) from None
        check_after()
        return logs

    return wrapped
