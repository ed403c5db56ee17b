"""The layer that makes a model's logits, and what it makes them of."""

from typing import NamedTuple

import keras

from keras_kd._keras_private import functional_graph, nested_output, producer, symbolic_result
from keras_kd.large_vocabulary.sides import Head
from keras_kd.outputs.hooks import Hook, LayerCapture, layer_paths


class LastLayer(NamedTuple):
    """A `Dense` or tied embedding in which a model with one output ends.

    Attributes:
        layer: The layer.
        hook: Where its input is read.
    """

    layer: object
    hook: Hook

    @classmethod
    def of(cls, model):
        """The last layer of a model; None where it ends otherwise, or that is not known, as of subclassed models."""
        graph = functional_graph(model)
        if graph is None or len(keras.tree.flatten(graph.output)) != 1:
            return None
        layer = _linear_layer(keras.tree.flatten(graph.output)[0])
        path = next((path for path, inner in layer_paths(model) if inner is layer), None)
        if path is None:
            return None
        hook = Hook(path, "input")
        try:
            listener = LayerCapture(model, [hook], role="model")
            symbolic_result(lambda inputs: listener.run(lambda: graph(inputs)), graph.input)
        except ValueError:  # it is called elsewhere, too
            return None
        return cls(layer, hook)

    def head(self, hidden):
        """The `Head` that stands for its logits."""
        if isinstance(self.layer, keras.layers.ReversibleEmbedding):
            if self.layer.tie_weights:
                return Head(hidden, self.layer.embeddings, vocabulary_first=True)
            return Head(hidden, self.layer.reverse_embeddings)
        return Head(hidden, self.layer.kernel, self.layer.bias)


def _linear_layer(tensor):
    """The layer that made a tensor, if that is a plain matrix product, with or without a bias."""
    operation, index, inputs = producer(tensor)
    inner = nested_output(operation, index)
    if inner is not None:
        return _linear_layer(inner)
    if _changes_nothing(operation):
        return _linear_layer(inputs[0])
    return operation if _is_linear(operation) else None


def _changes_nothing(operation):
    is_linear = isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
    return is_linear or isinstance(operation, keras.layers.Identity) or type(operation).__name__ == "Cast"


def _is_linear(layer):
    if not isinstance(layer, (keras.layers.Dense, keras.layers.ReversibleEmbedding)):
        return False
    plain = type(layer).call in (keras.layers.Dense.call, keras.layers.ReversibleEmbedding.call)
    if not plain or layer.quantization_mode is not None or layer.activity_regularizer is not None:
        return False
    if isinstance(layer, keras.layers.ReversibleEmbedding):
        return layer.logit_soft_cap is None
    return layer.activation is keras.activations.linear
