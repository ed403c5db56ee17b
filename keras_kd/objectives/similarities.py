"""Objectives over how alike the examples of a batch are: matrices of similarities."""

import math

import keras
from keras import ops

from keras_kd._checks import require_count, require_number
from keras_kd.objectives.features import unit
from keras_kd.objectives.relations import RelationObjective


class SimilarityObjective(RelationObjective):
    """Base class: the mean squared difference between the similarities of examples, `L = mean_j (G_ij^t − G_ij^s)²`.

    The mean over the batch is `‖G^t − G^s‖² / batch²`. A subclass implements `similarities(features)`.
    """

    def similarities(self, features):
        """`(batch, features)` -> `(batch, batch)`."""
        raise NotImplementedError(f"{type(self).__name__} must implement similarities(features).")

    def compare(self, teacher, student):
        # (batch, features) x2 -> (batch,)
        return ops.mean(ops.square(self.similarities(teacher) - self.similarities(student)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class SimilarityPreserving(SimilarityObjective):
    """Similarity-preserving distillation (SP): examples that the teacher finds alike are alike to the student.

    `L = ‖G^t − G^s‖² / batch²`, with `G = A Aᵀ` of the features A of a batch, each row of G divided by its l2 norm. An
    example's own value is its row's: `mean_j (G_ij^t − G_ij^s)²`. The entries of G are about 1/√batch, so that L is
    small: a weight of 3,000 is usual.

    All that `RelationObjective` says of shapes, batches and replicas holds.

    Args:
        teacher_layer, student_layer: The layers to compare, as in `Objective`; not given, the outputs are.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output, teacher_output, name, reduction, dtype: As in `Objective`.

    Call arguments:
        teacher: `(batch, ..., features)`.
        student: Features of the same examples, of any shape.

    Raises:
        ValueError: `weight` is negative; a signal has no features, or is one of masked tokens.

    Example:

    >>> teacher = np.array([[1.0, 0.0], [0.0, 1.0]])  # nothing in common: G is [[1, 0], [0, 1]]
    >>> student = np.array([[1.0], [1.0]])  # the same: every entry of G is 1/√2
    >>> round(float(keras_kd.SimilarityPreserving()(teacher, student)), 4)
    0.2929

    Reference: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1907.09682).
    """

    def similarities(self, features):
        return unit(ops.matmul(features, ops.transpose(features)))


@keras.saving.register_keras_serializable(package="keras_kd")
class CorrelationCongruence(SimilarityObjective):
    """Correlation congruence (CC): examples are as near to each other, by a Gaussian kernel, as for the teacher.

    `L = ‖K^t − K^s‖² / batch²`, with `K_ij = exp(−2γ) Σ_p (2γ)^p / p! · (x_i · x_j)^p`, p from 0 to `order`, of the
    features x of an example divided by their l2 norm. That is the Taylor expansion of `exp(−γ ‖x_i − x_j‖²)`; with
    `order=1`, K is the bilinear kernel `x_i · x_j` but for a factor and a constant. An example's own value is its
    row's.

    All that `RelationObjective` says of shapes, batches and replicas holds.

    Args:
        gamma: γ > 0; the larger, the more only near neighbours count. 0.4 is usual.
        order: The highest power, at least 1. 2 is usual.
        teacher_layer, student_layer: The layers to compare, as in `Objective`; not given, the outputs are.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output, teacher_output, name, reduction, dtype: As in `Objective`.

    Call arguments:
        teacher: `(batch, ..., features)`.
        student: Features of the same examples, of any shape.

    Raises:
        TypeError: `gamma` or `weight` is not a number, or `order` no whole number.
        ValueError: An argument is out of range; a signal has no features, or is one of masked tokens.

    Example:

    >>> teacher = np.array([[1.0, 0.0], [0.0, 1.0]])  # nothing in common: K_12 is exp(−0.8)
    >>> student = np.array([[1.0], [1.0]])  # the same: K_12 is exp(−0.8) (1 + 0.8 + 0.8²/2)
    >>> round(float(keras_kd.CorrelationCongruence()(teacher, student)), 4)
    0.1266

    Reference: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1904.01802), its correlation loss with the Gaussian kernel.
    """

    def __init__(self, gamma=0.4, order=2, **options):
        super().__init__(**options)
        self.gamma = require_number(gamma, "gamma", above=0.0, hint="0.4 is usual.")
        self.order = require_count(order, "order", at_least=1)

    def similarities(self, features):
        features = unit(features)
        cosines = ops.matmul(features, ops.transpose(features))
        term, kernel = ops.ones_like(cosines), ops.ones_like(cosines)
        for power in range(1, self.order + 1):
            term = term * cosines * (2.0 * self.gamma / power)
            kernel = kernel + term
        return math.exp(-2.0 * self.gamma) * kernel

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma, "order": self.order}
