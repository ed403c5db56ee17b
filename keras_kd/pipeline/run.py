"""The stages of `keras-kd distil`: read, teach, train, export, measure. Each resumes where it was stopped."""

import collections
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from keras_kd._files import content_hash, written_whole
from keras_kd._progress import Stages
from keras_kd.datasets.cldr import UNLABELLED
from keras_kd.datasets.texts import from_files
from keras_kd.deploy import export, quantize_aware, write_card
from keras_kd.deploy.end_to_end import LOGITS, TEXT
from keras_kd.distiller import Distiller
from keras_kd.evaluation import evaluate
from keras_kd.fingerprint import differences
from keras_kd.outputs import PrecomputedBatch
from keras_kd.pipeline.learners import STUDENT, open_learner, texts_by_language
from keras_kd.pipeline.settings import AWARE, LAYERS
from keras_kd.pipeline.teaching import check_order, open_teacher

TEACHER, PHONE = "teacher", "student.tflite"
_FEW = 30  # labelled test texts of a language, below which its scores say little
_SCORES = "teacher_scores"


class Texts(typing.NamedTuple):
    """A split: texts and languages of dtype object, labels int32, -1 where there is none."""

    texts: np.ndarray
    languages: np.ndarray
    labels: np.ndarray


def distil(settings, console=None):
    """Distil a student from files of texts, as `keras-kd distil` does; return the `Evaluation`.

    The folder `settings.export.output` gets: the exported student, `student.tflite` (takes bytes, or strings if it was
    made of layers of the teacher) and `student/` (a SavedModel that takes strings), each with its card;
    `student.keras`; the scores, `evaluation.json`, `scores.csv` and `languages.png`; the teacher's outputs and
    a backup, from which a run that was stopped goes on.

    Args:
        settings: A `keras_kd.pipeline.settings.Settings`.
        console: A `rich.console.Console`; None for standard output.

    Raises:
        ValueError: Broken rows, named by file and line; a teacher that does not fit the texts; a size that no student
            has; a folder of a run with other settings or other data. All before any training.
        FileNotFoundError: A file that is not there.
    """
    run = _Run(settings, console)
    student, distiller = run.train(run.teach())
    run.export(student)
    evaluation = run.evaluate(student)
    run.describe(distiller, evaluation)
    run.finish(evaluation)
    return evaluation


class _Run(Stages):
    """A run in its folder; everything that can be wrong with the settings is found when it is made."""

    def __init__(self, settings, console):
        super().__init__(console)
        self.settings = settings
        self.folder = pathlib.Path(settings.export.output)
        data = settings.data
        options = {"text": data.text, "label": data.label, "language": data.language}
        if data.labels:
            options["class_names"] = [name.strip() for name in data.labels.split(",")]
        splits = from_files({"train": data.train, "test": data.test}, **options)
        self.class_names = splits.class_names
        self.train_split, self.test_split = (_arrays(splits[name]) for name in ("train", "test"))
        self._check_splits()
        self.teacher = open_teacher(settings.teacher, self.class_names)
        keras.utils.set_random_seed(settings.training.seed)
        texts = texts_by_language(self.train_split)
        self.learner = open_learner(settings, self.teacher, texts, len(self.class_names))
        self.tokenizer = self.learner.tokenizer
        self._claim_folder()

    def _check_splits(self):
        data = self.settings.data
        if len(self.class_names) < 2:
            raise ValueError(f"{data.train} must hold labels of two classes or more, got {list(self.class_names)}.")
        if not (self.test_split.labels >= 0).any():
            raise ValueError(f"{data.test} must hold labels: the scores are measured on it.")
        counts = collections.Counter(self.test_split.languages[self.test_split.labels >= 0])
        for language, count in sorted(counts.items()):
            if count < _FEW:
                self._say(f"{language}: only {count} labelled test texts; its scores will say little")
        labelled = int((self.train_split.labels >= 0).sum())
        self._say(
            f"{len(self.train_split.texts):,} texts to train on, {labelled:,} of them labelled; "
            f"{sum(counts.values()):,} to test on; {len(counts)} languages; classes {', '.join(self.class_names)}"
        )

    def _claim_folder(self):
        """Write what this run is to its folder, or find that it is the same run."""
        settings = dataclasses.asdict(self.settings)
        settings["export"].pop("output")
        wanted = {
            "settings": settings,
            "train": _digest(self.train_split),
            "test": _digest(self.test_split),
            "teacher": _teacher_hash(self.settings.teacher.model),
        }
        file = self.folder / "settings.json"
        if file.exists():
            found = json.loads(file.read_text("utf-8"))
            changed = list(differences(found, json.loads(json.dumps(wanted))))
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other settings or data:{';'.join(changed)}. Choose another "
                    "--output, or remove the folder."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} must be empty or hold a run to resume. Choose another --output.")
        with written_whole(file) as partial:
            partial.write_text(json.dumps(wanted, indent=1, ensure_ascii=False), encoding="utf-8")

    def teach(self):
        """The teacher's outputs of the training texts: {"logits": float32 `(texts, classes)`}, and maybe vectors."""
        train, folder = self.train_split, self.folder / "teacher_outputs"
        with self.stage("teacher"):
            self.teacher.learn(train.texts, train.labels, folder)
            outputs = self.teacher.outputs(train.texts, folder)
        labelled = train.labels >= 0
        check_order(outputs[LOGITS][labelled].argmax(axis=-1), train.labels[labelled], self.class_names)
        return outputs

    def train(self, outputs):
        """Train the student, or read the one that was trained; return what ships and the distiller."""
        training, quantize = self.settings.training, self.settings.export.quantize
        rate = training.learning_rate or self.learner.learning_rate
        batches = self._batches(outputs)
        distiller = self._fit("student", self.learner.model(), batches, training.epochs, rate)
        if quantize == "int4" or training.quantize_epochs:
            model = quantize_aware(distiller.student, **AWARE[quantize])
            distiller = self._fit("quantize", model, batches, training.quantize_epochs, rate / 10)
        student = self.learner.shipped(distiller.student)
        with written_whole(self.folder / "student.keras") as partial:
            student.save(partial)
        return student, distiller

    def _batches(self, outputs):
        training, examples = self.settings.training, len(self.train_split.texts)
        x = self.tokenizer(self.train_split.texts)
        rows = PrecomputedBatch(x, outputs, {}), {LOGITS: self.train_split.labels}
        shuffled = tf.data.Dataset.from_tensor_slices(rows).shuffle(examples, seed=training.seed)
        return shuffled.batch(min(training.batch_size, examples), drop_remainder=True)

    def _fit(self, stage, model, batches, epochs, rate):
        """Distil into a model; return its distiller. What was stopped goes on after its last epoch."""
        training = self.settings.training
        weights = {"soft_weight": training.soft_weight, "hard_weight": training.hard_weight}
        distiller = Distiller(None, model, self.learner.losses(), **weights)
        steps = max(1, epochs * int(batches.cardinality()))
        schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=steps // 20)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=UNLABELLED)
        distiller.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01), {LOGITS: loss})
        resume = keras.callbacks.BackupAndRestore(self.folder / f"backup_{stage}", delete_checkpoint=False)
        if epochs:
            with self.stage(stage, steps) as shown:
                callbacks = [resume, shown, *_tensorboard(self.folder / "tensorboard" / stage)]
                distiller.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
        return distiller

    def export(self, student):
        """Write the LiteRT file and the SavedModel, each compared with the student."""
        quantize = {"none": None, "int4": "dynamic"}.get(self.settings.export.quantize, self.settings.export.quantize)
        brings_ranges = self.settings.training.quantize_epochs > 0
        options = {
            "tokenizer": self.tokenizer,
            "labels": self.class_names,
            "compare_with": self.test_split.texts,
            "min_agreement": self.settings.export.min_agreement,
            "overwrite": True,
        }
        calibration = self.train_split.texts if quantize == "int8" and not brings_ranges else None
        with self.stage("export"):
            phone = export(student, self.folder / PHONE, quantize=quantize, calibration=calibration, **options)
            server = export(student, self.folder / "student", **options)
        for report in (phone, server):
            self._say(f"{report}")

    def evaluate(self, student):
        """Measure teacher, student and LiteRT file on the test texts."""
        test = self.test_split
        x = _as_entries(self.tokenizer(test.texts), student) | {TEXT: test.texts}
        models = {STUDENT: student, PHONE: self.folder / PHONE}
        with self.stage("evaluation"):
            scores = self._teacher_scores()
            if scores is not None:
                teacher = keras.Input(scores.shape[1:], name=_SCORES)
                models = {TEACHER: keras.Model(teacher, keras.layers.Identity()(teacher)), **models}
                x[_SCORES] = scores
            evaluation = evaluate(
                models,
                (x, test.labels),
                languages=test.languages,
                class_names=self.class_names,
                seed=self.settings.training.seed,
            )
            if scores is not None:
                evaluation = self._with_facts_of_teacher(evaluation)
        evaluation.to_json(self.folder / "evaluation.json")
        evaluation.to_csv(self.folder / "scores.csv")
        if importlib.util.find_spec("matplotlib"):
            evaluation.plot(self.folder / "languages.png")
        return evaluation

    def _with_facts_of_teacher(self, evaluation):
        """The evaluation with the size of the teacher, whose outputs were read: those of a file of scores tell none."""
        facts = dataclasses.replace(
            evaluation.models[TEACHER], parameters=self.teacher.parameters, size_bytes=None, latency_ms=None
        )
        return dataclasses.replace(evaluation, models={**evaluation.models, TEACHER: facts})

    def _teacher_scores(self):
        """The teacher's logits of the test texts; None where a file of scores does not hold them."""
        try:
            return self.teacher.outputs(self.test_split.texts, self.folder / "teacher_test_outputs")[LOGITS]
        except ValueError as error:
            self._say(f"The teacher is not measured: {error}")
            return None

    def describe(self, distiller, evaluation):
        """Add to the cards how the student was trained and how it scores."""
        data = self.settings.data
        details = {
            "teacher": self.settings.teacher.model,
            "training data": f"{data.train}: {len(self.train_split.texts):,} texts",
            "test data": f"{data.test}: {len(self.test_split.texts):,} texts",
            "seed": self.settings.training.seed,
        }
        write_card(self.folder / "student", distiller=distiller, details=details)
        write_card(self.folder / PHONE, distiller=distiller, evaluation=evaluation, model=PHONE, details=details)

    def finish(self, evaluation):
        """The last screen: scores, and what to do next."""
        evaluation.print(console=self.console)
        folder = self.folder.as_posix()
        imports = "tensorflow as tf, tensorflow_text" if self.settings.student.family == LAYERS else "tensorflow as tf"
        load = f"import {imports}; model = tf.saved_model.load('{folder}/student')"
        self._say(f"\nFiles      {folder}: {', '.join(sorted(path.name for path in self.folder.iterdir()))}")
        self._say(f"Try it     python -c \"{load}; print(model.serve(tf.constant(['a text'])))\"")
        self._say(f"Ship it    {folder}/{PHONE}.card.md says how an app runs it")

    def _say(self, text):
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _arrays(dataset):
    rows = list(dataset.as_numpy_iterator())
    texts, languages = (np.array([x[key].decode() for x, _ in rows], dtype=object) for key in (TEXT, "language"))
    return Texts(texts, languages, np.array([label for _, label in rows], "int32"))


def _as_entries(encoded, student):
    """{name of the student's input: array} of what its tokenizer gives."""
    encoded = encoded if isinstance(encoded, dict) else {student.input.name: encoded}
    return {name: tensor.numpy() for name, tensor in encoded.items()}


def _teacher_hash(model):
    """What tells a teacher's files from others; of a preset that is downloaded, its name."""
    return content_hash(model) if pathlib.Path(model).exists() else model


def _digest(split):
    content = json.dumps([split.texts.tolist(), split.languages.tolist(), split.labels.tolist()], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _tensorboard(folder):
    return [keras.callbacks.TensorBoard(folder)] if importlib.util.find_spec("tensorboard") else []
