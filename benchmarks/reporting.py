"""What the benchmarks share: how they time, and what they write down of figures and machine."""

import os
import pathlib
import platform
import statistics
import subprocess
import time
from typing import NamedTuple


class Timing(NamedTuple):
    """What a call took, in seconds: of the clock, and of all cores together."""

    wall: float
    cpu: float


def machine(*modules):
    """The machine, its load, the commit, and the versions of the modules that were measured on it."""
    return {
        "machine": platform.processor() or platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {module.__name__: module.__version__ for module in modules},
    }


def cpu_name():
    """What Linux calls the processor; elsewhere its architecture."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit():
    """The commit that is checked out, with "+" where files differ from it; None outside of a repository."""
    here = {"cwd": pathlib.Path(__file__).parent, "capture_output": True, "text": True}
    try:
        done = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--dirty=+"], check=True, **here)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def interleaved(functions, rounds):
    """`{name: the seconds that each call took}` of functions called in turn, behind a round that warms up."""
    return {name: [timing.wall for timing in taken] for name, taken in timings(functions, rounds).items()}


def timings(functions, rounds):
    """`{name: the Timing of each call}` of functions called in turn, behind a round that warms up.

    A function that has its work done by another process returns the Timing that it took there.
    """
    taken = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            timing = timed(function)
            if turn:
                taken[name].append(timing)
    return taken


def timed(function):
    """The Timing of a call, or the one that it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    returned = function()
    if isinstance(returned, Timing):
        return returned
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def summed(*taken):
    """The Timings, round by round, of things done one behind the other."""
    return [Timing(*map(sum, zip(*of_round, strict=True))) for of_round in zip(*taken, strict=True)]


def ratios(taken, others):
    """How many times as long the one took as the other: by least, by the median of rounds, by processor seconds."""
    least, other_least = (min(timing.wall for timing in one) for one in (taken, others))
    cpu, other_cpu = (min(timing.cpu for timing in one) for one in (taken, others))
    by_round = statistics.median(one.wall / other.wall for one, other in zip(taken, others, strict=True))
    return {"least": least / other_least, "median": by_round, "cpu": cpu / other_cpu}


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
