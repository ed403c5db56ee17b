"""The parts of the benchmark that are programs of their own: the fused form over large vocabularies, and the cache."""

import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
VOCABULARIES = ["32000", "128000", "250002"]
TOKENS = (["512"], "2", "3"), (["2048", "8192"], "1", "1")  # with how many processes each, and timed steps in each


def large_vocabulary(quick=False):
    """The cases of `large_vocabulary.py`: memory and time of the fused and of the dense form."""
    if quick:
        return report_of("large_vocabulary.py", "results.json", "--quick")["cases"]
    cases = []
    for tokens, rounds, steps in TOKENS:
        sizes = ["--vocabularies", *VOCABULARIES, "--tokens", *tokens, "--rounds", rounds, "--steps", steps]
        cases += report_of("large_vocabulary.py", "results.json", *sizes)["cases"]
    return sorted(cases, key=lambda case: (case["vocabulary"], case["tokens"]))


def cache(quick=False):
    """The tables of `cache.py`: build rate, bytes an example, an epoch's ratio, by coding."""
    return report_of("cache.py", "report.json", "--rounds", "1" if quick else "3")["results"]


def report_of(script, file, *options):
    """What a benchmark beside this one writes to a folder of its own.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / script), *options, "--out", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{script} {' '.join(options)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads((pathlib.Path(folder) / file).read_text())
