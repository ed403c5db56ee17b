"""Objectives over how the examples of a batch relate to each other: correlations, distances and angles."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd._keras_private import get_mask
from keras_kd.objectives.features import FeatureObjective
from keras_kd.objectives.tempered import TemperedObjective

_LEAST = 1e-8  # keeps the correlation of something constant finite
_ROUNDING = 1e-12  # squared distances below this share of the squared norms are rounding, in float64


@keras.saving.register_keras_serializable(package="keras_kd")
class DIST(TemperedObjective):
    """Distillation from a stronger teacher (DIST): `L = T² · (β · (1 − ρ_classes) + γ · (1 − ρ_batch))`.

    With `p = softmax(teacher / T)` and `q = softmax(student / T)`, ρ_classes is the Pearson correlation of p and q over
    the classes, one value an example, and ρ_batch that over the examples of the batch, averaged over the classes. The
    student has to rank as the teacher does, classes within an example and examples within a class, not to match it.

    ρ_batch belongs to the whole batch: every example's value holds it. Give it batches of 64 or more; over several
    replicas it is each replica's own.

    Args:
        beta: β ≥ 0, weight of the relation between classes.
        gamma: γ ≥ 0, weight of the relation between examples.
        temperature: T > 0. Kept in a variable, `objective.temperature`.
        weight, output, name, reduction, dtype: As in `Divergence`.

    Call arguments:
        teacher: Logits `(batch, classes)`.
        student: Logits of the same shape.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range; the shapes differ, or are those of sequences.

    Example:

    >>> teacher, student = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> objective = keras_kd.DIST()
    >>> round(float(objective(teacher, student)), 6), round(float(objective(teacher, -student)), 6)
    (0.0, 4.0)

    Reference: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (https://arxiv.org/abs/2205.10536), equation 10.
    """

    undoes = "softmax"
    scales_with_temperature = True

    def __init__(self, beta=1.0, gamma=1.0, *, temperature=1.0, **options):
        super().__init__(temperature, **options)
        self.beta = require_number(beta, "beta", at_least=0.0)
        self.gamma = require_number(gamma, "gamma", at_least=0.0)

    def check_shapes(self, teacher_shape, student_shape):
        super().check_shapes(teacher_shape, student_shape)
        if len(student_shape) != 2:
            raise ValueError(
                f"{self.name} relates the examples of (batch, classes), but the student gives {student_shape}."
            )

    def call(self, teacher, student):
        # (batch, classes) x2 -> (batch,)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        temperature = ops.cast(self.temperature, teacher.dtype)
        teacher, student = (ops.softmax(logits / temperature, axis=-1) for logits in (teacher, student))
        between_classes = 1.0 - correlation(teacher, student, axis=-1)
        between_examples = 1.0 - ops.mean(correlation(teacher, student, axis=0))
        return ops.square(temperature) * (self.beta * between_classes + self.gamma * between_examples)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta, "gamma": self.gamma}


def correlation(first, second, axis):
    """Pearson's correlation along an axis; 0 where one side is constant."""
    first, second = (x - ops.mean(x, axis=axis, keepdims=True) for x in (first, second))
    squares = ops.sum(ops.square(first), axis=axis) * ops.sum(ops.square(second), axis=axis)
    return ops.sum(first * second, axis=axis) / ops.sqrt(ops.maximum(squares, _LEAST**2))


class RelationObjective(FeatureObjective):
    """Base class of the objectives over how the features of the examples of a batch relate to each other.

    A signal of any shape counts as one vector an example; widths may differ, since examples are only compared with
    examples of the same model. Relations belong to the whole batch: give it batches of 64 or more; over several
    replicas they are each replica's own. A subclass implements `compare(teacher, student)`.

    Args:
        options: `teacher_layer`, `student_layer`, `weight`, `output`, `teacher_output`, `name`, `reduction`, `dtype`:
            as in `Objective`.
    """

    def __init__(self, **options):
        super().__init__(**options)

    def rank_of_values(self, signal_rank):
        return 1

    def __call__(self, teacher, student, sample_weight=None):
        if get_mask(student) is not None:
            raise ValueError(
                f"{self.name} relates whole examples, but the student gives masked tokens {tuple(student.shape)}. Pool "
                "them first, for instance with keras.layers.GlobalAveragePooling1D, and name that layer."
            )
        return super().__call__(teacher, student, sample_weight)

    def check_shapes(self, teacher_shape, student_shape):
        batches = {shape[0] for shape in (teacher_shape, student_shape) if shape} - {None}
        if len(teacher_shape) < 2 or len(student_shape) < 2 or len(batches) > 1:
            raise ValueError(
                f"{self.name} relates the same examples by their features, (batch, ..., features), but "
                f"{self.both(teacher_shape, student_shape)}."
            )

    def call(self, teacher, student):
        # (batch, ...) x2 -> (batch,)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return self.compare(_one_vector_each(teacher), _one_vector_each(student))

    def compare(self, teacher, student):
        """One value an example, `(batch,)`, of features `(batch, teacher_features)` and `(batch, student_features)`."""
        raise NotImplementedError(f"{type(self).__name__} must implement compare(teacher, student).")


@keras.saving.register_keras_serializable(package="keras_kd")
class RelationalKD(RelationObjective):
    """Relational knowledge distillation (RKD): examples lie to each other as they do for the teacher.

    `L = distance · mean_ij h(d_ij^t − d_ij^s) + angle · mean_ijk h(cos_ijk^t − cos_ijk^s)`. d_ij is the Euclidean
    distance of examples i and j, divided by the mean distance of two different examples; cos_ijk is the cosine of the
    angle at i between j and k; h is the Huber loss, δ = 1. As in the published code, the means are over all pairs and
    triples, of an example with itself too. An example's own value is the mean over those whose i it is.

    All that `RelationObjective` says of shapes, batches and replicas holds. The angles of a batch are batch³ numbers:
    with 512 examples 0.5 GB, several times over. `angle=0` leaves them out.

    Args:
        distance: Weight ≥ 0 of the distances.
        angle: Weight ≥ 0 of the angles.
        teacher_layer, student_layer: The layers to compare, as in `Objective`; not given, the outputs are.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output, teacher_output, name, reduction, dtype: As in `Objective`.

    Call arguments:
        teacher: `(batch, ..., features)`.
        student: Features of the same examples, of any shape.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is negative; a signal has no features, or is one of masked tokens.

    Example:

    >>> teacher = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> moved_turned_and_scaled = teacher @ np.array([[0.0, 1.0], [-1.0, 0.0]]) * 3.0 + 5.0
    >>> objective = keras_kd.RelationalKD()
    >>> round(float(objective(teacher, moved_turned_and_scaled)), 6)
    0.0
    >>> round(float(objective(teacher, np.array([[0.0], [1.0], [2.0]]))), 4)
    8.274

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019 (https://arxiv.org/abs/1904.05068), both
    losses; the weights are those of mdistiller (https://github.com/megvii-research/mdistiller).
    """

    def __init__(self, distance=25.0, angle=50.0, **options):
        super().__init__(**options)
        self.distance = require_number(distance, "distance", at_least=0.0)
        self.angle = require_number(angle, "angle", at_least=0.0)

    def compare(self, teacher, student):
        # (batch, features) x2 -> (batch,)
        teacher, student = (ops.cast(_distances(features), student.dtype) for features in (teacher, student))
        values = self.distance * ops.mean(_huber(teacher - student), axis=-1)
        if self.angle == 0.0:
            return values
        return values + self.angle * ops.mean(_huber(_angles(teacher) - _angles(student)), axis=(-2, -1))

    def get_config(self):
        return {**super().get_config(), "distance": self.distance, "angle": self.angle}


def _one_vector_each(signal):
    # (batch, ...) -> (batch, features)
    return ops.reshape(signal, (ops.shape(signal)[0], -1))


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
