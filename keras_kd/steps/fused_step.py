"""The losses on the logits of a large vocabulary, which are never held: L_raw and a divergence in one pass."""

import keras
import tensorflow as tf

from keras_kd._keras_private import (
    get_mask,
    has_loss_weights,
    has_metrics,
    loss_argument,
    loss_function,
    set_mask,
    sparse_label_options,
)
from keras_kd.large_vocabulary.fused import fused_loss
from keras_kd.large_vocabulary.heads import head_crossentropy
from keras_kd.losses.base import class_labels, with_rank
from keras_kd.steps import replicas
from keras_kd.steps.loss_terms import LossTerms


def reason_against(distiller):
    """Why the logits are needed for what the distiller was compiled with; None if they are not."""
    if has_metrics(distiller) or distiller._observers.all:
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


class FusedLossTerms(LossTerms):
    """The losses computed from the inputs of the last layers, so that the logits are never held.

    Args:
        distiller, pairing: As of `LossTerms`.
        fusion: The `Fusion` of the two models.
    """

    builds_compiled_loss = False

    def __init__(self, distiller, pairing, fusion):
        super().__init__(distiller, pairing)
        self.fusion = fusion

    def read_teacher(self, x):
        teacher = super().read_teacher(x)
        return self.fusion.without_logits(teacher, x)._replace(padding_mask=_token_mask(teacher))

    def training(self, teacher, student, batch, tape):
        """L_raw or None, each Lᵢ, and the sum of all with their weights, through which alone the gradient flows."""
        distiller, fused_loss_name = self.distiller, self.fusion.loss.name
        hard_loss, divergence, total = self._fused(teacher, student, batch)
        others = [
            None if loss.name == fused_loss_name else distiller.soft_loss(loss, self.pairing, teacher, student, batch)
            for loss in distiller.distillation_losses
        ]
        soft_losses = [divergence if loss is None else loss for loss in others]
        return hard_loss, soft_losses, total + distiller.weighted_sum(None, others, tape)

    def testing(self, student, batch):
        if batch.y is None:
            return super().testing(student, batch)
        labels, hard_mean = self._labelled(student, batch)
        regularization = self.distiller.regularization(batch.x)
        if labels is None:
            return regularization
        return hard_mean(head_crossentropy(self.fusion.student_head(student), labels)) + regularization

    def _fused(self, teacher, student, batch):
        distiller, loss = self.distiller, self.fusion.loss
        head = self.fusion.student_head(student)
        tokens = tf.shape(head.hidden)[:-1]  # the shape of the logits would have them computed
        weight = batch.sample_weight
        soft_mean = TokenMean(
            loss.reduction,
            _both(teacher.padding_mask, _token_mask(student)),
            weight if weight is None else with_rank(weight, len(head.hidden.shape) - 1),
        )
        labels, hard_mean = self._labelled(student, batch)
        fused = fused_loss(
            loss,
            self.fusion.teacher_head(teacher),
            head,
            labels,
            soft_weights=distiller.soft_weight * loss.weight * soft_mean.shares(tokens),
            hard_weights=1.0 if labels is None else distiller.hard_weight * hard_mean.shares(tokens),
            jit_compile=distiller.jit_compile,
        )
        return None if labels is None else hard_mean(fused.hard), soft_mean(fused.soft), fused.total

    def _labelled(self, student, batch):
        """Classes `(batch, ...)` int32, -1 where the loss ignores them, and the `TokenMean` of L_raw; or None twice."""
        compiled = _losses_of(self.distiller)
        if not compiled or batch.y is None:
            return None, None
        loss = compiled[0]
        labels, mask = class_labels(keras.tree.flatten(batch.y)[0], student.prediction), get_mask(student.prediction)
        _, ignored = sparse_label_options(loss)
        if ignored is not None:
            labels = tf.where(labels == ignored, -1, labels)
            mask = labels >= 0 if mask is None else tf.logical_and(mask, labels >= 0)
        return labels, TokenMean(loss.reduction, mask, batch.sample_weight)


def _token_mask(outputs):
    """Which tokens of a model's only output are no padding, `(batch, length)`; None where that is not known."""
    prediction = keras.tree.flatten(outputs.prediction)[0]
    mask = get_mask(prediction)
    return outputs.padding_mask if mask is None and len(prediction.shape) > 2 else mask


def _both(first, second):
    """The tokens in both masks; None stands for all tokens."""
    if first is None or second is None:
        return second if first is None else first
    return tf.logical_and(tf.cast(first, tf.bool), tf.cast(second, tf.bool))


def _losses_of(distiller):
    """The losses of `compile(loss=...)`: one at most, where the logits are not held."""
    return [loss for loss in keras.tree.flatten(loss_argument(distiller)) if loss is not None]


class TokenMean:
    """The mean over the tokens of a batch as Keras takes it of a loss, from one value per token.

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
        """The share of each token's value in the mean, `(batch, ...)`: the mean is Σ share · value."""
        values = tf.zeros(shape)
        with tf.GradientTape() as tape:
            tape.watch(values)
            mean = self(values)
        return tf.stop_gradient(tape.gradient(mean, values))


class AsGiven(keras.losses.Loss):
    """The values themselves, `(batch, ..., 1)`: what is left of a loss are its reduction, weights and mask."""

    def call(self, y_true, y_pred):
        return y_pred[..., 0]
