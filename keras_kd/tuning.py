"""`tune`: search λ, temperatures, weights of losses and the learning rate with KerasTuner."""

import contextlib
import dataclasses
import gc
import inspect
import io
import json
import math
import pathlib
import tempfile
import typing
import warnings

import keras
import tensorflow as tf

from keras_kd import fingerprint
from keras_kd._checks import require_choice, require_count, require_number, require_teacher
from keras_kd._extras import needs_extra
from keras_kd._files import written_whole
from keras_kd._quiet import quiet
from keras_kd.distiller import Distiller

LEARNING_RATE = "learning_rate"
_FORMAT = "keras_kd.tune/2"


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

    KerasTuner keeps all trials in `directory`, with the student's weights after its best epoch. Call `tune` again with
    the same arguments to continue a search that was interrupted or killed: finished trials are not run again. More
    `trials` continue a finished search.

    Args:
        teacher: A built `keras.Model`. It is neither changed nor saved.
        make_student: A function without arguments that returns a new student.
        x, y: Training data, as for `keras.Model.fit`. `x` may be a function that returns what `fit` takes.
        validation_data: As for `fit`, or a function that returns it. Not needed with `validation_split=`.
        search: What is searched, `{name: values}`. Names are the distiller's hyperparameters (`"soft_weight"`,
            `"hard_weight"`; for a loss named `soft_labels`, `"soft_labels_weight"` and `"soft_labels_temperature"`) and
            `"learning_rate"`. A tuple `(low, high)` is a range, on a logarithmic scale if low > 0 and high / low ≥ 10;
            `(low, high, "linear")` or `(low, high, "log")` sets the scale. A list holds choices.
        goal: A validation metric in the logs of `fit`, for instance `"val_accuracy"`; a `keras_tuner.Objective` where
            KerasTuner does not know whether more is better.
        directory: Folder of this search.
        distillation_losses: A function that returns new losses, as `keras_kd.Distiller` takes them. Default:
            `SoftLabels()`.
        optimizer: A function that returns a new optimizer. It gets the learning rate if that is searched, else no
            argument. An optimizer class or a name such as `"adam"` works too.
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
    objective = _objective(keras_tuner, goal)
    recipe = _Recipe(
        teacher=teacher,
        make_student=make_student,
        distillation_losses=distillation_losses,
        optimizer=optimizer,
        loss=loss,
        metrics=metrics,
        callbacks=callbacks,
        weights={"soft_weight": soft_weight, "hard_weight": hard_weight},
        compile_options=compile_options or {},
        fit_arguments={"x": x, "y": y, "validation_data": validation_data, "epochs": epochs, **fit_options},
        seed=seed,
    )
    recipe.check()
    space = _checked_space(search, recipe.hyperparameter_names())
    setting = {"goal": str(objective), "method": method, "search": space, **recipe.fingerprint(space)}
    store = _Store(pathlib.Path(directory), setting)
    options = {
        "objective": objective,
        "max_trials": min(trials, _combinations(space)),
        "seed": seed + 1,  # KerasTuner takes 0 for no seed
        "hyperparameters": _hyperparameters(keras_tuner, space),
        "max_consecutive_failed_trials": -1,  # no limit
        "project_name": "trials",
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="keras_tuner|sklearn")
        store.restore(folder)
        tuner = _tuner(keras_tuner, method, recipe, store, {**options, "directory": folder}, verbose)
        try:
            tuner.search()
        except keras_tuner.errors.FatalError as error:  # KerasTuner lets no other error out of a trial
            raise error.__cause__ from None
    found = tuple(_trial(tuner.oracle.get_trial(trial_id)) for trial_id in tuner.oracle.start_order)
    if all(trial.failed for trial in found):
        raise RuntimeError(
            f"each of the {len(found)} trials failed; in the last one, {found[-1].failure}. Search smaller learning "
            f"rates, or look for what is wrong with the data. The trials are in {directory}."
        )
    better = max if objective.direction == "max" else min  # the first of equals
    best = better((n for n, trial in enumerate(found) if not trial.failed), key=lambda n: found[n].score)
    distiller = recipe.new_distiller(found[best].values)
    distiller.student.load_weights(store.weights_file(tuner.oracle.start_order[best]))
    return TuningResult(objective.name, objective.direction, found, distiller, recipe.new_distiller)


# Result ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial of `keras_kd.tune`.

    Attributes:
        values: What was tried, by name.
        score: The goal in the best epoch; None if the trial failed.
        epoch: The best epoch, from 1; None if the trial failed.
        failure: Why it failed; None if it did not.
    """

    values: dict[str, float]
    score: float | None
    epoch: int | None
    failure: str | None

    @property
    def failed(self):
        return self.score is None


@dataclasses.dataclass(frozen=True, repr=False)
class TuningResult:
    """The trials of a search; made by `keras_kd.tune`. `print(result)` shows them, best first.

    Attributes:
        goal: The metric that was searched by, for instance "val_accuracy".
        direction: "max" or "min".
        trials: Every `Trial`, in the order they were run.
        distiller: A compiled `keras_kd.Distiller` with the best values and the best student.
    """

    goal: str
    direction: str
    trials: tuple[Trial, ...]
    distiller: Distiller
    _make_distiller: typing.Callable

    @property
    def ranked(self):
        """The trials that did not fail, best first."""
        sign = -1 if self.direction == "max" else 1
        return sorted((trial for trial in self.trials if not trial.failed), key=lambda trial: sign * trial.score)

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
        names, numbers = list(self.trials[0].values), {id(trial): n for n, trial in enumerate(self.trials, start=1)}
        rows = [["trial", self.goal, "epoch", *names]]
        for trial in [*self.ranked, *(trial for trial in self.trials if trial.failed)]:
            outcome = ["failed", "-"] if trial.failed else [f"{trial.score:.4f}", str(trial.epoch)]
            rows.append([str(numbers[id(trial)]), *outcome, *(f"{trial.values[name]:.3g}" for name in names)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        failures = {trial.failure: None for trial in self.trials if trial.failed}
        return "\n".join([*lines, *(f"failed: {failure}" for failure in failures)])


def _trial(trial):
    """A `Trial` from KerasTuner's."""
    values = dict(trial.hyperparameters.values)
    if trial.status == "COMPLETED":
        return Trial(values, float(trial.score), trial.best_step + 1, None)
    return Trial(values, None, None, trial.message)


# Trials ------------------------------------------------------------------------------------------------------------


def _tuner(keras_tuner, method, recipe, store, options, verbose):
    """KerasTuner's tuner for this method, whose trials are those of the recipe."""
    base = keras_tuner.BayesianOptimization if method == "bayesian" else keras_tuner.RandomSearch

    class DistillerTuner(base):
        def run_trial(self, trial):
            try:
                best = _BestEpoch(
                    self.oracle.objective, trial.hyperparameters.values, store.weights_file(trial.trial_id)
                )
                history = recipe.fit(trial.hyperparameters.values, best)
            except Exception as error:
                raise keras_tuner.errors.FatalError from error
            if best.failure:  # KerasTuner takes a score of NaN for a failure
                trial.message = best.failure
                return {self.oracle.objective.name: math.nan}
            return history

        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            store.keep(self.project_dir)

    # It prints where it reloads from.
    with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
        tuner = DistillerTuner(**options)
    tuner.oracle.verbose = verbose
    return tuner


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a student is made and trained with given values; the fields are arguments of `tune`."""

    teacher: keras.Model
    make_student: typing.Callable
    distillation_losses: typing.Callable | None
    optimizer: typing.Callable | str
    loss: object
    metrics: object
    callbacks: typing.Callable | None
    weights: dict
    compile_options: dict
    fit_arguments: dict
    seed: int

    def check(self):
        """Raise TypeError or ValueError for what is wrong before a student is made."""
        require_teacher(self.teacher)
        examples = {
            "make_student": "lambda: keras.models.clone_model(student)",
            "distillation_losses": "lambda: [keras_kd.losses.SoftLabels()]",
            "callbacks": "lambda: [keras.callbacks.EarlyStopping()]",
            "optimizer": "lambda learning_rate: keras.optimizers.Adam(learning_rate)",
        }
        for name, example in examples.items():
            value = getattr(self, name)
            is_default = isinstance(value, str) if name == "optimizer" else value is None and name != "make_student"
            is_object = isinstance(value, (keras.Model, keras.losses.Loss, keras.optimizers.Optimizer))
            if not is_default and (is_object or not callable(value)):
                raise TypeError(
                    f"{name} must be a function that returns a new object for each trial, for instance {example}, got "
                    f"{type(value).__name__}."
                )
        for name in ("x", "validation_data"):
            if inspect.isgenerator(self.fit_arguments[name]):
                raise TypeError(
                    f"{name} must be readable by every trial from its start, got a generator, which can be read once. "
                    "Pass a function that makes it, or a tf.data.Dataset."
                )
        inspect.signature(keras.Model.fit).bind(None, **self.fit_arguments)
        if self.fit_arguments["validation_data"] is None and not self.fit_arguments.get("validation_split"):
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
        metrics = self.metrics() if callable(self.metrics) else self.metrics
        distiller.compile(self._new_optimizer(values), self.loss, metrics=metrics, **self.compile_options)
        return distiller

    def fit(self, values, best):
        """Train a student with these values under the callback `best`; return the `History`."""
        distiller = self.new_distiller(values)
        arguments = {name: _called(value) for name, value in self.fit_arguments.items()}
        with _without_warnings_of_retracing():
            history = distiller.fit(**arguments, callbacks=[*self._new_callbacks(), best], verbose=0)
        del distiller
        gc.collect()  # models hold themselves in circles
        return history

    def fingerprint(self, space):
        """What makes a search with this recipe what it is."""
        distiller = self.new_distiller({name: part[0] for name, part in space.items()})
        return {
            "seed": self.seed,
            "teacher": fingerprint.model_fingerprint(self.teacher),
            "student": fingerprint.model_fingerprint(distiller.student),
            "distillation_losses": fingerprint.object_fingerprint(distiller.distillation_losses),
            **self.weights,
            "optimizer": fingerprint.object_fingerprint(distiller.optimizer),
            "loss": fingerprint.object_fingerprint(self.loss),
            "callbacks": [type(callback).__name__ for callback in self._new_callbacks()],
            "compile_options": fingerprint.object_fingerprint(self.compile_options),
            **{name: fingerprint.data_fingerprint(_called(value)) for name, value in self.fit_arguments.items()},
        }

    def _uncompiled(self):
        losses = None if self.distillation_losses is None else self.distillation_losses()
        return Distiller(self.teacher, self.make_student(), losses, **self.weights)

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
            raise TypeError(
                "optimizer must take the learning rate where that is searched, and else no argument, but: " + str(error)
            ) from None
        return self.optimizer(*arguments)

    def _new_callbacks(self):
        return [] if self.callbacks is None else list(self.callbacks())


class _BestEpoch(keras.callbacks.Callback):
    """Saves the student after its best epoch; stops at a loss or score that is not finite, which `failure` names."""

    def __init__(self, objective, values, path):
        super().__init__()
        self._objective, self._path = objective, path
        self._values = {name: value for name, value in values.items() if name != LEARNING_RATE}
        self._best = self.failure = None

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        name = self._objective.name
        if name not in logs:
            known = sorted(name for name in logs if name.startswith("val_"))
            raise ValueError(f"goal must be one of {known}, which fit logs, got {name!r}.")
        for searched, value in self._values.items():
            if not math.isclose(float(self.model.hyperparameters[searched].numpy()), value, rel_tol=1e-6, abs_tol=1e-9):
                raise ValueError(
                    f"search names {searched!r}, but a callback changed it during training, so that the score would "
                    "not be that of the value that was tried. Leave it out of search, or leave out the callback."
                )
        watched = [name for name in ("loss", "val_loss", name) if name in logs]  # accuracy does not show a NaN
        wrong = [f"{name} is {logs[name]}" for name in watched if not math.isfinite(logs[name])]
        if wrong:
            self.failure = f"{wrong[0]} in epoch {epoch + 1}"
            self.model.stop_training = True
        elif self._best is None or self._objective.better_than(logs[name], self._best):
            self._best = logs[name]
            with quiet():  # Keras warns of its own use of NumPy
                self.model.student.save_weights(self._path)


# Settings ----------------------------------------------------------------------------------------------------------


def _objective(keras_tuner, goal):
    """`goal` as a `keras_tuner.Objective` for a validation metric."""
    objective = keras_tuner.oracles.RandomSearchOracle(objective=goal, max_trials=1).objective
    if not objective.name.startswith("val_"):
        raise ValueError(
            f"goal must be a validation metric, whose name begins with val_, got {goal!r}: the training loss contains "
            "what is searched, so that the smallest λ would win."
        )
    return objective


def _checked_space(search, hyperparameters):
    """Return `{name: (low, high, "log" or "linear") or a sorted list of choices}`."""
    if not isinstance(search, dict) or not search:
        raise TypeError(
            "search must be a dict with at least one value to search, for instance "
            f'{{"soft_weight": (0.1, 10.0)}}, got {search!r}.'
        )
    known = [*hyperparameters, LEARNING_RATE]
    unknown = [name for name in search if name not in known]
    if unknown:
        raise ValueError(f"search names {unknown}, which this distiller does not have. It has {known}.")
    return {name: _checked_values(values, f"search[{name!r}]", name) for name, values in search.items()}


def _checked_values(values, argument, name):
    positive = name == LEARNING_RATE or name.endswith("_temperature")
    bounds = {"above": 0.0} if positive else {"at_least": 0.0} if name.endswith("_weight") else {}
    if isinstance(values, list) and values:
        choices = sorted(require_number(value, argument, **bounds) for value in values)
        if len(set(choices)) < len(choices):
            raise ValueError(f"{argument} must list different choices, got {values!r}.")
        return choices
    if not isinstance(values, tuple) or len(values) not in (2, 3):
        raise TypeError(f"{argument} must be a range, (low, high), or a list of choices, got {values!r}.")
    low, high = (require_number(value, argument, **bounds) for value in values[:2])
    if low >= high:
        raise ValueError(f"{argument} must have low < high, got {values!r}. For a fixed value, give a list of one.")
    scale = values[2] if len(values) == 3 else "log" if low > 0 and high / low >= 10 else "linear"
    require_choice(scale, f"the scale of {argument}", ["linear", "log"])
    if scale == "log" and low <= 0:
        raise ValueError(f"{argument} must have low > 0 on a logarithmic scale, got {values!r}.")
    return low, high, scale


def _combinations(space):
    return math.prod(len(part) if isinstance(part, list) else math.inf for part in space.values())


def _hyperparameters(keras_tuner, space):
    hyperparameters = keras_tuner.HyperParameters()
    for name, part in space.items():
        if isinstance(part, list):
            hyperparameters.Choice(name, part)
        else:
            hyperparameters.Float(name, part[0], part[1], sampling=part[2])
    return hyperparameters


class _Store:
    """The folder of a search: `search.json`, its setting and the files of KerasTuner; the students.

    KerasTuner writes its files in place, so that a killed process may leave half of one. So it works in a temporary
    folder, and after each trial its files are written here at once.
    """

    def __init__(self, folder, setting):
        self.folder, self._setting, self._files = folder, json.loads(json.dumps(setting)), {}
        if self._file.exists():
            self._files = self._read()

    @property
    def _file(self):
        return self.folder / "search.json"

    def weights_file(self, trial_id):
        """Where the student of a trial is saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"trial_{int(trial_id)}.weights.h5"

    def restore(self, folder):
        """Write the files of KerasTuner to `folder`."""
        for name, text in self._files.items():
            path = pathlib.Path(folder) / "trials" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def keep(self, project):
        """Save the files of KerasTuner in the folder `project`."""
        project = pathlib.Path(project)
        files = {path.relative_to(project).as_posix(): path.read_text("utf-8") for path in project.rglob("*.json")}
        content = {"format": _FORMAT, "setting": self._setting, "keras_tuner": files}
        with written_whole(self._file) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _read(self):
        content = {}
        with contextlib.suppress(json.JSONDecodeError):
            content = json.loads(self._file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"directory holds {self._file}, which keras_kd.tune did not write ({_FORMAT}).")
        differing = list(fingerprint.differences(content["setting"], self._setting))
        if differing:
            raise ValueError(
                f"directory {str(self.folder)!r} holds another search, whose trials must not be mixed with these. It "
                "differs in\n" + "\n".join(differing) + "\nGive another directory, or remove that one."
            )
        return content["keras_tuner"]


def _called(data):
    """Data, or what a function given in their place returns."""
    return data() if callable(data) else data


@contextlib.contextmanager
def _without_warnings_of_retracing():
    """TensorFlow warns from the fifth model on that each has a step of its own, which is meant here."""

    def is_other(record):
        return "triggered tf.function retracing" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
