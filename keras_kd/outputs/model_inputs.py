"""The inputs of a model: their names, shapes and dtypes."""

import keyword
import re

import keras
import tensorflow as tf

from keras_kd._keras_private import functional_graph

ONLY_INPUT = "inputs"  # the name of a single input that has none

_COUNTED_NAME = re.compile(r"(keras_tensor|input_layer)(_\d+)?")  # Keras's own; the number differs by process


def input_names(model):
    """Return the structure of inputs that a functional or built sequential model takes, with a name for each.

    The names are the dict's keys where the model takes a dict, else the names of the `keras.Input`s. Inputs without a
    name of their own are called "inputs" if there is one, "input_0", "input_1", … by position if there are several.
    None for any other model.
    """
    graph = functional_graph(model)
    if graph is None:
        return None
    if isinstance(graph.input, dict) and not any(map(keras.tree.is_nested, graph.input.values())):
        return {key: key for key in graph.input}
    names = {}
    for position, tensor in enumerate(graph.inputs):
        counted = _COUNTED_NAME.fullmatch(tensor.name)
        numbered = ONLY_INPUT if len(graph.inputs) == 1 else f"input_{position}"
        names[id(tensor)] = numbered if counted else tensor.name
    return keras.tree.map_structure(lambda tensor: names[id(tensor)], graph.input)


def own_entries(x, names):
    """Of a dict `x`, the entries of these names, in the structure of `names`; None where one is missing."""
    if not isinstance(x, dict) or not set(keras.tree.flatten(names)) <= set(x):
        return None
    return keras.tree.map_structure(lambda name: x[name], names)


def input_specs(model):
    """Return {input name: tf.TensorSpec} of a functional or built sequential model, None for any other model."""
    names = input_names(model)
    if names is None:
        return None
    names, tensors = keras.tree.flatten(names), keras.tree.flatten(functional_graph(model).input)
    return {name: any_batch(tensor.shape, tensor.dtype) for name, tensor in zip(names, tensors, strict=True)}


def specs_of(inputs):
    """Return {input name: tf.TensorSpec} of {input name: array}, for any number of examples."""
    return {name: any_batch(array.shape, array.dtype) for name, array in inputs.items()}


def any_batch(shape, dtype):
    """Return the `tf.TensorSpec` of an input (examples, ...), for any number of examples."""
    return tf.TensorSpec((None, *shape[1:]), dtype)


def is_input_name(name):
    """Whether TensorFlow keeps this name for an input, or would change or refuse it."""
    return isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
