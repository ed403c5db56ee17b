"""tune: what it tries, how it scores, what it keeps, how it goes on; against plain Keras and by hand."""

import gc
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl
from conftest import crossentropy, dense_model

import keras_kd
from keras_kd._files import bytes_on_disk
from keras_kd.tuning import _space

X = np.random.default_rng(0).normal(size=(48, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).normal(size=(8, 3))).argmax(axis=-1)
TRAIN, VALIDATION = slice(32), slice(32, None)
# Small steps run faster without a graph.
EAGER = {"run_eagerly": True}


def make_teacher(*units):
    """A linear one that knows the rule, unless units are given."""
    keras.utils.set_random_seed(7)
    teacher = dense_model(*(units or (3,)))
    if not units:
        teacher.set_weights([4 * np.random.default_rng(1).normal(size=(8, 3)), np.zeros(3)])
    return teacher


def make_student():
    return dense_model(4, 3)


class Counts(keras.callbacks.Callback):
    """What each training began with."""

    began = []  # noqa: RUF012

    def on_train_begin(self, logs=None):
        hyperparameters = {
            name: float(hyperparameter.numpy()) for name, hyperparameter in self.model.hyperparameters.items()
        }
        rate = float(self.model.optimizer.learning_rate.numpy())
        self.began.append((self.model.student.get_weights(), {**hyperparameters, "learning_rate": rate}))


class KilledInTheSecondTrial(Counts):
    def on_train_batch_end(self, batch, logs=None):
        if len(self.began) == 2 and "KILL" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Each trial ends with a collection of garbage, which need not look at what is there from before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def began():
    Counts.began.clear()
    return Counts.began


def tune(directory, **options):
    settings = {
        "teacher": None,
        "make_student": make_student,
        "x": X[TRAIN],
        "y": Y[TRAIN],
        "validation_data": (X[VALIDATION], Y[VALIDATION]),
        "search": {"soft_weight": (0.1, 10.0), "learning_rate": (1e-3, 1.0), "hard_weight": [0.0, 0.5, 1.0]},
        "goal": "val_accuracy",
        "loss": crossentropy(),
        "metrics": ["accuracy"],
        "callbacks": lambda: [Counts()],
        "trials": 2,
        "epochs": 1,
        "compile_options": EAGER,
        "verbose": 0,
        **options,
    }
    settings["teacher"] = settings["teacher"] or make_teacher()
    return keras_kd.tune(**settings, directory=directory)


def outcomes(result):
    return [(trial.values, trial.score, trial.epoch) for trial in result.trials]


# --- What is searched -------------------------------------------------------------------------------------------------


def test_a_range_is_logarithmic_where_it_spans_a_factor_of_ten_above_zero():
    scales = {(0.1, 1.0): "log", (0.1, 0.99): "linear", (0.0, 10.0): "linear", (1e-4, 1e-2): "log"}
    scales |= {(1.0, 8.0): "linear", (1.0, 8.0, "log"): "log", (0.1, 10.0, "linear"): "linear"}
    import keras_tuner

    space = _space(keras_tuner.HyperParameters(), {str(values): values for values in scales}, map(str, scales)).space
    assert [hyperparameter.sampling for hyperparameter in space] == list(scales.values())


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"soft_weights": (0.1, 1.0)}, r"soft_weights.*soft_labels_weight.*soft_labels_temperature.*learning_rate"),
        ({"hint_weight": [0.1]}, r"\['hint_weight'\], which this distiller does not have"),
        ({"soft_weight": (1.0, 0.1)}, r"search\['soft_weight'\] must have low < high, got \(1.0, 0.1\)"),
        ({"soft_weight": (1.0, 1.0)}, "give a list of one"),
        ({"soft_weight": (-1.0, 1.0)}, r"search\['soft_weight'\] must be >= 0, got -1"),
        ({"soft_weight": (0.0, float("inf"))}, r"search\['soft_weight'\] must be >= 0, got inf"),
        ({"learning_rate": (0.0, 1.0)}, r"search\['learning_rate'\] must be > 0"),
        ({"soft_labels_temperature": [0.0, 1.0]}, r"search\['soft_labels_temperature'\] must be > 0"),
        ({"soft_weight": (0.0, 1.0, "log")}, "must have low > 0 on a logarithmic scale"),
        ({"soft_weight": (0.1, 1.0, "cubic")}, r"the scale of search\['soft_weight'\] must be one of"),
        ({"soft_weight": (0.1,)}, "a list of choices, got"),
        ({"soft_weight": []}, "a list of choices, got"),
        ({"soft_weight": 1.0}, "a list of choices, got 1.0"),
        ({"soft_weight": [1.0, 1.0]}, "must list different choices"),
        ({"soft_weight": ["1"]}, r"must be >= 0 \(a number\)"),
        ({}, "at least one value to search"),
        ([("soft_weight", (0.1, 1.0))], "search must be a dict"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, began, search, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tune(tmp_path / "run", search=search)
    assert not began and not (tmp_path / "run").exists()


def test_a_trial_trains_with_the_values_that_it_names(tmp_path, began):
    names = ["soft_weight", "hard_weight", "learning_rate", "soft_labels_weight", "soft_labels_temperature"]
    result = tune(tmp_path, search={name: (0.5, 2.0) for name in names})
    assert [values for _, values in began] == [pytest.approx(trial.values) for trial in result.trials]
    assert all(0.5 <= value <= 2.0 for trial in result.trials for value in trial.values.values())


def test_every_trial_starts_from_the_same_weights(tmp_path, began):
    tune(tmp_path)
    (first, _), (second, _) = began
    for one, same in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, same)


def test_the_temperature_of_every_tempered_loss_is_reached(tmp_path):
    kinds = [
        keras_kd.losses.SoftLabels,
        keras_kd.losses.ReverseKL,
        keras_kd.losses.JensenShannon,
        keras_kd.losses.SkewKL,
        keras_kd.losses.SkewReverseKL,
    ]
    kinds += [keras_kd.losses.DecoupledKD, keras_kd.losses.NormalizedKD, keras_kd.losses.DIST]
    wanted = {f"{kind().name}_temperature": [2.0 + index] for index, kind in enumerate(kinds)}
    result = tune(tmp_path, distillation_losses=lambda: [kind() for kind in kinds], search=wanted, trials=1)
    for distiller in (result.distiller, result.new_distiller()):
        found = [float(loss.temperature.numpy()) for loss in distiller.distillation_losses]
        assert found == [2.0 + index for index in range(len(kinds))]


def test_a_search_over_choices_ends_when_all_are_tried(tmp_path):
    result = tune(tmp_path, search={"hard_weight": [1.0, 0.5]}, method="random", trials=9)
    assert sorted(trial.values["hard_weight"] for trial in result.trials) == [0.5, 1.0]


def test_another_seed_tries_other_values(tmp_path):
    tried = {tune(tmp_path / str(seed), seed=seed, trials=1).best["soft_weight"] for seed in range(3)}
    assert len(tried) == 3


# --- What a trial is --------------------------------------------------------------------------------------------------


def test_a_trial_is_what_one_would_do_by_hand(tmp_path):
    """The same seed, plain `fit`, in a graph."""
    options = {"search": {"soft_weight": [0.7]}, "trials": 1, "epochs": 3, "seed": 5, "compile_options": None}
    trial = tune(tmp_path, **options, optimizer=lambda: keras.optimizers.SGD(0.3)).trials[0]
    teacher = make_teacher()
    keras.utils.set_random_seed(5)
    distiller = keras_kd.Distiller(teacher, make_student(), soft_weight=0.7)
    distiller.compile(keras.optimizers.SGD(0.3), crossentropy(), metrics=["accuracy"])
    history = distiller.fit(
        X[TRAIN], Y[TRAIN], epochs=3, validation_data=(X[VALIDATION], Y[VALIDATION]), verbose=0
    ).history
    assert trial.score == pytest.approx(max(history["val_accuracy"]))
    assert trial.epoch == np.argmax(history["val_accuracy"]) + 1


def test_the_same_call_gives_the_same_result(tmp_path):
    """0 is a seed too, which KerasTuner by itself takes for none."""
    options = {"compile_options": None, "batch_size": 8, "trials": 1, "seed": 0, "teacher": make_teacher()}
    first, second = (tune(tmp_path / name, **options) for name in ("a", "b"))
    assert outcomes(first) == outcomes(second)
    for one, same in zip(first.student.get_weights(), second.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)


def test_the_student_comes_back_as_it_was_in_its_best_epoch(tmp_path):
    """Steps far too large: the best epoch is not the last."""
    result = tune(tmp_path, search={"learning_rate": [0.5]}, epochs=8, trials=1)
    assert result.ranked[0].epoch < 6
    predicted = result.student.predict(X[VALIDATION], verbose=0).argmax(axis=-1)
    assert np.mean(predicted == Y[VALIDATION]) == pytest.approx(result.best_score)


def build_sequential():
    return keras.Sequential([keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3)])


def build_functional():
    inputs = keras.Input((8,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(4, "relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(hidden))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("build", [build_sequential, build_functional, Subclassed])
def test_students_of_every_kind_and_their_distiller(tmp_path, build):
    result = tune(tmp_path, make_student=build, trials=1)
    predicted = result.student.predict(X[VALIDATION], verbose=0).argmax(axis=-1)
    assert np.mean(predicted == Y[VALIDATION]) == pytest.approx(result.best_score)
    distiller = result.new_distiller()
    assert float(distiller.soft_weight.numpy()) == pytest.approx(result.best["soft_weight"])
    assert "accuracy" in distiller.fit(X, Y, verbose=0).history


def test_datasets_made_anew_give_each_trial_the_same_batches(tmp_path):
    def batches():
        return tf.data.Dataset.from_tensor_slices((X[TRAIN], Y[TRAIN])).shuffle(32).batch(8)

    validation = tf.data.Dataset.from_tensor_slices((X[VALIDATION], Y[VALIDATION])).batch(16)
    # Of weights that make no difference, the second trial must learn what the first one did.
    options = {"search": {"soft_labels_weight": [1.0, 2.0]}, "soft_weight": 0.0, "trials": 2}
    result = tune(tmp_path, x=batches, y=None, validation_data=validation, goal="val_loss", **options)
    first, second = (trial.score for trial in result.trials)
    assert first == second


def test_the_teacher_is_neither_changed_nor_written(tmp_path):
    teacher = make_teacher(2048, 3)
    teacher.layers[0].trainable = False
    before, flags = teacher.get_weights(), [layer.trainable for layer in teacher.layers]
    tune(tmp_path, teacher=teacher, trials=1)
    assert [layer.trainable for layer in teacher.layers] == flags
    for one, same in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
    size = sum(weights.nbytes for weights in before)
    students = [path for path in tmp_path.rglob("*") if path.suffix == ".h5"]
    assert len(students) == 1
    keras_alone = tmp_path / "alone.weights.h5"
    make_student().save_weights(keras_alone)
    assert bytes_on_disk(students[0]) == bytes_on_disk(keras_alone)
    assert bytes_on_disk(tmp_path) < size


# --- Goals ------------------------------------------------------------------------------------------------------------


def test_less_is_better_where_the_goal_is_a_loss(tmp_path):
    result = tune(tmp_path, goal="val_loss")
    assert result.direction == "min"
    assert result.best_score == min(trial.score for trial in result.trials)
    assert result.best_score < max(trial.score for trial in result.trials)


def test_a_goal_of_unknown_direction_needs_an_objective_of_kerastuner(tmp_path):
    import keras_tuner

    metrics = {"metrics": lambda: [keras.metrics.MeanMetricWrapper(lambda y, p: p[:, 0], name="size")]}
    with pytest.raises(
        ValueError, match=r"Could not infer optimization direction.*\"val_size\".*keras_tuner.Objective"
    ):
        tune(tmp_path, goal="val_size", **metrics)
    result = tune(tmp_path, goal=keras_tuner.Objective("val_size", "min"), trials=1, **metrics)
    assert result.direction == "min" and np.isfinite(result.best_score)


@pytest.mark.parametrize(
    ("goal", "error", "message"),
    [
        ("loss", ValueError, "begins with val_, got 'loss'.*the smallest λ would win"),
        ("val_precision", ValueError, r"goal must be one of \['val_accuracy', 'val_loss'\].*got 'val_precision'"),
        (3, TypeError, "expected str or `Objective` object, found: 3"),
    ],
)
def test_goals_that_cannot_be_searched_by_are_refused(tmp_path, goal, error, message):
    with pytest.raises(error, match=message):
        tune(tmp_path, goal=goal)


# --- Failures ---------------------------------------------------------------------------------------------------------

DIVERGING = {"search": {"learning_rate": [1e-2, 1e36, 1e37]}, "optimizer": keras.optimizers.SGD, "trials": 3}


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverged")
    return folder, tune(folder, **DIVERGING, epochs=3)


def test_trials_that_diverge_have_failed_and_the_search_goes_on(diverged, began):
    folder, result = diverged
    failed = [trial for trial in result.trials if trial.failed]
    assert len(failed) == 2 and result.best == {"learning_rate": 0.01}
    assert all(trial.score is None and "loss is nan in epoch 1" in trial.failure for trial in failed)
    assert outcomes(tune(folder, **DIVERGING, epochs=3)) == outcomes(result) and not began


def test_a_trial_that_diverges_ends_at_once(tmp_path):
    """Of eight batches, the second shows it."""
    ended = []

    class Batches(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ended.append(batch)

    options = {"callbacks": lambda: [Batches()], "batch_size": 4, "search": {"learning_rate": [1e36]}}
    with pytest.raises(RuntimeError, match="each of the 1 trials failed"):
        tune(tmp_path, **{**DIVERGING, **options})
    assert 2 <= len(ended) <= 3


def test_a_search_in_which_everything_fails_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="each of the 2 trials failed; in the last one, val_loss is nan in epoch 1"):
        tune(tmp_path, **{**DIVERGING, "search": {"learning_rate": [1e36, 1e37]}})


def test_an_error_ends_the_search_and_leaves_what_was_finished(tmp_path, began):
    class FailsInTheSecond(Counts):
        def on_epoch_end(self, epoch, logs=None):
            if len(self.began) == 2 and failing:
                raise OSError("the disk is full")

    failing = True
    with pytest.raises(OSError, match="the disk is full"):
        tune(tmp_path, callbacks=lambda: [FailsInTheSecond()])
    failing = False
    assert len(tune(tmp_path, callbacks=lambda: [FailsInTheSecond()]).trials) == 2
    assert len(began) == 3  # the second one twice


def test_a_callback_that_changes_what_is_searched_is_refused(tmp_path):
    ramp = {"callbacks": lambda: [keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=1)]}
    with pytest.raises(ValueError, match="search names 'soft_weight', but a callback changed it"):
        tune(tmp_path, **ramp)
    tune(tmp_path / "other", search={"learning_rate": (1e-3, 1e-1)}, trials=1, **ramp)


# --- Going on ---------------------------------------------------------------------------------------------------------

RESUMED = {"callbacks": lambda: [KilledInTheSecondTrial()], "search": {"soft_weight": (0.1, 10.0)}}
RESUMED |= {"trials": 3}


def test_a_search_killed_in_a_trial_continues_with_the_same_trials(tmp_path, began):
    code = f"import test_tuning; test_tuning.tune({str(tmp_path / 'run')!r}, **test_tuning.RESUMED)"
    environment = {**os.environ, "KILL": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parent, env=environment)
    assert done.returncode == -signal.SIGKILL
    resumed = tune(tmp_path / "run", **RESUMED)
    assert len(began) == 2  # the second and the third
    assert outcomes(resumed) == outcomes(tune(tmp_path / "whole", **RESUMED))


def test_a_finished_search_is_read_back_and_more_trials_continue_it(tmp_path, began):
    few = tune(tmp_path)
    again = tune(tmp_path)
    assert outcomes(again) == outcomes(few)
    for one, same in zip(again.student.get_weights(), few.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
    assert len(began) == 2
    more = tune(tmp_path, trials=3)
    assert more.trials[:2] == few.trials and len(more.trials) == len(began) == 3


def test_a_search_continues_as_if_it_had_not_stopped_also_where_scores_choose_the_values(tmp_path, began):
    """With one range, `BayesianOptimization` draws three trials and chooses the others by their scores."""
    one = {"search": {"soft_weight": (0.1, 10.0)}, "goal": "val_loss"}
    with threadpoolctl.threadpool_limits(1):  # to choose a value is so small a task that threads only wait
        tune(tmp_path / "run", trials=4, **one)
        continued = tune(tmp_path / "run", trials=5, **one)
        assert len(began) == 5
        assert outcomes(continued) == outcomes(tune(tmp_path / "whole", trials=5, **one))


OTHERS = {
    "search soft_weight": {"search": {"soft_weight": (0.1, 20.0), "learning_rate": (1e-3, 1.0)}},
    "search learning_rate": {"search": {"soft_weight": (0.1, 10.0)}},
    "teacher parameters": {"teacher": lambda: make_teacher(8, 3)},
    "teacher weights": {"teacher": lambda: dense_model(3)},
    "student architecture": {"make_student": lambda: dense_model(4, 3, last="softmax")},
    "student weights": {"make_student": lambda: dense_model(5, 3)},
    "goal": {"goal": "val_loss"},
    "method": {"method": "random"},
    "epochs": {"epochs": 2},
    "seed": {"seed": 1},
    "distillation_losses": {"distillation_losses": lambda: [keras_kd.losses.SoftLabels(weight=2.0)]},
    "optimizer class": {"optimizer": keras.optimizers.SGD},
    "loss config": {"loss": crossentropy(ignore_class=-1)},
    "x content": {"x": X[TRAIN] + 1},
    "y content": {"y": Y[TRAIN] * 0},
    "batch_size": {"batch_size": 7},
}


SEARCH = {"soft_weight": (0.1, 10.0), "learning_rate": (1e-3, 1.0), "soft_labels_temperature": (1.0, 8.0)}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    return folder, tune(folder, search=SEARCH, trials=1)


@pytest.mark.parametrize("difference", OTHERS)
@pytest.mark.filterwarnings("ignore:the student ends in softmax")
def test_the_folder_of_another_search_is_refused_with_the_reason(searched, began, difference):
    folder, _ = searched
    before = (folder / "search.json").read_text()
    other = {"search": SEARCH, "trials": 1, **OTHERS[difference]}
    if "teacher" in other:
        other["teacher"] = other["teacher"]()
    with pytest.raises(ValueError, match=rf"(?s)holds another search.*\n  {difference}.*: there it is .*, here "):
        tune(folder, **other)
    assert not began and (folder / "search.json").read_text() == before


def test_a_file_that_is_no_record_is_refused(tmp_path):
    for text in ("{}", "[]", '{"format": "other"}', "{half"):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(ValueError, match=r"which keras_kd\.tune did not write"):
            tune(tmp_path)
        assert (tmp_path / "search.json").read_text() == text


def test_arguments_may_be_corrected_before_the_first_trial_has_ended(tmp_path):
    with pytest.raises(ValueError, match="labels outside"):
        tune(tmp_path, y=Y[TRAIN] + 1)
    assert len(tune(tmp_path).trials) == 2


# --- Bad input --------------------------------------------------------------------------------------------------------

ONE_STUDENT, ONE_LOSS = make_student(), keras_kd.losses.SoftLabels()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "teacher.keras"}, "teacher must be a keras.Model"),
        ({"make_student": ONE_STUDENT}, "make_student must be a function"),
        ({"make_student": lambda: ONE_STUDENT}, "make_student must return a new student each time"),
        ({"make_student": lambda: keras.Sequential(ONE_STUDENT.layers)}, "make_student must return a new student each"),
        ({"make_student": lambda: None}, "student must be a keras.Model, got NoneType"),
        ({"make_student": lambda: dense_model(4, 5)}, "the same number of classes"),
        ({"distillation_losses": [keras_kd.losses.SoftLabels()]}, "distillation_losses must be a function"),
        ({"distillation_losses": ONE_LOSS}, "distillation_losses must be a function"),
        ({"distillation_losses": lambda: [ONE_LOSS]}, "distillation_losses must return new losses each time"),
        ({"optimizer": keras.optimizers.Adam()}, "optimizer must be a function"),
        (
            {"optimizer": lambda: keras.optimizers.Adam()},
            "optimizer must take the learning rate where that is searched",
        ),
        (
            {"optimizer": lambda rate: keras.optimizers.Adam(rate), "search": {"soft_weight": [1.0]}},
            "optimizer must take .* and else no argument",
        ),
        ({"optimizer": lambda rate: rate}, "Could not interpret optimizer"),
        ({"callbacks": [keras.callbacks.EarlyStopping()]}, "callbacks must be a function"),
        ({"x": (batch for batch in [])}, "x must be readable by every trial from its start, got a generator"),
        ({"validation_data": None}, "validation_data must be given"),
        ({"batches": 3}, "got an unexpected keyword argument 'batches'"),
        ({"method": "hyperband"}, r"method must be one of \['bayesian', 'random'\], got 'hyperband'"),
        ({"trials": 0}, "trials must be >= 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"soft_weight": -1.0}, "soft_weight must be >= 0"),
    ],
)
def test_bad_input_is_refused_before_a_trial_runs(tmp_path, began, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tune(tmp_path / "run", **options)
    assert not began and not (tmp_path / "run").exists()


def test_without_kerastuner_tune_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    with pytest.raises(ImportError, match=r"keras_tuner is needed here.*pip install 'keras-kd\[tune\]'"):
        tune(tmp_path)


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_kerastuner_shows_its_progress_and_nothing_if_asked(tmp_path, capfd):
    options = {**DIVERGING, "search": {"learning_rate": [1e-2, 2e-2, 1e36]}}
    tune(tmp_path, **{**options, "trials": 1})
    tune(tmp_path, **{**options, "trials": 2})
    assert capfd.readouterr() == ("", "")
    tune(tmp_path, **options, verbose=1)
    assert "Trial 3 Complete" in capfd.readouterr().out


def test_the_table_names_every_trial_best_first_and_why_some_failed(diverged):
    _, result = diverged
    heading, *rows = [line.split() for line in str(result).splitlines() if not line.startswith("failed:")]
    assert heading == ["trial", "val_accuracy", "epoch", "learning_rate"]
    assert [row[1] for row in rows] == [f"{result.best_score:.4f}", "failed", "failed"]
    assert rows[0][3] == "0.01" and sorted(row[0] for row in rows) == ["1", "2", "3"]
    assert "failed: val_loss is nan in epoch 1" in str(result)
    assert repr(result) == (
        f"TuningResult(val_accuracy={result.best_score:.4g}, best={{'learning_rate': 0.01}}, trials=3)"
    )
