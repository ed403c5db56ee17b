"""Losses over the logits of teacher and student: divergences of their distributions, and differences unit by unit."""

import math

import keras
from keras import ops

from keras_kd._checks import require_flag, require_number
from keras_kd.losses.base import DistillationLoss, TemperatureLoss, require_same_classes


class Divergence(TemperatureLoss):
    """Base class of the divergences between temperature-softened distributions: `L = T² · D(p, q)`, in nats.

    `p = softmax(teacher / T)` and `q = softmax(student / T)`. The factor T² keeps the gradient's scale when T changes.
    Computed in log space and in float32, so that it is finite at logits of ±1e4. A subclass implements
    `divergence(teacher_log_probs, student_log_probs)`.

    A `Distiller` takes the log of the probabilities of a model that is known to end in softmax: `softmax(log p / T)`
    equals `softmax(logits / T)`. Called by itself, a loss takes logits.

    Args:
        temperature: T > 0; 2 to 8 is usual. Kept in a variable, `loss.temperature`, which callbacks may assign.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: Logits `(batch, classes)`, or `(batch, length, classes)` for sequences.
    """

    undoes = "softmax"
    tokenwise = True

    def divergence(self, teacher_log_probs, student_log_probs):
        """One value per sample: the divergence D of log probabilities `(..., classes)`, `(...)` nats."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement divergence(teacher_log_probs, student_log_probs)."
        )

    def compare(self, teacher, student):
        # (..., classes) x2 -> (...) nats
        return self.divergence(ops.log_softmax(teacher, axis=-1), ops.log_softmax(student, axis=-1))


@keras.saving.register_keras_serializable(package="keras_kd")
class SoftLabels(Divergence):
    """Soft labels: KL divergence from the teacher's to the student's temperature-softened distribution, times T².

    `L = T² · KL(p ‖ q) = T² · Σ_c p_c (log p_c − log q_c)` with `p = softmax(teacher / T)`, `q = softmax(student / T)`.

    Args:
        temperature: T > 0; 2 to 8 is usual.
        standardize: Standardize the logits of both sides first, each example's over its classes:
            `(z − mean) / (std + 1e-7)`, std with the divisor classes − 1. The student then has to match the shape of
            the teacher's logits, not their scale. A std below 0.01 counts as 0.01: flat logits would get a gradient of
            1e7.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments and errors are as for `keras_kd.losses.Divergence`.

    Example:

    >>> loss = keras_kd.losses.SoftLabels(temperature=2.0)
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.7706...

    References: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), section 2; for `standardize`, Sun et al., "Logit Standardization in Knowledge
    Distillation", CVPR 2024 (https://arxiv.org/abs/2403.01427), algorithm 1.
    """

    def __init__(self, temperature=4.0, *, standardize=False, **kwargs):
        super().__init__(temperature, **kwargs)
        self.standardize = require_flag(standardize, "standardize")
        self.scales_with_temperature = not standardize

    def call(self, teacher, student):
        if self.standardize:
            teacher, student = _standardized(teacher), _standardized(student)
        return super().call(teacher, student)

    def divergence(self, teacher_log_probs, student_log_probs):
        return kl_divergence(teacher_log_probs, student_log_probs)


@keras.saving.register_keras_serializable(package="keras_kd")
class ReverseKL(Divergence):
    """Reverse KL: `L = T² · KL(q ‖ p)`, from the student's to the teacher's distribution.

    It seeks one mode: what the student leaves out costs little, what the teacher finds unlikely costs much. Usual for
    generation.

    Args:
        **kwargs: See `keras_kd.losses.Divergence`; T is 1 unless given.

    Example:

    >>> loss = keras_kd.losses.ReverseKL()
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.7379...

    Reference: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024
    (https://arxiv.org/abs/2306.08543), equation 1.
    """

    def divergence(self, teacher_log_probs, student_log_probs):
        return kl_divergence(student_log_probs, teacher_log_probs)


@keras.saving.register_keras_serializable(package="keras_kd")
class JensenShannon(Divergence):
    """Generalized Jensen-Shannon divergence: `L = T² · (β · KL(p ‖ m) + (1 − β) · KL(q ‖ m))`, `m = β p + (1 − β) q`.

    At β = 0 it is taken to be KL(p ‖ q) and at β = 1 KL(q ‖ p), to which it tends after division by β and 1 − β. In
    between it is bounded, so that the gradient vanishes where the two sides have nothing in common: start from a
    student that has learnt something.

    Args:
        beta: β in [0, 1]: the teacher's share of the mixture.
        **kwargs: See `keras_kd.losses.Divergence`; T is 1 unless given.

    Example:

    >>> loss = keras_kd.losses.JensenShannon(beta=0.5)
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.1495...

    Reference: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024
    (https://arxiv.org/abs/2306.13649), equation 1.
    """

    def __init__(self, beta=0.5, *, temperature=1.0, **kwargs):
        super().__init__(temperature, **kwargs)
        self.beta = require_number(beta, "beta", at_least=0.0, at_most=1.0)

    def divergence(self, teacher_log_probs, student_log_probs):
        if self.beta == 0.0:
            return kl_divergence(teacher_log_probs, student_log_probs)
        if self.beta == 1.0:
            return kl_divergence(student_log_probs, teacher_log_probs)
        mixture_log_probs = log_mixture(self.beta, teacher_log_probs, student_log_probs)
        teacher_kl = kl_divergence(teacher_log_probs, mixture_log_probs)
        student_kl = kl_divergence(student_log_probs, mixture_log_probs)
        return self.beta * teacher_kl + (1.0 - self.beta) * student_kl


@keras.saving.register_keras_serializable(package="keras_kd")
class SkewKL(Divergence):
    """Skewed KL: `L = T² · KL(p ‖ α p + (1 − α) q)`.

    The teacher's share α in the second distribution bounds the loss by −log α, and the gradient where the student gives
    almost no probability to what the teacher finds likely. At α = 0 it is `SoftLabels`.

    Args:
        alpha: α in [0, 1]; 0.1 is usual, and at 1 the loss is 0.
        **kwargs: See `keras_kd.losses.Divergence`; T is 1 unless given.

    Example:

    >>> loss = keras_kd.losses.SkewKL(alpha=0.1)
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.4657...

    Reference: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024
    (https://arxiv.org/abs/2402.03898), equation 3.
    """

    def __init__(self, alpha=0.1, *, temperature=1.0, **kwargs):
        super().__init__(temperature, **kwargs)
        self.alpha = require_number(alpha, "alpha", at_least=0.0, at_most=1.0)

    def divergence(self, teacher_log_probs, student_log_probs):
        return kl_divergence(teacher_log_probs, log_mixture(self.alpha, teacher_log_probs, student_log_probs))


@keras.saving.register_keras_serializable(package="keras_kd")
class SkewReverseKL(SkewKL):
    """Skewed reverse KL: `L = T² · KL(q ‖ α q + (1 − α) p)`. At α = 0 it is `ReverseKL`.

    Args:
        alpha, **kwargs: As for `SkewKL`.

    Example:

    >>> loss = keras_kd.losses.SkewReverseKL(alpha=0.1)
    >>> float(loss(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.5245...

    Reference: as `SkewKL`.
    """

    def divergence(self, teacher_log_probs, student_log_probs):
        return super().divergence(student_log_probs, teacher_log_probs)


_LEAST_STD = 1e-2  # of logits; the gradient of standardized logits is as large as 1 / std


def kl_divergence(first_log_probs, second_log_probs):
    """KL(first ‖ second) from log probabilities `(..., classes)`: `(...)` nats."""
    return ops.sum(ops.exp(first_log_probs) * (first_log_probs - second_log_probs), axis=-1)


def log_mixture(share, first_log_probs, second_log_probs):
    """The log of `share · first + (1 − share) · second`, in log space."""
    if share in (0.0, 1.0):
        return first_log_probs if share else second_log_probs
    return ops.logaddexp(first_log_probs + math.log(share), second_log_probs + math.log1p(-share))


def _standardized(logits):
    """`(z − mean) / (std + 1e-7)` over the classes, with the sample standard deviation (divisor classes − 1)."""
    centered = logits - ops.mean(logits, axis=-1, keepdims=True)
    variance = ops.sum(ops.square(centered), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    return centered / (ops.sqrt(ops.maximum(variance, _LEAST_STD**2)) + 1e-7)


@keras.saving.register_keras_serializable(package="keras_kd")
class LogitsMSE(DistillationLoss):
    """Mean squared difference of the logits: `L = mean_c (t_c − s_c)²`.

    The limit of `SoftLabels` at high temperatures, up to the mean of the logits, which it fits too. Also the loss for
    regression heads without an activation. A `Distiller` refuses a model that is known to end in softmax or sigmoid,
    from which that mean cannot be had; `Hint()` compares outputs as they are.

    Args:
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: Logits or predictions `(batch, classes)`, or `(batch, length, classes)`.

    Raises:
        ValueError: The shapes differ; in a `Distiller`, a model ends in softmax or sigmoid.

    Example:

    >>> float(keras_kd.losses.LogitsMSE()(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    2.5

    Reference: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (https://arxiv.org/abs/1312.6184),
    equation 1 (there ½ of the squared norm, here its mean over the classes).
    """

    tokenwise = True

    def expected_ending(self, side):
        return "logits"

    def check_shapes(self, teacher_shape, student_shape):
        require_same_classes(self.name, teacher_shape, student_shape, at_least=1)

    def call(self, teacher, student):
        # (..., classes) x2 -> (...)
        return ops.mean(ops.square(teacher - student), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class BinarySoftLabels(TemperatureLoss):
    """Soft labels for multi-label heads: the KL divergence of each unit's softened Bernoulli distribution, times T².

    `L = T² · mean_c [p_c log(p_c / q_c) + (1 − p_c) log((1 − p_c) / (1 − q_c))]` with `p = sigmoid(teacher / T)` and
    `q = sigmoid(student / T)`, in nats. In log space throughout. Probabilities of models that end in sigmoid are turned
    back into logits, as those of softmax in `Divergence`.

    Args:
        temperature: T > 0. Kept in a variable, `loss.temperature`, which callbacks may assign.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: Logits `(batch, units)`, or `(batch, length, units)`.

    Example:

    >>> float(keras_kd.losses.BinarySoftLabels()(np.array([[2.0, -1.0]]), np.array([[0.0, 0.0]])))
    0.2193...

    Reference: Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023 (https://arxiv.org/abs/2308.06453),
    equation 3: the divergence of each label's binary distribution.
    """

    undoes = "sigmoid"
    tokenwise = True
    least_classes = 1

    def compare(self, teacher, student):
        # (..., units) x2 -> (...) nats
        teacher_log_probs, student_log_probs = (  # of each unit being on and off, (..., units, 2)
            ops.stack([ops.log_sigmoid(logits), ops.log_sigmoid(-logits)], axis=-1) for logits in (teacher, student)
        )
        return ops.mean(kl_divergence(teacher_log_probs, student_log_probs), axis=-1)
