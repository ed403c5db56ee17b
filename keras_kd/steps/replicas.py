"""The replicas of a `tf.distribute` strategy: exact means over all of them, and which strategies run what."""

import contextlib
import threading

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import (
    backend_variable,
    epoch_element_spec,
    get_mask,
    replica_spec,
    set_mask,
    sparse_label_options,
)
from keras_kd.losses.base import DistillationLoss, with_rank

# Sums over replicas ----------------------------------------------------------------------------------------------


def replica_count():
    """Number of replicas that train together; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(value):
    """The sum of a tensor over all replicas; the tensor itself where there is one, or where shapes are only traced."""
    context = tf.distribute.get_replica_context()
    if context is None or replica_count() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(value))


class _Step(threading.local):  # each replica of a mirrored strategy is traced in a thread of its own
    sums = None


_STEP = _Step()


@contextlib.contextmanager
def shared_sums(x):
    """Within a step on the batch `x`, sum each number over the replicas once, however often it is asked for."""
    _STEP.sums = _SharedSums(x)
    try:
        yield
    finally:
        _STEP.sums = None


class _SharedSums:
    """The sums over replicas of one step.

    An all-reduce costs much the same for one number as for several, so the number of examples travels with the first
    check of the step.
    """

    def __init__(self, x):
        self._rows, self._rows_of_all = local_rows(x), None
        self._sums = []  # (tensors that are summed over, their sum)

    def rows(self):
        if self._rows_of_all is None:
            self._rows_of_all = sum_over_replicas(self._rows)
        return self._rows_of_all

    def with_rows(self, number):
        """The sum of an int32 scalar; that of the rows, if it is not known yet, comes with it."""
        if self._rows_of_all is not None:
            return sum_over_replicas(number)
        total, self._rows_of_all = tf.unstack(sum_over_replicas(tf.stack([number, self._rows])))
        return total

    def of(self, sources, number):
        """The sum of `number`, which is computed from a list of tensors, or None, alone."""
        for known, total in self._sums:
            if all(one is other for one, other in zip(known, sources, strict=True)):
                return total
        self._sums.append((sources, sum_over_replicas(number)))
        return self._sums[-1][1]


def local_rows(x):
    """Number of examples in the part of a batch that this replica got."""
    return keras.ops.shape(next(tensor for tensor in keras.tree.flatten(x) if tensor is not None))[0]


def rows_of_all(x):
    """Number of examples in a batch, over all replicas."""
    return (_STEP.sums or _SharedSums(x)).rows()


def all_replicas(condition):
    """Whether a bool scalar is True on every replica, within a step."""
    if replica_count() == 1:
        return condition
    return tf.equal(_STEP.sums.with_rows(tf.cast(tf.logical_not(condition), tf.int32)), 0)


def gathered(tensor):
    """The parts of a tensor that the replicas hold, one after the other, with its Keras mask; None stays None."""
    if tensor is None:
        return None
    if tensor.dtype == tf.string:
        return _gathered_strings(tensor)
    mask, context = get_mask(tensor), tf.distribute.get_replica_context()
    whole = context.all_gather(tf.convert_to_tensor(tensor), axis=0)
    return whole if mask is None else set_mask(whole, context.all_gather(mask, axis=0))


def _gathered_strings(strings):
    """Strings `(batch,)` of all replicas: as numbers, since TensorFlow does not gather strings."""
    context = tf.distribute.get_replica_context()
    characters = tf.strings.unicode_decode(strings, "UTF-8").to_tensor(-1)  # (batch, length), ended by -1
    length = tf.shape(characters)[1]
    longest = tf.reduce_max(context.all_gather(length[None], axis=0))
    characters = context.all_gather(tf.pad(characters, [[0, 0], [0, longest - length]], constant_values=-1), axis=0)
    return tf.strings.unicode_encode(tf.RaggedTensor.from_tensor(characters, padding=-1), "UTF-8")


# Means of losses -------------------------------------------------------------------------------------------------


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
        if replica_count() > 1 and isinstance(self.loss, DistillationLoss) and self.loss.relates_examples:
            return self._of_whole_batch(y_true, y_pred, sample_weight, labels)
        value = self.loss(y_true, y_pred, sample_weight, **labels)
        if replica_count() == 1 or self.loss.reduction in ("none", None):
            return value
        value = tf.reduce_sum(value)  # Keras gives a replica without examples no scalar
        if self.loss.reduction == "sum":
            return value
        count, total = self._counts(y_true, y_pred, sample_weight)
        count, total = tf.cast(count, value.dtype), tf.cast(total, value.dtype)
        return value * tf.math.divide_no_nan(count * replica_count(), total)

    def _of_whole_batch(self, y_true, y_pred, sample_weight, labels):
        """This replica's share of the value of the whole batch, which every replica computes from all outputs."""
        whole = [gathered(tensor) for tensor in (y_true, y_pred, sample_weight)]
        value = self.loss(*whole, **{name: gathered(tensor) for name, tensor in labels.items()})
        return value / replica_count() if self.loss.reduction == "sum" else value  # Keras has divided means already

    def _counts(self, y_true, y_pred, sample_weight):
        """What this replica's mean is divided by, up to a factor that all replicas share; and the sum over replicas."""
        is_distillation = isinstance(self.loss, DistillationLoss)
        mask = self.loss.token_mask(y_true, y_pred) if is_distillation else get_mask(y_pred)
        _, ignore_class = sparse_label_options(self.loss)
        weighted = self.loss.reduction == "mean_with_sample_weight" and sample_weight is not None
        if mask is None and ignore_class is None and not weighted:
            return tf.shape(y_pred)[0], rows_of_all(y_pred)
        if ignore_class is not None:
            labelled = tf.not_equal(tf.reshape(y_true, tf.shape(y_pred)[:-1]), tf.cast(ignore_class, y_true.dtype))
            mask = labelled if mask is None else tf.logical_and(mask, labelled)
        counted = 1.0 if mask is None else tf.cast(mask, tf.float32)
        if weighted:
            weight = tf.cast(sample_weight, tf.float32)
            counted *= weight if mask is None else with_rank(weight, len(mask.shape))
        count = tf.reduce_sum(counted)
        sources = (mask, sample_weight if weighted else None)
        return count, (_STEP.sums or _SharedSums(y_pred)).of(sources, count)


# Which strategies run what ---------------------------------------------------------------------------------------


def require_in_scope(student, strategy):
    """Raise ValueError if a student's variables were made under another strategy, or none trains under this one."""
    unusable_settings(strategy)
    for variable in student.trainable_variables:
        if strategy.extended.variable_created_in_scope(backend_variable(variable)):
            continue
        where = f"outside the scope of the {type(strategy).__name__} that is to train it"
        if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
            where = "inside the scope of a tf.distribute strategy, but the distiller outside of it"
        raise ValueError(
            f"student {student.name!r} was made {where} (variable {variable.path!r}). Make both inside: `with "
            "strategy.scope(): student = ...; distiller = ...`. The teacher may be made anywhere."
        )


_ACCUMULATION = ("gradient_accumulation_steps",)
_FOR_MIRRORS = (_ACCUMULATION, ("jit_compile", "steps_per_execution", *_ACCUMULATION))

# The settings of `compile` that TensorFlow cannot run under a strategy, with one replica and with several; None: it
# does not train right, whatever the settings. As seen in the tests, but for the last. What is unusable fails in
# TensorFlow, or gives wrong logs: metrics lose updates over the replicas of a CentralStorageStrategy.
UNUSABLE = {
    type(tf.distribute.get_strategy()): ((), ()),
    tf.distribute.OneDeviceStrategy: ((), ()),
    tf.distribute.MultiWorkerMirroredStrategy: _FOR_MIRRORS,
    tf.distribute.MirroredStrategy: _FOR_MIRRORS,
    tf.distribute.experimental.CentralStorageStrategy: (_ACCUMULATION, None),
    tf.distribute.TPUStrategy: ((), ()),  # not measured: no TPU was at hand
}


def unusable_settings(strategy):
    """The settings of `compile` that do not run under a strategy; ValueError where no distiller trains under it."""
    known = next((kind for kind in UNUSABLE if isinstance(strategy, kind)), None)
    replicas = 1 if known is None else strategy.num_replicas_in_sync
    settings = None if known is None else UNUSABLE[known][replicas > 1]
    if settings is None:
        several = f" with {replicas} replicas" if replicas > 1 else ""
        raise ValueError(
            f"a Distiller does not train under {type(strategy).__name__}{several}. Use MirroredStrategy, "
            "MultiWorkerMirroredStrategy, TPUStrategy or OneDeviceStrategy, or none."
        )
    return settings


def require_supported(distiller):
    """Raise ValueError for what the distiller was compiled with and its strategy cannot run."""
    strategy, optimizer = distiller.distribute_strategy, distiller.optimizer
    unusable = unusable_settings(strategy)
    if optimizer is None:
        return
    name, replicas = type(strategy).__name__, strategy.num_replicas_in_sync
    accumulation = getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps
    for argument, value, usable in [
        ("jit_compile", distiller.jit_compile, False),
        ("gradient_accumulation_steps", accumulation, None),
        ("steps_per_execution", distiller.steps_per_execution, 1),
    ]:
        if value != usable and argument in unusable:
            many = "1 replica" if replicas == 1 else f"{replicas} replicas"
            raise ValueError(f"{argument}={value} does not run under {name} with {many}. Use {usable}.")
    if not strategy.extended.variable_created_in_scope(backend_variable(optimizer.variables[0])):
        raise ValueError(
            f"optimizer was made outside the scope of the {name}. Compile inside `with strategy.scope():`."
        )


def batch_spec(epoch_iterator):
    """Shapes and dtypes of the batches that an epoch iterator hands to one replica, without drawing a batch."""
    spec = epoch_element_spec(epoch_iterator)
    without_options = lambda part: None if isinstance(part, tf.OptionalSpec) else replica_spec(part)  # noqa: E731
    return keras.tree.map_structure(without_options, spec)


# Several workers -------------------------------------------------------------------------------------------------


def with_comparison_of_workers(callbacks, distiller):
    """The callbacks of `fit`; with several workers, `CompareWorkers` after all that restore what they keep."""
    strategy = distiller.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or strategy.num_replicas_in_sync == 1:
        return callbacks
    comparison = CompareWorkers()
    if isinstance(callbacks, keras.callbacks.CallbackList):
        comparison.set_model(distiller)
        callbacks.append(comparison)
        return callbacks
    return [*keras.tree.flatten(callbacks or []), comparison]


class CompareWorkers(keras.callbacks.Callback):
    """Raises ValueError, on every worker, unless all workers start at the same step with the same weights.

    They need not after a restart: `keras.callbacks.BackupAndRestore` knows one process only, so that workers stopped
    between two workers' backups restore different epochs, and would train on without an error.
    """

    def on_train_begin(self, logs=None):
        steps, sums = self._gathered_states()
        same_steps, scale = (steps == steps[0]).all(), np.abs(sums[0]).max(initial=1.0)
        if same_steps and np.allclose(sums, sums[0], rtol=0.0, atol=1e-6 * scale):
            return
        each = ", ".join(f"replica {index}: step {step}" for index, step in enumerate(steps))
        raise ValueError(
            f"the workers start {'with different weights' if same_steps else 'at different steps'} ({each}), as after "
            "a restart from backups of different epochs. Give each worker a backup folder of its own, and restore the "
            "same epoch on all: replace the newer backups by a copy of the oldest worker's, or remove all of them."
        )

    def _gathered_states(self):
        """The step of each replica, `(replicas,)`, and the sum and sum of squares of its weights, `(replicas, 2 n)`."""
        strategy, iterations = self.model.distribute_strategy, self.model.optimizer.iterations
        weights = [backend_variable(variable) for variable in self.model.trainable_variables]

        def gather():
            values = [tf.cast(weight, tf.float64) for weight in weights]
            sums = [reduced for value in values for reduced in (tf.reduce_sum(value), tf.reduce_sum(value**2))]
            state = tf.stack([tf.cast(tf.convert_to_tensor(iterations), tf.float64), *sums])
            return tf.distribute.get_replica_context().all_gather(state[None], axis=0)

        states = strategy.experimental_local_results(tf.function(lambda: strategy.run(gather))())[0].numpy()
        return states[:, 0].astype(np.int64), states[:, 1:]
