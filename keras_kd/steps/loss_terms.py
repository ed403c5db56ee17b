"""The losses of a step, from the outputs of a student and a teacher: of the logits, or where those are never held."""

import keras
import tensorflow as tf
from keras import ops

from keras_kd._keras_private import (
    get_mask,
    has_loss_weights,
    has_metrics,
    loss_argument,
    loss_function,
    set_mask,
    sparse_label_options,
)
from keras_kd._languages import entry_of, languages_of
from keras_kd.large_vocabulary.fused import fused_loss
from keras_kd.large_vocabulary.heads import head_crossentropy
from keras_kd.losses.base import class_labels, with_rank
from keras_kd.steps import replicas


def chosen_terms(distiller, pairing, fusion=None):
    """The `LossTerms` for what the distiller is compiled with: without the logits where that and `fusion` allow it."""
    is_fused = fusion is not None and distiller.compiled and reason_against(distiller) is None
    return (FusedLossTerms if is_fused else LossTerms)(distiller, pairing, fusion)


def reason_against(distiller):
    """Why the logits are needed for what the distiller was compiled with; None if they are not."""
    if keras.backend.backend() != "tensorflow":
        return "it needs the tensorflow backend: KERAS_BACKEND=tensorflow"
    if has_metrics(distiller) or distiller._observers.all:
        return "metrics of compile are computed from the logits"
    if distiller.balance is not None:
        return "balance= needs the value of each loss by itself"
    losses = _losses_of(distiller)
    if any(not sparse_label_options(loss)[0] or not loss_function(loss)[1].get("from_logits") for loss in losses):
        return "loss= must be keras.losses.SparseCategoricalCrossentropy(from_logits=True) or None"
    needing = [loss.name for loss in distiller.distillation_losses if loss.needs_labels]
    ignored = [sparse_label_options(loss)[1] for loss in losses]
    if needing and (not losses or any(label is not None and label >= 0 for label in ignored)):
        return f"{needing[0]} needs labels, which come with loss=SparseCategoricalCrossentropy and no ignore_class >= 0"
    if has_loss_weights(distiller):
        return "loss_weights= weigh several outputs"
    return None


class LossTerms:
    """The losses of a student and a teacher, live or precomputed, computed from the logits.

    `fusion` says how they could be computed without the logits, a `Fusion`; None if they cannot.
    """

    builds_compiled_loss = True  # whether a traced step builds the loss of `compile`

    def __init__(self, distiller, pairing, fusion=None):
        self.distiller, self.pairing, self.fusion = distiller, pairing, fusion

    def read_teacher(self, x):
        """The teacher's `ModelOutputs` for a batch; None for a student that teaches itself."""
        return self.pairing.read_teacher(x)

    def training(self, teacher, student, batch):
        """L_raw or None, each Lᵢ, and the sum that is minimized."""
        distiller = self.distiller
        hard_loss = distiller.hard_loss(batch.y, student.prediction, batch.sample_weight)
        soft_losses = [self.soft_loss(loss, teacher, student, batch) for loss in distiller.distillation_losses]
        return hard_loss, soft_losses, distiller.weighted_sum(hard_loss, soft_losses)

    def testing(self, student, batch):
        """L_raw and regularization of a batch that is not trained on."""
        return self.distiller.compute_loss(batch.x, batch.y, student.prediction, batch.sample_weight, training=False)

    def soft_loss(self, loss, teacher, student, batch):
        """Lᵢ, without its weight: the mean over the batch, summed over pairs of outputs."""
        mean, total = replicas.GlobalMean(loss), 0.0
        for pair in self.pairing.pairs(loss, teacher, student, batch.y, batch.sample_weight):
            projected, weight = self.distiller.project(pair), pair.sample_weight
            if weight is not None:
                weight = with_rank(weight, loss.value_rank(len(projected.shape)))
            options = {"labels": pair.labels} if loss.needs_labels else {}
            if loss.language_key is not None:
                options["languages"] = languages_of(batch.x, loss.language_key, loss.name)
            for argument, entry in loss.batch_entries.items():
                options[argument] = entry_of(batch.x, entry, f"{loss.name} needs {argument}")
            total += mean(pair.teacher, projected, weight, **options)
        return ops.cast(total, "float32")


class FusedLossTerms(LossTerms):
    """The losses computed from the inputs of the last layers, by the `fusion`, so that the logits are never held."""

    builds_compiled_loss = False

    def read_teacher(self, x):
        teacher = super().read_teacher(x)
        return self.fusion.without_logits(teacher, x)._replace(padding_mask=_token_mask(teacher))

    def training(self, teacher, student, batch):
        """L_raw or None, each Lᵢ, and the sum of all with their weights, through which alone the gradient flows."""
        distiller = self.distiller
        hard_loss, divergence, total = self._fused(teacher, student, batch)
        others = [
            None if loss is self.fusion.loss else self.soft_loss(loss, teacher, student, batch)
            for loss in distiller.distillation_losses
        ]
        soft_losses = [divergence if loss is None else loss for loss in others]
        return hard_loss, soft_losses, total + distiller.weighted_sum(None, others)

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
        soft_mean = token_mean(
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
            soft_weights=distiller.soft_weight * loss.weight * shares(soft_mean, tokens),
            hard_weights=1.0 if labels is None else distiller.hard_weight * shares(hard_mean, tokens),
            jit_compile=distiller.jit_compile,
        )
        return None if labels is None else hard_mean(fused.hard), soft_mean(fused.soft), fused.total

    def _labelled(self, student, batch):
        """Classes `(batch, ...)` int32, -1 where the loss ignores them, and the `token_mean` of L_raw; or Nones."""
        compiled = _losses_of(self.distiller)
        if not compiled or batch.y is None:
            return None, None
        loss = compiled[0]
        labels, mask = class_labels(keras.tree.flatten(batch.y)[0], student.prediction), get_mask(student.prediction)
        _, ignored = sparse_label_options(loss)
        if ignored is not None:
            labels = tf.where(labels == ignored, -1, labels)
            mask = labels >= 0 if mask is None else tf.logical_and(mask, labels >= 0)
        return labels, token_mean(loss.reduction, mask, batch.sample_weight)


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


def token_mean(reduction, mask, sample_weight):
    """The mean over a batch as Keras takes it of a loss: a function of one value per token, of the mask's shape."""
    mean = replicas.GlobalMean(AsGiven(reduction=reduction, dtype="float32"))
    return lambda values: mean(values, set_mask(values[..., None], mask), sample_weight)


def shares(mean, shape):
    """The share of each token's value in a `token_mean`, of this shape: the mean is Σ share · value."""
    values = tf.zeros(shape)
    with tf.GradientTape() as tape:
        tape.watch(values)
        result = mean(values)
    return tf.stop_gradient(tape.gradient(result, values))


class AsGiven(keras.losses.Loss):
    """The values themselves, `(batch, ..., 1)`: what is left of a loss are its reduction, weights and mask."""

    def call(self, y_true, y_pred):
        return y_pred[..., 0]
