"""`tune`: one trial after another, each kept before the next begins."""

import keras

from keras_kd._checks import require_count
from keras_kd.tuning.progress import Lines
from keras_kd.tuning.recipe import Recipe
from keras_kd.tuning.record import Record, ranked
from keras_kd.tuning.result import Tuning
from keras_kd.tuning.space import read_search


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
    """Search λ, temperatures, weights of losses and the learning rate, with KerasTuner.

    Each trial trains a new student with other values and scores it on the validation data; its score is the goal at
    its best epoch. Every trial starts from the same seed, `keras.utils.set_random_seed(seed)`: initial weights, Dropout
    and the order of batches are the same, so that trials differ by their values alone, and the same call gives the same
    result. A `tf.data.Dataset` that shuffles goes on where the last trial left it: hand in a function that makes it.

    `directory` keeps every finished trial, with its logs, in `tuning.json`, and the student of the best one. Killed at
    any moment and called again, the search goes on as it would have: finished trials are not run again, the
    interrupted one is. With more `trials` it is continued. The teacher is neither changed nor written.

    A trial whose loss or goal becomes NaN or infinite has failed; the search goes on, and says so in the table. Any
    other error ends the search, for it would meet the next trial as well.

    Args:
        teacher: A built `keras.Model`.
        make_student: A function without arguments that returns a new student; the same one from the same seed.
        x, y: The training data, as for `keras.Model.fit`; or, for `x`, a function that makes what `fit` takes.
        validation_data: As for `fit`, or a function that makes it. It may be left out with `validation_split=`.
        search: What is searched, by name: the distiller's hyperparameters (`"soft_weight"`, `"hard_weight"`, and for an
            loss called `soft_labels`, `"soft_labels_weight"` and `"soft_labels_temperature"`) and
            `"learning_rate"`. A tuple `(low, high)` is a range, drawn evenly in the logarithm where low > 0 and
            high / low ≥ 10 (`keras_kd.tuning.Range` sets that by hand); a list holds choices.
        goal: A figure of the validation data in the logs of `fit`, for instance `"val_accuracy"`. For one whose better
            direction KerasTuner cannot know, a `keras_tuner.Objective`.
        directory: The folder of this search.
        losses: A function that returns new losses, as `keras_kd.Distiller` takes them; `SoftLabels()` if not
            given.
        optimizer: A function that returns a new optimizer: called with the learning rate where it is searched, else
            without an argument. An optimizer class or a name such as `"adam"` will do.
        loss, metrics: As for `compile`; `metrics` may be a function that makes them.
        callbacks: A function that returns new callbacks for `fit`.
        soft_weight, hard_weight: As in `keras_kd.Distiller`, where they are not searched.
        trials: How many trials in all, ≥ 1; fewer are run if there are not so many different values.
        epochs: Epochs a trial, ≥ 1.
        method: `"bayesian"`: random at first, from trial 3·n + 1 on, n being the values searched, where a Gaussian
            process expects most; `"random"`.
        seed: A whole number ≥ 0, of the search and of each trial.
        compile_options: More arguments for `compile`, for instance `{"jit_compile": True}`.
        verbose: 1 prints a line a trial, 0 nothing.
        **fit_options: More arguments for `fit`, for instance `batch_size=64`.

    Returns:
        A `keras_kd.tuning.Tuning`: `best`, `best_student()`, `new_distiller()`, `print`, `plot`.

    Raises:
        ImportError: KerasTuner is not installed.
        TypeError, ValueError: Something is wrong with the arguments or does not fit together; `search` names unknown
            hyperparameters; `directory` holds another search.
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

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), for what is searched; KerasTuner (https://keras.io/keras_tuner) searches.
    """
    proposals_class = _proposals_class()
    for name, value in (("trials", trials), ("epochs", epochs)):
        require_count(value, name, at_least=1)
    require_count(seed, "seed", at_least=0)
    recipe = Recipe(
        teacher=teacher,
        make_student=make_student,
        distillation_losses=distillation_losses,
        optimizer=optimizer,
        loss=loss,
        metrics=metrics,
        callbacks=callbacks,
        soft_weight=soft_weight,
        hard_weight=hard_weight,
        compile_options=compile_options or {},
        x=x,
        y=y,
        validation_data=validation_data,
        epochs=epochs,
        fit_options=fit_options,
        seed=seed,
    )
    recipe.check()
    space = read_search(search, recipe.hyperparameters())
    proposals = proposals_class(method, space, goal=goal, seed=seed)
    found = {"goal": proposals.goal, "direction": proposals.direction}
    record = Record(directory, {**found, "method": method, **recipe.setting(space)}, proposals.direction)

    def run_trial(number, values):
        trial, student = recipe.run(number, values, **found)
        record.add(trial, student)
        return trial

    lines = Lines(proposals, len(record.trials), verbose)
    done = []
    for trial in proposals.run(trials, list(record.trials), run_trial):
        done.append(trial)
        lines.show(trial, done)
    if not ranked(done, proposals.direction):
        raise RuntimeError(
            f"each of the {len(done)} trials failed; in the last one, {done[-1].failure}. Search smaller learning "
            f"rates, or look for what is wrong with the data. The trials are in {record.folder}."
        )
    return Tuning(
        **found,
        space=space,
        trials=tuple(done),
        _make_distiller=recipe.new_distiller,
        _weights_file=record.weights_file,
    )


def _proposals_class():
    try:
        from keras_kd.tuning.oracle import Proposals
    except ImportError as error:
        raise ImportError("keras_kd.tune needs KerasTuner: pip install keras-kd[tune]") from error
    return Proposals
