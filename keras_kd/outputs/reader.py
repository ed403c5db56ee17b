"""Reads the outputs of a model, and those of its hooked layers, in one forward pass."""

from typing import NamedTuple

import keras
from keras import ops

from keras_kd._keras_private import call_model, functional_graph, get_mask, set_mask, symbolic_result
from keras_kd.outputs.endings import Ending, logits_of, output_activations
from keras_kd.outputs.hooks import LayerCapture, with_padding_mask
from keras_kd.outputs.model_inputs import input_names, own_entries

_PADDING_MASK = "padding_mask"


class ModelOutputs(NamedTuple):
    """The outputs of one batch: as the model gives them, a tensor, list or dict, and those of hooked layers.

    `padding_mask`, bool `(batch, length)`, tells which tokens of the prediction are no padding, where the model took
    that as an input or in its attention and set no Keras mask.
    """

    prediction: object
    layers: dict  # {Hook: tensor}
    padding_mask: object = None

    def detached(self):
        """The same outputs, through which no gradient flows."""
        return ModelOutputs(*keras.tree.map_structure(_detached, tuple(self)))


class Reader:
    """Gives the outputs of one model of a distiller for a batch, and tells their names, endings and static shapes.

    A subclass implements `__call__(x, training)`, which returns the `ModelOutputs`, `_endings(outputs)`, which returns
    the `Ending` of each, and `_names(outputs)`, for outputs that are no dict.
    """

    def __init__(self, role, symbolic):
        self.role = role
        self._symbolic = symbolic

    def symbolic(self):
        """The `ModelOutputs` without a batch, as symbolic tensors with static shapes; None for a subclassed model."""
        return self._symbolic

    def select(self, outputs, output=None, *, undo=None):
        """The outputs that `output` (name, dict key, index) names, in a list; None names all of them.

        With `undo`, "softmax" or "sigmoid", as logits where the model is known to end in that activation.
        """
        flat, endings = keras.tree.flatten(outputs.prediction), self._endings(outputs)
        selected = []
        for position in self.positions(outputs, output):
            tensor, ending = with_padding_mask(flat[position], outputs.padding_mask), endings[position]
            if ending.undone is not None and undo is None:
                raise ValueError(
                    f"a loss compares outputs as the {self.role} gives them, but output {position}, which ends in "
                    f"{ending.activation}, is stored as logits. Store it for that loss: "
                    "keras_kd.cache_teacher_outputs(..., outputs=losses) with another path."
                )
            is_undone = undo is None or ending.undone is not None or ending.activation != undo
            selected.append(tensor if is_undone else logits_of(tensor, undo))
        return selected

    def activations(self, outputs, output=None):
        """The last activations of the named outputs, as `output_activations` gives them; "unknown" if subclassed."""
        endings = self._endings(outputs)
        return [endings[position].activation for position in self.positions(outputs, output)]

    def positions(self, outputs, output=None):
        """The positions of the named outputs among all, in the order of `keras.tree.flatten`."""
        count, names = len(keras.tree.flatten(outputs.prediction)), self.names(outputs)
        if output is None:
            return range(count)
        if output in names:
            return [names.index(output)]
        if type(output) is int and 0 <= output < count:
            return [output]
        raise ValueError(
            f"output={output!r} is not an output of the {self.role}; it has {names or list(range(count))}."
        )

    def names(self, outputs):
        """The names of all outputs, in the order of `keras.tree.flatten`; an empty list where they have none."""
        return sorted(outputs.prediction) if isinstance(outputs.prediction, dict) else self._names(outputs)


class OutputReader(Reader):
    """Reads the outputs of a model, and those of its hooked layers, in one forward pass.

    ValueError for a layer that is unknown or ambiguous, is called more than once or gives several tensors. Of a
    subclassed model the last two show when it is called.
    """

    def __init__(self, model, hooks=(), *, role):
        self.model = model
        self._hooks = tuple(dict.fromkeys(hooks))
        self._capture = LayerCapture(model, self._hooks, role=role)
        self._activations = output_activations(model)
        self._inputs = input_names(model)
        self._output_names = output_names(model)
        super().__init__(role, self._run_symbolically())

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

    def _run_symbolically(self):
        graph = functional_graph(self.model)
        if graph is None:
            return None
        if not self._hooks:
            return ModelOutputs(graph.output, {})
        return symbolic_result(lambda inputs: self._captured(lambda: graph(inputs), inputs), graph.input)

    def _captured(self, function, inputs):
        return ModelOutputs(*self._capture.run(function, self._padding_mask(inputs)))

    def _padding_mask(self, inputs):
        """The input called "padding_mask", as in KerasHub's models; None if there is none."""
        names, tensors = keras.tree.flatten(self._inputs), keras.tree.flatten(inputs)
        return dict(zip(names, tensors, strict=False)).get(_PADDING_MASK) if len(names) == len(tensors) else None

    def parts(self, outputs, structure, output=None):
        """What labels or sample weights hold for each of the named outputs, in a list; None where that is nothing."""
        by_position = by_output(structure, outputs.prediction, self._output_names)
        return [by_position[position] for position in self.positions(outputs, output)]

    def _names(self, outputs):
        return self._output_names

    def _endings(self, outputs):
        activations = self._activations or ["unknown"] * len(keras.tree.flatten(outputs.prediction))
        return [Ending(activation) for activation in activations]


def by_output(structure, prediction, names=None):
    """The part of a structure that belongs to each output, in the order of `keras.tree.flatten(prediction)`.

    The structure holds losses, labels or sample weights as Keras takes them: one for all outputs, a list in their
    order, or a dict by key or by the `names` of outputs that are in no dict. A part that is not there is None.
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
