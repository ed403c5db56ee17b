"""`attach_growing`: a cache that is built while a student learns: live in the first pass, from disk in later ones."""

import pathlib
import threading

import keras
import numpy as np
import tensorflow as tf

from keras_kd._assertions import MARK
from keras_kd._checks import require_count, require_teacher
from keras_kd.cache.building import Writer, alike
from keras_kd.cache.caching import SHARD_BYTES, finished, prepared
from keras_kd.cache.layout import KEY
from keras_kd.cache.reading import Joiner, require_found
from keras_kd.cache.stored import require_batches


def attach_growing(teacher, dataset, path, *, shard_bytes=SHARD_BYTES, **stored):
    """The dataset with the teacher's outputs beside each example, which are stored the first time they are asked for.

    In the first pass the teacher runs on each batch that has examples which are not stored yet, and their outputs are
    stored; what is handed out is what a later pass reads from disk, so that no number depends on which pass it is. When
    a pass has come to its end, the folder is a finished cache, as `cache_teacher_outputs` makes it, but for the order of its
    examples. A killed run goes on with the shards that were finished. Order and batches may differ from pass to pass;
    what is randomly augmented has to have ids. One process at a time.

    Args:
        teacher: A built `keras.Model`.
        dataset: A batched `tf.data.Dataset` as for `cache_teacher_outputs`; of an endless one, the cache is never finished.
        path: The folder: new, empty, or of this cache, finished or not.
        shard_bytes: As of `cache_teacher_outputs`.
        stored: Likewise `outputs`, `key`, `padding`, `preprocessing`, `top_k`, `packed`, `sampled`, `dtype`.

    Returns:
        A `tf.data.Dataset` of the same batches, as many, with a `keras_kd.PrecomputedBatch` in the place of `x`.

    Raises:
        TypeError, ValueError, OSError: As `cache_teacher_outputs`. While it is read, `tf.errors.InvalidArgumentError` for
            numbers that cannot be kept, one id for two examples, and, in a finished cache, an example that it lacks.

    Example:

    >>> from keras_kd.cache.growing import attach_growing
    >>> x = np.random.rand(64, 8).astype("float32")
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> taught = attach_growing(teacher, tf.data.Dataset.from_tensor_slices((x,)).shuffle(64).batch(16), "outputs")
    >>> for _ in range(2):  # the teacher runs in the first pass alone
    ...     batches = list(taught)
    >>> keras_kd.open_teacher_cache("outputs")
    TeacherCache('outputs', 64 examples, outputs ['output'])
    """
    require_count(shard_bytes, "shard_bytes", at_least=1)
    require_teacher(teacher)
    require_batches(dataset)
    source, setting = prepared(teacher, dataset, **stored)
    folder = pathlib.Path(path)
    cache = finished(folder, setting)
    if cache is not None:
        return cache.attach(dataset)
    growing = _Growing(Writer(folder, setting, source.layout, shard_bytes), folder, source)
    # Keras makes iterators that it does not read, and does not read on behind the last batch that it expects: so a
    # pass begins with its first batch, and ends with its last where their number is known.
    count = int(dataset.cardinality())
    precomputed = dataset.enumerate().map(lambda i, element: growing.joined(i, count, element))
    if count == tf.data.UNKNOWN_CARDINALITY:
        precomputed = precomputed.concatenate(_silent(growing.end, precomputed.element_spec))
    return precomputed.prefetch(2)


class _Growing:
    """The outputs that are stored so far, on disk and in the shard that is still open."""

    def __init__(self, writer, folder, source):
        self._writer, self._folder, self._source, self._layout = writer, folder, source, source.layout
        self._joiner = Joiner(source.layout, str(folder))
        self._lock = threading.Lock()
        self._finished = False
        self._seen = {}  # in this pass: the content of each id
        self._places = {}  # the position of each key
        self._sequences = [shard["sequences"] for shard in writer.shards]
        self._note_saved()
        keys = self._chunks[0][1][KEY]
        self._places.update(zip(reversed(keys.tolist()), reversed(range(len(keys))), strict=True))

    def joined(self, i, count, element):
        """The i-th of `count` batches, with a `PrecomputedBatch` in the place of `x`."""
        element = element if isinstance(element, tuple) else (element,)
        x, key = element[0], self._layout.key
        self._spec = x
        content = tf.zeros([0], tf.int64) if key.entry is None else key.content(x)  # else that is the key
        more = [tf.equal(i, 0), tf.equal(i, count - 1), content, *keras.tree.flatten(x)]
        return (self._joiner.joined(x, self._located, *more), *element[1:])

    def end(self):
        """A pass has come to its end: the cache is whole."""
        with self._lock:
            self._finish()

    def _finish(self):
        if not self._finished:
            self._writer.finish()
            self._finished = True
            self._note_saved()

    def _located(self, keys, names, is_first, is_last, content, *leaves):
        """Where the examples of a batch are, as `Joiner.joined` asks for it, once all are stored."""
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
            positions = np.array([self._places[key] for key in keys.tolist()], np.int64)
            return tuple(self._chunks), positions, alike(self._sequences)

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
        """Run the teacher on a batch, and store its outputs of the examples that are `new`."""
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


def _of_examples(encoded, chosen, layout):
    """Of a batch, some examples."""
    rows = {}
    for output, lengths in encoded.lengths.items():
        kept = np.zeros(len(lengths), bool)
        kept[chosen] = True
        rows |= {name: encoded.rows[name][np.repeat(kept, lengths)] for name in layout.files_by_token[output]}
    rows = {name: rows[name] if name in rows else values[chosen] for name, values in encoded.rows.items()}
    lengths = {output: lengths[chosen] for output, lengths in encoded.lengths.items()}
    return encoded._replace(rows=rows, lengths=lengths)


def _silent(event, spec):
    """A dataset of no elements of this spec, which calls `event()` when it is read."""

    def happened(_):
        return tf.numpy_function(lambda: event() or np.False_, [], tf.bool)

    def nothing(_):
        return tf.nest.map_structure(lambda one: tf.zeros([size or 0 for size in one.shape], one.dtype), spec)

    return tf.data.Dataset.range(1).filter(lambda _: tf.ensure_shape(happened(_), ())).map(nothing)
