"""The key of an example: an entry of `x`, or a fingerprint of its content. Never its position."""

import numbers

import keras
import tensorflow as tf

_UNSIGNED = 2**64 - 1
_BLOCK = 16  # tokens that are hashed at once


class Key:
    """The key of each example of a batch, an int64: `key` and `padding` of `cache_teacher_outputs`."""

    def __init__(self, entry=None, padding=0):
        if entry is not None and not (isinstance(entry, str) and entry):
            raise TypeError(f"key must be the name of an entry of x, or None for the content of x, got {entry!r}.")
        given = padding.values() if isinstance(padding, dict) else [padding]
        if not all(isinstance(value, numbers.Integral) or value is None for value in given):
            raise TypeError(f"padding must be an integer, a dict of one for each entry of x, or None, got {padding!r}.")
        self.entry = entry
        self.padding = tf.nest.map_structure(lambda value: None if value is None else int(value), padding)

    def config(self):
        return {"of": "content" if self.entry is None else {"entry": self.entry}, "padding": self.padding}

    @classmethod
    def from_config(cls, config):
        return cls(None if config["of"] == "content" else config["of"]["entry"], config["padding"])

    def of(self, x):
        """`(keys, names)` of a batch: int64 `(batch,)`, and the names of the examples in messages."""
        if self.entry is None:
            keys = fingerprint(x, self.padding)
            return keys, keys
        ids = self._ids(x)
        return (fingerprint(ids) if ids.dtype == tf.string else tf.cast(ids, tf.int64)), ids

    def content(self, x):
        """The fingerprint `(batch,)` of `x` without its ids, by which two examples of one id are told apart."""
        if self.entry is None:
            return fingerprint(x, self.padding)
        others = {name: value for name, value in x.items() if name != self.entry} if isinstance(x, dict) else {}
        return fingerprint(others, self.padding) if others else tf.zeros_like(self.of(x)[0])

    def sequences(self, x):
        """`{name: entry}` of the entries of `x` that have a second axis, which may be that of tokens."""
        return {name: leaf for name, leaf in named_leaves(x).items() if leaf.shape.rank > 1 and name != self.entry}

    def lengths(self, x, count, keys):
        """How many of `count` tokens each example has, `(batch,)`: up to the last that is not padding.

        Entries of `x` that are as long and may be padded tell it; without one, no token is padding.
        """
        lengths, padded = tf.zeros_like(keys), tf.constant(False)
        for name, leaf in self.sequences(x).items():
            padding = _padding_of(self.padding, name, leaf)
            if padding is not None:
                as_long = tf.shape(leaf, tf.int64)[1] == count
                ends = last_true(leaf != tf.cast(padding, leaf.dtype))
                lengths = tf.where(as_long, tf.maximum(lengths, ends), lengths)
                padded |= as_long
        return tf.where(padded, lengths, count)

    def without_strings(self, x):
        """`x` without ids that are strings, which XLA cannot take."""
        if self.entry is None or self._ids(x).dtype != tf.string:
            return x
        return {name: value for name, value in x.items() if name != self.entry}

    def called(self, name):
        if self.entry is None:
            return f"content {int(name) & _UNSIGNED:016x}"
        return f"{self.entry} {name.decode(errors='replace') if isinstance(name, bytes) else name}"

    def _ids(self, x):
        if not isinstance(x, dict) or self.entry not in x:
            found = sorted(x) if isinstance(x, dict) else "no dict"
            raise ValueError(f"key={self.entry!r} must be an entry of x, which is {found}. Give x as a dict with it.")
        ids = x[self.entry]
        if len(ids.shape) == 2 and ids.shape[1] == 1:
            ids = ids[:, 0]
        if len(ids.shape) != 1 or not (ids.dtype == tf.string or ids.dtype.is_integer):
            raise ValueError(
                f"key={self.entry!r} must hold an integer or a string for each example, (batch,) or (batch, 1), got "
                f"{ids.dtype.name} {tuple(ids.shape)}. key=None takes the content of x."
            )
        return ids


def fingerprint(x, padding=None):
    """FarmHash64 of each example, int64 `(batch,)`: of its bytes, or, of several entries, of their fingerprints.

    Entries go by their sorted names; arrays are row-major and little-endian; of strings, which have no fixed length,
    each is first replaced by its own fingerprint, unless there is one per example.

    Args:
        x: A tensor with the examples first, or a structure of them.
        padding: An integer, or `{name: integer}`: the fingerprint of an entry of integers or booleans
            `(batch, length)` then does not depend on how often this number (False for booleans) stands at its end. It
            is Σ (2i + 1) (hᵢ − h) mod 2⁶⁴ over blocks i = 0, 1, … of 16 numbers in int64, the last filled up with
            `padding`, hᵢ being a block's FarmHash64, and h that of a block of nothing but `padding`.
    """
    parts = []
    for name, leaf in named_leaves(x).items():
        number = _padding_of(padding, name, leaf)
        parts.append(_hash(leaf) if number is None else _block_hash(leaf, number))
    return parts[0] if len(parts) == 1 else _hash(tf.stack(parts, axis=-1))


def named_leaves(x):
    """`{name: tensor}` of the entries of `x`, sorted; of one tensor, the name is ""."""
    leaves = {}
    for path, leaf in keras.tree.flatten_with_path(x):
        if not isinstance(leaf, (tf.Tensor, tf.TensorSpec)) or leaf.shape.rank == 0:
            raise TypeError(f"x must hold dense tensors with the examples first, got {leaf!r}.")
        leaves["/".join(map(str, path))] = leaf
    return leaves


def _hash(rows):
    return tf.bitcast(tf.fingerprint(rows), tf.int64)


def _block_hash(tokens, padding):
    # (batch, length) -> (batch,) int64
    count = tokens.shape[1] if tokens.shape[1] is not None else tf.shape(tokens)[1]
    blocks = -(-count // _BLOCK)
    tokens = tf.cast(tokens, tf.int64)
    if not isinstance(count, int) or count % _BLOCK:
        tokens = tf.pad(tokens, [[0, 0], [0, -count % _BLOCK]], constant_values=padding)
    with tf.init_scope():
        padding_hash = _hash(tf.fill([1, _BLOCK], tf.constant(padding, tf.int64)))
    hashes = tf.reshape(_hash(tf.reshape(tokens, [-1, _BLOCK])) - padding_hash, [tf.shape(tokens)[0], blocks])
    return tf.reduce_sum(hashes * (2 * tf.range(tf.cast(blocks, tf.int64)) + 1), axis=1)


def _padding_of(padding, name, leaf):
    if leaf.shape.rank != 2 or not (leaf.dtype.is_integer or leaf.dtype == tf.bool):
        return None
    value = padding.get(name) if isinstance(padding, dict) else padding
    return 0 if value is not None and leaf.dtype == tf.bool else value


def last_true(mask):
    """The position after the last True of each row, `(batch, length)` -> int64 `(batch,)`; 0 without one."""
    ends = tf.where(mask, tf.range(1, tf.shape(mask, tf.int64)[1] + 1), 0)
    return tf.reduce_max(tf.pad(ends, [[0, 0], [1, 0]]), axis=1)
