"""A finished cache: found right when it is opened, read by key."""

import pathlib

import numpy as np
import tensorflow as tf

from keras_kd import fingerprint
from keras_kd._assertions import MARK
from keras_kd._checks import require_model
from keras_kd.cache import files
from keras_kd.cache.building import require_same
from keras_kd.cache.layout import FORMAT, Layout, tensor_specs
from keras_kd.cache.sources import x_of
from keras_kd.taught import Taught


class SignalCache:
    """The stored signals of a teacher. `open_cache` opens one.

    Attributes:
        path: Its folder.
        teacher: The fingerprint of the teacher, or what its signals were said to come from.
        examples: How many examples were stored; of each that was there more than once, the first counts.
        names: The stored signals: "output", "output a" of several, "layer b".
    """

    def __init__(self, path, *, verify):
        self.path = pathlib.Path(path)
        self._manifest = _manifest(self.path)
        try:
            self.teacher = self._manifest["setting"]["teacher"]
            self.examples = self._manifest["examples"]
            self._layout = Layout.from_config(self._manifest["setting"]["signals"])
            entries = self._manifest["shards"]
            index = files.open_array(self.path, self._manifest["index"], verify=verify)
            self._shards = [files.open_array(self.path, entry, verify=verify) for entry in entries]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{str(self.path / files.MANIFEST)!r} is no manifest of a cache: {error!r}.") from error
        self.names = list(self._layout.codings)
        self._require_records()
        self._keys, self._positions = np.asarray(index[0]), np.asarray(index[1])  # views, not read into memory
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._specs = tensor_specs(self._layout)

    def __repr__(self):
        return f"SignalCache({str(self.path)!r}, {self.examples} examples, signals {self.names})"

    def attach(self, dataset):
        """The dataset with the signals of each example beside it, in whatever order and batches it comes.

        Augment behind it, or have ids: `cache.attach(dataset).map(lambda taught, y: (taught._replace(x=...), y))`.

        Args:
            dataset: A batched `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, whose `x` is what
                it was when the signals were stored, or has the same ids.

        Returns:
            A `tf.data.Dataset` of the same batches, with a `keras_kd.taught.Taught` in the place of `x`, which
            `distiller.fit` takes. Signals are float32. Ids that are strings are left out, as XLA takes none.

        Raises:
            TypeError: No `tf.data.Dataset`, or not of such elements.
            tf.errors.InvalidArgumentError: While it is read, an example is not in the cache; the message names its
                key. From `distiller.fit`: ValueError.
        """
        require_batches(dataset)
        return dataset.map(self._joined, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def require_teacher(self, teacher):
        """Raise ValueError if the signals are not those of this model, as it is now."""
        require_same({"teacher": self.teacher}, {"teacher": teacher_setting(teacher)}, self.path)

    def require_setting(self, setting):
        """Raise ValueError if the cache was made with another teacher, other signals or codings."""
        require_same(self._manifest["setting"], setting, self.path)

    def _joined(self, *element):
        x = element[0]
        keys, names = self._layout.key.of(x)
        read = tf.numpy_function(self._read, [keys, names], [dtype for _, dtype, _ in self._specs], stateful=False)
        fields = {}
        for (field, _, shape), tensor in zip(self._specs, read, strict=True):
            tensor.set_shape((keys.shape[0], *shape))
            fields[field] = tensor
        return (self._layout.decode(self._layout.key.without_strings(x), fields), *element[1:])

    def _read(self, keys, names):
        """The fields of the examples with these keys, as arrays."""
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        missing = self._keys[at] != keys
        if missing.any():
            name = self._layout.key.called(names[missing][0])
            where = f"{np.flatnonzero(missing)[0]} of its batch, {missing.sum()} of {len(keys)} are missing there"
            raise ValueError(f"[{MARK}the cache {self.path} holds no signals of the example] [{name} ({where})]")
        records = self._records(self._positions[at])
        return [np.ascontiguousarray(records[field]) for field, _, _ in self._specs]

    def _records(self, positions):
        shard_of = np.searchsorted(self._starts, positions, side="right") - 1
        records = np.empty(len(positions), self._layout.record)
        for number in np.unique(shard_of):
            here = shard_of == number
            records[here] = self._shards[number][positions[here] - self._starts[number]]
        return records

    def _require_records(self):
        for shard in self._shards:
            if shard.dtype != self._layout.record or shard.ndim != 1:
                raise ValueError(
                    f"the shards of {str(self.path)!r} hold {shard.dtype}, not what the manifest says, "
                    f"{self._layout.record}."
                )


def open_cache(path, *, teacher=None, verify=True):
    """Open the signals that `cache_signals` stored, or another program in its layout.

    Args:
        path: The folder.
        teacher: The model whose signals they should be, to have that checked; None: whoever's.
        verify: Whether every byte is compared with the checksums, which reads all files once. Without it, only the
            manifest's checksum and the sizes of the files are checked.

    Returns:
        A `SignalCache`; its `attach(dataset)` joins it with any dataset of the same examples.

    Raises:
        FileNotFoundError: No cache is there.
        ValueError: The cache is half built; a file is missing, cut short or altered; it is of another teacher.

    Example:

    >>> x = np.arange(12, dtype="float32").reshape(6, 2)
    >>> scores = [(x, np.eye(6, dtype="float32"))]  # of a model that need not be Keras's
    >>> _ = keras_kd.cache_signals("a rule", scores, "signals", verbose=0)
    >>> cache = keras_kd.open_cache("signals")
    >>> dataset = cache.attach(tf.data.Dataset.from_tensor_slices((x,)).shuffle(6, seed=1).batch(2))
    >>> taught, = next(iter(dataset))
    >>> bool(np.all(x[taught.prediction.numpy().argmax(axis=-1)] == taught.x))
    True
    """
    cache = SignalCache(path, verify=verify)
    if teacher is not None:
        cache.require_teacher(teacher)
    return cache


def teacher_setting(teacher):
    """What the manifest says of a teacher."""
    return teacher if isinstance(teacher, str) else fingerprint.of_model(require_model(teacher, "teacher"))


def require_batches(dataset):
    """Raise TypeError unless a dataset gives batches that signals can be stored for or joined with."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a batched tf.data.Dataset, got {type(dataset).__name__}.")
    spec = dataset.element_spec
    leaves = tf.nest.flatten(x_of(spec))
    sound = not isinstance(spec, tuple) or (len(spec) in (1, 2, 3) and not isinstance(x_of(spec), Taught))
    dense = leaves and all(isinstance(leaf, tf.TensorSpec) and leaf.shape.rank != 0 for leaf in leaves)
    if not (sound and dense):
        raise TypeError(
            f"dataset must give batches of x, (x,), (x, y) or (x, y, sample_weight), x of dense tensors, got {spec}. "
            "Batch it first: dataset.batch(32)."
        )


def _manifest(folder):
    if (folder / files.MANIFEST).is_file():
        content = files.read_json(folder, files.MANIFEST)
        found = content.get("setting", {}).get("signals", {}).get("format")
        if found != FORMAT:
            raise ValueError(f"{str(folder)!r} holds a cache of the format {found!r}; this version reads {FORMAT!r}.")
        return content
    if (folder / files.BEGUN).is_file():
        raise ValueError(
            f"the cache {str(folder)!r} is only half built. Call cache_signals again with the same arguments, which "
            "goes on where it stopped."
        )
    raise FileNotFoundError(f"path must be the folder of a cache, but there is no {str(folder / files.MANIFEST)!r}.")
