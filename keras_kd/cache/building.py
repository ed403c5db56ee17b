"""`cache_teacher_outputs`: stores the outputs of a teacher that runs once; a stopped build resumes by key."""

import concurrent.futures
import errno
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_kd._checks import require_choice, require_count, require_teacher, require_tensorflow
from keras_kd.cache import codings, storage
from keras_kd.cache.keys import Key
from keras_kd.cache.layout import CONTENT, END, KEY, Layout
from keras_kd.cache.reading import (
    TeacherCache,
    open_teacher_cache,
    plain,
    require_batches,
    require_same,
    teacher_setting,
)
from keras_kd.cache.sources import ArraySource, TeacherSource
from keras_kd.losses.base import TemperatureLoss, scalar_value

SHARD_BYTES = 2**26
_FIT_OPTIONS = ["path", "key", "padding", "preprocessing", "top_k", "sampled", "dtype", "shard_bytes"]


def cache_teacher_outputs(
    teacher,
    dataset,
    path,
    *,
    outputs=None,
    key=None,
    padding=0,
    preprocessing=None,
    top_k=None,
    sampled=None,
    dtype="float16",
    shard_bytes=SHARD_BYTES,
    verbose=1,
):
    """Run a teacher once over a dataset, store its outputs, and return the dataset with them beside each example.

    `distiller.fit` takes that dataset with no teacher in memory: `Distiller(None, student, losses)`. Outputs belong
    to an example's key, never to its position: shuffle, repeat, batch and shard the dataset freely. Examples that are
    randomly augmented need ids (`key=`), or are augmented after this: see `TeacherCache.attach`.

    If `path` holds these outputs already, the teacher is not run. A build that was stopped (killed, or by a full disk)
    resumes when it is called again: the teacher runs only on batches with examples that are not stored yet, in any
    order; in that of the first run it ends with the same bytes. The folder's layout: `help(keras_kd.cache)`.

    Outputs of sequences may have any number of tokens, `(batch, None, ...)`; padding is not stored. Several workers
    store a part each, `cache_teacher_outputs(teacher, dataset.shard(workers, i), f"outputs/{i}")`, and
    `open_teacher_cache([...])` reads all of them.

    Args:
        teacher: A built `keras.Model`. Or a str, the name of the source of the outputs, if `dataset` brings them.
        dataset: A batched, finite `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`. Or, with a str
            as the teacher, an iterable of batches of NumPy arrays `(x, prediction)` or `(x, prediction, layers)`:
            logits `(examples, ..., classes)` (log-probabilities are logits), a list or dict of them, or a
            `keras_kd.cache.TopLogProbs`; layers `{name: array}`. With `key`, `x` may be an array of ids. What has
            another number of tokens in each example is a `tf.RaggedTensor`.
        path: The folder: new, empty, or of this cache.
        outputs: What is stored: the losses that will learn from it, names of outputs, names of layers ("block_6",
            "block_6:query"; the name of an output stands for the output), or a list of these; None: all outputs.
            Losses get outputs as the live teacher would give them; named outputs that are known to end in softmax
            or sigmoid are stored as logits. Layers are stored as they are.
        key: The entry of a dict `x` with each example's id, integers or strings; None: a 64-bit hash of its content,
            under which examples of equal content are one.
        padding: The number that fills up short sequences in integer entries `(batch, length)` of `x`, or
            `{entry: number}`; None where it is a token like any other. At the end of a sequence it is no content, so
            keys do not depend on how far a batch was padded, and outputs without a Keras mask end before it.
        preprocessing: How the data was preprocessed, as JSON, such as a tokenizer's name and the hash of its
            vocabulary. With another one, the cache is refused.
        top_k: How many of the likeliest classes are stored, 1 ≤ k < classes, with the mass of the others, which is
            spread equally over them; None: all. For distributions over classes only.
        sampled: Instead of `top_k`, how many classes are drawn from each distribution: an unbiased estimate of it in
            few bytes, for losses of temperature 1: see `keras_kd.cache.codings.Sampled`.
        dtype: "float16" or "float32", or "int8" for layers (outputs are then in float16).
        shard_bytes: How many bytes are written at once, and so what a killed build loses at most.
        verbose: 0 shows nothing, 1 a progress bar.

    Returns:
        `dataset` with a `keras_kd.PrecomputedBatch` in the place of `x`; for arrays, the `TeacherCache`.

    Raises:
        RuntimeError: Keras runs on another backend than tensorflow.
        TypeError: An argument is of the wrong kind.
        ValueError: The folder holds outputs of another teacher or other settings, damaged files, or something else; an
            endless or empty dataset; NaN, or numbers that the dtype cannot hold; one id for two examples; an unknown
            layer; outputs that vary in another axis than that of tokens.
        OSError: The disk is full; the finished shards stay good.

    Example:

    >>> x, y = np.random.rand(64, 8).astype("float32"), np.random.randint(0, 3, 64)
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> train = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    >>> cached = keras_kd.cache_teacher_outputs(teacher, train, "outputs", verbose=0)
    >>> distiller = keras_kd.Distiller(None, student, keras_kd.losses.SoftLabels(temperature=4.0))
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(cached, epochs=2, shuffle=False, verbose=0)
    >>> keras_kd.open_teacher_cache("outputs")
    TeacherCache('outputs', 64 examples, outputs ['output'])
    """
    require_count(shard_bytes, "shard_bytes", at_least=1)
    key, coded, preprocessing = _checked_options(key, padding, preprocessing, top_k, sampled, dtype)
    if sampled is not None:
        _require_temperature_one(outputs if isinstance(outputs, (list, tuple)) else [outputs])
    if isinstance(teacher, str):
        if outputs is not None:
            raise ValueError("outputs are what the arrays hold; leave outputs= out where the teacher is a name.")
        source = ArraySource(dataset, key, coded)
    else:
        require_teacher(teacher)
        require_batches(dataset, "dataset")
        require_tensorflow("A teacher whose outputs are stored")
        source = TeacherSource(teacher, dataset, key, outputs, coded)
    setting = {"teacher": teacher_setting(teacher), "preprocessing": preprocessing, "outputs": source.layout.config()}
    cache = build(path, setting, source, shard_bytes, verbose)
    return cache if isinstance(teacher, str) else cache.attach(dataset)


def require_cacheable(dataset, cache):
    """Return the options of `fit(dataset, cache=cache)` by name; raise for other data or other options."""
    require_batches(dataset, "x (with cache=)")
    options = dict(cache) if isinstance(cache, dict) else {"path": cache}
    unknown = [name for name in options if name not in _FIT_OPTIONS]
    if unknown:
        raise TypeError(f"fit(cache=...) has no entry {unknown[0]!r}; its entries are {_FIT_OPTIONS}.")
    if "path" not in options:
        raise ValueError(f"fit(cache=...) must have the entry 'path', a folder, got {cache!r}.")
    if not isinstance(options["path"], (str, os.PathLike)):
        raise TypeError(f"fit(cache=...) must be a folder or {{'path': folder, ...}}, got {options['path']!r}.")
    return options


def cached(dataset, cache, distiller, verbose):
    """The dataset that `distiller.fit(dataset, cache=cache)` trains on: with the teacher's outputs, stored before."""
    options = require_cacheable(dataset, cache)
    folder = options.pop("path")
    if distiller.teacher is distiller.student:
        raise ValueError(
            "fit(cache=...) stores a teacher's outputs once, but the teacher is the student, which changes while it "
            "learns. Leave cache= out."
        )
    losses = distiller.distillation_losses
    if distiller.teacher is not None:
        return cache_teacher_outputs(distiller.teacher, dataset, folder, outputs=losses, verbose=verbose, **options)
    finished = open_teacher_cache(folder)
    require_count(options.pop("shard_bytes", SHARD_BYTES), "shard_bytes", at_least=1)
    if options:
        key, coded, preprocessing = _checked_options(**options)
        finished.require({"preprocessing": preprocessing, "outputs": finished.layout.coded(key, **coded).config()})
    if any(isinstance(coding, codings.Sampled) for coding in finished.layout.codings.values()):
        _require_temperature_one(losses)
    return finished.attach(dataset)


def _checked_options(key=None, padding=0, preprocessing=None, top_k=None, sampled=None, dtype="float16"):
    """The `Key`, the coding and the preprocessing of these arguments of `cache_teacher_outputs`."""
    require_choice(dtype, "dtype", codings.DTYPES)
    if top_k is not None and sampled is not None:
        raise ValueError(f"top_k and sampled are two ways to store a part, got {top_k} and {sampled}. Give one.")
    coded = {"dtype": dtype, "top_k": top_k, "sampled": sampled}
    for name in ("top_k", "sampled"):
        if coded[name] is not None:
            coded[name] = require_count(coded[name], name, at_least=1)
    return Key(key, padding), coded, plain(preprocessing)


def _require_temperature_one(outputs):
    """Raise ValueError if a loss would soften a sample: of p^(1/T) that is no unbiased estimate."""
    softened = [loss for loss in outputs if isinstance(loss, TemperatureLoss) and scalar_value(loss.temperature) != 1.0]
    if softened:
        raise ValueError(
            f"sampled is for losses of temperature 1, got {scalar_value(softened[0].temperature)} of "
            f"{softened[0].name}. Give it temperature=1.0, or store top_k= classes or all of them."
        )


# Building ----------------------------------------------------------------------------------------------------------


class Writer:
    """Appends examples to the files of a folder, shard by shard, and makes a cache of them at the end.

    A shard is what is written at once: a run of examples, its part of each file with a checksum of its own.

    The folder is new, empty, or of a cache of this setting that was begun; else ValueError. A shard is closed after the
    batch that makes it as large as `shard_bytes`.
    """

    def __init__(self, folder, setting, shard_bytes):
        self._folder, self._setting, self._shard_bytes = folder, setting, shard_bytes
        self._batches, self._buffered, self._shards = [], 0, []
        for half in (*folder.glob(".building.*.json"), *folder.glob(".manifest.*.json")):
            half.unlink(missing_ok=True)  # what killed runs left half written
        begun = folder / storage.BEGUN
        if begun.exists():
            content = storage.read_json(begun)
            require_same(content.get("setting"), setting, folder)
            self._setting, self._shards = content["setting"], content.get("shards")
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"path must be a new or empty folder, or a cache, got {str(folder)!r} with files.")
        else:
            self._note()
        with storage.fields_of(begun):
            self.layout = Layout.from_config(self._setting["outputs"])
            storage.require_shards(folder, self._shards, self.layout, verify=True, longer=True)
        self._cut()

    def stored(self, column):
        """A file of the finished shards, mapped into memory."""
        return storage.opened(self._folder, self.layout.columns[column])

    def add(self, rows, sequences):
        """Take a batch, `{column: array}`; close the shard if it is large enough.

        `sequences` are `{output by token: names of the entries of x that are padded as far as it}`, None instead of the
        names where `x` has no sequences.
        """
        for column, values in rows.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(self._not_finite(column, rows))
        self._batches.append((rows, sequences))
        self._buffered += sum(values.nbytes for values in rows.values())
        if self._buffered >= self._shard_bytes:
            self._close_shard()

    def finish(self):
        """Write the manifest, which makes the folder a cache."""
        if self._batches:
            self._close_shard()
        if not self._shards:
            raise ValueError("dataset must hold at least one example, got none.")
        manifest = {
            "setting": self._setting,
            "examples": sum(shard["examples"] for shard in self._shards),
            "sequences": storage.common_sequences(shard["sequences"] for shard in self._shards),
            "shards": self._shards,
        }
        storage.write_json(self._folder / storage.MANIFEST, manifest)
        (self._folder / storage.BEGUN).unlink()

    def _note(self):
        storage.write_json(self._folder / storage.BEGUN, {"setting": self._setting, "shards": self._shards})

    def _close_shard(self):
        rows = {column: np.concatenate([one[column] for one, _ in self._batches]) for column in self.layout.columns}
        for name in self.layout.by_token:
            rows[name, END] = self.stored((name, END))[-1:].sum() + np.cumsum(rows[name, END])
        files = {}
        try:
            for name, column in self.layout.columns.items():
                files[column.file] = storage.append(self._folder / column.file, rows[name], self._size(column))
        except OSError:
            self._cut()
            raise
        sequences = storage.common_sequences(one for _, one in self._batches)
        self._shards.append({"examples": len(rows[KEY]), "sequences": sequences, "files": files})
        self._note()
        self._batches, self._buffered = [], 0

    def _size(self, column):
        return sum(shard["files"][column.file]["bytes"] for shard in self._shards)

    def _cut(self):
        """Remove what was written after the last finished shard."""
        for column in self.layout.columns.values():
            storage.cut(self._folder / column.file, self._size(column))

    def _not_finite(self, column, rows):
        output, keys, values = column[0], rows[KEY], rows[column]
        keys = np.repeat(keys, rows[output, END]) if self.layout.columns[column].by_token else keys
        sound = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        return (
            f"output {output!r} of the example with the key {keys[~sound][0]} holds NaN or infinite values, "
            f"or such as {values.dtype} cannot hold. Check the teacher on it; dtype='float32' holds numbers beyond "
            "65,504."
        )


class _KnownKeys:
    """The keys that are stored or about to be, each with the hash of its example's content, int64 `(examples,)`."""

    def __init__(self, keys, content):
        self._content = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=0)
        self._content.insert(keys, content)

    def new(self, keys, content):
        """Which examples of a batch are to be stored, bool `(batch,)`; ValueError if one key has two contents."""
        _, first, positions = np.unique(keys, return_index=True, return_inverse=True)
        known = self._content.lookup(keys, ~content).numpy()
        new = known == ~content
        differing = np.where(new, content[first][positions], known) != content
        if differing.any():
            raise ValueError(
                f"key must name one example each, but two different examples have the key {keys[differing][0]}. Number "
                "the examples anew; store a dataset before it is augmented or repeated."
            )
        new &= np.isin(np.arange(len(keys)), first)
        self._content.insert(keys[new], content[new])
        return new


def build(path, setting, source, shard_bytes, verbose):
    """The `TeacherCache` of a folder, built or completed where it is not finished; ValueError for another setting."""
    folder = pathlib.Path(path)
    built_before = (folder / storage.MANIFEST).exists()
    if not built_before:
        _complete(folder, setting, source, shard_bytes, verbose)
    cache = TeacherCache([folder], verify=built_before)
    cache.require(setting)
    return cache


def _complete(folder, setting, source, shard_bytes, verbose):
    """Store the examples of a source that are not stored yet."""
    if source.batches == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "dataset must end, got an endless one. Give it before .repeat(), and repeat what is returned: outputs go "
            "by key."
        )
    try:
        _store(Writer(folder, setting, shard_bytes), source, verbose)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            "the disk is full. The shards that were finished are good: free some space and make the same call again, "
            "which resumes after them",
            str(folder),
        ) from error


def _store(writer, source, verbose):
    known = _KnownKeys(writer.stored(KEY), writer.stored(CONTENT if CONTENT in writer.layout.columns else KEY))
    batches = source.batches if source.batches != tf.data.UNKNOWN_CARDINALITY else None
    bar, number = keras.utils.Progbar(batches, unit_name="batch of teacher outputs"), 0
    with concurrent.futures.ThreadPoolExecutor(1) as beside:  # hashes and writes while the teacher runs on
        writing = beside.submit(bool)
        for number, (batch, keys, content) in enumerate(source, start=1):
            new = known.new(keys, content)
            if new.any():
                rows, sequences = source.encoded(batch, keys, content, new)
                writing.result()
                writing = beside.submit(writer.add, rows, sequences)
            if verbose:
                bar.update(number)
        writing.result()
    if verbose and batches is None:
        bar.update(number, finalize=True)
    writer.finish()
