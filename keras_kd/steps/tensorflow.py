"""The step on the TensorFlow backend: train_step, test_step, and what `fit` builds and checks before the first one."""

import functools
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_kd import _keras_private, fit_checks
from keras_kd.languages import languages_of
from keras_kd.large_vocabulary.fusion import refusal
from keras_kd.objectives.base import with_rank
from keras_kd.steps import fused, guards, replicas
from keras_kd.steps.observers import Observers
from keras_kd.taught import without_signals


class Batch(NamedTuple):
    """What a step gets: inputs, labels or None, sample weights or None."""

    x: object
    y: object
    sample_weight: object


class TensorFlowStep:
    """What a `Distiller` does with a batch. Mixed in before `keras.Model`.

    Relies on the distiller for its parts: `objectives`, `objective_trackers`, `hard_loss_tracker`, `soft_weight`,
    `hard_weight`, `pairing_of` and `project`.
    """

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        pairing = self.pairing_of(x)
        teacher, batch = pairing.read_teacher(x), Batch(without_signals(x), y, sample_weight)
        if self._fusion(pairing) is not None:
            teacher = pairing.fusion.without_logits(teacher, x)
        finite = guards.all_finite(teacher)
        if not self.jit_compile:
            batch, teacher = guards.require(finite, "teacher", self.optimizer.iterations, (batch, teacher))
            return self._learn(pairing, batch, teacher)
        self._note.take(finite, "teacher", self.optimizer.iterations)  # XLA drops assertions
        return tf.cond(
            self._note.is_clean(),
            lambda: self._learn(pairing, batch, teacher),
            lambda: self._train_logs(self.get_metrics_result(), y),
        )

    def _learn(self, pairing, batch, teacher):
        """One step of the student on a batch of which the teacher's signals are known; None: its own are they."""
        with tf.GradientTape(persistent=self.balance is not None and self.balance.needs_gradients) as tape:
            student = pairing.read_student(batch.x, training=True)
            teacher = student.detached() if teacher is None else teacher
            batch = batch._replace(y=self._sound_labels(batch.y, student.prediction))
            hard_loss, soft_losses, total = self._hard_and_soft(pairing, teacher, student, batch, tape)
            loss = total + self._regularization(batch.x)
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        with tf.control_dependencies([scaled_loss]):  # weight decay and step counter wait for the checks, too
            self._apply(gradients)

        trackers, values = [self._loss_tracker, *self.objective_trackers], [loss, *soft_losses]
        if hard_loss is not None:
            trackers, values = [*trackers, self.hard_loss_tracker], [*values, hard_loss]
        self._track(trackers, values, batch.x)
        if self._observers.need_teacher:
            self._observers.compare(*pairing.logits(teacher, student), batch.sample_weight)
        return self._train_logs(
            self.compute_metrics(batch.x, batch.y, student.prediction, batch.sample_weight), batch.y
        )

    def _apply(self, gradients):
        """Let the optimizer take its step, under XLA only if the labels were sound."""
        variables = self.trainable_variables
        if not variables:
            warnings.warn("the student has no trainable weights: nothing is learnt.", stacklevel=2)
            return

        def apply():
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        if self.jit_compile:
            tf.cond(self._note.is_clean(), apply, lambda: None)
        else:
            apply()

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        pairing = self.pairing_of(x)
        teacher = pairing.read_teacher(x) if self._observers.need_teacher else None
        x = without_signals(x)
        student = pairing.read_student(x, training=False)
        loss = self.compute_loss(x, y, student.prediction, sample_weight, training=False)
        self._track([self._loss_tracker], [loss], x)
        if teacher is not None:
            self._observers.compare(*pairing.logits(teacher, student), sample_weight)
        results = self.compute_metrics(x, y, student.prediction, sample_weight)
        return self._logs(results, {self.hard_loss_tracker.name, *(t.name for t in self.objective_trackers)}, y)

    # Losses ------------------------------------------------------------------------------------------------------

    def _fusion(self, pairing):
        """How this step does without logits, a `Fusion`; None where it needs them."""
        return None if pairing.fusion is None or fused.reason_against(self) else pairing.fusion

    def _hard_and_soft(self, pairing, teacher, student, batch, tape):
        """L_raw, or None; each Lᵢ; and what is minimized of them."""
        fusion = self._fusion(pairing)
        if fusion is None:
            hard_loss = self._hard_loss(batch.y, student.prediction, batch.sample_weight)
            soft_losses = [
                self._soft_loss(objective, pairing, teacher, student, batch) for objective in self.objectives
            ]
            return hard_loss, soft_losses, self._total(hard_loss, soft_losses, tape)
        hard_loss, divergence, total = fused.losses(self, fusion, teacher, student, batch)
        others = [
            None if objective is fusion.objective else self._soft_loss(objective, pairing, teacher, student, batch)
            for objective in self.objectives
        ]
        soft_losses = [divergence if loss is None else loss for loss in others]
        return hard_loss, soft_losses, total + self._total(None, others, tape)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The student's own loss, which `evaluate` reports: L_raw and regularization; 0 where there is neither."""
        hard_loss = self._hard_loss(y, y_pred, sample_weight)
        regularization = self._regularization(x)
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

    def _soft_loss(self, objective, pairing, teacher, student, batch):
        """Lᵢ, without its weight: the mean over the batch, summed over pairs of signals."""
        return ops.cast(sum(self._values(objective, pairing, teacher, student, batch)), "float32")

    def _values(self, objective, pairing, teacher, student, batch):
        """The value of an objective for each pair of signals that it compares."""
        mean = replicas.GlobalMean(objective)
        for pair in pairing.pairs(objective, teacher, student, batch.y, batch.sample_weight):
            projected = self.project(pair)
            weight = pair.sample_weight
            if weight is not None:
                weight = with_rank(weight, objective.rank_of_values(len(projected.shape)))
            options = {"labels": pair.labels} if objective.needs_labels else {}
            if objective.entry is not None:
                options["languages"] = languages_of(batch.x, objective.entry, objective.name)
            yield mean(pair.teacher, projected, weight, **options)

    def _regularization(self, x):
        """The student's regularization losses, each replica's part of them, as `keras.Model` adds them."""
        losses = [ops.cast(ops.sum(loss), "float32") for loss in self.losses]
        if not losses:
            return ops.zeros((), "float32")
        rows = ops.cast(_rows(x), "float32")
        return sum(losses) * tf.math.divide_no_nan(rows, replicas.sum_over_replicas(rows))

    def _total(self, hard_loss, soft_losses, tape):
        """hard_weight · L_raw + soft_weight · Σ wᵢ Lᵢ, each with its factor where they are balanced."""
        losses = [hard_loss, *soft_losses]
        weights = [self.hard_weight, *(self.soft_weight * objective.weight for objective in self.objectives)]
        if self.balance is None:
            factors, penalty = [1.0] * len(losses), 0.0
        else:
            factors = self.balance.factors(lambda: self._gradient_norms(losses, tape), self.optimizer.iterations)
            factors = ops.unstack(ops.stop_gradient(factors) if self.balance.needs_gradients else factors, len(losses))
            penalty = self.balance.penalty([loss is not None for loss in losses]) / replicas.replica_count()
        terms = zip(weights, factors, losses, strict=True)
        return sum(weight * factor * loss for weight, factor, loss in terms if loss is not None) + penalty

    def _gradient_norms(self, losses, tape):
        """The norm of each loss's gradient with respect to all that is trained, `(losses,)`; 0 for an absent loss."""
        scaled = [None if loss is None else self.optimizer.scale_loss(loss) for loss in losses]
        with tape.stop_recording():
            gradients = [[] if one is None else tape.gradient(one, self.trainable_variables) for one in scaled]
            return tf.stack([tf.linalg.global_norm(of_one) if of_one else 0.0 for of_one in gradients])

    # Checks ------------------------------------------------------------------------------------------------------

    def _sound_labels(self, y, prediction):
        """The labels; the step fails if an integer class of an output is out of range."""
        targets = list(fit_checks.sparse_targets(self, y, prediction))
        if not targets:
            return y
        inside = guards.labels_in_range(targets)
        if not self.jit_compile:
            return guards.require(inside, "labels", self.optimizer.iterations, y)
        self._note.take(inside, "labels", self.optimizer.iterations)
        return y

    # What Keras asks for before the first step ---------------------------------------------------------------------

    @functools.wraps(keras.Model.compile)
    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, weighted_metrics=None, *args, **kwargs
    ):
        self._compile_loss = self._compile_metrics = None  # else Keras keeps those of an earlier compile(loss=...)
        self._observers = observers = Observers(metrics, weighted_metrics)
        super().compile(optimizer, loss, loss_weights, observers.metrics, observers.weighted_metrics, *args, **kwargs)
        fit_checks.warn_of_mistaken_logits(self)
        replicas.require_supported(self)
        reason = fused.reason_against(self) if self.fuse_logits else None
        if reason is not None:
            raise ValueError(refusal(reason))
        if self.balance is not None:
            self.balance.require_supported(self.distribute_strategy.num_replicas_in_sync, self.jit_compile)
        self._note = guards.Note()
        self._first_labels = False

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, **keras.saving.serialize_keras_object(self._observers.given)}

    def compile_from_config(self, config):
        """Compile a loaded distiller as it was, with its optimizer's variables ready to be restored."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    def make_train_function(self, force=False):
        if self.train_function is not None and not (force or self._first_labels):
            return
        fit_checks.require_teacher_apart(self)
        self._build_optimizer()
        if self.jit_compile and self.teacher is not None and not _keras_private.supports_jit(self.teacher):
            warnings.warn("jit_compile is turned off: XLA cannot compile a layer of the teacher.", stacklevel=2)
            self.jit_compile = False
        super().make_train_function(force=True)
        self.train_function = guards.raising_value_errors(
            self.train_function, self._note.explain if self.jit_compile else lambda: None
        )

    def make_test_function(self, force=False):
        super().make_test_function(force or self._first_labels)

    def _build_optimizer(self):
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Under a strategy, build loss and metrics from the data's shapes alone, before the first step.

        Keras builds them from the first batch, which it averages over replicas: that fails for an uneven batch and
        for several workers. Without a strategy the first step that has labels builds them, as it is traced.
        """
        strategy = self.distribute_strategy
        replicas.require_in_scope(self.student, strategy)
        batch = data_batch if iterator is None else replicas.batch_spec(iterator)
        if strategy.num_replicas_in_sync > 1:
            with strategy.scope():
                self._symbolic_build(data_batch=batch)
            _keras_private.replace_compiled_losses(self, replicas.GlobalMean)
        unbuilt = [part for part in (self._compile_loss, self._compile_metrics) if part is not None and not part.built]
        labelled = keras.utils.unpack_x_y_sample_weight(batch)[1] is not None
        self._first_labels = labelled and bool(unbuilt)  # a step that was traced without labels cannot build them

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

    def _track(self, trackers, values, x):
        """Count a replica's part of each mean over the batch, so that the sum over replicas is that mean."""
        count = replicas.replica_count()
        rows = ops.cast(replicas.sum_over_replicas(_rows(x)), "float32")
        for tracker, value in zip(trackers, values, strict=True):
            tracker.update_state(value * count, sample_weight=rows / count)

    def _train_logs(self, results, y):
        unlabelled = self._compile_loss is None or y is None
        return self._logs(results, {self.hard_loss_tracker.name} if unlabelled else set(), y)

    def _logs(self, results, absent, y):
        absent = absent if y is not None else absent | self._observers.names_of_scores()
        logs = {name: value for name, value in results.items() if name not in absent}
        return replicas.worker_logs(logs, self.distribute_strategy)


def _rows(x):
    """Number of examples in the batch that this replica got."""
    return tf.shape(next(tensor for tensor in keras.tree.flatten(x) if tensor is not None))[0]
