"""`cache_signals`: runs a teacher once and stores what it says."""

import pathlib

import tensorflow as tf

from keras_kd._checks import require_choice, require_count, require_model
from keras_kd.cache import coding, files
from keras_kd.cache.building import Building
from keras_kd.cache.keys import Key
from keras_kd.cache.progress import shown_progress
from keras_kd.cache.sources import ArraySource, TeacherSource
from keras_kd.cache.stored import SignalCache, require_batches, teacher_setting

_SHARD_BYTES = 2**26


def cache_signals(
    teacher,
    dataset,
    path,
    *,
    signals=None,
    key=None,
    top_k=None,
    dtype="float16",
    shard_bytes=_SHARD_BYTES,
    verbose=1,
):
    """Run a teacher once over a dataset, store its signals, and return the dataset with them beside each example.

    `distiller.fit` takes that dataset with no teacher in memory: `Distiller(None, student, objectives)`. Signals belong
    to an example's key, never to its place: shuffle, repeat, batch and shard it as you like. What is randomly
    augmented has to have ids, or gets its signals before that: see `SignalCache.attach`.

    If `path` holds these signals already, the teacher is not run. A build that was killed, or whose disk was full, goes
    on where it stopped when called again, and ends with the same bytes; until then the folder is refused. Layout of the
    folder: `keras_kd.cache`.

    Args:
        teacher: A built `keras.Model`. A str, the name of whatever made the signals, if `dataset` brings them.
        dataset: A batched, finite `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, in the same
            order in each pass until the cache is built. Or, with a str as the teacher, an iterable of batches of NumPy
            arrays `(x, prediction)` or `(x, prediction, layers)`: logits `(examples, ..., classes)` (log-probabilities
            are logits), a list or dict of them, or a `keras_kd.cache.TopLogProbs`; layers `{name: array}`. With `key`,
            an array of ids will do for `x`.
        path: The folder: new, empty, or of this cache.
        signals: What is stored: the objectives that will learn from it, names of outputs, names of layers ("block_6",
            "block_6:query"; a name that is an output's stands for the output), or a list of these; None: all outputs.
            Objectives get outputs as the live teacher would give them; named outputs that are known to end in softmax
            or sigmoid are stored as logits. Layers are stored as they are.
        key: The entry of a dict `x` with each example's id, integers or strings; None: a 64-bit hash of its content,
            under which examples of equal content are one.
        top_k: How many of the likeliest classes are stored, 1 ≤ k < classes, with the mass of the others, which is
            spread equally over them; None: all. For distributions over classes only.
        dtype: "float16" or "float32", or "int8" for layers (outputs are then in float16).
        shard_bytes: Size of a file in bytes, and so of what a killed build loses at most.
        verbose: 0 shows nothing, 1 a bar with rate and time left.

    Returns:
        `dataset` with a `keras_kd.taught.Taught` in the place of `x`; for arrays, the `SignalCache`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The folder holds signals of another teacher or other settings, damaged files, or something else; an
            endless or empty dataset; NaN, or numbers that the dtype cannot hold; one id for two examples; a dataset
            that does not go on as an interrupted build began; an unknown layer; signals of no fixed shape.
        OSError: The disk is full; what was finished stays good.

    Example:

    >>> x, y = np.random.rand(64, 8).astype("float32"), np.random.randint(0, 3, 64)
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> train = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    >>> taught = keras_kd.cache_signals(teacher, train, "signals", verbose=0)
    >>> distiller = keras_kd.Distiller(None, student, keras_kd.SoftLabels(temperature=4.0))
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(taught, epochs=2, shuffle=False, verbose=0)
    >>> keras_kd.open_cache("signals")
    SignalCache('signals', 64 examples, signals ['output'])
    """
    folder, key = pathlib.Path(path), Key(key)
    require_choice(dtype, "dtype", coding.DTYPES)
    coded = {"top_k": None if top_k is None else require_count(top_k, "top_k", at_least=1), "dtype": dtype}
    require_count(shard_bytes, "shard_bytes", at_least=1)
    if isinstance(teacher, str):
        if signals is not None:
            raise ValueError("signals are what the arrays hold; leave signals= out where the teacher is a name.")
        source = ArraySource(dataset, key, coded)
    else:
        require_model(teacher, "teacher")
        _require_finite(dataset)
        source = TeacherSource(teacher, dataset, key, signals, coded)
    setting = {"teacher": teacher_setting(teacher), "signals": source.layout.config()}
    if (folder / files.MANIFEST).exists():
        cache = SignalCache(folder, verify=True)
        cache.require_setting(setting)
    else:
        building = Building(folder, setting, source.layout, shard_bytes)
        with shown_progress(verbose, source.batches) as advance:
            building.run(source, advance)
        cache = SignalCache(folder, verify=False)
    return cache if isinstance(teacher, str) else cache.attach(dataset)


def _require_finite(dataset):
    require_batches(dataset)
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError("dataset must end, got an endless one. Repeat it behind cache_signals: signals go by key.")
