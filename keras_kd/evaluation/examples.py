"""The examples that every model is measured on: read once, in order, and checked."""

import numpy as np
import tensorflow as tf
from keras import ops

from keras_kd.deploy.example_inputs import read_dataset
from keras_kd.losses.base import class_labels


def read_examples(data):
    """Return `(x, y)` as NumPy arrays (`x` may be a dict of them) from arrays or from a batched `tf.data.Dataset`."""
    if isinstance(data, tf.data.Dataset):
        spec = data.element_spec
        pairs = isinstance(spec, tuple) and len(spec) in (2, 3)
        if not pairs or isinstance(spec[0], tuple) or isinstance(spec[1], (tuple, dict)):
            raise TypeError(
                "data must be a dataset of (x, y) or (x, y, weight), x a tensor or a dict of them, y a tensor, got "
                f"elements of {spec}."
            )
        x, y = read_dataset(data, "data", lambda batch: batch[:2])
    elif isinstance(data, (tuple, list)) and len(data) in (2, 3):
        x, y = data[:2]
        x = {name: _array(part, name) for name, part in x.items()} if isinstance(x, dict) else _array(x, "x")
        y = _array(y, "y")
    else:
        raise TypeError(
            "data must be a tuple (x, y) of arrays or a batched tf.data.Dataset of (x, y) or (x, y, weight), "
            f"got {type(data).__name__}."
        )
    for name, array in x.items() if isinstance(x, dict) else [("x", x)]:
        if array.ndim == 0 or y.ndim == 0:
            raise ValueError(f"data must hold arrays with one row per example, got a scalar in {name} or y.")
        if len(array) != len(y):
            raise ValueError(
                f"data: {name} has {len(array)} examples, y has {len(y)}; both need the same number. "
                "(Several inputs go into a dict, {input name: array}.)"
            )
    if len(y) == 0:
        raise ValueError("data must hold at least one example, got none.")
    return x, y


def input_rows(x, argument):
    """Return an array or a dict of arrays as NumPy arrays, and their number of rows, which is the same for all."""
    x = {name: _array(part, name) for name, part in x.items()} if isinstance(x, dict) else _array(x, argument)
    sizes = {array.shape[:1] for array in (x.values() if isinstance(x, dict) else [x])}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"{argument} must be an array, or a dict of arrays, with a row for each text, one or more, got "
            f"{sorted(sizes)} rows."
        )
    return x, sizes.pop()[0]


def class_indices(y):
    """Integer labels or one-hot rows, see `evaluate`, as integers (examples,), below 0 for unlabelled examples."""
    if y.dtype.kind not in "iubf":
        raise TypeError(f"data: y must be integer labels or one-hot rows, got dtype {y.dtype}.")
    if y.ndim > 2 or y.shape[1:] == (0,):
        raise ValueError(f"data: y must be integer labels, (examples,), or one-hot rows, got shape {y.shape}.")
    if y.ndim == 1 or y.shape[1] == 1:
        with np.errstate(invalid="ignore"):  # NaN and infinity become numbers that they are not equal to
            labels = y.reshape(-1).astype(np.int64)
        if not np.array_equal(y.reshape(-1), labels):
            raise ValueError("data: y must hold whole numbers (class indices), got fractions, huge numbers or NaN.")
    else:
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) <= 1).all()):
            raise ValueError(
                f"data: y of shape {y.shape} must be one-hot: a single 1 in each row, 0 elsewhere; only 0 for an "
                "unlabelled example. For soft labels, pass numpy.argmax(y, axis=1)."
            )
        labels = ops.convert_to_numpy(class_labels(y, y)).astype(np.int64)
    if (labels < 0).all():
        raise ValueError(f"data must hold at least one labelled example, got {len(labels)} without a label.")
    return labels


def check_classes(y, labels, classes):
    """Raise ValueError unless one-hot rows `y` have `classes` columns, or all `labels` are below `classes`."""
    if y.ndim == 2 and y.shape[1] not in (1, classes):
        raise ValueError(
            f"data: y must be integer labels, (examples,), or one-hot, (examples, {classes}), got shape {y.shape}."
        )
    if labels.max() >= classes:
        raise ValueError(
            f"data: labels must lie in 0 … {classes - 1}, for the models give {classes} classes; "
            f"got {labels.max()} (smallest {labels.min()}, largest {labels.max()})."
        )


def language_rows(languages, labelled):
    """Return {language: row numbers among the labelled examples}, sorted by name, without languages that have none."""
    if languages is None:
        return {}
    if isinstance(languages, str):
        raise TypeError(f"languages must hold one string per example, got the single string {languages!r}.")
    names = [_text(name) for name in languages]
    if len(names) != len(labelled):
        raise ValueError(
            f"languages has {len(names)} entries, data has {len(labelled)} examples; give one per example."
        )
    distinct, number = np.unique(np.array(names)[labelled], return_inverse=True)
    return {str(name): np.flatnonzero(number == i) for i, name in enumerate(distinct)}


def _text(name):
    """A language name as str; TensorFlow and NumPy hand strings over as bytes and `numpy.str_`."""
    name = name.numpy() if isinstance(name, tf.Tensor) else name
    if isinstance(name, bytes):
        return name.decode("utf-8")
    if not isinstance(name, str):
        raise TypeError(f"languages must hold strings, got {type(name).__name__}: {name!r}.")
    return str(name)


def _array(values, name):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"data: {name} must be an array, got rows of different shapes; pad them first.") from error
