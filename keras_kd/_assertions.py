"""Checks of values that are known only while a step runs: how they are raised, and how `fit` reads them again.

Eager code raises ValueError. A graph can only assert: its error wraps the message in TensorFlow's own text. So every
message that leaves a graph, or a NumPy function inside one, is written as `[keras_kd: message] [value]`, which
`as_value_errors` finds in the text of the error and turns into a ValueError. Nothing else writes or reads that form.
"""

import contextlib
import re

import keras
import tensorflow as tf
from keras import ops

MARK = "keras_kd: "
PLACE = "{value}"  # where the value goes in a message; a message without it ends in the value
_MARKED = re.compile(r"\[" + MARK + r"([^\[\]]*)\] \[([^\[\]]*)\]")


def marked(message, value):
    """The text that `as_value_errors` reads: for errors that a NumPy function raises inside a graph."""
    return f"[{MARK}{message}] [{value}]"


@contextlib.contextmanager
def as_value_errors():
    """Raise a TensorFlow error with a marked message as the ValueError that the message makes."""
    try:
        yield
    except tf.errors.OpError as error:
        found = _MARKED.search(str(error))
        if found is None:
            raise
        message, value = (re.sub(r"\\([\\'\"])", r"\1", part) for part in found.groups())  # TensorFlow escapes quotes
        raise value_error(message, value) from None


def value_error(message, value):
    """The ValueError of a message and a value."""
    return ValueError(message.replace(PLACE, str(value)) if PLACE in message else f"{message} {value}.")


def asserted(condition, message, value):
    """Return an operation that fails with a marked message unless `condition` holds; None in eager execution."""
    # tf.debugging.Assert would put it into a tf.cond, which takes longer than the check itself.
    return tf.raw_ops.Assert(condition=condition, data=[MARK + message, tf.convert_to_tensor(value)])


def require_all(sound, message, values, result):
    """Return `result`; raise an error of `message` and the first of `values` that is not sound, if there is any.

    ValueError in eager execution, `tf.errors.InvalidArgumentError` in a graph, which `fit` and `evaluate` turn into a
    ValueError. XLA drops assertions: there, and on JAX, a floating `result` becomes NaN. No values are all sound.
    """
    if keras.backend.backend() == "jax":
        floating = keras.backend.is_float_dtype(result.dtype)
        return ops.where(ops.all(sound), result, float("nan")) if floating else result
    everything = tf.reduce_all(sound)
    first = _first(tf.convert_to_tensor(values), tf.logical_not(sound))
    if tf.executing_eagerly():
        if not everything:
            first = first.numpy()
            raise value_error(message, first.decode() if isinstance(first, bytes) else first)
        return result
    with tf.control_dependencies([asserted(everything, message, first)]):
        if not result.dtype.is_floating:
            return tf.identity(result)
        return tf.where(everything, result, tf.constant(float("nan"), result.dtype))


def _first(values, chosen):
    """The first chosen value; an empty one, 0 or "", where none is, as of a replica without examples."""
    values = tf.concat([tf.reshape(values, [-1]), tf.zeros([1], values.dtype)], axis=0)
    ranks = tf.concat([2 * tf.cast(tf.reshape(chosen, [-1]), tf.int32), [1]], axis=0)
    return tf.gather(values, tf.argmax(ranks))
