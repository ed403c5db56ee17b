"""How a student is made, trained and scored with given values: the same way in each trial."""

import contextlib
import dataclasses
import gc
import inspect
import math
import time
import typing

import keras
import tensorflow as tf

from keras_kd import fingerprint
from keras_kd._checks import require_model
from keras_kd.distiller import Distiller
from keras_kd._hyperparameters import scalar_value
from keras_kd.tuning.record import Trial, finite_or_none
from keras_kd.tuning.space import LEARNING_RATE

# What `tune` sets itself.
_TAKEN = ("x", "y", "epochs", "validation_data", "callbacks", "verbose", "validation_freq", "initial_epoch")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything but the values that are searched; the fields are the arguments of `keras_kd.tune`."""

    teacher: keras.Model
    make_student: typing.Callable
    distillation_losses: typing.Callable | None
    optimizer: typing.Callable | str
    loss: object
    metrics: object
    callbacks: typing.Callable | None
    soft_weight: float
    hard_weight: float
    compile_options: dict
    x: object
    y: object
    validation_data: object
    epochs: int
    fit_options: dict
    seed: int

    def check(self):
        """Raise TypeError or ValueError for what can be seen to be wrong before a student is made."""
        require_model(self.teacher, "teacher")
        _require_function(self.make_student, "make_student", "lambda: keras.models.clone_model(student)")
        if self.distillation_losses is not None:
            _require_function(self.distillation_losses, "losses", "lambda: [keras_kd.losses.SoftLabels()]")
        if self.callbacks is not None:
            _require_function(self.callbacks, "callbacks", "lambda: [keras.callbacks.EarlyStopping()]")
        if not isinstance(self.optimizer, str):
            _require_function(self.optimizer, "optimizer", "lambda learning_rate: keras.optimizers.Adam(learning_rate)")
        _require_repeatable(self.x, "x")
        _require_repeatable(self.validation_data, "validation_data")
        allowed = [name for name in inspect.signature(keras.Model.fit).parameters if name not in ("self", *_TAKEN)]
        unknown = sorted(set(self.fit_options) - set(allowed))
        if unknown:
            raise TypeError(f"tune got unknown arguments {unknown}; besides its own it takes those of fit, {allowed}.")
        if self.validation_data is None and not self.fit_options.get("validation_split"):
            raise ValueError("validation_data must be given: trials are compared by what they reach on it.")

    def new_distiller(self, values, *, compiled=True):
        """A distiller with a new student and these values, by name."""
        self._require_student(student := self.make_student())
        distillation_losses = None if self.distillation_losses is None else self.distillation_losses()
        weights = {"soft_weight": self.soft_weight, "hard_weight": self.hard_weight}
        distiller = Distiller(self.teacher, student, distillation_losses, **weights)
        if compiled:
            for name in values.keys() - {LEARNING_RATE}:
                distiller.hyperparameters[name].assign(values[name])
            metrics = self.metrics() if callable(self.metrics) else self.metrics
            distiller.compile(self._new_optimizer(values), self.loss, metrics=metrics, **self.compile_options)
        return distiller

    def setting(self, space):
        """What makes a search with this recipe and this `Space` what it is, for its record."""
        keras.utils.set_random_seed(self.seed)
        distiller = self.new_distiller(space.first_values())
        return {
            "search": space.content(),
            "seed": self.seed,
            "epochs": self.epochs,
            "teacher": fingerprint.of_model(self.teacher),
            "student": fingerprint.of_model(distiller.student),
            "losses": fingerprint.of_object(distiller.distillation_losses),
            "soft_weight": self.soft_weight,
            "hard_weight": self.hard_weight,
            "optimizer": fingerprint.of_object(distiller.optimizer),
            "loss": fingerprint.of_object(self.loss),
            "callbacks": [type(callback).__name__ for callback in self._new_callbacks()],
            "compile_options": fingerprint.of_object(self.compile_options),
            "x": fingerprint.of_data(_made(self.x)),
            "y": fingerprint.of_data(self.y),
            "validation_data": fingerprint.of_data(_made(self.validation_data)),
            "fit_options": fingerprint.of_data(self.fit_options),
        }

    def hyperparameters(self):
        """The names of the distiller's hyperparameters.

        Raises ValueError if a function gives the same object twice: a trial would go on where another stopped.
        """
        first, second = self.new_distiller({}, compiled=False), self.new_distiller({}, compiled=False)
        trained = {id(variable) for variable in first.student.trainable_variables}
        if any(id(variable) in trained for variable in second.student.trainable_variables):
            raise ValueError(
                "make_student must return a new student each time, with layers of its own, but two calls gave the same "
                "trainable weights. Make the layers inside the function, or clone: keras.models.clone_model(student)."
            )
        if any(one is other for one, other in zip(first.distillation_losses, second.distillation_losses, strict=False)):
            raise ValueError("losses must return new losses each time: make them inside the function.")
        return list(first.hyperparameters)

    def run(self, number, values, goal, direction):
        """Train a student with these values; return the `Trial` and the student, as it was in its best epoch."""
        start = time.perf_counter()
        keras.utils.set_random_seed(self.seed)
        distiller = self.new_distiller(values)
        best = _BestEpoch(distiller, values, goal, direction)
        callbacks = [*self._new_callbacks(), best]
        options = {"epochs": self.epochs, "callbacks": callbacks, "verbose": 0, **self.fit_options}
        with _without_warnings_of_retracing():
            history = distiller.fit(
                _made(self.x), self.y, validation_data=_made(self.validation_data), **options
            ).history
        if best.failure is None:
            distiller.student.set_weights(best.weights)
        score, epoch = (best.score, best.epoch) if best.failure is None else (None, None)
        seconds = time.perf_counter() - start
        trial = Trial(number, values, score, epoch, best.failure, seconds, finite_or_none(history))
        gc.collect()  # models hold themselves in circles
        return trial, distiller.student

    def _require_student(self, student):
        if not isinstance(student, keras.Model):
            raise TypeError(f"make_student must return a keras.Model, got {type(student).__name__}: {student!r}.")

    def _new_optimizer(self, values):
        if isinstance(self.optimizer, str):
            optimizer = keras.optimizers.get(self.optimizer)
            if LEARNING_RATE in values:
                optimizer.learning_rate = values[LEARNING_RATE]
            return optimizer
        arguments = [values[LEARNING_RATE]] if LEARNING_RATE in values else []
        try:
            inspect.signature(self.optimizer).bind(*arguments)
        except TypeError as error:
            wanted = "take the learning rate, which is" if arguments else "need no argument, for no learning rate is"
            raise TypeError(f"optimizer must {wanted} searched, but: {error}.") from None
        optimizer = self.optimizer(*arguments)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(f"optimizer must return a keras.optimizers.Optimizer, got {optimizer!r}.")
        return optimizer

    def _new_callbacks(self):
        return [] if self.callbacks is None else list(self.callbacks())


class _BestEpoch(keras.callbacks.Callback):
    """Keeps score and weights of the best epoch, and stops where loss or score are not finite."""

    def __init__(self, distiller, values, goal, direction):
        super().__init__()
        self._student, self._goal = distiller.student, goal
        self._hyperparameters = {name: distiller.hyperparameters[name] for name in values if name != LEARNING_RATE}
        self._values = {name: scalar_value(hyperparameter) for name, hyperparameter in self._hyperparameters.items()}
        self._sign = 1 if direction == "max" else -1
        self.score = self.epoch = self.weights = self.failure = None

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self._goal not in logs:
            known = sorted(name for name in logs if name.startswith("val_"))
            raise ValueError(f"goal must be one of {known}, which fit logs, got {self._goal!r}.")
        for name, hyperparameter in self._hyperparameters.items():
            if scalar_value(hyperparameter) != self._values[name]:
                raise ValueError(
                    f"search names {name!r}, but a callback changed it while training, so that the search would not "
                    "know what it tried. Leave it out of search, or leave out the callback."
                )
        score = float(logs[self._goal])
        watched = [name for name in ("loss", "val_loss", self._goal) if name in logs]  # accuracy does not show a NaN
        wrong = [f"{name} is {logs[name]}" for name in watched if not math.isfinite(logs[name])]
        if wrong:
            self.failure = f"{wrong[0]} in epoch {epoch + 1}"
            self.model.stop_training = True
        elif self.score is None or self._sign * score > self._sign * self.score:
            self.score, self.epoch, self.weights = score, epoch + 1, [v.numpy() for v in self._student.weights]


@contextlib.contextmanager
def _without_warnings_of_retracing():
    """TensorFlow warns from the fifth model on that each has a step of its own, which here is meant."""

    def is_other(record):
        return "triggered tf.function retracing" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _made(data):
    """Data, or what the function gives that was handed in for them."""
    return data() if callable(data) else data


def _require_function(value, argument, example):
    if not callable(value) or isinstance(value, (keras.Model, keras.losses.Loss, keras.optimizers.Optimizer)):
        raise TypeError(
            f"{argument} must be a function that makes what each trial starts from, for instance {example}, got "
            f"{type(value).__name__}."
        )


def _require_repeatable(data, argument):
    if inspect.isgenerator(data):
        raise TypeError(
            f"{argument} must be something that every trial can read from its start, got a generator, which can be "
            "read once. Give a function that makes it, or a tf.data.Dataset."
        )
