"""`cache_teacher_outputs`: runs a teacher once and stores what it says."""

import pathlib

import tensorflow as tf

from keras_kd._checks import require_choice, require_count, require_teacher, require_tensorflow
from keras_kd.cache import coding, files
from keras_kd.cache.building import Writer, build
from keras_kd.cache.keys import Key
from keras_kd.cache.progress_bar import shown_progress
from keras_kd.cache.sources import ArraySource, TeacherSource
from keras_kd.cache.stored import TeacherCache, plain, require_batches, teacher_setting
from keras_kd._hyperparameters import scalar_value
from keras_kd.losses.base import TemperatureLoss

SHARD_BYTES = 2**26


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
    packed=False,
    sampled=None,
    dtype="float16",
    shard_bytes=SHARD_BYTES,
    verbose=1,
):
    """Run a teacher once over a dataset, store its outputs, and return the dataset with them beside each example.

    `distiller.fit` takes that dataset with no teacher in memory: `Distiller(None, student, losses)`. Outputs belong
    to an example's key, never to its place: shuffle, repeat, batch and shard it as you like. What is randomly
    augmented has to have ids, or gets its outputs before that: see `TeacherCache.attach`.

    If `path` holds these outputs already, the teacher is not run. A build that was killed, or whose disk was full, goes
    on where it stopped when called again, and ends with the same bytes; until then the folder is refused. Layout of the
    folder: `keras_kd.cache`.

    Outputs of sequences may have any number of tokens, `(batch, None, ...)`: of padding nothing is stored. Batches of
    texts of about one length, `dataset.bucket_by_sequence_length`, are padded less, and so the teacher takes less time.

    Several workers store a part each, `cache_teacher_outputs(teacher, dataset.shard(workers, i), f"outputs/{i}")`, and
    `open_teacher_cache([...])` reads all of them.

    Args:
        teacher: A built `keras.Model`. A str, the name of whatever made the outputs, if `dataset` brings them.
        dataset: A batched, finite `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, in the same
            order in each pass until the cache is built. Or, with a str as the teacher, an iterable of batches of NumPy
            arrays `(x, prediction)` or `(x, prediction, layers)`: logits `(examples, ..., classes)` (log-probabilities
            are logits), a list or dict of them, or a `keras_kd.cache.TopLogProbs`; layers `{name: array}`. With `key`,
            an array of ids will do for `x`. Outputs with another number of tokens in each example are a
            `tf.RaggedTensor`.
        path: The folder: new, empty, or of this cache.
        outputs: What is stored: the losses that will learn from it, names of outputs, names of layers ("block_6",
            "block_6:query"; a name that is an output's stands for the output), or a list of these; None: all outputs.
            Losses get outputs as the live teacher would give them; named outputs that are known to end in softmax
            or sigmoid are stored as logits. Layers are stored as they are.
        key: The entry of a dict `x` with each example's id, integers or strings; None: a 64-bit hash of its content,
            under which examples of equal content are one.
        padding: What fills up short sequences in integer entries `(batch, length)` of `x`, or `{entry: number}`, or
            None: nothing does. At the end of a sequence it is no content, so that keys do not depend on how far a batch
            was padded: where it is a token like any other, give None. It also says how long an output is that has no
            Keras mask.
        preprocessing: What the data went through, as JSON can hold it: a tokenizer's name and the hash of its
            vocabulary, for instance. With another one, the cache is refused.
        top_k: How many of the likeliest classes are stored, 1 ≤ k < classes, with the mass of the others, which is
            spread equally over them; None: all. For distributions over classes only.
        packed: Whether the likeliest classes are stored in as few bytes as it takes, 125 in place of 304 for 50 of
            250,002 classes, with log-probabilities in 32 steps: see `keras_kd.cache.likeliest.PackedTopK`. A number: in
            so many bytes, for ids that go by how common they are; where k do not fit, the least likely are left out:
            see `keras_kd.cache.likeliest.GradedTopK`.
        sampled: In place of `top_k`, how many classes are drawn from each distribution: an unbiased estimate of it, for
            losses of temperature 1: see `keras_kd.cache.sampled.Sampled`.
        dtype: "float16" or "float32", or "int8" for layers (outputs are then in float16).
        shard_bytes: How many bytes are written at once, and so what a killed build loses at most.
        verbose: 0 shows nothing, 1 a bar with rate and time left.

    Returns:
        `dataset` with a `keras_kd.PrecomputedBatch` in the place of `x`; for arrays, the `TeacherCache`.

    Raises:
        RuntimeError: A teacher runs on another Keras backend than tensorflow.
        TypeError: An argument is of the wrong kind.
        ValueError: The folder holds outputs of another teacher or other settings, damaged files, or something else; an
            endless or empty dataset; NaN, or numbers that the dtype cannot hold; one id for two examples; a dataset
            that does not go on as an interrupted build began; an unknown layer; outputs that vary in another axis than
            that of tokens.
        OSError: The disk is full; what was finished stays good.

    Example:

    >>> x, y = np.random.rand(64, 8).astype("float32"), np.random.randint(0, 3, 64)
    >>> teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> train = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    >>> taught = keras_kd.cache_teacher_outputs(teacher, train, "outputs", verbose=0)
    >>> distiller = keras_kd.Distiller(None, student, keras_kd.losses.SoftLabels(temperature=4.0))
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(taught, epochs=2, shuffle=False, verbose=0)
    >>> keras_kd.open_teacher_cache("outputs")
    TeacherCache('outputs', 64 examples, outputs ['output'])
    """
    require_count(shard_bytes, "shard_bytes", at_least=1)
    if not isinstance(teacher, str):
        require_teacher(teacher)
        _require_finite(dataset)
    source, setting = prepared(
        teacher,
        dataset,
        outputs=outputs,
        key=key,
        padding=padding,
        preprocessing=preprocessing,
        top_k=top_k,
        packed=packed,
        sampled=sampled,
        dtype=dtype,
    )
    folder = pathlib.Path(path)
    cache = finished(folder, setting)
    if cache is None:
        writer = Writer(folder, setting, source.layout, shard_bytes)
        with shown_progress(verbose, source.batches) as advance:
            build(writer, folder, source, advance)
        cache = TeacherCache([folder], verify=False)
    return cache if isinstance(teacher, str) else cache.attach(dataset)


def prepared(teacher, dataset, *, outputs=None, **stored):
    """`(source, setting)` of these arguments of `cache_teacher_outputs`, after they were found right."""
    key, coded, preprocessing = stored_as(**stored)
    if coded["sampled"] is not None:
        _require_temperature_one(outputs if isinstance(outputs, (list, tuple)) else [outputs])
    if isinstance(teacher, str):
        if outputs is not None:
            raise ValueError("outputs are what the arrays hold; leave outputs= out where the teacher is a name.")
        source = ArraySource(dataset, key, coded)
    else:
        require_tensorflow("A teacher whose outputs are stored")
        source = TeacherSource(teacher, dataset, key, outputs, coded)
    setting = {
        "teacher": teacher_setting(teacher),
        "preprocessing": preprocessing,
        "outputs": source.layout.config(),
    }
    return source, setting


def stored_as(*, key=None, padding=0, preprocessing=None, top_k=None, packed=False, sampled=None, dtype="float16"):
    """The `Key`, the coding and the preprocessing that these arguments of `cache_teacher_outputs` ask for, found right."""
    key = Key(key, padding)
    require_choice(dtype, "dtype", coding.DTYPES)
    return key, {"dtype": dtype, **coding.require_sparse(top_k, packed, sampled)}, plain(preprocessing)


def finished(folder, setting):
    """The cache that is in a folder, verified; None if there is none yet; ValueError if it is of another setting."""
    if not (folder / files.MANIFEST).exists():
        return None
    cache = TeacherCache([folder], verify=True)
    cache.require(setting)
    return cache


def require_stored_as(cache, **stored):
    """Raise ValueError unless `stored`, arguments of `stored_as`, would have stored the outputs of a cache as they are.

    Args:
        cache: A `TeacherCache`.
    """
    key, coded, preprocessing = stored_as(**stored)
    cache.require({"preprocessing": preprocessing, "outputs": cache.layout.coded(key, **coded).config()})


def _require_temperature_one(outputs):
    """Raise ValueError if a loss would soften a sample: of p^(1/T) that is no unbiased estimate."""
    tempered = [one for one in outputs if isinstance(one, TemperatureLoss) and scalar_value(one.temperature) != 1.0]
    if tempered:
        raise ValueError(
            f"sampled is for losses of temperature 1, got {scalar_value(tempered[0].temperature)} of "
            f"{tempered[0].name}. Give it temperature=1.0, or store top_k= classes or all of them."
        )


def _require_finite(dataset):
    require_batches(dataset)
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "dataset must end, got an endless one. Repeat it behind cache_teacher_outputs: outputs go by key."
        )
