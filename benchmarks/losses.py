"""What each loss gains: a teacher, a student on few labels, and one student for each loss, over five seeds.

    python benchmarks/losses.py [--seeds 0 1 2 3 4] [--data FOLDER] [--output runs/losses]

Two tasks: scikit-learn's digits, 100 labels; and the sentiment of tweets in 8 languages (UMSAB, in --data), 5 % of the
labels. The teacher has all training labels; the students have the few, and what the teacher says of every example. All
students of a task have the same size, steps and optimizer. λ of each loss is the best of `LAMBDAS` on the
validation split of another seed, 100; the table shows macro-F1 on the test split.
"""

import argparse
import functools
import json
import os
import pathlib
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import sklearn
from reporting import machine, mean_and_spread
from sklearn.metrics import f1_score

import keras_kd

LAMBDAS = (0.1, 1.0, 3.0, 10.0)
SEED_OF_LAMBDAS = 100
UNLABELLED = -1


class Task(NamedTuple):
    """One task and seed. `groups` tells the language of each test example: macro-F1 is averaged over them."""

    train: tuple
    few_labels: np.ndarray
    validation: tuple
    test: tuple
    teacher_width: int
    student_width: int
    steps: int


class Split(NamedTuple):
    """Examples of one split."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


def digits(seed, data):
    """1,797 images of 8 x 8: 1,000 to train on, 100 of them labelled, 297 to validate, 500 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    x, y = (bunch.data[order] / 16.0).astype("float32"), bunch.target[order].astype("int32")
    parts = [Split(x[a:b], y[a:b], np.zeros(b - a, int)) for a, b in ((0, 1000), (1000, 1297), (1297, 1797))]
    few = np.where(np.arange(1000) < 100, parts[0].y, UNLABELLED).astype("int32")
    return Task(parts[0], few, parts[1], parts[2], teacher_width=256, student_width=12, steps=1500)


def umsab(seed, data):
    """Tweets in 8 languages, 3 classes, as hashed character n-grams; 5 % of the training labels."""
    parts = [_tweets(pathlib.Path(data) / "umsab", split) for split in ("train", "val", "test")]
    drawn = np.random.default_rng(seed).random(len(parts[0].y))
    few = np.where(drawn < 0.05, parts[0].y, UNLABELLED).astype("int32")
    return Task(parts[0], few, parts[1], parts[2], teacher_width=256, student_width=8, steps=800)


@functools.cache
def _tweets(folder, split):
    from sklearn.feature_extraction.text import HashingVectorizer

    texts, labels, languages = read_tweets(folder, split)
    hashed = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=2048, alternate_sign=False)
    x = np.sqrt(hashed.transform(texts).toarray()).astype("float32")
    return Split(x, labels, languages)


def read_tweets(folder, split):
    """Texts, labels and languages of one split of all languages."""
    texts, labels, languages = [], [], []
    for language in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        lines = [(folder / language / f"{split}_{kind}.txt").read_text("utf-8") for kind in ("text", "labels")]
        read = [text.removesuffix("\n").split("\n") for text in lines]
        texts += read[0]
        labels += map(int, read[1])
        languages += [language] * len(read[0])
    return texts, np.array(labels, "int32"), np.array(languages)


TASKS = {"digits": digits, "umsab": umsab}

HIDDEN = {"teacher_layer": "hidden", "student_layer": "hidden"}
LOSSES = {
    "SoftLabels(4)": lambda: keras_kd.losses.SoftLabels(4.0),
    "SoftLabels(1)": lambda: keras_kd.losses.SoftLabels(1.0),
    "SoftLabels(2, standardize=True)": lambda: keras_kd.losses.SoftLabels(2.0, standardize=True),
    "ReverseKL(1)": lambda: keras_kd.losses.ReverseKL(1.0),
    "JensenShannon(0.5)": lambda: keras_kd.losses.JensenShannon(0.5),
    "SkewKL(0.1)": lambda: keras_kd.losses.SkewKL(0.1),
    "SkewReverseKL(0.1)": lambda: keras_kd.losses.SkewReverseKL(0.1),
    "DecoupledKD(1, 8, temperature=4)": lambda: keras_kd.losses.DecoupledKD(1.0, 8.0, temperature=4.0),
    "NormalizedKD(1.5)": lambda: keras_kd.losses.NormalizedKD(1.5),
    "DIST(1, 1)": lambda: keras_kd.losses.DIST(),
    "LogitsMSE()": lambda: keras_kd.losses.LogitsMSE(),
    "Hint": lambda: keras_kd.losses.Hint("hidden", "hidden"),
    "CosineFeatures": lambda: keras_kd.losses.CosineFeatures("hidden", "hidden"),
    "ContrastiveKD(0.1)": lambda: keras_kd.losses.ContrastiveKD(0.1, **HIDDEN),
    "RelationalKD(25, 50)": lambda: keras_kd.losses.RelationalKD(25.0, 50.0, **HIDDEN),
    "RelationalKD(25, 50), logits": lambda: keras_kd.losses.RelationalKD(25.0, 50.0),
    "SimilarityPreserving, weight=300": lambda: keras_kd.losses.SimilarityPreserving(weight=300.0, **HIDDEN),
    "CorrelationCongruence(0.4, 2), weight=300": lambda: keras_kd.losses.CorrelationCongruence(
        0.4, 2, weight=300.0, **HIDDEN
    ),
}
PEERS = {
    "keras.distillation, default loss, T=4": lambda: keras.distillation.LogitsDistillation(temperature=4.0),
    "keras.distillation, KLDivergence(), T=4": lambda: keras.distillation.LogitsDistillation(
        temperature=4.0, loss=keras.losses.KLDivergence()
    ),
}


def classifier(task, width):
    return keras.Sequential(
        [
            keras.Input(task.train.x.shape[1:]),
            keras.layers.Dense(width, "relu", name="hidden"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(int(task.train.y.max()) + 1, name="logits"),
        ]
    )


def fit(model, x, y, steps, batch=128):
    """AdamW with a cosine decay, the same for all; batches are drawn with replacement, so that steps are comparable."""
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(5e-3, steps), weight_decay=1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=UNLABELLED),
    )
    rows = np.random.default_rng(0).integers(len(x), size=steps * batch)
    model.fit(x[rows], y[rows], batch_size=batch, shuffle=False, verbose=0)


def score(model, split):
    """Macro-F1 in points, averaged over the groups."""
    predicted = model.predict(split.x, batch_size=1024, verbose=0).argmax(-1)
    groups = [split.groups == group for group in np.unique(split.groups)]
    return 100 * float(np.mean([f1_score(split.y[g], predicted[g], average="macro") for g in groups]))


def teacher_of(task, seed):
    keras.utils.set_random_seed(seed)
    teacher = classifier(task, task.teacher_width)
    fit(teacher, task.train.x, task.train.y, task.steps // 3)
    return teacher


def student_of(task, seed, teacher=None, name=None, soft_weight=None):
    """A student trained with the named loss; without a name, on the few labels alone."""
    keras.utils.set_random_seed(seed)
    student = classifier(task, task.student_width)
    if name is None:
        labelled = task.few_labels != UNLABELLED
        fit(student, task.train.x[labelled], task.few_labels[labelled], task.steps)
        return student
    if name in LOSSES:
        model = keras_kd.Distiller(teacher, student, LOSSES[name](), soft_weight=soft_weight)
    else:  # there the two weights add up to 1
        share = 1 / (1 + soft_weight)
        model = keras.distillation.Distiller(
            teacher, student, distillation_losses=[PEERS[name]()], student_loss_weight=share
        )
    fit(model, task.train.x, task.few_labels, task.steps)
    return student


def best_lambda(task, teacher, name):
    scores = {
        value: score(student_of(task, SEED_OF_LAMBDAS, teacher, name, value), task.validation) for value in LAMBDAS
    }
    return max(scores, key=scores.get), scores


def measure(make_task, seeds, data, say):
    """`{row: [score of each seed]}` and `{loss: λ}` of one task."""
    task = make_task(SEED_OF_LAMBDAS, data)
    teacher = teacher_of(task, SEED_OF_LAMBDAS)
    lambdas = {}
    for name in (*LOSSES, *PEERS):
        lambdas[name], tried = best_lambda(task, teacher, name)
        say(f"λ of {name}: {lambdas[name]} of { ({key: round(value, 1) for key, value in tried.items()}) }")
    scores = {row: [] for row in ("teacher", "labels only", *LOSSES, *PEERS)}
    for seed in seeds:
        task = make_task(seed, data)
        teacher = teacher_of(task, seed)
        scores["teacher"].append(score(teacher, task.test))
        scores["labels only"].append(score(student_of(task, seed), task.test))
        for name in lambdas:
            scores[name].append(score(student_of(task, seed, teacher, name, lambdas[name]), task.test))
        say(f"seed {seed}: { {name: round(values[-1], 1) for name, values in scores.items()} }")
    return scores, lambdas


def markdown(results):
    """One row a student: mean ± sd over seeds, gain over labels only, seed by seed, and λ; for each task."""
    lines = ["| | " + " | ".join(f"{task}: macro-F1 | gain | λ" for task in results) + " |"]
    lines.append("|---" * (1 + 3 * len(results)) + "|")
    for row in next(iter(results.values()))["scores"]:
        cells = []
        for result in results.values():
            values, base = result["scores"][row], result["scores"]["labels only"]
            gains = [value - other for value, other in zip(values, base, strict=True)]
            gain = "–" if row in ("teacher", "labels only") else mean_and_spread(gains)
            cells += [mean_and_spread(values), gain, f"{result['lambdas'].get(row, '–')}"]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--data", type=pathlib.Path, help="holds umsab/LANGUAGE/{train,val,test}_{text,labels}.txt")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/losses"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in options.tasks:
        if name == "umsab" and not (options.data and (options.data / "umsab").is_dir()):
            print(f"umsab is left out: --data must name a folder that holds umsab/, got {options.data}.", flush=True)
            continue
        start = time.perf_counter()
        say = functools.partial(print, f"{name}:", flush=True)
        scores, lambdas = measure(TASKS[name], options.seeds, options.data, say)
        results[name] = {"scores": scores, "lambdas": lambdas, "seconds": time.perf_counter() - start}
    if not results:
        raise SystemExit("No task was left to measure.")
    report = {**machine(keras_kd, keras, np, sklearn), "results": results}
    (options.output / "report.json").write_text(json.dumps(report, indent=1))
    table = markdown(results)
    (options.output / "table.md").write_text(table + "\n")
    print(f"\n{table}")


if __name__ == "__main__":
    main()
