"""Checks of values that are known only while a step runs."""

import keras
import tensorflow as tf
from keras import ops

MARK = "keras_kd: "  # by it, `fit` knows an assertion of ours, and raises it as a ValueError


def require_all(sound, message, values, result):
    """Return `result`; raise an error of `message` and the first of `values` that is not sound, if there is any.

    ValueError in eager execution, `tf.errors.InvalidArgumentError` in a graph. XLA drops assertions: there, and on
    JAX, a floating `result` becomes NaN.
    """
    if keras.backend.backend() == "jax":
        floating = keras.backend.is_float_dtype(result.dtype)
        return ops.where(ops.all(sound), result, float("nan")) if floating else result
    everything = tf.reduce_all(sound)
    first = tf.gather(tf.reshape(values, [-1]), tf.argmin(tf.cast(tf.reshape(sound, [-1]), tf.int32)))
    if tf.executing_eagerly():
        if not everything:
            first = first.numpy()
            raise ValueError(f"{message} {first.decode() if isinstance(first, bytes) else first}.")
        return result
    with tf.control_dependencies([tf.debugging.Assert(everything, [MARK + message, first])]):
        if not result.dtype.is_floating:
            return tf.identity(result)
        return tf.where(everything, result, tf.constant(float("nan"), result.dtype))
