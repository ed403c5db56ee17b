"""The step on the JAX backend: train_step and test_step without side effects, and how the teacher's weights get there.

On JAX a step maps a state and a batch to logs and a new state. The state holds the values of the distiller's variables.
The teacher's are none of them: they travel beside each batch, so that they are arguments of the compiled step, neither
constants in it nor given up to it.
"""

import collections
import functools
from typing import NamedTuple

import jax
import keras
import numpy as np

from keras_kd._keras_private import backend_variable
from keras_kd.metrics import MacroF1ByLanguage
from keras_kd.steps import guards
from keras_kd.steps.common import CommonStep

_CALLS_IN_FLIGHT = 2  # steps that run on before the note of the first is read: so the host does not wait for the device


class WithTeacher(NamedTuple):
    """What a compiled step gets: a batch as Keras hands it out, and the values of the teacher's variables."""

    data: object
    teacher: list


class JAXStep(CommonStep):
    """What a `Distiller` does with a batch on JAX. Mixed in before `keras.Model`.

    `compile` refuses what is not here: what goes by language, `fuse_logits=True`.

    From a batch on which the teacher gives NaN or whose labels are out of range, nothing is learnt, nor from any after
    it; the ValueError comes two steps later, or at the end of the epoch.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._note = guards.Note()
        self._note_variable = self._note.variable  # so that Keras tracks it, and it is part of the state
        self._notes_in_flight = collections.deque()

    def train_step(self, state, data):
        data, teacher_values = self._beside_teacher(data)
        trainable, non_trainable, optimizer_values, metric_values = state

        def learn(trainable):
            """The scaled loss; the logs, whether the checks hold, and the values after the step."""
            with self._scope(
                teacher_values,
                (self.trainable_variables, trainable),
                (self.non_trainable_variables, non_trainable),
                (self.optimizer.variables, optimizer_values),
                (self.metrics_variables, metric_values),
            ) as scope:
                loss, report = self._loss_and_report(*self._read(data))
                scaled_loss, logs, sound = self.optimizer.scale_loss(loss), report(), self._note.is_clean()
            after = _final_values(scope, self.non_trainable_variables), _final_values(scope, self.metrics_variables)
            return scaled_loss, (logs, sound, after)

        (_, (logs, sound, after)), gradients = jax.value_and_grad(learn, has_aux=True)(trainable)
        new_non_trainable, metric_values = after
        new_trainable, new_optimizer_values = self.optimizer.stateless_apply(optimizer_values, gradients, trainable)
        # where a check has failed, all but the note stays as it was
        kept = functools.partial(jax.tree.map, functools.partial(jax.numpy.where, sound))
        non_trainable = [
            new if variable is self._note_variable else kept(new, old)
            for variable, new, old in zip(self.non_trainable_variables, new_non_trainable, non_trainable, strict=True)
        ]
        trainable, optimizer_values = kept((new_trainable, new_optimizer_values), (trainable, optimizer_values))
        return logs, (trainable, non_trainable, optimizer_values, metric_values)

    def test_step(self, state, data):
        data, teacher_values = self._beside_teacher(data)
        trainable, non_trainable, metric_values = state
        with self._scope(
            teacher_values,
            (self.trainable_variables, trainable),
            (self.non_trainable_variables, non_trainable),
            (self.metrics_variables, metric_values),
        ) as scope:
            logs = super().test_step(data)
        metric_values = _final_values(scope, self.metrics_variables)
        return logs, (trainable, _final_values(scope, self.non_trainable_variables), metric_values)

    def _scope(self, teacher_values, *groups):
        """A scope in which the teacher's variables and those of `(variables, values)` groups have these values.

        Layers add their losses to it.
        """
        groups = [*groups, (self._untracked_variables(), teacher_values)]
        values = [pair for variables, values in groups for pair in zip(variables, values, strict=True)]
        return keras.StatelessScope(values, collect_losses=True)

    def _untracked_variables(self):
        """The hyperparameters, and the teacher's variables that are not the distiller's as well."""
        own = {id(variable) for variable in self.variables}
        teacher = [] if self.teacher is None else [v for v in self.teacher.variables if id(v) not in own]
        return [*self.hyperparameters.values(), *teacher]

    def _with_teacher(self, function):
        """A function of Keras's, `(state, batches) -> (logs, state)`, that hands each step the teacher's weights."""
        variables = self._untracked_variables()

        def handed_on(state, batches):
            values = [backend_variable(variable) for variable in variables]
            return function(state, (WithTeacher(data, values) for data in batches))

        return handed_on

    def _beside_teacher(self, data):
        """A batch and the values of the teacher's variables; by itself, a batch finds those that these have now."""
        if isinstance(data, WithTeacher):
            return data
        return data, [backend_variable(variable) for variable in self._untracked_variables()]

    def _check_compiled(self):
        by_language = [loss.name for loss in self.distillation_losses if loss.language_key is not None]
        by_language += [metric.name for metric in self._observers.all if isinstance(metric, MacroF1ByLanguage)]
        if by_language:
            raise ValueError(
                f"{by_language} go by language, which needs the tensorflow backend: KERAS_BACKEND=tensorflow."
            )

    def make_train_function(self, force=False):
        self._note.clear()
        self._notes_in_flight.clear()
        super().make_train_function(force)

    def _checked(self, condition, check, tensors):
        """The tensors; where the condition does not hold, a note is taken, and nothing is learnt from then on."""
        self._note.take(condition, check, self.optimizer.iterations)
        return tensors

    def _raising(self, function, is_train):
        """A train function that raises ValueError for failed checks, some calls late; meanwhile nothing is learnt."""
        if not is_train:
            return self._with_teacher(function) if self._observers.need_teacher else function
        with_teacher = self._with_teacher(function)
        position = [variable is self._note_variable for variable in self.non_trainable_variables].index(True)

        def reading_notes(state, batches):
            if len(self._notes_in_flight) >= _CALLS_IN_FLIGHT:
                guards.explain(np.asarray(self._notes_in_flight.popleft()))
            logs, state = with_teacher(state, batches)
            self._notes_in_flight.append(jax.numpy.copy(state[1][position]))  # the next step takes the state itself
            return logs, state

        return reading_notes

    def _get_metrics_result_or_logs(self, logs):
        self._note.explain()
        return super()._get_metrics_result_or_logs(logs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        logs = super().train_on_batch(*args, **kwargs)
        self._note.explain()
        return logs


def _final_values(scope, variables):
    """The values that variables have at the end of a scope."""
    return [scope.get_current_value(variable) for variable in variables]
