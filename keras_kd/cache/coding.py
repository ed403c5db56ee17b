"""How the numbers of an output are kept: in full, as 8-bit integers, as the likeliest classes, or as a sample of them.

A coding says which fields a record has for the output, and goes both ways: `encode` while a cache is built, `decode`
inside a dataset's `map`. Full and Int8 come back as dense float32, the others as a `TopClasses`.
"""

import dataclasses

import tensorflow as tf

from keras_kd._checks import require_count
from keras_kd.cache.likeliest import FLOATS, GradedTopK, PackedTopK, TopK, TopLogProbs
from keras_kd.cache.sampled import Sampled

__all__ = ["CODINGS", "DTYPES", "INT8", "Full", "Int8", "PackedTopK", "Sampled", "TopK", "TopLogProbs"]

INT8 = "int8"
DTYPES = ["float16", "float32", INT8]


@dataclasses.dataclass(frozen=True)
class Full:
    """Every number, in float16 (relative error 2⁻¹¹ up to 65,504) or float32.

    Attributes:
        shape: Of the output of one example.
        dtype: "float16" or "float32".
    """

    shape: tuple[int, ...]
    dtype: str

    def fields(self):
        """`{field: (dtype, shape)}` of one example."""
        return {"": (FLOATS[self.dtype], self.shape)}

    def encode(self, output, keys=None):
        """`{field: tensor}` of a batch of outputs, `(batch, *shape)`; `keys`, int64 `(batch,)`, are the examples'."""
        return {"": tf.cast(output, self.dtype)}

    def decode(self, parts):
        """The output from `{field: tensor}`."""
        return tf.cast(parts[""], tf.float32)


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


def require_sparse(top_k, packed, sampled):
    """These arguments of `cache_teacher_outputs` as a dict, if they are right."""
    if top_k is not None and sampled is not None:
        raise ValueError(f"top_k and sampled are two ways to store a part, got {top_k} and {sampled}. Give one.")
    return {
        "top_k": None if top_k is None else require_count(top_k, "top_k", at_least=1),
        "packed": packed if isinstance(packed, bool) else require_count(packed, "packed", at_least=1),
        "sampled": None if sampled is None else require_count(sampled, "sampled", at_least=1),
    }


def coding_of_output(output, shape, name, *, top_k, packed, sampled, dtype):
    """The coding of a teacher's output, `top_k`, `packed`, `sampled` and `dtype` being those of `cache_teacher_outputs`.

    Args:
        output: A `TopLogProbs`, or anything else for one that gives a number for each class.
        shape: Of one example.
        name: For the messages.
    """
    dtype = "float16" if dtype == INT8 else dtype
    if isinstance(output, TopLogProbs):
        if sampled is not None:
            raise ValueError(f"sampled needs all logits, but {name!r} is a TopLogProbs. Leave sampled= out.")
        return _top_k(shape, tuple(output.log_p.shape)[-1], packed, dtype, name)
    if packed and top_k is None:
        raise ValueError(f"packed={packed} packs the likeliest classes, but all of {name!r} are stored. Give top_k.")
    if sampled is not None:
        if not shape or shape[-1] < 2:
            raise ValueError(f"sampled needs distributions over at least 2 classes, got {name!r} of shape {shape}.")
        return Sampled(shape, sampled)
    if top_k is None:
        return Full(shape, dtype)
    return _top_k(shape, top_k, packed, dtype, name)


def coding_of_layer(shape, *, dtype):
    """The coding of a layer's output of this shape; numbers without an axis of features are not kept as int8."""
    if dtype != INT8:
        return Full(shape, dtype)
    return Int8(shape) if shape and shape != (None,) else Full(shape, "float32")


def _top_k(shape, k, packed, dtype, name):
    if not shape or k >= shape[-1]:
        raise ValueError(f"top_k must be less than the number of classes, got {k} for {name!r} of shape {shape}.")
    if isinstance(packed, bool):
        return PackedTopK(shape, k) if packed else TopK(shape, k, dtype)
    graded = GradedTopK(shape, k, token_bytes=packed)
    if packed < graded.least_bytes:
        raise ValueError(f"packed must be >= {graded.least_bytes} bytes for top_k={k} of {name!r}, got {packed}.")
    return graded


CODINGS = {kind.__name__: kind for kind in (Full, Int8, TopK, PackedTopK, GradedTopK, Sampled)}


def config_of(coding):
    """What the manifest says of a coding."""
    return {"coding": type(coding).__name__, **dataclasses.asdict(coding), "shape": list(coding.shape)}


def coding_of(config):
    """The coding that the manifest names."""
    config = dict(config)
    kind = CODINGS[config.pop("coding")]
    return kind(**{**config, "shape": tuple(config["shape"])})
