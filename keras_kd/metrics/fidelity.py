"""Metrics of fidelity: how near the student comes to the teacher."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd.losses.base import require_same_classes, snake_case
from keras_kd.losses.logits import kl_divergence
from keras_kd.metrics.example_metric import ExampleMetric


class FidelityMetric(ExampleMetric):
    """Base class of the metrics that compare the student with the teacher: a weighted mean over examples (tokens).

    They get the teacher's logits where other metrics get the labels. A subclass implements `compare(teacher, student)`,
    which returns one value per example, or per token for sequences.

    The mean is Σ w v / Σ w. w is 1, times the sample weight where there is one (Keras hands sample weights to
    `weighted_metrics`, not to `metrics`), and 0 for what the student's Keras mask leaves out. 0 before the first batch.

    Args:
        name: Name in the logs. Defaults to the class name in snake case.
        dtype: "float32", or "float64" to count more than 16 million tokens exactly. Outputs in half precision are
            cast to it.

    Call arguments:
        teacher: Logits `(batch, classes)`, or `(batch, length, classes)` for sequences.
        student: Logits of the same shape; its Keras mask counts.
        sample_weight: `(batch,)` or `(batch, length)`, or None.

    Attributes:
        needs_teacher: True: to be given the teacher's logits in place of the labels.

    Raises:
        ValueError: `dtype` is another one; teacher and student differ in rank or classes.

    Example:

    >>> class LogitsMAE(keras_kd.metrics.FidelityMetric):
    ...     def compare(self, teacher, student):
    ...         return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)
    >>> mae = LogitsMAE()
    >>> mae.update_state(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]]))
    >>> mae.name, float(mae.result())
    ('logits_mae', 1.5)
    """

    needs_teacher = True

    def __init__(self, *, name=None, dtype="float32"):
        super().__init__(name=name or snake_case(type(self).__name__), dtype=dtype)
        self.total = self.add_sum("total")
        self.weight = self.add_sum("weight")

    def compare(self, teacher, student):
        """One value per example, or per token: `(batch, ..., classes) x2 -> (batch, ...)`."""
        raise NotImplementedError(f"{type(self).__name__} must implement compare(teacher, student).")

    def update_state(self, teacher, student, sample_weight=None):
        teacher = ops.cast(ops.convert_to_tensor(teacher), self.dtype)
        student, weights = self.outputs_and_weights(student, sample_weight)
        require_same_classes(self.name, tuple(teacher.shape), tuple(student.shape))
        # What weighs nothing may hold anything: 0 times the NaN of a padded token would be NaN.
        values = weights * ops.cast(self.compare(teacher, student), self.dtype)
        values = ops.where(weights == 0, ops.zeros_like(values), values)
        self.total.assign_add(ops.sum(values))
        self.weight.assign_add(ops.sum(weights))

    def result(self):
        return ops.divide_no_nan(self.total, self.weight)


@keras.saving.register_keras_serializable(package="keras_kd")
class Agreement(FidelityMetric):
    """Share of examples (tokens) where student and teacher choose the same class, in [0, 1]: higher is better.

    Of equal logits the first counts as chosen. Arguments, weights, masks and errors: as `FidelityMetric`.

    Example:

    >>> agreement = keras_kd.metrics.Agreement()
    >>> agreement.update_state(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [3.0, 0.0]]))
    >>> float(agreement.result())
    0.5

    Reference: Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021
    (https://arxiv.org/abs/2106.05945), where it is called average top-1 agreement.
    """

    def __init__(self, *, name="agreement", dtype="float32"):
        super().__init__(name=name, dtype=dtype)

    def compare(self, teacher, student):
        # (batch, ..., classes) x2 -> (batch, ...) 0 or 1
        return ops.equal(ops.argmax(teacher, axis=-1), ops.argmax(student, axis=-1))


@keras.saving.register_keras_serializable(package="keras_kd")
class MeanKL(FidelityMetric):
    """Mean of KL(teacher ‖ student) = Σ_c p_c (log p_c − log q_c), in nats: lower is better, 0 at best.

    `p = softmax(teacher / T)` and `q = softmax(student / T)`, in log space, so that it is finite at logits of ±1e4. It
    is `SoftLabels(temperature=T)` without the factor T². All else: as `FidelityMetric`.

    Args:
        temperature: T > 0; at 1, the distributions that the models predict with.
        name, dtype: As in `FidelityMetric`.

    Raises:
        TypeError: `temperature` is not a number.
        ValueError: `temperature` is not > 0 or not finite; and as `FidelityMetric`.

    Example:

    >>> kl = keras_kd.metrics.MeanKL(temperature=2.0)
    >>> kl.update_state(np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 0.0, 0.0]]))
    >>> float(kl.result())
    0.1926...
    """

    lower_is_better = True

    def __init__(self, temperature=1.0, *, name="kl", dtype="float32"):
        super().__init__(name=name, dtype=dtype)
        self.temperature = require_number(temperature, "temperature", above=0.0)

    def compare(self, teacher, student):
        # (batch, ..., classes) x2 -> (batch, ...) nats
        logs = (ops.log_softmax(logits / self.temperature, axis=-1) for logits in (teacher, student))
        return kl_divergence(*logs)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
