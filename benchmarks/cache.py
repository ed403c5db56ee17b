"""What a cache of the teacher's outputs costs and saves: building, bytes, an epoch from it, the error of each coding.

    python benchmarks/cache.py [--rounds 7] [--output runs/cache]

Two pairs of teacher and student: MLPs (784-1024-1024-10 and 784-64-10, batches of 256 of 38,400 made-up images), and
text transformers (4 blocks 256 wide and 1 block 64 wide, 1,000 classes, batches of 32 of 1,280 made-up texts of 64
characters). Nothing is trained before; the teachers' heads are scaled so that logits have a standard deviation of 4.
What is compared runs in turn, `--rounds` times, in one process; ratios are to the first row. An epoch is a call of
`fit`. "in memory" has the outputs as arrays beside x: what a cache could reach at best; "through NumPy" adds a
function in NumPy that does nothing, as any look-up in Python needs; "hashed" adds the hash of x. Keys are hashes of the
content where it does not say "by id". Processor seconds are more exact than the clock where other programs run as
well.

Then texts of 4 to 64 characters, short ones the most: the same text teacher gives logits of each character, padded to
64 by `predict`, and in batches of about one length.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import tempfile
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from reporting import machine, markdown, timings

import keras_kd
from keras_kd.cache.keys import fingerprint
from keras_kd.outputs.precomputed import PrecomputedBatch

LENGTH, CLASSES, SPREAD = 64, 1000, 4.0  # characters a text, classes of texts, standard deviation of the logits


class Case(NamedTuple):
    """A teacher, what makes a student of it, the data, and the codings that are tried."""

    teacher: keras.Model
    make_student: object
    x: np.ndarray
    y: np.ndarray
    batch: int
    codings: dict

    def dataset(self):
        return tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(self.batch)

    def dataset_with_ids(self):
        x = {self.teacher.inputs[0].name: self.x, "id": np.arange(len(self.x))}
        return tf.data.Dataset.from_tensor_slices((x, self.y)).batch(self.batch)


def mlp(*units):
    layers = [keras.layers.Dense(n, "relu") for n in units[:-1]]
    return keras.Sequential([keras.Input((784,), name="pixels"), *layers, keras.layers.Dense(units[-1], name="logits")])


def transformer(blocks, width, tokens=False):
    """A classifier of texts; with `tokens`, of each character of texts of any length, 0 being padding."""
    ids = keras.Input((None if tokens else LENGTH,), dtype="int32", name="ids")
    x = keras.layers.Embedding(256, width, mask_zero=tokens)(ids)
    for _ in range(blocks):
        attended = keras.layers.MultiHeadAttention(4, width // 4)(*[keras.layers.LayerNormalization()(x)] * 2)
        x = keras.layers.Add()([x, attended])
        hidden = keras.layers.Dense(4 * width, "gelu")(keras.layers.LayerNormalization()(x))
        x = keras.layers.Add()([x, keras.layers.Dense(width)(hidden)])
    pooled = keras.layers.LayerNormalization()(x)
    if not tokens:
        pooled = keras.layers.GlobalAveragePooling1D(name="pooled")(pooled)
    return keras.Model(ids, keras.layers.Dense(CLASSES, name="logits")(pooled))


def scaled(teacher, x):
    """The teacher with logits of the standard deviation `SPREAD`."""
    head = teacher.get_layer("logits")
    head.kernel.assign(head.kernel * (SPREAD / teacher.predict(x, verbose=0).std()))
    return teacher


def cases():
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(38_400, 784)).astype("float32"), random.integers(0, 256, (1_280, LENGTH))
    full = {"float16": {}, "float32": {"dtype": "float32"}}
    sparse = {"top 8": {"top_k": 8}, "top 50": {"top_k": 50}}
    labels = random.integers(0, 10, len(images)), random.integers(0, CLASSES, len(texts))
    texts = texts.astype("int32")
    yield "MLP", Case(scaled(mlp(1024, 1024, 10), images[:256]), lambda: mlp(64, 10), images, labels[0], 256, full)
    teacher = scaled(transformer(4, 256), texts[:64])
    yield "text", Case(teacher, lambda: transformer(1, 64), texts, labels[1], 32, {**full, **sparse})


# What is measured --------------------------------------------------------------------------------------------------


def compared(functions, rounds, examples):
    """Rows of a table, ratios to the first first."""
    times = {
        name: (
            min(one.wall for one in taken),
            statistics.median(one.wall for one in taken),
            min(one.cpu for one in taken),
        )
        for name, taken in timings(functions, rounds).items()
    }
    first = next(iter(times.values()))
    return {
        name: {
            "ratio of least": least / first[0],
            "ratio of medians": median / first[1],
            "ratio of processor time": busy / first[2],
            "least, s": least,
            "median, s": median,
            "examples/s": examples / least,
        }
        for name, (least, median, busy) in times.items()
    }


def build_rate(case, folder, rounds):
    """A whole build, manifest and all, against `predict` on the same dataset."""

    dataset = case.dataset()

    def build(options):
        shutil.rmtree(folder, ignore_errors=True)
        keras_kd.cache_teacher_outputs(case.teacher, dataset, folder, verbose=0, **options)

    functions = {"teacher.predict": lambda: case.teacher.predict(dataset, verbose=0)}
    for name, options in case.codings.items():
        if name != "float32":
            functions[f"build, {name}"] = lambda options=options: build(options)
    return compared(functions, rounds, len(case.x))


def build_rate_of_lengths(folder, rounds):
    """A build over texts in batches of about one length, against `predict` on the same texts, all padded to 64."""
    random = np.random.default_rng(0)
    texts = [random.integers(1, 256, length) for length in np.clip(random.gamma(2.0, 10.0, 640), 4, LENGTH).astype(int)]
    signature = tf.TensorSpec((None,), tf.int32)
    flat = tf.data.Dataset.from_generator(lambda: iter(texts), output_signature=signature).cache()
    padded = flat.padded_batch(32, padded_shapes=(LENGTH,))
    grouped = flat.bucket_by_sequence_length(lambda text: tf.shape(text)[0], [9, 17, 25, 33, 49], [32] * 6)
    teacher = transformer(4, 256, tokens=True)

    def build(dataset, **options):
        shutil.rmtree(folder, ignore_errors=True)
        keras_kd.cache_teacher_outputs(teacher, dataset, folder, verbose=0, **options)

    functions = {
        "teacher.predict, padded": lambda: teacher.predict(padded, verbose=0),
        "build, padded, top 8": lambda: build(padded, top_k=8),
        "build, grouped, top 8": lambda: build(grouped, top_k=8),
        "build, grouped, float16": lambda: build(grouped),
    }
    return compared(functions, rounds, len(texts))


def epochs(case, folder, rounds):
    """An epoch of `fit`: the plain student, the live teacher, outputs in memory, each cache."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def distilled(teacher, dataset):
        distiller = keras_kd.Distiller(teacher, case.make_student(), keras_kd.losses.SoftLabels(2.0))
        distiller.compile("adam", loss)
        return lambda: distiller.fit(dataset, shuffle=False, verbose=0)

    student = case.make_student()
    student.compile("adam", loss)
    plain = case.dataset()
    functions = {"plain student": lambda: student.fit(plain, shuffle=False, verbose=0)}
    functions["live teacher"] = distilled(case.teacher, plain)
    logits = case.teacher.predict(case.x, batch_size=case.batch, verbose=0)
    in_memory = tf.data.Dataset.from_tensor_slices((PrecomputedBatch(case.x, logits, {}), case.y)).batch(case.batch)
    functions["in memory"] = distilled(None, in_memory)
    functions["in memory, through NumPy"] = distilled(None, in_memory.map(through_numpy).prefetch(2))
    functions["in memory, hashed"] = distilled(None, in_memory.map(hashed).prefetch(2))
    for name, options in case.codings.items():
        precomputed = keras_kd.cache_teacher_outputs(case.teacher, plain, folder / name, verbose=0, **options)
        functions[f"cached, {name}"] = distilled(None, precomputed)
    by_id = keras_kd.cache_teacher_outputs(case.teacher, case.dataset_with_ids(), folder / "by id", key="id", verbose=0)
    functions["cached, float16, by id"] = distilled(None, by_id)
    return compared(functions, rounds, len(case.x))


def through_numpy(precomputed, y):
    """The same, once its outputs were in Python and back."""
    prediction = tf.numpy_function(lambda array: array, [precomputed.prediction], tf.float32)
    return precomputed._replace(prediction=tf.ensure_shape(prediction, precomputed.prediction.shape)), y


def hashed(precomputed, y):
    """The same, with what a key of `x` costs."""
    with tf.control_dependencies(
        [tf.raw_ops.Assert(condition=tf.shape(fingerprint(precomputed.x, 0))[0] > 0, data=["x"])]
    ):
        return precomputed._replace(prediction=tf.identity(precomputed.prediction)), y


def errors(case, folder):
    """KL(teacher ‖ what comes back) in nats, same class in %, bytes per example on disk, of each coding."""
    log_p = log_softmax(case.teacher.predict(case.x, batch_size=case.batch, verbose=0))
    rows = {}
    for name, options in case.codings.items():
        precomputed = keras_kd.cache_teacher_outputs(case.teacher, case.dataset(), folder / name, verbose=0, **options)
        log_q = log_softmax(np.concatenate([batch.teacher_outputs().prediction.numpy() for batch, _ in precomputed]))
        on_disk = sum(file.stat().st_size for file in (folder / name).iterdir())
        rows[name] = {
            "bytes per example": on_disk / len(case.x),
            "KL, nats": float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()),
            "same class, %": 100 * float(np.mean(log_p.argmax(-1) == log_q.argmax(-1))),
        }
    return rows


def log_softmax(logits):
    logits = logits.astype("float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/cache"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    results = {}
    for name, case in cases():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            results[f"{name}: an epoch"] = epochs(case, folder, options.rounds)
            results[f"{name}: building"] = build_rate(case, folder / "built", options.rounds)
            results[f"{name}: codings"] = errors(case, folder)
        for title in list(results)[-3:]:
            print(markdown(title, results[title], digits=4) + "\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        name = "texts of 4 to 64 characters: building"
        results[name] = build_rate_of_lengths(pathlib.Path(folder) / "built", options.rounds)
        print(markdown(name, results[name], digits=4) + "\n", flush=True)
    measured_on = {**machine(keras_kd, keras, tf, np), "load when it ended": os.getloadavg()}
    print(measured_on)
    (options.output / "report.json").write_text(json.dumps({**measured_on, "results": results}, indent=1))
    tables = [markdown(title, rows, digits=4) for title, rows in results.items()]
    (options.output / "tables.md").write_text("\n\n".join(tables) + f"\n\n{json.dumps(measured_on)}\n")


if __name__ == "__main__":
    main()
