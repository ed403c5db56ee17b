"""Text as the bytes of its UTF-8 form: no vocabulary, and nothing that a phone's runtime lacks."""

import keras
import tensorflow as tf

from keras_kd._checks import require_count
from keras_kd.text.encoder import TextEncoder


@keras.saving.register_keras_serializable(package="keras_kd")
class ByteEncoder(TextEncoder):
    """Map text to the bytes of its UTF-8 form, padded with 0.

    Any language can do the same in a line, so that a model which begins after this layer runs on a phone without a
    tokenizer: Kotlin's `text.encodeToByteArray()`, Swift's `Array(text.utf8)`. Bytes that are no UTF-8 pass through.
    Code point 0 cannot be told from padding.

    Args:
        length: Bytes per text ≥ 1; longer texts are cut, if need be inside of a character.
        name: Name of the layer.

    Call arguments:
        inputs: Strings, `(batch,)` or `(batch, 1)`: a tensor, an array or a list of str.

    Returns:
        uint8, `(batch, length)`.

    Raises:
        TypeError: `length` is no int.
        ValueError: `length` < 1.

    Example:

    >>> keras_kd.text.ByteEncoder(length=5)(["aé", "b"]).numpy()
    array([[ 97, 195, 169,   0,   0],
           [ 98,   0,   0,   0,   0]], dtype=uint8)
    """

    def __init__(self, length, *, name=None):
        super().__init__(trainable=False, name=name, dtype="uint8")
        self.length = require_count(length, "length", at_least=1)
        self.built = True

    def is_in_litert(self):
        return False  # the app makes the bytes

    def call(self, inputs):
        return tf.io.decode_raw(tf.reshape(inputs, (-1,)), tf.uint8, fixed_length=self.length)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs.shape[0], self.length), "uint8")

    def get_config(self):
        return {"name": self.name, "length": self.length}
