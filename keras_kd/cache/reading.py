"""Looks examples up by key, inside a dataset's `map`, in files that are mapped into memory.

All of it are TensorFlow's operations: they need no Python and so wait for none, neither for each other nor for the
step that trains meanwhile.
"""

import numpy as np
import tensorflow as tf

from keras_kd._assertions import MARK
from keras_kd.cache import files


class Reader:
    """Reads the signals of one cache, or of several that hold parts of the same.

    Args:
        folders: Where they are.
        layout: Their `Layout`.
        sequences: `{signal by token: names of the entries of x that were as long, or None}`, of all folders.
    """

    def __init__(self, folders, layout, sequences):
        self._folders, self._layout, self._sequences = folders, layout, sequences
        self._called = ", ".join(map(str, folders))

    def _open(self):
        """Map the files, by operations of the graph that is being traced."""
        self._keys, self._positions = zip(*(_index(folder) for folder in self._folders), strict=True)
        self._tensors = {
            name: [files.opened_tensor(folder, name, dtype, shape) for folder in self._folders]
            for name, (dtype, shape, _) in self._layout.columns.items()
        }

    def joined(self, x):
        """A batch as `Taught`."""
        self._open()
        layout = self._layout
        keys, names = layout.key.of(x)
        folder, at, found = self._looked_up(keys)
        at.set_shape(keys.shape)
        padded = {name: self._padded_length(x, name) for name in layout.by_token}
        spans = {name: self._span(name, folder, at) for name in layout.by_token}
        fits = [count is None or tf.reduce_max(spans[name][1]) <= count for name, count in padded.items()]
        with tf.control_dependencies([self._require(found, names, fits, padded, spans)]):
            at = tf.identity(at)
        rows = {}
        for name in layout.codings:
            if name not in spans:
                rows |= {file: self._gathered(file, folder, at) for file in layout.files_of(name)}
                continue
            start, length = spans[name]
            count = tf.reduce_max(length) if padded[name] is None else padded[name]
            places = tf.range(count)
            there = places < length[:, None]
            of_tokens = tf.where(there, start[:, None] + places, 0)  # (batch, length)
            folders = None if folder is None else tf.where(there, folder[:, None], self._somewhere(name))
            more = [layout.mask_of(name)] if name in layout.masked else []
            rows |= {file: self._gathered(file, folders, of_tokens) for file in [*layout.files_of(name), *more]}
        x = layout.key.without_strings(x)
        return layout.decode(x, rows, {name: length for name, (_, length) in spans.items()})

    def _looked_up(self, keys):
        """`(folder, position in it, whether it was found)` of each key; of one folder alone, `folder` is None."""
        folder, position, found = None, None, None
        for number, (known, positions) in enumerate(zip(self._keys, self._positions, strict=True)):
            at = tf.raw_ops.LowerBound(sorted_inputs=known, values=keys[None], out_type=tf.int64)[0]
            at = tf.minimum(at, known.shape[1] - 1)
            here = tf.gather(known[0], at) == keys
            at = tf.gather(positions, at)
            if number:
                new = here & ~found
                folder, position = tf.where(new, number, folder), tf.where(new, at, position)
                found |= here
            else:
                folder = tf.zeros(tf.shape(keys), tf.int32) if len(self._keys) > 1 else None
                position, found = tf.where(here, at, 0) if len(self._keys) > 1 else at, here
        return folder, position, found

    def _gathered(self, file, folder, at):
        """The rows of a file, `(*at.shape, ...)`."""
        tensors = self._tensors[file]
        if folder is None:
            return tf.gather(_not_empty(tensors[0]), at)
        flat, folder = tf.reshape(at, [-1]), tf.reshape(folder, [-1])
        places = [tf.where(folder == number)[:, 0] for number in range(len(tensors))]
        rows = [
            tf.gather(_not_empty(tensor), tf.gather(flat, where)) for tensor, where in zip(tensors, places, strict=True)
        ]
        stitched = tf.dynamic_stitch([tf.cast(where, tf.int32) for where in places], rows)
        shape = tf.concat([tf.shape(at), tensors[0].shape[1:]], axis=0)
        return tf.ensure_shape(tf.reshape(stitched, shape), at.shape + tensors[0].shape[1:])

    def _span(self, name, folder, at):
        """Where the tokens of each example begin, and how many they are, `(batch,)` x2."""
        file = self._layout.end_of(name)
        before = self._gathered(file, folder, tf.maximum(at - 1, 0))
        start = tf.where(at > 0, before, 0)
        return start, self._gathered(file, folder, at) - start

    def _padded_length(self, x, name):
        """How many tokens the signals of a batch have; None for as many as the longest example."""
        entries = self._layout.key.sequences(x)
        known = self._sequences[name]
        if known is None:  # whoever stored it told of ids alone
            known = list(entries) if len(entries) == 1 else []
        entry = next((entries[one] for one in known if one in entries), None)
        if entry is None:
            return None
        return tf.shape(entry, tf.int64)[1] if entry.shape[1] is None else tf.constant(entry.shape[1], tf.int64)

    def _somewhere(self, name):
        """A folder that holds tokens of a signal."""
        return int(np.argmax([tensor.shape[0] for tensor in self._tensors[self._layout.files_of(name)[0]]]))

    def _require(self, found, names, fits, padded, spans):
        """An operation that raises if an example was not found, or is longer than its batch."""
        sound = tf.reduce_all(found)
        for one in fits:
            sound &= one
        counts = [tf.constant(-1, tf.int64) if count is None else count for count in padded.values()]
        lengths = [length for _, length in spans.values()]

        def fail():
            return tf.numpy_function(self._fail, [found, names, *counts, *lengths], tf.bool)

        return tf.cond(sound, lambda: True, fail)

    def _fail(self, found, names, *counts_and_lengths):
        require_found(found, names, self._layout, self._called)
        half = len(counts_and_lengths) // 2
        for signal, count, lengths in zip(
            self._layout.by_token, counts_and_lengths[:half], counts_and_lengths[half:], strict=True
        ):
            if count >= 0:
                require_room(count, lengths, signal, names, self._layout, self._called)
        return np.True_


def require_found(found, names, layout, called):
    """Raise ValueError that names the first example that was not found in the cache `called` so."""
    if found.all():
        return
    where = f"{np.flatnonzero(~found)[0]} of its batch, {(~found).sum()} of {len(names)} are missing there"
    hint = _HINT if layout.key.entry is None and layout.by_token else ""
    raise ValueError(
        f"[{MARK}the cache {called} holds no signals of the example] "
        f"[{layout.key.called(names[~found][0])} ({where}){hint}]"
    )


def require_room(count, lengths, signal, names, layout, called):
    """Raise ValueError that names the longest example if it has more than `count` tokens."""
    if lengths.max() > count:
        raise ValueError(
            f"[{MARK}the cache {called} holds {lengths.max()} tokens of the signal {signal!r}, but the batch is only "
            f"{count} long, of the example] [{layout.key.called(names[lengths.argmax()])}]"
        )


def _index(folder):
    """`(keys (1, n) ascending, positions (n,))`."""
    keys, positions = (files.opened_tensor(folder, name, "<i8", ()) for name in files.INDEX)
    return keys[None], positions


def _not_empty(tensor):
    return tensor if tensor.shape[0] else tf.zeros((1, *tensor.shape[1:]), tensor.dtype)


_HINT = ". If batches are padded with another number than when it was stored: see `padding` of cache_signals"
