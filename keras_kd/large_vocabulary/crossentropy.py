"""The labels' cross-entropy of a head, some tokens at a time, for evaluation."""

import tensorflow as tf

from keras_kd.large_vocabulary.sides import (
    CHUNK_BYTES,
    by_token,
    checked_head,
    in_float32,
    logits_of_head,
    vocabulary_of,
)


def head_crossentropy(head, labels):
    """The cross-entropy of each token with its label, without holding the logits of all.

    Args:
        head: A `Head`.
        labels: Whole numbers `(...)`, as many as tokens; where one is negative, the value is 0.

    Returns:
        `(...)` nats, through which no gradient flows.
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


def label_crossentropy(labels, logits):
    """(rows,), (rows, vocabulary) -> (rows,) nats; 0 where the label is negative."""
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    return tf.where(labels >= 0, values, 0.0)
