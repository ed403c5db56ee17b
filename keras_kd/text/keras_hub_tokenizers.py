"""Tokenizers of KerasHub as layers that also run in LiteRT files."""

from keras_kd._extras import is_of_package, needs_extra
from keras_kd.text.pieces import SentencePieceEncoder, WordPieceEncoder


def from_keras_hub(tokenizer, length, *, prefix="", segment_ids=False, name=None):
    """Make the `SentencePieceEncoder` or `WordPieceEncoder` that gives the ids of a KerasHub tokenizer.

    A KerasHub preprocessor becomes part of a SavedModel; of a LiteRT file, only these layers do. It takes the tokenizer
    of a preset, or the one that `keras_kd.students.trim_vocabulary` made of it.

    Args:
        tokenizer: A `keras_hub.tokenizers.SentencePieceTokenizer` or `WordPieceTokenizer`, such as
            `XLMRobertaTokenizer` and `BertTokenizer`.
        length, prefix, segment_ids, name: Those of the layer. WordPiece takes no prefix.

    Returns:
        The layer. Its ids are those of the tokenizer, between the ids of `<s>` and `</s>` or `[CLS]` and `[SEP]`.

    Raises:
        TypeError: `tokenizer` is neither.
        ValueError: The tokenizer has an option that the layer has not, or lacks the special pieces.
        ImportError: `sentencepiece` is not installed (extra `students`).

    Example:

    >>> import keras_hub
    >>> tokenizer = keras_hub.models.BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea", "##s"])
    >>> encoder = keras_kd.text.from_keras_hub(tokenizer, length=5)
    >>> tokenizer("teas"), encoder(["teas"])["token_ids"].numpy()
    (array([5, 6], dtype=int32), array([[2, 5, 6, 3, 0]], dtype=int32))
    """
    options = {"segment_ids": segment_ids, "name": name}
    if is_of_package(tokenizer, "keras_hub.tokenizers", "SentencePieceTokenizer"):
        return SentencePieceEncoder(_numbered_proto(tokenizer), length, prefix=prefix, **options)
    if is_of_package(tokenizer, "keras_hub.tokenizers", "WordPieceTokenizer"):
        _check_word_pieces(tokenizer, prefix)
        return WordPieceEncoder(tokenizer.get_vocabulary(), length, lowercase=tokenizer.lowercase, **options)
    raise TypeError(
        "tokenizer must be a keras_hub.tokenizers.SentencePieceTokenizer or WordPieceTokenizer, got "
        f"{type(tokenizer).__name__}: {tokenizer!r}. Of a preset: keras_hub.models.Tokenizer.from_preset(name)."
    )


def _check_word_pieces(tokenizer, prefix):
    if prefix:
        raise ValueError(f"prefix must be empty for a WordPiece tokenizer, got {prefix!r}.")
    wanted = {"strip_accents": tokenizer.lowercase, "split": True, "split_on_cjk": True, "suffix_indicator": "##"}
    others = {option: getattr(tokenizer, option) for option in wanted if getattr(tokenizer, option) != wanted[option]}
    if others:
        raise ValueError(
            f"tokenizer must have the options of BERT's, {wanted}, got {others}. Make it anew with them: "
            f"type(tokenizer).from_config({{**tokenizer.get_config(), ...}})."
        )


def _numbered_proto(tokenizer):
    """The SentencePiece model with its pieces in the order of the tokenizer's ids; that of XLM-R has its own order."""
    with needs_extra("students"):
        from sentencepiece import sentencepiece_model_pb2
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.proto)
    pieces = {piece.piece: piece for piece in map(_copied, proto.pieces)}
    del proto.pieces[:]
    for token in tokenizer.get_vocabulary():
        piece = pieces.get(token) or type(next(iter(pieces.values())))(piece=token, type=3)  # 3: control
        proto.pieces.append(piece)
    positions = {piece.piece: position for position, piece in enumerate(proto.pieces)}
    spec = proto.trainer_spec
    spec.vocab_size = len(positions)
    for field in ("unk", "bos", "eos", "pad"):
        setattr(spec, f"{field}_id", positions.get(getattr(spec, f"{field}_piece"), -1))
    return proto.SerializeToString()


def _copied(message):
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
