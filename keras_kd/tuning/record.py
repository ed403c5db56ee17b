"""The folder of a search: every trial in one file that is written whole, and the best student's weights.

folder/tuning.json                    what is searched, and each finished trial
folder/trial_7/student.weights.h5     the student of the best trial so far
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil

from keras_kd._files import written_whole
from keras_kd._quiet import quiet
from keras_kd.fingerprint import differences

_FORMAT = "keras_kd.Tuning/1"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial of `keras_kd.tune`.

    Attributes:
        number: From 1, in the order they were run.
        values: What was tried, by name.
        score: The goal at the best epoch; None if the trial failed.
        epoch: The best epoch, from 1; None if the trial failed.
        failure: Why it failed; None if it did not.
        seconds: Wall time.
        history: The logs of each epoch, as `fit` returns them; figures that are not finite are None.
    """

    number: int
    values: dict[str, float]
    score: float | None
    epoch: int | None
    failure: str | None
    seconds: float
    history: dict[str, list[float | None]]

    @property
    def failed(self):
        return self.score is None


def ranked(trials, direction):
    """The trials that did not fail, best first; of equal ones, the one that ran first."""
    sign = -1 if direction == "max" else 1
    return sorted((trial for trial in trials if not trial.failed), key=lambda trial: (sign * trial.score, trial.number))


class Record:
    """The trials of a search so far.

    Args:
        folder: Where they lie.
        setting: What makes the search what it is: a dict of what JSON can hold.
        direction: "max" or "min", of the score.

    Raises:
        ValueError: The folder holds another search, or a file that is no record.
    """

    def __init__(self, folder, setting, direction):
        self.folder = pathlib.Path(folder)
        self.direction = direction
        self._setting = json.loads(json.dumps(setting))
        self.trials = self._read() if self._file.exists() else []

    @property
    def _file(self):
        return self.folder / "tuning.json"

    def weights_file(self, trial):
        """Where the weights of a trial's student lie, if it is the best."""
        return self.folder / f"trial_{trial.number}" / "student.weights.h5"

    def add(self, trial, student):
        """Keep a finished trial, and the student if it is the best so far.

        The weights come first, and the older best goes last: killed at any moment, the folder holds the weights of the
        best trial that the file names.
        """
        trials = [*self.trials, trial]
        best = ranked(trials, self.direction)[:1]
        if trial in best:
            with written_whole(self.weights_file(trial).parent) as partial, quiet():
                partial.mkdir()
                student.save_weights(partial / self.weights_file(trial).name)
        content = {"format": _FORMAT, "setting": self._setting, "trials": [dataclasses.asdict(t) for t in trials]}
        with written_whole(self._file) as partial:
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        self.trials = trials
        for other in trials:
            if other not in best:
                shutil.rmtree(self.weights_file(other).parent, ignore_errors=True)

    def _read(self):
        content = {}
        with contextlib.suppress(json.JSONDecodeError):
            content = json.loads(self._file.read_text(encoding="utf-8"))
        found = content.get("format") if isinstance(content, dict) else None
        if found != _FORMAT:
            raise ValueError(f"directory holds {self._file}, which keras_kd.tune did not write ({_FORMAT}).")
        differing = list(differences(content["setting"], self._setting))
        if differing:
            raise ValueError(
                f"directory {str(self.folder)!r} holds another search, whose trials are not to be mixed with these. "
                "It differs in\n" + "\n".join(differing) + "\nGive another directory, or remove that one."
            )
        return [Trial(**trial) for trial in content["trials"]]


def finite_or_none(history):
    """The logs of `fit` as plain numbers, None for NaN and infinities, which JSON does not have."""
    return {
        name: [float(value) if math.isfinite(value) else None for value in values] for name, values in history.items()
    }
