"""What is visibly wrong with the data, or with loss and student together, before the first step."""

import collections.abc
import inspect
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import functional_graph, loss_argument, loss_function, sparse_label_options
from keras_kd.losses.keras_losses import expected_ending
from keras_kd.outputs.endings import ending_kind, output_activations
from keras_kd.outputs.model_inputs import input_names
from keras_kd.outputs.reader import by_output

UNLABELLED = "For unlabelled examples use -1 and SparseCategoricalCrossentropy(ignore_class=-1)."


def require_usable(distiller, x, y, arguments):
    """Raise for `arguments` of `fit` or `evaluate`, by name, that Keras would drop, misread or fail on late."""
    _require_examples(x)
    _require_inputs(distiller.student, x)
    _require_weighable(x, y, arguments)
    _require_numeric_labels(x, y)
    _require_labels_in_range(distiller, y)
    for callback in keras.tree.flatten(arguments.get("callbacks")):
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_weights_only:
            require_keras_file(callback.filepath)


def require_keras_file(filepath):
    """Raise ValueError for a file name under which a distiller cannot be saved and loaded again."""
    if str(filepath).endswith((".h5", ".hdf5")):
        raise ValueError(
            f"filepath must end in .keras, got {str(filepath)!r}: the HDF5 format cannot hold a distiller. For weights "
            "alone, use save_weights (ModelCheckpoint(save_weights_only=True)) with a name that ends in .weights.h5."
        )


def _require_examples(x):
    """Raise ValueError if `x` is known to hold nothing."""
    if isinstance(x, tf.data.Dataset):
        counts = [int(x.cardinality())]
    else:
        arrays = [leaf for leaf in keras.tree.flatten(x) if isinstance(leaf, (np.ndarray, tf.Tensor))]
        counts = [array.shape[0] for array in arrays if array.shape]
    if 0 in counts:
        raise ValueError("x is an empty dataset: it holds no example. Check its source, filters and batch size.")


def _require_inputs(student, x):
    """Raise ValueError if `x` is a list that holds other arrays than the student's inputs, a list of batches mostly."""
    names = input_names(student)
    if not isinstance(x, (list, tuple)) or names is None:
        return
    inputs, arrays = len(keras.tree.flatten(names)), len(keras.tree.flatten(x))
    if arrays != inputs or (any(map(keras.tree.is_nested, x)) and not any(map(keras.tree.is_nested, names))):
        raise ValueError(
            f"x must hold an array for each of the student's {inputs} inputs, got a {type(x).__name__} of {len(x)} "
            f"parts with {arrays} arrays. Batches (x, y) come in a tf.data.Dataset or keras.utils.PyDataset, not in a "
            "list; labels are the argument y."
        )


def _require_weighable(x, y, arguments):
    """Raise ValueError for weights without labels, which Keras drops."""
    given = [name for name in ("sample_weight", "class_weight") if arguments.get(name) is not None]
    brings_labels = isinstance(x, (tf.data.Dataset, keras.utils.PyDataset, collections.abc.Iterator))
    if given and y is None and not brings_labels:
        raise ValueError(
            f"{given[0]} needs y, got y=None: Keras drops weights that come without labels. {UNLABELLED} If compiled "
            "with loss=None, give any y."
        )


def _require_numeric_labels(x, y):
    """Raise TypeError for labels that are strings, or hold None."""
    if isinstance(x, tf.data.Dataset):
        spec = x.element_spec
        y = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    for labels in [] if y is None else keras.tree.flatten(y):
        dtype = getattr(labels, "dtype", None)
        if dtype == tf.string or (isinstance(labels, np.ndarray) and dtype.kind in "OUS"):
            raise TypeError(
                f"y must hold numbers, got {dtype}. Encode labels as integers from 0, for instance with "
                f"keras.layers.StringLookup or np.unique(y, return_inverse=True). {UNLABELLED}"
            )


def require_teacher_apart(distiller):
    """Raise ValueError if training the student would train the teacher as well."""
    if distiller.teacher is None or distiller.teacher is distiller.student:
        return
    teacher_ids = {id(variable) for variable in distiller.teacher.variables}
    shared = [variable.path for variable in distiller.student.trainable_variables if id(variable) in teacher_ids]
    if shared:
        raise ValueError(
            f"teacher and student share {len(shared)} trainable weights ({shared[0]!r}, ...): training would change "
            "both. Give the student layers of its own (keras.models.clone_model), or freeze these."
        )


def sparse_targets(distiller, y, prediction):
    """`(labels, classes, ignore_class or None)` of each of the student's outputs that learns from integer labels."""
    losses, labels = (by_output(part, prediction, distiller.output_names) for part in (loss_argument(distiller), y))
    for loss, label, output in zip(losses, labels, keras.tree.flatten(prediction), strict=True):
        is_sparse, ignore_class = sparse_label_options(loss)
        if is_sparse and label is not None:
            yield label, output.shape[-1], ignore_class


def _require_labels_in_range(distiller, y):
    """Raise ValueError if labels in arrays are no classes of the student; datasets are checked batch by batch."""
    graph = functional_graph(distiller.student)
    for labels, classes, ignore_class in [] if graph is None else sparse_targets(distiller, y, graph.output):
        values = np.unique(labels) if isinstance(labels, np.ndarray) else np.array([])
        is_class = (values >= 0) & (values < classes) & (values == np.floor(values))
        wrong = values[~is_class & (values != ignore_class)]
        if wrong.size:
            raise ValueError(
                f"y holds labels outside the student's {classes} classes: {wrong[:5].tolist()}; labels are integers "
                f"from 0 to {classes - 1}. {UNLABELLED}"
            )


def require_distinct_metrics(distiller, *metrics):
    """Raise ValueError if a metric of `compile` has the name of a value that the distiller logs itself."""
    losses = ["hard_loss", *(loss.name for loss in distiller.distillation_losses)]
    logged = {"loss", *losses, *distiller.hyperparameters}
    if distiller.balance is not None:
        logged |= {f"{name}_balance" for name in losses}
    for metric in keras.tree.flatten(metrics):
        name = metric if isinstance(metric, str) else getattr(metric, "name", getattr(metric, "__name__", None))
        names = {name, *(f"{output}_{name}" for output in distiller.output_names or [])}
        taken = sorted(names & logged) if name else []
        if taken:
            raise ValueError(
                f"metrics has one called {taken[0]!r}, under which the distiller already logs a loss or "
                f"hyperparameter; its own names are {sorted(logged)}. Give the metric or the loss another name=."
            )


def warn_of_mistaken_logits(distiller):
    """Warn if a compiled loss takes the student's probabilities for logits, or its logits for probabilities."""
    graph = functional_graph(distiller.student)
    if graph is None:
        return
    losses = by_output(loss_argument(distiller), graph.output, distiller.output_names)
    names = distiller.output_names or range(len(losses))
    for name, loss, activation in zip(names, losses, output_activations(graph), strict=True):
        expected, given = expected_ending(loss), ending_kind(activation)
        if None in (expected, given) or expected == given:
            continue
        function, options = loss_function(loss)
        way_out = f"End the student in {'a linear layer' if expected == 'logits' else 'softmax or sigmoid'}"
        if "from_logits" in options or "from_logits" in inspect.signature(function).parameters:
            class_name = "".join(part.title() for part in function.__name__.split("_"))
            way_out = f"Compile with loss=keras.losses.{class_name}(from_logits={given == 'logits'})"
        warnings.warn(
            f"the student ends in {activation}, so it gives {given} (output {name!r}), but the loss expects "
            f"{expected}. {way_out}.",
            stacklevel=3,
        )
