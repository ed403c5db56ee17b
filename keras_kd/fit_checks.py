"""What can be seen to be wrong with the data, or with loss and student together, before the first step."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import functional_graph, loss_argument, loss_function, sparse_label_options
from keras_kd.signals import output_activations


def require_batches(x):
    """Raise ValueError if `x` is known to hold nothing."""
    is_dataset = isinstance(x, tf.data.Dataset)
    leaves = [] if is_dataset else [leaf for leaf in keras.tree.flatten(x) if isinstance(leaf, (np.ndarray, tf.Tensor))]
    if (is_dataset and int(x.cardinality()) == 0) or any(leaf.shape[0] == 0 for leaf in leaves if leaf.shape):
        raise ValueError("x is an empty dataset: it holds no example. Check its source, filters and batch size.")


def require_labels_in_range(distiller, y):
    """Raise ValueError if integer labels in an array lie outside the student's classes; datasets are checked by batch."""
    is_sparse, ignore_class = sparse_label_options(loss_argument(distiller))
    graph = functional_graph(distiller.student)
    if not is_sparse or not isinstance(y, np.ndarray) or graph is None or keras.tree.is_nested(graph.output):
        return
    classes = graph.output.shape[-1]
    labels = np.unique(y)
    wrong = labels[~((labels >= 0) & (labels < classes)) & (labels != ignore_class)]
    if wrong.size:
        raise ValueError(
            f"y holds labels outside the student's {classes} classes: {wrong[:5].tolist()}; labels are integers from 0 "
            f"to {classes - 1}. For unlabelled examples use -1 and SparseCategoricalCrossentropy(ignore_class=-1)."
        )


def warn_of_mistaken_logits(distiller):
    """Warn if the compiled loss takes the student's probabilities for logits, or its logits for probabilities."""
    function, options = loss_function(loss_argument(distiller))
    activations = output_activations(distiller.student)
    name = next((name for known, name in _CROSSENTROPIES if known is function), None)
    if name is None or len(activations) != 1:
        return
    from_logits = options.get("from_logits", False)
    expected = {"linear": True, "softmax": False}.get(activations[0], from_logits)
    if from_logits != expected:
        given, wanted = ("probabilities", "logits") if from_logits else ("logits", "probabilities")
        warnings.warn(
            f"the student ends in {activations[0]}, so it gives {given}, but the loss expects {wanted}. Compile with "
            f"loss=keras.losses.{name}(from_logits={expected}).",
            stacklevel=4,
        )


_CROSSENTROPIES = (
    (keras.losses.sparse_categorical_crossentropy, "SparseCategoricalCrossentropy"),
    (keras.losses.categorical_crossentropy, "CategoricalCrossentropy"),
)
