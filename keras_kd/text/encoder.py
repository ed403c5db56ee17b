"""The base of the tokenizers: what they share, and what becomes of each in a LiteRT file."""

import keras
import tensorflow as tf


class TextEncoder(keras.layers.Layer):
    """A layer from strings, `(batch,)` or `(batch, 1)`, to a model's inputs; it has no weights."""

    def __call__(self, inputs, **kwargs):
        return super().__call__(as_strings(inputs), **kwargs)

    def is_in_litert(self):
        """Whether a LiteRT file holds the encoder; if not, the file takes what it returns.

        ValueError if the file would have to hold it and LiteRT has no such operations.
        """
        raise NotImplementedError


def as_strings(inputs):
    """`inputs` as a tensor of strings; Keras would make float tensors of str."""
    return inputs if isinstance(inputs, (keras.KerasTensor, tf.Tensor)) else tf.constant(inputs, dtype=tf.string)
