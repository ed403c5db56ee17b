"""What can be seen to be wrong with the data, or with loss and student together, before the first step."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import functional_graph, loss_argument, loss_function, sparse_label_options
from keras_kd.outputs.reader import by_output, output_activations


def require_batches(x):
    """Raise ValueError if `x` is known to hold nothing."""
    is_dataset = isinstance(x, tf.data.Dataset)
    leaves = [] if is_dataset else [leaf for leaf in keras.tree.flatten(x) if isinstance(leaf, (np.ndarray, tf.Tensor))]
    if (is_dataset and int(x.cardinality()) == 0) or any(leaf.shape[0] == 0 for leaf in leaves if leaf.shape):
        raise ValueError("x is an empty dataset: it holds no example. Check its source, filters and batch size.")


def require_teacher_apart(distiller):
    """Raise ValueError if training the student would train the teacher as well."""
    if distiller.teacher is None or distiller.teacher is distiller.student:
        return
    of_teacher = {id(variable) for variable in distiller.teacher.variables}
    shared = [variable.path for variable in distiller.student.trainable_variables if id(variable) in of_teacher]
    if shared:
        raise ValueError(
            f"teacher and student share {len(shared)} trainable weights ({shared[0]!r}, ...): training the student "
            "would change the teacher. Give the student layers of its own (keras.models.clone_model), or freeze the "
            "shared ones: layer.trainable = False."
        )


class SparseTarget(NamedTuple):
    """An output of the student that learns from integer labels."""

    labels: object
    classes: int
    ignore_class: int | None


def sparse_targets(distiller, y, prediction):
    """A `SparseTarget` for each of the student's outputs that learns from integer labels."""
    losses, labels = (by_output(part, prediction, distiller.output_names) for part in (loss_argument(distiller), y))
    for loss, label, output in zip(losses, labels, keras.tree.flatten(prediction), strict=True):
        is_sparse, ignore_class = sparse_label_options(loss)
        if is_sparse and label is not None:
            yield SparseTarget(label, output.shape[-1], ignore_class)


def require_labels_in_range(distiller, y):
    """Raise ValueError if labels in arrays lie outside the student's classes; datasets are checked batch by batch."""
    graph = functional_graph(distiller.student)
    targets = [] if graph is None else sparse_targets(distiller, y, graph.output)
    for labels, classes, ignore_class in targets:
        values = np.unique(labels) if isinstance(labels, np.ndarray) else np.array([])
        wrong = values[~((values >= 0) & (values < classes)) & (values != ignore_class)]
        if wrong.size:
            raise ValueError(
                f"y holds labels outside the student's {classes} classes: {wrong[:5].tolist()}; labels are integers "
                f"from 0 to {classes - 1}. For unlabelled examples use -1 and "
                "SparseCategoricalCrossentropy(ignore_class=-1)."
            )


def warn_of_mistaken_logits(distiller):
    """Warn if a compiled loss takes the student's probabilities for logits, or its logits for probabilities."""
    graph = functional_graph(distiller.student)
    if graph is None:
        return
    losses = by_output(loss_argument(distiller), graph.output, distiller.output_names)
    names = distiller.output_names or range(len(losses))
    for name, loss, activation in zip(names, losses, output_activations(graph), strict=True):
        function, options = loss_function(loss)
        crossentropy = next((known for known in _CROSSENTROPIES if known is function), None)
        from_logits = options.get("from_logits", False)
        expected = {"linear": True, "softmax": False}.get(activation, from_logits)
        if crossentropy is None or from_logits == expected:
            continue
        given, wanted = ("probabilities", "logits") if from_logits else ("logits", "probabilities")
        warnings.warn(
            f"the student ends in {activation}, so it gives {given} (output {name!r}), but the loss expects {wanted}. "
            f"Compile with loss=keras.losses.{_CROSSENTROPIES[crossentropy]}(from_logits={expected}).",
            stacklevel=3,
        )


_CROSSENTROPIES = {
    keras.losses.sparse_categorical_crossentropy: "SparseCategoricalCrossentropy",
    keras.losses.categorical_crossentropy: "CategoricalCrossentropy",
}
