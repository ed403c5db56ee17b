"""The step on the TensorFlow backend: train_step, test_step, and what `fit` builds and checks before the first one."""

import functools
import warnings

import keras
import tensorflow as tf

from keras_kd import _keras_private
from keras_kd.large_vocabulary.fusion import refusal
from keras_kd.outputs.precomputed import without_teacher_outputs
from keras_kd.steps import data_checks, fused_step, guards, replicas, workers
from keras_kd.steps.common import Batch, CommonStep
from keras_kd.steps.loss_terms import LossTerms
from keras_kd.steps.probability_check import ProbabilityCheck


class TensorFlowStep(CommonStep):
    """What a `Distiller` does with a batch on TensorFlow. Mixed in before `keras.Model`."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with replicas.shared_sums(x):
            return self._train(x, y, sample_weight)

    def _train(self, x, y, sample_weight):
        terms = self.connection_of(x).terms
        teacher, batch = terms.read_teacher(x), Batch(without_teacher_outputs(x), y, sample_weight)
        finite = guards.all_finite(teacher)
        if not self.jit_compile:
            batch, teacher = guards.require(finite, "teacher", self.optimizer.iterations, (batch, teacher))
            return self._learn(terms, batch, teacher)
        self._note.take(finite, "teacher", self.optimizer.iterations)  # XLA drops assertions
        with self._note.undoing([*self.variables, *self.optimizer.variables]):
            return self._learn(terms, batch, teacher)

    def _learn(self, terms, batch, teacher):
        """One step of the student on a batch with the teacher's outputs; None for a student that teaches itself."""
        with tf.GradientTape(persistent=self.balance is not None and self.balance.needs_gradients) as tape:
            student = terms.pairing.read_student(batch.x, training=True)
            teacher = student.detached() if teacher is None else teacher
            self._probability_check.take(terms.pairing, teacher, student)
            batch = batch._replace(y=self._sound_labels(batch.y, student.prediction))
            hard_loss, soft_losses, total = terms.training(teacher, student, batch, tape)
            loss = total + self.regularization(batch.x)
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        with tf.control_dependencies([scaled_loss]):  # weight decay and step counter wait for the checks, too
            self._apply(gradients)
        return self._report(terms.pairing, teacher, student, batch, (loss, hard_loss, soft_losses))

    def _apply(self, gradients):
        """Let the optimizer take its step."""
        variables = self.trainable_variables
        if not variables:
            warnings.warn("the student has no trainable weights: nothing is learnt.", stacklevel=2)
            return
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def test_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with replicas.shared_sums(x):
            return self._examine(data)

    # Losses ------------------------------------------------------------------------------------------------------

    def _choose_terms(self, connection):
        """Choose, for what the distiller is compiled with, whether the losses are computed from the logits."""
        fusion = connection.fusion
        if fusion is None or fused_step.reason_against(self) is not None:
            connection.terms = LossTerms(self, connection.pairing)
        else:
            connection.terms = fused_step.FusedLossTerms(self, connection.pairing, fusion)

    def _gradient_norms(self, losses, tape):
        """The norm of each loss's gradient with respect to all that is trained, `(losses,)`; 0 for an absent loss."""
        scaled = [None if loss is None else self.optimizer.scale_loss(loss) for loss in losses]
        with tape.stop_recording():
            gradients = [[] if one is None else tape.gradient(one, self.trainable_variables) for one in scaled]
            return tf.stack([tf.linalg.global_norm(gradient) if gradient else 0.0 for gradient in gradients])

    # Checks ------------------------------------------------------------------------------------------------------

    def _sound_labels(self, y, prediction):
        """The labels; the step fails if an integer class of an output is out of range."""
        targets = list(data_checks.sparse_targets(self, y, prediction))
        if not targets:
            return y
        inside = guards.labels_in_range(targets)
        if not self.jit_compile:
            return guards.require(inside, "labels", self.optimizer.iterations, y)
        self._note.take(inside, "labels", self.optimizer.iterations)
        return y

    # What Keras asks for before the first step ---------------------------------------------------------------------

    def require_in_scope(self, student):
        """Raise ValueError if a student was made under another strategy than the one that is to train it."""
        replicas.require_in_scope(student, self.distribute_strategy)

    def _check_compiled(self):
        """Raise ValueError for what `compile` was given and TensorFlow does not run; start with a clean note."""
        replicas.require_supported(self)
        reason = fused_step.reason_against(self) if self.fuse_logits else None
        if reason is not None:
            raise ValueError(refusal(reason))
        if self.balance is not None:
            self.balance.require_supported(self.distribute_strategy.num_replicas_in_sync, self.jit_compile)
        self._note = guards.Note()
        with self.distribute_strategy.scope():
            self._probability_check = ProbabilityCheck()
        self._first_labels = False

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, *args, **kwargs):
        callbacks = workers.comparing(callbacks, self)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def make_train_function(self, force=False):
        if self.train_function is not None and not (force or self._first_labels):
            return
        data_checks.require_teacher_apart(self)
        self._build_optimizer()
        if self.jit_compile and self.teacher is not None and not _keras_private.supports_jit(self.teacher):
            warnings.warn("jit_compile is turned off: XLA cannot compile a layer of the teacher.", stacklevel=2)
            self.jit_compile = False
        super().make_train_function(force=True)
        self.train_function = guards.raising_value_errors(self.train_function, self._after_step)

    def _after_step(self):
        if self.jit_compile:
            self._note.explain()
        self._probability_check.warn()

    def make_test_function(self, force=False):
        if self.test_function is not None and not (force or self._first_labels):
            return
        super().make_test_function(force=True)
        self.test_function = guards.raising_value_errors(self.test_function)

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
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        # A step that was traced without labels cannot build them; one without logits never does.
        self._first_labels = y is not None and bool(unbuilt) and self.connection_of(x).terms.builds_compiled_loss

    def _logs(self, results, absent, y):
        return replicas.worker_logs(super()._logs(results, absent, y), self.distribute_strategy)
