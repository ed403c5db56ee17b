"""The fused loss: a distillation loss and the cross-entropy, of hidden states and heads, with their gradient."""

from typing import NamedTuple

import tensorflow as tf

from keras_kd._checks import require_count
from keras_kd._keras_private import release_custom_gradient
from keras_kd.large_vocabulary.chunks import Chunks
from keras_kd.large_vocabulary.heads import CHUNK_BYTES, Head, HeadTeacher, TopClassesTeacher, by_token, checked_head
from keras_kd.losses.base import DistillationLoss
from keras_kd.outputs.top_classes import TopClasses


class FusedLoss(NamedTuple):
    """The result of `fused_loss`.

    Attributes:
        total: Scalar `Σ (soft_weights · soft + hard_weights · hard)`; the gradient flows through it.
        soft: Value of the loss per token, `(...)` nats, not weighted; no gradient.
        hard: Cross-entropy with the label per token, `(...)` nats, 0 for a negative label; None without labels.
    """

    total: object
    soft: object
    hard: object


@tf.autograph.experimental.do_not_convert
def fused_loss(
    loss,
    teacher,
    student,
    labels=None,
    *,
    soft_weights=1.0,
    hard_weights=1.0,
    jit_compile=False,
    chunk_bytes=CHUNK_BYTES,
):
    """The weighted sum of a loss and of the labels' cross-entropy over all tokens, without holding their logits.

    `total = Σ_i (soft_weights_i · D(t_i, s_i) + hard_weights_i · CE(y_i, s_i))` over tokens i, where t and s are the
    logits of the two heads and D is the loss, T² included. Value and gradient equal those of the dense form. The
    gradient flows to the student's hidden states, kernel and bias and to the weights, not to the teacher; there is no
    second derivative.

    Means are the caller's: for the mean over the tokens of a mask, pass `soft_weights=mask / sum(mask)`.

    Besides the kernel's gradient, a `tf.function` holds one array of `chunk_bytes`, the teacher's logits of 64 tokens
    and a few smaller arrays, whatever the number of tokens. With `jit_compile=True` it holds the head's gradient twice,
    since XLA has no sum in place. Kernels in half precision are multiplied, and gradients summed, in float32.

    Args:
        loss: A `keras_kd.losses.DistillationLoss` over logits that is `tokenwise`, for instance
            `SoftLabels(temperature=2.0)`, another divergence, `LogitsMSE` or `DecoupledKD`. Its `weight` is not used.
        teacher: A `Head`, or a `TopClasses`.
        student: A `Head`. Width and dtype may differ from the teacher's, the vocabulary may not.
        labels: Integers `(...)`, one per token. Negative ones are skipped; ids beyond the vocabulary give NaN. None: no
            cross-entropy.
        soft_weights: A number, or `(...)`: the weight of each token in the loss.
        hard_weights: Likewise in the cross-entropy.
        jit_compile: Whether XLA compiles the call, as in Keras's `compile`.
        chunk_bytes: Bytes of one float32 array `(chunk, vocabulary)`, at least 8 tokens. Larger chunks are faster, up
            to a few hundred tokens.

    Returns:
        A `FusedLoss`.

    Raises:
        TypeError: `loss` is not tokenwise, `student` no `Head`, `teacher` neither `Head` nor `TopClasses`;
            `chunk_bytes` is no whole number.
        ValueError: Widths, vocabularies or tokens of hidden states, kernels, biases, labels do not fit each other;
            `chunk_bytes` is below 1; the loss needs labels, and there are none.

    Example: With identity kernels the hidden states are the logits.

    >>> teacher = keras_kd.large_vocabulary.Head(np.array([[2.0, 0.0, -1.0]]), np.eye(3))
    >>> student = keras_kd.large_vocabulary.Head(np.array([[0.0, 0.0, 0.0]]), np.eye(3))
    >>> soft_labels = keras_kd.losses.SoftLabels(2.0)
    >>> loss = keras_kd.large_vocabulary.fused_loss(soft_labels, teacher, student, labels=np.array([0]))
    >>> float(loss.soft[0]), float(loss.hard[0]), float(loss.total)
    (0.7706..., 1.0986..., 1.8692...)

    Reference: Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024
    (https://arxiv.org/abs/2410.10989), which computes the gradient of a fused cross-entropy in the forward pass.
    """
    _require_tokenwise(loss, labels)
    require_count(chunk_bytes, "chunk_bytes", at_least=1)
    student = checked_head(student, "student", "Head")
    teacher = (TopClassesTeacher if isinstance(teacher, TopClasses) else HeadTeacher)(teacher, student)
    _require_tokens(teacher.shape, student, "teacher")
    if labels is not None:
        labels = tf.cast(labels, "int32")
        _require_tokens(labels.shape, student, "labels")
    shape = tf.shape(student.hidden)[:-1]
    weights = [by_token(tf.broadcast_to(tf.cast(weight, "float32"), shape)) for weight in (soft_weights, hard_weights)]
    chunks = Chunks(loss, teacher, student, labels, in_place=not jit_compile, chunk_bytes=chunk_bytes)
    total, soft, hard = _differentiable(chunks, student, *weights)
    soft, hard = (tf.reshape(tf.stop_gradient(values), shape) for values in (soft, hard))
    return FusedLoss(total, soft, None if labels is None else hard)


def _require_tokenwise(loss, labels):
    if not isinstance(loss, DistillationLoss) or not loss.tokenwise:
        raise TypeError(
            "loss must be a keras_kd.losses.DistillationLoss that has a value for each token, such as SoftLabels, got "
            f"{type(loss).__name__}: {loss!r}."
        )
    if loss.needs_labels and labels is None:
        raise ValueError(f"{loss.name} needs labels, got none. Pass labels=, -1 for tokens without.")


def _require_tokens(shape, student, argument):
    tokens = student.hidden.shape[:-1]
    if not shape.is_compatible_with(tokens):
        raise ValueError(f"{argument} must have as many tokens as the student, {tokens}, got {shape}.")


def _differentiable(chunks, student, soft_weights, hard_weights):
    """The total and the values (tokens,) x2, with the gradient that was computed together with them."""

    @tf.custom_gradient
    def summed(hidden, kernel, soft_weights, hard_weights, *bias):
        # A persistent tape would record the loops.
        parts = [tf.stop_gradient(part) for part in (hidden, kernel, *bias)]
        head = Head(parts[0], parts[1], parts[2] if bias else None, student.vocabulary_first)
        token_values = [tf.stop_gradient(weights) for weights in (soft_weights, hard_weights)]
        soft, hard, hidden_gradient, kernel_gradient, bias_gradient = chunks.run(head, *token_values)

        def gradient(upstream, *_):
            return (
                tf.cast(upstream * hidden_gradient, hidden.dtype),
                tf.cast(upstream * kernel_gradient, kernel.dtype),
                upstream * soft,
                upstream * hard,
                *[tf.cast(upstream * bias_gradient, given.dtype) for given in bias],
            )

        return (tf.reduce_sum(soft_weights * soft + hard_weights * hard), soft, hard), gradient

    bias = [] if student.bias is None else [student.bias]
    results = summed(by_token(student.hidden, 1), student.kernel, soft_weights, hard_weights, *bias)
    release_custom_gradient(results[0])
    return results
