"""Objectives over the distributions of the model's outputs."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd.objectives.base import Objective, scalar_variable


@keras.saving.register_keras_serializable(package="keras_kd")
class SoftLabels(Objective):
    """Soft labels: KL divergence from the teacher's to the student's temperature-softened distribution, times T².

    `L = T² · Σ_c p_c (log p_c − log q_c)` with `p = softmax(teacher / T)` and `q = softmax(student / T)`, in nats. The
    factor T² keeps the gradient's scale when T changes. Computed in log space and in float32, so that it is finite,
    with a useful gradient, at logits of ±1e4.

    A model that ends in softmax hands out probabilities, not logits. Inside a `Distiller` that is noticed where the
    model's last layer or activation tells (functional and sequential models), and the log of the probabilities is
    taken instead: `softmax(log p / T)` equals `softmax(logits / T)`. Called by itself, an objective takes logits.

    Args:
        temperature: T > 0; 2 to 8 is usual. Kept in a variable, `objective.temperature`.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output: Name, dict key or index of the output that is compared; `None`: every output, values summed.
        name: Name in the logs.
        reduction, dtype: As in `keras.losses.Loss`.

    Call arguments:
        teacher: Logits `(batch, classes)`, or `(batch, length, classes)` for sequences.
        student: Logits of the same shape. Its Keras mask, if any, leaves padded tokens out.

    Raises:
        TypeError: `temperature` or `weight` is not a number.
        ValueError: `temperature` is not > 0 or not finite; `weight` is negative; the numbers of classes differ.

    Example:

    >>> objective = keras_kd.SoftLabels(temperature=2.0)
    >>> float(objective(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.7706...

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), section 2.
    """

    of_logits = True

    def __init__(
        self,
        temperature=4.0,
        *,
        weight=1.0,
        output=None,
        name=None,
        reduction="sum_over_batch_size",
        dtype="float32",
    ):
        super().__init__(weight=weight, output=output, name=name, reduction=reduction, dtype=dtype)
        temperature = require_number(temperature, "temperature", above=0.0, hint="2 to 8 is usual.")
        self.temperature = scalar_variable(temperature, "temperature")

    def hyperparameters(self):
        return {**super().hyperparameters(), "temperature": self.temperature}

    def check_shapes(self, teacher_shape, student_shape):
        require_same_classes(self.name, teacher_shape, student_shape)

    def call(self, teacher, student):
        # (..., classes) x2 -> (...) nats
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        temperature = ops.cast(self.temperature, teacher.dtype)
        teacher_log = ops.log_softmax(teacher / temperature, axis=-1)
        student_log = ops.log_softmax(student / temperature, axis=-1)
        divergence = ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)
        return ops.square(temperature) * divergence

    def get_config(self):
        return {**super().get_config(), "output": self.output}


def require_same_classes(objective_name, teacher_shape, student_shape):
    """Raise ValueError unless both shapes have the same rank and the same number of classes, at least two."""
    shapes = f"the teacher gives {teacher_shape}, the student {student_shape}"
    if len(teacher_shape) != len(student_shape):
        raise ValueError(f"{objective_name} compares logits of equal rank, but {shapes}.")
    teacher_classes, student_classes = teacher_shape[-1], student_shape[-1]
    if None not in (teacher_classes, student_classes) and teacher_classes != student_classes:
        raise ValueError(
            f"{objective_name} needs the same number of classes on both sides, but {shapes}. "
            "Give the student a last layer of the teacher's width, or name the output to compare with output=."
        )
    if student_classes == 1:
        raise ValueError(
            f"{objective_name} compares distributions over at least 2 classes, but {shapes}. "
            "For one sigmoid unit, give both models two outputs and a softmax."
        )
