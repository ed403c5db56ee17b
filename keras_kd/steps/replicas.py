"""Exact means over all replicas of a `tf.distribute` strategy, whatever share of the batch each of them got."""

import keras
import tensorflow as tf
from tensorflow.python.distribute.values import PerReplicaSpec

from keras_kd._keras_private import backend_variable, get_mask, sparse_label_options
from keras_kd.losses.base import DistillationLoss


def replica_count():
    """Number of replicas that train together; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(value):
    """The sum of a scalar over all replicas; the scalar itself where there is one, or where shapes are only traced."""
    context = tf.distribute.get_replica_context()
    if context is None or replica_count() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


class GlobalMean:
    """A loss whose per-replica values add up to the mean over the whole batch, also of an uneven one.

    Keras divides by the examples (or unmasked tokens) of one replica and by the number of replicas, which is the
    global mean only when all replicas hold equally many. This multiplies by `count · replicas / Σ count`, so that
    the sum over replicas is `Σ loss / Σ count`.

    Args:
        loss: A `keras.losses.Loss`. One that is summed, not averaged, is left as it is.
    """

    def __init__(self, loss):
        self.loss = loss.loss if isinstance(loss, GlobalMean) else loss

    def __call__(self, y_true, y_pred, sample_weight=None, **labels):
        value = self.loss(y_true, y_pred, sample_weight, **labels)
        if replica_count() == 1 or self.loss.reduction in ("sum", "none", None):
            return value
        count = tf.cast(self._count(y_true, y_pred, sample_weight), value.dtype)
        return value * tf.math.divide_no_nan(count * replica_count(), sum_over_replicas(count))

    def _count(self, y_true, y_pred, sample_weight):
        """What this replica's mean is divided by, up to a factor that all replicas share."""
        own = isinstance(self.loss, DistillationLoss)
        mask = self.loss.token_mask(y_true, y_pred) if own else get_mask(y_pred)
        _, ignore_class = sparse_label_options(self.loss)
        if ignore_class is not None:
            labelled = tf.not_equal(tf.reshape(y_true, tf.shape(y_pred)[:-1]), tf.cast(ignore_class, y_true.dtype))
            mask = labelled if mask is None else tf.logical_and(mask, labelled)
        weighted = self.loss.reduction == "mean_with_sample_weight" and sample_weight is not None
        counted = tf.cast(sample_weight, tf.float32) if weighted else None
        if mask is not None:
            mask = tf.cast(mask, tf.float32)
            counted = mask if counted is None else mask * tf.reshape(counted, _broadcastable(counted, mask))
        return tf.shape(y_pred)[0] if counted is None else tf.reduce_sum(counted)


def require_in_scope(student, strategy):
    """Raise ValueError if the student's variables were not made under the strategy that is to train it."""
    for variable in student.trainable_variables:
        if strategy.extended.variable_created_in_scope(backend_variable(variable)):
            continue
        if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
            where = "inside the scope of a tf.distribute strategy, but the distiller outside of it"
        else:
            where = f"outside the scope of the {type(strategy).__name__} that is to train it"
        raise ValueError(
            f"student {student.name!r} was made {where} (variable {variable.path!r}). Make both inside: `with "
            "strategy.scope(): student = ...; distiller = ...`. The teacher may be made anywhere."
        )


def require_supported(distiller):
    """Raise ValueError for what the distiller was compiled with and a mirrored strategy cannot run."""
    strategy, optimizer = distiller.distribute_strategy, distiller.optimizer
    mirrored = isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy))
    if not mirrored or optimizer is None:
        return
    name, replicas = type(strategy).__name__, strategy.num_replicas_in_sync
    accumulation = getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps
    settings = [("jit_compile", distiller.jit_compile, False), ("gradient_accumulation_steps", accumulation, None)]
    if replicas > 1:
        settings.append(("steps_per_execution", distiller.steps_per_execution, 1))
    for argument, value, usable in settings:
        if value != usable:
            raise ValueError(f"{argument}={value} does not run under {name} with {replicas} replicas. Use {usable}.")
    if not strategy.extended.variable_created_in_scope(backend_variable(optimizer.iterations)):
        raise ValueError(
            f"optimizer was made outside the scope of the {name} that is to use it. Compile inside: `with "
            "strategy.scope(): distiller.compile(...)`."
        )


def batch_spec(epoch_iterator):
    """Shapes and dtypes of the batches that an epoch iterator hands to one replica, without drawing a batch."""

    def on_one_replica(spec):
        if isinstance(spec, tf.OptionalSpec):
            return None
        return spec._value_specs[0] if isinstance(spec, PerReplicaSpec) else spec

    return keras.tree.map_structure(on_one_replica, epoch_iterator._distributed_dataset.element_spec)


def worker_logs(logs, strategy):
    """Logs in the shape that Keras reduces over several workers: rank 1; elsewhere as they are."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return logs
    return {name: tf.reshape(value, (1,)) for name, value in logs.items()}


def _broadcastable(tensor, other):
    """The tensor's shape with ones behind it, up to the rank of `other`."""
    return tf.concat([tf.shape(tensor), tf.ones(len(other.shape) - len(tensor.shape), tf.int32)], 0)
