"""Several workers of a `tf.distribute` strategy: whether they stand at the same step with the same weights."""

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import backend_variable


def comparing(callbacks, distiller):
    """The callbacks of `fit`; with several workers, one more at the end, which compares where the workers stand."""
    strategy = distiller.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or strategy.num_replicas_in_sync == 1:
        return callbacks
    comparison = _Comparison()
    if isinstance(callbacks, keras.callbacks.CallbackList):
        comparison.set_model(distiller)
        callbacks.append(comparison)
        return callbacks
    return [*keras.tree.flatten(callbacks or []), comparison]


class _Comparison(keras.callbacks.Callback):
    """Compares after the other callbacks have restored what they keep, also where no epoch is left to be trained."""

    def on_train_begin(self, logs=None):
        require_same_state(self.model)


def require_same_state(distiller):
    """Raise ValueError, on every worker, unless all workers stand at the same step with the same weights.

    They need not after a restart: `keras.callbacks.BackupAndRestore` knows one process only, so that workers stopped
    between two workers' backups restore different epochs, and would train on without an error.
    """
    steps, sums = _gathered_states(distiller, distiller.distribute_strategy)
    scale = np.abs(sums[0]).max(initial=1.0)
    if (steps == steps[0]).all() and np.allclose(sums, sums[0], rtol=0.0, atol=1e-6 * scale):
        return
    each = ", ".join(f"replica {index}: step {step}" for index, step in enumerate(steps))
    difference = "at different steps" if (steps != steps[0]).any() else "with different weights"
    raise ValueError(
        f"the workers start {difference} ({each}), as after a restart from backups of different epochs. Give each "
        "worker a backup folder of its own, and restore the same epoch on all: replace the newer backups by a copy of "
        "the oldest worker's, or remove all of them."
    )


def _gathered_states(distiller, strategy):
    """The step of each replica, `(replicas,)`, and the sum and sum of squares of its weights, `(replicas, 2 n)`."""
    weights = [backend_variable(variable) for variable in distiller.trainable_variables]
    iterations = distiller.optimizer.iterations

    def gather():
        values = [tf.cast(weight, tf.float64) for weight in weights]
        sums = [reduced for value in values for reduced in (tf.reduce_sum(value), tf.reduce_sum(value**2))]
        state = tf.stack([tf.cast(tf.convert_to_tensor(iterations), tf.float64), *sums])
        return tf.distribute.get_replica_context().all_gather(state[None], axis=0)

    states = strategy.experimental_local_results(tf.function(lambda: strategy.run(gather))())[0].numpy()
    return states[:, 0].astype(np.int64), states[:, 1:]
