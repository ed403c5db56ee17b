"""Text to ids through tensorflow-text, for every script, in `tf.data` or inside a model that takes strings."""

import collections

import keras
import tensorflow as tf

from keras_kd._checks import require_count
from keras_kd.text.encoder import TextEncoder

PADDING, UNKNOWN = 0, 1
_SPECIAL_IDS = 2  # PADDING and UNKNOWN


@keras.saving.register_keras_serializable(package="keras_kd")
class CharacterEncoder(TextEncoder):
    """Map text to ids of its characters: one vocabulary for all scripts, and no tokenizer to train.

    `keras.layers.TextVectorization(split="character")` after tensorflow-text has folded case and decomposed Unicode
    (NFKD; joiners are dropped): "É" counts as "e" and an accent, a Korean syllable as its letters, so that a few
    hundred characters write most languages. Id 0 is padding and 1 an unknown character; the vocabulary begins at 2, in
    the order of the code points.

    Call it on strings, map it over a `tf.data.Dataset`, or make it the first layer of a model. A SavedModel of such a
    model needs `import tensorflow_text` in the process that loads it. LiteRT has no such operations: export the part
    after it, which takes ids.

    Args:
        vocabulary: str, the characters to tell apart, in any order. `from_texts` collects them.
        length: Ids per text ≥ 1; longer texts are cut, shorter ones padded with 0.
        name: Name of the layer.

    Call arguments:
        inputs: Strings, `(batch,)` or `(batch, 1)`: a tensor, an array or a list of str.

    Returns:
        int32 ids, `(batch, length)`.

    Raises:
        TypeError: `vocabulary` is no str, or `length` no int.
        ValueError: `vocabulary` is empty; `length` < 1.

    Example:

    >>> encoder = keras_kd.text.CharacterEncoder("abc é", length=5)
    >>> encoder(["Abba", "É?"]).numpy()
    array([[3, 4, 4, 3, 0],
           [6, 7, 1, 0, 0]], dtype=int32)
    """

    def __init__(self, vocabulary, length, *, name=None):
        super().__init__(trainable=False, name=name, dtype="int32")
        if not isinstance(vocabulary, str):
            raise TypeError(f"vocabulary must be a str of characters, got {type(vocabulary).__name__}.")
        self.length = require_count(length, "length", at_least=1)
        self.vocabulary = "".join(sorted(set(_normalized_characters([vocabulary]))))
        if not self.vocabulary:
            raise ValueError("vocabulary must hold one character or more, got none.")
        self._vectorization = keras.layers.TextVectorization(
            standardize=None, split="character", output_sequence_length=self.length, vocabulary=list(self.vocabulary)
        )
        self.built = True

    @classmethod
    def from_texts(cls, texts, length, *, min_count=2, name=None):
        """Return an encoder for the characters that occur at least `min_count` times in `texts`, a list of str.

        Rare characters get the id of unknown ones, so that the model is trained on that id too.
        """
        require_count(min_count, "min_count", at_least=1)
        counts = collections.Counter(_normalized_characters(texts))
        frequent = [character for character, count in counts.items() if count >= min_count]
        if not frequent:
            raise ValueError(f"texts must hold characters that occur min_count={min_count} times, got none.")
        return cls("".join(frequent), length, name=name)

    @property
    def vocabulary_size(self):
        """Number of different ids: the `input_dim` of the `Embedding` that follows."""
        return _SPECIAL_IDS + len(self.vocabulary)

    def is_in_litert(self):
        raise ValueError(
            "tokenizer must run in LiteRT, which has no operations for CharacterEncoder. Export without tokenizer, for "
            "a file that takes ids; or train the student on a SentencePieceEncoder, WordPieceEncoder or ByteEncoder."
        )

    def call(self, inputs):
        ids = self._vectorization(_normalize(tf.reshape(inputs, (-1,))))
        return tf.ensure_shape(tf.cast(ids, tf.int32), (None, self.length))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs.shape[0], self.length), "int32")

    def get_config(self):
        return {"name": self.name, "vocabulary": self.vocabulary, "length": self.length}


def _normalize(texts):
    import tensorflow_text

    return tensorflow_text.normalize_utf8(tensorflow_text.case_fold_utf8(texts), "NFKD")


def _normalized_characters(texts):
    return "".join(text.decode() for text in _normalize(tf.constant(list(texts), dtype=tf.string)).numpy())
