"""What the step on every Keras backend shares: checks, metrics and logs, and what `compile` takes."""

import functools
import warnings
from typing import NamedTuple

import keras
from keras import ops

from keras_kd.large_vocabulary.fusion import refusal
from keras_kd.outputs.precomputed import without_teacher_outputs
from keras_kd.steps import data_checks, guards, replicas
from keras_kd.steps.loss_terms import chosen_terms, reason_against
from keras_kd.steps.observers import Observers


class Batch(NamedTuple):
    """What a step gets: inputs, labels or None, sample weights or None."""

    x: object
    y: object
    sample_weight: object


class CommonStep:
    """What a `Distiller` does with a batch, as far as every backend does it alike. Mixed in before `keras.Model`.

    The step of a backend has, besides `train_step`: `_check_compiled()`, which raises ValueError for what the backend
    does not run, `_checked(condition, check, tensors)` and `_raising(function, is_train)`.
    """

    _needs_new_trace = False  # for the first labels that a step gets

    def _read(self, data):
        """The `LossTerms` for a training batch, the teacher's outputs (None if it is the student), and the `Batch`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        terms = self.terms_of(x)
        teacher, batch = terms.read_teacher(x), Batch(without_teacher_outputs(x), y, sample_weight)
        teacher, batch = self._checked(guards.all_finite(teacher), "teacher", (teacher, batch))
        return terms, teacher, batch

    def _loss_and_report(self, terms, teacher, batch):
        """L of a training batch, and a function that counts the step in all metrics and gives the logs."""
        student = terms.pairing.read_student(batch.x, training=True)
        teacher = student.detached() if teacher is None else teacher
        self._look_for_probabilities(terms.pairing, teacher, student)
        targets = list(data_checks.sparse_targets(self, batch.y, student.prediction))
        if targets:
            batch = batch._replace(y=self._checked(guards.labels_in_range(targets), "labels", batch.y))
        hard_loss, soft_losses, total = terms.training(teacher, student, batch)
        loss = total + self.regularization(batch.x)

        def report():
            trackers, values = [self._loss_tracker, *self.distillation_loss_trackers], [loss, *soft_losses]
            if hard_loss is not None:
                trackers, values = [*trackers, self.hard_loss_tracker], [*values, hard_loss]
            self._track(trackers, values, batch.x)
            unlabelled = self._compile_loss is None or batch.y is None
            absent = {self.hard_loss_tracker.name} if unlabelled else set()
            return self._logs(terms.pairing, teacher, student.detached(), batch, absent)

        return loss, report

    def _look_for_probabilities(self, pairing, teacher, student):
        """Notice outputs, `ModelOutputs`, that are taken for logits and look like probabilities."""

    def test_step(self, data):
        """Compare the student with the labels of a batch, and with the teacher if a metric asks for it; the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        terms = self.terms_of(x)
        with replicas.shared_sums(x):
            teacher = terms.pairing.read_teacher(x) if self._observers.need_teacher else None
            batch = Batch(without_teacher_outputs(x), y, sample_weight)
            student = terms.pairing.read_student(batch.x, training=False)
            self._track([self._loss_tracker], [terms.testing(student, batch)], batch.x)
            absent = {tracker.name for tracker in (self.hard_loss_tracker, *self.distillation_loss_trackers)}
            return self._logs(terms.pairing, teacher, student, batch, absent)

    # Losses ----------------------------------------------------------------------------------------------------------

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The student's own loss, which `evaluate` reports: L_raw and regularization; 0 where there is neither."""
        hard_loss, regularization = self.hard_loss(y, y_pred, sample_weight), self.regularization(x)
        return regularization if hard_loss is None else hard_loss + regularization

    def hard_loss(self, y, prediction, sample_weight):
        """L_raw; None without a loss or without labels."""
        if self._compile_loss is None or y is None:
            return None
        return ops.cast(self._compile_loss(y, prediction, sample_weight), "float32")

    def regularization(self, x):
        """The student's regularization losses, each replica's part of them, as `keras.Model` adds them."""
        losses = [ops.cast(ops.sum(loss), "float32") for loss in self.losses]
        if not losses:
            return ops.zeros((), "float32")
        rows, rows_of_all = (ops.cast(count, "float32") for count in (replicas.local_rows(x), replicas.rows_of_all(x)))
        return sum(losses) * ops.divide_no_nan(rows, rows_of_all)

    def weighted_sum(self, hard_loss, soft_losses):
        """hard_weight · L_raw + soft_weight · Σ wᵢ Lᵢ, each with its factor where they are balanced."""
        losses = [hard_loss, *soft_losses]
        weights = [self.hard_weight, *(self.soft_weight * loss.weight for loss in self.distillation_losses)]
        if self.balance is None:
            factors, penalty = [1.0] * len(losses), 0.0
        else:
            factors = ops.unstack(self.balance.factors(), len(losses))
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
        reason = reason_against(self) if self.fuse_logits else None
        if reason is not None:
            raise ValueError(refusal(reason))
        self._live, self._precomputed = (
            terms and chosen_terms(self, terms.pairing, terms.fusion) for terms in (self._live, self._precomputed)
        )

    def require_in_scope(self, student):
        """Raise ValueError if a student was made under another strategy than the one that is to train it."""

    def _build_optimizer(self):
        self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, **keras.saving.serialize_keras_object(self._observers.given)}

    def compile_from_config(self, config):
        """Compile a loaded distiller as it was, with its optimizer's variables ready to be restored."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    def make_train_function(self, force=False):
        if self.train_function is not None and not (force or self._needs_new_trace):
            return
        data_checks.require_teacher_apart(self)
        self._build_optimizer()
        if not self.trainable_variables:
            warnings.warn("the student has no trainable weights: nothing is learnt.", stacklevel=2)
        super().make_train_function(force=True)
        self.train_function = self._raising(self.train_function, is_train=True)

    def make_test_function(self, force=False):
        if self.test_function is None or force or self._needs_new_trace:
            super().make_test_function(force=True)
            self.test_function = self._raising(self.test_function, is_train=False)

    # Metrics and logs ------------------------------------------------------------------------------------------------

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

    def _track(self, trackers, values, x):
        """Count a replica's part of each mean over the batch, so that the sum over replicas is that mean."""
        rows = ops.cast(replicas.rows_of_all(x), "float32")
        share = rows if replicas.replica_count() == 1 else rows / replicas.replica_count()
        for tracker, value in zip(trackers, values, strict=True):  # update_state makes 20 operations of these two
            tracker.total.assign_add(value * rows)
            tracker.count.assign_add(share)

    def _logs(self, pairing, teacher, student, batch, absent):
        """The results of all metrics after a batch, but for the `absent` ones."""
        if self._observers.need_teacher:
            self._observers.compare(*pairing.logits(teacher, student), batch.sample_weight)
        results = self.compute_metrics(batch.x, batch.y, student.prediction, batch.sample_weight)
        absent = absent if batch.y is not None else absent | self._observers.score_names()
        return {name: value for name, value in results.items() if name not in absent}
