"""`attach_growing`: a cache that is built while a student learns: live in the first pass, from disk in later ones."""

import threading

import keras
import numpy as np
import tensorflow as tf

from keras_kd._assertions import MARK
from keras_kd._checks import require_count, require_model
from keras_kd.cache import files
from keras_kd.cache.building import Writer, alike
from keras_kd.cache.keys import Key
from keras_kd.cache.layout import CONTENT, KEY
from keras_kd.cache.reading import require_found, require_room
from keras_kd.cache.signals import SHARD_BYTES, prepared
from keras_kd.cache.stored import SignalCache, require_batches


def attach_growing(
    teacher,
    dataset,
    path,
    *,
    signals=None,
    key=None,
    padding=0,
    preprocessing=None,
    top_k=None,
    packed=False,
    sampled=None,
    dtype="float16",
    shard_bytes=SHARD_BYTES,
):
    """The dataset with the teacher's signals beside each example, which are stored the first time they are asked for.

    In the first pass the teacher runs on each batch that has examples which are not stored yet, and their signals are
    stored; what is handed out is what a later pass reads from disk, so that no number depends on which pass it is. When
    a pass has come to its end, the folder is a finished cache, as `cache_signals` makes it, but for the order of its
    examples. A killed run goes on with the shards that were finished. Order and batches may differ from pass to pass;
    what is randomly augmented has to have ids. One process at a time.

    Args:
        teacher: A built `keras.Model`.
        dataset: A batched `tf.data.Dataset` as for `cache_signals`; of an endless one, the cache is never finished.
        path: The folder: new, empty, or of this cache, finished or not.
        signals, key, padding, preprocessing, top_k, packed, sampled, dtype, shard_bytes: As of `cache_signals`.

    Returns:
        A `tf.data.Dataset` of the same batches, as many, with a `keras_kd.taught.Taught` in the place of `x`.

    Raises:
        TypeError, ValueError, OSError: As `cache_signals`. While it is read, `tf.errors.InvalidArgumentError` for
            numbers that cannot be kept, one id for two examples, and, in a finished cache, an example that it lacks.

    Example:

    >>> from keras_kd.cache.growing import attach_growing
    >>> x = np.random.rand(64, 8).astype("float32")
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> taught = attach_growing(teacher, tf.data.Dataset.from_tensor_slices((x,)).shuffle(64).batch(16), "signals")
    >>> for _ in range(2):  # the teacher runs in the first pass alone
    ...     batches = list(taught)
    >>> keras_kd.open_cache("signals")
    SignalCache('signals', 64 examples, signals ['output'])
    """
    require_count(shard_bytes, "shard_bytes", at_least=1)
    require_model(teacher, "teacher")
    require_batches(dataset)
    coded = {"dtype": dtype, "top_k": top_k, "packed": packed, "sampled": sampled}
    folder, source, setting = prepared(teacher, dataset, path, signals, Key(key, padding), preprocessing, coded)
    if (folder / files.MANIFEST).exists():
        cache = SignalCache([folder], verify=True)
        cache.require(setting)
        return cache.attach(dataset)
    growing = _Growing(Writer(folder, setting, source.layout, shard_bytes), folder, source)
    # Keras makes iterators that it does not read, and does not read on behind the last batch that it expects: so a
    # pass begins with its first batch, and ends with its last where their number is known.
    count = int(dataset.cardinality())
    taught = dataset.enumerate().map(lambda i, element: growing.joined(i, count, element))
    if count == tf.data.UNKNOWN_CARDINALITY:
        taught = taught.concatenate(_silent(growing.end, taught.element_spec))
    return taught.prefetch(2)


class _Growing:
    """The signals that are stored so far, on disk and in the shard that is still open."""

    def __init__(self, writer, folder, source):
        self._writer, self._folder, self._source, self._layout = writer, folder, source, source.layout
        self._lock = threading.Lock()
        self._finished = False
        self._seen = {}  # in this pass: the content of each id
        self._places = {}  # the position of each key
        self._sequences = [shard["sequences"] for shard in writer.shards]
        self._note_saved()
        keys = self._chunks[0][1][KEY]
        self._places.update(zip(reversed(keys.tolist()), reversed(range(len(keys))), strict=True))

    def joined(self, i, count, element):
        """The i-th of `count` batches, with a `Taught` in the place of `x`."""
        element = element if isinstance(element, tuple) else (element,)
        x = element[0]
        layout, key = self._layout, self._layout.key
        keys, names = key.of(x)
        content = keys if key.entry is None else key.content(x)
        entries = [tf.shape(entry, tf.int64)[1] for entry in key.sequences(x).values()]
        entries = tf.stack(entries) if entries else tf.zeros([0], tf.int64)
        wanted = [name for name in layout.columns if name not in (KEY, CONTENT)]
        columns = [layout.columns[name] for name in wanted]
        self._entries, self._spec, self._wanted = list(key.sequences(x)), x, wanted
        arguments = [tf.equal(i, 0), tf.equal(i, count - 1), keys, content, names, entries, *keras.tree.flatten(x)]
        dtypes = [tf.as_dtype(np.dtype(column.dtype)) for column in columns]
        rows = dict(zip(wanted, tf.numpy_function(self._taught, arguments, dtypes), strict=True))
        for name, (_, shape, by_token) in zip(wanted, columns, strict=True):
            rows[name].set_shape((keys.shape[0], *([None] if by_token else []), *shape))
        lengths = {name: rows[layout.end_of(name)] for name in layout.by_token}
        return (layout.decode(key.without_strings(x), rows, lengths), *element[1:])

    def end(self):
        """A pass has come to its end: the cache is whole."""
        with self._lock:
            self._finish()

    def _finish(self):
        if not self._finished:
            self._writer.finish()
            self._finished = True
            self._note_saved()

    def _taught(self, is_first, is_last, keys, content, names, entries, *leaves):
        """The rows of a batch, with lengths in the place of ends; of signals by token `(batch, length, ...)`."""
        with self._lock:
            if is_first:
                self._seen = {}
            self._require_one_each(keys, content)
            new = np.array([key not in self._places for key in keys.tolist()], bool)
            if new.any():
                if self._finished:
                    require_found(~new, names, self._layout, str(self._folder))
                self._learn(keys, new, leaves)
            if is_last:
                self._finish()
            places = np.array([self._places[key] for key in keys.tolist()], np.int64)
            return self._rows(places, names, entries)

    def _require_one_each(self, keys, content):
        if self._layout.key.entry is None or self._finished:
            return
        for key, one in zip(keys.tolist(), content.tolist(), strict=True):
            if self._seen.setdefault(key, one) != one:
                raise ValueError(
                    f"[{MARK}key must name one example each, but two different examples have the key] [{key}. Number "
                    "the examples anew; store a dataset before it is augmented or repeated]"
                )

    def _learn(self, keys, new, leaves):
        """Run the teacher on a batch, and store its signals of the examples that are `new`."""
        x = keras.tree.pack_sequence_as(self._spec, [tf.convert_to_tensor(leaf) for leaf in leaves])
        chosen = np.unique(keys, return_index=True)[1]
        encoded = _of_examples(self._source.encoded(x), np.sort(chosen[new[chosen]]), self._layout)
        first = self._chunks[-1][0] + len(self._chunks[-1][1][KEY])
        self._sequences.append(encoded.sequences)
        ends = {self._layout.end_of(name): np.cumsum(lengths) for name, lengths in encoded.lengths.items()}
        saved = self._writer.add(encoded)
        self._chunks.append((first, encoded.rows | ends))
        self._places.update((key, first + i) for i, key in enumerate(encoded.rows[KEY].tolist()))
        if saved:
            self._note_saved()

    def _note_saved(self):
        """What is stored: all that is on disk, behind which `_learn` adds the batches of the open shard."""
        self._chunks = [(0, {name: self._writer.stored(name) for name in self._layout.columns})]
        self._sequences = [alike(self._sequences)] if self._sequences else []

    def _rows(self, places, names, entries):
        starts = [start for start, _ in self._chunks]
        chunk_of = np.searchsorted(starts, places, side="right") - 1
        rows, layout = {}, self._layout
        for name, (dtype, shape, by_token) in layout.columns.items():
            if not by_token:
                rows[name] = np.empty((len(places), *shape), dtype)
        spans = np.zeros((len(layout.by_token), len(places), 2), np.int64)
        for number in np.unique(chunk_of):
            start, columns = self._chunks[number]
            here = chunk_of == number
            at = places[here] - start
            for name, values in rows.items():
                values[here] = columns[name][at]
            for signal, span in zip(layout.by_token, spans, strict=True):
                ends = columns[layout.end_of(signal)]
                span[here] = np.stack([np.where(at > 0, ends[np.maximum(at - 1, 0)], 0), ends[at]], axis=-1)
        for signal, span in zip(layout.by_token, spans, strict=True):
            lengths = span[:, 1] - span[:, 0]
            rows[layout.end_of(signal)] = lengths
            count = self._padded_length(signal, entries)
            if count is None:
                count = lengths.max()
            require_room(count, lengths, signal, names, layout, str(self._folder))
            more = [layout.mask_of(signal)] if signal in layout.masked else []
            for name in [*layout.files_of(signal), *more]:
                dtype, shape, _ = layout.columns[name]
                rows[name] = np.zeros((len(places), count, *shape), dtype)
                for example, (number, (start, end)) in enumerate(zip(chunk_of, span, strict=True)):
                    rows[name][example, : end - start] = self._chunks[number][1][name][start:end]
        return [rows[name] for name in self._wanted]

    def _padded_length(self, signal, entries):
        """How many tokens a signal has in a batch whose sequences are as long as `entries`; None: as its longest."""
        known = alike(self._sequences)[signal] or []
        entry = next((self._entries.index(name) for name in known if name in self._entries), None)
        return None if entry is None else entries[entry]


def _of_examples(encoded, chosen, layout):
    """Of a batch, some examples."""
    rows = {}
    for signal, lengths in encoded.lengths.items():
        kept = np.zeros(len(lengths), bool)
        kept[chosen] = True
        more = [layout.mask_of(signal)] if signal in layout.masked else []
        rows |= {name: encoded.rows[name][np.repeat(kept, lengths)] for name in [*layout.files_of(signal), *more]}
    rows = {name: rows.get(name, values) if name in rows else values[chosen] for name, values in encoded.rows.items()}
    lengths = {signal: lengths[chosen] for signal, lengths in encoded.lengths.items()}
    return encoded._replace(rows=rows, lengths=lengths)


def _silent(event, spec):
    """A dataset of no elements of this spec, which calls `event()` when it is read."""

    def happened(_):
        return tf.numpy_function(lambda: event() or np.False_, [], tf.bool)

    def nothing(_):
        return tf.nest.map_structure(lambda one: tf.zeros([size or 0 for size in one.shape], one.dtype), spec)

    return tf.data.Dataset.range(1).filter(lambda _: tf.ensure_shape(happened(_), ())).map(nothing)
