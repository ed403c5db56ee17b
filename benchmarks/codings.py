"""What each coding of stored logits loses: KL error, bytes, and the quality of a student that learns from them.

    python benchmarks/codings.py --data FOLDER [--seeds 0 1 2 3 4] [--output runs/codings]

The next word of English captions (Multi30k, in --data), of the 2,047 commonest words and one for all others, in windows
of 16 words. The teacher, two causal convolutions 256 wide, learns from 29,000 captions (one teacher, seed 0). The
students, one convolution 64 wide, learn from 1,500 windows, 1,700 captions: with labels only, or with SoftLabels(1)
alone, no labels, from the live teacher and from each coding; or with labels and a Hint of the teacher's last hidden
states. All students of a seed begin with the same weights and see the same batches; the sd is over five seeds.

Then what 50 classes of 250,002 take: bytes, and processor seconds to encode and decode, of logits that follow Zipf's
law with noise.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import re
import tempfile
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from reporting import machine, markdown, mean_and_spread, timed

import keras_kd
from keras_kd.cache.codings import Sampled, TopK
from keras_kd.outputs.top_classes import TopClasses

WORDS, LENGTH, WINDOWS, BATCH = 2048, 16, 1500, 32
TEACHER_EPOCHS, STUDENT_EPOCHS = 2, 6
VOCABULARY = 250_002
LABELS, LIVE, LIVE_HIDDEN = "labels only", "live teacher", "labels, hidden states: live"
CODINGS = {
    "float32": {"dtype": "float32"},
    "float16": {},
    "top 8": {"top_k": 8},
    "top 50": {"top_k": 50},
    "sampled 12": {"sampled": 12},
    "sampled 50": {"sampled": 50},
}
HIDDEN_CODINGS = {"labels, hidden states: float16": {}, "labels, hidden states: int8": {"dtype": "int8"}}
HINT = keras_kd.losses.Hint("hidden_1", "hidden_0", weight=10.0)
WITHOUT_STUDENT = ("float32",)  # it would be that of the live teacher


class Windows(NamedTuple):
    """Ids of words `(windows, LENGTH)`, and of the words after them."""

    x: np.ndarray
    y: np.ndarray


def words_of(path):
    """The words and signs of a file of captions, each line ended by one of its own."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").lower().split("\n")
    return [word for line in lines if line for word in [*re.findall(r"\w+|[^\w\s]", line), "\n"]]


def captions(folder):
    """`Windows` to train on and to test on; ids go by how common a word is."""
    train, test = (words_of(folder / "multi30k" / f"{split}.en.gz") for split in ("train", "test_2016_flickr"))
    common = collections.Counter(train).most_common(WORDS - 1)
    ids = {word: number for number, (word, _) in enumerate(common)}

    def windows(words):
        numbers = np.array([ids.get(word, WORDS - 1) for word in words], "int32")
        count = (len(numbers) - 1) // LENGTH
        return Windows(*(numbers[shift:][: count * LENGTH].reshape(count, LENGTH) for shift in (0, 1)))

    return windows(train), windows(test)


def language_model(width, units, layers):
    words = keras.Input((LENGTH,), dtype="int32", name="words")
    hidden = keras.layers.Embedding(WORDS, width)(words)
    for i in range(layers):
        hidden = keras.layers.Conv1D(units, 3, padding="causal", activation="relu", name=f"hidden_{i}")(hidden)
    return keras.Model(words, keras.layers.Dense(WORDS, name="logits")(hidden))


def trained_teacher(train):
    keras.utils.set_random_seed(0)
    teacher = language_model(128, 256, layers=2)
    teacher.compile(keras.optimizers.Adam(2e-3), crossentropy(), jit_compile=True)
    teacher.fit(*train, batch_size=128, epochs=TEACHER_EPOCHS, verbose=0)
    return teacher


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def quality(model, test):
    """Perplexity, and how often the likeliest word is the right one, in %."""
    log_p = log_softmax(model.predict(test.x, batch_size=256, verbose=0))
    of_right = np.take_along_axis(log_p, test.y[..., None], -1)
    right = 100.0 * np.mean(log_p.argmax(-1) == test.y)
    return {"perplexity": float(np.exp(-of_right.mean())), "accuracy": float(right)}


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64))


# Students ----------------------------------------------------------------------------------------------------------


def student_of(seed, row, train, teacher, folder):
    """A student that learnt from labels, the live teacher, or a coding."""
    keras.utils.set_random_seed(seed)
    student = language_model(32, 64, layers=1)
    order = np.random.default_rng(seed).permutation(len(train.x))
    dataset = tf.data.Dataset.from_tensor_slices((train.x[order], train.y[order])).batch(BATCH)
    optimizer = keras.optimizers.Adam(5e-3)
    if row == LABELS:
        student.compile(optimizer, crossentropy(), jit_compile=True)
        student.fit(dataset, epochs=STUDENT_EPOCHS, shuffle=False, verbose=0)
        return student
    is_live, is_hidden = row in (LIVE, LIVE_HIDDEN), row == LIVE_HIDDEN or row in HIDDEN_CODINGS
    precomputed = dataset if is_live else keras_kd.open_teacher_cache(folder / row, verify=False).attach(dataset)
    distillation_loss, loss = (HINT, crossentropy()) if is_hidden else (keras_kd.losses.SoftLabels(1.0), None)
    distiller = keras_kd.Distiller(teacher if is_live else None, student, distillation_loss)
    distiller.compile(optimizer, loss, jit_compile=True)
    distiller.fit(precomputed, epochs=STUDENT_EPOCHS, shuffle=False, verbose=0)
    return student


def add_students(scores, seed, train, test, teacher, folder):
    """Train the students of a seed, and add to `{row: {measure: [of each seed]}}`."""
    for row in (LABELS, LIVE, *CODINGS, LIVE_HIDDEN, *HIDDEN_CODINGS):
        if row in WITHOUT_STUDENT:
            continue
        start = time.perf_counter()
        measured = quality(student_of(seed, row, train, teacher, folder), test)
        for measure, value in measured.items():
            scores[row][measure].append(value)
        print(f"seed {seed}, {row}:", measured, f"{time.perf_counter() - start:.1f} s", flush=True)


# What comes back ---------------------------------------------------------------------------------------------------


def losses(train, teacher, folder):
    """Bytes per token on disk, KL(teacher ‖ decoded), and half the sum of |p − decoded|, of each coding.

    A sample gives no KL: a class that was not drawn has no probability. Of hidden states, the norm of what is lost over
    their own.
    """
    dataset = tf.data.Dataset.from_tensor_slices((train.x, train.y)).batch(BATCH)
    x = next(iter(dataset))[0].numpy()
    log_p = log_softmax(teacher.predict(x, verbose=0))
    rows = {}
    for name, options in CODINGS.items():
        precomputed = keras_kd.cache_teacher_outputs(teacher, dataset, folder / name, verbose=0, **options)
        decoded = next(iter(precomputed))[0].prediction
        log_q = log_softmax((decoded.dense() if isinstance(decoded, TopClasses) else decoded).numpy())
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
        rows[name] = {
            "bytes per token": bytes_of(folder / name) / train.x.size,
            "KL, nats": None if "sampled" in options else float(kl),
            "total variation": float(0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum(axis=-1).mean()),
            "lost of the norm": None,
        }
    hidden = keras.Model(teacher.input, teacher.get_layer("hidden_1").output).predict(x, verbose=0)
    for name, options in HIDDEN_CODINGS.items():
        precomputed = keras_kd.cache_teacher_outputs(
            teacher, dataset, folder / name, outputs=HINT, verbose=0, **options
        )
        decoded = next(iter(next(iter(precomputed))[0].layers.values())).numpy()
        rows[name] = {
            "bytes per token": bytes_of(folder / name) / train.x.size,
            "KL, nats": None,
            "total variation": None,
            "lost of the norm": float(np.linalg.norm(decoded - hidden) / np.linalg.norm(hidden)),
        }
    return rows


def bytes_of(folder):
    """What a folder takes on disk."""
    return sum(file.stat().st_size for file in folder.iterdir())


# Large vocabularies ------------------------------------------------------------------------------------------------


def large_vocabulary(tokens=64, rounds=5):
    """Bytes per token, and processor microseconds to encode and decode one, of 250,002 classes."""
    rng = np.random.default_rng(0)
    zipf = -np.log(np.arange(1.0, VOCABULARY + 1))
    logits = tf.constant((zipf + rng.normal(scale=2.0, size=(tokens, VOCABULARY))).astype("float32"))
    keys, shape = tf.range(tokens, dtype=tf.int64), (VOCABULARY,)
    codings = {"top 50": TopK(shape, 50, "float16")} | {f"sampled {draws}": Sampled(shape, draws) for draws in (12, 50)}
    rows = {}
    for name, coding in codings.items():
        encode, decode = tf.function(coding.encode), tf.function(coding.decode)
        parts = encode(logits, keys)
        many = {field: tf.repeat(part, 64, axis=0) for field, part in parts.items()}
        decode(many)
        encoding = min(timed(lambda: encode(logits, keys)).cpu for _ in range(rounds))  # noqa: B023
        decoding = min(timed(lambda: decode(many)).cpu for _ in range(rounds))  # noqa: B023
        made_dense = min(timed(lambda: decode(parts).dense()).cpu for _ in range(rounds))  # noqa: B023
        rows[name] = {
            "bytes per token": sum(np.dtype(dtype).itemsize * np.prod(of) for dtype, of in coding.fields().values()),
            "encode, µs": 1e6 * encoding / tokens,
            "decode, µs": 1e6 * decoding / tokens / 64,
            "decode and make dense, µs": 1e6 * made_dense / tokens,
        }
    return rows


def table_of_students(scores, lost):
    measures = ["bytes per token", "KL, nats", "total variation", "lost of the norm"]
    rows = ["| | " + " | ".join([*measures, "perplexity", "next word, %"]) + " |", "|---" * (len(measures) + 3) + "|"]
    for row in dict.fromkeys(["teacher", LABELS, LIVE, *CODINGS, LIVE_HIDDEN, *HIDDEN_CODINGS]):
        recorded, of_row = lost.get(row, {}), scores.get(row)
        numbers = ["–" if recorded.get(name) is None else f"{recorded[name]:.3g}" for name in measures]
        of_row = [mean_and_spread(of_row[measure]) if of_row else "–" for measure in ("perplexity", "accuracy")]
        rows.append(f"| {row} | " + " | ".join([*numbers, *of_row]) + " |")
    return "\n".join(rows)


def write(output, results):
    """Write `report.json` and `tables.md`; print the table of the students."""
    measured_on = machine(keras_kd, keras, tf, np)
    (output / "report.json").write_text(json.dumps({**measured_on, **results}, indent=1, default=float))
    of_teacher = {name: [value] for name, value in results["teacher"].items()}
    table = table_of_students({"teacher": of_teacher, **results["students"]}, results["codings"])
    tables = [table, markdown(f"of {VOCABULARY:,} classes", results["large vocabulary"], digits=3)]
    (output / "tables.md").write_text("\n\n".join([*tables, json.dumps(measured_on)]) + "\n")
    print(table, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/codings"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = {"large vocabulary": large_vocabulary()}
    train, test = captions(options.data)
    teacher = trained_teacher(train)
    results["teacher"] = quality(teacher, test)
    few = Windows(train.x[:WINDOWS], train.y[:WINDOWS])
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        results["codings"] = losses(few, teacher, folder)
        results["students"] = collections.defaultdict(lambda: collections.defaultdict(list))
        for seed in options.seeds:
            add_students(results["students"], seed, few, test, teacher, folder)
            write(options.output, results)  # a run that is stopped leaves its seeds


if __name__ == "__main__":
    main()
