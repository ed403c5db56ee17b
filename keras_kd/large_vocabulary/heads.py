"""The last layers of teacher and student, which stand for their logits, and the logits of some tokens."""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd.outputs.top_classes import dense_logs

CHUNK_BYTES = 2**26  # of one float32 array (tokens of a chunk, vocabulary)


class Head(NamedTuple):
    """The last layer of a model and its input: `logits = hidden · kernel + bias`.

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


class HeadTeacher:
    """A teacher given by its `Head`."""

    def __init__(self, head, student):
        head = checked_head(head, "teacher", "Head or TopClasses")
        _require_one_vocabulary(vocabulary_of(head), student)
        parts = [None if part is None else tf.stop_gradient(part) for part in head[:3]]
        self.head = in_float32(Head(*parts, head.vocabulary_first))
        self.shape = head.hidden.shape[:-1]
        self.token_values = (by_token(self.head.hidden, 1),)

    def logits(self, hidden):
        # (tokens, width) -> (tokens, vocabulary)
        return logits_of_head(self.head._replace(hidden=hidden))


class TopClassesTeacher:
    """A teacher given by its most likely tokens, a `TopClasses`."""

    def __init__(self, top, student):
        _require_one_vocabulary(top.count, student)
        self.count = top.count
        self.shape = top.log_each.shape
        log_p, log_each = tf.stop_gradient(top.log_p), tf.stop_gradient(top.log_each)
        self.token_values = (by_token(top.classes, 1), by_token(log_p, 1), by_token(log_each))

    def logits(self, classes, log_p, log_each):
        # (tokens, k) x2, (tokens,) -> (tokens, vocabulary) log probabilities
        return dense_logs(classes, log_p, log_each, self.count)


def _require_one_vocabulary(size, student):
    if size != vocabulary_of(student):
        raise ValueError(
            f"teacher and student must have one vocabulary, got {size} and {vocabulary_of(student)} classes. For two "
            "vocabularies see keras_kd.losses.VocabularyMap."
        )


def logits_of_head(head):
    # (tokens, width) -> (tokens, vocabulary)
    logits = tf.matmul(head.hidden, head.kernel, transpose_b=head.vocabulary_first)
    return logits if head.bias is None else logits + head.bias


def hidden_gradient_of(gradient, head):
    """The gradient of the hidden states, `(tokens, width)`, from that of the logits, `(tokens, vocabulary)`."""
    # As a batch of one matrix: TensorFlow's batched product is faster here.
    return tf.raw_ops.BatchMatMulV2(x=gradient[None], y=head.kernel[None], adj_y=not head.vocabulary_first)[0]


def by_token(tensor, trailing=0):
    """Merge all axes but the last `trailing` ones into one: `(tokens, trailing axes)`."""
    return tf.reshape(tensor, (-1, *tensor.shape[len(tensor.shape) - trailing :]))


def vocabulary_of(head):
    return head.kernel.shape[0 if head.vocabulary_first else 1]


def in_float32(head):
    hidden, kernel, bias = (None if part is None else tf.cast(part, "float32") for part in head[:3])
    return Head(hidden, kernel, bias, head.vocabulary_first)


def checked_head(head, argument, expected):
    """Return the head with tensors in place of variables and arrays; raise if it is none, or its shapes do not fit."""
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


def label_crossentropy(labels, logits):
    # (tokens,), (tokens, vocabulary) -> (tokens,) nats; 0 where the label is negative
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    return tf.where(labels >= 0, values, 0.0)


def head_crossentropy(head, labels):
    """The cross-entropy of each token with its label, chunk by chunk, for evaluation: no gradient flows through it.

    Labels are integers `(...)`, one per token, and so are the values, in nats; a negative label gives 0.
    """
    head = in_float32(checked_head(head, "head", "Head"))
    hidden, flat = by_token(tf.stop_gradient(head.hidden), 1), by_token(tf.cast(labels, "int32"))
    tokens = tf.size(flat)
    rows = tf.clip_by_value(tokens, 1, max(CHUNK_BYTES // (4 * vocabulary_of(head)), 1))
    chunks = -(-tokens // rows)
    hidden = tf.pad(hidden, [[0, chunks * rows - tokens], [0, 0]])
    flat = tf.pad(flat, [[0, chunks * rows - tokens]], constant_values=-1)

    def chunk_losses(i):
        part = head._replace(hidden=hidden[i * rows : (i + 1) * rows])
        return label_crossentropy(flat[i * rows : (i + 1) * rows], logits_of_head(part))

    values = tf.map_fn(chunk_losses, tf.range(chunks), fn_output_signature=tf.TensorSpec([None], "float32"))
    return tf.reshape(tf.stop_gradient(tf.reshape(values, [-1])[:tokens]), tf.shape(labels))
