"""What a teacher and a student hand over in place of logits, and the logits of a chunk of it."""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd.outputs.top_classes import dense_logs

CHUNK_BYTES = 2**26  # of one float32 array (chunk of tokens, vocabulary)


class Head(NamedTuple):
    """What a model ends in: `logits = hidden · kernel + bias`.

    Attributes:
        hidden: Input of the last layer, `(..., width)`.
        kernel: `(width, vocabulary)` as in `keras.layers.Dense`, or `(vocabulary, width)` as in a tied embedding.
        bias: `(vocabulary,)`, or None.
        vocabulary_first: Whether the kernel is `(vocabulary, width)`.
    """

    hidden: object
    kernel: object
    bias: object = None
    vocabulary_first: bool = False


class LiveTeacher:
    """A teacher's hidden states and head."""

    def __init__(self, head, student):
        head = checked_head(head, "teacher", "Head or TopClasses")
        if vocabulary_of(head) != vocabulary_of(student):
            raise ValueError(
                f"teacher and student must have one vocabulary, got kernels {head.kernel.shape} and "
                f"{student.kernel.shape}. For two vocabularies see keras_kd.losses.VocabularyMap."
            )
        parts = [None if part is None else tf.stop_gradient(part) for part in head[:3]]
        self.head = in_float32(Head(*parts, head.vocabulary_first))
        self.shape = head.hidden.shape[:-1]
        self.token_values = (by_token(self.head.hidden, 1),)

    def logits(self, hidden):
        """(tokens, width) -> (tokens, vocabulary)"""
        return logits_of_head(self.head._replace(hidden=hidden))


class TopTeacher:
    """A teacher's likeliest tokens, a `TopClasses`."""

    def __init__(self, top, student):
        if top.count != vocabulary_of(student):
            raise ValueError(
                f"teacher and student must have one vocabulary, got {top.count} classes and a kernel "
                f"{student.kernel.shape}."
            )
        self.count = top.count
        self.shape = top.log_each.shape
        values = [tf.stop_gradient(values) for values in (top.log_p, top.log_each)]
        self.token_values = (by_token(top.classes, 1), by_token(values[0], 1), by_token(values[1]))

    def logits(self, classes, log_p, log_each):
        """(tokens, k) x2, (tokens,) -> log probabilities (tokens, vocabulary)"""
        return dense_logs(classes, log_p, log_each, self.count)


def logits_of_head(head):
    """(tokens, width) -> (tokens, vocabulary)"""
    logits = tf.matmul(head.hidden, head.kernel, transpose_b=head.vocabulary_first)
    return logits if head.bias is None else logits + head.bias


def product_over_vocabulary(gradient, head):
    """(tokens, vocabulary) -> (tokens, width), the gradient of hidden states; as a batch of one, which is faster."""
    return tf.raw_ops.BatchMatMulV2(x=gradient[None], y=head.kernel[None], adj_y=not head.vocabulary_first)[0]


def by_token(tensor, trailing=0):
    """(..., trailing axes) -> (tokens, trailing axes)"""
    return tf.reshape(tensor, (-1, *tensor.shape[len(tensor.shape) - trailing :]))


def vocabulary_of(head):
    """How many tokens the kernel has."""
    return head.kernel.shape[0 if head.vocabulary_first else 1]


def in_float32(head):
    """The head as it is multiplied."""
    hidden, kernel, bias = (None if part is None else tf.cast(part, "float32") for part in head[:3])
    return Head(hidden, kernel, bias, head.vocabulary_first)


def checked_head(head, argument, expected):
    """The head with tensors in place of variables and arrays, whose shapes fit each other."""
    if not isinstance(head, Head):
        raise TypeError(
            f"{argument} must be a keras_kd.large_vocabulary.{expected}, got {type(head).__name__}: {head!r}. "
            "Pass Head(hidden, layer.kernel, layer.bias)."
        )
    hidden, kernel, bias = (None if part is None else keras.ops.convert_to_tensor(part) for part in head[:3])
    width = kernel.shape[1 if head.vocabulary_first else 0]
    if hidden.shape[-1] != width:
        raise ValueError(
            f"{argument}: hidden {hidden.shape} must be as wide as kernel {kernel.shape} with "
            f"vocabulary_first={head.vocabulary_first}, got {hidden.shape[-1]} and {width}. Dense has kernels (width, "
            "vocabulary); embeddings are (vocabulary, width) and need vocabulary_first=True."
        )
    head = Head(hidden, kernel, bias, head.vocabulary_first)
    if bias is not None and bias.shape != (vocabulary_of(head),):
        raise ValueError(
            f"{argument}: bias must be ({vocabulary_of(head)},), as kernel {kernel.shape}, got {bias.shape}."
        )
    return head


def require_tokens(shape, tokens, argument):
    """Raise ValueError unless both static shapes, without the last axis, can be one."""
    if not shape.is_compatible_with(tokens):
        raise ValueError(f"{argument} must have as many tokens as the student, {tokens}, got {shape}.")
