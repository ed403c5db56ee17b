"""Stages of a long command: a line each, with the time it took, and a bar with the time left while it runs."""

import contextlib
import time

import keras
import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Stages:
    """Shows the stages of a command on a console.

    Attributes:
        console: The `rich.console.Console`.
        seconds: Wall time of each stage, by name.
    """

    def __init__(self, console=None):
        self.console = console or rich.console.Console()
        self.seconds = {}

    @contextlib.contextmanager
    def stage(self, name, steps=None):
        """Show a stage, with its steps and the time left if it has some, then how long it took; yield a callback."""
        columns = [TextColumn("{task.description:<16}"), BarColumn(bar_width=20)]
        if steps:
            columns += [MofNCompleteColumn(), TextColumn("steps, left"), TimeRemainingColumn(compact=True)]
        start = time.perf_counter()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(name, total=steps)
            yield keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.advance(task))
        self.seconds[name] = time.perf_counter() - start
        self.console.print(f"{name:<16}{self.seconds[name]:>8.1f} s", highlight=False)
