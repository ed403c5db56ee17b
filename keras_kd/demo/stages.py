"""The progress of a long run: a bar with the time left on a terminal, and a line per finished stage."""

import contextlib
import time

import keras


class Stages:
    """Show the stages of a run, and keep how long each took.

    Attributes:
        console: The `rich.console.Console` to write to.
        seconds: Wall time of each stage, by name.

    Example:

    >>> stages = Stages()
    >>> with stages.stage("teacher", steps=800) as callback:
    ...     model.fit(x, y, callbacks=[callback], verbose=0)
    """

    def __init__(self, console=None):
        import rich.console

        self.console = console or rich.console.Console()
        self.seconds = {}

    @contextlib.contextmanager
    def stage(self, name, steps=None):
        """Show a stage with this number of training steps, if known; yield a Keras callback that moves its bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description:<16}"), BarColumn(bar_width=20), MofNCompleteColumn()]
        columns += [TextColumn("steps, left"), TimeRemainingColumn(compact=True), TextColumn("{task.fields[loss]}")]
        start = time.perf_counter()
        shown = columns if steps else columns[:2]
        bar = Progress(*shown, console=self.console, transient=True, disable=not self.console.is_terminal)
        with bar:
            yield _MovesBar(bar, bar.add_task(name, total=steps, loss=""))
        self.seconds[name] = time.perf_counter() - start
        counted = f"{steps:>6,} steps" if steps else ""
        self.console.print(f"{name:<16}{counted:>14}{self.seconds[name]:>8.1f} s", highlight=False)


class _MovesBar(keras.callbacks.Callback):
    def __init__(self, bar, task):
        super().__init__()
        self._bar, self._task = bar, task

    def on_train_batch_end(self, batch, logs=None):
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch, logs=None):
        self._bar.update(self._task, loss=f"loss {logs['loss']:.3f}")
