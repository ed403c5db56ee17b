"""What the benchmarks share: how they time, and what they write down of figures and machine."""

import os
import platform
import statistics
import time


def machine(*modules):
    """The machine, and the versions of the modules that were measured on it."""
    versions = {module.__name__: module.__version__ for module in modules}
    return {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "versions": versions}


def interleaved(functions, rounds):
    """`{name: the seconds that each call took}` of functions called in turn, behind a round that warms up."""
    times = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def markdown(title, rows, digits):
    """A table of `{row: {column: number}}`, each number with so many significant digits."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.{digits}g}" for column in columns) + " |")
    return "\n".join(lines)


def mean_and_spread(values):
    """Mean ± standard deviation over seeds; of one seed, its value."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
