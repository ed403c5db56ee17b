"""Losses over the outputs of inner layers, or over outputs as they are, example by example."""

import keras
from keras import ops

from keras_kd._checks import require_number
from keras_kd._keras_private import get_mask, set_mask
from keras_kd.losses.base import DistillationLoss

_LEAST = 1e-12  # a vector without a larger entry counts as 0: it has no direction


class FeatureLoss(DistillationLoss):
    """Base class of the losses over the outputs of layers, or over the models' outputs as the models give them.

    Args:
        teacher_layer, student_layer: The layers to compare, as in `DistillationLoss`; `None`: the output.
        options: `weight`, `output`, `teacher_output`, `name`, `reduction`, `dtype`: as in `DistillationLoss`.
    """

    def __init__(self, teacher_layer=None, student_layer=None, **options):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **options)

    def both(self, teacher_shape, student_shape):
        """What each side gives, for the messages."""
        teacher, student = (
            f"the {role}" if layer is None else f"the {role}'s layer {layer!r}"
            for role, layer in (("teacher", self.teacher_layer), ("student", self.student_layer))
        )
        return f"{teacher} gives {teacher_shape}, {student} {student_shape}"


class ProjectedFeatureLoss(FeatureLoss):
    """Base class of the losses that compare features one with one, through a projection where widths differ.

    The projection is a linear layer behind the student's output, as wide as the teacher's. The distiller makes, trains
    and saves it, and leaves it behind when the student is exported.

    Attributes:
        of_vectors: True where one vector an example is compared, `(batch, features)`; False for any shape.
    """

    of_vectors = False

    def check_shapes(self, teacher_shape, student_shape):
        self._require_alike(teacher_shape, student_shape, upto=None)

    def make_projection(self, teacher_shape, student_shape):
        self._require_alike(teacher_shape, student_shape, upto=-1)
        if teacher_shape[-1] == student_shape[-1] or None in (teacher_shape[-1], student_shape[-1]):
            return None
        return keras.layers.Dense(teacher_shape[-1], name=f"{self.name}_projection", dtype="float32")

    def _require_alike(self, teacher_shape, student_shape, upto):
        both = self.both(teacher_shape, student_shape)
        ranks = len(teacher_shape), len(student_shape)
        if self.of_vectors and ranks != (2, 2):
            raise ValueError(
                f"{self.name} compares one vector an example, (batch, features), but {both}. Pool tokens or positions "
                "first, for instance with keras.layers.GlobalAveragePooling1D, and name that layer."
            )
        pairs = zip(teacher_shape[:upto], student_shape[:upto], strict=False)
        if ranks[0] != ranks[1] or ranks[1] < 2 or any(t != s for t, s in pairs if None not in (t, s)):
            raise ValueError(
                f"{self.name} compares outputs (batch, ..., features) of one shape, but {both}. Only the last "
                "dimension may differ, and only inside a Distiller of functional or sequential models, which adds a "
                "projection."
            )


@keras.saving.register_keras_serializable(package="keras_kd")
class Hint(ProjectedFeatureLoss):
    """Hint learning (FitNets): the mean squared difference between a layer of the teacher and one of the student.

    `L = mean((teacher − r(student))²)` over the features of a sample (of a token, for sequences). Where the widths
    differ, r is a linear layer that the distiller makes, trains and saves, and leaves behind when the student is
    exported; where they are equal, r is the identity.

    Args:
        teacher_layer, student_layer: The layers to compare, as in `DistillationLoss`; `None`: the output.
        weight: wᵢ ≥ 0, this loss's weight beside other losses.
        output, teacher_output, name, reduction, dtype: As in `DistillationLoss`.

    Call arguments:
        teacher: `(batch, ..., features)`.
        student: The same shape. Its Keras mask, if any, leaves padded tokens out.

    Raises:
        ValueError: `weight` is negative, or the shapes differ in more than the number of features.

    Example:

    >>> hint = keras_kd.losses.Hint(teacher_layer="dense_2", student_layer="dense")
    >>> float(hint(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    2.5

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3 (there ½ of the squared norm, here its mean, so that the weight does not depend on the width).
    """

    def __init__(self, teacher_layer, student_layer, **options):
        super().__init__(teacher_layer, student_layer, **options)

    def call(self, teacher, student):
        # (batch, ..., features) x2 -> (batch, ...)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return mean_squared_difference(teacher, student)


@keras.saving.register_keras_serializable(package="keras_kd")
class Embeddings(ProjectedFeatureLoss):
    """The mean squared difference between one vector an example of the teacher and one of the student.

    `L = mean((teacher − r(student))²)` over the features: `Hint` for encoders, by default of the models' outputs. This
    is how an encoder of one language makes one of many: the teacher reads a sentence, the student its translation, each
    from its own entry of a dict `x`. Where the student shall still read the teacher's language as well, add pairs whose
    translation is the sentence itself.

    r is the identity where both vectors are equally wide, and the student's vectors then lie in the teacher's space.
    Where they are not, r is a linear layer that stays behind at export, and only the projected vectors lie there: end
    the student in a `Dense` of the teacher's width if the vectors of both are to be compared.

    Args:
        teacher_layer, student_layer: The layers to compare, as in `DistillationLoss`; not given, the outputs are.
        weight: wᵢ ≥ 0, this loss's weight beside other losses.
        output, teacher_output, name, reduction, dtype: As in `DistillationLoss`.

    Call arguments:
        teacher: `(batch, features)`.
        student: The same shape.

    Raises:
        ValueError: `weight` is negative; an output is not `(batch, features)`; the widths differ outside a `Distiller`.

    Example:

    >>> sentence, translation = np.array([[0.5, -1.0, 2.0]]), np.array([[0.5, 0.0, 1.0]])
    >>> round(float(keras_kd.losses.Embeddings()(sentence, translation)), 4)
    0.6667

    Reference: Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
    EMNLP 2020 (https://arxiv.org/abs/2004.09813).
    """

    of_vectors = True

    def call(self, teacher, student):
        # (batch, features) x2 -> (batch,)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return mean_squared_difference(teacher, student)


@keras.saving.register_keras_serializable(package="keras_kd")
class CosineFeatures(ProjectedFeatureLoss):
    """One minus the cosine between the features of the teacher and those of the student, in [0, 2].

    `L = 1 − cos(teacher, r(student))` for a sample (a token, for sequences): the student has to point where the teacher
    points, at whatever length. r is as in `Hint`. A vector of zeros has no direction: its cosine is 0.

    Args:
        teacher_layer, student_layer: The layers to compare, as in `DistillationLoss`; not given, the outputs are.
        weight: wᵢ ≥ 0, this loss's weight beside other losses.
        output, teacher_output, name, reduction, dtype: As in `DistillationLoss`.

    Call arguments:
        teacher: `(batch, ..., features)`.
        student: The same shape. Its Keras mask, if any, leaves padded tokens out.

    Raises:
        ValueError: `weight` is negative, or the shapes differ in more than the number of features.

    Example:

    >>> round(float(keras_kd.losses.CosineFeatures()(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]]))), 4)
    0.4

    Reference: the cosine loss between hidden states of Sanh et al., "DistilBERT, a distilled version of BERT", 2019
    (https://arxiv.org/abs/1910.01108).
    """

    def call(self, teacher, student):
        # (batch, ..., features) x2 -> (batch, ...)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return 1.0 - ops.sum(unit(teacher) * unit(student), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class AttentionTransfer(FeatureLoss):
    """Attention transfer: where a layer of the student is active has to be where a layer of the teacher is.

    The attention map of an output is `Q = mean_c |A_c|^p` over its channels, one number a position. With both maps
    divided by their l2 norm over all positions, one value a position: `L = (Q_t / ‖Q_t‖ − Q_s / ‖Q_s‖)²`. The loss is
    their mean over batch and positions, as in the published code; the paper's equation has the norm over positions in
    place of the mean. That mean is small where there are many positions: a weight
    of 1,000 is usual.

    The numbers of channels may differ, the numbers of positions may not: name layers of one resolution, or put a
    pooling layer behind the larger and name that.

    Args:
        teacher_layer, student_layer: The layers to compare, as in `DistillationLoss`; not given, the outputs are.
        p: Power ≥ 1 of the activations; the larger, the more the most active positions count. 2 is usual.
        weight: wᵢ ≥ 0, this loss's weight beside other losses.
        output, teacher_output, name, reduction, dtype: As in `DistillationLoss`.

    Call arguments:
        teacher: `(batch, height, width, channels)` or `(batch, steps, channels)`: channels last.
        student: The same but for the channels. Its Keras mask, if any, takes padded steps out of both maps.

    Raises:
        TypeError: `p` or `weight` is not a number.
        ValueError: `p` is below 1; `weight` is negative; an output has no positions, or their numbers differ.

    Example:

    >>> teacher = np.array([[[3.0, 0.0], [0.0, 0.0]]])  # one example, two steps, two channels: active at the first step
    >>> student = np.array([[[0.0], [2.0]]])  # active at the second step
    >>> float(keras_kd.losses.AttentionTransfer()(teacher, student))
    1.0

    Reference: Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", ICLR 2017 (https://arxiv.org/abs/1612.03928), activation-based; code:
    https://github.com/szagoruyko/attention-transfer.
    """

    def __init__(self, teacher_layer=None, student_layer=None, *, p=2.0, **options):
        super().__init__(teacher_layer, student_layer, **options)
        self.p = require_number(p, "p", at_least=1.0, hint="2 is usual.")

    def __call__(self, teacher, student, sample_weight=None):
        mask = get_mask(student)
        if mask is not None:
            there = ops.expand_dims(mask, axis=-1)
            teacher, student = (ops.where(there, output, ops.zeros_like(output)) for output in (teacher, student))
            set_mask(student, mask)
        return super().__call__(teacher, student, sample_weight)

    def check_shapes(self, teacher_shape, student_shape):
        positions = teacher_shape[1:-1], student_shape[1:-1]
        different = len(positions[0]) != len(positions[1]) or any(
            t != s for t, s in zip(*positions, strict=True) if None not in (t, s)
        )
        if different or not positions[0]:
            raise ValueError(
                f"{self.name} compares outputs (batch, height, width, channels) or (batch, steps, channels) with the "
                f"same positions, but {self.both(teacher_shape, student_shape)}. Only the channels may differ: name "
                "layers of one resolution, or one behind a pooling layer."
            )

    def call(self, teacher, student):
        # (batch, positions..., channels) x2 -> (batch, positions...)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return ops.square(self._attention(teacher) - self._attention(student))

    def _attention(self, output):
        # (batch, positions..., channels) -> (batch, positions...), its squares add up to 1
        attention = ops.mean(ops.power(ops.abs(output), self.p), axis=-1)
        return unit(attention, axis=tuple(range(1, len(attention.shape))))

    def get_config(self):
        return {**super().get_config(), "p": self.p}


def mean_squared_difference(teacher, student):
    """`(..., features)` x2 -> `(...)`."""
    return ops.mean(ops.square(teacher - student), axis=-1)


def unit(vectors, axis=-1):
    """The vectors divided by their l2 norm; those that are 0 stay 0, with a finite gradient."""
    largest = ops.stop_gradient(ops.max(ops.abs(vectors), axis=axis, keepdims=True))
    nonzero = largest > _LEAST
    vectors = vectors / ops.where(nonzero, largest, ops.ones_like(largest))  # so that no square over- or underflows
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return vectors / ops.sqrt(ops.where(nonzero, squares, ops.ones_like(squares)))
