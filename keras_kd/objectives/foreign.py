"""Losses of Keras as objectives."""

import keras

from keras_kd.objectives.base import Objective, snake_case


@keras.saving.register_keras_serializable(package="keras_kd")
class KerasLoss(Objective):
    """Any `keras.losses.Loss` or `keras.distillation.DistillationLoss` as an objective.

    A `Distiller` wraps those that it is given by itself; wrap one by hand to give it a weight, an output or layers.

    A `Loss` gets the teacher's signal as `y_true` and the student's as `y_pred`, as the models give them. Its values
    are per sample, so masks and sample weights act. A `DistillationLoss` gets both outputs, or the layers that it
    names, and gives one number a batch: masks do not act on it, and sample weights only by their mean.

    Args:
        loss: The loss.
        teacher_layer, student_layer: Layers to compare in place of the outputs.
        weight: wᵢ ≥ 0, this objective's weight beside other objectives.
        output: Name, dict key or index of the output that is compared; `None`: every output, values summed.
        name: Name in the logs; the loss's own unless given.
        reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        TypeError: `loss` is neither.

    Example:

    >>> objective = keras_kd.KerasLoss(keras.losses.MeanAbsoluteError(), weight=0.5)
    >>> float(objective(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    1.5
    """

    def __init__(self, loss, *, teacher_layer=None, student_layer=None, name=None, **options):
        if not isinstance(loss, (keras.losses.Loss, keras.distillation.DistillationLoss)):
            raise TypeError(
                "loss must be a keras.losses.Loss or a keras.distillation.DistillationLoss, got "
                f"{type(loss).__name__}: {loss!r}."
            )
        super().__init__(
            teacher_layer=teacher_layer or getattr(loss, "teacher_layer_name", None),
            student_layer=student_layer or getattr(loss, "student_layer_name", None),
            name=name or getattr(loss, "name", None) or snake_case(type(loss).__name__),
            **options,
        )
        self.loss = loss

    def call(self, teacher, student):
        # (batch, ...) x2 -> (batch, ...), or () from a DistillationLoss
        if isinstance(self.loss, keras.losses.Loss):
            return self.loss.call(teacher, student)
        return self.loss.compute_loss(teacher, student)

    def get_config(self):
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
