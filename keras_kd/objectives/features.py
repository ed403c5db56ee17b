"""Objectives over the outputs of inner layers."""

import keras
from keras import ops

from keras_kd.objectives.base import Objective


@keras.saving.register_keras_serializable(package="keras_kd")
class Hint(Objective):
    """Hint learning (FitNets): the mean squared difference between a layer of the teacher and one of the student.

    `L = mean((teacher − r(student))²)` over the features of a sample (of a token, for sequences). Where the widths
    differ, r is a linear layer that the distiller makes, trains and saves, and leaves behind when the student is
    exported; where they are equal, r is the identity.

    Args:
        teacher_layer: Name of a layer of the teacher, a functional or sequential model.
        student_layer: Name of a layer of the student, likewise.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        name: Name in the logs.
        reduction, dtype: As in `keras.losses.Loss`.

    Call arguments:
        teacher: `(batch, ..., features)`.
        student: The same shape.

    Raises:
        ValueError: `weight` is negative, or the shapes differ in more than the number of features.

    Example:

    >>> hint = keras_kd.Hint(teacher_layer="dense_2", student_layer="dense")
    >>> float(hint(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    2.5

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3 (there ½ of the squared norm, here its mean, so that the weight does not depend on the width).
    """

    def __init__(
        self,
        teacher_layer,
        student_layer,
        *,
        weight=1.0,
        name=None,
        reduction="sum_over_batch_size",
        dtype="float32",
    ):
        super().__init__(
            weight=weight,
            teacher_layer=teacher_layer,
            student_layer=student_layer,
            name=name,
            reduction=reduction,
            dtype=dtype,
        )

    def check_shapes(self, teacher_shape, student_shape):
        ranks_differ = len(teacher_shape) != len(student_shape)
        pairs = zip(teacher_shape[1:], student_shape[1:], strict=False)
        if ranks_differ or any(t != s for t, s in pairs if None not in (t, s)):
            raise ValueError(
                f"{self.name} compares signals of one shape, but teacher layer {self.teacher_layer!r} gives "
                f"{teacher_shape} and student layer {self.student_layer!r} gives {student_shape}. Only the last "
                "dimension may differ, and only inside a Distiller, which then adds a projection."
            )

    def make_projection(self, teacher_shape, student_shape):
        self.check_shapes(teacher_shape[:-1], student_shape[:-1])
        if teacher_shape[-1] == student_shape[-1]:
            return None
        return keras.layers.Dense(teacher_shape[-1], name=f"{self.name}_projection", dtype="float32")

    def call(self, teacher, student):
        # (batch, ..., features) x2 -> (batch, ...)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return ops.mean(ops.square(teacher - student), axis=-1)

    def get_config(self):
        return {**super().get_config(), "teacher_layer": self.teacher_layer, "student_layer": self.student_layer}
