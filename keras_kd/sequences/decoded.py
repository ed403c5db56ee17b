"""What a teacher writes for each source, on disk, and its hypotheses as the targets of a student."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_kd._checks import require_choice, require_count, require_number, require_tensorflow
from keras_kd.cache.building import SHARD_BYTES, build
from keras_kd.cache.codings import Full, Whole
from keras_kd.cache.keys import Key
from keras_kd.cache.layout import Layout
from keras_kd.cache.reading import TeacherCache, plain, require_batches, teacher_setting
from keras_kd.cache.sources import DatasetSource
from keras_kd.evaluation.text_metrics import sentence_scores

_TOKENS, _SCORES, _LENGTHS = "output ids", "output scores", "output lengths"
_DTYPES = {"ids": "<i4", "text": "|u1"}
_SELECTIONS = ("best", "all", "interpolation")
_SIMILARITIES = ("chrf", "chrf++", "bleu")


def decode_dataset(
    decode,
    sources,
    path,
    *,
    teacher,
    n_best=1,
    output="ids",
    key=None,
    padding=0,
    generation=None,
    preprocessing=None,
    shard_bytes=SHARD_BYTES,
    verbose=1,
):
    """Let a teacher write its hypotheses for a dataset of sources, once, and store them: sequence-level distillation.

    A student that learns from the teacher's own texts has an easier task than from people's, which vary more: its
    cross-entropy on them approximates KL(teacher ‖ student) over whole sequences. `DecodedDataset.attach` makes
    hypotheses the targets of a dataset.

    The store has the guarantees of `keras_kd.cache_teacher_outputs`, whose layout it has: hypotheses belong to an
    example's key, never to its position; a build that was stopped resumes when it is called again, and decodes only
    batches with sources that are not stored yet; another teacher, search or tokenizer and damaged files are refused.

    Args:
        decode: A function of the `x` of a batch. For `output="ids"` it returns `(ids, scores, lengths)`, as a
            `keras_kd.sequences.Generator` does: ids (batch, n_best, length), the best first; scores (batch, n_best),
            such as log-probabilities, −inf where there is no hypothesis; lengths (batch, n_best), tokens without
            padding. For `output="text"`, `(texts, scores)`: n_best str for each source, in lists.
        sources: A batched, finite `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        path: The folder: new, empty, or of this store.
        teacher: The model that `decode` runs, whose weights are remembered as a fingerprint; or a str that names it.
        n_best: Hypotheses per source ≥ 1.
        output: "ids" or "text".
        key, padding: As in `keras_kd.cache_teacher_outputs`.
        generation: How `decode` searches, as JSON, such as `{"beam_size": 4, "length_penalty": 0.6}`. With another
            one, the store is refused.
        preprocessing: How the sources were made, as JSON, such as the hash of the tokenizer, likewise.
        shard_bytes: How many bytes are written at once, and so what a killed build loses at most.
        verbose: 0 shows nothing, 1 a progress bar.

    Returns:
        The `DecodedDataset`.

    Raises:
        RuntimeError: Keras runs on another backend than tensorflow.
        TypeError: An argument is of the wrong kind.
        ValueError: The folder holds something else, or damaged files; `decode` returns other shapes or NaN; an endless
            or empty dataset; one id for two examples.
        OSError: The disk is full; the finished shards stay good.

    Example:

    >>> def shout(x):
    ...     return [[text.decode().upper()] for text in x.numpy()], np.zeros((len(x), 1))
    >>> sources = tf.data.Dataset.from_tensor_slices(["ein Hund", "zwei Katzen"]).batch(2)
    >>> store = keras_kd.sequences.decode_dataset(shout, sources, "decoded", teacher="shout", output="text", verbose=0)
    >>> for x, y in store.attach(sources).dataset:
    ...     print(y.numpy())
    [b'EIN HUND' b'ZWEI KATZEN']

    Source: Kim and Rush 2016, "Sequence-Level Knowledge Distillation", https://arxiv.org/abs/1606.07947.
    """
    require_tensorflow("decode_dataset")
    if not callable(decode):
        raise TypeError(f"decode must be a function of a batch of sources, got {type(decode).__name__}.")
    require_batches(sources, "sources")
    n_best = require_count(n_best, "n_best", at_least=1)
    require_choice(output, "output", list(_DTYPES))
    require_count(shard_bytes, "shard_bytes", at_least=1)
    source = _DecodedSource(decode, sources, Key(key, padding), n_best, output)
    setting = {
        "teacher": teacher_setting(teacher),
        "preprocessing": {"generation": plain(generation), "sources": plain(preprocessing)},
        "outputs": source.layout.config(),
    }
    return DecodedDataset(build(path, setting, source, shard_bytes, verbose))


def open_decoded_dataset(path, *, verify=True):
    """Open what `decode_dataset` stored.

    Args:
        path: The folder; or a list of folders, whose stores have the same settings and are read as one.
        verify: Whether every byte is compared with the checksums.

    Returns:
        A `DecodedDataset`.

    Raises:
        FileNotFoundError: There is no store.
        ValueError: It is half built, damaged, or holds outputs of another kind.
    """
    return DecodedDataset(TeacherCache(path if isinstance(path, (list, tuple)) else [path], verify=verify))


class Found(NamedTuple):
    """Stored hypotheses of a batch, arrays: ids (or bytes) (batch, n_best, length), the others (batch, n_best)."""

    ids: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray


class SequenceTargets(NamedTuple):
    """A dataset whose targets are hypotheses, and what became of the sources.

    Attributes:
        dataset: A `tf.data.Dataset` of batches `(x, targets)` or `(x, targets, sample_weight)`: targets are str
            `(examples,)`, or int32 ids `(examples, length)` with padding. Batches have more or fewer examples than
            those of the sources, and at least one: `dataset.unbatch().padded_batch(64)` makes them of one size.
        kept: How many targets there are.
        dropped: How many hypotheses were left out, by the reason: "score" and "length_ratio"; and how many sources have
            no hypothesis but empty ones, "empty".
    """

    dataset: tf.data.Dataset
    kept: int
    dropped: dict


class DecodedDataset:
    """The stored hypotheses of a teacher. `decode_dataset` makes one, `open_decoded_dataset` opens one.

    Attributes:
        examples: How many sources have hypotheses.
        n_best: Hypotheses per source.
        output: "ids" or "text".
        teacher: The fingerprint of the teacher, or its name.
        key: The `Key` of the sources.
    """

    def __init__(self, cache):
        coding = cache.layout.codings.get(_TOKENS)
        if not isinstance(coding, Whole):
            raise ValueError(f"{cache!r} holds no hypotheses of decode_dataset: open it with open_teacher_cache.")
        self._cache, self.key = cache, cache.layout.key
        self.examples, self.teacher, self.n_best = cache.examples, cache.teacher, coding.shape[-1]
        self.output = next(output for output, dtype in _DTYPES.items() if dtype == coding.dtype)

    def __repr__(self):
        return f"DecodedDataset({self.examples} sources, {self.n_best} {self.output} each)"

    def attach(
        self,
        sources,
        *,
        select="best",
        similarity="chrf",
        detokenize=None,
        min_score=None,
        max_length_ratio=None,
        source_key=None,
        pad_id=0,
    ):
        """Return the dataset with hypotheses as its targets, in the place of `y`.

        The sources are read once to choose and count, and again whenever the returned dataset is.

        Args:
            sources: A batched `tf.data.Dataset` of `x`, `(x, y)` or `(x, y, sample_weight)`, in any order, of sources
                that are stored.
            select: "best": the first hypothesis of each source. "all": every one, each an example of its own.
                "interpolation": the one that is most similar to the reference `y`, so that the student learns what the
                teacher can say and is right. Equal sources without ids are one, whose first reference counts.
            similarity: sacreBLEU's sentence score for "interpolation": "chrf", "chrf++" or "bleu".
            detokenize: For "interpolation" with ids: a function of lists of ids, without padding, that returns as many
                str; for hypotheses, and for `y` unless it holds strings.
            min_score: The least score, as `decode` gave it. Without a length penalty in the search it is that of a
                whole sequence, and long ones are dropped.
            max_length_ratio: The most by which target and source may differ in length ≥ 1: longer / shorter, in tokens
                that are no padding (for text, in characters).
            source_key: The entry of a dict `x` that holds the tokens or text of the source, for `max_length_ratio`.
            pad_id: The padding of ids.

        Returns:
            `SequenceTargets`.

        Raises:
            TypeError: An argument is of the wrong kind.
            ValueError: An unknown `select` or `similarity`; no references or `detokenize` where "interpolation" needs
                them; a limit out of range; every source is dropped.
            tf.errors.InvalidArgumentError: A source is not in the store; the message names its key.

        Example:

        >>> x = np.array([["a b"], ["c d e"]])
        >>> two = lambda x: ([["A B", "A"], ["C", "C D E"]], np.array([[-1.0, -3.0], [-2.0, -4.0]]))
        >>> sources = tf.data.Dataset.from_tensor_slices((x[:, 0], ["A", "C D"])).batch(2)
        >>> store = keras_kd.sequences.decode_dataset(
        ...     two, sources, "decoded", teacher="two", n_best=2, output="text", verbose=0)
        >>> store.attach(sources, select="all", max_length_ratio=2.0).dropped
        {'empty': 0, 'score': 0, 'length_ratio': 2}
        >>> [(x, y)] = store.attach(sources, select="interpolation").dataset
        >>> y.numpy().tolist()
        [b'A', b'C D E']
        """
        require_batches(sources, "sources")
        require_choice(select, "select", _SELECTIONS)
        require_choice(similarity, "similarity", _SIMILARITIES)
        limits = {
            "score": _limit(min_score, "min_score"),
            "length_ratio": _limit(max_length_ratio, "max_length_ratio", at_least=1.0),
        }
        texts = _texts_of(self, sources, detokenize, pad_id) if select == "interpolation" else None
        chooser = _Chooser(self, select, limits, source_key, similarity, texts)
        chosen, kept, dropped = chooser.choose(sources)
        if not kept:
            raise ValueError(f"every source is dropped: {dropped}. Loosen min_score or max_length_ratio.")
        return SequenceTargets(self._joined(sources, chosen, pad_id), kept, dropped)

    def hypotheses(self, keys, names):
        """The `Found` hypotheses of the sources with these keys, named so in messages."""
        rows = self._cache.rows(keys, names, {_TOKENS: None})  # as long as the longest, whatever the sources are
        return Found(rows[_TOKENS, ""].transpose(0, 2, 1), rows[_SCORES, ""], rows[_LENGTHS, ""])

    def _joined(self, sources, chosen, pad_id):
        """The sources with the chosen hypotheses, `{key: positions}`, as targets."""
        kind = tf.string if self.output == "text" else tf.int32

        def read(keys, names):
            ids, _, lengths = self.hypotheses(keys, names)
            pairs = [(row, i) for row, key in enumerate(keys.tolist()) for i in chosen.get(key, ())]
            rows, which = np.array(pairs, "int64").reshape(-1, 2).T
            ids, lengths = ids[rows, which], lengths[rows, which]
            if self.output == "text":
                return rows, np.array([bytes(own[:end]) for own, end in zip(ids, lengths, strict=True)], object)
            ids = ids[:, : lengths.max(initial=0)]
            return rows, np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, pad_id).astype("int32")

        def join(*element):
            keys, names = self.key.of(element[0])
            rows, targets = tf.numpy_function(read, [keys, names], [tf.int64, kind])
            rows.set_shape((None,))
            targets.set_shape((None,) if self.output == "text" else (None, None))
            x, *weight = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), [element[0], *element[2:]])
            return x, targets, *weight

        joined = sources.map(join)
        if not all(chosen.values()):  # a filter hides from fit how many batches there are
            joined = joined.filter(lambda x, targets, *weight: tf.shape(targets)[0] > 0)
        return joined.prefetch(2)


# Choosing ----------------------------------------------------------------------------------------------------------


class _Chooser:
    """Which hypotheses of each source become targets: the arguments of `DecodedDataset.attach`.

    `limits` are "score" and "length_ratio", None for none; `texts` gives hypotheses and references as str.
    """

    def __init__(self, store, select, limits, source_key, similarity, texts):
        self._store, self._select, self._limits, self._source_key = store, select, limits, source_key
        self._similarity, self._texts = similarity, texts

    def choose(self, sources):
        """`{key: positions of hypotheses}`, how many there are, and how many were dropped for which reason."""
        reasons, dropped = {}, {"empty": 0, "score": 0, "length_ratio": 0}
        kept = 0
        for element in sources:
            x, *rest = element if isinstance(element, tuple) else (element,)
            keys, names = (tensor.numpy() for tensor in self._store.key.of(x))
            found = self._store.hypotheses(keys, names)
            texts = self._texts(found, rest[0]) if self._texts else [None] * len(keys)
            source_lengths = self._source_lengths(x)
            for row, key in enumerate(keys.tolist()):
                if key not in reasons:
                    candidates = self._candidates(found.lengths[row], texts[row])
                    reasons[key] = self._reasons(candidates, *(part[row] for part in found), source_lengths[row])
                kept += list(reasons[key].values()).count(None)
                for reason in filter(None, reasons[key].values() if reasons[key] else ["empty"]):
                    dropped[reason] += 1
        chosen = {key: [i for i, reason in own.items() if reason is None] for key, own in reasons.items()}
        return chosen, kept, dropped

    def _candidates(self, lengths, texts):
        """The positions of the hypotheses that `select` takes, of a source."""
        written = np.flatnonzero(lengths > 0).tolist()
        if self._select == "all" or not written:
            return written
        if self._select == "best":
            return written[:1]
        hypotheses, reference = texts
        similar = sentence_scores([hypotheses[i] for i in written], [reference] * len(written), self._similarity)
        return [written[int(similar.argmax())]]

    def _reasons(self, candidates, ids, scores, lengths, source_length):
        """`{position: why the hypothesis is dropped, None if it is not}` of a source."""
        least, most = self._limits["score"], self._limits["length_ratio"]
        reasons = {}
        for i in candidates:
            size = len(_text(ids[i], lengths[i])) if most is not None and self._store.output == "text" else lengths[i]
            too_unlikely = least is not None and scores[i] < least
            unequal = most is not None and max(size, source_length) > most * min(size, source_length)
            reasons[i] = "score" if too_unlikely else "length_ratio" if unequal else None
        return reasons

    def _source_lengths(self, x):
        """Tokens that are no padding, or characters, of each source; nothing where they are not compared."""
        if self._limits["length_ratio"] is None:
            return [None] * len(tf.nest.flatten(x)[0])
        entries = {"": x} if not isinstance(x, dict) else x
        name = "" if not isinstance(x, dict) else self._source_key
        if name not in entries:
            raise ValueError(f"source_key must name the entry of x that holds the sources, {sorted(x)}, got {name!r}.")
        source = entries[name]
        if (source.dtype == tf.string) != (self._store.output == "text"):
            raise ValueError(
                f"max_length_ratio compares {self._store.output} with {self._store.output}, but the sources are "
                f"{source.dtype.name}. Leave it out, or name another entry with source_key."
            )
        if source.dtype == tf.string:
            return tf.strings.length(tf.reshape(source, (-1,)), "UTF8_CHAR").numpy()
        padding = self._store.key.padding
        padding = padding.get(name, 0) if isinstance(padding, dict) else padding
        return tf.math.count_nonzero(source != tf.cast(padding or 0, source.dtype), axis=1).numpy()


def _limit(value, argument, **bounds):
    return None if value is None else require_number(value, argument, **bounds)


def _text(content, length):
    """The str of UTF-8 bytes."""
    return bytes(content[:length]).decode()


def _texts_of(store, sources, detokenize, pad_id):
    """A function of the `Found` hypotheses and `y` of a batch: `[([hypothesis, ...], reference)]`, as str."""
    spec = sources.element_spec
    if not isinstance(spec, tuple) or len(spec) < 2:
        raise ValueError("sources must be a dataset of (x, y) for select='interpolation': y holds the references.")
    y_is_text = isinstance(spec[1], tf.TensorSpec) and spec[1].dtype == tf.string
    if detokenize is None and not (y_is_text and store.output == "text"):
        raise ValueError("detokenize must be given for select='interpolation' with ids: a function of lists of ids.")

    def hypotheses(ids, lengths):
        if store.output == "text":
            return [_text(*one) for one in zip(ids, lengths, strict=True)]
        return _detokenized(detokenize, [own[:end].tolist() for own, end in zip(ids, lengths, strict=True)])

    def references(y):
        if y_is_text:
            return [text.decode() for text in y.numpy().reshape(-1)]
        return _detokenized(detokenize, [own[own != pad_id].tolist() for own in y.numpy()])

    def texts(found, y):
        written = [hypotheses(*own) for own in zip(found.ids, found.lengths, strict=True)]
        return list(zip(written, references(y), strict=True))

    return texts


def _detokenized(detokenize, ids):
    texts = list(detokenize(ids))
    if len(texts) != len(ids) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"detokenize must return a str for each of {len(ids)} lists of ids, got {texts!r:.100}.")
    return texts


# Building ----------------------------------------------------------------------------------------------------------


class _DecodedSource(DatasetSource):
    """The hypotheses of the batches of a dataset."""

    def __init__(self, decode, dataset, key, n_best, output):
        super().__init__(dataset, key)
        self._decode, self._n_best, self._output = decode, n_best, output
        codings = {
            _TOKENS: Whole((None, n_best), _DTYPES[output]),
            _LENGTHS: Whole((n_best,), "<i4"),
            _SCORES: Full((n_best,), "float32"),
        }
        names = {name.removeprefix("output "): name for name in codings}
        self.layout = Layout(key, codings, masked=[], prediction=names, layers=[], endings={})

    def _encode(self, x, *examples):
        read = _from_ids if self._output == "ids" else _from_texts
        ids, lengths, scores = read(self._decode(x), int(examples[0].shape[0]), self._n_best)
        tokens = tf.transpose(tf.constant(ids), (0, 2, 1))  # (batch, length, n_best)
        used = tf.sequence_mask(lengths.max(axis=1), tokens.shape[1])
        prediction = {"ids": tokens, "lengths": tf.constant(lengths), "scores": tf.constant(scores)}
        return self.layout.encode(x, *examples, prediction, {}, {_TOKENS: used})


def _from_ids(decoded, batch, n_best):
    """ids int32 (batch, n_best, length), lengths int32 and scores float32 (batch, n_best), of what `decode` returns."""
    if not isinstance(decoded, tuple) or len(decoded) != 3:
        raise TypeError(f"decode must return (ids, scores, lengths) for output='ids', got {type(decoded).__name__}.")
    ids, scores, lengths = map(np.asarray, decoded)
    if ids.ndim != 3 or ids.shape[:2] != (batch, n_best) or not {scores.shape, lengths.shape} == {(batch, n_best)}:
        raise ValueError(
            f"decode must return ids ({batch}, {n_best}, length), scores and lengths ({batch}, {n_best}), got "
            f"{ids.shape}, {scores.shape} and {lengths.shape}."
        )
    if {ids.dtype.kind, lengths.dtype.kind} - set("iu") or lengths.min() < 0 or lengths.max() > ids.shape[2]:
        raise ValueError("decode must return whole numbers as ids, and as lengths those from 0 to that of the ids.")
    missing = np.isneginf(scores)
    lengths = np.where(missing, 0, lengths).astype("int32")
    ids = np.where(np.arange(ids.shape[2]) < lengths[..., None], ids, 0)
    return ids.astype("int32"), lengths, np.where(missing, 0.0, scores).astype("float32")


def _from_texts(decoded, batch, n_best):
    """The same of UTF-8 bytes."""
    if not isinstance(decoded, tuple) or len(decoded) != 2:
        raise TypeError(f"decode must return (texts, scores) for output='text', got {type(decoded).__name__}.")
    texts, scores = decoded[0], np.asarray(decoded[1])
    flat = [text for own in texts for text in ([own] if isinstance(own, str) else own)]
    if len(flat) != batch * n_best or not all(isinstance(text, str) for text in flat):
        raise ValueError(f"decode must return {n_best} str for each of {batch} sources, got {flat!r:.100}.")
    content = [text.encode() for text in flat]
    lengths = np.array(list(map(len, content)), "int32")
    ids = np.zeros((len(flat), max(1, lengths.max())), "uint8")
    for row, own in enumerate(content):
        ids[row, : len(own)] = np.frombuffer(own, "uint8")
    if scores.shape != (batch, n_best):
        raise ValueError(f"decode must return scores ({batch}, {n_best}), got {scores.shape}.")
    return _from_ids((ids.reshape(batch, n_best, -1), scores, lengths.reshape(batch, n_best)), batch, n_best)
