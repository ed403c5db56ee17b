"""Losses of Keras as distillation losses, and what a `Distiller` accepts as its losses."""

import keras

from keras_kd.losses.base import DistillationLoss, snake_case
from keras_kd.losses.logits import SoftLabels


@keras.saving.register_keras_serializable(package="keras_kd")
class KerasLoss(DistillationLoss):
    """Any `keras.losses.Loss` or `keras.distillation.DistillationLoss` as a loss.

    A `Distiller` wraps those that it is given by itself; wrap one by hand to give it a weight, an output or layers.

    A `Loss` gets the teacher's output as `y_true` and the student's as `y_pred`, as the models give them. Its values
    are per sample, so masks and sample weights act. A `DistillationLoss` gets both outputs, or the layers that it
    names, and gives one number a batch: masks do not act on it, and sample weights only by their mean.

    Args:
        loss: The loss.
        teacher_layer, student_layer: Layers to compare in place of the outputs.
        weight: wᵢ ≥ 0, this loss's weight beside other losses.
        output: Name, dict key or index of the output that is compared; `None`: every output, values summed.
        name: Name in the logs; the loss's own unless given.
        reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        TypeError: `loss` is neither.

    Example:

    >>> loss = keras_kd.losses.KerasLoss(keras.losses.MeanAbsoluteError(), weight=0.5)
    >>> float(loss(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
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


def loss_list(distillation_losses):
    """The `DistillationLoss`s of an argument: one, a list of them, losses of Keras among them, or None for `SoftLabels()`."""
    if distillation_losses is None:
        distillation_losses = [SoftLabels()]
    distillation_losses = (
        list(distillation_losses) if isinstance(distillation_losses, (list, tuple)) else [distillation_losses]
    )
    distillation_losses = [_as_loss(loss) for loss in distillation_losses]
    if not distillation_losses:
        raise ValueError(
            "losses must be at least one, got an empty list. keras_kd.losses.SoftLabels() is the usual one."
        )
    _require_distinct_names(distillation_losses)
    unreduced = [loss.name for loss in distillation_losses if loss.reduction in ("none", None)]
    if unreduced:
        raise ValueError(
            f"losses must each give one number, but {unreduced} have reduction=None. Use 'sum_over_batch_size'."
        )
    return distillation_losses


def _as_loss(loss):
    """The loss, or a loss of Keras as one."""
    if isinstance(loss, DistillationLoss):
        return loss
    if isinstance(loss, (keras.losses.Loss, keras.distillation.DistillationLoss)):
        return KerasLoss(loss)
    raise TypeError(
        "losses must be a keras_kd.losses.DistillationLoss, a keras.losses.Loss or a list of them, got "
        f"{type(loss).__name__}: {loss!r}. keras_kd.losses.SoftLabels(temperature=4.0) is the usual one."
    )


def _require_distinct_names(distillation_losses):
    """Raise ValueError if two values would stand under one name in the logs or among the hyperparameters."""
    names = ["loss", "hard_loss", "soft_weight", "hard_weight"]
    for loss in distillation_losses:
        names += [loss.name, *(f"{loss.name}_{name}" for name in loss.hyperparameters())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"losses must come each with its own name, but with {[loss.name for loss in distillation_losses]} the "
            f"logs would hold {twice[0]!r} twice. Give other names with name=."
        )
