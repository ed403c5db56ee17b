"""What the step on every Keras backend shares: the losses, the metrics, the logs, and what `compile` takes."""

import functools
from typing import NamedTuple

import keras
from keras import ops

from keras_kd._languages import languages_of
from keras_kd.losses.base import with_rank
from keras_kd.outputs.precomputed import without_teacher_outputs
from keras_kd.steps import data_checks, replicas
from keras_kd.steps.observers import Observers


class Batch(NamedTuple):
    """What a step gets: inputs, labels or None, sample weights or None."""

    x: object
    y: object
    sample_weight: object


class CommonStep:
    """What a `Distiller` does with a batch, as far as every backend does it alike. Mixed in before `keras.Model`.

    Relies on the distiller for its parts: `losses`, `objective_trackers`, `hard_loss_tracker`, `soft_weight`,
    `hard_weight`, `connection_of` and `project`.

    The step of a backend has, besides `train_step` and `test_step`: `require_in_scope(student)`, `_check_compiled()`,
    `_build_optimizer()`, and `_gradient_norms(losses, tape)` where a balance is to have them.
    """

    def _examine(self, data):
        """Compare the student with the labels of a batch, and with the teacher if a metric asks for it; the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        terms = self.connection_of(x).terms
        pairing = terms.pairing
        teacher = pairing.read_teacher(x) if self._observers.need_teacher else None
        x = without_teacher_outputs(x)
        student = pairing.read_student(x, training=False)
        loss = terms.testing(student, Batch(x, y, sample_weight))
        self._track([self._loss_tracker], [loss], x)
        if teacher is not None:
            self._observers.compare(*pairing.logits(teacher, student), sample_weight)
        results = self.compute_metrics(x, y, student.prediction, sample_weight)
        return self._logs(results, {self.hard_loss_tracker.name, *(t.name for t in self.distillation_loss_trackers)}, y)

    def _report(self, pairing, teacher, student, batch, losses):
        """Count a step of training in all metrics; the logs.

        Args:
            losses: `(L, L_raw or None, [Lᵢ])`.
        """
        loss, hard_loss, soft_losses = losses
        trackers, values = [self._loss_tracker, *self.distillation_loss_trackers], [loss, *soft_losses]
        if hard_loss is not None:
            trackers, values = [*trackers, self.hard_loss_tracker], [*values, hard_loss]
        self._track(trackers, values, batch.x)
        if self._observers.need_teacher:
            self._observers.compare(*pairing.logits(teacher, student), batch.sample_weight)
        return self._train_logs(
            self.compute_metrics(batch.x, batch.y, student.prediction, batch.sample_weight), batch.y
        )

    # Losses ----------------------------------------------------------------------------------------------------------

    def dense_losses(self, pairing, teacher, student, batch, tape):
        """L_raw or None, each Lᵢ, and the sum that is minimized."""
        hard_loss = self._hard_loss(batch.y, student.prediction, batch.sample_weight)
        soft_losses = [
            self.soft_loss(distillation_loss, pairing, teacher, student, batch)
            for distillation_loss in self.distillation_losses
        ]
        return hard_loss, soft_losses, self.weighted_sum(hard_loss, soft_losses, tape)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The student's own loss, which `evaluate` reports: L_raw and regularization; 0 where there is neither."""
        hard_loss = self._hard_loss(y, y_pred, sample_weight)
        regularization = self.regularization(x)
        return regularization if hard_loss is None else hard_loss + regularization

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics of `compile` where there are labels; return the results of all metrics."""
        if y is None:
            return self.get_metrics_result()
        self._observers.score(x, y, y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self):
        """The metrics of the step, of `compile` and of the student's layers, each once."""
        return [*super().metrics, *self._observers.all]

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

    def soft_loss(self, distillation_loss, pairing, teacher, student, batch):
        """Lᵢ, without its weight: the mean over the batch, summed over pairs of outputs."""
        return ops.cast(sum(self._values(distillation_loss, pairing, teacher, student, batch)), "float32")

    def _values(self, distillation_loss, pairing, teacher, student, batch):
        """The value of a loss for each pair of outputs that it compares."""
        mean = replicas.GlobalMean(distillation_loss)
        for pair in pairing.pairs(distillation_loss, teacher, student, batch.y, batch.sample_weight):
            projected = self.project(pair)
            weight = pair.sample_weight
            if weight is not None:
                weight = with_rank(weight, distillation_loss.value_rank(len(projected.shape)))
            options = {"labels": pair.labels} if distillation_loss.needs_labels else {}
            if distillation_loss.language_key is not None:
                options["languages"] = languages_of(batch.x, distillation_loss.language_key, distillation_loss.name)
            yield mean(pair.teacher, projected, weight, **options)

    def regularization(self, x):
        """The student's regularization losses, each replica's part of them, as `keras.Model` adds them."""
        losses = [ops.cast(ops.sum(loss), "float32") for loss in self.losses]
        if not losses:
            return ops.zeros((), "float32")
        rows, rows_of_all = (ops.cast(count, "float32") for count in (replicas.local_rows(x), replicas.rows_of_all(x)))
        return sum(losses) * ops.divide_no_nan(rows, rows_of_all)

    def weighted_sum(self, hard_loss, soft_losses, tape):
        """hard_weight · L_raw + soft_weight · Σ wᵢ Lᵢ, each with its factor where they are balanced."""
        losses = [hard_loss, *soft_losses]
        weights = [
            self.hard_weight,
            *(self.soft_weight * distillation_loss.weight for distillation_loss in self.distillation_losses),
        ]
        if self.balance is None:
            factors, penalty = [1.0] * len(losses), 0.0
        else:
            factors = self.balance.factors(lambda: self._gradient_norms(losses, tape), self.optimizer.iterations)
            factors = ops.unstack(ops.stop_gradient(factors) if self.balance.needs_gradients else factors, len(losses))
            penalty = self.balance.penalty([loss is not None for loss in losses]) / replicas.replica_count()
        terms = zip(weights, factors, losses, strict=True)
        return sum(weight * factor * loss for weight, factor, loss in terms if loss is not None) + penalty

    # What Keras asks for ---------------------------------------------------------------------------------------------

    @functools.wraps(keras.Model.compile)
    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, weighted_metrics=None, *args, **kwargs
    ):
        self._compile_loss = self._compile_metrics = None  # else Keras keeps those of an earlier compile(loss=...)
        self._observers = observers = Observers(metrics, weighted_metrics)
        super().compile(optimizer, loss, loss_weights, observers.metrics, observers.weighted_metrics, *args, **kwargs)
        data_checks.warn_of_mistaken_logits(self)
        data_checks.require_distinct_metrics(self, metrics, weighted_metrics)
        self._check_compiled()
        for connection in filter(None, (self._live, self._precomputed)):
            self._choose_terms(connection)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, **keras.saving.serialize_keras_object(self._observers.given)}

    def compile_from_config(self, config):
        """Compile a loaded distiller as it was, with its optimizer's variables ready to be restored."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    def _get_metrics_result_or_logs(self, logs):
        """The logs of an epoch: each metric over all replicas, and the hyperparameters that a schedule may set."""
        if not logs:
            raise ValueError(
                "x is an empty dataset: it gave no batch. Check its source, filters and batch(drop_remainder)."
            )
        results = self.get_metrics_result()
        merged = {name: results.get(name, value) for name, value in logs.items()}
        trained = any(tracker.name in logs for tracker in self.distillation_loss_trackers)
        return merged | (self.hyperparameter_logs() if trained else {})

    # Logs ------------------------------------------------------------------------------------------------------------

    def _track(self, trackers, values, x):
        """Count a replica's part of each mean over the batch, so that the sum over replicas is that mean."""
        rows = ops.cast(replicas.rows_of_all(x), "float32")
        share = rows if replicas.replica_count() == 1 else rows / replicas.replica_count()
        for tracker, value in zip(trackers, values, strict=True):  # update_state makes 20 operations of these two
            tracker.total.assign_add(value * rows)
            tracker.count.assign_add(share)

    def _train_logs(self, results, y):
        unlabelled = self._compile_loss is None or y is None
        return self._logs(results, {self.hard_loss_tracker.name} if unlabelled else set(), y)

    def _logs(self, results, absent, y):
        absent = absent if y is not None else absent | self._observers.score_names()
        return {name: value for name, value in results.items() if name not in absent}
