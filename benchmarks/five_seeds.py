"""The demo over several seeds: each student's macro-F1, its spread, and the gain of each distilled student.

    python benchmarks/five_seeds.py [--seeds 0 1 2 3 4] [--output runs/seeds]

Every seed is a fresh process that runs `keras-kd demo --seed N`: data split, labels that are kept, initial weights and
order of the batches all change with it. A seed whose report lies in the output folder is not run again.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys


def report_of(seed, folder):
    """The report of one seed; runs the demo unless it is there already."""
    path = folder / f"seed_{seed}" / "report.json"
    if not path.exists():
        command = [sys.executable, "-m", "keras_kd.cli", "demo", "--seed", str(seed), "--output", str(path.parent)]
        subprocess.run(command, check=True)
    return json.loads(path.read_text())


def rows_of(reports):
    """Markdown rows: model, one column a seed, mean and standard deviation (in points of macro-F1)."""
    for model in reports[0]["macro_f1"]:
        scores = [100 * report["macro_f1"][model] for report in reports]
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        yield model, scores, statistics.mean(scores), spread


def gain_rows(reports, baseline="labels only"):
    """The same for the gain of each student over the one trained on labels only, seed by seed."""
    for model in reports[0]["macro_f1"]:
        if model in (baseline, "teacher"):
            continue
        gains = [100 * (report["macro_f1"][model] - report["macro_f1"][baseline]) for report in reports]
        spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
        yield f"{model} − {baseline}", gains, statistics.mean(gains), spread


def markdown(rows, seeds):
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean ± sd |", "|---" * (len(seeds) + 2) + "|"]
    for name, values, mean, spread in rows:
        lines.append(
            f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + f" | {mean:.1f} ± {spread:.1f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/seeds"))
    options = parser.parse_args()
    reports = [report_of(seed, options.output) for seed in options.seeds]
    table = markdown([*rows_of(reports), *gain_rows(reports)], options.seeds)
    (options.output / "table.md").write_text(table + "\n")
    print(f"Macro-F1 on unseen terms, mean over languages, in points.\n\n{table}")


if __name__ == "__main__":
    main()
