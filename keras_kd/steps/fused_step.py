"""The losses on the logits of a large vocabulary, which are never held: L_raw and a divergence in one pass."""

import keras
import tensorflow as tf

from keras_kd._keras_private import (
    get_mask,
    has_loss_weights,
    loss_argument,
    loss_function,
    set_mask,
    sparse_label_options,
)
from keras_kd.large_vocabulary.crossentropy import head_crossentropy
from keras_kd.large_vocabulary.fused import fused_loss
from keras_kd.losses.base import class_labels, with_rank
from keras_kd.steps import replicas


def reason_against(distiller):
    """Why the logits are needed for what the distiller was compiled with; None if they are not."""
    if distiller._compile_metrics is not None or distiller._observers.all:
        return "metrics of compile are computed from the logits"
    if distiller.balance is not None:
        return "balance= needs the gradient of each loss by itself"
    losses = _losses_of(distiller)
    if any(not sparse_label_options(loss)[0] or not loss_function(loss)[1].get("from_logits") for loss in losses):
        return "loss= must be keras.losses.SparseCategoricalCrossentropy(from_logits=True) or None"
    needing = [
        distillation_loss.name for distillation_loss in distiller.distillation_losses if distillation_loss.needs_labels
    ]
    ignored = [sparse_label_options(loss)[1] for loss in losses]
    if needing and (not losses or any(label is not None and label >= 0 for label in ignored)):
        return f"{needing[0]} needs labels, which come with loss=SparseCategoricalCrossentropy and no ignore_class >= 0"
    if has_loss_weights(distiller):
        return "loss_weights= weigh several outputs"
    return None


def losses(distiller, fusion, teacher, student, batch):
    """L_raw, the divergence, and the sum of both with their weights, through which alone the gradient flows.

    Args:
        fusion: The `Fusion` of the two models.
        teacher, student: `ModelOutputs`.
        batch: A `Batch`; its labels may be None, and L_raw is then, too.
    """
    head = fusion.of_student(student)
    tokens = tf.shape(head.hidden)[:-1]  # those of the logits would have them computed
    weight = batch.sample_weight
    over_soft = TokenMean(
        fusion.loss.reduction,
        get_mask(student.prediction),
        weight if weight is None else with_rank(weight, len(head.hidden.shape) - 1),
    )
    labels, over_hard = _labelled(distiller, student, batch)
    fused = fused_loss(
        fusion.loss,
        fusion.of_teacher(teacher),
        head,
        labels,
        soft_weights=distiller.soft_weight * fusion.loss.weight * over_soft.shares(tokens),
        hard_weights=1.0 if labels is None else distiller.hard_weight * over_hard.shares(tokens),
        jit_compile=distiller.jit_compile,
    )
    return None if labels is None else over_hard(fused.hard), over_soft(fused.soft), fused.total


def hard_loss(distiller, fusion, student, batch):
    """L_raw, through which no gradient flows; None without labels or a loss."""
    labels, over_hard = _labelled(distiller, student, batch)
    return None if labels is None else over_hard(head_crossentropy(fusion.of_student(student), labels))


def _losses_of(distiller):
    """The losses of `compile(loss=...)`, of which there is one at most where logits are done without."""
    return [loss for loss in keras.tree.flatten(loss_argument(distiller)) if loss is not None]


def _labelled(distiller, student, batch):
    """Classes `(batch, ...)` int32, -1 for those that the loss ignores, and the `TokenMean` of L_raw; or None twice."""
    compiled = _losses_of(distiller)
    if not compiled or batch.y is None:
        return None, None
    loss = compiled[0]
    labels, mask = class_labels(keras.tree.flatten(batch.y)[0], student.prediction), get_mask(student.prediction)
    _, ignored = sparse_label_options(loss)
    if ignored is not None:
        labels = tf.where(labels == ignored, -1, labels)
        mask = labels >= 0 if mask is None else tf.logical_and(mask, labels >= 0)
    return labels, TokenMean(loss.reduction, mask, batch.sample_weight)


class TokenMean:
    """The mean over the tokens of a batch as Keras takes it of a loss, from one value a token.

    Args:
        reduction: Of the loss.
        mask: bool, of the values' shape; or None.
        sample_weight: Or None.
    """

    def __init__(self, reduction, mask, sample_weight):
        self._mean = replicas.GlobalMean(AsGiven(reduction=reduction, dtype="float32"))
        self._mask, self._weight = mask, sample_weight

    def __call__(self, values):
        """The mean of values, `(batch, ...)`; a scalar."""
        return self._mean(values, set_mask(values[..., None], self._mask), self._weight)

    def shares(self, shape):
        """How much the value of each token counts, `(batch, ...)`: the mean is Σ share · value."""
        values = tf.zeros(shape)
        with tf.GradientTape() as tape:
            tape.watch(values)
            mean = self(values)
        return tf.stop_gradient(tape.gradient(mean, values))


class AsGiven(keras.losses.Loss):
    """The values themselves, `(batch, ..., 1)`: what is left of a loss are its reduction, weights and mask."""

    def call(self, y_true, y_pred):
        return y_pred[..., 0]
