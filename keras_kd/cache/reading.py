"""Finished caches: checked when they are opened, and joined with a dataset by key.

Keys are looked up with NumPy inside a dataset's `map`, in files that are mapped into memory. (As TensorFlow constants,
`tf.data` would fold them when it makes an iterator, and so read the whole files into memory.)
"""

import collections.abc
import functools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_kd import fingerprint
from keras_kd._assertions import MARK
from keras_kd._checks import require_teacher
from keras_kd.cache import storage
from keras_kd.cache.layout import CONTENT, FORMAT, KEY, Layout
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
        manifests = [_checked_manifest(path, verify) for path in self.paths]
        for path, manifest in zip(self.paths, manifests, strict=True):
            require_same(manifests[0]["setting"], manifest["setting"], path)
        self._setting = manifests[0]["setting"]
        self.layout = Layout.from_config(self._setting["outputs"])
        self.teacher = self._setting["teacher"]
        self.examples = sum(manifest["examples"] for manifest in manifests)
        self.names = list(self.layout.codings)
        folders = [path.resolve() for path in self.paths]  # the working directory may change before they are read
        sequences = common_sequences(manifest["sequences"] for manifest in manifests)
        self._reader = _Reader(folders, self.layout, sequences, ", ".join(map(str, self.paths)))

    def __repr__(self):
        paths = ", ".join(repr(str(path)) for path in self.paths)
        return f"TeacherCache({paths}, {self.examples} examples, outputs {self.names})"

    def attach(self, dataset):
        """Return the dataset with the outputs of each example beside it, in whatever order and batches it comes.

        Augment the result, `cache.attach(dataset).map(lambda batch, y: (batch._replace(x=augment(batch.x)), y))`, or
        have ids.

        Outputs by token come as long as the batch is padded: those of padding are zero, and where the teacher's output
        had a Keras mask, it comes back in `PrecomputedBatch.masks`.

        Args:
            dataset: A batched `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, whose `x` is what
                it was when the outputs were stored, or has the same ids. It may be a part of the data, as
                `dataset.shard(workers, index)` gives it: any number of processes read one cache.

        Returns:
            A `tf.data.Dataset` of the same batches, with a `keras_kd.PrecomputedBatch` in the place of `x`, which
            `distiller.fit` takes. Outputs are float32, or `TopClasses`. Ids that are strings are left out, as XLA takes
            none.

        Raises:
            TypeError: No `tf.data.Dataset`, or not of such elements.
            tf.errors.InvalidArgumentError: While it is read, an example is not in the cache, or has more tokens in it
                than its batch; the message names its key. From `distiller.fit`: ValueError.
        """
        require_batches(dataset, "dataset")
        # One after the other: a look-up takes less time than handing it to other threads would.
        return dataset.map(lambda *element: (self._reader.joined(element[0]), *element[1:])).prefetch(2)

    def require_teacher(self, teacher):
        """Raise ValueError if the outputs are not those of this model, as it is now."""
        self.require({"teacher": teacher_setting(teacher)})

    def require(self, setting):
        """Raise ValueError if the cache was made with another teacher, preprocessing, other outputs or codings."""
        require_same({name: self._setting.get(name) for name in setting}, setting, self.paths[0])


def open_teacher_cache(path, *, teacher=None, preprocessing=None, verify=True):
    """Open the outputs that `cache_teacher_outputs` stored, or another program in its layout.

    Args:
        path: The folder; or a list of folders, whose caches have the same settings and are read as one: where several
            workers each stored their part of the data. An example may be in more than one.
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
        cache.require_teacher(teacher)
    if preprocessing is not None:
        cache.require({"preprocessing": plain(preprocessing)})
    return cache


# What is checked ---------------------------------------------------------------------------------------------------


def teacher_setting(teacher):
    """A teacher as the manifest holds it."""
    return teacher if isinstance(teacher, str) else fingerprint.model_fingerprint(require_teacher(teacher))


def plain(preprocessing):
    """The preprocessing as the manifest holds it: as it comes back from JSON."""
    try:
        return json.loads(json.dumps(preprocessing))
    except (TypeError, ValueError) as error:
        raise TypeError(f"preprocessing must be what JSON can hold, got {preprocessing!r}: {error}.") from None


def require_batches(dataset, argument):
    """Raise TypeError unless `argument` is a dataset of batches that outputs can be stored for or joined with."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"{argument} must be a batched tf.data.Dataset, got {type(dataset).__name__}. {_dataset_of(dataset)}"
        )
    spec = dataset.element_spec
    x = spec[0] if isinstance(spec, tuple) else spec
    leaves = tf.nest.flatten(x)
    sound = not isinstance(spec, tuple) or (len(spec) in (1, 2, 3) and not isinstance(x, PrecomputedBatch))
    if sound and leaves and all(isinstance(leaf, tf.TensorSpec) and leaf.shape.rank for leaf in leaves):
        return
    way_out = "Batch it first: dataset.batch(32)."
    if any(isinstance(leaf, (tf.RaggedTensorSpec, tf.SparseTensorSpec)) for leaf in leaves):
        way_out = (
            "Make its tensors dense first: dataset.map(lambda x, y: (x.to_tensor(), y)), tf.sparse.to_dense for sparse "
            "ones; or pad texts as they are batched, dataset.padded_batch(32)."
        )
    elif any(leaf.shape.rank is None for leaf in leaves):
        way_out = "Give its tensors a known rank: dataset.map(lambda x, y: (tf.ensure_shape(x, (None, 8)), y))."
    elif isinstance(x, PrecomputedBatch):
        way_out = "It holds teacher outputs already: train on it as it is, or give the dataset they were added to."
    raise TypeError(
        f"{argument} must give batches of x, (x,), (x, y) or (x, y, sample_weight), x of dense tensors, got {spec}. "
        + way_out
    )


def _dataset_of(data):
    """How to make a dataset of other data."""
    if isinstance(data, (tf.RaggedTensor, tf.SparseTensor)):
        dense = "x.to_tensor()" if isinstance(data, tf.RaggedTensor) else "tf.sparse.to_dense(x)"
        return f"Make it dense: tf.data.Dataset.from_tensor_slices(({dense}, y)).batch(32)."
    if isinstance(data, (list, tuple)):
        return (
            "Make arrays of lists of numbers or texts: tf.data.Dataset.from_tensor_slices((np.array(x), y)).batch(32); "
            "of models with several inputs, a dict or tuple of arrays: ((x1, x2), y)."
        )
    if isinstance(data, (collections.abc.Iterator, keras.utils.PyDataset)):
        return (
            "Make one of the generator or keras.utils.PyDataset: tf.data.Dataset.from_generator(function, "
            "output_signature=...), where function() gives all batches anew each time, such as "
            "lambda: (data[i] for i in range(len(data)))."
        )
    return "Make one of the arrays: tf.data.Dataset.from_tensor_slices((x, y)).batch(32)."


def require_same(stored, requested, folder):
    """Raise ValueError, with the differences, if the folder holds another cache than the one requested."""
    differing = list(fingerprint.differences(stored, requested))
    if differing:
        raise ValueError(
            f"path {str(folder)!r} holds outputs of another teacher or of other settings. It differs in\n"
            + "\n".join(differing)
            + "\nGive another path, or remove that folder."
        )


def parts_of(shards, name):
    """The parts of a file, `[{"bytes", "sha256"}]`."""
    return [shard["files"][name] for shard in shards]


def common_sequences(sequences):
    """Of several `{output: names, or None}`, the names that are in all."""
    sequences = list(sequences)
    return {
        output: None if names is None else [name for name in names if all(name in one[output] for one in sequences)]
        for output, names in sequences[0].items()
    }


def _checked_manifest(folder, verify):
    """The manifest of a cache; ValueError unless it is sound and the files are its own."""
    manifest_path = folder / storage.MANIFEST
    if not manifest_path.is_file():
        if (folder / storage.BEGUN).is_file():
            raise ValueError(
                f"the cache {str(folder)!r} is only half built. Call cache_teacher_outputs again with the same "
                "arguments, which resumes where it stopped."
            )
        raise FileNotFoundError(f"path must be the folder of a cache, but there is no {str(manifest_path)!r}.")
    manifest = storage.read_json(folder, storage.MANIFEST)
    with storage.fields_of(manifest_path):
        found = manifest["setting"]["outputs"]["format"]
        if found != FORMAT:
            raise ValueError(f"its format is {found!r}; this version reads {FORMAT!r}")
        _require_files(folder, manifest, Layout.from_config(manifest["setting"]["outputs"]), verify)
    return manifest


def require_shards(shards, layout):
    """Raise ValueError unless the shards of a JSON file have the fields that they should."""
    if not isinstance(shards, list):
        raise ValueError(f"its field 'shards' is no list: {shards!r}")
    for number, shard in enumerate(shards):
        if set(shard["files"]) != {*layout.columns} or shard["examples"] * 8 != shard["files"][KEY]["bytes"]:
            raise ValueError(f"shard {number} of 'shards' has other files or another number of 'examples'")
        names = shard["sequences"]
        if {*names} != {*layout.by_token} or not all(isinstance(one, (list, type(None))) for one in names.values()):
            raise ValueError(f"shard {number} of 'shards' has the 'sequences' {names}")


def _require_files(folder, manifest, layout, verify):
    """Raise ValueError unless the files of a cache are those of its manifest."""
    for part, fields in (
        (manifest, {"setting", "examples", "sequences", "shards", "index"}),
        (manifest["setting"], {"teacher", "preprocessing", "outputs"}),
        (manifest["index"], {*storage.INDEX}),
    ):
        if set(part) != fields:
            raise ValueError(f"the fields {sorted(part)} should be {sorted(fields)}")
    shards = manifest["shards"]
    require_shards(shards, layout)
    sequences = common_sequences(shard["sequences"] for shard in shards)
    if manifest["sequences"] != sequences:
        raise ValueError(f"its field 'sequences' is {manifest['sequences']}, but that of its shards is {sequences}")
    parts = {name: parts_of(shards, name) for name in layout.columns}
    parts |= {name: [manifest["index"][name]] for name in storage.INDEX}
    for name, file_parts in parts.items():
        storage.require_parts(folder, name, file_parts, verify=verify)
    rows = {name: len(storage.opened(folder, name, *column[:2])) for name, column in layout.columns.items()}
    expected = dict.fromkeys(layout.columns, manifest["examples"])
    for output, of_tokens in layout.files_by_token.items():
        ends = storage.opened(folder, layout.end_of(output), "<i8", ())
        expected |= dict.fromkeys(of_tokens, int(ends[-1]) if len(ends) else 0)
    wrong = [
        f"{name} has {rows[name]} rows instead of {count}" for name, count in expected.items() if rows[name] != count
    ]
    if wrong:
        raise ValueError(
            f"'examples' is {manifest['examples']}, but of the files of {str(folder)!r}, {', '.join(wrong)}"
        )


# What is read ------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads the outputs of one cache, or of several that hold parts of the same.

    Args:
        folders: Their folders; the files are opened when the first batch is read.
        layout: Their `Layout`.
        sequences: `{output by token: names of the entries of x that were as long, or None}`, of all folders.
        name: Their name in messages.
    """

    def __init__(self, folders, layout, sequences, name):
        self._folders, self._layout, self._sequences, self._name = folders, layout, sequences, name
        self._columns = {file: column for file, column in layout.columns.items() if file not in (KEY, CONTENT)}

    def joined(self, x):
        """A batch `x` as `PrecomputedBatch`."""
        layout = self._layout
        keys, names = layout.key.of(x)
        entries = layout.key.sequences(x) if layout.by_token else {}
        lengths = [tf.shape(entry, tf.int64)[1] for entry in entries.values()]

        def read(keys, names, lengths):
            lengths = dict(zip(entries, lengths.tolist(), strict=True))
            rows = self._rows(self._positions(keys, names), self._padded_lengths(lengths), names)
            return [rows[file] for file in self._columns]

        arguments = [keys, names, tf.stack(lengths) if lengths else tf.zeros([0], tf.int64)]
        dtypes = [tf.as_dtype(np.dtype(column.dtype)) for column in self._columns.values()]
        rows = dict(zip(self._columns, tf.numpy_function(read, arguments, dtypes), strict=True))
        padded = self._padded_lengths({name: entry.shape[1] for name, entry in entries.items()})
        static = {file: [padded[output]] for output, files in layout.files_by_token.items() for file in files}
        for file, column in self._columns.items():
            rows[file].set_shape((keys.shape[0], *static.get(file, []), *column.shape))
        lengths = {output: rows[layout.end_of(output)] for output in layout.by_token}
        return layout.decode(layout.key.without_strings(x), rows, lengths)

    @functools.cached_property
    def _chunks(self):
        """`[(position of its first example, {file: array})]` of the folders."""
        chunks, first = [], 0
        for folder in self._folders:
            columns = {file: storage.opened(folder, file, *one[:2]) for file, one in self._layout.columns.items()}
            chunks.append((first, columns))
            first += len(columns[KEY])
        return chunks

    @functools.cached_property
    def _indices(self):
        """Of each folder `(keys (n,) ascending, positions (n,))`."""
        return [[storage.opened(folder, name, "<i8", ()) for name in storage.INDEX] for folder in self._folders]

    def _positions(self, keys, names):
        """The positions `(batch,)` of examples among all folders; of one in several folders, in the first."""
        positions, found = np.zeros(keys.shape, np.int64), np.zeros(keys.shape, bool)
        for (first, _), (known, rows) in zip(self._chunks, self._indices, strict=True):
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            new = (known[at] == keys) & ~found
            positions = np.where(new, first + rows[at], positions)
            found |= new
        if not found.all():
            raise self._not_found(found, names)
        return positions

    def _padded_lengths(self, lengths):
        """`{output by token: its number of tokens in a batch}`, None for as many as the longest example has.

        Args:
            lengths: `{entry of x: its length}`.
        """
        padded = {}
        for output, known in self._sequences.items():
            if known is None:  # stored with ids alone
                known = list(lengths) if len(lengths) == 1 else []
            padded[output] = next((lengths[name] for name in known if name in lengths), None)
        return padded

    def _rows(self, positions, padded, names):
        """`{file: (batch, ...)}` with lengths in the place of ends; of outputs by token `(batch, length, ...)`."""
        parts, rows = _parts(self._chunks, positions), {}
        for output, files in self._layout.files_by_token.items():
            end = self._layout.end_of(output)
            spans = [_spans(columns[end], positions[chosen] - first) for first, columns, chosen in parts]
            start, length = np.split(_assembled(spans, parts), 2, axis=1)  # (batch, 1) x2
            rows[end], count = length[:, 0], padded[output]
            if count is None:
                count = length.max(initial=0)
            elif length.max(initial=0) > count:
                raise self._too_long(output, count, rows[end], names)
            tokens = np.where(np.arange(count) < length, start + np.arange(count), 0)  # (batch, length); decode hides 0
            for file in files:
                found = [_taken(columns[file], tokens[chosen]) for _, columns, chosen in parts]
                rows[file] = _assembled(found, parts)
        for file in self._columns.keys() - rows.keys():
            found = [_taken(columns[file], positions[chosen] - first) for first, columns, chosen in parts]
            rows[file] = _assembled(found, parts)
        return rows

    def _not_found(self, found, names):
        key = self._layout.key
        first = f"{np.flatnonzero(~found)[0]} of its batch, {(~found).sum()} of {len(names)} are missing there"
        hint = "" if key.entry is not None else _HINT_CONTENT + (_HINT_PADDING if self._layout.by_token else "")
        return ValueError(
            f"[{MARK}the cache {self._name} holds no outputs of the example] "
            f"[{key.called(names[~found][0])} ({first}){hint}]"
        )

    def _too_long(self, output, count, length, names):
        return ValueError(
            f"[{MARK}the cache {self._name} holds {length.max()} tokens of the output {output!r}, but the batch is "
            f"only {count} long, of the example] [{self._layout.key.called(names[length.argmax()])}]"
        )


_HINT_CONTENT = (
    ". Its examples are known by their content: data that is augmented at random needs ids, `key=` of "
    "cache_teacher_outputs, or is augmented after the outputs are attached"
)
_HINT_PADDING = ". If batches are padded with another number than when it was stored: see `padding`"


def _parts(chunks, positions):
    """`[(position of its first example, {file: array}, which examples of the batch are in it)]`."""
    if len(chunks) == 1 or not len(positions):
        return [(*chunks[0], slice(None))]
    chunk_of = np.searchsorted([first for first, _ in chunks], positions, side="right") - 1
    return [(*chunks[number], np.flatnonzero(chunk_of == number)) for number in np.unique(chunk_of)]


def _assembled(found, parts):
    """The rows of a batch from those of its parts."""
    if len(found) == 1:
        return found[0]
    rows = np.empty((sum(map(len, found)), *found[0].shape[1:]), found[0].dtype)
    for values, (_, _, chosen) in zip(found, parts, strict=True):
        rows[chosen] = values
    return rows


def _taken(values, at):
    if not len(values):  # no example has a token
        return np.zeros((*at.shape, *values.shape[1:]), values.dtype)
    return np.take(values, at, axis=0)


def _spans(ends, at):
    """Where the tokens of each example begin, and how many they are, `(batch, 2)`."""
    start = np.where(at > 0, ends[at - 1], 0)
    return np.stack([start, ends[at] - start], axis=-1)
