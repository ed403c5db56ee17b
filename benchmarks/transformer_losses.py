"""What the losses that need a transformer gain: alone, and beside soft labels, over seeds.

    python benchmarks/transformer_losses.py --data FOLDER [--seeds 0 1 2 3 4] [--output runs/transformers]

The task is the sentiment of tweets in 8 languages (UMSAB, in --data), 5 % of the labels, as in `losses.py`; a tweet
is a row of ids of word pieces. The teacher, 2 blocks 64 wide with 4 heads, has all training labels; the students, 1
block 32 wide with 2 heads, have the few, and what the teacher says of every tweet. All students have the same size,
steps and optimizer. λ of each loss by itself, and the weight of each beside the soft labels and their λ, are the
best on the validation split of another seed, 100; the table shows macro-F1 on the test split. By itself, a loss
over layers teaches no classes: those are learnt from the labels, 3 a batch, as in the row "labels only, mixed batches".
"""

import argparse
import functools
import json
import os
import pathlib
import re
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import sklearn
import tensorflow as tf
from losses import SEED_OF_LAMBDAS, UNLABELLED, Split, Task, read_tweets, score
from reporting import machine, mean_and_spread

import keras_kd

LAMBDAS = (1.0, 10.0, 100.0)  # of a loss by itself
WEIGHTS = (0.01, 0.1, 1.0)  # of one beside the soft labels, whose weight is 1
LABELLED = 0.05
WORDS, LENGTH, PIECE = 8192, 40, 4  # ids, ids a tweet, characters a piece
TEACHER_STEPS, STEPS, BATCH = 400, 200, 64
HEAD = 16  # width of an attention head, in both models


# The task ------------------------------------------------------------------------------------------------------------


def umsab(seed, data):
    """Tweets in 8 languages, 3 classes; 5 % of the training labels."""
    parts = [tweets(data / "umsab", split) for split in ("train", "val", "test")]
    drawn = np.random.default_rng(seed).random(len(parts[0].y))
    few = np.where(drawn < LABELLED, parts[0].y, UNLABELLED).astype("int32")
    return Task(parts[0], few, parts[1], parts[2], teacher_width=64, student_width=32, steps=STEPS)


@functools.cache
def tweets(folder, split):
    """One split of all languages, as ids."""
    texts, labels, languages = read_tweets(folder, split)
    return Split(np.array([word_pieces(text) for text in texts], "int32"), labels, languages)


def word_pieces(text):
    """Words cut into pieces of `PIECE` characters, each piece hashed to an id from 1; 0 is padding."""
    pieces = []
    for word in re.findall(r"\w+|[^\w\s]+", text.lower()):
        pieces += [f"{'##' if start else ''}{word[start : start + PIECE]}" for start in range(0, len(word), PIECE)]
    ids = [1 + zlib.crc32(piece.encode()) % (WORDS - 1) for piece in pieces[:LENGTH]]
    return ids + [0] * (LENGTH - len(ids))


# The models ----------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="benchmarks")
class Positions(keras.layers.Layer):
    """Adds to each token a learnt vector of its place."""

    supports_masking = True

    def build(self, shape):
        self.places = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02))

    def call(self, tokens):
        # (batch, length, width) -> (batch, length, width)
        return tokens + self.places


def transformer(task, width, blocks):
    """A transformer encoder, layer normalization first; its layers are called attention_0, block_0, …, pooled."""
    ids = keras.Input(task.train.x.shape[1:], dtype="int32", name="ids")
    x = keras.layers.Embedding(WORDS, width, mask_zero=True, name="words")(ids)
    x = Positions(name="embedding")(x)
    x = keras.layers.Dropout(0.2)(x)
    for index in range(blocks):
        normal = keras.layers.LayerNormalization()(x)
        attended = keras.layers.MultiHeadAttention(width // HEAD, HEAD, name=f"attention_{index}")(normal, normal)
        x = keras.layers.Add()([x, attended])
        inner = keras.layers.Dense(2 * width, "gelu")(keras.layers.LayerNormalization()(x))
        x = keras.layers.Add(name=f"block_{index}")([x, keras.layers.Dense(width)(inner)])
    x = keras.layers.GlobalAveragePooling1D(name="pooled")(keras.layers.LayerNormalization()(x))
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(ids, keras.layers.Dense(int(task.train.y.max()) + 1, name="logits")(x))


def fit(model, x, y, steps):
    """AdamW with warm-up and cosine decay, the same for all; batches are drawn with replacement."""
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=max(steps // 10, 1))
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=UNLABELLED),
    )
    rows = np.random.default_rng(0).integers(len(x), size=steps * BATCH)
    model.fit(x[rows], y[rows], batch_size=BATCH, shuffle=False, verbose=0)
    return model


def teacher_of(task, seed):
    keras.utils.set_random_seed(seed)
    return fit(transformer(task, task.teacher_width, blocks=2), task.train.x, task.train.y, TEACHER_STEPS)


def untrained(task, seed):
    keras.utils.set_random_seed(seed)
    return transformer(task, task.student_width, blocks=1)


# The students --------------------------------------------------------------------------------------------------------

SOFT = "SoftLabels(4)"
LABELS_ONLY = "labels only"
MIXED_BATCHES = "labels only, mixed batches"
LOSSES = {
    "SelfAttentionRelations(heads=8)": functools.partial(
        keras_kd.losses.SelfAttentionRelations, "attention_1", "attention_0", heads=8
    ),
    "AttentionMaps(mean_over_heads=True)": functools.partial(
        keras_kd.losses.AttentionMaps, "attention_1", "attention_0", mean_over_heads=True
    ),
    "HiddenStates": functools.partial(
        keras_kd.losses.Hint, ["embedding", "block_1"], ["embedding", "block_0"], shared_projection=True
    ),
    "CosineFeatures": functools.partial(keras_kd.losses.CosineFeatures, "pooled", "pooled"),
}


class Row(NamedTuple):
    """How the student of one row is taught: by `loss` alone, or beside the soft labels."""

    loss: Callable
    beside_soft_labels: bool = False

    def settings(self, value, soft_weight):
        """(λ, weight) where `value` was chosen, and `soft_weight` is λ of the soft labels alone."""
        return (soft_weight, value) if self.beside_soft_labels else (value, None)

    def student(self, task, seed, teacher, value, soft_weight):
        soft_weight, weight = self.settings(value, soft_weight)
        distillation_losses = (
            [self.loss()] if weight is None else [keras_kd.losses.SoftLabels(4.0), self.loss(weight=weight)]
        )
        distiller = keras_kd.Distiller(teacher, untrained(task, seed), distillation_losses, soft_weight=soft_weight)
        return fit(distiller, task.train.x, task.few_labels, task.steps).student


def labels_only(task, seed):
    """Every example of its batches is labelled."""
    labelled = task.few_labels != UNLABELLED
    return fit(untrained(task, seed), task.train.x[labelled], task.few_labels[labelled], task.steps)


def mixed_batches(task, seed):
    """The labels of the distilled students' batches: 3 examples of 64. What a loss by itself starts from."""
    return fit(untrained(task, seed), task.train.x, task.few_labels, task.steps)


ROWS = {
    SOFT: Row(functools.partial(keras_kd.losses.SoftLabels, 4.0)),
    **{f"{SOFT} + {name}": Row(loss, beside_soft_labels=True) for name, loss in LOSSES.items()},
    **{name: Row(loss) for name, loss in LOSSES.items()},
}


# The measurement -----------------------------------------------------------------------------------------------------


def choose(task, lambdas, weights, say):
    """`{row: value}`, the best on the validation split, and all that was tried; the soft labels first: λ is theirs."""
    teacher = teacher_of(task, SEED_OF_LAMBDAS)
    chosen, tried = {}, {}
    for name, row in ROWS.items():
        tried[name] = {}
        for value in weights if row.beside_soft_labels else lambdas:
            student = row.student(task, SEED_OF_LAMBDAS, teacher, value, chosen.get(SOFT))
            tried[name][value] = score(student, task.validation)
        chosen[name] = max(tried[name], key=tried[name].get)
        say(f"{name}: {chosen[name]:g} of { ({key: round(found, 1) for key, found in tried[name].items()}) }")
    return chosen, tried


def measure(task, seed, chosen):
    """`{row: macro-F1 on the test split}` of one seed."""
    teacher = teacher_of(task, seed)
    models = {"teacher": teacher, LABELS_ONLY: labels_only(task, seed), MIXED_BATCHES: mixed_batches(task, seed)}
    models |= {name: row.student(task, seed, teacher, chosen[name], chosen[SOFT]) for name, row in ROWS.items()}
    return {name: score(model, task.test) for name, model in models.items()}


def markdown(scores, chosen):
    """One row a student: mean ± sd over seeds, gains seed by seed, and the value that was chosen.

    Args:
        scores: `{row: macro-F1 of each seed}` in points.
        chosen: `{row: λ or weight}`.
    """
    bases = (LABELS_ONLY, SOFT)
    lines = [f"| | macro-F1 | over {LABELS_ONLY} | over {SOFT} | λ | weight |", "|---" * 6 + "|"]
    for name, values in scores.items():
        gains = []
        for base in bases:
            differences = [value - other for value, other in zip(values, scores[base], strict=True)]
            gains.append("–" if name in ("teacher", LABELS_ONLY, base) else mean_and_spread(differences))
        cells = [name, mean_and_spread(values), *gains, *_settings(name, chosen)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _settings(name, chosen):
    """λ and the weight of a row, as the table shows them."""
    settings = ROWS[name].settings(chosen[name], chosen[SOFT]) if name in ROWS else (None, None)
    return ["–" if value is None else f"{value:g}" for value in settings]


def write(folder, report, seeds):
    """The report and the table, after each seed: a run that is ended early keeps the seeds it has."""
    report = {**machine(keras_kd, keras, tf, np, sklearn), "seeds": seeds, **report}
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "table.md").write_text(markdown(report["scores"], report["chosen"]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="holds umsab/, as for losses.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--lambdas", type=float, nargs="+", default=LAMBDAS, help="to choose from")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="to choose from")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/transformers"))
    options = parser.parse_args()
    if not (options.data / "umsab").is_dir():
        raise SystemExit(f"--data must name a folder that holds umsab/, got {options.data}.")
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    say = functools.partial(print, flush=True)
    chosen, tried = choose(umsab(SEED_OF_LAMBDAS, options.data), options.lambdas, options.weights, say)
    scores = {}
    for seed in options.seeds:
        for name, value in measure(umsab(seed, options.data), seed, chosen).items():
            scores.setdefault(name, []).append(value)
        say(f"seed {seed}: { ({name: round(values[-1], 1) for name, values in scores.items()}) }")
        report = {"scores": scores, "chosen": chosen, "tried": tried, "seconds": time.perf_counter() - start}
        write(options.output, report, options.seeds[: options.seeds.index(seed) + 1])
    say(f"\n{markdown(scores, chosen)}\n\n{report['seconds']:.0f} s")


if __name__ == "__main__":
    main()
