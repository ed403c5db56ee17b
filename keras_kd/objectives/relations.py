"""Objectives over how the examples of a batch relate to each other."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd.objectives.tempered import TemperedObjective

_LEAST = 1e-8  # keeps the correlation of something constant finite


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
