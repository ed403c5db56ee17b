"""A student with fewer pieces of its teacher's vocabulary: model and tokenizer together."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_kd._checks import require_count
from keras_kd._keras_private import functional_graph, producer
from keras_kd._tables import plain_text
from keras_kd.outputs.model_inputs import input_names
from keras_kd.students.embedding import FactorizedEmbedding
from keras_kd.students.rebuilding import Rebuilding, hand_over, require_functional, walk
from keras_kd.students.tokenizers import pieces_of
from keras_kd.transfer import Transfer

_UNUSED_ROWS = 0.02  # share of an embedding's rows beyond its tokenizer's pieces: they pad it to a round number
_SIZES = ("vocabulary_size", "vocab_size")  # entries of configs that mean the size of the vocabulary


def trim_vocabulary(teacher, tokenizer, texts, *, languages=None, keep=None, embedding=None):
    """Make a student with the pieces of some languages only: tokenizer, embedding and tied or last layer together.

    Most of a small multilingual encoder is its embedding: 96 of the 118 million parameters of multilingual-e5-small.
    The pieces that the texts of the kept languages use are kept, the most frequent ones first: each language counts
    alike, whatever the amount of its text. Control, unknown and byte pieces always stay, and so do the single
    characters of the texts, so that what is said with a dropped piece is segmented anew, not unknown.

    A text whose pieces were all kept gets the same pieces, and the student's outputs are bit-equal to the teacher's;
    others get more and shorter pieces. The teacher and its tokenizer stay as they are.

    Args:
        teacher: a built functional `keras.Model`, such as a KerasHub backbone or task, or a model that nests one. A
            task comes without its preprocessor, whose tokenizer is the old one.
        tokenizer: the teacher's: a `keras_hub.tokenizers.SentencePieceTokenizer` or `WordPieceTokenizer`, a
            `tensorflow_text.SentencepieceTokenizer`, or the proto of a SentencePiece model as bytes or the path of its
            file. SentencePiece models must be of type unigram.
        texts: {language: list of str}, or a list of str; or what `count_pieces` made of such texts.
        languages: those of `texts` whose pieces are kept; None is all.
        keep: how many pieces the student gets. Where the texts use fewer, the first of the others are added. None is
            all that the texts use.
        embedding: the name of the layer that embeds the pieces, where several have as many rows.

    Returns:
        A `TrimmedVocabulary`: the student, its tokenizer, the id map, and what it costs in each language.

    Raises:
        TypeError: an argument of another type.
        ValueError: a tokenizer that does not belong to the teacher; a language without texts; `keep` larger than the
            vocabulary, or smaller than what always stays.

    Example:

    >>> import keras_hub
    >>> tokenizer = keras_hub.models.BertTokenizer(
    ...     ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "t", "##e", "##a", "##h", "tea", "the", "чай"])
    >>> teacher = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(12, 4)])
    >>> trimmed = keras_kd.students.trim_vocabulary(teacher, tokenizer, {"en": ["the tea", "tea"], "ru": ["чай"]},
    ...     languages=["en"], keep=10)
    >>> trimmed.id_map
    array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=int32)
    >>> tokenizer("the tea"), trimmed.tokenizer("the tea")
    (array([10,  9], dtype=int32), array([5, 8, 6, 9], dtype=int32))

    Source: Abdaoui et al. 2020, "Load What You Need: Smaller Versions of Multilingual BERT",
    https://arxiv.org/abs/2010.05609.
    """
    pieces = pieces_of(tokenizer)
    layer = embedding_of_pieces(require_functional(teacher), len(pieces.vocabulary), embedding)
    texts = _by_language(texts, languages)
    counts = {language: _counts(pieces, language, given) for language, given in texts.items()}
    texts = {language: given for language, given in texts.items() if not isinstance(given, np.ndarray)}
    new_pieces = _trimmed(pieces, counts, texts, keep)
    positions = {token: i for i, token in enumerate(pieces.vocabulary)}
    id_map = np.array([positions[token] for token in new_pieces.vocabulary], "int32")
    student, transfer = _with_rows(teacher, layer, id_map)
    kept = np.isin(np.arange(len(pieces.vocabulary)), id_map)
    report = tuple(_report(language, given, pieces, new_pieces, kept) for language, given in texts.items())
    return TrimmedVocabulary(student, new_pieces.tokenizer, id_map, transfer, report)


def count_pieces(tokenizer, texts):
    """Count how often each piece of a tokenizer occurs in texts, for `trim_vocabulary` and `factorize_embedding`.

    Args:
        tokenizer: as in `trim_vocabulary`.
        texts: {language: list of str}, or a list of str.

    Returns:
        {language: int64 `(vocabulary,)`}; one such array for a list.

    Example:

    >>> import keras_hub
    >>> tokenizer = keras_hub.models.BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea", "the"])
    >>> keras_kd.students.count_pieces(tokenizer, ["the tea", "tea"])
    array([0, 0, 0, 0, 0, 2, 1])
    """
    pieces = pieces_of(tokenizer)
    by_language = _by_language(texts, None)
    counts = {language: _counts(pieces, language, given) for language, given in by_language.items()}
    return counts if isinstance(texts, dict) else counts["all"]


@dataclasses.dataclass(frozen=True)
class LanguageCost:
    """What trimming a vocabulary costs in one language, on the texts that were given.

    Attributes:
        language: its key in `texts`.
        tokens_per_word: (before, after): pieces per word between blanks. Chinese, Japanese and Thai write no blanks:
            there it is pieces per phrase.
        unknown: (before, after): the share of pieces that are the unknown one, from 0 to 1.
        pieces_kept: the share of the tokens before whose piece was kept, from 0 to 1.
    """

    language: str
    tokens_per_word: tuple[float, float]
    unknown: tuple[float, float]
    pieces_kept: float


@dataclasses.dataclass(frozen=True, repr=False)
class TrimmedVocabulary:
    """What `trim_vocabulary` made. `print` shows the cost by language; `print(trimmed.transfer)`, the layers.

    Attributes:
        student: the new `keras.Model`, with the teacher's weights.
        tokenizer: the new tokenizer, of the kind that was given; for a path, the proto as bytes.
        id_map: int32 `(pieces kept,)`, the teacher's id of each of the student's. It lets the teacher read what the
            student reads (`on_student_ids`), and is the map of pieces for losses over the vocabulary.
        transfer: the `keras_kd.transfer.Transfer`: which layer of the student was which of the teacher.
        costs: a `LanguageCost` for each kept language, where texts were given and not counts.
    """

    student: keras.Model
    tokenizer: object
    id_map: np.ndarray
    transfer: Transfer
    costs: tuple[LanguageCost, ...]

    def __repr__(self):
        return f"TrimmedVocabulary(pieces={len(self.id_map)}, languages={[cost.language for cost in self.costs]})"

    def __str__(self):
        return plain_text(self)

    def __rich__(self):
        from rich import box
        from rich.table import Table

        table = Table(title=f"\n{len(self.id_map):,} pieces kept", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("language", "tokens per word", "after", "unknown", "after", "tokens with a kept piece"):
            table.add_column(heading, justify="left" if heading == "language" else "right")
        for cost in self.costs:
            shares = (*cost.unknown, cost.pieces_kept)
            numbers = [f"{n:.2f}" for n in cost.tokens_per_word] + [f"{100 * share:.1f} %" for share in shares]
            table.add_row(str(cost.language), *numbers)
        return table


def on_student_ids(teacher, id_map, *, ids="token_ids"):
    """Return the teacher as a model that reads the ids of a student with a trimmed vocabulary.

    So the untrimmed teacher teaches the trimmed student, token by token, on the same batches.

    Args:
        teacher: a built functional `keras.Model`.
        id_map: `(student's pieces,)`, the teacher's id of each of the student's: `TrimmedVocabulary.id_map`.
        ids: the name of the input that takes the ids; a teacher with one input needs none.

    Returns:
        A functional `keras.Model` with the teacher's inputs and outputs, which shares its weights.

    Raises:
        ValueError: the teacher has several inputs, and none of that name.

    Example:

    >>> teacher = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(3, 1, embeddings_initializer="ones")])
    >>> teacher.layers[0].set_weights([np.array([[10.0], [11.0], [12.0]])])
    >>> keras_kd.students.on_student_ids(teacher, [2, 0])(np.array([[0, 1]])).numpy().squeeze()
    array([12., 10.], dtype=float32)
    """
    names = input_names(require_functional(teacher))
    flat = keras.tree.flatten(names)
    if len(flat) > 1 and ids not in flat:
        raise ValueError(f"ids must name the input of the teacher that takes the ids, one of {flat}, got {ids!r}.")
    tensors = zip(flat, keras.tree.flatten(functional_graph(teacher).input), strict=True)
    inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name) for name, tensor in tensors]
    read = [MapIds(id_map)(x) if name == ids or len(flat) == 1 else x for name, x in zip(flat, inputs, strict=True)]
    pack = lambda values: keras.tree.pack_sequence_as(names, values)  # noqa: E731
    return keras.Model(pack(inputs), teacher(pack(read)), name=teacher.name)


@keras.saving.register_keras_serializable(package="keras_kd")
class MapIds(keras.layers.Layer):
    """Replace each id by its entry in a table: ids of a trimmed vocabulary by those of the whole one.

    Args:
        id_map: `(ids,)` whole numbers.

    Example:

    >>> keras_kd.students.MapIds([7, 3])(np.array([[1, 0]])).numpy()
    array([[3, 7]], dtype=int32)
    """

    def __init__(self, id_map, **kwargs):
        super().__init__(trainable=False, **{**kwargs, "dtype": "int32"})
        self.id_map = np.asarray(id_map, "int32")
        if self.id_map.ndim != 1 or not self.id_map.size:
            raise ValueError(f"id_map must be (ids,) with one id or more, got the shape {self.id_map.shape}.")

    def call(self, inputs):
        return ops.take(ops.convert_to_tensor(self.id_map), ops.cast(inputs, "int32"), axis=0)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, "int32")

    def get_config(self):
        return {"name": self.name, "id_map": self.id_map.tolist()}


# Texts --------------------------------------------------------------------------------------------------------------


def _by_language(texts, languages):
    """{language: list of str, or array of counts}, those that are kept."""
    if not isinstance(texts, dict):
        texts = {"all": texts}
    if isinstance(languages, str):
        raise TypeError(f"languages must be a list of keys of texts, got the single {languages!r}.")
    languages = list(texts) if languages is None else list(languages)
    missing = [language for language in languages if language not in texts]
    if missing or not languages:
        raise ValueError(
            f"languages must be some of those with texts, {list(texts)}, got {languages}: there is nothing to tell the "
            f"pieces of {missing or 'none'} from. Add texts of each."
        )
    kept = {language: texts[language] for language in languages}
    for language, given in kept.items():
        if isinstance(given, (str, bytes)):
            raise TypeError(f"texts must hold lists of str, got the single str {given!r:.80} for {language!r}.")
    return {key: given if isinstance(given, np.ndarray) else _checked(key, given) for key, given in kept.items()}


def _checked(language, texts):
    texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"texts must hold str, got {type(wrong).__name__} {wrong!r:.80} for {language!r}.")
    if not any(text.strip() for text in texts):
        raise ValueError(f"texts must hold text of each language, got none for {language!r}. Add some or omit it.")
    return texts


def _counts(pieces, language, given):
    size = len(pieces.vocabulary)
    if not isinstance(given, np.ndarray):
        return np.bincount(np.concatenate(pieces.encode(given)), minlength=size)
    if given.dtype.kind not in "iu" or given.shape != (size,) or given.min() < 0:
        raise ValueError(
            f"counts must be whole numbers >= 0, one for each of the tokenizer's {size} pieces, got {given.dtype} of "
            f"the shape {given.shape} for {language!r}. count_pieces makes them; texts are given as a list."
        )
    if not given.any():
        raise ValueError(f"counts must hold text of each language, got only zeros for {language!r}. Leave it out.")
    return given


def _report(language, texts, before, after, kept):
    words = sum(len(text.split()) for text in texts)
    tokens = [np.concatenate(pieces.encode(texts)) for pieces in (before, after)]
    unknown = [float(np.mean(ids == pieces.unknown)) for ids, pieces in zip(tokens, (before, after), strict=True)]
    tokens_per_word = tuple(len(ids) / words for ids in tokens)
    return LanguageCost(language, tokens_per_word, tuple(unknown), float(np.mean(kept[tokens[0]])))


# Pieces -------------------------------------------------------------------------------------------------------------


def _trimmed(pieces, counts, texts, keep):
    """The pieces with those that are kept; words that would become unknown keep all of theirs."""
    size = len(pieces.vocabulary)
    if keep is not None and require_count(keep, "keep", at_least=1) > size:
        raise ValueError(f"keep must be <= {size}, the tokenizer's number of pieces, got {keep}.")
    frequency = np.mean([count / count.sum() for count in counts.values()], axis=0)
    used = np.flatnonzero(frequency)
    required = pieces.required | _spelling(pieces, used)
    words = sorted({word for given in texts.values() for text in given for word in text.split()})
    segmented = pieces.encode(words)
    while True:
        new = pieces.with_ids(_chosen(frequency, required, keep))
        lost = [
            ids for ids, again in zip(segmented, new.encode(words), strict=True)
            if new.unknown in again and pieces.unknown not in ids
        ]  # fmt: skip
        if not lost:
            return new
        required |= set(np.concatenate(lost).tolist())


def _spelling(pieces, used):
    """The single characters of the used pieces; a piece that they cannot spell is among them itself."""
    positions = {token: i for i, token in enumerate(pieces.vocabulary)}
    found = set()
    for i in set(used.tolist()) - pieces.required:
        units = pieces.units(i)
        found |= {positions[token] for token in (*units, *pieces.characters(i)) if token in positions}
        if not all(unit in positions for unit in units):
            found.add(i)
    return found


def _chosen(frequency, required, keep):
    """The ids to keep: the required ones, then the most frequent ones, then the first ones."""
    if keep is None:
        return required | set(np.flatnonzero(frequency).tolist())
    if keep < len(required):
        raise ValueError(
            f"keep must be >= {len(required)}, got {keep}: so many are special pieces and the single characters of the "
            "texts. Keep more, fewer languages, or leave rare characters out of the texts."
        )
    others = [i for i in np.argsort(-frequency, kind="stable").tolist() if i not in required]
    return required | set(others[: keep - len(required)])


# Model --------------------------------------------------------------------------------------------------------------


def embedding_of_pieces(teacher, size, name=None):
    """The layer that embeds the pieces of a tokenizer of this size."""
    found = {}
    for path, layer in walk(teacher, inside=True):
        if isinstance(layer, (keras.layers.Embedding, FactorizedEmbedding)):
            found.setdefault(id(layer), (path, layer))
    if name is not None:
        fitting = [layer for path, layer in found.values() if name in (path, layer.name)]
    else:
        fitting = [layer for _, layer in found.values() if 0 <= layer.input_dim - size <= _UNUSED_ROWS * size]
    rows = {path: layer.input_dim for path, layer in found.values()}
    if len(fitting) != 1:
        raise ValueError(
            f"the tokenizer has {size} pieces, but {len(fitting) or 'none'} of the teacher's embeddings "
            f"{'have so many rows' if name is None else f'is called {name!r}'}: {rows}. "
            + ("Choose one with embedding=." if fitting else "Give the tokenizer that the teacher was trained with.")
        )
    (layer,) = fitting
    if not 0 <= layer.input_dim - size <= _UNUSED_ROWS * size:
        raise ValueError(
            f"the tokenizer has {size} pieces and does not belong to the teacher, whose embedding {layer.name!r} has "
            f"{layer.input_dim} rows. Give the tokenizer that the teacher was trained with."
        )
    return layer


def _with_rows(teacher, embedding, id_map):
    """The teacher again with some rows of its embedding, and of what else has one for each piece."""
    old, new = embedding.input_dim, len(id_map)
    heads = _heads(teacher, old)

    def edit(layer):
        config = layer.get_config()
        if id(layer) in heads:
            return {**config, "units": new}
        if "layers" in config or isinstance(config.get("backbone"), dict):
            return None  # a model that is made anew layer by layer
        changed = _resized(config, old, new, (*_SIZES, "input_dim") if _holds(layer, embedding) else _SIZES)
        return None if changed == config else changed

    rebuilding = Rebuilding(edit)
    student = rebuilding(teacher)
    for made, layer in rebuilding.pairs:
        if new != old and _holds(layer, embedding) and made.weights[0].shape == layer.weights[0].shape:
            raise ValueError(
                f"the layer {layer.name!r} holds the embedding, but its config does not say of how many pieces. Let "
                'its get_config have an entry "vocabulary_size".'
            )
    values = lambda made, layer: _rows(made, layer, old, id_map)  # noqa: E731
    return student, hand_over(teacher, student, rebuilding.pairs, values=values)


def _holds(layer, embedding):
    inside = () if isinstance(layer, keras.Model) else walk(layer, inside=True)
    return layer is embedding or any(inner is embedding for _, inner in inside)


def _resized(config, old, new, keys):
    if isinstance(config, dict):
        return {
            key: new if key in keys and value == old else _resized(value, old, new, keys)
            for key, value in config.items()
        }
    return [_resized(value, old, new, keys) for value in config] if isinstance(config, list) else config


def _heads(teacher, size):
    """ids of the Dense layers that end the model in one unit for each piece."""
    found = set()
    for tensor in functional_graph(teacher).outputs:
        layer, _, inputs = producer(tensor)
        while isinstance(layer, (keras.layers.Activation, keras.layers.Softmax)):
            layer, _, inputs = producer(inputs[0])
        if isinstance(layer, keras.layers.Dense) and layer.units == size:
            found.add(id(layer))
    return found


def _rows(made, layer, old, id_map):
    """The layer's weights with the rows of the kept pieces, in the shapes of the layer that was made for them."""
    arrays = []
    for new_weight, weight in zip(made.weights, layer.weights, strict=True):
        values, shape = np.asarray(weight), tuple(new_weight.shape)
        differing = [axis for axis in range(values.ndim) if values.shape[axis] != shape[axis]]
        if any(values.shape[axis] != old for axis in differing):
            raise ValueError(
                f"{weight.name!r} of the layer {layer.name!r} has the shape {values.shape}, its student's {shape}: "
                f"that is not {len(id_map)} of {old} pieces."
            )
        arrays.append(np.take(values, id_map, axis=differing[0]) if differing else values)
    return arrays, f"{len(id_map)} of {old} pieces"
