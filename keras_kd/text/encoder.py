"""The base of the tokenizers: what they share, and what becomes of each in a LiteRT file."""

import keras
import tensorflow as tf


class TextEncoder(keras.layers.Layer):
    """A layer from strings, `(batch,)` or `(batch, 1)`, to a model's inputs; it has no weights."""

    def __call__(self, inputs, **kwargs):
        return super().__call__(as_strings(inputs), **kwargs)

    def litert_layer(self):
        """The same encoder in operations that a LiteRT file can run; None where the file takes what it returns.

        ValueError if there are no such operations.
        """
        raise NotImplementedError


def as_strings(inputs):
    """`inputs` as a tensor of strings; Keras would make float tensors of str."""
    return inputs if isinstance(inputs, (keras.KerasTensor, tf.Tensor)) else tf.constant(inputs, dtype=tf.string)
