"""What tuning gains: a student on few labels, one distilled with default settings, one with tuned ones, over seeds.

    python benchmarks/tuning.py [--seeds 0 1 2 3 4] [--trials 20] [--output runs/tuning]

The task is the digits of `losses.py`: 100 labels of 1,000, students of one size and number of steps. Each seed has
its own split, teacher and search. λ, the temperature of `SoftLabels` and the learning rate are searched by the accuracy
on the validation split; the table shows macro-F1 on the test split, which no search sees.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_tuner
import numpy as np
from losses import UNLABELLED, classifier, digits, fit, score, student_of, teacher_of
from reporting import machine, mean_and_spread

import keras_kd

SEARCH = {"soft_weight": (0.1, 30.0), "soft_labels_temperature": (1.0, 8.0), "learning_rate": (1e-3, 5e-2)}
BATCH = 128  # that of losses.py
ROWS = ("teacher", "labels only", "default settings", "tuned")


def default_student(task, seed, teacher):
    """Distilled with the defaults of `Distiller`: SoftLabels(), λ = 1."""
    keras.utils.set_random_seed(seed)
    student = classifier(task, task.student_width)
    fit(keras_kd.Distiller(teacher, student), task.train.x, task.few_labels, task.steps)
    return student


def tuned(task, seed, teacher, *, trials, directory):
    """The search of one seed: each trial is trained as every other student is, by `fit` of losses.py."""
    rows = np.random.default_rng(0).integers(len(task.train.x), size=task.steps * BATCH)

    def optimizer(learning_rate):
        return keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(learning_rate, task.steps), weight_decay=1e-3
        )

    return keras_kd.tune(
        teacher,
        lambda: classifier(task, task.student_width),
        task.train.x[rows],
        task.few_labels[rows],
        validation_data=(task.validation.x, task.validation.y),
        search=SEARCH,
        goal="val_accuracy",
        directory=directory,
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=UNLABELLED),
        metrics=["accuracy"],
        trials=trials,
        seed=seed,
        batch_size=BATCH,
        shuffle=False,
        compile_options={"steps_per_execution": 20},
    )


def measure(seed, trials, folder):
    """Macro-F1 on the test split of each row, the best values and the seconds of one seed."""
    start = time.perf_counter()
    task = digits(seed, None)
    teacher = teacher_of(task, seed)
    result = tuned(task, seed, teacher, trials=trials, directory=folder / f"seed_{seed}")
    print(result, flush=True)
    students = (teacher, student_of(task, seed), default_student(task, seed, teacher), result.student)
    scores = {row: score(student, task.test) for row, student in zip(ROWS, students, strict=True)}
    tried = {"trials": len(result.trials), "failed": sum(trial.failed for trial in result.trials)}
    return {"seed": seed, "scores": scores, "best": result.best, **tried, "seconds": time.perf_counter() - start}


def markdown(reports):
    """One row per student and the gains, seed by seed; then the values that were chosen."""
    seeds = [report["seed"] for report in reports]
    table = {row: [report["scores"][row] for report in reports] for row in ROWS}
    for other in ("labels only", "default settings"):
        table[f"tuned − {other}"] = [a - b for a, b in zip(table["tuned"], table[other], strict=True)]
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean ± sd |", "|---" * (len(seeds) + 2) + "|"]
    for row, values in table.items():
        lines.append(f"| {row} | " + " | ".join(f"{v:.1f}" for v in values) + f" | {mean_and_spread(values)} |")
    for name in SEARCH:
        lines.append(f"| best {name} | " + " | ".join(f"{report['best'][name]:.3g}" for report in reports) + " | |")
    return "\n".join(lines)


def verdict(reports):
    """Whether the gain over the default settings is larger than its spread over seeds."""
    gains = [report["scores"]["tuned"] - report["scores"]["default settings"] for report in reports]
    trials = " + ".join(str(report["trials"]) for report in reports)
    failed = sum(report["failed"] for report in reports)
    if len(gains) < 2:
        return f"{trials} trials, {failed} failed. One seed has no spread: run more."
    mean, spread = statistics.mean(gains), statistics.stdev(gains)
    is_clear = "is larger than" if mean > spread else "is within"
    return (
        f"{trials} trials, {failed} failed. Tuning gains {mean:.1f} points over the default settings, which {is_clear} "
        f"the spread over seeds of {spread:.1f}; {sum(gain > 0 for gain in gains)} of {len(gains)} seeds gain."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/tuning"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    reports = [measure(seed, options.trials, options.output) for seed in options.seeds]
    report = {**machine(keras_kd, keras, keras_tuner, np), "seeds": reports}
    (options.output / "report.json").write_text(json.dumps(report, indent=1))
    table = f"{markdown(reports)}\n\n{verdict(reports)}"
    (options.output / "table.md").write_text(table + "\n")
    print(f"\nMacro-F1 on the test split, in points.\n\n{table}")


if __name__ == "__main__":
    main()
