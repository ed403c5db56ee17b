"""How the numbers of a signal are kept: in full, as 8-bit integers, or as the likeliest classes.

A coding says which fields a record has for the signal, and goes both ways, in TensorFlow: `encode` while a cache is
built, `decode` inside a dataset's `map`, so that whoever reads it sees dense float32.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_kd.top_classes import dense_logs, replaced

INT8 = "int8"
DTYPES = ["float16", "float32", INT8]


@dataclasses.dataclass(frozen=True)
class Full:
    """Every number, in float16 (relative error 2⁻¹¹ up to 65,504) or float32.

    Attributes:
        shape: Of the signal of one example.
        dtype: "float16" or "float32".
    """

    shape: tuple[int, ...]
    dtype: str

    def fields(self):
        """`{field: (dtype, shape)}` of one example."""
        return {"": (_numpy(self.dtype), self.shape)}

    def encode(self, signal):
        """`{field: tensor}` of a batch of signals, `(batch, *shape)`."""
        return {"": tf.cast(signal, self.dtype)}

    def decode(self, parts):
        """The signal in float32 from `{field: tensor}`."""
        return tf.cast(parts[""], tf.float32)


@dataclasses.dataclass(frozen=True)
class Int8:
    """A vector v as round(v / s) in int8 with s = max |v| / 127 in float32: each number is off by s / 2 at most."""

    shape: tuple[int, ...]

    def fields(self):
        return {"": ("|i1", self.shape), ".scale": ("<f4", self.shape[:-1])}

    def encode(self, signal):
        # (batch, ..., features) -> the same in int8, (batch, ...)
        signal = tf.cast(signal, tf.float32)
        scale = tf.reduce_max(tf.abs(signal), axis=-1) / 127.0
        steps = signal / tf.where(scale > 0.0, scale, 1.0)[..., None]
        return {"": tf.cast(tf.round(steps), tf.int8), ".scale": scale}

    def decode(self, parts):
        return tf.cast(parts[""], tf.float32) * parts[".scale"][..., None]


@dataclasses.dataclass(frozen=True)
class TopK:
    """The k likeliest classes with their log-probabilities, and the log of the mass of all others.

    Decoded, the others share their mass equally: the logits are log p of the k classes, and
    log (mass / (classes − k)) of each other class.

    Attributes:
        shape: `(..., classes)`, of one example.
        k: 1 ≤ k < classes.
        dtype: Of the log-probabilities: "float16" or "float32".
    """

    shape: tuple[int, ...]
    k: int
    dtype: str

    def fields(self):
        index = "<u2" if self.shape[-1] <= 2**16 else "<u4"
        kept = (*self.shape[:-1], self.k)
        return {
            ".classes": (index, kept),
            ".log_p": (_numpy(self.dtype), kept),
            ".log_rest": ("<f4", self.shape[:-1]),
        }

    def encode(self, signal):
        # (batch, ..., classes) logits -> (batch, ..., k) x2, (batch, ...) nats
        if isinstance(signal, TopLogProbs):
            classes, log_p = tf.cast(signal.classes, tf.int32), tf.cast(signal.log_p, tf.float32)
            log_rest = tf.math.log1p(-tf.reduce_sum(tf.exp(tf.cast(signal.log_p, tf.float64)), axis=-1))
        else:
            everything = tf.nn.log_softmax(tf.cast(signal, tf.float32))
            log_p, classes = tf.math.top_k(everything, self.k)
            others = replaced(everything, classes, tf.fill(tf.shape(log_p), -math.inf))
            log_rest = tf.reduce_logsumexp(others, axis=-1)  # not 1 − Σ p, which cancels where the rest is small
        return {
            ".classes": tf.cast(classes, tf.as_dtype(np.dtype(self.fields()[".classes"][0]))),
            ".log_p": tf.cast(log_p, self.dtype),
            ".log_rest": tf.cast(log_rest, tf.float32),
        }

    def decode(self, parts):
        # (batch, ..., k) x2, (batch, ...) -> (batch, ..., classes)
        each = parts[".log_rest"] - math.log(self.shape[-1] - self.k)
        classes, log_p = tf.cast(parts[".classes"], tf.int32), tf.cast(parts[".log_p"], tf.float32)
        return dense_logs(classes, log_p, each, self.shape[-1])


class TopLogProbs(NamedTuple):
    """What an API returns of a distribution: the likeliest classes and their log-probabilities, nothing of the others.

    Attributes:
        classes: Integers `(examples, ..., k)`, the numbers of the classes.
        log_p: Their natural log-probabilities `(examples, ..., k)`; the rest of the mass is 1 − Σ exp(log_p) > 0.
        of: How many classes there are.
    """

    classes: object
    log_p: object
    of: int


CODINGS = {kind.__name__: kind for kind in (Full, Int8, TopK)}


def config_of(coding):
    """What the manifest says of a coding."""
    return {"coding": type(coding).__name__, **dataclasses.asdict(coding), "shape": list(coding.shape)}


def coding_of(config):
    """The coding that the manifest names."""
    config = dict(config)
    kind = CODINGS[config.pop("coding")]
    return kind(**{**config, "shape": tuple(config["shape"])})


def _numpy(dtype):
    return {"float16": "<f2", "float32": "<f4"}[dtype]
