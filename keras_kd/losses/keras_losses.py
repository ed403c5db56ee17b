"""Losses of Keras as distillation losses, and what a `Distiller` accepts as its losses."""

import keras

from keras_kd._keras_private import loss_function, sparse_label_options
from keras_kd.losses.base import DistillationLoss, differ, loss_from_config, snake_case
from keras_kd.losses.logits import SoftLabels


@keras.saving.register_keras_serializable(package="keras_kd")
class KerasLoss(DistillationLoss):
    """Any `keras.losses.Loss` or `keras.distillation.DistillationLoss` as a distillation loss.

    A `Distiller` wraps those that it gets; wrap one yourself to give it a weight, an output or layers.

    A `Loss` gets the teacher's output as `y_true` and the student's as `y_pred`, as the models give them, of one shape
    (but for the class ids of a sparse loss). Its values are per sample, so masks and sample weights apply. A
    `DistillationLoss` gets both outputs, or the layers that it names, and gives one number per batch: masks do not
    apply, and sample weights only by their mean.

    Losses over probabilities, such as `keras.losses.KLDivergence`, are refused for models that are known to end in
    logits, and those with `from_logits=True` for a student that ends in softmax or sigmoid: `SoftLabels` takes either.

    Args:
        loss: The loss.
        teacher_layer, student_layer: The layers to compare; `None`: those that the loss names, or the models' outputs.
        name, reduction, dtype: Those of the loss unless given.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Raises:
        TypeError: `loss` is neither.
        ValueError: When called, the shapes of the outputs differ.

    Example:

    >>> loss = keras_kd.losses.KerasLoss(keras.losses.MeanAbsoluteError(), weight=0.5)
    >>> float(loss(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    1.5
    """

    def __init__(
        self, loss, *, teacher_layer=None, student_layer=None, name=None, reduction=None, dtype=None, **kwargs
    ):
        if not isinstance(loss, (keras.losses.Loss, keras.distillation.DistillationLoss)):
            raise TypeError(
                "loss must be a keras.losses.Loss or a keras.distillation.DistillationLoss, got "
                f"{type(loss).__name__}: {loss!r}."
            )
        self._is_loss = isinstance(loss, keras.losses.Loss)
        super().__init__(
            teacher_layer=teacher_layer or getattr(loss, "teacher_layer_name", None),
            student_layer=student_layer or getattr(loss, "student_layer_name", None),
            name=name or getattr(loss, "name", None) or snake_case(type(loss).__name__),
            reduction=reduction or (loss.reduction if self._is_loss else "sum_over_batch_size"),
            dtype=dtype or (loss.dtype if self._is_loss else "float32"),
            **kwargs,
        )
        self.loss = loss

    def expected_ending(self, side):
        if isinstance(self.loss, keras.distillation.LogitsDistillation):
            return "logits" if isinstance(self.loss.loss, keras.losses.KLDivergence) else None
        expected = expected_ending(self.loss)
        return "probabilities" if expected and side == "teacher" else expected  # y_true is a distribution

    @property
    def _is_sparse(self):
        return sparse_label_options(self.loss)[0]

    def check_shapes(self, teacher_shape, student_shape):
        if not self._is_loss:
            return
        compared = student_shape[:-1] if self._is_sparse and len(teacher_shape) < len(student_shape) else student_shape
        if differ(teacher_shape, compared):
            way_out = (
                "Name outputs or layers of one shape; for other shapes, subclass keras_kd.losses.DistillationLoss."
            )
            raise self.shape_error("compares outputs of one shape", teacher_shape, student_shape, way_out)

    def compared_axes(self, rank):
        return range(rank - int(self._is_sparse)) if self._is_loss else ()

    def call(self, teacher, student):
        # (batch, ...) x2 -> (batch, ...), or () from a DistillationLoss
        return self.loss.call(teacher, student) if self._is_loss else self.loss.compute_loss(teacher, student)

    def get_config(self):
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": loss_from_config(config["loss"])})


# Losses of Keras whose y_pred is probabilities, unless they are called with from_logits=True.
_OVER_PROBABILITIES = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.categorical_generalized_cross_entropy,
    keras.losses.dice,
    keras.losses.kl_divergence,
    keras.losses.poisson,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.tversky,
)


def expected_ending(loss):
    """What a loss or function of `keras.losses` expects as `y_pred`: "logits", "probabilities", or None if unknown."""
    function, options = loss_function(loss)
    if not any(function is known for known in _OVER_PROBABILITIES):
        return None
    return "logits" if options.get("from_logits") else "probabilities"


def loss_list(distillation_losses):
    """The `DistillationLoss`es of an argument: a loss or a list of losses, Keras's among them; None: `SoftLabels()`."""
    if distillation_losses is None:
        return [SoftLabels()]
    given = distillation_losses if isinstance(distillation_losses, (list, tuple)) else [distillation_losses]
    if not given:
        raise ValueError(
            "distillation_losses must be at least one, got an empty list. "
            "keras_kd.losses.SoftLabels() is the usual one."
        )
    for loss in given:
        if not isinstance(loss, (keras.losses.Loss, keras.distillation.DistillationLoss)):
            raise TypeError(
                "distillation_losses must be a keras_kd.losses.DistillationLoss, a keras.losses.Loss or a list of "
                f"them, got {type(loss).__name__}: {loss!r}. keras_kd.losses.SoftLabels(temperature=4.0) is usual."
            )
    losses = [loss if isinstance(loss, DistillationLoss) else KerasLoss(loss) for loss in given]
    _require_distinct_names(losses)
    unreduced = [loss.name for loss in losses if loss.reduction in ("none", None)]
    if unreduced:
        raise ValueError(
            f"distillation_losses must each give one number, but {unreduced} have reduction=None. Use "
            "'sum_over_batch_size'."
        )
    return losses


def _require_distinct_names(losses):
    """Raise ValueError if two values would have one name in the logs or among the hyperparameters."""
    names = ["loss", "hard_loss", "soft_weight", "hard_weight"]
    for loss in losses:
        names += [loss.name, *(f"{loss.name}_{name}" for name in loss.hyperparameters())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"distillation_losses must come each with its own name, but with {[loss.name for loss in losses]} the "
            f"logs would hold {twice[0]!r} twice. Give other names with name=."
        )
