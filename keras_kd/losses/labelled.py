"""Losses that treat the true class apart from the others, and so need the labels."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd.losses.base import LabelledDistillationLoss, TemperatureLoss
from keras_kd.losses.logits import kl_divergence


@keras.saving.register_keras_serializable(package="keras_kd")
class DecoupledKD(TemperatureLoss, LabelledDistillationLoss):
    """Decoupled knowledge distillation (DKD): `L = T² · (α · TCKD + β · NCKD)`.

    TCKD is the KL divergence of the two-way distributions (true class, all others); NCKD that of the distributions over
    the others alone. In `SoftLabels` NCKD has the weight 1 − p_true, little where the teacher is sure; here it is β.

    Args:
        alpha: α ≥ 0, weight of the true class.
        beta: β ≥ 0, weight of the others; 1 to 8 is usual.
        temperature: T > 0. Kept in a variable, `loss.temperature`, which callbacks may assign.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: Logits `(batch, classes)` or `(batch, length, classes)`.
        labels: Integers `(batch,)` or `(batch, length)`, or one-hot rows. Examples labelled -1 are skipped.

    Raises:
        ValueError: An argument is out of range; labels are missing; the numbers of classes differ.

    Example:

    >>> loss = keras_kd.losses.DecoupledKD(alpha=1.0, beta=8.0, temperature=4.0)
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]]), labels=np.array([0])))
    1.7355...

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (https://arxiv.org/abs/2203.08679),
    equation 7.
    """

    undoes = "softmax"
    tokenwise = True

    def __init__(self, alpha=1.0, beta=8.0, *, temperature=4.0, **kwargs):
        super().__init__(temperature, **kwargs)
        self.alpha = require_number(alpha, "alpha", at_least=0.0)
        self.beta = require_number(beta, "beta", at_least=0.0)

    def compare(self, teacher, student, labels):
        # (..., classes) x2, (...) -> (...) nats
        true_class = _true_class(labels, student)
        target_kl = kl_divergence(*(_true_or_not(logits, true_class) for logits in (teacher, student)))
        others_kl = kl_divergence(*(_among_others(logits, true_class) for logits in (teacher, student)))
        return self.alpha * target_kl + self.beta * others_kl


@keras.saving.register_keras_serializable(package="keras_kd")
class NormalizedKD(TemperatureLoss, LabelledDistillationLoss):
    """Normalized knowledge distillation (NKD): `L = −p_t log q_t − γ T² Σ_{c≠t} p̂_c log q̂_c`, t the true class.

    `p_t`, `q_t` are the probabilities of the true class without a temperature; `p̂`, `q̂` the distributions over the
    other classes alone, softened by T. It is a cross-entropy: its least value is not 0, and where the teacher is unsure
    of the true class, the student's true class counts less.

    Args:
        gamma: γ ≥ 0, weight of the other classes; 1.5 is usual.
        temperature: T > 0.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments and errors are as for `DecoupledKD`.

    Example:

    >>> loss = keras_kd.losses.NormalizedKD(gamma=1.5, temperature=1.0)
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]]), labels=np.array([0])))
    1.9667...

    Reference: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels", ICCV 2023 (https://arxiv.org/abs/2303.13005), equation 7.
    """

    undoes = "softmax"
    tokenwise = True
    scales_with_temperature = False

    def __init__(self, gamma=1.5, *, temperature=1.0, **kwargs):
        super().__init__(temperature, **kwargs)
        self.gamma = require_number(gamma, "gamma", at_least=0.0)

    def call(self, teacher, student, labels):
        # (..., classes) x2, (...) -> (...) nats
        true_class = _true_class(labels, student)
        temperature = ops.cast(self.temperature, teacher.dtype)
        log_probs = (ops.log_softmax(logits, axis=-1) for logits in (teacher, student))
        target = ops.sum(ops.where(true_class, _cross_entropies(*log_probs), 0.0), axis=-1)
        log_probs = (_among_others(logits / temperature, true_class) for logits in (teacher, student))
        others = ops.sum(_cross_entropies(*log_probs), axis=-1)
        return target + self.gamma * ops.square(temperature) * others


_FAR = -1e9  # a logit that gets no probability, and no NaN in the gradient either


def _true_class(labels, outputs):
    """True at the label's class, `(..., classes)` bool."""
    return ops.expand_dims(labels, -1) == ops.arange(outputs.shape[-1], dtype="int32")


def _cross_entropies(teacher_log_probs, student_log_probs):
    """`−p_c log q_c` of each class."""
    return -ops.exp(teacher_log_probs) * student_log_probs


def _true_or_not(logits, true_class):
    """Log probabilities of (true class, any other): `(..., 2)`."""
    true_logit = ops.sum(ops.where(true_class, logits, 0.0), axis=-1)
    others_logit = ops.logsumexp(ops.where(true_class, _FAR, logits), axis=-1)
    return ops.log_softmax(ops.stack([true_logit, others_logit], axis=-1), axis=-1)


def _among_others(logits, true_class):
    """Log probabilities over all classes but the true one, `(..., classes)`; 0 at that one, whose terms vanish."""
    return ops.where(true_class, 0.0, ops.log_softmax(ops.where(true_class, _FAR, logits), axis=-1))
