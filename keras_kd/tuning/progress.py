"""What a search shows while it works: a line a trial."""

from keras_kd.tuning.record import ranked
from keras_kd.tuning.report import readable


class Lines:
    """Prints a line for each trial that is run, and one for those that were there already.

    Args:
        proposals: The `Proposals` of the search.
        recorded: How many trials were there already.
        verbose: 0 prints nothing.
    """

    def __init__(self, proposals, recorded, verbose):
        import rich.console

        self._console = rich.console.Console(quiet=not verbose)
        self._proposals, self._recorded = proposals, recorded

    def show(self, trial, done):
        """Print what came of a trial; `done` holds it and those before it."""
        goal, count = self._proposals.goal, self._proposals.count
        if trial.number < self._recorded:
            return
        if trial.number == self._recorded:
            self._print(f"{self._recorded} of {count} trials were there already")
            return
        place = f"trial {trial.number:>{len(str(count))}}/{count}"
        outcome = f"failed, {trial.failure}" if trial.failed else f"{goal} {trial.score:.4f}"
        best = ranked(done, self._proposals.direction)[:1]
        so_far = f"best {best[0].score:.4f} (trial {best[0].number})" if best else "no best yet"
        values = ", ".join(f"{name} {readable(value)}" for name, value in trial.values.items())
        self._print(f"{place}  {outcome}  {so_far}{trial.seconds:>8.1f} s  {values}")

    def _print(self, line):
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
