"""Distributions as classes that were drawn from them."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_kd.cache import packing
from keras_kd.outputs.top_classes import TINY, TopClasses

_NUMBERS_AT_ONCE = 2**21  # probabilities that are summed up at once


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Classes that were drawn from the teacher's distribution: an unbiased estimate of it at temperature 1.

    Of N draws, n_c of the class c, p̂_c = n_c / N. With E p̂ = p, the gradient softmax(s) − p̂ of KL(p̂ ‖ softmax(s)) by
    the student's logits s is right on average, which that of top-k is not: it holds the mass that was cut off where it
    was spread. Nothing is spread here; a class that was not drawn has the smallest normal float32.

    Only at temperature 1: softmax(log p̂ / T), which other temperatures make of it, is no linear function of p̂, so its
    mean is not softmax(log p / T).

    The draws are those of systematic sampling: the classes in which (i + u) / N, i = 0 … N − 1, fall on the axis of the
    cumulative probabilities, of one u in [0, 1) for each distribution. n_c is N p_c rounded up or down, so that its
    variance is f (1 − f), f the fraction of N p_c. That is never more than the N p_c (1 − p_c) of independent draws,
    which the paper takes; of sums over several classes it may be more, as their draws depend on each other. u is the
    upper half of FarmHash64 of the example's key and the place of the distribution in it (int64 each), over 2³², so
    that the same example gets the same draws again.

    Stored are the draws in ascending order (`packing.Ascending`), a class as often as it was drawn: 89 bytes for N = 50
    of 250,002 classes, 25 for N = 12.

    Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025,
    https://arxiv.org/abs/2503.16870 (with p as the proposal). Systematic sampling: Douc, Cappé and Moulines,
    "Comparison of resampling schemes for particle filtering", 2005, https://hal.science/hal-00005883.

    Attributes:
        shape: `(..., classes)`, of one example.
        draws: N ≥ 1.
    """

    shape: tuple[int, ...]
    draws: int

    def fields(self):
        return {".draws": ("|u1", (*self.shape[:-1], self._classes.bytes))}

    def encode(self, output, keys):
        # (batch, ..., classes) logits, (batch,) -> (batch, ..., bytes)
        shape = tf.concat([tf.shape(output)[:-1], [self.draws]], axis=0)
        rows = tf.reshape(tf.cast(output, tf.float32), [-1, self.shape[-1]])
        places = tf.where(tf.ones(tf.shape(output)[:-1], tf.bool))  # (rows, axes) int64, the example first
        places = tf.concat([tf.gather(keys, places[:, :1]), places[:, 1:]], axis=-1)
        hashes = tf.bitcast(tf.fingerprint(places), tf.int64)
        drawn = tf.numpy_function(self._drawn, [rows, hashes, places[:, 0]], tf.int32, stateful=False)
        drawn = tf.ensure_shape(tf.reshape(drawn, shape), (*output.shape[:-1], self.draws))
        return {".draws": self._classes.encode(drawn)}

    def decode(self, parts):
        # (batch, ..., bytes) -> a `TopClasses`
        drawn = self._classes.decode(parts[".draws"])
        times = tf.searchsorted(drawn, drawn, side="right") - tf.searchsorted(drawn, drawn, side="left")
        log_p = tf.math.log(tf.cast(times, tf.float32) / self.draws)
        return TopClasses.of(drawn, log_p, self.shape[-1], tf.fill(tf.shape(drawn)[:-1], math.log(TINY)))

    def _drawn(self, logits, hashes, keys):
        # (rows, classes), (rows,) x2 -> (rows, draws), ascending
        starts = ((hashes >> 32) + 2.0**31 + 0.5) / 2.0**32  # the upper half of a signed number
        at_once = max(1, min(_NUMBERS_AT_ONCE // self.shape[-1], 1024))
        drawn = np.empty((len(logits), self.draws), np.int32)
        for first in range(0, len(logits), at_once):
            some = slice(first, first + at_once)
            p = np.exp(logits[some] - logits[some].max(axis=-1, keepdims=True))
            if np.isnan(p).any():
                key = keys[some][np.isnan(p).any(axis=-1)][0]
                raise ValueError(f"the output of the example with the key {key} holds NaN. Check the teacher on it.")
            drawn[some] = systematic_draws(p, starts[some], self.draws)
        return drawn

    @property
    def _classes(self):
        return packing.Ascending(self.draws, self.shape[-1])


def systematic_draws(p, starts, draws):
    """The classes in which (i + start) / draws, i = 0 … draws − 1, fall on the axis of the cumulative probabilities.

    Args:
        p: Probabilities of any sum `(rows, classes)`.
        starts: In (0, 1), `(rows,)`.

    Returns:
        int64 `(rows, draws)`, ascending.
    """
    cumulative = np.cumsum(p, axis=-1, dtype=np.float64)
    cumulative /= cumulative[:, -1:]
    rows = np.arange(len(p))[:, None]  # one behind the other on one axis, all are looked up at once
    places = (np.arange(draws) + starts[:, None]) / draws + rows
    found = np.searchsorted((cumulative + rows).reshape(-1), places.reshape(-1), side="right")
    return found.reshape(places.shape) - rows * p.shape[-1]
