"""Reads the outputs of a model, and those of its hooked layers, in one forward pass."""

from typing import NamedTuple

import keras
from keras import ops

from keras_kd._keras_private import call_model, functional_graph, get_mask, set_mask, symbolic_result
from keras_kd.outputs.endings import logits_of, output_activations
from keras_kd.outputs.hooks import LayerCapture, with_padding_mask
from keras_kd.outputs.model_inputs import input_names, own_entries

_PADDING_MASK = "padding_mask"


class ModelOutputs(NamedTuple):
    """The outputs of one batch.

    Attributes:
        prediction: The model's output as the model gives it: a tensor, list or dict.
        layers: The captured intermediate outputs: `{Hook: tensor}`.
        padding_mask: Which tokens of the prediction are no padding, bool `(batch, length)`, where the model took that
            as an input or in its attention and set no Keras mask; else None.
    """

    prediction: object
    layers: dict
    padding_mask: object = None

    def detached(self):
        """The same outputs, through which no gradient flows."""
        return ModelOutputs(*keras.tree.map_structure(_detached, tuple(self)))


class OutputReader:
    """Reads the outputs of a model, and those of its hooked layers, in one forward pass.

    Args:
        model: A built `keras.Model`.
        hooks: The `Hook`s to read.
        role: "teacher" or "student", for error messages.

    Raises:
        ValueError: A layer is unknown (the known ones are listed) or ambiguous, is called more than once or gives
            several tensors. Of a subclassed model the last two show when it is called.
    """

    def __init__(self, model, hooks=(), *, role):
        self.model = model
        self.role = role
        self.hooks = tuple(dict.fromkeys(hooks))
        self._capture = LayerCapture(model, self.hooks, role=role)
        self._activations = output_activations(model)
        self._inputs = input_names(model)
        self._names = output_names(model)
        self._symbolic = self._run_symbolically()

    def __call__(self, inputs, training):
        """Run the model once; return its `ModelOutputs`."""
        inputs = self.own_inputs(inputs)
        return self._captured(lambda: call_model(self.model, inputs, training), inputs)

    def own_inputs(self, x):
        """Of a dict `x`, the entries that have the names of the model's inputs; anything else as it is.

        So one batch serves a teacher and a student that read different things: two encodings of one text, or a sentence
        and its translation. Keras alone would take the entries of a larger dict by their order.
        """
        if not isinstance(x, dict) or self._inputs is None:
            return x
        own, names = own_entries(x, self._inputs), keras.tree.flatten(self._inputs)
        if own is not None:
            return own
        if len(x) > len(names):
            raise ValueError(
                f"x must hold the {self.role}'s inputs {sorted(names)}, got the entries {sorted(x)}. Name the "
                "keras.Input after its entry: keras.Input(shape, name=...)."
            )
        return x  # Keras takes them by position, or names what is missing

    def symbolic(self):
        """The `ModelOutputs` without a batch, as symbolic tensors with static shapes; None for a subclassed model."""
        return self._symbolic

    def _run_symbolically(self):
        graph = functional_graph(self.model)
        if graph is None:
            return None
        if not self.hooks:
            return ModelOutputs(graph.output, {})
        return symbolic_result(lambda inputs: self._captured(lambda: graph(inputs), inputs), graph.input)

    def _captured(self, function, inputs):
        return ModelOutputs(*self._capture.run(function, self._padding_mask(inputs)))

    def _padding_mask(self, inputs):
        """The input called "padding_mask", as in KerasHub's models; None if there is none."""
        names, tensors = keras.tree.flatten(self._inputs), keras.tree.flatten(inputs)
        return dict(zip(names, tensors, strict=False)).get(_PADDING_MASK) if len(names) == len(tensors) else None

    def select(self, outputs, output=None, *, undo=None):
        """The outputs that `output` (name, dict key, index) names, in a list; None names all of them.

        With `undo`, "softmax" or "sigmoid", as logits where the model is known to end in that activation.
        """
        flat = keras.tree.flatten(outputs.prediction)
        tensors = [with_padding_mask(flat[i], outputs.padding_mask) for i in self.positions(outputs, output)]
        activations = self.activations(outputs, output)
        return [
            logits_of(tensor, activation) if undo is not None and activation == undo else tensor
            for tensor, activation in zip(tensors, activations, strict=True)
        ]

    def activations(self, outputs, output=None):
        """The last activations of the named outputs, as `output_activations` gives them; "unknown" if subclassed."""
        positions = self.positions(outputs, output)
        return [self._activations[i] if self._activations else "unknown" for i in positions]

    def labels(self, outputs, labels, output=None):
        """The labels of the named outputs, in a list; None where there are none."""
        return self._parts(outputs, labels, output)

    def sample_weights(self, outputs, weights, output=None):
        """The sample weights of the named outputs, in a list: one for all outputs, or a structure with one for each."""
        given, count = len(keras.tree.flatten(weights)), len(keras.tree.flatten(outputs.prediction))
        if keras.tree.is_nested(weights) and given != count:
            raise ValueError(f"sample_weight must be one array, or one for each of {count} outputs, got {given}.")
        return self._parts(outputs, weights, output)

    def _parts(self, outputs, structure, output):
        by_position = by_output(structure, outputs.prediction, self._names)
        return [by_position[i] for i in self.positions(outputs, output)]

    def positions(self, outputs, output):
        """The positions of the named outputs among all."""
        return output_positions(outputs, output, self.names(outputs), self.role)

    def names(self, outputs):
        """The names of all outputs, in the order of `keras.tree.flatten`; an empty list where they have none."""
        return dict_keys(outputs) or self._names


def dict_keys(outputs):
    """The keys of a dict of outputs, in the order of `keras.tree.flatten`; an empty list for other structures."""
    return sorted(outputs.prediction) if isinstance(outputs.prediction, dict) else []


def output_positions(outputs, output, keys, role):
    """The positions of the outputs that `output` names, among `keras.tree.flatten(outputs.prediction)`."""
    count = len(keras.tree.flatten(outputs.prediction))
    if output is None:
        return range(count)
    if output in keys:
        return [keys.index(output)]
    if type(output) is int and 0 <= output < count:
        return [output]
    raise ValueError(f"output={output!r} is not an output of the {role}; it has {keys or list(range(count))}.")


def by_output(structure, prediction, names=None):
    """The part of a structure that belongs to each output, in the order of `keras.tree.flatten(prediction)`.

    Args:
        structure: Losses, labels or sample weights as Keras takes them: one for all outputs, a list in their order, or
            a dict by key or name. Where it holds nothing for an output, the part is None.
        prediction: The outputs: a tensor, list or dict.
        names: Names of the outputs that are not in a dict.
    """
    count = len(keras.tree.flatten(prediction))
    if not keras.tree.is_nested(structure):
        return [structure] * count
    if isinstance(structure, dict):
        keys = sorted(prediction) if isinstance(prediction, dict) else names or []
        parts = [structure.get(key) for key in keys]
    else:
        parts = keras.tree.flatten(structure)
    return parts if len(parts) == count else [None] * count


def output_names(model):
    """Names of the outputs of a functional model: the keys of a dict output, else the layers they come from.

    An empty list where there is no name for each output: for subclassed models and for nested outputs.
    """
    graph = functional_graph(model)
    if graph is None:
        return []
    names = sorted(graph.output) if isinstance(graph.output, dict) else list(graph.output_names)
    return names if len(names) == len(keras.tree.flatten(graph.output)) else []


def _detached(tensor):
    return None if tensor is None else set_mask(ops.stop_gradient(tensor), get_mask(tensor))
