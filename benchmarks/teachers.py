"""What teachers made of other things cost: half precision, ensembles, one teacher per language.

    python benchmarks/teachers.py [--rounds 15] [--output runs/teachers]

Two trained teachers: a text transformer (4 blocks 256 wide, batches of 32 texts of 64 characters; what kind of thing a
name names) and an MLP (784-1024-1024-10, batches of 256 digits). What is compared runs in turn, `--rounds` times, in
one process; a time is the least of its rounds, a ratio that of two such times. Agreement and KL are against the float32
teacher, on examples that it was not trained on.
"""

import argparse
import json
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from reporting import interleaved, machine, markdown

import keras_kd

LENGTH, TEXTS, DIGITS = 64, 32, 256  # characters a text, examples a batch
TRAINED_STEPS = 150  # of the transformer: enough that it tells the kinds of name apart


class Case(NamedTuple):
    """A trained teacher, what it is measured on, and the size of a batch."""

    teacher: keras.Model
    test: np.ndarray
    batch: int


# The teachers ------------------------------------------------------------------------------------------------------


def transformer(words, classes):
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    x = keras.layers.Embedding(words, 256)(ids)
    for _ in range(4):
        attended = keras.layers.MultiHeadAttention(4, 64)(*[keras.layers.LayerNormalization()(x)] * 2)
        x = keras.layers.Add()([x, attended])
        hidden = keras.layers.Dense(1024, "gelu")(keras.layers.LayerNormalization()(x))
        x = keras.layers.Add()([x, keras.layers.Dense(256)(hidden)])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(ids, keras.layers.Dense(classes, name="logits")(x))


def mlp(classes=10):
    pixels = keras.Input((784,), name="pixels")
    hidden = keras.layers.Dense(1024, "relu")(keras.layers.Dense(1024, "relu")(pixels))
    return keras.Model(pixels, keras.layers.Dense(classes, name="logits")(hidden))


def fitted(model, x, y, steps, batch):
    """Adam, after a warm-up: without one the transformer does not leave the start."""
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=5e-4, warmup_steps=steps // 5)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rows = np.random.default_rng(0).integers(len(x), size=steps * batch)
    model.fit(x[rows], y[rows], batch_size=batch, shuffle=False, verbose=0)
    return model


def text_case():
    names = keras_kd.datasets.cldr_names()
    encoder = keras_kd.text.CharacterEncoder.from_texts(names.train.texts, LENGTH)
    model = transformer(encoder.vocabulary_size, len(names.class_names))
    fitted(model, encoder(names.train.texts).numpy(), names.train.labels, TRAINED_STEPS, TEXTS)
    return Case(model, encoder(names.test.texts[: 32 * TEXTS]).numpy(), TEXTS)


def mlp_case():
    """scikit-learn's digits, 8 x 8, drawn three times as large in a frame of 28 x 28."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = np.pad(np.kron(bunch.images[order] / 16.0, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    x, y = images.reshape(-1, 784).astype("float32"), bunch.target[order]
    return Case(fitted(mlp(), x[:1000], y[:1000], 200, 64), x[1000:], DIGITS)


# What is measured --------------------------------------------------------------------------------------------------


def milliseconds(models, batches, rounds):
    """The least time of a forward pass of each model on its batch, all in turn; `{name: ms}`."""
    functions = {}
    for name, model in models.items():
        forward = tf.function(lambda x, model=model: model(x, training=False))
        batch = keras.tree.map_structure(tf.constant, batches[name])
        functions[name] = lambda forward=forward, batch=batch: forward(batch).numpy()
    return {name: 1e3 * min(seconds) for name, seconds in interleaved(functions, rounds).items()}


def with_ratios(times):
    """Times in ms, each also as a ratio to the first."""
    first = next(iter(times.values()))
    return {name: {"ms": value, "time ratio": value / first} for name, value in times.items()}


def half_precision(case, rounds):
    """Each copy against the float32 teacher: same class, KL in nats, time, bytes of weights."""
    models = {"float32": case.teacher}
    models |= {dtype: keras_kd.teachers.cast(case.teacher, dtype) for dtype in ("bfloat16", "float16")}
    times = milliseconds(models, dict.fromkeys(models, case.test[: case.batch]), rounds)
    logits = {name: model.predict(case.test, batch_size=case.batch, verbose=0) for name, model in models.items()}
    rows = {}
    for name, model in models.items():
        rows[name] = {
            "same class, %": 100 * float(np.mean(logits[name].argmax(-1) == logits["float32"].argmax(-1))),
            "KL, nats": float(keras_kd.losses.SoftLabels()(logits["float32"], logits[name])),
            "ms": times[name],
            "time ratio": times[name] / times["float32"],
            "MB": keras_kd.deploy.runtimes.open_runtime(model).size_bytes / 1e6,
        }
    return rows


def ensembles(case, rounds):
    """Ensembles of 1, 2, 4 and 8 such teachers, untrained, against one by itself."""
    members = [keras.models.clone_model(case.teacher) for _ in range(8)]
    models = {"one teacher": members[0]}
    models |= {f"ensemble of {count}": keras_kd.teachers.ensemble(members[:count]) for count in (1, 2, 4, 8)}
    return with_ratios(milliseconds(models, dict.fromkeys(models, case.test[: case.batch]), rounds))


def languages(case, rounds):
    """Four teachers by language, languages at random, against one teacher and against the ensemble of the four."""
    members = [keras.models.clone_model(case.teacher) for _ in range(4)]
    models = {
        "one teacher": members[0],
        "one per language, 4 teachers": keras_kd.teachers.route_by_language(dict(enumerate(members))),
        "ensemble of 4": keras_kd.teachers.ensemble(members),
    }
    x = case.test[: case.batch]
    drawn = np.random.default_rng(0).integers(0, 4, case.batch)
    batches = {
        **dict.fromkeys(models, x),
        "one per language, 4 teachers": {members[0].input.name: x, "language": drawn},
    }
    return with_ratios(milliseconds(models, batches, rounds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/teachers"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    results = {}
    for name, case in (("MLP", mlp_case()), ("text transformer", text_case())):
        results[f"{name}: half precision"] = half_precision(case, options.rounds)
        results[f"{name}: ensembles"] = ensembles(case, options.rounds)
        results[f"{name}: languages"] = languages(case, options.rounds)
        for title in list(results)[-3:]:
            print(markdown(title, results[title], digits=3) + "\n", flush=True)
    measured_on = machine(keras_kd, keras, tf, np)
    print(measured_on)
    (options.output / "report.json").write_text(json.dumps({**measured_on, "results": results}, indent=1))
    tables = [markdown(title, rows, digits=3) for title, rows in results.items()]
    (options.output / "tables.md").write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
