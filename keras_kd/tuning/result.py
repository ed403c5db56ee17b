"""What `tune` found: the best values, their student, a distiller with them; a table and a picture of all trials."""

import dataclasses
import typing

from keras_kd._files import written_whole
from keras_kd._tables import plain_text
from keras_kd.tuning.record import Trial, ranked
from keras_kd.tuning.space import Space


@dataclasses.dataclass(frozen=True, repr=False)
class Tuning:
    """The trials of a search; made by `keras_kd.tune`. `print(tuning)` shows them, best first.

    Attributes:
        goal: The figure that was searched by, for instance "val_accuracy".
        direction: "max" or "min": what is better.
        space: What was searched, by name.
        trials: Every `keras_kd.tuning.Trial`, in the order they were run.
    """

    goal: str
    direction: str
    space: Space
    trials: tuple[Trial, ...]
    _make_distiller: typing.Callable = dataclasses.field(compare=False)
    _weights_file: typing.Callable = dataclasses.field(compare=False)

    @property
    def ranked(self):
        """The trials that did not fail, best first; of equal ones, the one that ran first."""
        return ranked(self.trials, self.direction)

    @property
    def best(self):
        """The values of the best trial, by name."""
        return dict(self.ranked[0].values)

    @property
    def best_score(self):
        """The goal in the best epoch of the best trial. It is the best of many, so measure again on other data."""
        return self.ranked[0].score

    def best_student(self):
        """A new student with the weights that the best trial had in its best epoch, read from the search's folder."""
        student = self._make_distiller(self.best).student
        student.load_weights(self._weights_file(self.ranked[0]))
        return student

    def new_distiller(self):
        """A `keras_kd.Distiller` with a new student and the best values, compiled: to train longer, or on more data."""
        return self._make_distiller(self.best)

    def __repr__(self):
        return f"Tuning({self.goal}={self.best_score:.4g}, best={self.best}, trials={len(self.trials)})"

    def __str__(self):
        return plain_text(self)

    def __rich__(self):
        from keras_kd.tuning.report import Report

        return Report(self)

    def print(self, *, console=None):
        """Print the table of all trials.

        Args:
            console: a `rich.console.Console`; None for standard output.
        """
        import rich.console

        (console or rich.console.Console()).print(self)

    def plot(self, path=None):
        """Draw each searched value against the goal, one dot a trial; return the `matplotlib.figure.Figure`.

        The best trial is ringed, later trials are darker, failed ones are crosses at the lower edge. With `path`
        (.png, .svg, .pdf) the figure is also written there.
        """
        from keras_kd.tuning.figure import draw

        figure = draw(self)
        if path is not None:
            with written_whole(path) as partial:
                figure.savefig(partial, dpi=160)
        return figure
