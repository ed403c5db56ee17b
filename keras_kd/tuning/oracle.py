"""KerasTuner's oracles, made to go on from a record: the only module that imports keras_tuner."""

import contextlib
import tempfile
import warnings

import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner

from keras_kd._checks import require_choice


class _FromRecord:
    """Proposes what the record says of trials that were run before, and nothing twice."""

    space, recorded = None, ()

    def populate_space(self, trial_id):
        number = len(self.trials)
        # It is asked of trials in the record as well: what it draws next depends on what it drew before.
        values = super().populate_space(trial_id).get("values")
        if number < len(self.recorded):
            values = self.recorded[number].values
        generator = np.random.default_rng([self.seed, number])
        tried = [trial.hyperparameters.values for trial in self.trials.values()]
        values = self.space.draw(generator) if values is None else values
        while (values := {name: float(value) for name, value in values.items()}) in tried:
            values = self.space.draw(generator)
        return {"status": "RUNNING", "values": values}


class _Bayesian(_FromRecord, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


class _Random(_FromRecord, keras_tuner.oracles.RandomSearchOracle):
    pass


_ORACLES = {"bayesian": _Bayesian, "random": _Random}


class Proposals:
    """Asks KerasTuner for one set of values after another, and tells it what came of them.

    A search is resumed by running it again from its start, where the trials of the record are answered at once. So it
    goes on exactly as it would have without the interruption, and KerasTuner's own files, which it writes in several
    steps, are not needed: they lie in a temporary folder.

    Args:
        method: "bayesian" or "random".
        space: The `Space`.
        goal: The name of a figure in the logs of `fit`, or a `keras_tuner.Objective`.
        seed: A whole number ≥ 0.
    """

    def __init__(self, method, space, *, goal, seed):
        require_choice(method, "method", _ORACLES)
        self.space = space
        hyperparameters = keras_tuner.HyperParameters()
        for name, part in space.items():
            part.declare(hyperparameters, name)
        # KerasTuner takes 0 for no seed. It gives up after some failures in a row, which here may be as many as come.
        self._oracle = _ORACLES[method](
            objective=_loss(goal), hyperparameters=hyperparameters, seed=seed + 1, max_consecutive_failed_trials=-1
        )
        self._oracle.verbose = 0
        self.count = None  # how many trials in all, once it runs
        self.goal, self.direction = self._oracle.objective.name, self._oracle.objective.direction

    def run(self, trials, recorded, run_trial):
        """Call `run_trial(number, values)`, which returns a `Trial`, until there are so many; yield each.

        Args:
            trials: How many in all, those of the record included; fewer if there are not so many different ones.
            recorded: The trials of the record, in order: yielded as they are.
            run_trial: Called with the number of the trial, from 1, and its values by name.
        """
        oracle = self._oracle
        self.count = oracle.max_trials = int(min(max(trials, len(recorded)), self.space.size))
        oracle.space, oracle.recorded = self.space, recorded
        with tempfile.TemporaryDirectory() as folder:
            BaseTuner(oracle, directory=folder, project_name="oracle")  # gives the oracle its folder
            for number in range(1, oracle.max_trials + 1):
                with _without_warnings():
                    proposed = oracle.create_trial("search")
                done = number <= len(recorded)
                trial = recorded[number - 1] if done else run_trial(number, dict(proposed.hyperparameters.values))
                with _without_warnings():
                    self._tell(proposed, trial)
                yield trial

    def _tell(self, proposed, trial):
        proposed.status = "FAILED" if trial.failed else "COMPLETED"
        if not trial.failed:
            self._oracle.update_trial(proposed.trial_id, {self.goal: trial.score})
        self._oracle.end_trial(proposed)


def _loss(goal):
    """KerasTuner's loss of this name, if it is one of the validation data whose better direction is known."""
    if not isinstance(goal, (str, keras_tuner.Objective)):
        raise TypeError(f"goal must be a name such as 'val_accuracy' or a keras_tuner.Objective, got {goal!r}.")
    name = goal if isinstance(goal, str) else goal.name
    if not name.startswith("val_"):
        raise ValueError(
            f"goal must be a figure of the validation data, whose name begins with val_, got {name!r}: those of the "
            "training data hold what is being searched, so that the smallest λ would win."
        )
    try:
        return _Random(objective=goal, max_trials=1).objective
    except ValueError:
        raise ValueError(
            f"goal {name!r} does not tell whether more is better. Give "
            f'keras_tuner.Objective({name!r}, "max"), or "min".'
        ) from None


@contextlib.contextmanager
def _without_warnings():
    """KerasTuner calls what Python deprecates, and scikit-learn warns of every fit of few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
