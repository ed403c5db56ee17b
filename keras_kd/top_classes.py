"""The likeliest classes of a distribution, and the rest of its mass spread evenly over all others."""

import tensorflow as tf


def dense_logs(classes, log_p, log_each, count):
    """The log-probabilities of all classes.

    Args:
        classes: The likeliest classes `(..., k)` int32, each once.
        log_p: Their log-probabilities, `(..., k)`.
        log_each: The log-probability of each other class, `(...)`.
        count: How many classes there are.

    Returns:
        `(..., count)`.
    """
    return replaced(tf.repeat(log_each[..., None], count, axis=-1), classes, log_p)


def replaced(tensor, positions, values):
    """`tensor (..., n)` with `values (..., k)` at `positions (..., k)` of its last axis."""
    count, k = tensor.shape[-1], positions.shape[-1]
    flat = tf.reshape(tensor, [-1, count])
    rows = tf.repeat(tf.range(tf.shape(flat)[0]), k)
    where = tf.stack([rows, tf.reshape(positions, [-1])], axis=-1)
    return tf.reshape(tf.tensor_scatter_nd_update(flat, where, tf.reshape(values, [-1])), tf.shape(tensor))
