"""The step on the TensorFlow backend: train_step, and what `fit` builds and checks before the first one."""

import contextlib
import functools
import warnings

import keras
import tensorflow as tf

from keras_kd import _keras_private
from keras_kd._assertions import as_value_errors
from keras_kd.steps import guards, replicas
from keras_kd.steps.common import CommonStep


class TensorFlowStep(CommonStep):
    """What a `Distiller` does with a batch on TensorFlow. Mixed in before `keras.Model`."""

    def train_step(self, data):
        changed = [*self.variables, *self.optimizer.variables]
        undoing = self._note.undoing(changed) if self.jit_compile else contextlib.nullcontext()
        with replicas.shared_sums(data), undoing:
            terms, teacher, batch = self._read(data)
            with tf.GradientTape() as tape:
                loss, report = self._loss_and_report(terms, teacher, batch)
                scaled_loss = self.optimizer.scale_loss(loss)
            variables = self.trainable_variables
            gradients = tape.gradient(scaled_loss, variables)
            with tf.control_dependencies([scaled_loss]):  # weight decay and step counter wait for the checks, too
                if variables:
                    self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return report()

    def _checked(self, condition, check, tensors):
        """The tensors, from which nothing is learnt unless the condition holds; then the step fails."""
        if not self.jit_compile:
            return guards.require(condition, check, self.optimizer.iterations, tensors)
        self._note.take(condition, check, self.optimizer.iterations)  # XLA drops assertions
        return tensors

    def _look_for_probabilities(self, pairing, teacher, student):
        self._probability_check.take(pairing, teacher, student)

    def _raising(self, function, is_train):
        """A train or test function that raises ValueError for failed checks."""

        @functools.wraps(function)
        def wrapped(iterator):
            with as_value_errors():
                logs = function(iterator)
            if is_train:
                if self.jit_compile:
                    self._note.explain()
                self._probability_check.warn()
            return logs

        return wrapped

    def require_in_scope(self, student):
        replicas.require_in_scope(student, self.distribute_strategy)

    def _check_compiled(self):
        replicas.require_supported(self)
        self._note = guards.Note()
        with self.distribute_strategy.scope():
            self._probability_check = guards.ProbabilityCheck()
        self._needs_new_trace = False

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, *args, **kwargs):
        callbacks = replicas.with_comparison_of_workers(callbacks, self)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def make_train_function(self, force=False):
        if self.jit_compile and self.teacher is not None and not _keras_private.supports_jit(self.teacher):
            warnings.warn("jit_compile is turned off: XLA cannot compile a layer of the teacher.", stacklevel=2)
            self.jit_compile = False
        super().make_train_function(force)

    def _build_optimizer(self):
        with self.distribute_strategy.scope():
            super()._build_optimizer()

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
        self._needs_new_trace = y is not None and bool(unbuilt) and self.terms_of(x).builds_compiled_loss

    def _logs(self, *args):
        logs, several = super()._logs(*args), tf.distribute.MultiWorkerMirroredStrategy
        if not isinstance(self.distribute_strategy, several):
            return logs
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}  # the shape that Keras reduces
