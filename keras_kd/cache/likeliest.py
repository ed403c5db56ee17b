"""Distributions as their likeliest classes and the mass of the others."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_kd.cache import packing
from keras_kd.outputs.top_classes import TINY, TopClasses, replaced

FLOATS = {"float16": "<f2", "float32": "<f4"}
_DEEPEST = 40.0  # nats: a probability of 4e-18 of the likeliest class's; masked classes must not widen the steps
_FLOAT16_MAX = 65504.0
_SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True)
class TopK:
    """The k likeliest classes with their log-probabilities, and the log of the mass of all others.

    Decoded, a `TopClasses`: the others share their mass equally, log (mass / (classes − k)) each. What that loses is
    KL(teacher ‖ stored) = Σ over the others of p · log (p · (classes − k) / mass).

    Bytes: 304 for k = 50 of 250,002 classes in float16, 204 of up to 65,536 classes.

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
            ".log_p": (FLOATS[self.dtype], kept),
            ".log_rest": ("<f4", self.shape[:-1]),
        }

    def encode(self, output, keys=None):
        # (batch, ..., classes) logits -> (batch, ..., k) x2, (batch, ...) nats
        classes, log_p, log_rest = _likeliest(output, self.k)
        return {
            ".classes": tf.cast(classes, tf.as_dtype(np.dtype(self.fields()[".classes"][0]))),
            ".log_p": tf.cast(log_p, self.dtype),
            ".log_rest": log_rest,
        }

    def decode(self, parts):
        # (batch, ..., k) x2, (batch, ...) -> a `TopClasses`
        log_each = parts[".log_rest"] - math.log(self.shape[-1] - self.k)
        return TopClasses.of(parts[".classes"], parts[".log_p"], self.shape[-1], log_each)


@dataclasses.dataclass(frozen=True)
class PackedTopK:
    """As `TopK`, in fewer bytes: 125 for k = 50 of 250,002 classes.

    The classes in ascending order after Elias and Fano (`packing.Ascending`, 89 bytes); of each, in that order, how far
    it lies below the likeliest, in 2ᵇ − 1 equal steps from 0 to the depth d = min(max log p − min log p, 40 nats)
    (`packing.Fixed`, 32 bytes with b = 5); d and log mass − max log p in float16 (4 bytes). The mass of all classes
    being 1, that is enough. A log-probability is off by d / (2ᵇ − 1) / 2 at most, what lies deeper counts as d deep.

    Equal steps, because steps that widen with the depth lose more. Of a language model's top 50 of 4,096 words, which
    leave out 0.288 nats, equal steps lose 4.3e-4 more, levels d · (i / 31)^1.5 to ^3 5.7e-4 to 1.6e-3; b = 4 loses
    2.0e-3, b = 6 1.1e-4.

    Attributes:
        shape: `(..., classes)`, of one example.
        k: 1 ≤ k < classes.
        bits: b.
    """

    shape: tuple[int, ...]
    k: int
    bits: int = 5

    def fields(self):
        leading = self.shape[:-1]
        return {
            ".classes": ("|u1", (*leading, self._classes.bytes)),
            ".steps": ("|u1", (*leading, self._steps.bytes)),
            ".scale": ("<f2", (*leading, 2)),
        }

    def encode(self, output, keys=None):
        # (batch, ..., classes) logits -> (batch, ..., bytes) x2, (batch, ..., 2) nats
        classes, log_p, log_rest = _likeliest(output, self.k)
        classes, log_p = _by_class(classes, log_p)
        return {".classes": self._classes.encode(classes), **self._in_steps(log_p, log_rest)}

    def decode(self, parts):
        # (batch, ..., bytes) x2, (batch, ..., 2) -> a `TopClasses`
        below, rest = self._from_steps(parts)
        total = tf.reduce_logsumexp(tf.concat([below, rest], axis=-1), axis=-1, keepdims=True)
        log_each = (rest - total)[..., 0] - math.log(self.shape[-1] - self.k)
        return TopClasses.of(self._classes.decode(parts[".classes"]), below - total, self.shape[-1], log_each)

    def _in_steps(self, log_p, log_rest):
        """The fields of the log-probabilities."""
        highest = tf.reduce_max(log_p, axis=-1, keepdims=True)
        below = tf.minimum(highest - log_p, _DEEPEST)
        depth = tf.cast(tf.reduce_max(below, axis=-1, keepdims=True), tf.float16)
        rest = tf.clip_by_value(log_rest[..., None] - highest, -_FLOAT16_MAX, _FLOAT16_MAX)
        steps = tf.round(below / tf.maximum(tf.cast(depth, tf.float32), TINY) * self._last)
        return {
            ".steps": self._steps.encode(tf.cast(tf.clip_by_value(steps, 0.0, self._last), tf.int32)),
            ".scale": tf.concat([depth, tf.cast(rest, tf.float16)], axis=-1),
        }

    def _from_steps(self, parts):
        """Logs of the probabilities of the k classes `(..., k)` and of all others `(..., 1)`, but for a constant."""
        scale = tf.cast(parts[".scale"], tf.float32)
        steps = tf.cast(self._steps.decode(parts[".steps"]), tf.float32)
        return steps * (-scale[..., :1] / self._last), scale[..., 1:]

    @property
    def _classes(self):
        return packing.Ascending(self.k, self.shape[-1])

    @property
    def _steps(self):
        return packing.Fixed(self.k, self.bits)

    @property
    def _last(self):
        return 2.0**self.bits - 1.0


@dataclasses.dataclass(frozen=True)
class GradedTopK(PackedTopK):
    """As `PackedTopK` in a given number of bytes, in which common classes take less room than rare ones.

    The classes are coded by `packing.Graded`: for ids that go by how common they are, as those of most tokenizers do.
    Where k do not fit, the least likely are left out, and their mass goes to the others. Of the likeliest 50
    words after a word, by counts of pairs among 290,054 words of texts in 46 languages, the ids take 46 bytes on
    average, 90 in `PackedTopK`; all 50 fit into 75 bytes for 99 % of the words, into 60 for 88 %, so into
    `token_bytes` of 111 and 96 (`benchmarks/codings.py`).

    Attributes:
        shape, k, bits: As of `PackedTopK`.
        token_bytes: Bytes a distribution takes, 4 of them for the scale and ⌈k · bits / 8⌉ for the steps.
    """

    token_bytes: int = 0

    @property
    def least_bytes(self):
        """The fewest `token_bytes` in which there is room for one class."""
        return self._classes.least_bytes + self._steps.bytes + _SCALE_BYTES

    def encode(self, output, keys=None):
        # (batch, ..., classes) logits -> (batch, ..., bytes) x2, (batch, ..., 2) nats
        classes, log_p, log_rest = _likeliest(output, self.k)
        fitting = self._classes.fitting(classes)
        there = tf.sequence_mask(fitting, self.k)
        left_out = tf.where(there, -math.inf, log_p)
        log_rest = tf.reduce_logsumexp(tf.concat([log_rest[..., None], left_out], axis=-1), axis=-1)
        classes, log_p = _by_class(tf.where(there, classes, self.shape[-1]), tf.where(there, log_p, log_p[..., :1]))
        return {".classes": self._classes.encode(classes, fitting), **self._in_steps(log_p, log_rest)}

    def decode(self, parts):
        # (batch, ..., bytes) x2, (batch, ..., 2) -> a `TopClasses`
        classes, found = self._classes.decode(parts[".classes"])
        below, rest = self._from_steps(parts)
        there = tf.sequence_mask(found, self.k)
        each_once = tf.where(there, below, -math.inf)
        total = tf.reduce_logsumexp(tf.concat([each_once, rest], axis=-1), axis=-1, keepdims=True)
        last = tf.gather(below, found[..., None] - 1, batch_dims=found.shape.rank)
        log_each = (rest - total)[..., 0] - tf.math.log(tf.cast(self.shape[-1] - found, tf.float32))
        return TopClasses.of(classes, tf.where(there, below, last) - total, self.shape[-1], log_each)

    @property
    def _classes(self):
        return packing.Graded(self.k, self.shape[-1], self.token_bytes - self._steps.bytes - _SCALE_BYTES)


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


def _likeliest(output, k):
    """The k likeliest classes of logits or `TopLogProbs`, likeliest first, int32 `(..., k)`, their log p, log rest."""
    if isinstance(output, TopLogProbs):
        classes, log_p = tf.cast(output.classes, tf.int32), tf.cast(output.log_p, tf.float32)
        message = f"classes must be >= 0 and below of={output.of}"
        tf.debugging.assert_non_negative(classes, message)
        tf.debugging.assert_less(classes, output.of, message)
        log_rest = tf.math.log1p(-tf.reduce_sum(tf.exp(tf.cast(output.log_p, tf.float64)), axis=-1))
        return *_taken(tf.argsort(-log_p, axis=-1), classes, log_p), tf.cast(log_rest, tf.float32)
    everything = tf.nn.log_softmax(tf.cast(output, tf.float32))
    log_p, classes = tf.math.top_k(everything, k)
    others = replaced(everything, classes, tf.fill(tf.shape(log_p), -math.inf))
    return classes, log_p, tf.reduce_logsumexp(others, axis=-1)  # not 1 − Σ p, which cancels where the rest is small


def _by_class(classes, log_p):
    """Both in the order of the classes."""
    return _taken(tf.argsort(classes, axis=-1), classes, log_p)


def _taken(order, *tensors):
    return [tf.gather(tensor, order, batch_dims=order.shape.rank - 1) for tensor in tensors]
