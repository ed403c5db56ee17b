"""Text to SentencePiece ids, in the form that KerasHub's encoders take."""

import base64
import os
import pathlib

import keras
import tensorflow as tf

from keras_kd._checks import require_count, require_flag
from keras_kd.text.characters import as_strings

_BEGIN, _END, _PADDING = "<s>", "</s>", "<pad>"


@keras.saving.register_keras_serializable(package="keras_kd")
class SentencePieceEncoder(keras.layers.Layer):
    """Map text to ids of SentencePiece pieces, as the inputs of a KerasHub encoder (BERT, XLM-RoBERTa).

    Each text becomes `<s> pieces </s>`; a longer text loses pieces before `</s>`, a shorter one is padded. The ids are
    those of the SentencePiece model.

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
        super().__init__(trainable=False, name=name, dtype="int32")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, got {type(prefix).__name__}: {prefix!r}.")
        self.proto = _proto_bytes(proto)
        self.length = require_count(length, "length", at_least=3)
        self.prefix = prefix
        self.segment_ids = require_flag(segment_ids, "segment_ids")
        self._tokenizer = _tokenizer(self.proto)
        self._begin, self._end, self._padding = (_special_id(self._tokenizer, p) for p in (_BEGIN, _END, _PADDING))
        self.built = True

    @property
    def vocabulary_size(self):
        """Number of pieces of the SentencePiece model."""
        return int(self._tokenizer.vocab_size())

    def __call__(self, inputs, **kwargs):
        return super().__call__(as_strings(inputs), **kwargs)

    def call(self, inputs):
        pieces = self._tokenizer.tokenize(self.prefix + tf.reshape(inputs, (-1,)))[:, : self.length - 2]
        first, last = (tf.fill((pieces.nrows(), 1), special) for special in (self._begin, self._end))
        ids = tf.concat([first, tf.cast(pieces, tf.int32), last], axis=1)
        shape = (None, self.length)
        token_ids = tf.ensure_shape(ids.to_tensor(self._padding, shape=shape), shape)
        padding_mask = tf.ensure_shape(tf.ones_like(ids).to_tensor(0, shape=shape), shape)
        encoded = {"token_ids": token_ids, "padding_mask": padding_mask}
        if self.segment_ids:
            encoded["segment_ids"] = tf.zeros_like(token_ids)
        return encoded

    def compute_output_spec(self, inputs):
        names = ["token_ids", "padding_mask"] + ["segment_ids"] * self.segment_ids
        return {name: keras.KerasTensor((inputs.shape[0], self.length), "int32") for name in names}

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


def _proto_bytes(proto):
    if isinstance(proto, bytes):
        return proto
    if not isinstance(proto, str | os.PathLike):
        raise TypeError(f"proto must be the bytes of a SentencePiece model or its path, got {type(proto).__name__}.")
    return pathlib.Path(proto).read_bytes()


def _tokenizer(proto):
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
