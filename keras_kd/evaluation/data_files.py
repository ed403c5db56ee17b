"""Test data from one file, as `evaluate` takes them: texts from CSV, TSV or JSONL, arrays from .npz."""

import os
import pathlib
import typing

import numpy as np

from keras_kd._files import naming_damaged_file

TEXT, LABEL, LANGUAGE = "text", "label", "language"  # columns, and arrays


class EvaluationData(typing.NamedTuple):
    """What `evaluate` takes."""

    x: object  # texts, (examples,), or a dict of arrays
    y: np.ndarray  # integer labels, (examples,), below 0 for unlabelled examples
    languages: list[str] | None
    class_names: tuple[str, ...] | None  # None where the file and the caller name none


def read_data_file(path, *, labels=None, language=None):
    """Read the examples of a file.

    Args:
        path: a .csv, .tsv or .jsonl file (also packed as .gz) with the columns "text" and "label", as
            `keras_kd.datasets.from_files` reads it; or an .npz file with the arrays "label" and, if known, "language",
            and one for each input of the models, of its name.
        labels: the classes, in the order of the models' outputs. None: the names in the file, sorted; numbers are
            indices.
        language: the column with the language, or the code of the language of all, such as "de". None: "language".

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: a file of another kind, a damaged one, a broken row, missing columns or arrays, no label.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data must be a .csv, .tsv, .jsonl or .npz file; none is at {os.fspath(path)!r}.")
    return (_read_arrays if path.suffix == ".npz" else _read_texts)(path, labels, language)


def _read_texts(path, labels, language):
    from keras_kd.datasets import from_files  # which imports TensorFlow Datasets

    datasets = from_files({"test": path}, class_names=labels, language=language)
    dataset = datasets["test"]
    x, y = next(dataset.batch(len(dataset)).as_numpy_iterator())
    counted = labels is None and all(name.isdigit() for name in datasets.class_names)
    languages = [name.decode("utf-8") for name in x[LANGUAGE]]
    return _labelled(path, EvaluationData(x[TEXT], y, languages, None if counted else datasets.class_names))


def _read_arrays(path, labels, language):
    with naming_damaged_file(path, Exception), path.open("rb") as file, np.load(file) as content:
        arrays = dict(content)
    if LABEL not in arrays or len(arrays) < 2 or arrays[LABEL].ndim != 1 or arrays[LABEL].dtype.kind not in "iu":
        shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
        raise ValueError(
            f"{os.fspath(path)!r} must hold {LABEL!r}, an integer for each example, and an array for each input of the "
            f"models, named after it, got {shapes}."
        )
    y = arrays.pop(LABEL)
    column = LANGUAGE if language is None else language
    languages = arrays[column].tolist() if column in arrays else None if language is None else [language] * len(y)
    return _labelled(path, EvaluationData(arrays, y, languages, labels))


def _labelled(path, data):
    if not (data.y >= 0).any():
        raise ValueError(f"{os.fspath(path)!r} must hold at least one labelled example, got {len(data.y)} without.")
    return data
