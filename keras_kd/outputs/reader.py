"""What a model has to say about a batch: its outputs and the layers that were asked for, from one forward pass."""

from typing import NamedTuple

import keras
from keras import ops

from keras_kd._keras_private import (
    call_model,
    functional_graph,
    get_mask,
    nested_output,
    producer,
    set_mask,
    symbolic_result,
)
from keras_kd.outputs.hooks import LayerCapture
from keras_kd.outputs.model_inputs import input_names, own_entries
from keras_kd.outputs.top_classes import TINY

_LEAST_REST = 2.0**-25  # half the distance from 1 to the float32 below: what a probability of 1 may leave


class ModelOutputs(NamedTuple):
    """The outputs of one batch.

    Attributes:
        prediction: The model's output as the model gives it: a tensor, list or dict.
        layers: What the hooks gave: `{Hook: tensor}`.
    """

    prediction: object
    layers: dict

    def detached(self):
        """The same outputs, through which no gradient flows."""
        return ModelOutputs(*keras.tree.map_structure(_detached, tuple(self)))


class OutputReader:
    """Reads the outputs of a model, and what its hooked layers give, in one forward pass.

    Args:
        model: A built `keras.Model`.
        hooks: The `Hook`s to read.
        role: "teacher" or "student", for the messages.

    Raises:
        ValueError: A layer is unknown (the known ones are listed) or ambiguous, is called more than once or gives
            several tensors. Of a subclassed model the last two show when it is called.
    """

    def __init__(self, model, hooks=(), *, role):
        self.model = model
        self.role = role
        self.hooks = tuple(dict.fromkeys(hooks))
        self._listener = LayerCapture(model, self.hooks, role=role)
        self._activations = output_activations(model)
        self._inputs = input_names(model)
        self._names = output_names(model)
        self._symbolic = self._run_symbolically()

    def __call__(self, inputs, training):
        """Run the model once; return its `ModelOutputs`."""
        inputs = self.own_inputs(inputs)
        return ModelOutputs(*self._listener.run(lambda: call_model(self.model, inputs, training)))

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
        return x  # Keras takes them by position, or says what is missing

    def symbolic(self):
        """The `ModelOutputs` without a batch, as symbolic tensors with static shapes; None for a subclassed model."""
        return self._symbolic

    def _run_symbolically(self):
        graph = functional_graph(self.model)
        if graph is None:
            return None
        if not self.hooks:
            return ModelOutputs(graph.output, {})
        return symbolic_result(lambda inputs: ModelOutputs(*self._listener.run(lambda: graph(inputs))), graph.input)

    def outputs(self, outputs, output=None, *, undo=None):
        """The outputs that `output` (name, dict key, index) names, in a list; None names all of them.

        With `undo`, "softmax" or "sigmoid", as logits where the model is known to end in that activation.
        """
        tensors = [keras.tree.flatten(outputs.prediction)[i] for i in self._positions(outputs, output)]
        activations = self.activations(outputs, output)
        return [
            logits_of(tensor, activation) if undo is not None and activation == undo else tensor
            for tensor, activation in zip(tensors, activations, strict=True)
        ]

    def activations(self, outputs, output=None):
        """The last activations of the named outputs, as `output_activations` gives them; "unknown" if subclassed."""
        positions = self._positions(outputs, output)
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
        return [by_position[i] for i in self._positions(outputs, output)]

    def _positions(self, outputs, output):
        is_dict = isinstance(outputs.prediction, dict)
        keys = sorted(outputs.prediction) if is_dict else self._names  # tree.flatten goes by sorted keys
        return output_positions(outputs, output, keys, self.role)


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


def output_activations(model):
    """Name of each output's last activation, e.g. "softmax", "linear", or "unknown", in the order of the outputs.

    Functional and sequential models are followed back through nested models and layers that change nothing (linear
    activations, dropout, identity, casts); an average of outputs that all end alike ends so too. A softmax over another
    axis than the last is called "softmax over axis 1". Of a subclassed model nothing is known: an empty list.
    """
    graph = functional_graph(model)
    return [] if graph is None else [_final_activation(tensor) for tensor in keras.tree.flatten(graph.output)]


def ends_in_softmax(model):
    """For each output of the model, whether its last layer or activation is known to be a softmax over the last axis.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    >>> keras_kd.outputs.ends_in_softmax(model)
    [True]
    """
    return [activation == "softmax" for activation in output_activations(model)]


def _final_activation(tensor):
    operation, tensor_index, inputs = producer(tensor)
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    inner = nested_output(operation, tensor_index)
    if inner is not None:
        return _final_activation(inner)
    if type(operation).__name__ == "Softmax":  # the layer and the operation
        return _softmax_over(operation.axis, len(tensor.shape))
    if isinstance(operation, _UNCHANGING_LAYERS) or type(operation).__name__ == "Cast":
        return _final_activation(inputs[0])
    if isinstance(operation, keras.layers.Average):
        endings = {_final_activation(averaged) for averaged in inputs}
        return endings.pop() if len(endings) == 1 else "unknown"
    if not isinstance(operation, _LAYERS_WITH_ACTIVATION):
        return "unknown"
    activation = operation.activation
    if isinstance(activation, keras.layers.Softmax):
        return _softmax_over(activation.axis, len(tensor.shape))
    if isinstance(operation, keras.layers.Activation) and activation is keras.activations.linear:
        return _final_activation(inputs[0])
    name = getattr(activation, "__name__", "unknown")
    return "softmax" if name == "softmax_v2" else name  # so is tf.nn.softmax called


def _softmax_over(axis, rank):
    axes = [axis] if isinstance(axis, int) else list(axis)
    return "softmax" if axes in ([-1], [rank - 1]) else f"softmax over axis {axis}"


_UNCHANGING_LAYERS = (
    keras.layers.ActivityRegularization,
    keras.layers.Dropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.SpatialDropout1D,
)
_LAYERS_WITH_ACTIVATION = (
    keras.layers.Activation,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def _detached(tensor):
    return set_mask(ops.stop_gradient(tensor), get_mask(tensor))


def logits_of(tensor, activation):
    """What the activation was applied to, up to a constant: log p of a softmax, log p − log(1 − p) of a sigmoid."""
    probabilities = ops.cast(tensor, "float32")
    logits = ops.log(ops.maximum(probabilities, TINY))
    if activation == "sigmoid":
        logits = logits - ops.log(ops.maximum(1.0 - probabilities, _LEAST_REST))
    return logits if isinstance(tensor, keras.KerasTensor) else set_mask(logits, get_mask(tensor))
