"""The commands `keras-kd evaluate` and `keras-kd compare`."""

import argparse
import pathlib
import sys

import tensorflow as tf

from keras_kd._extras import needs_extra
from keras_kd._quiet import quiet
from keras_kd.evaluation.data_files import read_data_file
from keras_kd.evaluation.examples import language_rows
from keras_kd.evaluation.gate import Gate, Plan
from keras_kd.evaluation.measure import evaluate, measured_metrics
from keras_kd.evaluation.result import Evaluation

MODELS = "a SavedModel folder, or a .tflite, .onnx, .xml (OpenVINO) or .keras file"
DATA = "CSV, TSV or JSONL with the columns text, label, language; or .npz with an array for each input, and label"


def add_commands(commands):
    """Add both to the subparsers of `keras-kd`; the default `run` of each takes options and returns the exit code."""
    alone = commands.add_parser(
        "evaluate",
        help="measure a saved model on the examples of a file, by language",
        description="Measures a model on examples, overall and by language: macro-F1, calibration, size, latency, "
        "memory. Exit status: 0; 2 for bad usage or input.",
    )
    alone.add_argument("models", nargs=1, type=_named_path, metavar="[NAME=]PATH", help=MODELS)
    _add_data(alone)
    alone.set_defaults(run=_run, command="evaluate", teacher=None, against=None)
    alone.set_defaults(fail_under=(), fail_over=(), max_drop=())
    compare = commands.add_parser(
        "compare",
        help="measure saved models on the same examples, by language, and fail where a score is too low",
        description="Measures models on the same examples, overall and by language: macro-F1, calibration, agreement "
        "with the teacher, size, latency, memory. "
        "Exit status: 0; 1 where a score misses its limit; 2 for bad usage or input.",
        epilog="LIMIT is METRIC=NUMBER, of all examples, or LANGUAGE:METRIC=NUMBER. The teacher is not checked.",
    )
    add = compare.add_argument
    add("models", nargs="+", type=_named_path, metavar="[NAME=]PATH", help=f"{MODELS}; the first is the teacher")
    add("--teacher", metavar="NAME", help="the model that the others are compared with, in place of the first")
    _add_data(compare)
    limit = {"type": _limit, "action": "append", "default": [], "metavar": "LIMIT"}
    add("--fail-under", **limit, help="the least that a score may be; repeatable")
    add("--fail-over", **limit, help="the most, for ece and kl, of which less is better; repeatable")
    add("--against", metavar="FILE", help="evaluation.json of an earlier run on the same examples, for --max-drop")
    drop = "how much worse than in --against a score may be, overall and in every language; repeatable"
    add("--max-drop", **limit, help=drop)
    compare.set_defaults(run=_run, command="compare")


def _add_data(command):
    """Add what both have: the examples, how they are measured, and where the results go."""
    add = command.add_argument
    add("--data", required=True, metavar="FILE", help=DATA)
    labels = "the labels in the order of the models' outputs, a,b,c; by default those in the file, sorted"
    add("--labels", type=names, metavar="NAMES", help=labels)
    add("--language", metavar="COLUMN", help="the column with the language, or the code of the language of all: de")
    add("--bootstrap", type=int, default=1000, metavar="N", help="resamples for the intervals (1000); 0 for none")
    add("--no-latency", dest="latency", action="store_false", help="do not time the models")
    add("--no-memory", dest="memory", action="store_false", help="do not run the files in processes of their own")
    add("--output", metavar="FOLDER", help="folder for evaluation.json, scores.csv and report.html")


def names(text):
    """The names in "a, b, c"."""
    return [name.strip() for name in text.split(",")]


def _named_path(text):
    """(name, path): a path that is there may have a "=" in it."""
    name, equals, path = text.partition("=")
    if equals and name and path and not pathlib.Path(text).exists():
        return name, path
    return pathlib.Path(text).name, text


def _limit(text):
    metric, _, number = text.rpartition("=")
    try:
        return metric, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be METRIC=NUMBER or LANGUAGE:METRIC=NUMBER, got {text!r}") from None


def _measured(options):
    """The `Evaluation`, written where that is asked, and what misses its limit."""
    models, teacher = _models(options)
    folder = options.output and pathlib.Path(options.output)
    if folder:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output must be a folder, got the file {options.output!r}.")
        with needs_extra("plot"):
            import matplotlib  # noqa: F401
    gate = Gate(
        fail_under=dict(options.fail_under),
        fail_over=dict(options.fail_over),
        max_drop=dict(options.max_drop),
        against=options.against and Evaluation.from_json(options.against),
    )
    with quiet():  # the first use of devices looks for GPUs
        tf.config.list_logical_devices()
    data = read_data_file(options.data, labels=options.labels, language=options.language)
    labelled = data.y >= 0
    metrics, rows = measured_metrics(teacher, data.class_names or ()), language_rows(data.languages, labelled)
    gate.limits(Plan.of_data(models, teacher, metrics, rows, int(labelled.sum())))  # bad ones, before models run
    evaluation = evaluate(
        models,
        (data.x, data.y),
        languages=data.languages,
        class_names=data.class_names,
        teacher=teacher,
        bootstrap=options.bootstrap,
        latency=options.latency,
        memory=options.memory,
    )
    if folder:
        evaluation.to_json(folder / "evaluation.json")
        evaluation.to_csv(folder / "scores.csv")
        evaluation.to_html(folder / "report.html")
    return evaluation, gate.failures(evaluation)


def _models(options):
    """{name: path}, and the name of the teacher, None for a single model."""
    models = dict(options.models)
    if len(models) < len(options.models):
        raise ValueError(f"models must have different names, got {[name for name, _ in options.models]}: NAME=PATH.")
    teacher = options.teacher or (next(iter(models)) if len(models) > 1 else None)
    if teacher is not None and teacher not in models:
        raise ValueError(f"--teacher must be one of {list(models)}, got {teacher!r}.")
    return models, teacher


def _run(options):
    try:
        evaluation, failures = _measured(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, tf.errors.OpError) as error:
        lines = [f"keras-kd {options.command}: {error}", *getattr(error, "__notes__", ())]
        if "class_names" in lines[0]:
            lines.append("class_names: --labels, in the order of the models' outputs; else those in the file, sorted.")
        print("\n  ".join(lines), file=sys.stderr)
        return 2
    evaluation.print()
    if options.output:
        print(f"Files: {options.output}/evaluation.json, scores.csv, report.html")
    for failure in failures:
        print(f"FAILED {failure}")
    if not failures and (options.fail_under or options.fail_over or options.max_drop):
        print("Every score keeps its limit.")
    return 1 if failures else 0
