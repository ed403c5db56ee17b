"""Looks examples up by key, inside a dataset's `map`, in files that are mapped into memory.

It is done in NumPy: a mapped file that is a constant of TensorFlow's does not stay one, as `tf.data` folds constants
when it makes an iterator, and so reads the whole file into memory of its own.
"""

import functools

import numpy as np
import tensorflow as tf

from keras_kd._assertions import MARK
from keras_kd.cache import files
from keras_kd.cache.layout import CONTENT, KEY


class Joiner:
    """Puts the outputs of examples beside a batch of them.

    Args:
        layout: The `Layout` of the outputs.
        called: What their cache is called in messages.
    """

    def __init__(self, layout, called):
        self._layout, self._called = layout, called
        self._wanted = {file: column for file, column in layout.columns.items() if file not in (KEY, CONTENT)}
        self._by_token = layout.files_by_token

    def joined(self, x, located, *more, sequences=None):
        """A batch as `PrecomputedBatch`.

        Args:
            x: What the models read.
            located: A function in NumPy: `located(keys, names, *more)`, names being what the examples are called in
                messages, gives `(chunks, positions, sequences)`. Chunks are `[(position of its first example,
                {file: array})]` in order; positions `(batch,)` int64 say where in them each example is; sequences are
                `{output by token: names of the entries of x that were as long}`, None for the names if nobody knew.
            more: Tensors.
            sequences: These sequences, where they are known before; what length is static then stays so.
        """
        layout = self._layout
        keys, names = layout.key.of(x)
        entries = layout.key.sequences(x) if self._by_token else {}
        lengths = [tf.shape(entry, tf.int64)[1] for entry in entries.values()]

        def read(keys, names, lengths, *more):
            chunks, positions, sequences = located(keys, names, *more)
            lengths = dict(zip(entries, lengths.tolist(), strict=True))
            padded = {output: _padded_length(lengths, sequences[output]) for output in self._by_token}
            rows = self._rows(chunks, positions, padded, names)
            return [rows[file] for file in self._wanted]

        arguments = [keys, names, tf.stack(lengths) if lengths else tf.zeros([0], tf.int64), *more]
        dtypes = [tf.as_dtype(np.dtype(column.dtype)) for column in self._wanted.values()]
        rows = dict(zip(self._wanted, tf.numpy_function(read, arguments, dtypes), strict=True))
        static = {name: entry.shape[1] for name, entry in entries.items()}
        length_of = {
            file: _padded_length(static, sequences[output]) if sequences else None
            for output, of_tokens in self._by_token.items()
            for file in of_tokens
        }
        for file, (_, shape, by_token) in self._wanted.items():
            rows[file].set_shape((keys.shape[0], *([length_of[file]] if by_token else []), *shape))
        lengths = {output: rows[layout.end_of(output)] for output in self._by_token}
        return layout.decode(layout.key.without_strings(x), rows, lengths)

    def _rows(self, chunks, positions, padded, names):
        """`{file: (batch, ...)}` with lengths in the place of ends; of outputs by token `(batch, length, ...)`."""
        parts, rows = _parts(chunks, positions), {}
        for output, of_tokens in self._by_token.items():
            end = self._layout.end_of(output)
            spans = _assembled([_spans(columns[end], positions[here] - first) for first, columns, here in parts], parts)
            start, length = spans[:, :1], spans[:, 1]
            rows[end], count = length, padded[output]
            if count is None:
                count = length.max(initial=0)
            elif length.max(initial=0) > count:
                raise self._too_long(output, count, length, names)
            places = np.arange(count)
            tokens = np.where(places < length[:, None], start + places, 0)  # (batch, length); decode hides the rest
            for file in of_tokens:
                rows[file] = _assembled([_taken(columns[file], tokens[here]) for _, columns, here in parts], parts)
        for file in self._wanted.keys() - rows.keys():
            found = [_taken(columns[file], positions[here] - first) for first, columns, here in parts]
            rows[file] = _assembled(found, parts)
        return rows

    def _too_long(self, output, count, length, names):
        return ValueError(
            f"[{MARK}the cache {self._called} holds {length.max()} tokens of the output {output!r}, but the batch is "
            f"only {count} long, of the example] [{self._layout.key.called(names[length.argmax()])}]"
        )


class Reader:
    """Reads the outputs of one cache, or of several that hold parts of the same.

    Args:
        folders: Where they are; they are opened when the first batch is read.
        layout: Their `Layout`.
        sequences: `{output by token: names of the entries of x that were as long, or None}`, of all folders.
        called: What they are called in messages.
    """

    def __init__(self, folders, layout, sequences, called):
        self._folders, self._layout, self._sequences, self._called = folders, layout, sequences, called
        self._joiner = Joiner(layout, called)

    def joined(self, x):
        """A batch as `PrecomputedBatch`."""
        return self._joiner.joined(x, self._located, sequences=self._sequences)

    def _located(self, keys, names):
        """Where the examples are, as `Joiner.joined` asks for it; of one in several folders, in the first."""
        positions, found = np.zeros(keys.shape, np.int64), np.zeros(keys.shape, bool)
        for (first, _), (known, places) in zip(self._chunks, self._indices, strict=True):
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            new = (known[at] == keys) & ~found
            positions = np.where(new, first + places[at], positions)
            found |= new
        require_found(found, names, self._layout, self._called)
        return self._chunks, positions, self._sequences

    @functools.cached_property
    def _chunks(self):
        chunks, first = [], 0
        for folder in self._folders:
            columns = {name: files.opened(folder, name, *column[:2]) for name, column in self._layout.columns.items()}
            chunks.append((first, columns))
            first += len(columns[KEY])
        return chunks

    @functools.cached_property
    def _indices(self):
        """Of each folder `(keys (n,) ascending, positions (n,))`."""
        return [[files.opened(folder, name, "<i8", ()) for name in files.INDEX] for folder in self._folders]


def require_found(found, names, layout, called):
    """Raise ValueError that names the first example that was not found in the cache `called` so."""
    if found.all():
        return
    where = f"{np.flatnonzero(~found)[0]} of its batch, {(~found).sum()} of {len(names)} are missing there"
    hint = _HINT if layout.key.entry is None and layout.by_token else ""
    raise ValueError(
        f"[{MARK}the cache {called} holds no outputs of the example] "
        f"[{layout.key.called(names[~found][0])} ({where}){hint}]"
    )


def _padded_length(lengths, known):
    """How many tokens an output has in a batch whose entries have these lengths; None for as many as the longest."""
    if known is None:  # whoever stored it told of ids alone
        known = list(lengths) if len(lengths) == 1 else []
    return next((lengths[name] for name in known if name in lengths), None)


def _parts(chunks, positions):
    """`[(position of its first example, {file: array}, which examples of the batch are there)]`."""
    if len(chunks) == 1 or not len(positions):
        return [(*chunks[0], slice(None))]
    chunk_of = np.searchsorted([first for first, _ in chunks], positions, side="right") - 1
    return [(*chunks[number], np.flatnonzero(chunk_of == number)) for number in np.unique(chunk_of)]


def _assembled(found, parts):
    """The rows of a batch from those of its parts."""
    if len(found) == 1:
        return found[0]
    rows = np.empty((sum(map(len, found)), *found[0].shape[1:]), found[0].dtype)
    for values, (_, _, here) in zip(found, parts, strict=True):
        rows[here] = values
    return rows


def _taken(values, at):
    if not len(values):  # at are all of no token
        return np.zeros((*at.shape, *values.shape[1:]), values.dtype)
    return np.take(values, at, axis=0)


def _spans(ends, at):
    """Where the tokens of each example begin, and how many they are, `(batch, 2)`."""
    start = np.where(at > 0, ends[at - 1], 0)
    return np.stack([start, ends[at] - start], axis=-1)


_HINT = ". If batches are padded with another number than when it was stored: see `padding` of cache_teacher_outputs"
