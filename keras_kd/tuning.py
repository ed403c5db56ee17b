"""`tune`: search λ, temperatures, weights of losses and the learning rate with KerasTuner."""

import contextlib
import dataclasses
import gc
import inspect
import json
import math
import pathlib
import tempfile
import typing
import warnings

import keras
import tensorflow as tf

from keras_kd._checks import require_choice, require_count, require_number, require_teacher
from keras_kd._extras import needs_extra
from keras_kd._files import written_whole
from keras_kd._quiet import quiet
from keras_kd.distiller import Distiller
from keras_kd.fingerprint import differences, fingerprint

LEARNING_RATE = "learning_rate"
_FORMAT = "keras_kd.tune/3"


def tune(
    teacher,
    make_student,
    x,
    y=None,
    *,
    validation_data=None,
    search,
    goal,
    directory,
    distillation_losses=None,
    optimizer=keras.optimizers.Adam,
    loss=None,
    metrics=None,
    callbacks=None,
    soft_weight=1.0,
    hard_weight=1.0,
    trials=20,
    epochs=1,
    method="bayesian",
    seed=0,
    compile_options=None,
    verbose=1,
    **fit_options,
):
    """Search λ, temperatures, weights of losses and the learning rate with KerasTuner.

    Each trial trains a new student with other values. Its score is the best value of `goal` over its epochs. Every
    trial starts from the same seed, `keras.utils.set_random_seed(seed)`: initial weights, Dropout and the order of
    batches are the same, so that trials differ by their values alone. A shuffled `tf.data.Dataset` continues where the
    last trial left it: pass a function that makes it.

    A trial whose loss or score becomes NaN or infinite has failed, and the search continues. Any other error ends the
    search, since the next trial would meet it too.

    `directory` keeps each finished trial, with the student's weights after its best epoch. Call `tune` again with the
    same arguments to continue a search that was interrupted or killed: finished trials are not trained again. More
    `trials` continue a finished search.

    Args:
        teacher: A built `keras.Model`. It is neither changed nor saved.
        make_student: A function without arguments that returns a new student.
        x, y, validation_data: As for `keras.Model.fit`. `x` and `validation_data` may be functions that return them.
        search: What is searched, `{name: values}`. Names are the distiller's hyperparameters (`"soft_weight"`,
            `"hard_weight"`; for a loss named `soft_labels`, `"soft_labels_weight"` and `"soft_labels_temperature"`) and
            `"learning_rate"`. A tuple `(low, high)` is a range, on a logarithmic scale if low > 0 and high / low ≥ 10;
            `(low, high, "linear")` or `(low, high, "log")` sets the scale. A list holds choices.
        goal: A validation metric in the logs of `fit`, for instance `"val_accuracy"`; a `keras_tuner.Objective` where
            KerasTuner does not know whether more is better.
        directory: Folder of this search.
        distillation_losses: A function that returns new losses, as `keras_kd.Distiller` takes them. Default:
            `SoftLabels()`.
        optimizer: A name such as `"adam"`, a class, or a function that returns a new optimizer. A function gets the
            learning rate if that is searched, else no argument.
        loss, metrics: As for `compile`; `metrics` may be a function that returns them.
        callbacks: A function that returns new callbacks for `fit`.
        soft_weight, hard_weight: As in `keras_kd.Distiller`, where they are not searched.
        trials: Number of trials ≥ 1, those of earlier calls included. A search over choices alone ends when all
            combinations are tried.
        epochs: Epochs per trial ≥ 1.
        method: `"bayesian"` (`keras_tuner.BayesianOptimization`) or `"random"` (`keras_tuner.RandomSearch`).
        seed: Whole number ≥ 0: the seed of the search and of each trial.
        compile_options: Further arguments of `compile`, for instance `{"jit_compile": True}`.
        verbose: 1: KerasTuner prints its progress; 0: nothing is printed.
        **fit_options: Further arguments of `fit`, for instance `batch_size=64`.

    Returns:
        A `TuningResult`: `best`, `best_score`, `student`, `distiller`, `trials`; `print(result)` shows a table.

    Raises:
        ImportError: KerasTuner is not installed.
        TypeError, ValueError: An argument is wrong, or `directory` holds another search.
        RuntimeError: All trials failed.

    Example:

    >>> x, y = np.eye(4, dtype="float32"), np.arange(4)
    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, kernel_initializer="identity")])
    >>> result = keras_kd.tune(
    ...     teacher,
    ...     lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, kernel_initializer="zeros")]),
    ...     x,
    ...     validation_data=(x, y),
    ...     search={"soft_weight": [0.0, 1.0]},
    ...     goal="val_accuracy",
    ...     metrics=["accuracy"],
    ...     optimizer="sgd",
    ...     trials=2,
    ...     directory="tuning",
    ...     verbose=0,
    ... )
    >>> result.best, result.best_score
    ({'soft_weight': 1.0}, 1.0)

    Reference: https://keras.io/keras_tuner.
    """
    with needs_extra("tune"):
        import keras_tuner
    require_choice(method, "method", ["bayesian", "random"])
    for value, name, least in ((trials, "trials", 1), (epochs, "epochs", 1), (seed, "seed", 0)):
        require_count(value, name, at_least=least)
    recipe = _Recipe(
        teacher=teacher,
        make_student=make_student,
        distillation_losses=distillation_losses,
        optimizer=optimizer,
        loss=loss,
        metrics=metrics,
        weights={"soft_weight": soft_weight, "hard_weight": hard_weight},
        compile_options=compile_options or {},
        fit_options={"x": x, "y": y, "validation_data": validation_data, "epochs": epochs, **fit_options},
        callbacks=callbacks,
        seed=seed,
    )
    space = _space(keras_tuner.HyperParameters(), search, recipe.hyperparameter_names())
    oracles = keras_tuner.oracles
    oracle = (oracles.BayesianOptimizationOracle if method == "bayesian" else oracles.RandomSearchOracle)(
        objective=goal,
        max_trials=min(trials, math.prod(len(v) if isinstance(v, list) else math.inf for v in search.values())),
        seed=seed + 1,  # KerasTuner takes 0 for no seed
        hyperparameters=space,
        max_consecutive_failed_trials=-1,  # no limit
    )
    objective = oracle.objective
    if not objective.name.startswith("val_"):
        raise ValueError(
            f"goal must be a validation metric, whose name begins with val_, got {goal!r}: the training loss contains "
            "what is searched, so that the smallest λ would win."
        )
    searched = {parameter.name: parameter.get_config() for parameter in space.space}
    setting = {"goal": str(objective), "method": method, "search": searched, **recipe.fingerprint(space.values)}
    record = _Record(pathlib.Path(directory), setting)
    if len(record.trials) < oracle.max_trials:
        _search(keras_tuner, oracle, recipe, record, verbose)
    finished = (trial for trial in record.trials if not trial.failed)
    ranked = sorted(finished, key=lambda trial: trial.score, reverse=objective.direction == "max")
    if not ranked:
        raise RuntimeError(
            f"each of the {len(record.trials)} trials failed; in the last one, {record.trials[-1].failure}. Search "
            f"smaller learning rates, or look for what is wrong with the data. The trials are in {directory}."
        )
    distiller = recipe.new_distiller(ranked[0].values)
    distiller.student.load_weights(record.weights_file(ranked[0].number))
    return TuningResult(
        objective.name, objective.direction, tuple(record.trials), tuple(ranked), distiller, recipe.new_distiller
    )


def _search(keras_tuner, oracle, recipe, record, verbose):
    """Run the trials that the oracle proposes and the record lacks.

    The oracle's files, which KerasTuner writes in place, are not kept: with the same seed and the scores of the record
    it proposes the same trials again.
    """

    class DistillerTuner(keras_tuner.Tuner):
        def pre_create_trial(self):
            self.oracle.verbose = verbose if len(self.oracle.trials) >= len(record.trials) else 0

        def run_trial(self, trial):
            number = len(self.oracle.trials)
            try:
                if number > len(record.trials):
                    values = dict(trial.hyperparameters.values)
                    record.add(recipe.run(number, values, self.oracle.objective, record.weights_file(number)))
                    gc.collect()  # models hold themselves in circles
            except Exception as error:
                raise keras_tuner.errors.FatalError from error  # others count as a failed trial
            done = record.trials[number - 1]
            trial.hyperparameters.values = dict(done.values)  # on another machine the proposal may differ
            return {self.oracle.objective.name: math.nan if done.failed else done.score}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="keras_tuner|sklearn")
        tf.get_logger().addFilter(_is_not_of_retracing)
        try:
            DistillerTuner(oracle=oracle, directory=folder).search()
        except keras_tuner.errors.FatalError as error:
            raise error.__cause__ from None
        finally:
            tf.get_logger().removeFilter(_is_not_of_retracing)


def _is_not_of_retracing(record):
    """TensorFlow warns from the fifth model on that each has a step of its own, which is meant here."""
    return "triggered tf.function retracing" not in record.getMessage()


# Result ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial of `keras_kd.tune`."""

    number: int  # from 1, in the order the trials were run
    values: dict[str, float]  # what was tried, by name
    score: float | None  # the goal in the best epoch; None if the trial failed
    epoch: int | None  # the best epoch, from 1; None if the trial failed
    failure: str | None  # why it failed; None if it did not

    @property
    def failed(self):
        return self.failure is not None


@dataclasses.dataclass(frozen=True, repr=False)
class TuningResult:
    """The trials of a search; made by `keras_kd.tune`. `print(result)` shows them, best first."""

    goal: str  # the metric that was searched by, for instance "val_accuracy"
    direction: str  # "max" or "min"
    trials: tuple[Trial, ...]  # in the order they were run
    ranked: tuple[Trial, ...]  # those that did not fail, best first
    distiller: Distiller  # compiled, with the best values and the best student
    _make_distiller: typing.Callable

    @property
    def best(self):
        """The values of the best trial, by name."""
        return dict(self.ranked[0].values)

    @property
    def best_score(self):
        """The goal in the best epoch of the best trial. It is the best of many: measure again on other data."""
        return self.ranked[0].score

    @property
    def student(self):
        """The student of the best trial, with the weights after its best epoch."""
        return self.distiller.student

    def new_distiller(self):
        """A compiled `keras_kd.Distiller` with a new student and the best values, to train longer or on more data."""
        return self._make_distiller(self.best)

    def __repr__(self):
        return f"TuningResult({self.goal}={self.best_score:.4g}, best={self.best}, trials={len(self.trials)})"

    def __str__(self):
        failed = [trial for trial in self.trials if trial.failed]
        rows = [["trial", self.goal, "epoch", *self.best]]
        for trial in [*self.ranked, *failed]:
            outcome = ["failed", "-"] if trial.failed else [f"{trial.score:.4f}", str(trial.epoch)]
            rows.append([str(trial.number), *outcome, *(f"{value:.3g}" for value in trial.values.values())])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        return "\n".join([*lines, *dict.fromkeys(f"failed: {trial.failure}" for trial in failed)])


# Trials ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a student is made and trained with given values; the fields are arguments of `tune`."""

    teacher: keras.Model
    make_student: typing.Callable
    distillation_losses: typing.Callable | None
    optimizer: typing.Callable | str
    loss: object
    metrics: object
    weights: dict
    compile_options: dict
    fit_options: dict
    callbacks: typing.Callable | None
    seed: int

    def __post_init__(self):
        require_teacher(self.teacher)
        for name in ("make_student", "optimizer", "distillation_losses", "callbacks"):
            value = getattr(self, name)
            is_default = isinstance(value, str) if name == "optimizer" else value is None and name != "make_student"
            is_object = isinstance(value, (keras.Model, keras.losses.Loss))  # which can be called as well
            if not is_default and (is_object or not callable(value)):
                raise TypeError(
                    f"{name} must be a function that makes anew what each trial needs, got {type(value).__name__}. "
                    "Make it inside a function, for instance a lambda."
                )
        for name in ("x", "validation_data"):
            if inspect.isgenerator(self.fit_options[name]):
                raise TypeError(
                    f"{name} must be readable by every trial from its start, got a generator, which can be read once. "
                    "Pass a function that makes it, or a tf.data.Dataset."
                )
        inspect.signature(keras.Model.fit).bind(None, **self.fit_options)
        if self.fit_options["validation_data"] is None and not self.fit_options.get("validation_split"):
            raise ValueError("validation_data must be given: trials are compared by their score on it.")

    def hyperparameter_names(self):
        """The names of the distiller's hyperparameters; raises if a function returns the same object twice."""
        first, second = self._uncompiled(), self._uncompiled()
        variables = {id(variable) for variable in first.student.trainable_variables}
        if any(id(variable) in variables for variable in second.student.trainable_variables):
            raise ValueError(
                "make_student must return a new student each time, with layers of its own, but two calls gave the same "
                "trainable weights. Make the layers inside the function, or clone: keras.models.clone_model(student)."
            )
        if any(a is b for a, b in zip(first.distillation_losses, second.distillation_losses, strict=False)):
            raise ValueError("distillation_losses must return new losses each time: make them inside the function.")
        return list(first.hyperparameters)

    def new_distiller(self, values):
        """A compiled distiller with a new student and these values, always from the same seed."""
        keras.utils.set_random_seed(self.seed)
        distiller = self._uncompiled()
        for name in values.keys() - {LEARNING_RATE}:
            distiller.hyperparameters[name].assign(values[name])
        distiller.compile(self._new_optimizer(values), self.loss, metrics=_called(self.metrics), **self.compile_options)
        return distiller

    def _uncompiled(self):
        return Distiller(self.teacher, self.make_student(), _called(self.distillation_losses), **self.weights)

    def run(self, number, values, objective, path):
        """Train a student with these values, save it after its best epoch, and return the `Trial`."""
        best = _BestEpoch(objective, values, path)
        callbacks = [*(_called(self.callbacks) or []), best]
        self.new_distiller(values).fit(**self._new_fit_options(), callbacks=callbacks, verbose=0)
        return Trial(number, values, best.score, best.epoch, best.failure)

    def fingerprint(self, values):
        """What makes a search with this recipe what it is; `values` are any that may be tried."""
        distiller = self.new_distiller(values)
        setting = {
            "seed": self.seed,
            "teacher": self.teacher,
            "student": distiller.student,
            "distillation_losses": distiller.distillation_losses,
            **self.weights,
            "optimizer": distiller.optimizer,
            "loss": self.loss,
            "compile_options": self.compile_options,
            "callbacks": _called(self.callbacks),
            **self._new_fit_options(),
        }
        return fingerprint(setting)

    def _new_fit_options(self):
        return {name: _called(value) for name, value in self.fit_options.items()}

    def _new_optimizer(self, values):
        is_name = isinstance(self.optimizer, str)
        make = type(keras.optimizers.get(self.optimizer)) if is_name else self.optimizer
        arguments = [values[LEARNING_RATE]] if LEARNING_RATE in values else []
        try:
            inspect.signature(make).bind(*arguments)
        except TypeError as error:
            raise TypeError(
                f"optimizer must take the learning rate where that is searched, and else no argument, but: {error}"
            ) from None
        return make(*arguments)


def _called(value):
    """A value, or what a function given in its place returns."""
    return value() if callable(value) else value


class _BestEpoch(keras.callbacks.Callback):
    """Saves the student after its best epoch; stops at a loss or score that is not finite, which `failure` names."""

    def __init__(self, objective, values, path):
        super().__init__()
        self._objective, self._values, self._path = objective, values, path
        self.score = self.epoch = self.failure = None

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        goal = self._objective.name
        if goal not in logs:
            known = sorted(name for name in logs if name.startswith("val_"))
            raise ValueError(f"goal must be one of {known}, which fit logs, got {goal!r}.")
        for searched in self._values.keys() - {LEARNING_RATE}:
            value = float(self.model.hyperparameters[searched].numpy())
            if not math.isclose(value, self._values[searched], rel_tol=1e-6, abs_tol=1e-9):
                raise ValueError(
                    f"search names {searched!r}, but a callback changed it during training, so that the score would "
                    "not be that of the value that was tried. Leave it out of search, or leave out the callback."
                )
        watched = [name for name in ("loss", "val_loss", goal) if name in logs]  # accuracy does not show a NaN
        wrong = [f"{name} is {logs[name]} in epoch {epoch + 1}" for name in watched if not math.isfinite(logs[name])]
        if wrong:
            self.score, self.epoch, self.failure = None, None, wrong[0]
            self.model.stop_training = True
        elif self.score is None or self._objective.better_than(logs[goal], self.score):
            self.score, self.epoch = float(logs[goal]), epoch + 1
            with quiet():  # Keras warns of its own use of NumPy
                self.model.student.save_weights(self._path)


# Settings ----------------------------------------------------------------------------------------------------------


def _space(space, search, hyperparameters):
    """Return KerasTuner's `space` filled with what is searched."""
    if not isinstance(search, dict) or not search:
        raise TypeError(
            "search must be a dict with at least one value to search, for instance "
            f'{{"soft_weight": (0.1, 10.0)}}, got {search!r}.'
        )
    known = [*hyperparameters, LEARNING_RATE]
    unknown = [name for name in search if name not in known]
    if unknown:
        raise ValueError(f"search names {unknown}, which this distiller does not have. It has {known}.")
    for name, values in search.items():
        _add(space, name, values)
    return space


def _add(space, name, values):
    """Add a range or choices."""
    argument = f"search[{name!r}]"
    positive = name == LEARNING_RATE or name.endswith("_temperature")
    bounds = {"above": 0.0} if positive else {"at_least": 0.0} if name.endswith("_weight") else {}
    if isinstance(values, list) and values:
        choices = sorted(require_number(value, argument, **bounds) for value in values)
        if len(set(choices)) < len(choices):
            raise ValueError(f"{argument} must list different choices, got {values!r}.")
        return space.Choice(name, choices)
    if not isinstance(values, tuple) or len(values) not in (2, 3):
        raise TypeError(f"{argument} must be a range, (low, high), or a list of choices, got {values!r}.")
    low, high = (require_number(value, argument, **bounds) for value in values[:2])
    if low >= high:
        raise ValueError(f"{argument} must have low < high, got {values!r}. For a fixed value, give a list of one.")
    scale = values[2] if len(values) == 3 else "log" if low > 0 and high / low >= 10 else "linear"
    require_choice(scale, f"the scale of {argument}", ["linear", "log"])
    if scale == "log" and low <= 0:
        raise ValueError(f"{argument} must have low > 0 on a logarithmic scale, got {values!r}.")
    return space.Float(name, low, high, sampling=scale)


class _Record:
    """The folder of a search: `search.json`, with its setting and finished trials, and the students' weights."""

    def __init__(self, folder, setting):
        self._folder, self._file = folder, folder / "search.json"
        self._setting = json.loads(json.dumps(setting))
        self.trials = [Trial(**row) for row in self._read()] if self._file.exists() else []

    def weights_file(self, number):
        """Where the student of a trial is saved."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"trial_{number}.weights.h5"

    def add(self, trial):
        """Save the trials with a new one."""
        self.trials.append(trial)
        content = {"format": _FORMAT, "setting": self._setting, "trials": list(map(dataclasses.asdict, self.trials))}
        with written_whole(self._file) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _read(self):
        content = None
        with contextlib.suppress(json.JSONDecodeError):
            content = json.loads(self._file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"directory holds {self._file}, which keras_kd.tune did not write ({_FORMAT}).")
        differing = list(differences(content["setting"], self._setting))
        if differing:
            raise ValueError(
                f"directory {str(self._folder)!r} holds another search, whose trials must not be mixed with these. It "
                "differs in\n" + "\n".join(differing) + "\nGive another directory, or remove that one."
            )
        return content["trials"]
