"""How the outputs of a model end: in logits, in probabilities over the last axis, or otherwise."""

import dataclasses

import keras
from keras import ops

from keras_kd._keras_private import ATTENTION_LAYERS, functional_graph, get_mask, nested_output, producer, set_mask
from keras_kd.outputs.top_classes import TINY

CHANNELS_FIRST = "channels_first"
UNKNOWN = "unknown"
_LEAST_REST = 2.0**-25  # half the distance from 1 to the float32 below: what a probability of 1 may leave


def _for_each_rank(*names):
    """Keras's layers of these names, `{}` standing for 1, 2 and 3 axes of positions."""
    return tuple(getattr(keras.layers, name.format(rank)) for name in names for rank in (1, 2, 3))


_KEEP_VALUES = (
    keras.layers.ActivityRegularization,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.Masking,
    *_for_each_rank("SpatialDropout{}D"),
)
_MOVE_OR_AVERAGE_POSITIONS = (  # where their last axis stays as long, it holds distributions of the input or their mean
    keras.layers.Flatten,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Reshape,
    *_for_each_rank("Cropping{}D", "UpSampling{}D", "AveragePooling{}D", "GlobalAveragePooling{}D"),
)
_MOVING_OPERATIONS = {"BroadcastTo", "Copy", "ExpandDims", "Flip", "GetItem", "Reshape", "Roll", "Squeeze", "Transpose"}
_FEATURES_LAST = (keras.layers.Dense, keras.layers.EinsumDense, *ATTENTION_LAYERS)  # whatever they are applied to
_LAYERS_WITH_ACTIVATION = (
    keras.layers.Activation,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    *_for_each_rank("Conv{}D", "Conv{}DTranspose"),
)


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an output of a model ends, and in which form it is stored."""

    activation: str = UNKNOWN  # as `output_activations` gives it
    undone: str | None = None  # "softmax" or "sigmoid" where the output is stored as logits, without it
    output_name: str | None = None  # the teacher's name of an output in a list


def output_activations(model):
    """Name of each output's last activation, e.g. "softmax", "linear", or "unknown", in the order of the outputs.

    Functional and sequential models are followed back through nested models, through layers that change nothing
    (linear activations, dropout, identity, casts) and through layers that leave the last axis alone (reshaping,
    cropping, average pooling); an average or a concatenation of outputs that all end alike ends so too. A softmax over
    another axis than the last is called "softmax over axis 1", and an output whose channels are on axis 1
    "channels_first". Of a subclassed model nothing is known: an empty list.
    """
    graph = functional_graph(model)
    return [] if graph is None else [_ending(tensor) for tensor in keras.tree.flatten(graph.output)]


def ends_in_softmax(model):
    """For each output of the model, whether its last layer or activation is known to be a softmax over the last axis.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    >>> keras_kd.outputs.ends_in_softmax(model)
    [True]
    """
    return [activation == "softmax" for activation in output_activations(model)]


def ending_kind(activation):
    """ "logits" or "probabilities", or None where the name of the last activation does not tell."""
    if activation == "sigmoid" or activation.startswith("softmax"):
        return "probabilities"
    return "logits" if activation == "linear" else None


def logits_of(tensor, activation):
    """What the activation was applied to, up to a constant: log p of a softmax, log p − log(1 − p) of a sigmoid."""
    probabilities = ops.cast(tensor, "float32")
    logits = ops.log(ops.maximum(probabilities, TINY))
    if activation == "sigmoid":
        logits = logits - ops.log(ops.maximum(1.0 - probabilities, _LEAST_REST))
    return logits if isinstance(tensor, keras.KerasTensor) else set_mask(logits, get_mask(tensor))


def _ending(tensor):
    axis = channels_axis(tensor)
    return _final_activation(tensor) if axis is None else CHANNELS_FIRST if axis == 1 else f"channels on axis {axis}"


def channels_last(tensor, axis):
    """A tensor with the channels of this axis moved to the last one; as it is where the axis is None."""
    return tensor if axis is None else set_mask(ops.moveaxis(tensor, axis, -1), get_mask(tensor))


def channels_axis(tensor):
    """The axis of the channels of a symbolic tensor, where they are known to stand before the positions; else None.

    A layer with data_format="channels_first" has put them there, and the layers after it have kept them.
    """
    rank = len(tensor.shape)
    operation, index, inputs = producer(tensor)
    times = 1 if isinstance(operation, keras.layers.TimeDistributed) else 0
    operation = operation.layer if isinstance(operation, keras.layers.Wrapper) else operation
    inner = nested_output(operation, index)
    axis = own_channels_axis(operation, rank - times) if inner is None else channels_axis(inner)
    if axis is not UNKNOWN:
        return axis and axis + times
    order = _order_of_axes(operation, rank)
    joins = order is not None or isinstance(operation, keras.layers.Concatenate)
    kept = [one for one in inputs if joins or one.shape == tensor.shape]
    axis = next(filter(None, map(channels_axis, kept)), None)
    axis = order.index(axis) if axis and order else axis
    return axis if axis != rank - 1 else None


def _order_of_axes(operation, rank):
    """The input's axes in the order in which a layer or operation puts them; None if it does not move axes."""
    if isinstance(operation, keras.layers.Permute):
        return [0, *operation.dims]
    if type(operation).__name__ == "Transpose":
        return list(operation.axes or reversed(range(rank)))
    return None


def own_channels_axis(layer, rank):
    """What `channels_axis` gives for any output of a layer, of this rank; `UNKNOWN` if that depends on its input."""
    if rank < 3 or isinstance(layer, _FEATURES_LAST):
        return None
    if getattr(layer, "data_format", None) is None:
        return UNKNOWN
    positions = getattr(getattr(layer, "cell", layer), "rank", rank - 2)  # a ConvLSTM has time before the channels
    return rank - 1 - positions if layer.data_format == CHANNELS_FIRST else None


def _final_activation(tensor):
    operation, tensor_index, inputs = producer(tensor)
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    inner = nested_output(operation, tensor_index)
    if inner is not None:
        return _final_activation(inner)
    if type(operation).__name__ == "Softmax":  # the layer and the operation
        return _softmax_over(operation.axis, len(tensor.shape))
    if _keeps_distributions(operation, inputs, tensor):
        endings = {_final_activation(one) for one in inputs}
        return endings.pop() if len(endings) == 1 else UNKNOWN
    if not isinstance(operation, _LAYERS_WITH_ACTIVATION):
        return UNKNOWN
    if isinstance(operation.activation, keras.layers.Softmax):
        return _softmax_over(operation.activation.axis, len(tensor.shape))
    if isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear:
        return _final_activation(inputs[0])
    name = getattr(operation.activation, "__name__", UNKNOWN)
    return "softmax" if name == "softmax_v2" else name  # so is tf.nn.softmax called


def _keeps_distributions(operation, inputs, tensor):
    """Whether each vector along the last axis of the tensor is one of the inputs', or a mean of some."""
    if isinstance(operation, (*_KEEP_VALUES, keras.layers.Average)) or type(operation).__name__ == "Cast":
        return True
    last = {one.shape[-1] for one in (*inputs, tensor) if len(one.shape)}
    if len(last) != 1 or None in last or getattr(operation, "data_format", None) == "channels_first":
        return False
    if isinstance(operation, keras.layers.Permute):
        return operation.dims[-1] == len(operation.dims)
    if isinstance(operation, keras.layers.Concatenate):
        return operation.axis not in (-1, len(tensor.shape) - 1)
    if type(operation).__name__ == "Transpose":
        return operation.axes is not None and operation.axes[-1] in (-1, len(tensor.shape) - 1)
    return isinstance(operation, _MOVE_OR_AVERAGE_POSITIONS) or type(operation).__name__ in _MOVING_OPERATIONS


def _softmax_over(axis, rank):
    axes = [axis] if isinstance(axis, int) else list(axis)
    return "softmax" if axes in ([-1], [rank - 1]) else f"softmax over axis {axis}"
