"""The table of a `Tuning`, drawn with rich."""


class Report:
    """One row a trial, best first, those that failed last. On a narrow console, headings take several lines."""

    def __init__(self, tuning):
        self.tuning = tuning

    def __rich_console__(self, console, options):
        whole = _table(self.tuning, heading=str, padding=(0, 1))
        fits = console.measure(whole, options=options.update(width=10_000)).maximum <= options.max_width
        yield whole if fits else _table(self.tuning, lambda name: name.replace("_", "_\n"), padding=(0, 0, 0, 1))


def readable(value):
    """A searched value with the digits that matter."""
    return f"{value:.3g}"


def _table(tuning, heading, padding):
    from rich import box
    from rich.table import Table

    look = {
        "padding": padding,
        "title_justify": "left",
        "caption_justify": "left",
        "title_style": "bold",
        "caption_style": "dim",
    }
    title = f"\n{len(tuning.trials)} trials by {tuning.goal}"
    table = Table(title=title, caption=_caption(tuning), box=box.SIMPLE_HEAD, **look)
    for name in ("trial", tuning.goal, "epoch", *tuning.space, "seconds"):
        table.add_column(heading(name), justify="right", overflow="fold")
    failed = [trial for trial in tuning.trials if trial.failed]
    for place, trial in enumerate([*tuning.ranked, *failed]):
        outcome = ("failed", "–") if trial.failed else (f"{trial.score:.4f}", str(trial.epoch))
        values = [readable(trial.values[name]) for name in tuning.space]
        style = "bold" if place == 0 else "dim" if trial.failed else None
        table.add_row(str(trial.number), *outcome, *values, f"{trial.seconds:.1f}", style=style)
    return table


def _caption(tuning):
    from rich.text import Text

    lines = [f"trial {trial.number} failed: {trial.failure}." for trial in tuning.trials if trial.failed]
    return Text("\n".join(lines)) if lines else None
