"""Tokenizers as layers, through tensorflow-text: for `tf.data`, and for models that take strings."""

from keras_kd.text.bytes import ByteEncoder
from keras_kd.text.characters import PADDING, UNKNOWN, CharacterEncoder
from keras_kd.text.keras_hub_tokenizers import from_keras_hub
from keras_kd.text.pieces import SentencePieceEncoder, WordPieceEncoder

__all__ = [
    "PADDING",
    "UNKNOWN",
    "ByteEncoder",
    "CharacterEncoder",
    "SentencePieceEncoder",
    "WordPieceEncoder",
    "from_keras_hub",
]
