"""The card beside an exported file: what it is, how it was trained and measured, how it is run; also as JSON."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess

import keras
import tensorflow as tf
from rich.filesize import decimal

from keras_kd._checks import require_distiller
from keras_kd._files import written_whole
from keras_kd._hyperparameters import scalar_value
from keras_kd._version import __version__
from keras_kd.deploy.formats import model_hash
from keras_kd.deploy.run_lines import run_lines

CARD, METADATA = ".card.md", ".metadata.json"  # after the name of the file
_FORMAT = "keras_kd card/1"


def write_card(path, *, distiller=None, evaluation=None, model=None, details=None):
    """Add to the card of an exported file how the student was trained and how the file scores.

    `keras_kd.export` writes beside each file, say `student.tflite`, a page for people, `student.tflite.card.md`, and
    the same facts for programs, `student.tflite.metadata.json`: size and SHA-256, inputs and outputs, labels and
    tokenizer, how the file's answers differ from the student's, latency, versions, commit, and the lines that run it.
    What is given here is added; what was added before stays.

    Args:
        path: The exported file or folder.
        distiller: The `keras_kd.Distiller` whose student was exported: its teacher, losses, λ, temperatures, weights
            and optimizer.
        evaluation: What `keras_kd.evaluate` or `evaluate_embeddings` found for the file.
        model: The file's name among the models of `evaluation`.
        details: {str: str, number or list of these}: whatever else a reader should know: data, seed, license, limits.

    Returns:
        The path of the page.

    Raises:
        TypeError: An argument of another type.
        ValueError: Nothing that `export` wrote is at `path`, or the file has changed since; `model` is not among the
            evaluation's; `details` that JSON does not hold.

    Example:

    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> report = keras_kd.export(student, "student.tflite")
    >>> page = keras_kd.deploy.write_card("student.tflite", details={"data": "SIB-200", "seed": 0})
    >>> "SIB-200" in page.read_text("utf-8")
    True

    Source: Mitchell et al. 2019, "Model Cards for Model Reporting", https://arxiv.org/abs/1810.03993.
    """
    path = pathlib.Path(path)
    metadata = _read_metadata(path)
    if distiller is not None:
        metadata["training"] = _training(require_distiller(distiller, "write_card"))
    if evaluation is not None:
        metadata["scores"] = _scores(evaluation, model)
    if details is not None:
        metadata["details"] = {**metadata.get("details", {}), **_checked_details(details)}
    with written_whole(beside(path, METADATA)) as data, written_whole(beside(path, CARD)) as page:
        write_files(metadata, page, data)
    return beside(path, CARD)


def beside(path, ending):
    """The path of the card or of the metadata of an exported file."""
    return path.with_name(path.name + ending)


def export_metadata(report, written, specs, outputs, student, tokenizer, labels):
    """What is known when a file is exported; `written` is where it lies, `outputs` an example of its answers."""
    return {
        "format": _FORMAT,
        "file": pathlib.Path(report.path).name,
        "kind": report.kind,
        "size_bytes": report.size_bytes,
        "sha256": model_hash(written),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "student": {"name": student.name, "parameters": student.count_params()},
        "inputs": {name: {"shape": [None, *spec.shape[1:]], "dtype": spec.dtype.name} for name, spec in specs.items()},
        "outputs": {
            name: {"shape": [None, *array.shape[1:]], "dtype": "string" if array.dtype == object else "float32"}
            for name, array in outputs.items()
        },
        "labels": None if labels is None else list(labels),
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer),
        "comparison": {
            "examples": report.examples,
            "generated": report.generated,
            "agreement": report.agreement,
            "cosine": report.cosine,
            "mean_difference": report.mean_difference,
            "max_difference": report.max_difference,
        },
        "latency_ms": report.latency_ms,
        "latency_p99_ms": report.latency_p99_ms,
        "peak_memory_bytes": report.peak_memory_bytes,
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "keras_kd": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
    }


def write_files(metadata, page, data):
    """Write the page and the JSON."""
    data.write_text(json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
    page.write_text(_page(metadata), "utf-8")


# Facts ----------------------------------------------------------------------------------------------------------------


def _read_metadata(path):
    file = beside(path, METADATA)
    if not path.exists() or not file.is_file():
        raise ValueError(
            f"path must be what keras_kd.export wrote, with {file.name} beside it, got {os.fspath(path)!r}."
        )
    try:
        metadata = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(file)!r} is damaged; export the student again.") from error
    if metadata.get("format") != _FORMAT or metadata["sha256"] != model_hash(path):
        raise ValueError(
            f"{file.name} must describe {os.fspath(path)!r} as it is, but the file has changed since it was exported; "
            "export the student again."
        )
    return metadata


def _tokenizer(tokenizer):
    """The class of a tokenizer and its short settings: no vocabulary."""
    config = tokenizer.get_config() if isinstance(tokenizer, keras.layers.Layer) else {}
    settings = {key: value for key, value in config.items() if isinstance(value, (bool, int, float)) or key == "prefix"}
    return {"class": getattr(tokenizer, "__name__", type(tokenizer).__name__), **settings}


def _commit():
    """The commit of the working directory, or None where that is no git repository."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _training(distiller):
    teacher, optimizer = distiller.teacher, distiller.optimizer if distiller.compiled else None
    numbers = {name: float(scalar_value(variable)) for name, variable in distiller.hyperparameters.items()}
    return {
        "teacher": None if teacher is None else {"name": teacher.name, "parameters": teacher.count_params()},
        "losses": [type(loss).__name__ for loss in distiller.distillation_losses],
        "hyperparameters": numbers,
        "optimizer": optimizer and type(optimizer).__name__,
        "learning_rate": optimizer and float(optimizer.learning_rate),
        "steps": optimizer and int(optimizer.iterations),
    }


def _scores(evaluation, model):
    if model not in evaluation.models:
        raise ValueError(
            f"model must be the file's name in the evaluation, one of {list(evaluation.models)}, got {model!r}."
        )
    shown = [model] if evaluation.teacher in (None, model) else [evaluation.teacher, model]
    rows = [
        {"model": name, "language": row, "metric": metric, **estimate._asdict()}
        for (name, row, metric), estimate in evaluation.scores.items()
        if name in shown
    ]
    return {"model": model, "teacher": evaluation.teacher, "main_metric": evaluation.main_metric, "rows": rows}


def _checked_details(details):
    if not isinstance(details, dict) or not all(isinstance(key, str) for key in details):
        raise TypeError(f"details must be a dict with str for keys, got {details!r:.200}.")
    try:
        return json.loads(json.dumps(details, allow_nan=False, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"details must hold what JSON holds, strings, numbers and lists of them: {error}.") from error


# The page -------------------------------------------------------------------------------------------------------------


def _page(metadata):
    comparison = metadata["comparison"]
    facts = {
        "file": f"{metadata['kind']}, {metadata['size_bytes']:,} bytes",
        "SHA-256": f"`{metadata['sha256']}`",
        "student": f"{metadata['student']['name']}, {metadata['student']['parameters']:,} parameters",
        **{f"input `{name}`": _shape(spec) for name, spec in metadata["inputs"].items()},
        **{f"output `{name}`": _shape(spec) for name, spec in metadata["outputs"].items()},
        "labels": metadata["labels"] and ", ".join(metadata["labels"]),
        "tokenizer": metadata["tokenizer"] and _listed(metadata["tokenizer"]),
        "latency": _latency(metadata),
        "peak memory": _memory(metadata.get("peak_memory_bytes")),
        "created": f"{metadata['created']}" + (f", commit `{metadata['commit']}`" if metadata["commit"] else ""),
        "versions": _listed(metadata["versions"]),
    }
    compared = {
        "examples": f"{comparison['examples']:,}" + (", made up from the inputs" if comparison["generated"] else ""),
        "agreement": _percent(comparison["agreement"]),
        "mean cosine": comparison["cosine"] and f"{comparison['cosine']:.4f}",
        "largest difference": f"{comparison['max_difference']:.3g}",
        "mean difference": f"{comparison['mean_difference']:.3g}",
    }
    sections = [
        f"# {metadata['file']}",
        _table(facts),
        "## Run it",
        f"```python\n{_code(metadata)}\n```",
        "## Against the student in Keras",
        _table(compared),
    ]
    if "training" in metadata:
        sections += ["## Training", _table(_training_rows(metadata["training"]))]
    if "scores" in metadata:
        sections += ["## Scores", _score_table(metadata["scores"])]
    if "details" in metadata:
        sections += ["## Details", _table({key: _listed(value) for key, value in metadata["details"].items()})]
    return "\n\n".join(sections) + "\n"


def _code(metadata):
    """Some lines that run the file where keras_kd is not installed."""
    tokenizer = metadata["tokenizer"] or {"class": None}
    takes_strings = any(spec["dtype"] == "string" for spec in metadata["inputs"].values())
    needs_text_operations = takes_strings and tokenizer["class"] != "ByteEncoder"
    examples = {name: _example(spec) for name, spec in metadata["inputs"].items()}
    lines = []
    if tokenizer["class"] == "ByteEncoder" and not takes_strings:
        lines = [f'text = "A text.".encode()[:{tokenizer["length"]}].ljust({tokenizer["length"]}, bytes(1))']
        examples = dict.fromkeys(examples, "np.frombuffer(text, np.uint8)[None]")
    imports, run = run_lines(metadata["file"], examples, needs_text_operations)
    return "\n".join(["import numpy as np", *imports, *lines, *run])


def _example(spec):
    shape = [1, *(16 if size is None else size for size in spec["shape"][1:])]
    if spec["dtype"] == "string":
        text = "A text."
        for _ in shape[1:]:
            text = [text]
        return f"np.array({[text]!r}, dtype=object)"
    return f"np.zeros({tuple(shape)}, {spec['dtype']!r})"


def _latency(metadata):
    median, high = (f"{metadata[key]:.3g} ms" for key in ("latency_ms", "latency_p99_ms"))
    return f"{median} for one example (99th percentile {high}), on {metadata['machine']}"


def _memory(growth):
    return growth and f"{decimal(growth)} above the imported packages, to load the file and run one example on the CPU"


def _shape(spec):
    sizes = ["batch", *("any" if size is None else str(size) for size in spec["shape"][1:])]
    return f"{spec['dtype']}, ({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def _training_rows(training):
    teacher = training["teacher"]
    return {
        "teacher": teacher and f"{teacher['name']}, {teacher['parameters']:,} parameters",
        "losses": ", ".join(training["losses"]) or "none",
        **{name: f"{value:g}" for name, value in training["hyperparameters"].items()},
        "optimizer": training["optimizer"],
        "learning rate at the end": training["learning_rate"] and f"{training['learning_rate']:.3g}",
        "steps": training["steps"] and f"{training['steps']:,}",
    }


def _score_table(scores):
    """The main metric of file and teacher by language, with 95 % intervals."""
    metric = scores["main_metric"]
    models = [name for name in (scores["teacher"], scores["model"]) if name is not None]
    models = list(dict.fromkeys(models))
    cells = {(row["model"], row["language"]): row for row in scores["rows"] if row["metric"] == metric}
    languages = dict.fromkeys(language for _, language in cells)
    lines = [f"{metric}, with 95 % intervals", "", f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for language in languages:
        found = [cells.get((name, language)) for name in models]
        lines.append(f"| {language} | {' | '.join(_estimate(row) if row else '' for row in found)} |")
    return "\n".join(lines)


def _estimate(row):
    if row["low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _table(rows):
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _listed(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(share):
    return None if share is None else f"{100 * share:.2f} %"
