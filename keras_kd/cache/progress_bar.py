"""What is shown while a cache is built: a bar with rate and time left on a terminal, a line at the end."""

import contextlib
import time


@contextlib.contextmanager
def shown_progress(verbose, batches):
    """Yield `advance(examples)`, to be called behind each batch.

    Args:
        verbose: 0 shows nothing.
        batches: How many batches there are; None: that is not known.
    """
    import rich.console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = rich.console.Console(quiet=not verbose)
    columns = [TextColumn("outputs"), BarColumn(), MofNCompleteColumn(), TextColumn("batches")]
    columns += [TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
    start, examples = time.perf_counter(), 0
    bar = Progress(*columns, console=console, transient=True, disable=not (verbose and console.is_terminal))
    with bar:
        task = bar.add_task("outputs", total=batches, rate="")

        def advance(count):
            nonlocal examples
            examples += count
            bar.update(task, advance=1, rate=_rate(examples, start))

        yield advance
    console.print(f"outputs of {examples:,} examples, {_rate(examples, start)}", highlight=False)


def _rate(examples, start):
    return f"{examples / max(time.perf_counter() - start, 1e-9):,.0f} examples/s"
