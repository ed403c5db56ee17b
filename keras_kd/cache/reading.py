"""Finished caches: checked when they are opened, and joined with a dataset by key.

Rows are read with NumPy inside a dataset's `map`, from files that are mapped into memory. (As TensorFlow constants,
`tf.data` would fold them when it makes an iterator, and so read the whole files into memory.)
"""

import collections.abc
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_kd._assertions import marked
from keras_kd._checks import require_teacher
from keras_kd.cache import storage
from keras_kd.cache.layout import CONTENT, END, KEY, Layout
from keras_kd.fingerprint import differences, fingerprint
from keras_kd.outputs.precomputed import PrecomputedBatch


class TeacherCache:
    """The stored outputs of a teacher. `open_teacher_cache` opens one.

    Attributes:
        paths: Its folder, or the folders of its parts.
        teacher: The fingerprint of the teacher, or the name of the source of its outputs.
        examples: How many examples are stored, of all parts together.
        layout: How they are stored.
        names: The stored outputs: "output", "output a" of several, "layer b".
    """

    def __init__(self, paths, *, verify):
        self.paths = [pathlib.Path(path) for path in paths]
        settings, sequences, files = zip(*(_opened(path, verify) for path in self.paths), strict=True)
        for setting, path in zip(settings, self.paths, strict=True):
            require_same(settings[0], setting, path)
        self._setting, self.teacher = settings[0], settings[0]["teacher"]
        self.layout = Layout.from_config(settings[0]["outputs"])
        self.names = list(self.layout.codings)
        self._sequences = storage.common_sequences(sequences)
        # Rows are counted through all folders, of which each has its array of a column.
        self._arrays = {column: [one[column] for one in files] for column in self.layout.columns}
        self._arrays.pop(CONTENT, None)
        keys = np.concatenate(self._arrays.pop(KEY))
        self.examples = len(keys)
        self._keys, self._first_rows = np.unique(keys, return_index=True)
        self._bounds = {}
        for output in self.layout.by_token:
            lengths = [np.diff(ends, prepend=0) for ends in self._arrays.pop((output, END))]
            self._bounds[output] = np.cumsum(np.concatenate([[0], *lengths]))

    def __repr__(self):
        paths = ", ".join(repr(str(path)) for path in self.paths)
        return f"TeacherCache({paths}, {self.examples} examples, outputs {self.names})"

    def attach(self, dataset):
        """Return the dataset with the outputs of each example beside it, in whatever order and batches it comes.

        Augment the result, `cache.attach(dataset).map(lambda batch, y: (batch._replace(x=augment(batch.x)), y))`, or
        have ids.

        Args:
            dataset: A batched `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, whose `x` is what
                it was when the outputs were stored, or has the same ids. It may be a part of the data: any number of
                processes read one cache.

        Returns:
            A `tf.data.Dataset` of the same batches, with a `keras_kd.PrecomputedBatch` in the place of `x`. Outputs are
            float32, or `TopClasses`; by token they are as long as the batch is padded, zero at padding, and have their
            Keras mask in `masks`. Ids that are strings are left out, as XLA takes none.

        Raises:
            TypeError: No `tf.data.Dataset`, or not of such elements.
            tf.errors.InvalidArgumentError: While it is read, an example is not in the cache, or has more tokens in it
                than its batch; the message names its key. From `distiller.fit`: ValueError.
        """
        require_batches(dataset, "dataset")
        # One after the other: a look-up takes less time than handing it to other threads would.
        return dataset.map(lambda *element: (self._joined(element[0]), *element[1:])).prefetch(2)

    def require(self, setting):
        """Raise ValueError if the cache was made with another teacher, preprocessing, other outputs or codings."""
        require_same({name: self._setting.get(name) for name in setting}, setting, self.paths[0])

    def _joined(self, x):
        """A batch `x` as `PrecomputedBatch`."""
        layout = self.layout
        keys, names = layout.key.of(x)
        entries = layout.key.sequences(x) if layout.by_token else {}
        lengths = [tf.shape(entry, tf.int64)[1] for entry in entries.values()]
        columns = [*((name, END) for name in layout.by_token), *self._arrays]

        def read(keys, names, lengths):
            rows = self.rows(keys, names, self._padded_lengths(dict(zip(entries, lengths.tolist(), strict=True))))
            return [rows[column] for column in columns]

        dtypes = [tf.as_dtype(np.dtype(layout.columns[column].dtype)) for column in columns]
        tensors = tf.numpy_function(read, [keys, names, tf.cast(lengths, tf.int64)], dtypes)
        padded = self._padded_lengths({name: entry.shape[1] for name, entry in entries.items()})
        for column, tensor in zip(columns, tensors, strict=True):
            _, _, shape, by_token = layout.columns[column]
            tensor.set_shape((keys.shape[0], *([padded[column[0]]] if by_token else []), *shape))
        return layout.decode(layout.key.without_strings(x), dict(zip(columns, tensors, strict=True)))

    def _padded_lengths(self, lengths):
        """`{output: its number of tokens in a batch}`, of `{entry of x: its length}`; None for that of the longest."""
        padded = {}
        for output, known in self._sequences.items():
            if known is None:  # stored with ids alone
                known = list(lengths) if len(lengths) == 1 else []
            padded[output] = next((lengths[name] for name in known if name in lengths), None)
        return padded

    def rows(self, keys, names, padded):
        """The stored numbers of a batch, `{column: array}`: `(batch, ...)`, by token `(batch, length, ...)`.

        Numbers of tokens stand in the place of ends.

        Args:
            keys, names: Of the examples, as `Key.of` gives them.
            padded: `{output by token: length}`; None for that of the longest.
        """
        nearest = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        missing = self._keys[nearest] != keys
        if missing.any():
            raise ValueError(self._missing(missing, names))
        at = self._first_rows[nearest]
        rows, tokens = {}, {}
        for output, bounds in self._bounds.items():
            start, lengths = bounds[at], bounds[at + 1] - bounds[at]
            longest, count = lengths.max(initial=0), padded[output]
            if count is None:
                count = longest
            elif longest > count:
                message = (
                    f"the cache {self._name()} holds {longest} tokens of the output {output!r}, but the batch is only "
                    f"{count} long, of the example"
                )
                raise ValueError(marked(message, self.layout.key.called(names[lengths.argmax()])))
            place = np.arange(count)
            tokens[output] = np.where(place < lengths[:, None], start[:, None] + place, 0)  # decode hides these 0
            rows[output, END] = lengths
        for (output, field), arrays in self._arrays.items():
            by_token = self.layout.columns[output, field].by_token
            rows[output, field] = _taken(arrays, tokens[output] if by_token else at)
        return rows

    def _missing(self, missing, names):
        """The message for examples that are not in the cache."""
        key = self.layout.key
        position = f"{missing.argmax()} of its batch, {missing.sum()} of {len(names)} are missing there"
        found = f"{key.called(names[missing][0])} ({position})"
        if key.entry is None:
            found += (
                ". Its examples are known by their content: data that is augmented at random needs ids, `key=` of "
                "cache_teacher_outputs, or is augmented after the outputs are attached"
            )
            if self.layout.by_token:
                found += ". If batches are padded with another number than when it was stored: see `padding`"
        return marked(f"the cache {self._name()} holds no outputs of the example", found)

    def _name(self):
        return ", ".join(map(str, self.paths))


def open_teacher_cache(path, *, teacher=None, preprocessing=None, verify=True):
    """Open the outputs that `cache_teacher_outputs` stored, or another program in its layout.

    Args:
        path: The folder; or a list of folders, whose caches have the same settings and are read as one. An example may
            be in more than one.
        teacher: The model whose outputs they must be; None: any.
        preprocessing: What they must have been stored with, as `cache_teacher_outputs` was given it; None: any.
        verify: Whether every byte is compared with the checksums, which reads all files once. Without it, only the
            manifest's checksum and the sizes of the files are checked.

    Returns:
        A `TeacherCache`; its `attach(dataset)` joins it with any dataset of the same examples.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: The cache is half built; a file is missing, cut short or altered; it is of another teacher, of other
            preprocessing, or, of several, one is unlike the others.

    Example:

    >>> x = np.arange(12, dtype="float32").reshape(6, 2)
    >>> scores = [(x, np.eye(6, dtype="float32"))]  # of a model that need not be Keras's
    >>> _ = keras_kd.cache_teacher_outputs("a rule", scores, "outputs", verbose=0)
    >>> cache = keras_kd.open_teacher_cache("outputs")
    >>> dataset = cache.attach(tf.data.Dataset.from_tensor_slices((x,)).shuffle(6, seed=1).batch(2))
    >>> batch, = next(iter(dataset))
    >>> bool(np.all(x[batch.prediction.numpy().argmax(axis=-1)] == batch.x))
    True
    """
    paths = list(path) if isinstance(path, (list, tuple)) else [path]
    if not paths:
        raise ValueError("path must be a folder or a list of at least one, got none.")
    cache = TeacherCache(paths, verify=verify)
    if teacher is not None:
        cache.require({"teacher": teacher_setting(teacher)})
    if preprocessing is not None:
        cache.require({"preprocessing": plain(preprocessing)})
    return cache


# What is checked ---------------------------------------------------------------------------------------------------


def teacher_setting(teacher):
    """A teacher as the manifest holds it."""
    return teacher if isinstance(teacher, str) else fingerprint(require_teacher(teacher))


def plain(preprocessing):
    """The preprocessing as the manifest holds it: as it comes back from JSON."""
    try:
        return json.loads(json.dumps(preprocessing))
    except (TypeError, ValueError) as error:
        raise TypeError(f"preprocessing must be what JSON can hold, got {preprocessing!r}: {error}.") from None


_WAYS_TO_A_DATASET = (
    (tf.RaggedTensor, "Make it dense: tf.data.Dataset.from_tensor_slices((x.to_tensor(), y)).batch(32)."),
    (tf.SparseTensor, "Make it dense: tf.data.Dataset.from_tensor_slices((tf.sparse.to_dense(x), y)).batch(32)."),
    (
        (list, tuple),
        "Make arrays of lists of numbers or texts: tf.data.Dataset.from_tensor_slices((np.array(x), y)).batch(32); of "
        "models with several inputs, a dict or tuple of arrays: ((x1, x2), y).",
    ),
    (
        (collections.abc.Iterator, keras.utils.PyDataset),
        "Make one that gives all batches anew each time: tf.data.Dataset.from_generator(function, "
        "output_signature=...), of a PyDataset with lambda: (data[i] for i in range(len(data))).",
    ),
    (object, "Make one of the arrays: tf.data.Dataset.from_tensor_slices((x, y)).batch(32)."),
)


def require_batches(dataset, argument):
    """Raise TypeError unless `argument` is a dataset of batches that outputs can be stored for or joined with."""
    if not isinstance(dataset, tf.data.Dataset):
        way_out = next(text for kinds, text in _WAYS_TO_A_DATASET if isinstance(dataset, kinds))
        raise TypeError(f"{argument} must be a batched tf.data.Dataset, got {type(dataset).__name__}. {way_out}")
    spec = dataset.element_spec
    x = spec[0] if isinstance(spec, tuple) else spec
    leaves = tf.nest.flatten(x)
    if isinstance(x, PrecomputedBatch):
        way_out = "It holds teacher outputs already: train on it as it is, or give the dataset they were added to."
    elif any(isinstance(leaf, (tf.RaggedTensorSpec, tf.SparseTensorSpec)) for leaf in leaves):
        way_out = (
            "Make it dense first: map x to x.to_tensor() or tf.sparse.to_dense(x), or use dataset.padded_batch(32)."
        )
    elif not leaves or any(not isinstance(leaf, tf.TensorSpec) or leaf.shape.rank == 0 for leaf in leaves):
        way_out = "Batch it first: dataset.batch(32)."
    elif any(leaf.shape.rank is None for leaf in leaves):
        way_out = "Give its tensors a known rank: dataset.map(lambda x, y: (tf.ensure_shape(x, (None, 8)), y))."
    elif isinstance(spec, tuple) and len(spec) > 3:
        way_out = "Put several inputs into one x: dataset.map(lambda x1, x2, y, weight: ((x1, x2), y, weight))."
    else:
        return
    raise TypeError(
        f"{argument} must give batches of x, (x,), (x, y) or (x, y, sample_weight), x of dense tensors, got {spec}. "
        + way_out
    )


def require_same(stored, requested, folder):
    """Raise ValueError, with the differences, if the folder holds another cache."""
    differing = list(differences(stored, requested))
    if differing:
        raise ValueError(
            f"path {str(folder)!r} holds outputs of another teacher or of other settings. It differs in\n"
            + "\n".join(differing)
            + "\nGive another path, or remove that folder."
        )


def _opened(path, verify):
    """`(setting, sequences, {column: array})` of a folder, checked; its files are mapped into memory."""
    manifest_path = path / storage.MANIFEST
    if not manifest_path.is_file():
        if (path / storage.BEGUN).is_file():
            raise ValueError(
                f"the cache {str(path)!r} is only half built. Make the call that builds it again, with the same "
                "arguments: it resumes where it stopped."
            )
        raise FileNotFoundError(f"path must be the folder of a cache, but there is no {str(manifest_path)!r}.")
    manifest = storage.read_json(manifest_path)
    with storage.fields_of(manifest_path):
        setting, shards = manifest["setting"], manifest["shards"]
        layout = Layout.from_config(setting["outputs"])
        storage.require_shards(path, shards, layout, verify=verify)
        files = {name: storage.opened(path, column) for name, column in layout.columns.items()}
        found = {
            "setting": {name: setting[name] for name in ("teacher", "preprocessing", "outputs")},
            "examples": len(files[KEY]),
            "sequences": storage.common_sequences(shard["sequences"] for shard in shards),
            "shards": shards,
        }
        if manifest != found:
            wrong = [name for name in {**found, **manifest} if manifest.get(name) != found.get(name, manifest)]
            raise ValueError(f"its fields {wrong} do not fit the others or the files")
        for (output, field), column in layout.columns.items():
            expected = int(files[output, END][-1:].sum()) if column.by_token else manifest["examples"]
            if len(files[output, field]) != expected:
                raise ValueError(f"{column.file} has {len(files[output, field])} rows instead of {expected}")
    return setting, found["sequences"], files


def _taken(arrays, at):
    """The rows `at`, counted through all of the arrays; of arrays without any rows, zeros."""
    if len(arrays) == 1 and len(arrays[0]):
        return np.take(arrays[0], at, axis=0)
    rows, first = np.zeros((*at.shape, *arrays[0].shape[1:]), arrays[0].dtype), 0
    for array in arrays:
        inside = (first <= at) & (at < first + len(array))
        rows[inside] = array[at[inside] - first]
        first += len(array)
    return rows
