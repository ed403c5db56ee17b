"""The base classes of the distillation losses: one teacher output, one student output, one value per sample."""

import inspect
import re

import keras
import tensorflow as tf
from keras import ops

from keras_kd._assertions import asserted
from keras_kd._hyperparameters import Hyperparameter, scalar_value
from keras_kd._keras_private import get_mask, reduce_values


class DistillationLoss(keras.losses.Loss, keras.distillation.DistillationLoss):
    """Base class of the distillation losses: compares one output of the teacher with one of the student.

    A subclass implements `call(teacher, student)`, which returns one value per sample (per token for sequences). The
    base class first casts both outputs to `dtype` and refuses shapes that differ; a loss that can compare other shapes
    overrides `compared_axes` or `check_shapes`. Afterwards it applies Keras masks of teacher and student, sample
    weights and the reduction. A loss can also be called by itself: `loss(teacher, student, sample_weight=None)`.
    Arguments that its constructor keeps as the attributes of their names are part of `get_config`.

    Args:
        weight: wᵢ ≥ 0 in `L = L_raw + λ Σ wᵢ Lᵢ`. Kept in a variable, `loss.weight`, which callbacks may assign.
        output: Which model output is compared: its name, its key in a dict, or its index. `None`: every output with
            its counterpart, values summed. Ignored where layers are named.
        teacher_output: The teacher's output, where it differs from the student's; `None` stands for `output`.
        teacher_layer: The teacher's layer whose output is compared in place of the model output: its name, or the end
            of its path ("backbone/transformer_layer_3"); a list of them for several pairs of layers, values summed.
        student_layer: The student's layer, likewise.
        reduction: As in `keras.losses.Loss`.
        name: Name in the logs. Defaults to the class name in snake case, e.g. `"soft_labels"`.
        dtype: Dtype of the computation, float32 unless given, whatever the policy of the models.

    Call arguments:
        teacher, student: Outputs, of one shape unless the loss allows more. In a distiller their last axis holds the
            features, also of layers with `data_format="channels_first"`.
        sample_weight: As in `keras.losses.Loss`.
        labels: For losses with `needs_labels`: integers `(batch, ...)` or `(batch, ..., 1)`, or one-hot rows
            `(batch, ..., classes)`.
        mask: `(batch, length)` bool, False for padding, which is left out. Defaults to the Keras masks of teacher and
            student: a token that either side masks is padding.

    Raises:
        TypeError: An argument of this or any other loss has another type than documented.
        ValueError: An argument of this or any other loss is out of range or not finite; teacher_layer and student_layer
            name different numbers of layers; when called, the shapes of the outputs do not fit.

    Attributes:
        undoes: The output activation that is undone before `call`: `"softmax"` for losses over distributions, which
            get logits `(..., classes)` also from models that end in softmax (the log of the probabilities);
            `"sigmoid"` likewise for independent units; None for outputs as they are.
        parts: Which outputs of a named layer are compared: keys of `keras_kd.outputs.PARTS`.
        needs_labels: Whether `call` takes `labels`, integers `(batch, ...)`. True for a `LabelledDistillationLoss`.
        needs_mask: Whether `call` takes `mask`: `(batch, length)` bool, or None.
        shares_projection: Whether one projection serves all pairs of layers, where each has its own otherwise.
        tokenwise: Whether the value of an example, or of a token, depends on its own outputs and label alone.
        relates_examples: Whether the value of an example depends on the other examples of the batch. Each replica then
            gets the outputs of all, so that the value is that of the whole batch.
        language_key: The entry of a dict `x` with each example's language, for a loss that needs it; or None.
        batch_entries: Which further arguments of `call` are entries of a dict `x`: `{argument: entry}`.

    Example:

    >>> class LogitsMAE(keras_kd.losses.DistillationLoss):
    ...     undoes = "softmax"
    ...     def call(self, teacher, student):
    ...         return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)
    >>> float(LogitsMAE(weight=0.5)(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    1.5
    """

    weight = Hyperparameter(at_least=0.0)
    undoes = None
    parts = ("output",)
    needs_labels = False
    needs_mask = False
    tokenwise = False
    relates_examples = False
    language_key = None
    batch_entries = {}  # noqa: RUF012, which is for mutable defaults: nobody changes it
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
        # keras.distillation.Distiller reads the second name.
        self.teacher_layer = self.teacher_layer_name = teacher_layer
        self.student_layer = self.student_layer_name = student_layer
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
                f"{name} of {self.name!r} cannot be changed once the loss is part of a distiller, whose steps are "
                f"traced with it; what can be changed is {sorted(self.hyperparameters())}. Make a new loss and a new "
                "distiller."
            )
        super().__setattr__(name, value)

    def mark_in_use(self):
        """Allow assignments to hyperparameters only, from here on: called by the distiller with the loss."""
        self._fixed = frozenset(self.get_config()) - set(self.hyperparameters())

    # The value -----------------------------------------------------------------------------------------------------

    def __call__(self, teacher, student, sample_weight=None, *, labels=None, mask=None, **entries):
        """The mean over the batch, or as `reduction` asks; `entries` are the arguments in `batch_entries`."""
        if set(entries) != set(self.batch_entries):
            expected, got = sorted(self.batch_entries), sorted(entries)
            raise TypeError(f"{self.name} needs the arguments {expected} beside teacher and student, got {got}.")
        mask = self.token_mask(teacher, student) if mask is None else ops.convert_to_tensor(mask, dtype="bool")
        teacher, student = (ops.convert_to_tensor(output, dtype=self.dtype) for output in (teacher, student))
        values = self.values(teacher, student, labels=labels, mask=mask, **entries)
        return reduce_values(values, sample_weight, mask, self.reduction, self.dtype)

    def values(self, teacher, student, *, labels=None, mask=None, **entries):
        """One value per sample or token: `call`, after the checks of shapes and labels.

        Outputs have the dtype of the loss. The mask is passed to a `call` that needs it; the values are not masked.
        """
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        teacher = self._with_checked_shape(teacher, student)
        extras = {**entries, "mask": mask} if self.needs_mask else entries
        if not self.needs_labels:
            return self.call(teacher, student, **extras)
        if labels is None:
            raise ValueError(
                f"{self.name} needs labels, got none. Pass labels=...; inside a Distiller, give fit the labels y, with "
                "-1 for unlabelled examples."
            )
        labels = class_labels(labels, student)
        values = self.call(teacher, student, labels=labels, **extras)
        return ops.where(labels >= 0, values, ops.zeros_like(values))

    def call(self, teacher, student):
        """One value per sample, or per token."""
        raise NotImplementedError(f"{type(self).__name__} must implement call(teacher, student).")

    def check_shapes(self, teacher_shape, student_shape):
        """Raise ValueError, naming both shapes, if outputs of these static shapes cannot be compared.

        Shapes are tuples with the batch first; `None` stands for an unknown size, which passes.
        """
        if differ(teacher_shape, student_shape, self.compared_axes(len(student_shape))):
            way_out = "Name outputs or layers of one shape, or bring the student's to the teacher's shape."
            raise self.shape_error("compares outputs of one shape", teacher_shape, student_shape, way_out)

    def compared_axes(self, rank):
        """The axes along which teacher and student must have the same size, of outputs of this rank. By default all."""
        return range(rank)

    def shape_error(self, requirement, teacher_shape, student_shape, way_out=""):
        """The ValueError for shapes that do not meet the requirement, such as "compares outputs of one shape"."""
        teacher, student = (
            f"the {role}" if layer is None else f"the {role}'s layer {layer!r}"
            for role, layer in (("teacher", self.teacher_layer), ("student", self.student_layer))
        )
        shapes = f"{teacher} gives {teacher_shape}, {student} {student_shape}"
        return ValueError(f"{self.name} {requirement}, but {shapes}. {way_out}".strip())

    def token_mask(self, teacher, student):
        """The tokens that no Keras mask of either side leaves out, `(batch, length)` bool; None without masks."""
        masks = [mask_of_tokens(output) for output in (teacher, student)]
        masks = [mask for mask in masks if mask is not None]
        return ops.logical_and(*masks) if len(masks) == 2 else masks[0] if masks else None

    def _with_checked_shape(self, teacher, student):
        """The teacher's output, after a check of the sizes that are known only at run time.

        XLA drops assertions; there the reshape fails where sizes differ.
        """
        sizes = [(axis, teacher.shape[axis], student.shape[axis]) for axis in self.compared_axes(len(student.shape))]
        # Two unknown batch sizes are those of one batch.
        unknown = [axis for axis, *pair in sizes if None in pair and not (axis == 0 and pair == [None, None])]
        if not unknown:
            return teacher
        shape, assertions = list(ops.shape(teacher)), []
        for axis in unknown:
            sizes = tf.stack([shape[axis], ops.shape(student)[axis]])
            message = f"{self.name} compares outputs of one shape, but along axis {axis} teacher and student give"
            assertions.append(asserted(tf.equal(sizes[0], sizes[1]), message, sizes))
            shape[axis] = sizes[1]
        with tf.control_dependencies(assertions):
            return tf.reshape(teacher, shape)

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """The mean over the batch, summed over pairs of outputs, for `keras.distillation.Distiller`."""
        pairs = zip(keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs), strict=True)
        return sum(self(teacher, student) for teacher, student in pairs)

    # The interface of keras_kd.Distiller ----------------------------------------------------------------------------

    def layers_of(self, side):
        """Names of the compared layers of the "teacher" or the "student"; empty where its outputs are compared."""
        return self._layers[side]

    def output_of(self, side):
        """The compared output of the "teacher" or the "student"; None for every output."""
        return self.teacher_output if side == "teacher" and self.teacher_output is not None else self.output

    def expected_ending(self, side):
        """ "logits" or "probabilities" where `call` needs that kind of outputs from this side, else None.

        A `Distiller` refuses a model that is known to give the other kind. A loss with `undoes` expects nothing.
        """
        return None

    def value_rank(self, output_rank):
        """Rank of the values that `call` gives for a student output of this rank: one value per token."""
        return output_rank - 1

    def hyperparameters(self):
        """The variables that a callback may change while training, by name: `{"weight": …, "temperature": …}`."""
        return {
            name: getattr(self, name)
            for cls in reversed(type(self).__mro__)
            for name, attribute in vars(cls).items()
            if isinstance(attribute, Hyperparameter)
        }

    def make_projection(self, teacher_shape, student_shape):
        """Return a new layer that makes the student's output as wide as the teacher's, or None if none is needed.

        The distiller trains and saves the layer; it is not part of the exported student.
        """
        return None

    def get_config(self):
        """The arguments of the constructors, which keep each as the attribute of its name."""
        config = {**super().get_config(), "dtype": self.dtype}
        for cls in type(self).__mro__:
            if issubclass(cls, DistillationLoss):
                arguments = inspect.signature(cls.__init__).parameters
                config |= {name: vars(self)[name] for name in arguments if name in vars(self)}
        return {name: scalar_value(v) if isinstance(v, keras.Variable) else v for name, v in config.items()}


class LabelledDistillationLoss(DistillationLoss):
    """Base class of the losses that separate the true class from the others: `call` gets the labels as well.

    A subclass implements `call(teacher, student, labels)`, with the labels as integers `(batch, ...)`. A `Distiller`
    passes the labels of the compared output; by itself, the loss is called as `loss(teacher, student, labels=labels)`.
    The value of examples (tokens) with a negative label is 0.
    """

    needs_labels = True

    def call(self, teacher, student, labels):
        """One value per sample, or per token."""
        raise NotImplementedError(f"{type(self).__name__} must implement call(teacher, student, labels).")


def class_labels(labels, outputs):
    """Labels as int32 class ids, one per example or token.

    Args:
        labels: Integers `(batch, ...)` or `(batch, ..., 1)`, or one-hot rows `(batch, ..., classes)`. A row without a
            positive entry is unlabelled, -1. What no int32 holds, fractions and NaN too, becomes one of no class:
            the largest int32, or -1 if it is below 0.
        outputs: `(batch, ..., classes)`.
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(outputs.shape) and labels.shape[-1] == outputs.shape[-1]:
        labels = ops.where(ops.max(labels, axis=-1) > 0, ops.cast(ops.argmax(labels, axis=-1), "int32"), -1)
    elif len(labels.shape) == len(outputs.shape) and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    ids = ops.cast(labels, "int32")
    numbers = ops.cast(labels, "float32")  # whose rounding is small beside what a cast to int32 does to other numbers
    return ops.where(ops.cast(ids, "float32") == numbers, ids, ops.where(numbers < 0, -1, 2**31 - 1))


def mask_of_tokens(output):
    """The Keras mask of an output's tokens as bool, or None."""
    mask = get_mask(output)
    return None if mask is None or len(mask.shape) >= len(output.shape) else ops.cast(mask, "bool")


def differ(first_shape, second_shape, axes=None):
    """Whether two static shapes differ in rank, or along these axes (None: all) in a size that both know."""
    if len(first_shape) != len(second_shape):
        return True
    pairs = [(first_shape[axis], second_shape[axis]) for axis in (range(len(first_shape)) if axes is None else axes)]
    return any(first != second for first, second in pairs if None not in (first, second))


def _layer_list(layers, argument):
    """A name, a list of names or None as a tuple."""
    names = () if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if not all(isinstance(name, str) and name for name in names) or (layers is not None and not names):
        raise TypeError(f"{argument} must be the name of a layer, a list of names, or None, got {layers!r}.")
    return names


def with_rank(tensor, rank):
    """A tensor with axes of size 1 appended up to this rank: values `(batch,)` then broadcast to `(batch, length)`."""
    for _ in range(rank - len(tensor.shape)):
        tensor = ops.expand_dims(tensor, -1)
    return tensor


def snake_case(name):
    """`SoftLabels` as `soft_labels`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class TemperatureLoss(DistillationLoss):
    """Base class of the losses with a temperature T > 0: `T² · compare(teacher / T, student / T)`.

    A subclass implements `compare`, or `call` where its value is another one.

    Attributes:
        least_classes: The fewest units of an output that can be compared.
        scales_with_temperature: Whether the value is T² times a function of logits / T.
    """

    temperature = Hyperparameter(above=0.0, hint="2 to 8 is usual.")
    least_classes = 2
    scales_with_temperature = True

    def __init__(self, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, teacher, student, **labels):
        temperature = ops.cast(self.temperature, teacher.dtype)
        return ops.square(temperature) * self.compare(teacher / temperature, student / temperature, **labels)

    def check_shapes(self, teacher_shape, student_shape):
        require_same_classes(self.name, teacher_shape, student_shape, at_least=self.least_classes)


def require_same_classes(name, teacher_shape, student_shape, *, at_least=2):
    """Raise ValueError, for the loss or metric `name`, unless both shapes `(batch, ..., classes)` are the same.

    Shapes are static; there must be `at_least` so many classes.
    """
    shapes = f"the teacher gives {teacher_shape}, the student {student_shape}"
    if len(teacher_shape) != len(student_shape) or len(student_shape) < 2:
        raise ValueError(f"{name} compares logits (batch, ..., classes) of equal rank, but {shapes}.")
    if differ(teacher_shape, student_shape, range(len(student_shape) - 1)):
        raise ValueError(
            f"{name} compares outputs of one shape, but {shapes}. Bring both to the same positions or steps, for "
            "instance with a pooling layer, or name the output to compare with output=."
        )
    classes = {teacher_shape[-1], student_shape[-1]} - {None}
    if len(classes) > 1:
        raise ValueError(
            f"{name} needs the same number of classes on both sides, but {shapes}. Give the student a last layer of "
            "the teacher's width, or name the output to compare with output=. For other vocabularies see "
            "keras_kd.losses.VocabularyMap (the student's is part of the teacher's) and "
            "keras_kd.losses.UniversalLogitDistillation (any)."
        )
    if classes and min(classes) < at_least:
        raise ValueError(
            f"{name} compares distributions over at least {at_least} classes, but {shapes}. For one sigmoid unit, or "
            "several independent ones, use keras_kd.losses.BinarySoftLabels."
        )


class DistillationLossWrapper(DistillationLoss):
    """Base class of the losses that change what another loss compares, or how much it counts.

    Everything else is as of the wrapped loss: weight, temperature, output, layers, name, reduction, dtype. A subclass
    implements `__call__`, which calls `self.loss`.
    """

    def __init__(self, loss):
        if not isinstance(loss, DistillationLoss):
            raise TypeError(f"loss must be a keras_kd.losses.DistillationLoss, got {type(loss).__name__}: {loss!r}.")
        options = ("output", "teacher_output", "teacher_layer", "student_layer", "reduction", "name", "dtype")
        super().__init__(**{option: getattr(loss, option) for option in options})
        self.loss = loss
        self.__dict__["weight"] = loss.weight  # the same variable
        self.undoes, self.parts, self.shares_projection = loss.undoes, loss.parts, loss.shares_projection
        self.needs_labels, self.language_key = loss.needs_labels, loss.language_key
        self.relates_examples, self.batch_entries = loss.relates_examples, loss.batch_entries

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

    def expected_ending(self, side):
        return self.loss.expected_ending(side)

    def value_rank(self, output_rank):
        return self.loss.value_rank(output_rank)

    def token_mask(self, teacher, student):
        return self.loss.token_mask(teacher, student)

    def check_shapes(self, teacher_shape, student_shape):
        self.loss.check_shapes(teacher_shape, student_shape)

    def make_projection(self, teacher_shape, student_shape):
        return self.loss.make_projection(teacher_shape, student_shape)

    def get_config(self):
        return {"loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": loss_from_config(config["loss"])})


def loss_from_config(config, custom_objects=None):
    """The loss of a serialized config; raise TypeError if Keras does not know its class."""
    try:
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    except TypeError as error:
        if "Could not locate" not in str(error):
            raise
        raise TypeError(
            f"the loss {config['config'].get('name')!r} is a {config['class_name']}, a class that Keras does not know. "
            "Decorate it with @keras.saving.register_keras_serializable(package=...) and import it before loading, "
            "or pass custom_objects={...}."
        ) from error
