"""Objectives that tell an example from the others of its batch."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd.objectives.base import scalar_variable
from keras_kd.objectives.features import ProjectedObjective, unit


@keras.saving.register_keras_serializable(package="keras_kd")
class ContrastiveKD(ProjectedObjective):
    """Contrastive distillation: of all examples of a batch, the student's vector is nearest to the teacher's own.

    With the cosines `c_ij = cos(r(student_i), teacher_j)`, the InfoNCE loss `L_i = −log softmax_j(c_ij / T)_i`, in
    nats: the other examples of the batch are the negatives. If `symmetric`, the mean of that and of the reverse, in
    which the teacher's vector looks for the student's: `−log softmax_j(c_ji / T)_i`. r is as in `Hint`. It is a
    cross-entropy, whose least value is not 0; in a batch of one it is 0, and teaches nothing.

    This is contrastive representation distillation with negatives from the batch, not with the published memory bank of
    16,384 negatives and its noise-contrastive estimate: give it large batches. Equal examples in a batch are taken for
    different ones. Over several replicas the negatives are each replica's own.

    Args:
        temperature: T > 0; 0.05 to 0.5 is usual. Kept in a variable, `objective.temperature`.
        symmetric: Whether the teacher's vectors also have to tell the student's apart.
        teacher_layer, student_layer: The layers to compare, as in `Objective`; not given, the outputs are.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output, teacher_output, name, reduction, dtype: As in `Objective`.

    Call arguments:
        teacher: `(batch, features)`.
        student: The same shape.

    Raises:
        TypeError: `temperature` or `weight` is not a number, or `symmetric` no bool.
        ValueError: `temperature` is not > 0; `weight` is negative; a signal is not `(batch, features)`; the widths
            differ outside a `Distiller`.

    Example:

    >>> teacher = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> objective = keras_kd.ContrastiveKD(temperature=0.5)
    >>> round(float(objective(teacher, teacher)), 4), round(float(objective(teacher, teacher[::-1])), 4)
    (0.1269, 2.1269)

    Reference: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020
    (https://arxiv.org/abs/1910.10699).
    """

    of_vectors = True

    def __init__(self, temperature=0.1, *, symmetric=True, **options):
        super().__init__(**options)
        temperature = require_number(temperature, "temperature", above=0.0, hint="0.05 to 0.5 is usual.")
        self.temperature = scalar_variable(temperature, "temperature")
        if not isinstance(symmetric, bool):
            raise TypeError(f"symmetric must be True or False, got {symmetric!r}.")
        self.symmetric = symmetric

    def hyperparameters(self):
        return {**super().hyperparameters(), "temperature": self.temperature}

    def call(self, teacher, student):
        # (batch, features) x2 -> (batch,) nats
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        cosines = ops.matmul(unit(student), ops.transpose(unit(teacher)))
        logits = cosines / ops.cast(self.temperature, cosines.dtype)
        axes = (-1, 0) if self.symmetric else (-1,)
        return -sum(ops.diagonal(ops.log_softmax(logits, axis=axis)) for axis in axes) / len(axes)

    def get_config(self):
        return {**super().get_config(), "symmetric": self.symmetric}
