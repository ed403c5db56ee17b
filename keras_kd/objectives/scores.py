"""Objectives over outputs that compare scores one by one or by their correlation, not as distributions that diverge."""

import keras
from keras import ops

from keras_kd.objectives.base import Objective
from keras_kd.objectives.tempered import TemperedObjective, require_same_classes


@keras.saving.register_keras_serializable(package="keras_kd")
class LogitsMSE(Objective):
    """Mean squared difference of the logits: `L = mean_c (t_c − s_c)²`.

    The limit of `SoftLabels` at high temperatures, up to the mean of the logits, which it fits too. Also the objective
    for regression heads: there the outputs are what the models predict.

    Args:
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output: Name, dict key or index of the output that is compared; `None`: every output, values summed.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Call arguments:
        teacher: Logits or predictions `(batch, classes)`, or `(batch, length, classes)`.
        student: The same shape.

    Raises:
        ValueError: `weight` is negative, or the shapes differ.

    Example:

    >>> float(keras_kd.LogitsMSE()(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    2.5

    Reference: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (https://arxiv.org/abs/1312.6184),
    equation 1 (there ½ of the squared norm, here its mean over the classes).
    """

    undoes = "softmax"
    tokenwise = True

    def check_shapes(self, teacher_shape, student_shape):
        require_same_classes(self.name, teacher_shape, student_shape, at_least=1)

    def call(self, teacher, student):
        # (..., classes) x2 -> (...)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return ops.mean(ops.square(teacher - student), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class BinarySoftLabels(TemperedObjective):
    """Soft labels for multi-label heads: the KL divergence of each unit's softened Bernoulli distribution, times T².

    `L = T² · mean_c [p_c log(p_c / q_c) + (1 − p_c) log((1 − p_c) / (1 − q_c))]` with `p = sigmoid(teacher / T)` and
    `q = sigmoid(student / T)`, in nats. In log space throughout.

    A head that ends in sigmoid is turned back into logits where the model tells (functional and sequential models); a
    subclassed model must give logits. Called by itself, the objective takes logits.

    Args:
        temperature: T > 0. Kept in a variable, `objective.temperature`.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output: Name, dict key or index of the output that is compared; `None`: every output, values summed.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Call arguments:
        teacher: Logits `(batch, units)`, or `(batch, length, units)`.
        student: The same shape.

    Raises:
        TypeError: `temperature` or `weight` is not a number.
        ValueError: `temperature` is not > 0; `weight` is negative; the shapes differ.

    Example:

    >>> float(keras_kd.BinarySoftLabels()(np.array([[2.0, -1.0]]), np.array([[0.0, 0.0]])))
    0.2193...

    Reference: Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023 (https://arxiv.org/abs/2308.06453),
    equation 3: the divergence of each label's binary distribution.
    """

    undoes = "sigmoid"
    tokenwise = True
    scales_with_temperature = True
    least_classes = 1

    def call(self, teacher, student):
        # (..., units) x2 -> (...) nats
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        temperature = ops.cast(self.temperature, teacher.dtype)
        divergence = 0.0
        for sign in (1.0, -1.0):  # of the unit being on, of it being off
            teacher_log = ops.log_sigmoid(sign * teacher / temperature)
            student_log = ops.log_sigmoid(sign * student / temperature)
            divergence = divergence + ops.exp(teacher_log) * (teacher_log - student_log)
        return ops.square(temperature) * ops.mean(divergence, axis=-1)
