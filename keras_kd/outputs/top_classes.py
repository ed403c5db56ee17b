"""The likeliest classes of a distribution, and the rest of its mass spread evenly over all others."""

import functools
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

if keras.backend.backend() == "jax":
    import jax

TINY = 1.1754944e-38  # the smallest normal float32: keeps log(0) finite


class TopClasses(NamedTuple):
    """A distribution over many classes as its likeliest ones, `(batch, ..., k)`, which stands for logits.

    It travels as it is through a dataset and into the step, and becomes an array of all classes only where one is
    needed. Make it with `of`, or of one of the classes that `among` gives.

    Attributes:
        classes: The likeliest classes, int32 `(batch, ..., k)`. One may come twice, with the same log-probability.
        log_p: Their natural log-probabilities at temperature 1, float32 `(batch, ..., k)`.
        log_each: The log-probability of each other class, float32 `(batch, ...)`.
        count: How many classes there are; of the Python class, so that it is known of every tensor and every spec.
    """

    classes: object
    log_p: object
    log_each: object

    @staticmethod
    @functools.cache
    def among(count):
        """The Python class of distributions over so many classes."""
        return type("TopClasses", (TopClasses,), {"__slots__": (), "count": count})

    @classmethod
    def of(cls, classes, log_p, count, log_each=None):
        """From the likeliest of `count` classes, each once; the others share the rest of the mass, 1 − Σ p, by default.

        Where nothing is left for the others, each gets the smallest normal float32, of which the log is finite.
        """
        classes, log_p = tf.cast(classes, "int32"), tf.cast(log_p, "float32")
        if classes.shape.rank != log_p.shape.rank or not classes.shape.is_compatible_with(log_p.shape):
            raise ValueError(f"classes and log_p must have one shape, got {classes.shape} and {log_p.shape}.")
        if log_each is None:
            rest = 1.0 - tf.reduce_sum(tf.exp(log_p), axis=-1)
            log_each = tf.math.log(tf.maximum(rest / max(count - classes.shape[-1], 1), TINY))
        return cls.among(count)(classes, log_p, log_each)

    def dense(self):
        """The log-probabilities of all classes, `(batch, ..., count)`."""
        if isinstance(self.classes, keras.KerasTensor):
            return keras.KerasTensor((*self.classes.shape[:-1], self.count), self.log_p.dtype)
        if keras.backend.backend() == "jax":
            everywhere = ops.repeat(self.log_each[..., None], self.count, axis=-1)
            return jax.numpy.put_along_axis(everywhere, self.classes, self.log_p, axis=-1, inplace=False)
        return dense_logs(self.classes, self.log_p, self.log_each, self.count)


def in_full(outputs):
    """Outputs, a tensor, list or dict, with dense logits in place of each `TopClasses`."""
    if isinstance(outputs, TopClasses):
        return outputs.dense()
    if isinstance(outputs, dict):
        return {name: in_full(output) for name, output in outputs.items()}
    return type(outputs)(map(in_full, outputs)) if isinstance(outputs, (list, tuple)) else outputs


def dense_logs(classes, log_p, log_each, count):
    """The log-probabilities `(..., count)` of all classes, from those `(..., k)` of some and the rest's `(...)`."""
    return replaced(tf.repeat(log_each[..., None], count, axis=-1), classes, log_p)


def replaced(tensor, positions, values):
    """`tensor (..., n)` with `values (..., k)` at `positions (..., k)` of its last axis."""
    count, k = tensor.shape[-1], positions.shape[-1]
    flat = tf.reshape(tensor, [-1, count])
    rows = tf.repeat(tf.range(tf.shape(flat)[0]), k)
    where = tf.stack([rows, tf.reshape(positions, [-1])], axis=-1)
    return tf.reshape(tf.tensor_scatter_nd_update(flat, where, tf.reshape(values, [-1])), tf.shape(tensor))
