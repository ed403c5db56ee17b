"""Losses over the outputs of inner layers, or over outputs as they are, example by example."""

import keras
from keras import ops

from keras_kd._checks import require_flag, require_number
from keras_kd.losses.base import DistillationLoss, differ

POOL_FIRST = (
    "Pool tokens or positions first, for instance with keras.layers.GlobalAveragePooling1D, and name that layer."
)
_LEAST = 1e-12  # a vector without a larger entry counts as 0: it has no direction


class ProjectedFeatureLoss(DistillationLoss):
    """Base class of the losses that compare features one by one, through a linear projection where widths differ.

    Attributes:
        vectors_only: Whether one vector per example is compared, `(batch, features)`; else any shape.
    """

    vectors_only = False

    def __init__(self, teacher_layer=None, student_layer=None, **kwargs):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)

    def check_shapes(self, teacher_shape, student_shape):
        self._require_comparable(teacher_shape, student_shape)

    def make_projection(self, teacher_shape, student_shape):
        self._require_comparable(teacher_shape, student_shape, range(len(student_shape) - 1))
        if teacher_shape[-1] == student_shape[-1] or None in (teacher_shape[-1], student_shape[-1]):
            return None
        return keras.layers.Dense(teacher_shape[-1], name=f"{self.name}_projection", dtype="float32")

    def _require_comparable(self, teacher_shape, student_shape, axes=None):
        shapes = teacher_shape, student_shape
        if self.vectors_only and (len(teacher_shape), len(student_shape)) != (2, 2):
            raise self.shape_error("compares one vector per example, (batch, features)", *shapes, POOL_FIRST)
        if len(student_shape) < 2 or differ(teacher_shape, student_shape, axes):
            way_out = (
                "Only the last dimension may differ, and only inside a Distiller of functional or sequential models, "
                "which adds a projection."
            )
            raise self.shape_error("compares outputs (batch, ..., features) of one shape", *shapes, way_out)


@keras.saving.register_keras_serializable(package="keras_kd")
class Hint(ProjectedFeatureLoss):
    """Hint: the mean squared difference between features of the teacher and those of the student.

    `L = mean((teacher − r(student))²)` over the features of a sample (of a token, for sequences). Where the widths
    differ, r is a linear layer that the distiller makes, trains and saves, and that is not part of the exported
    student; where they are equal, r is the identity. There are three published uses:

    - Hidden layers (FitNets): `Hint("teacher_layer", "student_layer")`.
    - Sentence embeddings: `Hint()` compares the models' outputs. So an encoder of one language teaches one of many: the
      teacher reads a sentence, the student its translation, each from its own entry of a dict `x`. Add pairs of a
      sentence and itself to keep the teacher's language. End the student in a `Dense` of the teacher's width, so that
      its vectors, not their projections, lie in the teacher's space.
    - Embeddings and hidden states of transformers (TinyBERT): lists of layers, with `shared_projection=True`.

    Args:
        teacher_layer, student_layer: The layers to compare, or lists of them; `None`: the models' outputs.
        shared_projection: Whether one projection serves all pairs of layers, which then must have the same widths.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher, student: `(batch, ..., features)`.

    Raises:
        ValueError: The shapes differ in more than the number of features, or in that outside of a `Distiller`.

    Example:

    >>> hint = keras_kd.losses.Hint(teacher_layer="dense_2", student_layer="dense")
    >>> float(hint(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])))
    2.5

    References: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3 (there ½ of the squared norm, here its mean, so that the weight does not depend on the width); Reimers
    and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", EMNLP 2020
    (https://arxiv.org/abs/2004.09813), equation 1; Jiao et al., "TinyBERT: Distilling BERT for Natural Language
    Understanding", Findings of EMNLP 2020 (https://arxiv.org/abs/1909.10351), equations 8 and 9.
    """

    def __init__(self, teacher_layer=None, student_layer=None, *, shared_projection=False, **kwargs):
        super().__init__(teacher_layer, student_layer, **kwargs)
        self.shared_projection = require_flag(shared_projection, "shared_projection")

    @property
    def shares_projection(self):
        return self.shared_projection

    def call(self, teacher, student):
        # (batch, ..., features) x2 -> (batch, ...)
        return ops.mean(ops.square(teacher - student), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class CosineFeatures(ProjectedFeatureLoss):
    """One minus the cosine between the features of the teacher and those of the student, in [0, 2].

    `L = 1 − cos(teacher, r(student))` per sample (per token, for sequences): the student has to point where the teacher
    points, at whatever length. A vector of zeros has no direction: its cosine is 0.

    Args:
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Projection r, call arguments and errors are as for `Hint`.

    Example:

    >>> round(float(keras_kd.losses.CosineFeatures()(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]]))), 4)
    0.4

    Reference: the cosine loss between hidden states of Sanh et al., "DistilBERT, a distilled version of BERT", 2019
    (https://arxiv.org/abs/1910.01108).
    """

    def call(self, teacher, student):
        # (batch, ..., features) x2 -> (batch, ...)
        return 1.0 - ops.sum(unit(teacher) * unit(student), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class AttentionTransfer(DistillationLoss):
    """Attention transfer: a layer of the student is active at the positions where a layer of the teacher is.

    The attention map of an output is `Q = mean_c |A_c|^p` over its channels, one number per position. With both maps
    divided by their l2 norm over all positions, one value per position: `L = (Q_t / ‖Q_t‖ − Q_s / ‖Q_s‖)²`. The loss is
    their mean over batch and positions, as in the published code; the paper's equation has the norm over positions in
    place of the mean. That mean is small where there are many positions: a weight of 1,000 is usual.

    Args:
        p: Power ≥ 1 of the activations; the larger, the more the most active positions count. 2 is usual.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher: `(batch, height, width, channels)` or `(batch, steps, channels)`: channels last.
        student: The same but for the number of channels. Masked steps are taken out of both maps.

    Raises:
        ValueError: `p` is below 1; an output has no positions, or their numbers differ.

    Example:

    >>> teacher = np.array([[[3.0, 0.0], [0.0, 0.0]]])  # one example, two steps, two channels: active at the first step
    >>> student = np.array([[[0.0], [2.0]]])  # active at the second step
    >>> float(keras_kd.losses.AttentionTransfer()(teacher, student))
    1.0

    Reference: Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", ICLR 2017 (https://arxiv.org/abs/1612.03928), activation-based; code:
    https://github.com/szagoruyko/attention-transfer.
    """

    needs_mask = True

    def __init__(self, teacher_layer=None, student_layer=None, *, p=2.0, **kwargs):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        self.p = require_number(p, "p", at_least=1.0, hint="2 is usual.")

    def compared_axes(self, rank):
        return range(rank - 1)

    def check_shapes(self, teacher_shape, student_shape):
        if len(student_shape) < 3 or differ(teacher_shape, student_shape, self.compared_axes(len(student_shape))):
            raise self.shape_error(
                "compares outputs (batch, height, width, channels) or (batch, steps, channels) with the same positions",
                teacher_shape,
                student_shape,
                "Only the channels may differ: name layers of one resolution, or one after a pooling layer.",
            )

    def call(self, teacher, student, mask):
        # (batch, positions..., channels) x2, (batch, steps) or None -> (batch, positions...)
        return ops.square(self._attention(teacher, mask) - self._attention(student, mask))

    def _attention(self, output, mask):
        # (batch, positions..., channels) -> (batch, positions...), its squares add up to 1
        if mask is not None:
            output = ops.where(ops.expand_dims(mask, axis=-1), output, ops.zeros_like(output))
        attention = ops.mean(ops.power(ops.abs(output), self.p), axis=-1)
        return unit(attention, axis=tuple(range(1, len(attention.shape))))


def unit(vectors, axis=-1):
    """The vectors divided by their l2 norm; those that are 0 stay 0, with a finite gradient."""
    largest = ops.stop_gradient(ops.max(ops.abs(vectors), axis=axis, keepdims=True))
    nonzero = largest > _LEAST
    vectors = vectors / ops.where(nonzero, largest, ops.ones_like(largest))  # so that no square over- or underflows
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return vectors / ops.sqrt(ops.where(nonzero, squares, ops.ones_like(squares)))
