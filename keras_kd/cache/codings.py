"""How the numbers of an output are stored: in full, as 8-bit integers, as the likeliest classes, or as drawn classes.

A coding names the fields that an example has for the output and converts in both directions: `encode` while a cache is
built, `decode` inside a dataset's `map`. `Full` and `Int8` decode to dense float32, the others to `TopClasses`.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_kd.outputs.top_classes import TINY, TopClasses, replaced

INT8 = "int8"
DTYPES = ["float16", "float32", INT8]
_FLOATS = {"float16": "<f2", "float32": "<f4"}
_NUMBERS_AT_ONCE = 2**21  # probabilities that are summed at once


class TopLogProbs(NamedTuple):
    """The likeliest classes of a distribution and their log-probabilities, as an API returns them.

    Attributes:
        classes: Integers `(examples, ..., k)`, the indices of the classes.
        log_p: Their natural log-probabilities `(examples, ..., k)`; the rest of the mass is 1 − Σ exp(log_p) > 0.
        of: The number of classes.
    """

    classes: object
    log_p: object
    of: int


@dataclasses.dataclass(frozen=True)
class Full:
    """Every number of an output whose examples have this `shape`, in float16 (relative error 2⁻¹¹) or float32."""

    shape: tuple[int, ...]
    dtype: str

    def fields(self):
        """`{field: (dtype, shape)}` of one example."""
        return {"": (_FLOATS[self.dtype], self.shape)}

    def encode(self, output, keys=None):
        """`{field: tensor}` of a batch of outputs, `(batch, *shape)`; `keys`, int64 `(batch,)`, are the examples'."""
        return {"": tf.cast(output, self.dtype)}

    def decode(self, parts):
        """The output from `{field: tensor}`."""
        return tf.cast(parts[""], tf.float32)


@dataclasses.dataclass(frozen=True)
class Whole:
    """Every number of an output of whole numbers, such as token ids, in NumPy's dtype "<i4" or "|u1"."""

    shape: tuple[int, ...]
    dtype: str

    def fields(self):
        return {"": (self.dtype, self.shape)}

    def encode(self, output, keys=None):
        return {"": tf.cast(output, np.dtype(self.dtype))}

    def decode(self, parts):
        return parts[""]


@dataclasses.dataclass(frozen=True)
class Int8:
    """A vector v as round(v / s) in int8 with s = max |v| / 127 in float32: each number is off by s / 2 at most."""

    shape: tuple[int, ...]

    def fields(self):
        return {"": ("|i1", self.shape), ".scale": ("<f4", self.shape[:-1])}

    def encode(self, output, keys=None):
        # (batch, ..., features) -> the same in int8, (batch, ...)
        output = tf.cast(output, tf.float32)
        scale = tf.reduce_max(tf.abs(output), axis=-1) / 127.0
        steps = output / tf.where(scale > 0.0, scale, 1.0)[..., None]
        return {"": tf.cast(tf.round(steps), tf.int8), ".scale": scale}

    def decode(self, parts):
        return tf.cast(parts[""], tf.float32) * parts[".scale"][..., None]


@dataclasses.dataclass(frozen=True)
class TopK:
    """The k likeliest classes with their log-probabilities, and the log of the mass of all others.

    Decoded, the others share their mass equally, log (mass / (classes − k)) each. That loses
    KL(teacher ‖ stored) = Σ over the others of p · log (p · (classes − k) / mass). With log-probabilities in float16,
    50 of 250,002 classes take 304 bytes, 50 of up to 65,536 take 204.
    """

    shape: tuple[int, ...]
    k: int
    dtype: str

    def fields(self):
        *outer, classes = self.shape
        kept = (*outer, self.k)
        return {
            ".classes": (_index_dtype(classes), kept),
            ".log_p": (_FLOATS[self.dtype], kept),
            ".log_rest": ("<f4", tuple(outer)),
        }

    def encode(self, output, keys=None):
        # (batch, ..., classes) logits -> (batch, ..., k) x2, (batch, ...) nats
        classes, log_p, log_rest = _likeliest(output, self.k)
        classes = tf.cast(classes, np.dtype(_index_dtype(self.shape[-1])))
        return {".classes": classes, ".log_p": tf.cast(log_p, self.dtype), ".log_rest": log_rest}

    def decode(self, parts):
        # (batch, ..., k) x2, (batch, ...) -> `TopClasses`
        log_each = parts[".log_rest"] - math.log(self.shape[-1] - self.k)
        return TopClasses.of(parts[".classes"], parts[".log_p"], self.shape[-1], log_each)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Classes drawn from the teacher's distribution: an unbiased estimate of it at temperature 1.

    Of N = `draws`, n_c are class c, p̂_c = n_c / N. Since E p̂ = p, the gradient softmax(s) − p̂ of KL(p̂ ‖ softmax(s))
    with respect to the student's logits s is unbiased. That of `TopK` is not: it spreads the mass it cuts off evenly.
    A class that was not drawn gets the smallest normal float32. Only for temperature 1: softmax(log p̂ / T) is not
    linear in p̂, so its mean is not softmax(log p / T).

    The draws are those of systematic sampling: the classes into which (i + u) / N, i = 0 … N − 1, fall on the axis of
    cumulative probabilities, with one u in [0, 1) per distribution. n_c is N p_c rounded up or down, so its variance
    is f (1 − f), f the fraction of N p_c: never more than the N p_c (1 − p_c) of independent draws, as in the paper.
    u is the upper half of FarmHash64 of the example's key and the position of the distribution in it (int64 each),
    over 2³²: an example always gets the same draws. They are stored in ascending order, a class as often as it was
    drawn: 2 bytes per draw for up to 65,536 classes, else 4; 48 bytes for N = 12 of 250,002 classes.

    Reference: Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025,
    https://arxiv.org/abs/2503.16870 (with p as the proposal). Systematic sampling: Douc, Cappé and Moulines,
    "Comparison of resampling schemes for particle filtering", 2005, https://hal.science/hal-00005883.
    """

    shape: tuple[int, ...]
    draws: int

    def fields(self):
        return {".draws": (_index_dtype(self.shape[-1]), (*self.shape[:-1], self.draws))}

    def encode(self, output, keys):
        # (batch, ..., classes) logits, (batch,) -> (batch, ..., draws)
        rows = tf.reshape(tf.cast(output, tf.float32), [-1, self.shape[-1]])
        positions = tf.where(tf.ones(tf.shape(output)[:-1], tf.bool))  # (rows, axes) int64, the example first
        positions = tf.concat([tf.gather(keys, positions[:, :1]), positions[:, 1:]], axis=-1)
        hashes = tf.bitcast(tf.fingerprint(positions), tf.int64)
        dtype = np.dtype(_index_dtype(self.shape[-1]))
        drawn = tf.numpy_function(self._drawn, [rows, hashes, positions[:, 0]], tf.as_dtype(dtype), stateful=False)
        drawn = tf.reshape(drawn, tf.concat([tf.shape(output)[:-1], [self.draws]], axis=0))
        return {".draws": tf.ensure_shape(drawn, (*output.shape[:-1], self.draws))}

    def decode(self, parts):
        # (batch, ..., draws) -> `TopClasses`
        drawn = tf.cast(parts[".draws"], tf.int32)
        times = tf.searchsorted(drawn, drawn, side="right") - tf.searchsorted(drawn, drawn, side="left")
        log_p = tf.math.log(tf.cast(times, tf.float32) / self.draws)
        return TopClasses.of(drawn, log_p, self.shape[-1], tf.fill(tf.shape(drawn)[:-1], math.log(TINY)))

    def _drawn(self, logits, hashes, keys):
        # (rows, classes), (rows,) x2 -> (rows, draws), ascending
        starts = ((hashes >> 32) + 2.0**31 + 0.5) / 2.0**32  # the upper half of a signed number
        at_once = max(1, min(_NUMBERS_AT_ONCE // self.shape[-1], 1024))
        drawn = np.empty((len(logits), self.draws), _index_dtype(self.shape[-1]))
        for first in range(0, len(logits), at_once):
            rows = slice(first, first + at_once)
            p = np.exp(logits[rows] - logits[rows].max(axis=-1, keepdims=True))
            if np.isnan(p).any():
                key = keys[rows][np.isnan(p).any(axis=-1)][0]
                raise ValueError(f"the output of the example with the key {key} holds NaN. Check the teacher on it.")
            drawn[rows] = systematic_draws(p, starts[rows], self.draws)
        return drawn


def systematic_draws(p, starts, draws):
    """The classes into which (i + start) / draws, i = 0 … draws − 1, fall on the axis of cumulative probabilities."""
    # (rows, classes) of any sum, (rows,) in (0, 1) -> int64 (rows, draws), ascending
    cumulative = np.cumsum(p, axis=-1, dtype=np.float64)
    cumulative /= cumulative[:, -1:]
    rows = np.arange(len(p))[:, None]  # all rows lie on one axis, so that one search finds all draws
    positions = (np.arange(draws) + starts[:, None]) / draws + rows
    found = np.searchsorted((cumulative + rows).reshape(-1), positions.reshape(-1), side="right")
    return found.reshape(positions.shape) - rows * p.shape[-1]


def coding_of_output(name, shape, given_k, *, top_k, sampled, dtype):
    """The coding of a teacher's output, of logits or, if `given_k` is not None, `TopLogProbs` of k classes."""
    dtype = "float16" if dtype == INT8 else dtype
    if given_k is not None:
        if sampled is not None:
            raise ValueError(f"sampled needs all logits, but {name!r} is a TopLogProbs. Leave sampled= out.")
        if top_k not in (None, given_k):
            raise ValueError(f"top_k={top_k} is for logits, but {name!r} is a TopLogProbs of k = {given_k}.")
        top_k = given_k
    classes = shape[-1] if shape and shape[-1] is not None else 0
    if sampled is not None:
        if classes < 2:
            raise ValueError(f"sampled needs distributions over at least 2 classes, got {name!r} of shape {shape}.")
        return Sampled(shape, sampled)
    if top_k is None:
        return Full(shape, dtype)
    if top_k >= classes:
        raise ValueError(f"top_k must be less than the number of classes, got {top_k} for {name!r} of shape {shape}.")
    return TopK(shape, top_k, dtype)


def unequal_k(name, found):
    """The ValueError for `TopLogProbs` that cannot be stored together."""
    return ValueError(
        f"TopLogProbs must have the same k in all rows and batches, got {found} of {name!r}. Cut each row to its k "
        "likeliest classes, k being that of the shortest: the others share the rest of the mass."
    )


def coding_of_layer(shape, dtype):
    """The coding of a layer's output of this shape; numbers without an axis of features are not stored as int8."""
    if dtype != INT8:
        return Full(shape, dtype)
    return Int8(shape) if shape and shape != (None,) else Full(shape, "float32")


def config_of(coding):
    """A coding as the manifest holds it."""
    return {"coding": type(coding).__name__, **dataclasses.asdict(coding), "shape": list(coding.shape)}


def coding_from(config):
    """The coding that a manifest names."""
    kinds = {kind.__name__: kind for kind in (Full, Whole, Int8, TopK, Sampled)}
    options = {name: value for name, value in config.items() if name != "coding"}
    return kinds[config["coding"]](**{**options, "shape": tuple(options["shape"])})


def _index_dtype(classes):
    return "<u2" if classes <= 2**16 else "<u4"


def _likeliest(output, k):
    """The k likeliest classes of logits or `TopLogProbs`, likeliest first: int32 `(..., k)`, log p, log of the rest."""
    if isinstance(output, TopLogProbs):
        classes, log_p = tf.cast(output.classes, tf.int32), tf.cast(output.log_p, tf.float32)
        message = f"classes must be >= 0 and below of={output.of}"
        tf.debugging.assert_non_negative(classes, message)
        tf.debugging.assert_less(classes, output.of, message)
        log_rest = tf.math.log1p(-tf.reduce_sum(tf.exp(tf.cast(output.log_p, tf.float64)), axis=-1))
        order = tf.argsort(-log_p, axis=-1)
        classes, log_p = (tf.gather(one, order, batch_dims=order.shape.rank - 1) for one in (classes, log_p))
        return classes, log_p, tf.cast(log_rest, tf.float32)
    everything = tf.nn.log_softmax(tf.cast(output, tf.float32))
    log_p, classes = tf.math.top_k(everything, k)
    others = replaced(everything, classes, tf.fill(tf.shape(log_p), -math.inf))
    return classes, log_p, tf.reduce_logsumexp(others, axis=-1)  # not 1 − Σ p, which cancels where the rest is small
