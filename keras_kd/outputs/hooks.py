"""Hooks: intermediate outputs of a model, captured while the model runs and without changing it.

A hook names a layer and one of its `PARTS`: the layer's output or input, or the queries, keys, values or scores of the
attention in it. While the model is called, the calls of the hooked layers are recorded; after the call the layers are
as they were. So layers of nested and of subclassed models can be hooked as well as those of functional ones.
"""

import contextlib
import itertools
import math
import threading
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_kd._keras_private import (
    ATTENTION_LAYERS,
    attention_call,
    call_arguments,
    functional_graph,
    get_mask,
    graph_tensors,
    set_mask,
    sublayers,
)
from keras_kd.outputs.endings import UNKNOWN, channels_axis, channels_last, own_channels_axis

NOT_ATTENDED = -1e9  # the score of a key that the attention's mask hides from a query


class Hook(NamedTuple):
    """One output from inside a model.

    Attributes:
        layer: Name of the layer; where several have it, as much of its path as tells: "backbone/transformer_layer_3".
        part: One of `PARTS`.
    """

    layer: str
    part: str = "output"

    @classmethod
    def named(cls, name):
        """The hook of "layer", its output, or of "layer:part"."""
        layer, _, part = name.partition(":")
        return cls(layer, part or "output")

    @property
    def name(self):
        """What `named` reads."""
        return self.layer if self.part == "output" else f"{self.layer}:{self.part}"


class LayerOutput:
    """The output of a layer, with its channels last also where data_format="channels_first" has put them on axis 1."""

    method = "call"
    is_input = False
    token_axis = 1  # the axis of a (batch, length, ...) tensor that goes over tokens

    def locate(self, layer, label):
        """The layer whose calls are recorded; `label` names the argument in error messages."""
        return layer

    def chosen(self, calls):
        """The `Call`s of a forward pass to choose from: there must be one."""
        return calls

    def read(self, call):
        """The tensor, from a `Call`."""
        if not keras.ops.is_tensor(call.result):
            raise ValueError("gives several tensors, not one")
        return call.result


class LayerInput(LayerOutput):
    """The input of a layer, likewise; of an embedding called both ways, the hidden states that become logits."""

    is_input = True

    def chosen(self, calls):
        if not isinstance(calls[0].layer, keras.layers.ReversibleEmbedding):
            return calls
        return [call for call in calls if call_arguments(call.layer, call.args, call.kwargs).get("reverse", False)]

    def read(self, call):
        _, inputs, *_ = call_arguments(call.layer, call.args, call.kwargs).values()
        return inputs


class AttentionPart(LayerOutput):
    """Queries, keys or values of a self-attention, `(batch, length, heads, dim)`, as they enter the dot product.

    Tokens that the attention's mask hides from all queries, padding that is, are masked.
    """

    method = "_compute_attention"
    token_axis = None  # the mask is read from the attention itself

    def __init__(self, name):
        self.name = name

    def locate(self, layer, label):
        """The one attention layer that the layer is or holds."""
        found = {path: inner for path, inner in layer_paths(layer) if isinstance(inner, ATTENTION_LAYERS)}
        if isinstance(layer, ATTENTION_LAYERS):
            return layer
        if len(found) != 1:
            raise ValueError(
                f"{label} must be or hold one attention layer of Keras's kind (keras.layers.MultiHeadAttention, "
                f"GroupQueryAttention or a subclass), but it holds {len(found)}"
                + (f": {sorted(found)}. Name one of them by its path." if found else ".")
            )
        return next(iter(found.values()))

    def read(self, call):
        arguments = attention_call(call.layer, call.args, call.kwargs)
        output = ops.copy(arguments[self.name])
        mask = _seen(arguments)
        return output if mask is None else set_mask(output, ops.any(mask, axis=(1, 2)))


class AttentionScores(AttentionPart):
    """Scores of the dot product before the softmax, `QKᵀ / √dim`: `(batch, heads, queries, keys)` in float32.

    Where the attention's mask hides a key from a query, the score is `NOT_ATTENDED`.
    """

    token_axis = 2  # that of the queries

    def read(self, call):
        arguments = attention_call(call.layer, call.args, call.kwargs)
        query, key = (ops.cast(arguments[name], "float32") for name in ("query", "key"))
        scores = ops.einsum("btnd,bsnd->bnts", query, key) / math.sqrt(query.shape[-1])
        mask = _seen(arguments)
        return scores if mask is None else ops.where(mask, scores, NOT_ATTENDED)


PARTS = {
    "output": LayerOutput(),
    "input": LayerInput(),
    "query": AttentionPart("query"),
    "key": AttentionPart("key"),
    "value": AttentionPart("value"),
    "scores": AttentionScores("scores"),
}


class Call(NamedTuple):
    """One call of a layer's method.

    Attributes:
        layer: The layer.
        args, kwargs: The arguments.
        result: The result.
        order: The position of the call's end among all recorded calls.
    """

    layer: object
    args: tuple
    kwargs: dict
    result: object
    order: int


class LayerCapture:
    """Captures intermediate outputs of a model while the model is called.

    Tensors of tokens get the padding mask of the attention around them, where they have no Keras mask of their own:
    KerasHub's models take their padding as an input, `padding_mask`, and hand it to the attention alone.

    Args:
        model: A built `keras.Model`.
        hooks: The `Hook`s to read.
        role: "teacher" or "student", for error messages.

    Raises:
        ValueError: A layer is unknown (the known ones are listed), its name is ambiguous, or it holds no attention
            layer where one is needed.
    """

    def __init__(self, model, hooks, *, role):
        self._labels = {hook: f"{role}_layer={hook.layer!r}" for hook in dict.fromkeys(hooks)}
        self._role = role
        self._layers = {
            hook: PARTS[hook.part].locate(_find_layer(model, hook.layer, label, role), label)
            for hook, label in self._labels.items()
        }
        self._all_layers = list({id(layer): layer for _, layer in layer_paths(model)}.values())
        self._attention_layers = [layer for layer in self._all_layers if isinstance(layer, ATTENTION_LAYERS)]

    def run(self, function, padding_mask=None):
        """Call `function()`; return its result, `{hook: tensor}`, and the padding mask of the result or None.

        Args:
            function: Calls the model.
            padding_mask: `(batch, length)`, where the model takes it as an input.
        """
        with contextlib.ExitStack() as stack:
            captured = {
                hook: stack.enter_context(_captured_calls(layer, PARTS[hook.part].method))
                for hook, layer in self._layers.items()
            }
            attention = [
                tuple(stack.enter_context(_captured_calls(layer, method)) for method in ("call", "_compute_attention"))
                for layer in self._attention_layers
            ]
            result = function()
        padding = _Padding(attention, padding_mask)
        layers = {hook: self._output(hook, calls, padding) for hook, calls in captured.items()}
        return result, layers, padding.for_result()

    def _output(self, hook, calls, padding):
        label, part = self._labels[hook], PARTS[hook.part]
        calls = part.chosen(calls) if calls else []
        if len(calls) != 1:
            times = f"is called {len(calls)} times" if calls else "is not called"
            raise ValueError(f"{label} {times} in the {self._role}. Name one that is called once in a forward pass.")
        try:
            tensor = part.read(calls[0])
        except ValueError as error:
            raise ValueError(f"{label}: {error}. Name a layer that gives one tensor.") from None
        if part.method == "call":
            tensor = channels_last(tensor, self._channels_axis(hook, len(tensor.shape)))
        return with_padding_mask(tensor, padding.near(calls[0]), part.token_axis) if part.token_axis else tensor

    def _channels_axis(self, hook, rank):
        """The axis of the channels of a layer's output or input of this rank; None if it is the last.

        Raises:
            ValueError: The layer shows neither its data format nor, in a subclassed model, what comes before it.
        """
        layer, is_input = self._layers[hook], PARTS[hook.part].is_input
        calls = graph_tensors(layer)
        tensors = [inputs[0] if is_input else outputs[0] for inputs, outputs in calls]
        graph = functional_graph(layer) if isinstance(layer, keras.Model) else None
        if graph is not None:
            tensors += [keras.tree.flatten(graph.input if is_input else graph.output)[0]]
        known = next(filter(None, map(channels_axis, tensors)), None) or own_channels_axis(layer, rank)
        if known is not UNKNOWN or tensors:
            return None if known is UNKNOWN else known
        around = {own_channels_axis(one, rank) for one in self._all_layers if getattr(one, "rank", None) == rank - 2}
        if around - {None, UNKNOWN}:
            raise ValueError(
                f"{self._labels[hook]} may have its channels on axis 1, as layers of the {self._role} with "
                'data_format="channels_first" have: in a subclassed model, what comes before a layer is not known. '
                "Name a layer that has a data_format itself, such as the convolution before it."
            )
        return None


class _Padding:
    """Which tokens are padding in one forward pass: from the input of the model, else from its attention layers.

    Args:
        attention: `[(calls of call, calls of _compute_attention)]` of each attention layer.
        padding_mask: The input `(batch, length)`, True or 1 for tokens; or None.
    """

    def __init__(self, attention, padding_mask):
        self._input, self._masks, self._has_cross_attention = padding_mask, [], False
        for outer_calls, inner_calls in attention:
            for outer, inner in zip(outer_calls, inner_calls, strict=False):
                if not _is_self_attention(outer):
                    self._has_cross_attention = True
                    continue
                mask = _seen(attention_call(inner.layer, inner.args, inner.kwargs))
                if mask is not None and _belongs_to_this_graph(mask):
                    self._masks.append((outer.order, ops.any(mask, axis=(1, 2))))
        self._masks.sort(key=lambda entry: entry[0])

    def near(self, call):
        """The mask of the last self-attention up to a call, else of the first one after it; None if there is none."""
        if self._input is not None:
            return self._input
        earlier = [mask for order, mask in self._masks if order <= call.order]
        later = [mask for order, mask in self._masks if order > call.order]
        return earlier[-1] if earlier else later[0] if later else None

    def for_result(self):
        """The mask of the model's outputs; None with cross-attention, where they may be of either sequence."""
        if self._input is not None:
            return self._input
        return self._masks[-1][1] if self._masks and not self._has_cross_attention else None


def with_padding_mask(tensor, mask, token_axis=1):
    """Tokens `(batch, length, ...)` with the mask `(batch, length)`; other tensors, and masked ones, as they are."""
    if mask is None or get_mask(tensor) is not None or len(tensor.shape) < 3:
        return tensor
    lengths = {tensor.shape[token_axis], mask.shape[1]} - {None}
    return tensor if len(lengths) > 1 else set_mask(ops.copy(tensor), ops.cast(mask, "bool"))


def _is_self_attention(call):
    arguments = call_arguments(call.layer, call.args, call.kwargs)
    return arguments.get("query", arguments.get("hidden_states")) is arguments.get("value", arguments.get("query"))


def _belongs_to_this_graph(tensor):
    """Whether a tensor can be used here: not where a loop or a rematerialized block has made it."""
    if keras.backend.backend() != "tensorflow" or isinstance(tensor, keras.KerasTensor):
        return True
    return tf.executing_eagerly() or getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph()


def layer_paths(layer):
    """`(path, layer)` of every layer inside a layer or model, each path relative to it, outer layers first."""
    for inner in sublayers(layer):
        if isinstance(inner, keras.layers.InputLayer):
            continue
        yield inner.name, inner
        yield from ((f"{inner.name}/{path}", deeper) for path, deeper in layer_paths(inner))


def _find_layer(model, name, label, role):
    """The layer whose path is `name`, else the only one whose path ends in it."""
    paths = list(layer_paths(model))
    exact = [layer for path, layer in paths if path == name]
    found = exact or [layer for path, layer in paths if path.endswith(f"/{name}")]
    if not found:
        known = [path for path, _ in paths if "/" not in path]
        raise ValueError(f"{label} is not a layer of the {role}; its layers are {known}, and those inside them.")
    if len({id(layer) for layer in found}) > 1:
        ambiguous = [path for path, layer in paths if any(layer is one for one in found)]
        raise ValueError(f"{label} could be any of {ambiguous} of the {role}. Give more of the path.")
    return found[0]


def _seen(arguments):
    """Which keys each query sees, bool `(batch, heads or 1, queries or 1, keys)`; None if all see all."""
    mask = arguments["attention_mask"]
    if mask is not None:
        mask = ops.cast(mask, "bool")
        return ops.expand_dims(mask, 1) if len(mask.shape) == 3 else mask
    if not arguments["use_causal_mask"]:
        return None
    length = ops.shape(arguments["query"])[1]
    return ops.expand_dims(ops.arange(length)[:, None] >= ops.arange(length)[None, :], (0, 1))


# Hooks ------------------------------------------------------------------------------------------------------------

_order = itertools.count()
_lock = threading.Lock()  # replicas of tf.distribute trace in threads of their own
_captures = {}  # (id of a layer, method): the calls lists that are being filled, by thread


@contextlib.contextmanager
def _captured_calls(layer, method):
    """Note the calls of `layer.method` on this thread in the list that is yielded; leave the layer as it was."""
    key, calls, thread = (id(layer), method), [], threading.get_ident()
    with _lock:
        if key not in _captures:
            _captures[key] = []
            object.__setattr__(layer, method, _recorded(layer, method, _captures[key]))
        _captures[key].append((thread, calls))
    try:
        yield calls
    finally:
        with _lock:
            _captures[key].remove((thread, calls))
            if not _captures[key]:
                object.__delattr__(layer, method)
                del _captures[key]


def _recorded(layer, method, captures):
    """The bound method, which records each call."""
    bound = getattr(layer, method)

    def recorded(*args, **kwargs):
        result = bound(*args, **kwargs)
        order = next(_order)
        for thread, calls in list(captures):
            if thread == threading.get_ident():
                calls.append(Call(layer, args, kwargs, result, order))
        return result

    return recorded
