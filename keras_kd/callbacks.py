"""Schedules of the distiller's hyperparameters: λ, the weight of one loss, or its temperature."""

import math

import keras

from keras_kd._checks import require_choice, require_distiller, require_number
from keras_kd._hyperparameters import assign_scalar

_SHAPES = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
}


class LambdaRamp(keras.callbacks.Callback):
    """Ramps λ in two phases: hold it while the student learns from labels and soft labels, then raise it step by step.

    With t the epochs (or training steps) gone by, h those of the hold and r those of the ramp:
    `λ(t) = start` for t ≤ h, `start + (end − start) · schedule((t − h) / r)` for h < t < h + r, `end` from there on.
    By epoch, the value is set at the beginning of each epoch, t = 0, 1, …; by step, at the beginning of each batch
    (of each execution, with `steps_per_execution`), t being `optimizer.iterations`.

    λ is computed from the epoch or the step, never from how often the callback ran: resumed with
    `keras.callbacks.BackupAndRestore` or `initial_epoch`, the sequence is that of an uninterrupted run. It is a
    variable of the distiller, so that nothing is traced anew, and the logs of each epoch show it: `soft_weight`, or
    `soft_labels_weight` and `soft_labels_temperature` for a loss called `soft_labels`.

    Args:
        start: Value ≥ 0 while holding.
        end: Value ≥ 0 after the ramp; smaller than `start` to ramp down.
        hold_epochs: Epochs ≥ 0 to hold `start`.
        ramp_epochs: Epochs > 0 from `start` to `end`. Either this or `ramp_steps`.
        hold_steps, ramp_steps: The same, counted in training steps: the ramp then goes by step.
        schedule: `"linear"`, `"cosine"`; a callable that maps progress in [0, 1] to the share of the way in [0, 1];
            or a `keras.optimizers.schedules.LearningRateSchedule`, which gives the value itself, called with the epochs
            (steps) since the hold ended.
        weight_of: Name of a loss whose weight is ramped in place of λ.
        temperature_of: Name of a loss whose temperature is ramped in place of λ; `start` and `end` must be > 0.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range; the model is not a
            `keras_kd.Distiller`; the named loss is unknown or has no temperature.

    Example:

    >>> ramp = keras_kd.LambdaRamp(start=0.1, end=1.0, hold_epochs=2, ramp_epochs=3)
    >>> [round(ramp.value(epoch), 2) for epoch in range(7)]
    [0.1, 0.1, 0.1, 0.4, 0.7, 1.0, 1.0]
    """

    def __init__(
        self,
        start,
        end,
        *,
        hold_epochs=0,
        ramp_epochs=None,
        hold_steps=0,
        ramp_steps=None,
        schedule="linear",
        weight_of=None,
        temperature_of=None,
    ):
        super().__init__()
        if (ramp_epochs is None) == (ramp_steps is None):
            raise ValueError(
                f"give either ramp_epochs or ramp_steps, got ramp_epochs={ramp_epochs!r} and ramp_steps={ramp_steps!r}."
            )
        if weight_of is not None and temperature_of is not None:
            raise ValueError("give weight_of or temperature_of, not both: use one LambdaRamp for each.")
        self.by_step = ramp_steps is not None
        unit, other = ("steps", "epochs") if self.by_step else ("epochs", "steps")
        if (hold_epochs if self.by_step else hold_steps) != 0:
            raise ValueError(f"hold_{other} does not go with ramp_{unit}: use hold_{unit}.")
        self._bound = {"above": 0.0} if temperature_of is not None else {"at_least": 0.0}
        self.start = require_number(start, "start", **self._bound)
        self.end = require_number(end, "end", **self._bound)
        self.hold = require_number(hold_steps if self.by_step else hold_epochs, f"hold_{unit}", at_least=0)
        self.ramp = require_number(ramp_steps if self.by_step else ramp_epochs, f"ramp_{unit}", above=0)
        self.schedule = schedule if callable(schedule) else _SHAPES[require_choice(schedule, "schedule", _SHAPES)]
        self.weight_of, self.temperature_of = weight_of, temperature_of

    def value(self, time):
        """The value after `time` epochs, or training steps for a ramp by step."""
        elapsed = time - self.hold
        if elapsed <= 0:
            return self.start
        if elapsed >= self.ramp:
            return self.end
        if isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule):
            return float(self.schedule(elapsed))
        return self.start + (self.end - self.start) * float(self.schedule(elapsed / self.ramp))

    def on_train_begin(self, logs=None):
        name = "soft_weight" if self.weight_of is None else f"{self.weight_of}_weight"
        name = name if self.temperature_of is None else f"{self.temperature_of}_temperature"
        require_distiller(self.model, "LambdaRamp").log_hyperparameter(name)
        self._hyperparameter = self.model.hyperparameters[name]

    def on_epoch_begin(self, epoch, logs=None):
        if not self.by_step:
            self._set(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.by_step:
            self._set(int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)))

    def _set(self, time):
        name = "weight" if self.temperature_of is None else "temperature"
        value = require_number(self.value(time), f"{name} given by schedule at {time}", **self._bound)
        assign_scalar(self._hyperparameter, value)
