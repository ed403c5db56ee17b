"""tune: what it tries, how it scores, what it keeps, how it goes on; against plain Keras and by hand."""

import gc
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from conftest import crossentropy, dense_model
from test_package import imports_of, modules

import keras_kd
from keras_kd._files import bytes_on_disk
from keras_kd.tuning import Range
from keras_kd.tuning.oracle import Proposals
from keras_kd.tuning.space import read_search

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
    logs = {(0.1, 1.0): True, (0.1, 0.99): False, (0.0, 10.0): False, (1e-4, 1e-2): True, (1.0, 8.0): False}
    assert {bounds: Range(*bounds).log for bounds in logs} == logs
    assert Range(1.0, 8.0, log=True).log and not Range(0.1, 10.0, log=False).log


def test_logarithmic_ranges_are_drawn_evenly_in_the_logarithm():
    """Over three decades, a third of the draws lies in each; linearly, 99 % would lie in the last two."""
    generator = np.random.default_rng(0)
    decades = [int(np.floor(np.log10(Range(1.0, 1000.0).draw(generator)))) for _ in range(600)]
    assert np.bincount(decades, minlength=3) == pytest.approx([200, 200, 200], abs=40)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"soft_weights": (0.1, 1.0)}, r"soft_weights.*soft_labels_weight.*soft_labels_temperature.*learning_rate"),
        ({"hint_weight": [0.1]}, r"\['hint_weight'\], which this distiller does not have"),
        ({"soft_weight": (1.0, 0.1)}, r"search\['soft_weight'\]: low must be < high, got 1 and 0.1"),
        ({"soft_weight": (1.0, 1.0)}, "give a list of one"),
        ({"soft_weight": (-1.0, 1.0)}, r"search\['soft_weight'\] must be >= 0, got -1"),
        ({"soft_weight": (0.0, float("inf"))}, "high must be a finite number"),
        ({"learning_rate": (0.0, 1.0)}, r"search\['learning_rate'\] must be > 0"),
        ({"soft_labels_temperature": [0.0, 1.0]}, r"search\['soft_labels_temperature'\] must be > 0"),
        ({"soft_weight": Range(-1.0, 1.0)}, "must be >= 0"),
        ({"soft_weight": (0.1, 1.0, 10.0)}, "a list of choices, got"),
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


def test_range_refuses_a_logarithm_of_nothing():
    with pytest.raises(ValueError, match="needs bounds > 0, got low=0"):
        Range(0.0, 1.0, log=True)


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
    found = [float(loss.temperature.numpy()) for loss in result.new_distiller().distillation_losses]
    assert found == [2.0 + index for index in range(len(kinds))]


def scored_by_hand(number, values):
    """A trial without training: best at 1."""
    return keras_kd.tuning.Trial(number, values, -(np.log10(values["soft_weight"]) ** 2), 1, None, 0.0, {})


def proposed(method, part, trials, *, recorded=(), seed=0):
    space = read_search({"soft_weight": part}, ["soft_weight"])
    return list(Proposals(method, space, goal="val_accuracy", seed=seed).run(trials, recorded, scored_by_hand))


@pytest.mark.parametrize("method", ["bayesian", "random"])
def test_nothing_is_tried_twice_and_a_search_ends_when_all_is_tried(method):
    tried = [trial.values["soft_weight"] for trial in proposed(method, [10.0, 1.0, 0.1, 3.0, 0.3, 0.0001], 20)]
    assert len(tried) == 6 and set(tried) == {0.0001, 0.1, 0.3, 1.0, 3.0, 10.0}


def test_what_the_record_holds_is_not_tried_again_though_it_would_not_be_proposed_now():
    second = proposed("random", [0.1, 0.3, 1.0, 3.0], 4)[1].values
    tried = [
        trial.values["soft_weight"]
        for trial in proposed("random", [0.1, 0.3, 1.0, 3.0], 4, recorded=[scored_by_hand(1, second)])
    ]
    assert tried[0] == second["soft_weight"] and sorted(tried) == [0.1, 0.3, 1.0, 3.0]


@pytest.mark.parametrize("method", ["bayesian", "random"])
def test_a_resumed_search_proposes_what_an_uninterrupted_one_does(method):
    """The fourth and fifth of a Bayesian search depend on the scores of those before and on its random state."""
    whole = proposed(method, (0.01, 10.0), 5)
    resumed = proposed(method, (0.01, 10.0), 5, recorded=whole[:4])
    assert [trial.values for trial in resumed] == [trial.values for trial in whole]
    assert resumed[3] is whole[3]


def test_another_seed_proposes_other_values():
    assert len({proposed("random", (0.1, 10.0), 1, seed=seed)[0].values["soft_weight"] for seed in range(4)}) == 4


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
    assert trial.history == {name: pytest.approx(values) for name, values in history.items()}
    assert (trial.score, trial.epoch) == (max(history["val_accuracy"]), np.argmax(history["val_accuracy"]) + 1)


def test_the_same_call_gives_the_same_result(tmp_path):
    """0 is a seed too, which KerasTuner by itself takes for none."""
    options = {"compile_options": None, "batch_size": 8, "trials": 1, "seed": 0, "teacher": make_teacher()}
    first, second = (tune(tmp_path / name, **options) for name in ("a", "b"))
    assert outcomes(first) == outcomes(second)
    assert first.trials[0].history == second.trials[0].history


def test_the_student_comes_back_as_it_was_in_its_best_epoch(tmp_path):
    """Steps far too large: the best epoch is not the last."""
    result = tune(tmp_path, search={"learning_rate": [0.5]}, epochs=8, trials=1)
    assert result.ranked[0].epoch < 6
    predicted = result.best_student().predict(X[VALIDATION], verbose=0).argmax(axis=-1)
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
    predicted = result.best_student().predict(X[VALIDATION], verbose=0).argmax(axis=-1)
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
    result = tune(tmp_path, x=batches, y=None, validation_data=validation, **options)
    first, second = (trial.history["hard_loss"] for trial in result.trials)
    assert first == second


def test_the_teacher_is_neither_changed_nor_written(tmp_path):
    teacher = make_teacher(256, 3)
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
    assert bytes_on_disk(tmp_path / "tuning.json") < size


# --- Goals ------------------------------------------------------------------------------------------------------------


def test_less_is_better_where_the_goal_is_a_loss(tmp_path):
    result = tune(tmp_path, goal="val_loss")
    assert result.direction == "min"
    assert result.best_score == min(min(trial.history["val_loss"]) for trial in result.trials)
    assert result.best_score < max(min(trial.history["val_loss"]) for trial in result.trials)


def test_a_goal_of_unknown_direction_needs_an_loss_of_kerastuner(tmp_path):
    import keras_tuner

    metrics = {"metrics": lambda: [keras.metrics.MeanMetricWrapper(lambda y, p: p[:, 0], name="size")]}
    with pytest.raises(
        ValueError, match=r"'val_size' does not tell whether more is better.*DistillationLoss\('val_size'"
    ):
        tune(tmp_path, goal="val_size", **metrics)
    result = tune(tmp_path, goal=keras_tuner.Objective("val_size", "min"), trials=1, **metrics)
    assert result.best_score == min(min(trial.history["val_size"]) for trial in result.trials)


@pytest.mark.parametrize(
    ("goal", "error", "message"),
    [
        ("loss", ValueError, "begins with val_, got 'loss'.*the smallest λ would win"),
        ("val_precision", ValueError, r"goal must be one of \['val_accuracy', 'val_loss'\].*got 'val_precision'"),
        (3, TypeError, "goal must be a name"),
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
    assert all(len(trial.history["loss"]) < 3 for trial in failed)  # they end at once
    content = json.loads((folder / "tuning.json").read_text(), parse_constant=pytest.fail)  # no bare NaN
    assert [trial["score"] is None for trial in content["trials"]] == [trial.failed for trial in result.trials]
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
    assert len(json.loads((tmp_path / "tuning.json").read_text())["trials"]) == 2


def test_an_error_ends_the_search_and_leaves_what_was_finished(tmp_path, began):
    class FailsInTheSecond(Counts):
        def on_epoch_end(self, epoch, logs=None):
            if len(self.began) == 2 and failing:
                raise OSError("the disk is full")

    failing = True
    with pytest.raises(OSError, match="the disk is full"):
        tune(tmp_path, callbacks=lambda: [FailsInTheSecond()])
    assert len(json.loads((tmp_path / "tuning.json").read_text())["trials"]) == 1
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


def test_a_search_killed_in_a_trial_goes_on_as_if_it_had_not_been(tmp_path, began):
    code = f"import test_tuning; test_tuning.tune({str(tmp_path / 'run')!r}, **test_tuning.RESUMED)"
    environment = {**os.environ, "KILL": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parent, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert len(json.loads((tmp_path / "run" / "tuning.json").read_text())["trials"]) == 1
    resumed = tune(tmp_path / "run", **RESUMED)
    assert len(began) == 2  # the second and the third
    assert outcomes(resumed) == outcomes(tune(tmp_path / "whole", **RESUMED))
    assert [trial.number for trial in resumed.trials] == [1, 2, 3]


def test_killed_between_the_two_files_of_a_trial_it_is_run_again(tmp_path, monkeypatch, began):
    """The weights of the second trial, which is better, are there; that it was run is not."""
    options = {"search": {"learning_rate": [1e-6, 0.3]}, "optimizer": keras.optimizers.SGD, "seed": 2}
    record = sys.modules["keras_kd.tuning.record"]
    written_whole, written = record.written_whole, []

    def killed_at_the_fourth(path):
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        return written_whole(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(record, "written_whole", killed_at_the_fourth)
        tune(tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial_1", "trial_2", "tuning.json"]
    resumed = tune(tmp_path, **options)
    assert len(began) == 3 and resumed.ranked[0].number == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial_2", "tuning.json"]


def test_a_finished_search_is_read_back_and_more_trials_continue_it(tmp_path, began):
    few = tune(tmp_path)
    for trials in (2, 1):
        assert outcomes(tune(tmp_path, trials=trials)) == outcomes(few)
    assert len(began) == 2
    more = tune(tmp_path, trials=3)
    assert more.trials[:2] == few.trials and len(more.trials) == len(began) == 3


OTHERS = {
    "search soft_weight high": {"search": {"soft_weight": (0.1, 20.0), "learning_rate": (1e-3, 1.0)}},
    "search learning_rate": {"search": {"soft_weight": (0.1, 10.0)}},
    "teacher parameters": {"teacher": lambda: make_teacher(8, 3)},
    "teacher weights": {"teacher": lambda: dense_model(3)},
    "student architecture": {"make_student": lambda: dense_model(4, 3, last="softmax")},
    "student weights": {"make_student": lambda: dense_model(5, 3)},
    "goal": {"goal": "val_loss"},
    "method": {"method": "random"},
    "epochs": {"epochs": 2},
    "seed": {"seed": 1},
    "losses": {"losses": lambda: [keras_kd.losses.SoftLabels(weight=2.0)]},
    "optimizer class": {"optimizer": keras.optimizers.SGD},
    "loss config": {"loss": crossentropy(ignore_class=-1)},
    "x content": {"x": X[TRAIN] + 1},
    "y content": {"y": Y[TRAIN] * 0},
    "fit_options batch_size": {"batch_size": 7},
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
    before = (folder / "tuning.json").read_text()
    other = {"search": SEARCH, "trials": 1, **OTHERS[difference]}
    if "teacher" in other:
        other["teacher"] = other["teacher"]()
    with pytest.raises(ValueError, match=rf"(?s)holds another search.*\n  {difference}.*: there it is .*, here "):
        tune(folder, **other)
    assert not began and (folder / "tuning.json").read_text() == before


def test_a_file_that_is_no_record_is_refused(tmp_path):
    for text in ("{}", "[]", '{"format": "other"}', "{half"):
        (tmp_path / "tuning.json").write_text(text)
        with pytest.raises(ValueError, match=r"which keras_kd\.tune did not write"):
            tune(tmp_path)
        assert (tmp_path / "tuning.json").read_text() == text


# --- Bad input --------------------------------------------------------------------------------------------------------

ONE_STUDENT, ONE_OBJECTIVE = make_student(), keras_kd.losses.SoftLabels()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "teacher.keras"}, "teacher must be a keras.Model"),
        ({"make_student": ONE_STUDENT}, "make_student must be a function"),
        ({"make_student": lambda: ONE_STUDENT}, "make_student must return a new student each time"),
        ({"make_student": lambda: keras.Sequential(ONE_STUDENT.layers)}, "make_student must return a new student each"),
        ({"make_student": lambda: None}, "make_student must return a keras.Model, got NoneType"),
        ({"make_student": lambda: dense_model(4, 5)}, "the same number of classes"),
        ({"losses": [keras_kd.losses.SoftLabels()]}, "losses must be a function"),
        ({"losses": ONE_OBJECTIVE}, "losses must be a function"),
        ({"losses": lambda: [ONE_OBJECTIVE]}, "losses must return new losses each time"),
        ({"optimizer": keras.optimizers.Adam()}, "optimizer must be a function"),
        ({"optimizer": lambda: keras.optimizers.Adam()}, "optimizer must take the learning rate, which is searched"),
        (
            {"optimizer": lambda rate: keras.optimizers.Adam(rate), "search": {"soft_weight": [1.0]}},
            "optimizer must need no argument, for no learning rate is searched",
        ),
        ({"optimizer": lambda rate: rate}, "optimizer must return a keras.optimizers.Optimizer"),
        ({"callbacks": [keras.callbacks.EarlyStopping()]}, "callbacks must be a function"),
        ({"x": (batch for batch in [])}, "x must be something that every trial can read.*got a generator"),
        ({"validation_data": None}, "validation_data must be given"),
        ({"batches": 3}, r"unknown arguments \['batches'\]; besides its own it takes those of fit, \['batch_size'"),
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
    monkeypatch.delitem(sys.modules, "keras_kd.tuning.oracle", raising=False)
    with pytest.raises(ImportError, match=r"keras_kd\.tune needs KerasTuner: pip install keras-kd\[tune\]"):
        tune(tmp_path)


def test_one_module_only_imports_kerastuner():
    assert [module for module, path in modules() if "keras_tuner" in imports_of(path)] == ["keras_kd.tuning.oracle"]


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_one_line_a_trial_and_nothing_if_asked(tmp_path, capfd):
    """The third fails: with one learning rate in three, Keras would print a line of its own."""
    options = {**DIVERGING, "search": {"learning_rate": [1e-2, 2e-2, 1e36]}}
    tune(tmp_path, **{**options, "trials": 1})
    assert capfd.readouterr() == ("", "")
    result = tune(tmp_path, **options, verbose=1)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0] == "1 of 3 trials were there already"
    for line, trial in zip(lines[1:], result.trials[1:], strict=True):
        outcome = f"failed, {trial.failure}" if trial.failed else f"val_accuracy {trial.score:.4f}"
        assert line.startswith(f"trial {trial.number}/3  {outcome}  best 0.")
        assert line.endswith(f" s  learning_rate {trial.values['learning_rate']:.3g}")


def test_the_table_names_every_trial_best_first_and_why_some_failed(diverged):
    _, result = diverged
    page = io.StringIO()
    result.print(console=rich.console.Console(file=page, width=200))
    assert [line.rstrip() for line in page.getvalue().strip().splitlines()] == str(result).strip().splitlines()
    best, *failed = [trial.number for trial in sorted(result.trials, key=lambda trial: (trial.failed, trial.number))]
    rows = [line.split() for line in str(result).splitlines() if line.split()[:1] and line.split()[0].isdigit()][1:]
    assert [row[:2] for row in rows] == [[str(best), f"{result.best_score:.4f}"], *[[str(n), "failed"] for n in failed]]
    assert rows[0][3] == "0.01"
    assert f"trial {failed[0]} failed: val_loss is nan in epoch 1" in str(result)
    assert repr(result) == f"Tuning(val_accuracy={result.best_score:.4g}, best={{'learning_rate': 0.01}}, trials=3)"


def test_on_a_narrow_console_the_headings_take_several_lines(searched):
    page = io.StringIO()
    searched[1].print(console=rich.console.Console(file=page, width=80))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[-2] for line in lines if "temperature" in line] == ["temperature"]
    assert "soft_labels_temperature" in str(searched[1])


def test_the_picture_shows_choices_side_by_side_and_failed_trials_as_crosses(diverged, tmp_path):
    _, result = diverged
    figure = result.plot(tmp_path / "tuning.png")
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    finished, ring, crosses = (part.get_offsets().tolist() for part in axes.collections)
    assert finished == ring == [[0, pytest.approx(result.best_score)]]
    assert sorted(x for x, _ in crosses) == [1, 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "1e+36", "1e+37"]


def test_the_picture_has_a_panel_a_range_on_the_scale_it_is_searched_on(searched):
    figure = searched[1].plot()
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == list(SEARCH)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log", "linear"]
    for axes, (low, high) in zip(figure.axes, SEARCH.values(), strict=True):
        left, right = axes.get_xlim()
        assert left < low and right > high
