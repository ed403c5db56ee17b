"""What an example is known by: an entry of `x`, or a fingerprint of its content. Never its position."""

import keras
import tensorflow as tf

_UNSIGNED = 2**64 - 1


class Key:
    """The key of each example of a batch, an int64.

    Args:
        entry: The entry of a dict `x` that holds each example's id, integers or strings `(batch,)` or `(batch, 1)`;
            None: the key is the fingerprint of all of `x`.
    """

    def __init__(self, entry=None):
        if entry is not None and not (isinstance(entry, str) and entry):
            raise TypeError(f"key must be the name of an entry of x, or None for the content of x, got {entry!r}.")
        self.entry = entry

    def config(self):
        """What the manifest says of it."""
        return "content" if self.entry is None else {"entry": self.entry}

    @classmethod
    def from_config(cls, config):
        return cls(None if config == "content" else config["entry"])

    def of(self, x):
        """`(keys, names)` of a batch: int64 `(batch,)`, and what the examples are called in messages."""
        # (batch, ...) -> (batch,) x2
        if self.entry is None:
            keys = fingerprint(x)
            return keys, keys
        ids = self._ids(x)
        return (fingerprint(ids) if ids.dtype == tf.string else tf.cast(ids, tf.int64)), ids

    def content(self, x):
        """The fingerprint `(batch,)` of `x` without its ids: two examples of one id give themselves away by it."""
        if self.entry is None:
            return fingerprint(x)
        others = {name: value for name, value in x.items() if name != self.entry} if isinstance(x, dict) else {}
        return fingerprint(others) if others else tf.zeros_like(self.of(x)[0])

    def without_strings(self, x):
        """`x` without ids that are strings, which XLA cannot take."""
        if self.entry is None or self._ids(x).dtype != tf.string:
            return x
        return {name: value for name, value in x.items() if name != self.entry}

    def called(self, name):
        """An example's name in a message."""
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


def fingerprint(x):
    """FarmHash64 of each example, int64 `(batch,)`: of its bytes, or, of several entries, of their fingerprints.

    Entries go by their sorted names; arrays are row-major and little-endian; of strings, which have no fixed length,
    each is first replaced by its own fingerprint, unless there is one an example.
    """
    parts = []
    for leaf in keras.tree.flatten(x):
        if not isinstance(leaf, tf.Tensor) or leaf.shape.rank == 0:
            raise TypeError(f"x must hold dense tensors with the examples first, got {leaf!r}.")
        parts.append(tf.fingerprint(leaf))
    joined = parts[0] if len(parts) == 1 else tf.fingerprint(tf.concat(parts, axis=-1))
    return tf.bitcast(joined, tf.int64)
