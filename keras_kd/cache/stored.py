"""A finished cache: found right when it is opened, read by key."""

import json
import pathlib

import tensorflow as tf

from keras_kd import fingerprint
from keras_kd._checks import require_model
from keras_kd.cache import files
from keras_kd.cache.building import alike, parts_of, require_same
from keras_kd.cache.layout import FORMAT, KEY, Layout
from keras_kd.cache.reading import Reader
from keras_kd.cache.sources import x_of
from keras_kd.outputs.precomputed import PrecomputedBatch


class TeacherCache:
    """The stored outputs of a teacher. `open_teacher_cache` opens one.

    Attributes:
        paths: Its folder, or the folders of its parts.
        teacher: The fingerprint of the teacher, or what its outputs were said to come from.
        examples: How many examples were stored; of each that was there more than once, the first counts.
        layout: How they are stored.
        names: The stored outputs: "output", "output a" of several, "layer b".
    """

    def __init__(self, paths, *, verify):
        self.paths = [pathlib.Path(path) for path in paths]
        manifests = [_manifest(path) for path in self.paths]
        for path, manifest in zip(self.paths, manifests, strict=True):
            try:
                self.layout = Layout.from_config(manifest["setting"]["outputs"])
                _require_files(path, manifest, self.layout, verify)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{str(path / files.MANIFEST)!r} is no manifest of a cache: {error!r}.") from error
            require_same(manifests[0]["setting"], manifest["setting"], path)
        self._setting = manifests[0]["setting"]
        self.teacher = self._setting["teacher"]
        self.examples = sum(manifest["examples"] for manifest in manifests)
        self.names = list(self.layout.codings)
        folders = [path.resolve() for path in self.paths]  # the working directory may be another one by then
        sequences = alike(manifest["sequences"] for manifest in manifests)
        self._reader = Reader(folders, self.layout, sequences, ", ".join(map(str, self.paths)))

    def __repr__(self):
        paths = ", ".join(repr(str(path)) for path in self.paths)
        return f"TeacherCache({paths}, {self.examples} examples, outputs {self.names})"

    def attach(self, dataset):
        """The dataset with the outputs of each example beside it, in whatever order and batches it comes.

        Augment behind it, or have ids: `cache.attach(dataset).map(lambda taught, y: (taught._replace(x=...), y))`.

        Outputs by token come as long as the batch is padded: those of padding are zero, and where the teacher's output
        had a Keras mask, it comes back as `PrecomputedBatch.masks`.

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
            tf.errors.InvalidArgumentError: While it is read, an example is not in the cache, or has more tokens there
                than its batch; the message names its key. From `distiller.fit`: ValueError.
        """
        require_batches(dataset)
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
        teacher: The model whose outputs they should be, to have that checked; None: whoever's.
        preprocessing: What `cache_teacher_outputs` was told of it, to have that checked; None: whatever it was.
        verify: Whether every byte is compared with the checksums, which reads all files once. Without it, only the
            manifest's checksum and the sizes of the files are checked.

    Returns:
        A `TeacherCache`; its `attach(dataset)` joins it with any dataset of the same examples.

    Raises:
        FileNotFoundError: No cache is there.
        ValueError: The cache is half built; a file is missing, cut short or altered; it is of another teacher, of other
            preprocessing, or, of several, one is unlike the others.

    Example:

    >>> x = np.arange(12, dtype="float32").reshape(6, 2)
    >>> scores = [(x, np.eye(6, dtype="float32"))]  # of a model that need not be Keras's
    >>> _ = keras_kd.cache_teacher_outputs("a rule", scores, "outputs", verbose=0)
    >>> cache = keras_kd.open_teacher_cache("outputs")
    >>> dataset = cache.attach(tf.data.Dataset.from_tensor_slices((x,)).shuffle(6, seed=1).batch(2))
    >>> taught, = next(iter(dataset))
    >>> bool(np.all(x[taught.prediction.numpy().argmax(axis=-1)] == taught.x))
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


def teacher_setting(teacher):
    """What the manifest says of a teacher."""
    return teacher if isinstance(teacher, str) else fingerprint.of_model(require_model(teacher, "teacher"))


def plain(preprocessing):
    """What the manifest says of the preprocessing: the same as JSON holds it."""
    try:
        return json.loads(json.dumps(preprocessing))
    except (TypeError, ValueError) as error:
        raise TypeError(f"preprocessing must be what JSON can hold, got {preprocessing!r}: {error}.") from None


def require_batches(dataset):
    """Raise TypeError unless a dataset gives batches that outputs can be stored for or joined with."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a batched tf.data.Dataset, got {type(dataset).__name__}.")
    spec = dataset.element_spec
    leaves = tf.nest.flatten(x_of(spec))
    sound = not isinstance(spec, tuple) or (len(spec) in (1, 2, 3) and not isinstance(x_of(spec), PrecomputedBatch))
    dense = leaves and all(isinstance(leaf, tf.TensorSpec) and leaf.shape.rank != 0 for leaf in leaves)
    if not (sound and dense):
        raise TypeError(
            f"dataset must give batches of x, (x,), (x, y) or (x, y, sample_weight), x of dense tensors, got {spec}. "
            "Batch it first: dataset.batch(32)."
        )


def _require_files(folder, manifest, layout, verify):
    """Raise ValueError unless the files of a cache are those of its manifest."""
    parts = {name: parts_of(manifest["shards"], name) for name in layout.columns}
    parts |= {name: [manifest["index"][name]] for name in files.INDEX}
    for name, of_one in parts.items():
        files.require_parts(folder, name, of_one, verify=verify)
    rows = len(files.opened(folder, KEY, "<i8", ()))
    counts = {name: len(files.opened(folder, name, *column[:2])) for name, column in layout.columns.items()}
    wrong = {name: count for name, count in counts.items() if not layout.columns[name].by_token and count != rows}
    for output, of_tokens in layout.files_by_token.items():
        ends = files.opened(folder, layout.end_of(output), "<i8", ())
        tokens = int(ends[-1]) if len(ends) else 0
        wrong |= {name: counts[name] for name in of_tokens if counts[name] != tokens}
    if wrong or rows != manifest["examples"]:
        raise ValueError(
            f"the files of {str(folder)!r} must have a row for each of {manifest['examples']} examples, or for each of "
            f"their tokens, but {KEY} has {rows}" + "".join(f", {name} {count}" for name, count in wrong.items()) + "."
        )


def _manifest(folder):
    if (folder / files.MANIFEST).is_file():
        content = files.read_json(folder, files.MANIFEST)
        found = content.get("setting", {}).get("outputs", {}).get("format")
        if found != FORMAT:
            raise ValueError(f"{str(folder)!r} holds a cache of the format {found!r}; this version reads {FORMAT!r}.")
        return content
    if (folder / files.BEGUN).is_file():
        raise ValueError(
            f"the cache {str(folder)!r} is only half built. Call cache_teacher_outputs again with the same arguments, which "
            "goes on where it stopped."
        )
    raise FileNotFoundError(f"path must be the folder of a cache, but there is no {str(folder / files.MANIFEST)!r}.")
