"""Text to ids of SentencePiece or WordPiece pieces, in the form that KerasHub's encoders take."""

import base64
import collections
import os
import pathlib

import keras
import tensorflow as tf

from keras_kd._checks import require_count, require_flag
from keras_kd.text.encoder import TextEncoder

_BEGIN, _END, _PADDING = "<s>", "</s>", "<pad>"
_WORD_PIECE_SPECIAL = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
_SPACE = "▁".encode()  # as SentencePiece writes it


class _PieceEncoder(TextEncoder):
    """Encodes text as a first id, the ids of its pieces, a last id, and padding."""

    def __init__(self, length, segment_ids, name):
        super().__init__(trainable=False, name=name, dtype="int32")
        self.length = require_count(length, "length", at_least=3)
        self.segment_ids = require_flag(segment_ids, "segment_ids")

    def _framed(self, pieces, first):
        """What the layer returns, of ragged pieces: between the ids `first` and the end, padded."""
        room = self.length - len(first) - 1
        shape = (None, self.length)
        ids = tf.pad(pieces.to_tensor(self._padding, shape=(None, room)), [[0, 0], [len(first), 1]])
        last = len(first) + tf.minimum(tf.cast(pieces.row_lengths(), tf.int32), room)[:, None]
        position = tf.range(self.length)[None]
        ids = tf.where(position < last, ids, tf.where(position == last, self._last, self._padding))
        for number, special in enumerate(first):
            ids = tf.where(position == number, special, ids)
        token_ids = tf.ensure_shape(ids, shape)
        encoded = {"token_ids": token_ids, "padding_mask": tf.ensure_shape(tf.cast(position <= last, tf.int32), shape)}
        if self.segment_ids:
            encoded["segment_ids"] = tf.zeros_like(token_ids)
        return encoded

    def compute_output_spec(self, inputs):
        names = ["token_ids", "padding_mask"] + ["segment_ids"] * self.segment_ids
        return {name: keras.KerasTensor((inputs.shape[0], self.length), "int32") for name in names}


@keras.saving.register_keras_serializable(package="keras_kd")
class SentencePieceEncoder(_PieceEncoder):
    """Map text to ids of SentencePiece pieces, as the inputs of a KerasHub encoder (BERT, XLM-RoBERTa).

    Each text becomes `<s> pieces </s>`; a longer text loses pieces before `</s>`, a shorter one is padded. The ids are
    those of the SentencePiece model.

    Models of type unigram run in tensorflow-text's fast tokenizer, and so in LiteRT files too. Where two
    ways to cut a word are equally likely, it may take another one than SentencePiece itself.

    It is a layer: call it on strings, map it over a `tf.data.Dataset`, or make it the first layer of a model that takes
    strings. A SavedModel of such a model needs `import tensorflow_text` in the process that loads it. Saved Keras
    models hold the SentencePiece model.

    Args:
        proto: The SentencePiece model: its serialized bytes, or the path of its file (`.model`, `.spm`). It must hold
            the pieces `<s>`, `</s>` and `<pad>`.
        length: Ids per text ≥ 3.
        prefix: str put before each text; the E5 models want `"query: "`.
        segment_ids: Whether to return segment ids, all 0, which `keras_hub.models.BertBackbone` takes.
        name: Name of the layer.

    Call arguments:
        inputs: Strings, `(batch,)` or `(batch, 1)`: a tensor, an array or a list of str.

    Returns:
        A dict of int32 tensors, each `(batch, length)`: `token_ids`, `padding_mask` (1 for a piece, 0 for padding) and
        with `segment_ids=True` also `segment_ids`.

    Raises:
        TypeError: `proto` is neither bytes nor a path, `prefix` no str, `length` no int.
        ValueError: `proto` is no SentencePiece model or lacks one of the three pieces; `length` < 3.

    Example:

    >>> import io, sentencepiece
    >>> proto, texts = io.BytesIO(), ["ein Haus", "une maison", "a house"] * 9
    >>> sentencepiece.SentencePieceTrainer.train(
    ...     sentence_iterator=iter(texts), model_writer=proto, vocab_size=99, hard_vocab_limit=False, pad_id=3)
    >>> encoder = keras_kd.text.SentencePieceEncoder(proto.getvalue(), length=16)
    >>> int(encoder(["a house"])["padding_mask"].numpy().sum()) > 3
    True

    Reference:
        [Kudo and Richardson, 2018](https://arxiv.org/abs/1808.06226)
    """

    def __init__(self, proto, length, *, prefix="", segment_ids=False, name=None):
        super().__init__(length, segment_ids, name)
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, got {type(prefix).__name__}: {prefix!r}.")
        self.proto = proto_bytes(proto)
        self.prefix = prefix
        self._tokenizer = sentencepiece_tokenizer(self.proto)
        self._begin, self._last, self._padding = (_special_id(self._tokenizer, p) for p in (_BEGIN, _END, _PADDING))
        self.vocabulary_size = int(self._tokenizer.vocab_size())
        self._first = [self._begin, *self._tokenizer.tokenize(prefix.rstrip()).numpy().tolist()]
        self._why_slow = self._reason_against_fast()
        if not self._why_slow:
            import tensorflow_text

            self._tokenizer = tensorflow_text.FastSentencepieceTokenizer(self.proto)
        self.built = True

    def _reason_against_fast(self):
        """Why tensorflow-text's fast tokenizer cannot take this model and prefix; "" if it can."""
        if not _is_plain_unigram(self.proto):
            return "a SentencePiece model of type unigram without byte pieces"
        if self.prefix and not self.prefix[-1].isspace():
            return "a prefix that ends in a space"
        if self.prefix and _has_piece_across_spaces(self._tokenizer):
            return "pieces without spaces inside, after a prefix"
        if len(self._first) > self.length - 2:
            return f"a length > {len(self._first) + 1}, for the prefix"
        return ""

    def is_in_litert(self):
        if self._why_slow:
            raise ValueError(f"tokenizer must have {self._why_slow} to run in LiteRT. A SavedModel holds any.")
        return True

    def call(self, inputs):
        inputs = tf.reshape(inputs, (-1,))
        if not self._why_slow:  # the pieces of the prefix are constants: LiteRT joins no strings
            return self._framed(self._tokenizer.tokenize(inputs), self._first)
        return self._framed(self._living_tokenizer().tokenize(self.prefix + inputs), [self._begin])

    def _living_tokenizer(self):
        """The tokenizer, made anew where its resource is gone: `tf.random.set_seed` and `clear_session` remove it."""
        with tf.init_scope():
            try:
                self._tokenizer.tokenize("")
            except tf.errors.NotFoundError:
                self._tokenizer = sentencepiece_tokenizer(self.proto)
        return self._tokenizer

    def get_config(self):
        return {
            "name": self.name,
            "proto": base64.b64encode(self.proto).decode(),
            "length": self.length,
            "prefix": self.prefix,
            "segment_ids": self.segment_ids,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "proto": base64.b64decode(config["proto"])})


@keras.saving.register_keras_serializable(package="keras_kd")
class WordPieceEncoder(_PieceEncoder):
    """Map text to ids of WordPiece pieces, as BERT does: `[CLS] pieces [SEP]`, cut or padded to one length.

    tensorflow-text's `FastBertTokenizer`: words are parted at white space, punctuation and Chinese characters, then cut
    into the longest pieces. The same operations run in `tf.data`, in models, in SavedModels and in LiteRT files.

    Args:
        vocabulary: The pieces in the order of their ids: a list of str, or the path of BERT's `vocab.txt`. It must hold
            `[CLS]`, `[SEP]`, `[PAD]` and `[UNK]`; pieces inside of words begin with `##`.
        length: Ids per text ≥ 3.
        lowercase: Whether text is put in lower case and loses its accents, as BERT's "uncased" models want it.
        segment_ids: Whether to return segment ids, all 0, which `keras_hub.models.BertBackbone` takes.
        name: Name of the layer.

    Call arguments:
        inputs: Strings, `(batch,)` or `(batch, 1)`: a tensor, an array or a list of str.

    Returns:
        A dict of int32 tensors, each `(batch, length)`: `token_ids`, `padding_mask` (1 for a piece, 0 for padding) and
        with `segment_ids=True` also `segment_ids`.

    Raises:
        TypeError: `vocabulary` is neither a list of str nor a path, `length` no int.
        ValueError: `vocabulary` lacks one of the four pieces, or holds one twice; `length` < 3.

    Example:

    >>> encoder = keras_kd.text.WordPieceEncoder(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "tea", "##s"], length=5)
    >>> encoder(["teas"])["token_ids"].numpy()
    array([[2, 4, 5, 3, 0]], dtype=int32)

    Reference:
        [Devlin et al., 2019](https://arxiv.org/abs/1810.04805);
        [Song et al., 2021](https://arxiv.org/abs/2012.15524) for the fast algorithm
    """

    def __init__(self, vocabulary, length, *, lowercase=False, segment_ids=False, name=None):
        import tensorflow_text

        super().__init__(length, segment_ids, name)
        self.vocabulary = _checked_vocabulary(vocabulary)
        self.lowercase = require_flag(lowercase, "lowercase")
        self._first, self._last, self._padding, _ = map(self.vocabulary.index, _WORD_PIECE_SPECIAL)
        self._tokenizer = tensorflow_text.FastBertTokenizer(
            self.vocabulary, token_out_type=tf.int32, lower_case_nfd_strip_accents=self.lowercase
        )
        self.built = True

    @property
    def vocabulary_size(self):
        """Number of pieces."""
        return len(self.vocabulary)

    def is_in_litert(self):
        return True

    def call(self, inputs):
        return self._framed(self._tokenizer.tokenize(tf.reshape(inputs, (-1,))), [self._first])

    def get_config(self):
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "length": self.length,
            "lowercase": self.lowercase,
            "segment_ids": self.segment_ids,
        }


def _checked_vocabulary(vocabulary):
    if isinstance(vocabulary, (str, os.PathLike)):
        vocabulary = pathlib.Path(vocabulary).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if not isinstance(vocabulary, (list, tuple)) or not all(isinstance(piece, str) for piece in vocabulary):
        raise TypeError(f"vocabulary must be a list of str, or the path of a file, got {type(vocabulary).__name__}.")
    missing = [piece for piece in _WORD_PIECE_SPECIAL if piece not in vocabulary]
    twice = [piece for piece, count in collections.Counter(vocabulary).items() if count > 1]
    if missing or twice:
        wrong = f"{missing} missing" if missing else f"{twice[:5]} more than once"
        raise ValueError(f"vocabulary must hold each piece once, and {list(_WORD_PIECE_SPECIAL)}; got {wrong}.")
    return list(vocabulary)


def _is_plain_unigram(proto):
    """Whether a SentencePiece model has the type unigram and cuts unknown characters into no bytes."""
    trainer_spec = dict(_fields(dict(_fields(proto)).get(2, b"")))
    return trainer_spec.get(3, 1) == 1 and not trainer_spec.get(35, 0)


def _fields(message):
    """`(number, value)` of the fields of a serialized protocol buffer: int, or bytes where they are delimited.

    Of SentencePiece's `ModelProto`, 2 is the trainer_spec; of that, 3 is the model_type, 35 byte_fallback.
    """
    place = 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        size = {0: 0, 1: 8, 5: 4}[kind] if kind != 2 else varint()
        value = varint() if kind == 0 else message[place : place + size]
        place += size
        yield number, value


def _has_piece_across_spaces(tokenizer):
    pieces = tokenizer.id_to_string(tf.range(tokenizer.vocab_size())).numpy()
    return any(_SPACE in piece.lstrip(_SPACE) for piece in pieces)


def proto_bytes(proto):
    """The bytes of a SentencePiece model that is given as such or as the path of its file."""
    if isinstance(proto, bytes):
        return proto
    if not isinstance(proto, str | os.PathLike):
        raise TypeError(f"proto must be the bytes of a SentencePiece model or its path, got {type(proto).__name__}.")
    return pathlib.Path(proto).read_bytes()


def sentencepiece_tokenizer(proto):
    """The `tensorflow_text.SentencepieceTokenizer` of a serialized model, which gives int32 ids."""
    import tensorflow_text

    try:
        return tensorflow_text.SentencepieceTokenizer(proto, out_type=tf.int32)
    except tf.errors.OpError as error:
        raise ValueError(
            f"proto must be a SentencePiece model, got {len(proto)} bytes that are none: {error.message}"
        ) from error


def _special_id(tokenizer, piece):
    number = int(tokenizer.string_to_id(piece))
    if tokenizer.id_to_string(number).numpy().decode() != piece:
        raise ValueError(
            f"proto must hold the piece {piece!r}, got a SentencePiece model without it. Train it with "
            "bos_id, eos_id and pad_id (pad_piece='<pad>')."
        )
    return number
