"""What quantization costs, after training and aware of it: the demo's CNN and a small encoder, over five seeds.

    python benchmarks/quantization.py [--seeds 0 1 2 3 4] [--quick] [--steps N] [--output runs/quantization]

The names of Unicode's CLDR as in `keras-kd demo`: a teacher with all labels distils a float student; copies of it, made
by `quantize_aware`, are distilled on for a fifth of its steps at a tenth of its learning rate, and so is the float
student itself. Each is exported to LiteRT; the table shows the macro-F1 of the file on the test split, mean over
languages, and its size.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_hub
import numpy as np
from reporting import machine, mean_and_spread
from sklearn.metrics import f1_score

import keras_kd
from keras_kd.demo.run import FULL, QUICK, Demo, Size, character_cnn, optimizer, shuffled_batches

STUDENT = Size(filters=32, windows=(2, 3, 4), dropout=0.2)
SHARE_OF_STEPS, SHARE_OF_RATE = 0.2, 0.1

AWARE = {
    "aware, int8 weights": ({}, "dynamic"),
    "aware, int8 weights and activations": ({"activations": "int8"}, "int8"),
    "aware, int4 weights": ({"weights": "int4"}, "dynamic"),
}


def cnn(vocabulary_size, length, classes):
    return character_cnn("student", vocabulary_size, length, classes, STUDENT)


def encoder(vocabulary_size, length, classes, width=48):
    """Two of KerasHub's encoder layers over characters, and the mean of what they give."""
    ids = keras.Input((length,), dtype="int32", name="ids")
    options = {"vocabulary_size": vocabulary_size, "sequence_length": length, "embedding_dim": width}
    x = keras_hub.layers.TokenAndPositionEmbedding(**options, mask_zero=True)(ids)
    for block in range(2):
        x = keras_hub.layers.TransformerEncoder(2 * width, num_heads=4, dropout=0.1, name=f"block_{block}")(x)
    return keras.Model(ids, keras.layers.Dense(classes, name="kind")(keras.layers.GlobalAveragePooling1D()(x)))


STUDENTS = {"cnn": cnn, "encoder": encoder}


def distil(demo, teacher, student, steps, rate):
    setting = demo.setting
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    distiller = keras_kd.Distiller(
        teacher, student, keras_kd.losses.SoftLabels(setting.temperature), soft_weight=setting.soft_weight
    )
    distiller.compile(optimizer(steps, rate), loss)
    batches = shuffled_batches(demo.train_ids, demo.few_labels, batch_size=setting.batch_size, seed=demo.seed)
    distiller.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    return student


def score(demo, model):
    """Macro-F1 in points, mean over languages."""
    predicted = keras_kd.deploy.open_runtime(model).predict(demo.test_ids).argmax(-1)
    names = demo.names.test
    languages = [names.languages == language for language in np.unique(names.languages)]
    return 100 * float(np.mean([f1_score(names.labels[one], predicted[one], average="macro") for one in languages]))


def measure(demo, make, folder):
    """`{row: (macro-F1, bytes)}` of one seed."""
    setting = demo.setting
    teacher = demo.new_model("teacher", setting.teacher)
    demo.train("teacher", teacher, demo.train_ids, demo.names.train.labels, setting.teacher_steps)
    keras.utils.set_random_seed(demo.seed)
    student = make(demo.encoder.vocabulary_size, setting.length, len(demo.names.class_names))
    distil(demo, teacher, student, setting.student_steps, setting.learning_rate)
    more = int(SHARE_OF_STEPS * setting.student_steps), SHARE_OF_RATE * setting.learning_rate
    students = {
        name: (distil(demo, teacher, keras_kd.deploy.quantize_aware(student, **options), *more), {"quantize": kind})
        for name, (options, kind) in AWARE.items()
    }
    untrained = keras_kd.deploy.quantize_aware(student, weights="int4")
    distil(demo, teacher, student, *more)
    afterwards = {
        "float32": (student, {}),
        "afterwards, int8 weights": (student, {"quantize": "dynamic"}),
        "afterwards, int8 weights and activations": (student, {"quantize": "int8", "calibration": demo.train_ids}),
        "afterwards, int4 weights": (untrained, {"quantize": "dynamic"}),
    }
    return {name: exported(demo, *entry, folder) for name, entry in {**afterwards, **students}.items()}


def exported(demo, student, options, folder):
    path = folder / "student.tflite"
    report = keras_kd.export(student, path, compare_with=demo.test_ids, min_agreement=0.0, overwrite=True, **options)
    return score(demo, path), report.size_bytes


def markdown(results):
    """One row a file: mean ± sd over seeds, the difference to float32 seed by seed, and kB; for each student."""
    lines = ["| | " + " | ".join(f"{name}: macro-F1 | − float32 | kB" for name in results) + " |"]
    lines.append("|---" * (1 + 3 * len(results)) + "|")
    for row in next(iter(results.values()))[0]:
        cells = []
        for seeds in results.values():
            values, base = ([seed[name][0] for seed in seeds] for name in (row, "float32"))
            differences = [value - other for value, other in zip(values, base, strict=True)]
            lost = "–" if row == "float32" else mean_and_spread(differences)
            cells += [mean_and_spread(values), lost, f"{seeds[0][row][1] / 1000:.0f}"]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--quick", action="store_true", help="five languages, 60 steps: shows that everything runs")
    parser.add_argument("--steps", type=int, help="of the teacher and of the float student; default as the demo's")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/quantization"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    setting = QUICK if options.quick else FULL
    if options.steps:
        setting = dataclasses.replace(setting, teacher_steps=options.steps, student_steps=options.steps)
    start, results = time.perf_counter(), {name: [] for name in options.students}
    say = functools.partial(print, flush=True)
    for seed in options.seeds:
        demo = Demo(setting, seed)
        for name, seeds in results.items():
            seeds.append(measure(demo, STUDENTS[name], options.output))
            say(f"{name}, seed {seed}: { {row: round(value, 1) for row, (value, _) in seeds[-1].items()} }")
    report = {**machine(keras_kd, keras, np), "results": results, "seconds": time.perf_counter() - start}
    (options.output / "report.json").write_text(json.dumps(report, indent=1))
    table = markdown(results)
    (options.output / "table.md").write_text(table + "\n")
    say(f"\n{table}")


if __name__ == "__main__":
    main()
