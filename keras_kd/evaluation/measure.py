"""`evaluate`: every model on the same examples, scored overall and by language."""

import contextlib

import numpy as np
import tensorflow as tf

from keras_kd._checks import require_count, require_tensorflow
from keras_kd.deploy.end_to_end import ANSWERS, LABEL, LOGITS
from keras_kd.deploy.runtimes import open_runtime
from keras_kd.evaluation.examples import check_classes, class_indices, language_rows, read_examples
from keras_kd.evaluation.predictions import checked_outputs, predictions_from
from keras_kd.evaluation.result import Evaluation, ModelFacts
from keras_kd.evaluation.scores import METRICS, TEACHER_METRICS, class_metric, result_rows, summarize
from keras_kd.outputs.model_inputs import own_entries
from keras_kd.text import ByteEncoder

DEFAULT_TEACHER = "teacher"


def evaluate(
    models,
    data,
    *,
    languages=None,
    groups=None,
    class_names=None,
    teacher=DEFAULT_TEACHER,
    bootstrap=1000,
    seed=0,
    batch_size=256,
    latency=True,
    memory=False,
):
    """Measure classifiers on the same examples: teacher, students, exported files.

    Unlabelled examples (label below 0, or a one-hot row of zeros) are left out of every score, as in
    `keras_kd.metrics`. Scores, overall and for each language, each with a 95 % interval:

    - `accuracy`: the share of examples whose largest output is the label's.
    - `macro_f1`: as `keras_kd.metrics.MacroF1`, scikit-learn's `f1_score(average="macro")`: over the classes that occur
      among the labels or the predictions of the row.
    - `ece`: `keras_kd.metrics.ExpectedCalibrationError` in 15 bins, in [0, 1], lower is better. Chance makes it too
      large where there are few examples, and larger again in each resample. So its interval is mirrored at the value
      (the basic bootstrap): it shows where the error of many examples would be, which may lie below the value.
    - `agreement`: the share of examples where model and teacher choose the same class.
    - `kl`: the mean of KL(teacher || model) = Σ_c p_c (log p_c - log q_c), in nats, lower is better. Probabilities
      below 1e-7 count as 1e-7, for a quantized softmax rounds small ones to zero.

    For `ece` and `kl`, outputs that all lie in [0, 1] with rows that sum to 1 (as nearly as an 8-bit softmax does) are
    probabilities, all others logits; `ModelFacts.outputs` holds which.

    "mean over languages" (and "mean of <group>") average the languages' scores: each language weighs the same.

    The intervals are percentiles (2.5, 97.5) of `bootstrap` resamples: each language's examples are drawn again with
    replacement, as many as there were, the same for every model, so that `Evaluation.difference` compares in pairs.
    They show how scores would move with other test examples, not with another training run.

    Args:
        models: {name: model}; a model is a `keras.Model` or the path of a SavedModel folder, or of a .tflite, .onnx,
            .xml (OpenVINO) or .keras file. Each has one output, (batch, classes), the same classes for all; or it was
            exported with labels.
        data: `(x, y)`, arrays (x may be a dict of arrays, of which each model reads those named after its inputs), or a
            batched `tf.data.Dataset`, read once, in order. y holds integer labels, (examples,), or one-hot rows,
            (examples, classes). A third member, sample weights, is not used: every labelled example counts the same.
            If x is an array of texts, a model that takes bytes, (batch, length) uint8, gets those of
            `keras_kd.text.ByteEncoder`.
        languages: one string per example, in the order of the data; or None.
        groups: {group name: languages}, for instance {"labelled": ["en", "de"], "unlabelled": ["sw"]}: adds a row
            "mean of <group>" each.
        class_names: one string per class, in the order of the models' outputs: adds the F1 of each class, overall
            (metric "f1:<class name>"; 0 for a class that occurs in neither labels nor predictions). The labels of
            models that were exported with them must be the same.
        teacher: the name of the teacher among `models`. None, or no model called "teacher": no agreement, no KL.
        bootstrap: how many resamples; 0 for no intervals.
        seed: of the resamples; the same seed and data give the same intervals.
        batch_size: examples per prediction.
        latency: whether to time each model on the first example (median milliseconds).
        memory: whether to run each file but .keras on the first example in a fresh process, which takes seconds, and
            measure by how much that grows at most (`ModelFacts.peak_memory_bytes`), on the CPU, from where the packages
            are imported.

    Returns:
        An `Evaluation`, to print, save and plot; its `difference` compares two models.

    Raises:
        RuntimeError: Keras runs on another backend than tensorflow; with `memory`, a file does not run in a fresh
            process.
        TypeError: An argument of the wrong type.
        ValueError: Lengths that differ, labels out of range, no labelled example, outputs that are not (batch,
            classes) or not finite, models that disagree in the number of classes, no examples, unknown names, labels
            of a model that are not `class_names`.

    Example:
        >>> evaluation = keras_kd.evaluate(
        ...     {"teacher": teacher, "student alone": baseline, "distilled": student, "int8": "student.tflite"},
        ...     (x_test, y_test),
        ...     languages=language_of_each_example,
        ... )
        >>> print(evaluation)
        >>> evaluation.difference("distilled", "student alone", "macro_f1")
    """
    require_tensorflow("evaluate")
    teacher = checked_teacher(models, teacher, bootstrap=bootstrap, seed=seed, batch_size=batch_size)
    runtimes = open_runtimes(models)
    x, y = read_examples(data)
    labels = class_indices(y)
    labelled = labels >= 0
    rows_by_language = language_rows(languages, labelled)
    groups = checked_groups(groups, rows_by_language)
    if not labelled.all():
        x, y, labels = example_rows(x, labelled), y[labelled], labels[labelled]

    class_names = _names(class_names)
    predictions, classes = _predict(runtimes, x, y, labels, teacher, batch_size, class_names)
    class_names = class_names or ()
    facts = {}
    for name, runtime in runtimes.items():
        with errors_naming(name):
            facts[name] = model_facts(runtime, x, predictions[name].kind, latency, memory)
    options = {"classes": classes, "class_names": class_names, "bootstrap": bootstrap, "seed": seed}
    scores, differences = summarize(predictions, labels, rows_by_language, groups, **options)
    return Evaluation(
        models=facts,
        teacher=teacher,
        metrics=measured_metrics(teacher, class_names),
        languages=tuple(rows_by_language),
        groups=groups,
        bootstrap=int(bootstrap),
        seed=int(seed),
        scores=scores,
        differences=differences,
    )


def measured_metrics(teacher, class_names):
    """The metrics of an evaluation with or without (None) a teacher."""
    known = METRICS if teacher is not None else [metric for metric in METRICS if metric not in TEACHER_METRICS]
    return (*known, *map(class_metric, class_names))


def checked_teacher(models, teacher, *, argument="models", **counts):
    """The teacher's name, None where there is none; the arguments of `evaluate` are checked."""
    _check_models(models, teacher, argument)
    for argument, count in counts.items():
        require_count(count, argument, at_least=1 if argument == "batch_size" else 0)
    return teacher if teacher in models else None


def open_runtimes(models):
    """{name: runtime} of models and files."""
    runtimes = {}
    for name, model in models.items():
        with errors_naming(name):
            runtimes[name] = open_runtime(model)
    return runtimes


def model_facts(runtime, x, outputs, latency, memory=False):
    """The `ModelFacts` of a model, timed on the first example if `latency`, its memory measured if `memory`."""
    one = own_inputs(runtime, example_rows(x, slice(1)))
    milliseconds = runtime.latency_ms(one) if latency else None
    growth = runtime.peak_memory_bytes(one) if memory else None
    return ModelFacts(runtime.parameters, runtime.size_bytes, milliseconds, outputs, peak_memory_bytes=growth)


def example_rows(x, which):
    """The rows `which` (a slice or a bool per row) of `x`, an array or a dict of arrays."""
    return {name: array[which] for name, array in x.items()} if isinstance(x, dict) else x[which]


def own_inputs(runtime, x):
    """The entries of a dict `x` that have the names of the model's inputs; an array of texts as the model takes it."""
    specs = runtime.specs() or {}
    if isinstance(x, dict):
        return own_entries(x, {name: name for name in specs}) or x
    if len(specs) == 1 and x.ndim == 1 and x.dtype.kind in "OSU":
        return _texts_for(x, *specs.values())
    return x


def _texts_for(texts, spec):
    if spec.shape.rank == 2 and spec.dtype == tf.string and spec.shape[1] == 1:
        return texts[:, None]
    if spec.shape.rank == 2 and spec.dtype == tf.uint8 and spec.shape[1] is not None:
        return ByteEncoder(spec.shape[1])(texts.tolist()).numpy()
    return texts


def _predict(runtimes, x, y, labels, teacher, batch_size, class_names):
    """Return {model name: Predictions} and the number of classes. The teacher is first: others are compared with it."""
    order = sorted(runtimes, key=lambda name: name != teacher)
    classes, teacher_outputs, predictions = None, None, {}
    for name in order:
        with errors_naming(name):
            outputs = runtimes[name].predict(own_inputs(runtimes[name], x), batch_size=batch_size)
        if isinstance(outputs, dict) and set(outputs) == set(ANSWERS):  # of a file exported with labels
            _check_answered_labels(outputs, name, class_names)
            outputs = outputs[LOGITS]
        checked_outputs(outputs, name, len(y))
        if classes is None:
            classes = outputs.shape[1]
            _check_class_names(class_names, classes)
            check_classes(y, labels, classes)
            teacher_outputs = outputs if teacher is not None else None
        elif outputs.shape[1] != classes:
            raise ValueError(
                f"models must have the same classes, but models[{order[0]!r}] gives {classes} "
                f"and models[{name!r}] gives {outputs.shape[1]}."
            )
        predictions[name] = predictions_from(outputs, teacher_outputs)
    return predictions, classes


@contextlib.contextmanager
def errors_naming(name, argument="models"):
    """Name the model that an error came from."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This came from {argument}[{name!r}].")
        raise


def _check_models(models, teacher, argument):
    if not isinstance(models, dict):
        values = "model or path" if argument == "models" else "outputs or function"
        raise TypeError(f"{argument} must be a dict of name to {values}, got {type(models).__name__}.")
    if not models:
        raise ValueError(f"{argument} must hold at least one {argument.removesuffix('s')}, got an empty dict.")
    for name in models:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must have strings for names, got {name!r}.")
    if teacher is not None and teacher != DEFAULT_TEACHER and teacher not in models:
        raise ValueError(f"teacher must be one of the {argument}, {list(models)}, or None, got {teacher!r}.")


def checked_groups(groups, rows_by_language):
    """Return {group: tuple of languages}, all of which occur."""
    groups = {str(group): tuple(members) for group, members in (groups or {}).items()}
    for group, members in groups.items():
        unknown = [member for member in members if member not in rows_by_language]
        if unknown or not members:
            wrong = f"{unknown} does not occur among the languages of labelled examples" if unknown else "it is empty"
            raise ValueError(f"groups[{group!r}] must list languages, out of {list(rows_by_language)}; {wrong}.")
    rows = result_rows(rows_by_language, groups)
    twice = {row for row in rows if rows.count(row) > 1}
    if twice:
        raise ValueError(f"languages must not be called {sorted(twice)}: the tables use that for other rows.")
    return groups


def _names(class_names):
    """A tuple of str, or None."""
    if class_names is None or isinstance(class_names, str):
        return class_names and (class_names,)
    return tuple(map(str, class_names))


def _check_class_names(names, classes):
    if names is not None and (len(names) != classes or len(set(names)) != classes):
        raise ValueError(
            f"class_names must be {classes} different names, one per class the models give, got {len(names)}: {names}."
        )


def _check_answered_labels(answers, name, class_names):
    """Raise ValueError where a model calls a class otherwise than `class_names` do, if there are any."""
    class_names = class_names or ()
    classes, first = np.unique(answers[LOGITS].argmax(axis=1), return_index=True)
    for index, row in zip(classes, first, strict=True):
        label = answers[LABEL][row].decode("utf-8")
        if index < len(class_names) and label != class_names[index]:
            raise ValueError(
                f"class_names must be in the order of the models' outputs, but models[{name!r}] calls class {index} "
                f"{label!r}, and class_names {class_names[index]!r}: {class_names}."
            )
