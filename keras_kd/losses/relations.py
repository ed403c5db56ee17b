"""Losses over how the examples of a batch relate to each other: correlations, distances, similarities, contrast."""

import math

import keras
from keras import ops

from keras_kd._checks import require_count, require_flag, require_number
from keras_kd._hyperparameters import Hyperparameter
from keras_kd.losses.base import DistillationLoss, TemperatureLoss, differ
from keras_kd.losses.features import POOL_FIRST, ProjectedFeatureLoss, unit

# Spreads, over the root mean square, below which values count as constant.
_LEAST_TEACHER_SPREAD, _LEAST_STUDENT_SPREAD = 1e-6, 1e-2
_TINY = 1e-16  # squared norms of probabilities below it count as 0
_ROUNDING = 1e-12  # squared distances below this share of the squared norms are rounding, in float64


@keras.saving.register_keras_serializable(package="keras_kd")
class DIST(TemperatureLoss):
    """Distillation from a stronger teacher (DIST): `L = T² · (β · (1 − ρ_classes) + γ · (1 − ρ_batch))`.

    With `p = softmax(teacher / T)` and `q = softmax(student / T)`, ρ_classes is the Pearson correlation of p and q over
    the classes, one value per example, and ρ_batch that over the examples of the batch, averaged over the classes. The
    student has to rank as the teacher does, classes within an example and examples within a class, not to match it.

    ρ_batch is part of every example's value, and is that of the whole batch, also over several replicas. Give it
    batches of 64 or more.

    Args:
        beta: β ≥ 0, weight of the relation between classes.
        gamma: γ ≥ 0, weight of the relation between examples.
        temperature: T > 0. Kept in a variable, `loss.temperature`, which callbacks may assign.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: Logits `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range; the shapes differ, or are those of sequences.

    Example:

    >>> teacher, student = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = keras_kd.losses.DIST()
    >>> round(float(loss(teacher, student)), 6), round(float(loss(teacher, -student)), 6)
    (0.0, 4.0)

    Reference: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (https://arxiv.org/abs/2205.10536), equation 10.
    """

    undoes = "softmax"
    relates_examples = True

    def __init__(self, beta=1.0, gamma=1.0, *, temperature=1.0, **kwargs):
        super().__init__(temperature, **kwargs)
        self.beta = require_number(beta, "beta", at_least=0.0)
        self.gamma = require_number(gamma, "gamma", at_least=0.0)

    def check_shapes(self, teacher_shape, student_shape):
        super().check_shapes(teacher_shape, student_shape)
        if len(student_shape) != 2:
            raise ValueError(
                f"{self.name} relates the examples of (batch, classes), but the student gives {student_shape}, the "
                f"teacher {teacher_shape}."
            )

    def compare(self, teacher, student):
        # (batch, classes) x2 -> (batch,)
        teacher, student = (ops.softmax(logits, axis=-1) for logits in (teacher, student))
        between_classes = 1.0 - correlation(teacher, student, axis=-1)
        between_examples = 1.0 - ops.mean(correlation(teacher, student, axis=0))
        return self.beta * between_classes + self.gamma * between_examples


def correlation(teacher, student, axis):
    """Pearson's correlation of positive values along an axis; 0 where one side is constant.

    It is damped where the student is nearly constant, so that the gradient stays bounded.
    """
    teacher = _deviation(teacher, axis, _LEAST_TEACHER_SPREAD)
    student = _deviation(student, axis, _LEAST_STUDENT_SPREAD)
    return ops.sum(teacher * student, axis=axis)


def _deviation(values, axis, least_spread):
    """Centered values over their l2 norm, or over `least_spread` times the norm before centering if that is larger."""
    centered = values - ops.mean(values, axis=axis, keepdims=True)
    squares, size = (ops.sum(ops.square(x), axis=axis, keepdims=True) for x in (centered, ops.stop_gradient(values)))
    return centered / ops.sqrt(ops.maximum(squares, ops.maximum(least_spread**2 * size, _TINY)))


class RelationLoss(DistillationLoss):
    """Base class of the losses over how the features of the examples of a batch relate to each other."""

    relates_examples = True

    def compared_axes(self, rank):
        return (0,)

    def value_rank(self, output_rank):
        return 1

    def check_shapes(self, teacher_shape, student_shape):
        few = min(len(teacher_shape), len(student_shape)) < 2
        if few or differ(teacher_shape[:1], student_shape[:1]):
            requirement = "relates the same examples by their features, (batch, ..., features)"
            raise self.shape_error(requirement, teacher_shape, student_shape)

    def values(self, teacher, student, *, labels=None, mask=None):
        if mask is not None:
            raise ValueError(
                f"{self.name} relates whole examples, but the outputs are of masked tokens: the student gives "
                f"{tuple(student.shape)}, the teacher {tuple(teacher.shape)}. {POOL_FIRST}"
            )
        return super().values(teacher, student, labels=labels)


@keras.saving.register_keras_serializable(package="keras_kd")
class RelationalKD(RelationLoss):
    """Relational knowledge distillation (RKD): distances and angles between examples are as for the teacher.

    `L = distance · mean_ij h(d_ij^t − d_ij^s) + angle · mean_ijk h(cos_ijk^t − cos_ijk^s)`. d_ij is the Euclidean
    distance of examples i and j, divided by the mean distance of two different examples; cos_ijk is the cosine of the
    angle at i between j and k; h is the Huber loss, δ = 1. As in the published code, the means are over all pairs and
    triples, of an example with itself too. The value of example i is the mean over its pairs ij and triples ijk.

    Relations are those of the whole batch, also over several replicas: give it batches of 64 or more. The angles of a
    batch are batch³ numbers: with 512 examples 0.5 GB, several times over. `angle=0` leaves them out.

    Args:
        distance: Weight ≥ 0 of the distances.
        angle: Weight ≥ 0 of the angles.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher: `(batch, ..., features)`, one vector per example.
        student: Features of the same examples, of any shape.

    Raises:
        ValueError: An argument is out of range; an output has no features, or is one of masked tokens.

    Example:

    >>> teacher = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> moved_turned_and_scaled = teacher @ np.array([[0.0, 1.0], [-1.0, 0.0]]) * 3.0 + 5.0
    >>> loss = keras_kd.losses.RelationalKD()
    >>> round(float(loss(teacher, moved_turned_and_scaled)), 6)
    0.0
    >>> round(float(loss(teacher, np.array([[0.0], [1.0], [2.0]]))), 4)
    8.274

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019 (https://arxiv.org/abs/1904.05068), both
    losses; the weights are those of mdistiller (https://github.com/megvii-research/mdistiller).
    """

    def __init__(self, distance=25.0, angle=50.0, **kwargs):
        super().__init__(**kwargs)
        self.distance = require_number(distance, "distance", at_least=0.0)
        self.angle = require_number(angle, "angle", at_least=0.0)

    def call(self, teacher, student):
        # (batch, ...) x2 -> (batch,)
        teacher, student = (ops.cast(_distances(_vectors(x)), student.dtype) for x in (teacher, student))
        values = self.distance * ops.mean(_huber(teacher - student), axis=-1)
        if self.angle == 0.0:
            return values
        return values + self.angle * ops.mean(_huber(_angles(teacher) - _angles(student)), axis=(-2, -1))


def _vectors(output):
    # (batch, ...) -> (batch, features)
    return ops.reshape(output, (ops.shape(output)[0], -1))


def _distances(features):
    """Euclidean distances in units of the mean distance of two different examples, `(batch, batch)` float64."""
    # float64: squared distances are differences, of which near neighbours would keep no digit in TF32.
    features = ops.cast(features, "float64")
    features = features - ops.mean(features, axis=0, keepdims=True)
    products = ops.matmul(features, ops.transpose(features))
    norms = ops.expand_dims(ops.diagonal(products), 0)
    norms = norms + ops.transpose(norms)
    squares = norms - 2.0 * products
    apart = squares > _ROUNDING * norms
    distances = ops.where(apart, ops.sqrt(ops.where(apart, squares, ops.ones_like(squares))), ops.zeros_like(squares))
    batch = ops.cast(ops.shape(features)[0], "float64")
    mean = ops.sum(distances) / ops.maximum(batch * (batch - 1.0), 1.0)
    return distances / ops.where(mean > 0.0, mean, ops.ones_like(mean))


def _angles(distances):
    """Cosines of the angles at i between j and k, `(batch, batch, batch)`, by the law of cosines; 0 at no distance."""
    apart = distances > 0.0
    inverse = ops.where(apart, 1.0 / ops.where(apart, distances, ops.ones_like(distances)), ops.zeros_like(distances))
    squares = ops.square(distances)
    difference = ops.expand_dims(squares, 2) + ops.expand_dims(squares, 1) - ops.expand_dims(squares, 0)
    return difference * ops.expand_dims(0.5 * inverse, 2) * ops.expand_dims(inverse, 1)


def _huber(difference):
    size = ops.abs(difference)
    return ops.where(size < 1.0, 0.5 * ops.square(size), size - 0.5)


def _products(features):
    # (batch, features) -> (batch, batch)
    return ops.matmul(features, ops.transpose(features))


def _row_differences(teacher, student):
    """Mean squared difference of each row: `(batch, batch)` x2 -> `(batch,)`; its mean is `‖G^t − G^s‖² / batch²`."""
    return ops.mean(ops.square(teacher - student), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class SimilarityPreserving(RelationLoss):
    """Similarity-preserving distillation (SP): examples that the teacher finds alike are alike to the student.

    `L = ‖G^t − G^s‖² / batch²`, with `G = A Aᵀ` of the features A of a batch, each row of G divided by its l2 norm. The
    value of example i is that of row i, `mean_j (G_ij^t − G_ij^s)²`. The entries of G are about 1/√batch, so that L is
    small: a weight of 3,000 is usual.

    Args:
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Batches, call arguments and errors are as for `RelationalKD`.

    Example:

    >>> teacher = np.array([[1.0, 0.0], [0.0, 1.0]])  # nothing in common: G is [[1, 0], [0, 1]]
    >>> student = np.array([[1.0], [1.0]])  # the same: every entry of G is 1/√2
    >>> round(float(keras_kd.losses.SimilarityPreserving()(teacher, student)), 4)
    0.2929

    Reference: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1907.09682).
    """

    def call(self, teacher, student):
        # (batch, ...) x2 -> (batch,)
        return _row_differences(*(unit(_products(_vectors(output))) for output in (teacher, student)))


@keras.saving.register_keras_serializable(package="keras_kd")
class CorrelationCongruence(RelationLoss):
    """Correlation congruence (CC): examples are as near to each other, by a Gaussian kernel, as for the teacher.

    `L = ‖K^t − K^s‖² / batch²`, with `K_ij = exp(−2γ) Σ_p (2γ)^p / p! · (x_i · x_j)^p`, p from 0 to `order`, of the
    features x of an example divided by their l2 norm. That is the Taylor expansion of `exp(−γ ‖x_i − x_j‖²)`; with
    `order=1`, K is the bilinear kernel `x_i · x_j` but for a factor and a constant. The value of example i is that of
    row i.

    Args:
        gamma: γ > 0; the larger, the less do distant examples count. 0.4 is usual.
        order: The highest power, at least 1. 2 is usual.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Batches, call arguments and errors are as for `RelationalKD`.

    Example:

    >>> teacher = np.array([[1.0, 0.0], [0.0, 1.0]])  # nothing in common: K_12 is exp(−0.8)
    >>> student = np.array([[1.0], [1.0]])  # the same: K_12 is exp(−0.8) (1 + 0.8 + 0.8²/2)
    >>> round(float(keras_kd.losses.CorrelationCongruence()(teacher, student)), 4)
    0.1266

    Reference: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1904.01802), its correlation loss with the Gaussian kernel.
    """

    def __init__(self, gamma=0.4, order=2, **kwargs):
        super().__init__(**kwargs)
        self.gamma = require_number(gamma, "gamma", above=0.0, hint="0.4 is usual.")
        self.order = require_count(order, "order", at_least=1)

    def call(self, teacher, student):
        # (batch, ...) x2 -> (batch,)
        return _row_differences(*(self._kernel(_vectors(output)) for output in (teacher, student)))

    def _kernel(self, features):
        # (batch, features) -> (batch, batch)
        cosines = _products(unit(features))
        term, kernel = ops.ones_like(cosines), ops.ones_like(cosines)
        for power in range(1, self.order + 1):
            term = term * cosines * (2.0 * self.gamma / power)
            kernel = kernel + term
        return math.exp(-2.0 * self.gamma) * kernel


@keras.saving.register_keras_serializable(package="keras_kd")
class ContrastiveKD(ProjectedFeatureLoss):
    """Contrastive distillation: the student's vector is nearest to the teacher's vector of the same example.

    With the cosines `c_ij = cos(r(student_i), teacher_j)`, the InfoNCE loss `L_i = −log softmax_j(c_ij / T)_i`, in
    nats: the other examples of the batch are the negatives. If `symmetric`, the mean of that and of the reverse
    direction, `−log softmax_j(c_ji / T)_i`. r is as in `Hint`. It is a cross-entropy, whose least value is not 0; in a
    batch of one it is 0, without a gradient.

    This is contrastive representation distillation with negatives from the batch, not with the published memory bank of
    16,384 negatives and its noise-contrastive estimate: give it large batches. Duplicates in a batch count as
    negatives. Over several replicas the negatives are those of the whole batch.

    Args:
        temperature: T > 0; 0.05 to 0.5 is usual. Kept in a variable, `loss.temperature`, which callbacks may assign.
        symmetric: Whether the reverse direction counts as well.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: `(batch, features)`.

    Raises:
        ValueError: `temperature` is not > 0; an output is not `(batch, features)`; the widths differ outside of a
            `Distiller`.

    Example:

    >>> teacher = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = keras_kd.losses.ContrastiveKD(temperature=0.5)
    >>> round(float(loss(teacher, teacher)), 4), round(float(loss(teacher, teacher[::-1])), 4)
    (0.1269, 2.1269)

    Reference: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020
    (https://arxiv.org/abs/1910.10699).
    """

    vectors_only = True
    relates_examples = True
    temperature = Hyperparameter(above=0.0, hint="0.05 to 0.5 is usual.")

    def __init__(self, temperature=0.1, *, symmetric=True, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.symmetric = require_flag(symmetric, "symmetric")

    def call(self, teacher, student):
        # (batch, features) x2 -> (batch,) nats
        cosines = ops.matmul(unit(student), ops.transpose(unit(teacher)))
        logits = cosines / ops.cast(self.temperature, cosines.dtype)
        axes = (-1, 0) if self.symmetric else (-1,)
        return -sum(ops.diagonal(ops.log_softmax(logits, axis=axis)) for axis in axes) / len(axes)
