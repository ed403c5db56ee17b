"""`keras-kd demo`: from a multilingual teacher and few labels to a small student that ships, measured by language.

names ──► Task ──► teacher (all labels) ──┐
            └────► three students (few labels, the same size and steps) ──► evaluate ──► export ──► runs/demo
"""

import dataclasses
import json
import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_kd import datasets
from keras_kd._files import written_whole
from keras_kd._version import __version__
from keras_kd.callbacks import LambdaRamp
from keras_kd.demo.stages import Stages
from keras_kd.deploy.exporting import export
from keras_kd.distiller import Distiller
from keras_kd.evaluation import evaluate
from keras_kd.evaluation.scores import MEAN_OVER_LANGUAGES
from keras_kd.losses import SoftLabels
from keras_kd.text import CharacterEncoder
from keras_kd.transfer import transfer_weights

TEACHER, LABELS_ONLY, DISTILLED, TRANSFERRED = "teacher", "labels only", "distilled", "transfer"
INT8 = "int8"


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a character CNN: see `character_cnn`."""

    filters: int
    windows: tuple[int, ...]
    dropout: float
    embedding: int = 32
    hidden: int = 128


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the demo does. Chosen on the validation split of seed 100, which no reported figure uses."""

    languages: tuple[str, ...] = datasets.LANGUAGES
    kinds: tuple[str, ...] = ("territory", "language", "currency", "city", "unit")
    label_fraction: float = 0.05
    length: int = 32
    teacher: Size = Size(filters=192, windows=(2, 3, 4, 5), dropout=0.4)
    student: Size = Size(filters=32, windows=(2, 3, 4), dropout=0.2)
    teacher_steps: int = 800
    student_steps: int = 1500
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 2e-3
    temperature: float = 4.0
    soft_weight: float = 2.0
    ramp_start: float = 1.0
    ramp_end: float = 4.0
    transferred: tuple[str, ...] = ("embedding", "kind")
    bootstrap: int = 1000
    min_agreement: float = 0.9


FULL = Setting()
QUICK = Setting(
    languages=("en", "de", "fr", "ru", "el"),
    teacher_steps=60,
    student_steps=60,
    epochs=6,
    bootstrap=100,
    min_agreement=0.5,
)


class Task:
    """The embedded names as ids: what the models train on and what they are measured with.

    Attributes:
        names: All splits, with every label.
        few_labels: The training labels, -1 where withheld, int32 `(examples,)`.
        encoder: The `CharacterEncoder`, learnt from the training texts.
        groups: Languages by script, for the table.
    """

    def __init__(self, setting, seed):
        options = {"languages": setting.languages, "kinds": setting.kinds, "seed": seed}
        self.names = datasets.cldr_names(**options)
        self.few_labels = datasets.cldr_names(**options, label_fraction=setting.label_fraction).train.labels
        self.encoder = CharacterEncoder.from_texts(self.names.train.texts, setting.length, min_count=3)
        scripts = {"Latin script": datasets.LATIN_SCRIPT_LANGUAGES, "other scripts": datasets.OTHER_SCRIPT_LANGUAGES}
        groups = {name: [one for one in setting.languages if one in members] for name, members in scripts.items()}
        self.groups = {name: members for name, members in groups.items() if members}

    def ids(self, split):
        """The ids of a split's texts, int32 `(examples, length)`."""
        return self.encoder(split.texts).numpy()


def character_cnn(name, vocabulary_size, length, classes, size):
    """A text classifier: embedded characters, convolutions over windows of them, the maximum of each, two layers.

    Args:
        name: Name of the model.
        vocabulary_size: Number of ids; 0 is padding.
        length: Ids per text.
        classes: Number of logits.
        size: A `Size`.
    """
    inputs = keras.Input((length,), dtype="int32", name="ids")
    characters = keras.layers.Embedding(vocabulary_size, size.embedding, name="embedding")(inputs)
    strongest = []
    for window in size.windows:
        seen = keras.layers.Conv1D(size.filters, window, padding="same", activation="relu", name=f"window_{window}")
        strongest.append(keras.layers.GlobalMaxPooling1D(name=f"strongest_{window}")(seen(characters)))
    features = keras.layers.Dropout(size.dropout)(keras.layers.Concatenate()(strongest))
    hidden = keras.layers.Dense(size.hidden, "relu", name="hidden")(features)
    logits = keras.layers.Dense(classes, name="kind")(keras.layers.Dropout(size.dropout)(hidden))
    return keras.Model(inputs, logits, name=name)


def shuffled_batches(ids, labels, *, batch_size, seed):
    """An endless `tf.data.Dataset` of shuffled batches of `(ids, labels)`; the same seed gives the same batches."""
    examples = tf.data.Dataset.from_tensor_slices((ids, labels)).shuffle(len(ids), seed=seed).repeat()
    return examples.batch(batch_size, drop_remainder=True).prefetch(2)


def optimizer(steps, rate):
    """AdamW with a short warm-up to `rate` and a cosine decay to nearly nothing."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.05 * rate, decay_steps=steps, warmup_target=rate, warmup_steps=steps // 20, alpha=0.02
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.01)


class Demo:
    """One run: what it needs, and what it has made so far."""

    def __init__(self, setting, seed, stages):
        self.setting, self.seed, self.stages = setting, seed, stages
        with stages.stage("data"):
            self.task = Task(setting, seed)
            names = self.task.names
            self.train_ids, self.test_ids = self.task.ids(names.train), self.task.ids(names.test)

    def teacher(self):
        """Train the teacher on all labels."""
        teacher, labels = self._new_model("teacher", self.setting.teacher), self.task.names.train.labels
        self._fit(TEACHER, teacher, self.train_ids, labels, self.setting.teacher_steps)
        return teacher

    def student_from_labels(self):
        """Train a student on the few labels alone."""
        student, labelled = self._new_model("student", self.setting.student), self.task.few_labels >= 0
        self._fit(LABELS_ONLY, student, self.train_ids[labelled], self.task.few_labels[labelled])
        return student

    def student_distilled(self, teacher):
        """Train a student on the few labels, and on the teacher's outputs for every text."""
        student = self._new_model("student", self.setting.student)
        distiller = self._distiller(teacher, student, self.setting.soft_weight)
        self._fit(DISTILLED, distiller, self.train_ids, self.task.few_labels)
        return student

    def student_transferred(self, teacher):
        """The same, with transferred weights and a ramp of λ; return the student and the transfer's table."""
        setting = self.setting
        student = self._new_model("student", setting.student)
        transfer = transfer_weights(teacher, student, layers={name: name for name in setting.transferred})
        distiller = self._distiller(teacher, student, setting.ramp_start)
        third = setting.epochs // 3
        ramp = LambdaRamp(setting.ramp_start, setting.ramp_end, hold_epochs=third, ramp_epochs=third)
        self._fit(TRANSFERRED, distiller, self.train_ids, self.task.few_labels, callbacks=[ramp])
        return student, transfer

    def _new_model(self, name, size):
        """A model of this size; all students start from the same weights."""
        keras.utils.set_random_seed(self.seed)
        task = self.task
        return character_cnn(name, task.encoder.vocabulary_size, self.setting.length, len(task.names.class_names), size)

    def _distiller(self, teacher, student, soft_weight):
        return Distiller(teacher, student, SoftLabels(self.setting.temperature), soft_weight=soft_weight)

    def _fit(self, stage, model, ids, labels, steps=None, callbacks=()):
        steps = steps or self.setting.student_steps
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=datasets.UNLABELLED)
        model.compile(optimizer(steps, self.setting.learning_rate), loss)
        with self.stages.stage(stage, steps) as shown:
            model.fit(
                shuffled_batches(ids, labels, batch_size=self.setting.batch_size, seed=self.seed),
                epochs=self.setting.epochs,
                steps_per_epoch=steps // self.setting.epochs,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, shown],
            )

    def export(self, student, folder):
        """Export for a phone (LiteRT int8, takes ids) and a server (SavedModel, takes strings); return the reports."""
        names = self.task.names
        with self.stages.stage("export"):
            phone = export(
                student,
                folder / "student.tflite",
                quantize="int8",
                calibration=self.train_ids,
                compare_with=self.test_ids,
                min_agreement=self.setting.min_agreement,
                overwrite=True,
            )
            takes_strings = keras.Sequential([keras.Input((), dtype="string", name="text"), self.task.encoder, student])
            server = export(
                takes_strings,
                folder / "student",
                compare_with=names.test.texts.astype(object),
                min_agreement=self.setting.min_agreement,
                overwrite=True,
            )
        return {"litert_int8": phone, "saved_model": server}

    def evaluate(self, models):
        """Measure all models on the test split."""
        test = self.task.names.test
        with self.stages.stage("evaluation"):
            return evaluate(
                models,
                (self.test_ids, test.labels),
                languages=test.languages,
                groups=self.task.groups,
                class_names=self.task.names.class_names,
                bootstrap=self.setting.bootstrap,
                seed=self.seed,
            )


def run_demo(folder, *, seed=0, setting=FULL, console=None):
    """Run the demo; write report, tables, figure and exported files to `folder`; return the `Evaluation`.

    Args:
        folder: Where `report.json`, `evaluation.json`, `scores.csv`, `table.txt`, `languages.png`, `student.tflite` and
            the SavedModel `student/` go; files of an earlier run are replaced.
        seed: Decides the split, the labels that are kept, the initial weights and the order of the batches.
        setting: A `Setting`; `FULL`, or `QUICK`, which only shows that everything runs.
        console: A `rich.console.Console`; None for standard output.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    stages = Stages(console)
    demo = Demo(setting, seed, stages)
    teacher = demo.teacher()
    distilled = demo.student_distilled(teacher)
    transferred, transfer = demo.student_transferred(teacher)
    models = {
        TEACHER: teacher,
        LABELS_ONLY: demo.student_from_labels(),
        DISTILLED: distilled,
        TRANSFERRED: transferred,
    }
    exports = demo.export(distilled, folder)
    evaluation = demo.evaluate({**models, INT8: exports["litert_int8"].path})
    stages.seconds["total"] = time.perf_counter() - start
    _write(folder, demo, evaluation, exports, transfer)
    _print(stages.console, demo, evaluation, exports, transfer, folder)
    return evaluation


def gains(evaluation, baseline=LABELS_ONLY):
    """What each other student gains over `baseline` in macro-F1, mean over languages: {model: Estimate}."""
    students = [name for name in evaluation.models if name not in (TEACHER, baseline)]
    return {name: evaluation.difference(name, baseline, "macro_f1", language=MEAN_OVER_LANGUAGES) for name in students}


def _print(console, demo, evaluation, exports, transfer, folder):
    plain = {"highlight": False, "soft_wrap": True}
    evaluation.print(console=console)
    console.print(f"\nWeights transferred before training ({TRANSFERRED}):\n{transfer}\n", **plain)
    for report in exports.values():
        console.print(f"{report}", **plain)
    for name, gain in gains(evaluation).items():
        low, high = (f"{100 * bound:+.1f}" for bound in (gain.low, gain.high))
        console.print(f"{name} − {LABELS_ONLY}: {100 * gain.value:+.1f} points of macro-F1 [{low}, {high}]", **plain)
    console.print(f"\nFiles      {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", **plain)
    console.print(f"Try it     {_command(folder, demo.task.names.class_names)}", **plain)
    console.print(
        "Your data  notebooks/multilingual_distillation.ipynb shows each step, to change for your own", **plain
    )


def _command(folder, class_names):
    """A shell command that classifies a text with the exported SavedModel."""
    code = (
        f"import tensorflow as tf, tensorflow_text; m = tf.saved_model.load('{folder.as_posix()}/student'); "
        f"print({list(class_names)}[m.serve(tf.constant(['Zürich'])).numpy().argmax()])"
    )
    return f'{sys.executable if " " not in sys.executable else "python"} -c "{code}"'


def _write(folder, demo, evaluation, exports, transfer):
    evaluation.to_json(folder / "evaluation.json")
    evaluation.to_csv(folder / "scores.csv")
    evaluation.plot(folder / "languages.png")
    with written_whole(folder / "table.txt") as partial:
        partial.write_text(f"{evaluation}\n\n{transfer}\n", encoding="utf-8")
    report = {
        "seed": demo.seed,
        "setting": dataclasses.asdict(demo.setting),
        "versions": {"keras_kd": __version__, "keras": keras.__version__, "tensorflow": tf.__version__},
        "examples": {split: len(names) for split, names in demo.task.names._asdict().items() if split != "class_names"},
        "labelled": int(np.sum(demo.task.few_labels >= 0)),
        "macro_f1": {
            name: evaluation.score(name, "macro_f1", language=MEAN_OVER_LANGUAGES).value for name in evaluation.models
        },
        "accuracy": {name: evaluation.score(name, "accuracy").value for name in evaluation.models},
        "gains": {name: gain._asdict() for name, gain in gains(evaluation).items()},
        "exports": {name: report.to_dict() for name, report in exports.items()},
        "seconds": {name: round(seconds, 1) for name, seconds in demo.stages.seconds.items()},
    }
    with written_whole(folder / "report.json") as partial:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
