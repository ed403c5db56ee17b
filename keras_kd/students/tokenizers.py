"""The pieces of a SentencePiece or WordPiece tokenizer, and the tokenizer of the same kind that has some of them."""

import os
import pathlib

import numpy as np

from keras_kd._extras import is_of_package, needs_extra
from keras_kd._keras_private import sentencepiece_proto

_TF_TEXT_OPTIONS = ("out_type", "nbest_size", "alpha", "reverse", "add_bos", "add_eos", "return_nbest")


def pieces_of(tokenizer):
    """Return the `SentencePieces` or `WordPieces` of a tokenizer.

    Args:
        tokenizer: the proto of a SentencePiece model, as bytes or as the path of its file; a
            `keras_hub.tokenizers.SentencePieceTokenizer`, a `WordPieceTokenizer`, or one of their subclasses such as
            `XLMRobertaTokenizer`; or a `tensorflow_text.SentencepieceTokenizer`.

    Raises:
        TypeError: another object.
        ValueError: a SentencePiece model that loses words with its pieces (BPE, words), or a file that is none.
    """
    if isinstance(tokenizer, (bytes, str, os.PathLike)):
        proto = tokenizer if isinstance(tokenizer, bytes) else pathlib.Path(tokenizer).read_bytes()
        return SentencePieces(proto, lambda proto: proto)
    if is_of_package(tokenizer, "tensorflow_text", "SentencepieceTokenizer"):
        options = {name: getattr(tokenizer, name) for name in _TF_TEXT_OPTIONS}
        remake = lambda proto: type(tokenizer)(proto, **options)  # noqa: E731
        return SentencePieces(sentencepiece_proto(tokenizer), remake)
    if is_of_package(tokenizer, "keras_hub.tokenizers", "SentencePieceTokenizer"):
        config = tokenizer.get_config()
        remake = lambda proto: type(tokenizer).from_config({**config, "proto": proto})  # noqa: E731
        return SentencePieces(tokenizer.proto, remake)
    if is_of_package(tokenizer, "keras_hub.tokenizers", "WordPieceTokenizer"):
        return WordPieces(tokenizer)
    raise TypeError(
        "tokenizer must be the proto of a SentencePiece model (bytes, or the path of its file), a "
        "keras_hub.tokenizers.SentencePieceTokenizer or WordPieceTokenizer, or a tensorflow_text.SentencepieceTokenizer"
        f", got {type(tokenizer).__name__}. Of a preset: backbone's Tokenizer.from_preset(name)."
    )


class SentencePieces:
    """The pieces of a SentencePiece model, unigram or characters.

    Args:
        proto: the serialized model.
        remake: a function that makes the tokenizer of such a proto.

    Attributes:
        tokenizer: the tokenizer.
        vocabulary: the token of each id. An id is a position in the proto, unless the tokenizer numbers them itself:
            that of XLM-R adds "<pad>" and "<mask>".
        unknown: the id of an unknown character.
        start, end: the ids of "<s>" and "</s>"; None where the model has none.
        required: ids that no trimming may take away: control, unknown, user-defined and byte pieces, tokens that are
            not in the proto, and the least likely piece, by which SentencePiece scores unknown characters.
    """

    def __init__(self, proto, remake):
        with needs_extra("students"):
            import sentencepiece
            from sentencepiece import sentencepiece_model_pb2
        self._model_proto = _parsed(proto, sentencepiece_model_pb2)
        self._remake = remake
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        pieces = self._model_proto.pieces
        self.tokenizer = remake(proto)
        numbered = is_of_package(self.tokenizer, "keras_hub.tokenizers", "SentencePieceTokenizer")
        self.vocabulary = self.tokenizer.get_vocabulary() if numbered else [piece.piece for piece in pieces]
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        self._id_of_position = np.array([ids[piece.piece] for piece in pieces], "int32")
        self.unknown = int(self._id_of_position[self._processor.unk_id()])
        self.start, self.end = ids.get("<s>"), ids.get("</s>")
        normal = [piece for piece in pieces if piece.type == piece.NORMAL]
        least = min(normal, key=lambda piece: piece.score, default=pieces[0])
        freely = {piece.piece for piece in normal} - {least.piece}
        self.required = {i for i, token in enumerate(self.vocabulary) if token not in freely}

    def encode(self, texts):
        """The ids of each text, without those of its begin and end."""
        return [self._id_of_position[ids] for ids in self._processor.encode(list(texts))]

    def units(self, i):
        """The tokens of single characters that spell the piece of this id."""
        return list(self.vocabulary[i])

    def characters(self, i):
        """The tokens that stand for the characters of the piece, wherever they stand in a word."""
        return self.units(i)

    def with_ids(self, ids):
        """The same with the pieces of these ids only, which are numbered anew in their old order."""
        kept = {self.vocabulary[i] for i in ids}
        proto = type(self._model_proto)()
        proto.CopyFrom(self._model_proto)
        del proto.pieces[:]
        proto.pieces.extend(piece for piece in self._model_proto.pieces if piece.piece in kept)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        for name, token in (("unk", "unk_piece"), ("bos", "bos_piece"), ("eos", "eos_piece"), ("pad", "pad_piece")):
            _renumber(proto, f"{name}_id", getattr(proto.trainer_spec, token))
        return SentencePieces(proto.SerializeToString(), self._remake)


def _parsed(proto, sentencepiece_model_pb2):
    try:
        parsed = sentencepiece_model_pb2.ModelProto.FromString(proto)
    except Exception as error:  # protobuf's own class differs by its implementation
        raise ValueError(f"tokenizer must hold a SentencePiece model, got {len(proto)} bytes that are none.") from error
    kind = parsed.trainer_spec.ModelType.Name(parsed.trainer_spec.model_type)
    if kind not in ("UNIGRAM", "CHAR") or not parsed.pieces:
        raise ValueError(
            f"tokenizer must hold a SentencePiece model of type UNIGRAM, got {kind} with {len(parsed.pieces)} pieces: "
            "other types lose words with the pieces that are dropped."
        )
    return parsed


def _renumber(proto, field, token):
    """Where the trainer noted the id of a special piece: its new one."""
    if getattr(proto.trainer_spec, field) >= 0:
        positions = [i for i, piece in enumerate(proto.pieces) if piece.piece == token]
        setattr(proto.trainer_spec, field, positions[0] if positions else -1)


class WordPieces:
    """The pieces of a `keras_hub.tokenizers.WordPieceTokenizer`; attributes and methods as of `SentencePieces`."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocabulary()
        self._suffix = tokenizer.suffix_indicator
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        self.unknown = ids[tokenizer.oov_token]
        self.start, self.end = ids.get("[CLS]"), ids.get("[SEP]")
        self.required = {self.unknown, *(ids[token] for token in tokenizer.special_tokens if token in ids)}

    def encode(self, texts):
        length, dtype = self.tokenizer.sequence_length, self.tokenizer.compute_dtype
        whole = self.tokenizer if (length, dtype) == (None, "int32") else self._again(self.vocabulary, whole=True)
        ids = whole.tokenize(list(texts))
        return [np.asarray(row, "int32") for row in (ids.to_list() if hasattr(ids, "to_list") else ids)]

    def units(self, i):
        token = self.vocabulary[i]
        if not token.startswith(self._suffix) or token == self._suffix:
            return [token[:1], *(self._suffix + character for character in token[1:])]
        return [self._suffix + character for character in token.removeprefix(self._suffix)]

    def characters(self, i):
        letters = [unit.removeprefix(self._suffix) for unit in self.units(i)]
        return [*letters, *(self._suffix + letter for letter in letters)]

    def with_ids(self, ids):
        return WordPieces(self._again([self.vocabulary[i] for i in sorted(ids)]))

    def _again(self, vocabulary, whole=False):
        """The tokenizer with another vocabulary; `whole`: with ids of all tokens, whatever the length."""
        old = self.tokenizer
        changed = {"vocabulary": vocabulary, "split_on_cjk": old.split_on_cjk}
        changed |= {"sequence_length": None, "dtype": "int32"} if whole else {}
        return type(old).from_config({**old.get_config(), **changed})
