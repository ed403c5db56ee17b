"""The step on the TensorFlow backend: train_step, test_step, and what `fit` builds and checks before the first one."""

import keras
import tensorflow as tf
from keras import ops

from keras_kd import _keras_private, fit_checks
from keras_kd.steps import guards, replicas


class TensorFlowStep:
    """What a `Distiller` does with a batch. Mixed in before `keras.Model`.

    Relies on the distiller for its parts: `objectives`, `objective_trackers`, `hard_loss_tracker`, `soft_weight`,
    `hard_weight`, `read_teacher`, `read_student`, `pair_signals` and `project`.
    """

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher, teacher_is_sound = self._sound_teacher_signals(x)
        with tf.GradientTape() as tape:
            student = self.read_student(x, training=True)
            y = self._sound_labels(y, student.prediction)
            hard_loss = self._hard_loss(y, student.prediction, sample_weight)
            soft_losses = self._soft_losses(teacher, student, sample_weight)
            loss = self._total(hard_loss, soft_losses, self._regularization(x))
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = guards.keep_where(teacher_is_sound, tape.gradient(scaled_loss, variables))
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        self._track(self._loss_tracker, loss, x)
        for tracker, value in zip(self.objective_trackers, soft_losses, strict=True):
            self._track(tracker, value, x)
        if hard_loss is not None:
            self._track(self.hard_loss_tracker, hard_loss, x)
        results = self.compute_metrics(x, y, student.prediction, sample_weight)
        absent = {self.hard_loss_tracker.name} if hard_loss is None else set()
        return self._logs(results, absent)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        prediction = self.read_student(x, training=False).prediction
        self._track(self._loss_tracker, self.compute_loss(x, y, prediction, sample_weight, training=False), x)
        results = self.compute_metrics(x, y, prediction, sample_weight)
        return self._logs(results, {self.hard_loss_tracker.name, *(t.name for t in self.objective_trackers)})

    # Losses ------------------------------------------------------------------------------------------------------

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The student's own loss, which `evaluate` reports: L_raw and regularization; 0 where there is neither."""
        hard_loss = self._hard_loss(y, y_pred, sample_weight)
        regularization = self._regularization(x)
        return regularization if hard_loss is None else hard_loss + regularization

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics of `compile` where there are labels; return the results of all metrics."""
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        """Results of all metrics, but for those of `compile` that have never seen a label."""
        compiled = self._compile_metrics
        if compiled is None or compiled.built:
            return super().get_metrics_result()
        return {metric.name: metric.result() for metric in self.metrics if metric is not compiled}

    def _hard_loss(self, y, prediction, sample_weight):
        if self._compile_loss is None or y is None:
            return None
        return ops.cast(self._compile_loss(y, prediction, sample_weight), "float32")

    def _soft_losses(self, teacher, student, sample_weight):
        """One value an objective, without its weight: the mean over the batch, summed over pairs of outputs."""
        losses = []
        for objective in self.objectives:
            pairs = self.pair_signals(objective, teacher, student)
            weights = self.sample_weights_of(objective, student, sample_weight)
            mean = replicas.GlobalMean(objective)
            values = [
                mean(teacher_tensor, self.project(objective, student_tensor), _rank_matched(weight, student_tensor))
                for (teacher_tensor, student_tensor), weight in zip(pairs, weights, strict=True)
            ]
            losses.append(ops.cast(sum(values), "float32"))
        return losses

    def _regularization(self, x):
        """The student's regularization losses, each replica's part of them, as `keras.Model` adds them."""
        losses = [ops.cast(ops.sum(loss), "float32") for loss in self.losses]
        if not losses:
            return ops.zeros((), "float32")
        rows = ops.cast(_rows(x), "float32")
        return sum(losses) * tf.math.divide_no_nan(rows, replicas.sum_over_replicas(rows))

    def _total(self, hard_loss, soft_losses, regularization):
        """L = hard_weight · L_raw + soft_weight · Σ wᵢ Lᵢ + regularization."""
        soft_loss = sum(objective.weight * value for objective, value in zip(self.objectives, soft_losses, strict=True))
        loss = self.soft_weight * soft_loss + regularization
        return loss if hard_loss is None else self.hard_weight * hard_loss + loss

    # Checks ------------------------------------------------------------------------------------------------------

    def _sound_teacher_signals(self, x):
        """The teacher's signals, and whether they are free of NaN and Inf.

        Outside XLA a batch where they are not fails here. XLA drops assertions: there the batch's gradients are
        dropped, and the step is noted in `_unsound_step`, which is looked at behind each call of the train function.
        """
        signals = self.read_teacher(x)
        finite = guards.all_finite(signals)
        step = tf.cast(self.optimizer.iterations, tf.int64)
        if not self.jit_compile:
            return guards.require(finite, "teacher", step, signals), None
        first = tf.logical_and(tf.logical_not(finite), self._unsound_step < 0)
        self._unsound_step.assign(tf.where(first, step, self._unsound_step))
        return signals, finite

    def _sound_labels(self, y, prediction):
        """The labels; where they are the integer classes of a single output, the step fails if one is out of range."""
        is_sparse, ignore_class = _keras_private.sparse_label_options(_keras_private.loss_argument(self))
        if (
            not is_sparse
            or y is None
            or keras.tree.is_nested(y)
            or keras.tree.is_nested(prediction)
            or self.jit_compile
        ):
            return y
        inside = guards.labels_in_range(tf.cast(y, tf.int64), prediction.shape[-1], ignore_class)
        return guards.require(inside, "labels", self.optimizer.iterations, y)

    # What Keras asks for before the first step ---------------------------------------------------------------------

    def compile(self, *args, **kwargs):
        self._compile_loss = self._compile_metrics = None  # else Keras keeps those of an earlier compile(loss=...)
        super().compile(*args, **kwargs)
        fit_checks.warn_of_mistaken_logits(self)
        replicas.require_supported(self.distribute_strategy, self.steps_per_execution, self.jit_compile)
        replicas.require_in_scope(self.student, self.distribute_strategy, "student")
        self._unsound_step = tf.Variable(-1, dtype=tf.int64, trainable=False)

    def compile_from_config(self, config):
        """Compile a loaded distiller as it was, with its optimizer's variables ready to be restored."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force=False):
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        self.train_function = guards.raising_value_errors(self.train_function, self._raise_if_unsound)

    def _raise_if_unsound(self):
        """Under XLA: raise if the step met a teacher that gave NaN or Inf."""
        if not self.jit_compile:
            return
        step = int(self._unsound_step)
        if step >= 0:
            self._unsound_step.assign(-1)
            raise guards.explain("teacher", step)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Build the optimizer; under a strategy also loss and metrics, from the data's shapes alone.

        Keras builds them from the first batch, which it averages over replicas: that fails for an uneven batch and
        for several workers.
        """
        self.optimizer.build(self.trainable_variables)
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch if iterator is None else replicas.batch_spec(iterator))
        _keras_private.replace_compiled_losses(self, replicas.GlobalMean)

    def _get_metrics_result_or_logs(self, logs):
        """The logs of an epoch: each metric over all replicas, and the knobs that a schedule may have turned."""
        if not logs:
            raise ValueError(
                "x is an empty dataset: it gave no batch. Check its source, filters and batch(drop_remainder)."
            )
        results = self.get_metrics_result()
        merged = {name: results.get(name, value) for name, value in logs.items()}
        trained = any(tracker.name in logs for tracker in self.objective_trackers)
        return merged | (self.knob_logs() if trained else {})

    # Logs --------------------------------------------------------------------------------------------------------

    def _track(self, tracker, value, x):
        """Count a replica's part of a mean over the batch, so that the sum over replicas is that mean."""
        count = replicas.replica_count()
        rows = replicas.sum_over_replicas(_rows(x))
        tracker.update_state(value * count, sample_weight=ops.cast(rows, "float32") / count)

    def _logs(self, results, absent):
        logs = {name: value for name, value in results.items() if name not in absent}
        return replicas.worker_logs(logs, self.distribute_strategy)


def _rows(x):
    """Number of examples in the batch that this replica got."""
    return tf.shape(next(tensor for tensor in keras.tree.flatten(x) if tensor is not None))[0]


def _rank_matched(weight, signal):
    """Sample weights with ones behind their shape, so that `(batch,)` weighs every token of `(batch, length)`."""
    missing = 0 if weight is None else len(signal.shape) - 1 - len(weight.shape)
    for _ in range(missing):
        weight = ops.expand_dims(weight, -1)
    return weight
