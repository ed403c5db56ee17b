"""The fused loss: a divergence and the cross-entropy of hidden states and heads, with their gradient."""

from typing import NamedTuple

import tensorflow as tf

from keras_kd._checks import require_count
from keras_kd.large_vocabulary.chunks import Chunks
from keras_kd.large_vocabulary.sides import (
    CHUNK_BYTES,
    Head,
    LiveTeacher,
    TopTeacher,
    by_token,
    checked_head,
    require_tokens,
)
from keras_kd.large_vocabulary.stores import Functional, InPlace
from keras_kd.losses.base import DistillationLoss
from keras_kd.outputs.top_classes import TopClasses


class FusedLoss(NamedTuple):
    """What `fused_loss` gives.

    Attributes:
        total: Scalar `Σ (soft_weights · soft + hard_weights · hard)`; the gradient flows through it.
        soft: The loss's value of each token, `(...)` nats, not weighted; no gradient.
        hard: The cross-entropy with the label, `(...)` nats, 0 where the label is negative; None without labels.
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
    logits of the two heads and D is the loss, T² included. Value and gradient are those of the dense form: of each
    chunk of logits, the loss itself gives the value and a tape the gradient. It flows to the student's hidden
    states, kernel and bias and to the weights, not to the teacher.

    Means are the caller's: for the mean over the tokens of a mask, pass `soft_weights=mask / sum(mask)`. A token of
    weight 0 adds nothing. The gradient is computed with the value and kept, as large as the head; so the weights, which
    it depends on, have to be known beforehand, and there is no second derivative.

    Beside the kernel's gradient, one array of `chunk_bytes` is held inside a `tf.function`, the teacher's logits of 64
    tokens, and a few smaller ones, however many tokens there are. Loss and gradient of the logits are compiled by XLA
    in any case, the matrix products only with `jit_compile=True`; XLA, which knows no sum in place, then holds the
    head's gradient twice. Half precision is multiplied in float32: of a kernel in half precision there is a float32
    copy while that goes on, and its gradient is summed in float32.

    Args:
        loss: A `keras_kd.losses.DistillationLoss` over logits that is `tokenwise`, for instance
            `SoftLabels(temperature=2.0)` or
            another divergence, `LogitsMSE`, `DecoupledKD`. Its `weight` is not heeded.
        teacher: A `Head`, or a `TopClasses`.
        student: A `Head`. Widths and dtypes of the two may differ; the vocabulary is one.
        labels: Whole numbers `(...)`, as many as tokens; negative ones are passed over, ones beyond the vocabulary give
            NaN. None: no cross-entropy.
        soft_weights: A number or `(...)`: each token's weight in the soft loss.
        hard_weights: Likewise in the cross-entropy.
        jit_compile: Whether the call is compiled by XLA, as in Keras's `compile`.
        chunk_bytes: Bytes of one float32 array `(chunk, vocabulary)`, at least 8 tokens. Larger chunks are faster, up
            to a few hundred tokens, since each adds once more to all of the head's gradient.

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
    tokens = student.hidden.shape[:-1]
    teacher_side = TopTeacher(teacher, student) if isinstance(teacher, TopClasses) else LiveTeacher(teacher, student)
    require_tokens(teacher_side.shape, tokens, "teacher")
    if labels is not None:
        labels = tf.cast(labels, "int32")
        require_tokens(labels.shape, tokens, "labels")
    shape = tf.shape(student.hidden)[:-1]
    weights = [tf.broadcast_to(tf.cast(weight, "float32"), shape) for weight in (soft_weights, hard_weights)]
    store = Functional if jit_compile else InPlace
    chunks = Chunks(loss, teacher_side, student, labels, store, chunk_bytes)
    total, soft, hard = _differentiable(chunks, student, *[by_token(weight) for weight in weights])
    soft, hard = (tf.reshape(tf.stop_gradient(values), shape) for values in (soft, hard))
    return FusedLoss(total, soft, None if labels is None else hard)


def _require_tokenwise(loss, labels):
    if not isinstance(loss, DistillationLoss) or not loss.tokenwise:
        raise TypeError(
            "loss must be a keras_kd.losses.DistillationLoss that has a value for each token by itself, got "
            f"{type(loss).__name__}: {loss!r}. SoftLabels and the other divergences, LogitsMSE, "
            "BinarySoftLabels, DecoupledKD and NormalizedKD are."
        )
    if loss.needs_labels and labels is None:
        raise ValueError(f"{loss.name} needs labels, got none. Pass labels=, -1 for tokens without.")


def _differentiable(chunks, student, soft_weights, hard_weights):
    """(total, values (tokens,) x2), with the gradient that was computed beside them."""

    @tf.custom_gradient
    def summed(hidden, kernel, soft_weights, hard_weights, *bias):
        parts = [tf.stop_gradient(part) for part in (hidden, kernel, *bias)]  # a persistent tape records what is inside
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
    return summed(by_token(student.hidden, 1), student.kernel, soft_weights, hard_weights, *bias)
