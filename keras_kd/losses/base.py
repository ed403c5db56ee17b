"""The base classes of the distillation losses: one teacher output, one student output, one value per sample."""

import re

import keras
from keras import ops

from keras_kd._hyperparameters import Hyperparameter, scalar_value


class DistillationLoss(keras.losses.Loss, keras.distillation.DistillationLoss):
    """Base class of the losses: compares one output of the teacher with one of the student.

    A subclass implements `call(teacher, student)`, which returns one value per sample (per token for sequences), and,
    where shapes can disagree, `check_shapes`. Keras then applies masks, sample weights, reduction and dtype, so that
    a loss can also be called by itself: `loss(teacher, student, sample_weight=None)` is the mean over the
    batch.

    Args:
        weight: wᵢ ≥ 0 in `L = L_raw + λ Σ wᵢ Lᵢ`. Kept in a variable, `loss.weight`, which callbacks may assign.
        output: Which model output is compared: its name, its key in a dict, or its index. `None`: every output with
            its counterpart, values summed. Ignored where layers are named.
        teacher_output: The teacher's output, where it is another one than the student's: `None` stands for `output`.
        teacher_layer: The teacher's layer whose output is the teacher output, in place of the model output: its name,
            or as much of its path as tells ("backbone/transformer_layer_3"); a list of them for several pairs of
            layers, values summed.
        student_layer: Likewise of the student.
        reduction: As in `keras.losses.Loss`.
        name: Name in the logs. Defaults to the class name in snake case, e.g. `"soft_labels"`.
        dtype: Dtype of the computation, float32 unless given, whatever the policy of the models.

    Attributes:
        undoes: The output activation that is undone before `call`: `"softmax"` for losses over distributions, which
            get logits `(..., classes)` also from models that end in softmax (the log of the probabilities);
            `"sigmoid"` likewise for independent units; None for outputs as they are.
        parts: Which outputs of a named layer are compared: keys of `keras_kd.outputs.PARTS`.
        needs_labels: True for a `LabelledDistillationLoss`.
        shares_projection: Whether one projection serves all pairs of layers, where each has its own otherwise.
        tokenwise: Whether the value of an example, or of a token, depends on its own outputs and label alone.
        relates_examples: Whether the value of an example depends on the other examples of the batch. Over several
            replicas, each then gets the outputs of all, so that the value is that of the whole batch.
        language_key: The entry of a dict `x` that the loss needs beside the outputs, each example's language; or None.
    """

    weight = Hyperparameter(at_least=0.0)
    undoes = None
    parts = ("output",)
    needs_labels = False
    tokenwise = False
    relates_examples = False
    language_key = None
    shares_projection = False

    def __init__(
        self,
        *,
        weight=1.0,
        output=None,
        teacher_output=None,
        teacher_layer=None,
        student_layer=None,
        reduction="sum_over_batch_size",
        name=None,
        dtype="float32",
    ):
        super().__init__(name=name or snake_case(type(self).__name__), reduction=reduction, dtype=dtype)
        self.output = output
        self.teacher_output = teacher_output
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer
        self._layers = {
            "teacher": _layer_list(teacher_layer, "teacher_layer"),
            "student": _layer_list(student_layer, "student_layer"),
        }
        counts = [len(layers) for layers in self._layers.values()]
        if all(counts) and counts[0] != counts[1]:
            raise ValueError(
                f"teacher_layer and student_layer must name equally many layers, got {counts[0]}: {teacher_layer!r} "
                f"and {counts[1]}: {student_layer!r}."
            )
        self.weight = weight

    def __setattr__(self, name, value):
        if name in self.__dict__.get("_fixed", ()):
            raise AttributeError(
                f"{name} of {self.name!r} cannot be changed once the loss is part of a distiller, whose steps are traced "
                f"with it; what can be changed is {sorted(self.hyperparameters())}. Make a new loss and a new distiller."
            )
        super().__setattr__(name, value)

    def mark_in_use(self):
        """From here on only the hyperparameters can be assigned: called by the distiller that the loss is part of."""
        self._fixed = frozenset(self.get_config()) - set(self.hyperparameters())

    # What keras.distillation.Distiller asks of a loss: any loss without labels works there as well.

    @property
    def teacher_layer_name(self):
        return self.teacher_layer

    @property
    def student_layer_name(self):
        return self.student_layer

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """The mean over the batch, summed over pairs of outputs."""
        pairs = zip(keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs), strict=True)
        return sum(self(teacher, student) for teacher, student in pairs)

    # What keras_kd.Distiller asks -----------------------------------------------------------------------------------

    def layers_of(self, side):
        """Names of the layers of the "teacher" or the "student" that are compared; none: its outputs are."""
        return self._layers[side]

    def output_of(self, side):
        """The output of the "teacher" or the "student" that is compared; None: every one."""
        return self.teacher_output if side == "teacher" and self.teacher_output is not None else self.output

    def rank_of_values(self, output_rank):
        """Rank of the values that `call` gives for a student output of this rank: one value a token."""
        return output_rank - 1

    def hyperparameters(self):
        """The variables that a callback may change while training, by name: `{"weight": …, "temperature": …}`."""
        return {"weight": self.weight}

    def check_shapes(self, teacher_shape, student_shape):
        """Raise ValueError, naming both shapes, if outputs of these static shapes cannot be compared.

        Shapes are tuples with the batch first; `None` stands for an unknown size.
        """

    def make_projection(self, teacher_shape, student_shape):
        """Return a new layer that makes the student's output as wide as the teacher's, or None if none is needed.

        The distiller trains and saves the layer; it stays behind when the student is exported.
        """
        return None

    def call(self, teacher, student):
        """One value per sample, or per token."""
        raise NotImplementedError(f"{type(self).__name__} must implement call(teacher, student).")

    def get_config(self):
        return {
            **super().get_config(),
            **{name: scalar_value(variable) for name, variable in self.hyperparameters().items()},
            "output": self.output,
            "teacher_output": self.teacher_output,
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
        }


class LabelledDistillationLoss(DistillationLoss):
    """Base class of the losses that tell the true class from the others: they get the labels as well.

    A subclass implements `compare(teacher, student, true_class)`. By itself it is called with the labels:
    `loss(teacher, student, labels=labels)`; inside a `Distiller` they are the labels of the compared output.
    Examples (tokens) whose label is negative are passed over: their value is 0.
    """

    needs_labels = True

    def __call__(self, teacher, student, sample_weight=None, *, labels=None):
        """The mean over the batch.

        Args:
            teacher, student: Outputs of one shape, `(batch, ..., classes)`.
            sample_weight: As in `keras.losses.Loss`.
            labels: Integers `(batch, ...)` or `(batch, ..., 1)`, or one-hot rows `(batch, ..., classes)`.
        """
        if labels is None:
            raise ValueError(
                f"{self.name} needs labels, got none. Pass labels=...; inside a Distiller, give fit the labels y, with "
                "-1 for unlabelled examples."
            )
        return super().__call__((teacher, labels), student, sample_weight)

    def call(self, teacher_and_labels, student):
        # (batch, ..., classes), labels, (batch, ..., classes) -> (batch, ...)
        teacher, labels = teacher_and_labels
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        labels = class_labels(labels, student)
        true_class = ops.expand_dims(labels, -1) == ops.arange(student.shape[-1], dtype="int32")
        values = self.compare(teacher, student, true_class)
        return ops.where(labels >= 0, values, ops.zeros_like(values))

    def compare(self, teacher, student, true_class):
        """One value per sample; `true_class` is True at the label, `(batch, ..., classes)` bool."""
        raise NotImplementedError(f"{type(self).__name__} must implement compare(teacher, student, true_class).")


def class_labels(labels, outputs):
    """Labels as integers, one an example or token.

    Args:
        labels: Integers `(batch, ...)` or `(batch, ..., 1)`, or one-hot rows `(batch, ..., classes)`.
        outputs: `(batch, ..., classes)`.
    """
    if len(labels.shape) == len(outputs.shape) and labels.shape[-1] == outputs.shape[-1]:
        labels = ops.argmax(labels, axis=-1)
    elif len(labels.shape) == len(outputs.shape) and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    return ops.cast(labels, "int32")


def _layer_list(layers, argument):
    """`layers`, a name, a list of names or None, as a tuple."""
    names = () if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if not all(isinstance(name, str) and name for name in names) or (layers is not None and not names):
        raise TypeError(f"{argument} must be the name of a layer, a list of names, or None, got {layers!r}.")
    return names


def with_rank(tensor, rank):
    """A tensor with ones behind its shape, so that values of examples `(batch,)` broadcast to `(batch, length)`."""
    for _ in range(rank - len(tensor.shape)):
        tensor = ops.expand_dims(tensor, -1)
    return tensor


def snake_case(name):
    """`SoftLabels` as `soft_labels`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class TemperatureLoss(DistillationLoss):
    """Base class of the losses over outputs that soften both sides with a temperature.

    Args:
        temperature: T > 0; 2 to 8 is usual. Kept in a variable, `loss.temperature`, which callbacks may assign.
        options: `weight`, `output`, `teacher_output`, `teacher_layer`, `student_layer`, `name`, `reduction`, `dtype`:
            as in `DistillationLoss`.

    Attributes:
        least_classes: The fewest units of an output that can be compared.
        scales_with_temperature: Whether the value is T² times a function of logits / T.
    """

    temperature = Hyperparameter(above=0.0, hint="2 to 8 is usual.")
    least_classes = 2
    scales_with_temperature = False

    def __init__(self, temperature=1.0, **options):
        super().__init__(**options)
        self.temperature = temperature

    def hyperparameters(self):
        return {**super().hyperparameters(), "temperature": self.temperature}

    def check_shapes(self, teacher_shape, student_shape):
        require_same_classes(self.name, teacher_shape, student_shape, at_least=self.least_classes)


def require_same_classes(loss_name, teacher_shape, student_shape, *, at_least=2):
    """Raise ValueError unless both shapes have the same rank and the same number of classes, `at_least` so many."""
    shapes = f"the teacher gives {teacher_shape}, the student {student_shape}"
    if len(teacher_shape) != len(student_shape):
        raise ValueError(f"{loss_name} compares logits of equal rank, but {shapes}.")
    teacher_classes, student_classes = teacher_shape[-1], student_shape[-1]
    if None not in (teacher_classes, student_classes) and teacher_classes != student_classes:
        raise ValueError(
            f"{loss_name} needs the same number of classes on both sides, but {shapes}. "
            "Give the student a last layer of the teacher's width, or name the output to compare with output=."
        )
    if student_classes is not None and student_classes < at_least:
        raise ValueError(
            f"{loss_name} compares distributions over at least {at_least} classes, but {shapes}. "
            "For one sigmoid unit, give both models two outputs and a softmax."
        )


class DistillationLossWrapper(DistillationLoss):
    """Base class of the losses that change what another loss compares, or how much it counts.

    Weight, temperature, output, layers, name, reduction and dtype are those of the wrapped loss, and callbacks
    find its hyperparameters under its name. A subclass implements `__call__`, which calls `self.loss`.

    Args:
        loss: The loss.

    Raises:
        TypeError: `loss` is no `DistillationLoss`.
    """

    def __init__(self, loss):
        if not isinstance(loss, DistillationLoss):
            raise TypeError(f"loss must be a keras_kd.losses.DistillationLoss, got {type(loss).__name__}: {loss!r}.")
        super().__init__(
            output=loss.output,
            teacher_output=loss.teacher_output,
            teacher_layer=loss.teacher_layer,
            student_layer=loss.student_layer,
            reduction=loss.reduction,
            name=loss.name,
            dtype=loss.dtype,
        )
        self.loss = loss
        self.__dict__["weight"] = loss.weight  # the same variable
        self.undoes, self.parts, self.shares_projection = loss.undoes, loss.parts, loss.shares_projection
        self.needs_labels, self.language_key = loss.needs_labels, loss.language_key
        self.relates_examples = loss.relates_examples

    @property
    def temperature(self):
        """The wrapped loss's temperature, which may be assigned; AttributeError if it has none."""
        return self.loss.temperature

    @temperature.setter
    def temperature(self, value):
        if "temperature" not in self.hyperparameters():
            raise AttributeError(f"{self.name!r} has no temperature: it wraps a {type(self.loss).__name__}.")
        self.loss.temperature = value

    def mark_in_use(self):
        self.loss.mark_in_use()
        super().mark_in_use()

    def hyperparameters(self):
        return self.loss.hyperparameters()

    def rank_of_values(self, output_rank):
        return self.loss.rank_of_values(output_rank)

    def check_shapes(self, teacher_shape, student_shape):
        self.loss.check_shapes(teacher_shape, student_shape)

    def make_projection(self, teacher_shape, student_shape):
        return self.loss.make_projection(teacher_shape, student_shape)

    def get_config(self):
        return {"loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
