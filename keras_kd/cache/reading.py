"""Finished caches: checked when they are opened, and joined with a dataset by key.

Keys are looked up with NumPy inside a dataset's `map`, in files that are mapped into memory. (As TensorFlow constants,
`tf.data` would fold them when it makes an iterator, and so read the whole files into memory.)
"""

import collections.abc
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_kd import fingerprint
from keras_kd._assertions import marked
from keras_kd._checks import require_teacher
from keras_kd.cache import storage
from keras_kd.cache.layout import CONTENT, KEY, Column, Layout
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
        self._folders = [_Folder(path, verify) for path in self.paths]
        first = self._folders[0]
        for folder, path in zip(self._folders, self.paths, strict=True):
            require_same(first.setting, folder.setting, path)
        self._setting, self.layout, self.teacher = first.setting, first.layout, first.setting["teacher"]
        self.examples = sum(len(folder.files[KEY]) for folder in self._folders)
        self.names = list(self.layout.codings)
        self._sequences = storage.common_sequences(folder.sequences for folder in self._folders)
        self._columns = {file: one for file, one in self.layout.columns.items() if file not in (KEY, CONTENT)}

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
        return dataset.map(lambda *element: (self._joined(element[0]), *element[1:])).prefetch(2)

    def require_teacher(self, teacher):
        """Raise ValueError if the outputs are not those of this model, as it is now."""
        self.require({"teacher": teacher_setting(teacher)})

    def require(self, setting):
        """Raise ValueError if the cache was made with another teacher, preprocessing, other outputs or codings."""
        require_same({name: self._setting.get(name) for name in setting}, setting, self.paths[0])

    def _joined(self, x):
        """A batch `x` as `PrecomputedBatch`."""
        layout = self.layout
        keys, names = layout.key.of(x)
        entries = layout.key.sequences(x) if layout.by_token else {}
        lengths = [tf.shape(entry, tf.int64)[1] for entry in entries.values()]

        def read(keys, names, lengths):
            rows = self._rows(keys, names, self._padded_lengths(dict(zip(entries, lengths.tolist(), strict=True))))
            return [rows[file] for file in self._columns]

        arguments = [keys, names, tf.stack(lengths) if lengths else tf.zeros([0], tf.int64)]
        dtypes = [tf.as_dtype(np.dtype(column.dtype)) for column in self._columns.values()]
        rows = dict(zip(self._columns, tf.numpy_function(read, arguments, dtypes), strict=True))
        padded = self._padded_lengths({name: entry.shape[1] for name, entry in entries.items()})
        for file, column in self._columns.items():
            rows[file].set_shape((keys.shape[0], *([padded[column.output]] if column.by_token else []), *column.shape))
        return layout.decode(layout.key.without_strings(x), rows)

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

    def _rows(self, keys, names, padded):
        """`{file: (batch, ...)}` with numbers of tokens in the place of ends; by token `(batch, length, ...)`."""
        parts, at = self._found(keys, names)
        rows, tokens = {}, {}
        for output in self.layout.by_token:
            file = self.layout.end_of(output)
            end = _gathered(parts, file, at)
            start = np.where(at > 0, _gathered(parts, file, at - 1), 0)
            rows[file], count = end - start, padded[output]
            longest = rows[file].max(initial=0)
            if count is None:
                count = longest
            elif longest > count:
                message = (
                    f"the cache {self._name()} holds {longest} tokens of the output {output!r}, but the batch is only "
                    f"{count} long, of the example"
                )
                raise ValueError(marked(message, self.layout.key.called(names[rows[file].argmax()])))
            within = np.arange(count) < rows[file][:, None]
            tokens[output] = np.where(within, start[:, None] + np.arange(count), 0)  # (batch, length); decode hides 0
        for file in self._columns.keys() - rows.keys():
            column = self._columns[file]
            rows[file] = _gathered(parts, file, tokens[column.output] if column.by_token else at)
        return rows

    def _found(self, keys, names):
        """Where examples are stored; of one in several folders, the first.

        Returns:
            `[({file: array} of a folder, which examples of the batch are in it)]`; the row of each example there.
        """
        parts, at, missing = [], np.zeros(keys.shape, np.int64), np.ones(keys.shape, bool)
        for folder in self._folders:
            known, rows = folder.index
            nearest = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            here = missing & (known[nearest] == keys)
            if here.all():  # always so of a single folder
                return [(folder.files, slice(None))], rows[nearest]
            at[here], missing = rows[nearest[here]], missing & ~here
            parts.append((folder.files, here))
        if missing.any():
            position = f"{missing.argmax()} of its batch, {missing.sum()} of {len(names)} are missing there"
            key = self.layout.key
            hint = "" if key.entry is not None else _HINT_CONTENT + (_HINT_PADDING if self.layout.by_token else "")
            message = f"the cache {self._name()} holds no outputs of the example"
            raise ValueError(marked(message, f"{key.called(names[missing][0])} ({position}){hint}"))
        return parts, at

    def _name(self):
        return ", ".join(map(str, self.paths))


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


class _Folder:
    """A folder of a cache, checked, and its files mapped into memory.

    Attributes:
        setting, sequences: As in the manifest.
        files: `{file: array}`.
        index: The keys in ascending order, and the row of each.

    Raises:
        ValueError: The manifest is not sound, or the files are not its own.
    """

    def __init__(self, path, verify):
        manifest_path = path / storage.MANIFEST
        if not manifest_path.is_file():
            if (path / storage.BEGUN).is_file():
                raise ValueError(
                    f"the cache {str(path)!r} is only half built. Call cache_teacher_outputs again with the same "
                    "arguments, which resumes where it stopped."
                )
            raise FileNotFoundError(f"path must be the folder of a cache, but there is no {str(manifest_path)!r}.")
        manifest = storage.read_json(path, storage.MANIFEST)
        with storage.fields_of(manifest_path):
            self.setting, shards = manifest["setting"], manifest["shards"]
            self.layout = Layout.from_config(self.setting["outputs"])
            storage.require_shards(path, shards, self.layout, verify=verify)
            index = {name: manifest["index"][name] for name in storage.INDEX}
            for name, part in index.items():
                storage.require_parts(path, name, [part], verify=verify)
            self.files = {file: storage.opened(path, file, column) for file, column in self.layout.columns.items()}
            self.index = [storage.opened(path, name, Column()) for name in storage.INDEX]
            self.sequences = storage.common_sequences(shard["sequences"] for shard in shards)
            found = {
                "setting": {name: self.setting[name] for name in ("teacher", "preprocessing", "outputs")},
                "examples": len(self.files[KEY]),
                "sequences": self.sequences,
                "shards": shards,
                "index": index,
            }
            if manifest != found:
                wrong = [name for name in {**found, **manifest} if manifest.get(name) != found.get(name, manifest)]
                raise ValueError(f"its fields {wrong} do not fit the others or the files")
            for file, column in self.layout.columns.items():
                ends = self.files[self.layout.end_of(column.output)] if column.by_token else None
                expected = manifest["examples"] if ends is None else int(ends[-1:].sum())
                if len(self.files[file]) != expected:
                    raise ValueError(f"{file} has {len(self.files[file])} rows instead of {expected}")


_HINT_CONTENT = (
    ". Its examples are known by their content: data that is augmented at random needs ids, `key=` of "
    "cache_teacher_outputs, or is augmented after the outputs are attached"
)
_HINT_PADDING = ". If batches are padded with another number than when it was stored: see `padding`"


def _gathered(parts, file, at):
    """The rows of a batch, each from the folder that holds its example; `at` is `(batch, ...)`."""
    if len(parts) == 1:
        return _taken(parts[0][0][file], at)
    first = parts[0][0][file]
    rows = np.empty((*at.shape, *first.shape[1:]), first.dtype)
    for files, here in parts:
        rows[here] = _taken(files[file], at[here])
    return rows


def _taken(values, at):
    if not len(values):  # no example has a token
        return np.zeros((*at.shape, *values.shape[1:]), values.dtype)
    return np.take(values, at, axis=0)
