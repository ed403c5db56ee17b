"""Hooks: intermediate outputs of a model, captured while the model runs and without changing it.

A hook names a layer and one of its `PARTS`: the layer's output or input, or the queries, keys, values or scores of the
attention in it. While the model is called, the calls of the hooked layers are recorded; after the call the layers are
as they were. So layers of nested and of subclassed models can be hooked as well as those of functional ones.
"""

import contextlib
import functools
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


class Call(NamedTuple):
    """One call of a layer's method; `order` is the position of its end among all recorded calls."""

    layer: object
    args: tuple
    kwargs: dict
    result: object
    order: int

    def arguments(self):
        """The arguments of a layer's `call`, by name."""
        return call_arguments(self.layer, self.args, self.kwargs)

    def attention(self):
        """The arguments of an attention's `_compute_attention`, by name."""
        return attention_call(self.layer, self.args, self.kwargs)


def _layer_output(call):
    return call.result


def _layer_input(call):
    _, inputs, *_ = call.arguments().values()
    return inputs


def _projected(name, call):
    """Queries, keys or values as they enter the dot product; tokens that are hidden from all queries are masked."""
    arguments = call.attention()
    output, mask = ops.copy(arguments[name]), _seen(arguments)
    return output if mask is None else set_mask(output, ops.any(mask, axis=(1, 2)))


def _scores(call):
    """Scores before the softmax; `NOT_ATTENDED` where the attention's mask hides a key from a query."""
    arguments = call.attention()
    query, key = (ops.cast(arguments[name], "float32") for name in ("query", "key"))
    scores = ops.einsum("btnd,bsnd->bnts", query, key) / math.sqrt(query.shape[-1])
    mask = _seen(arguments)
    return scores if mask is None else ops.where(mask, scores, NOT_ATTENDED)


class Part(NamedTuple):
    """How a part of a layer is read: `read` gives the tensor, from a `Call` of the layer or of the attention in it.

    `token_axis` is the axis of a (batch, length, ...) tensor that goes over tokens; None where `read` sets the mask.
    """

    read: object
    of_attention: bool = False
    token_axis: int | None = 1


def _attention_part(read, token_axis=None):
    return Part(read, of_attention=True, token_axis=token_axis)


PARTS = {
    # The channels are last, also where data_format="channels_first" has put them on axis 1. The input of an embedding
    # that is called both ways is the hidden states that become logits.
    "output": Part(_layer_output),
    "input": Part(_layer_input),
    # (batch, length, heads, dim)
    "query": _attention_part(functools.partial(_projected, "query")),
    "key": _attention_part(functools.partial(_projected, "key")),
    "value": _attention_part(functools.partial(_projected, "value")),
    # QKᵀ / √dim, (batch, heads, queries, keys), in float32
    "scores": _attention_part(_scores, token_axis=2),
}


class LayerCapture:
    """Captures intermediate outputs of a model while the model is called.

    Tensors of tokens get the padding mask of the attention around them, where they have no Keras mask of their own:
    KerasHub's models take their padding as an input, `padding_mask`, and hand it to the attention alone. ValueError for
    a layer that is unknown or ambiguous, or holds no attention where one is needed.
    """

    def __init__(self, model, hooks, *, role):
        self._role = role
        self._labels = {hook: f"{role}_layer={hook.layer!r}" for hook in dict.fromkeys(hooks)}
        self._layers = {}
        for hook, label in self._labels.items():
            layer = _find_layer(model, hook.layer, label, role)
            self._layers[hook] = _attention_in(layer, label) if PARTS[hook.part].of_attention else layer
        self._all_layers = list({id(layer): layer for _, layer in layer_paths(model)}.values())
        self._attention_layers = [layer for layer in self._all_layers if isinstance(layer, ATTENTION_LAYERS)]

    def run(self, function, padding_mask=None):
        """Call `function()`, which calls the model; return its result, `{hook: tensor}`, and its padding mask or None.

        `padding_mask`, `(batch, length)`, is that which the model takes as an input, if it does.
        """
        with contextlib.ExitStack() as stack:
            recorded = lambda layer, method: stack.enter_context(_captured_calls(layer, method))  # noqa: E731
            captured = {
                hook: recorded(layer, "_compute_attention" if PARTS[hook.part].of_attention else "call")
                for hook, layer in self._layers.items()
            }
            attention = [
                (recorded(layer, "call"), recorded(layer, "_compute_attention")) for layer in self._attention_layers
            ]
            result = function()
        padding = _Padding(attention, padding_mask)
        layers = {hook: self._output(hook, calls, padding) for hook, calls in captured.items()}
        return result, layers, padding.for_result()

    def _output(self, hook, calls, padding):
        label, part = self._labels[hook], PARTS[hook.part]
        if hook.part == "input" and isinstance(self._layers[hook], keras.layers.ReversibleEmbedding):
            calls = [call for call in calls if call.arguments().get("reverse", False)]
        if len(calls) != 1:
            times = f"is called {len(calls)} times" if calls else "is not called"
            raise ValueError(f"{label} {times} in the {self._role}. Name one that is called once in a forward pass.")
        tensor = part.read(calls[0])
        if not ops.is_tensor(tensor):
            raise ValueError(f"{label}: gives several tensors, not one. Name a layer that gives one tensor.")
        if not part.of_attention:
            tensor = channels_last(tensor, self._channels_axis(hook, len(tensor.shape)))
        return with_padding_mask(tensor, padding.near(calls[0]), part.token_axis) if part.token_axis else tensor

    def _channels_axis(self, hook, rank):
        """The axis of the channels of a layer's output or input of this rank; None if it is the last."""
        layer, side = self._layers[hook], 0 if hook.part == "input" else 1
        tensors = [call[side][0] for call in graph_tensors(layer)]
        graph = functional_graph(layer) if isinstance(layer, keras.Model) else None
        if graph is not None:
            tensors.append(keras.tree.flatten((graph.input, graph.output)[side])[0])
        axis = next(filter(None, map(channels_axis, tensors)), None) or own_channels_axis(layer, rank)
        if axis is not UNKNOWN:
            return axis
        around = {own_channels_axis(one, rank) for one in self._all_layers if getattr(one, "rank", None) == rank - 2}
        if not tensors and around - {None, UNKNOWN}:
            raise ValueError(
                f"{self._labels[hook]} may have its channels on axis 1, as layers of the {self._role} with "
                'data_format="channels_first" have: in a subclassed model, what comes before a layer is not known. '
                "Name a layer that has a data_format itself, such as the convolution before it."
            )
        return None


class _Padding:
    """Which tokens are padding in one forward pass: from the input `padding_mask`, else from the attention layers.

    `attention` holds, for each of these, the `Call`s of `call` and those of `_compute_attention`.
    """

    def __init__(self, attention, padding_mask):
        self._masks, self._has_cross_attention = [], False  # masks with the order of the call that they come from
        if padding_mask is not None:
            self._masks.append((0, padding_mask))
            return
        for outer, inner in (pair for calls in attention for pair in zip(*calls, strict=False)):
            if not _is_self_attention(outer):
                self._has_cross_attention = True
                continue
            mask = _seen(inner.attention())
            if mask is not None and _belongs_to_this_graph(mask):
                self._masks.append((outer.order, ops.any(mask, axis=(1, 2))))
        self._masks.sort(key=lambda entry: entry[0])

    def near(self, call):
        """The mask of the last self-attention up to a call, else of the first one after it; None if there is none."""
        earlier = [mask for order, mask in self._masks if order <= call.order]
        later = [mask for order, mask in self._masks if order > call.order]
        return earlier[-1] if earlier else later[0] if later else None

    def for_result(self):
        """The mask of the model's outputs; None with cross-attention, where they may be of either sequence."""
        return self._masks[-1][1] if self._masks and not self._has_cross_attention else None


def with_padding_mask(tensor, mask, token_axis=1):
    """Tokens `(batch, length, ...)` with the mask `(batch, length)`; other tensors, and masked ones, as they are."""
    if mask is None or get_mask(tensor) is not None or len(tensor.shape) < 3:
        return tensor
    lengths = {tensor.shape[token_axis], mask.shape[1]} - {None}
    return tensor if len(lengths) > 1 else set_mask(ops.copy(tensor), ops.cast(mask, "bool"))


def _is_self_attention(call):
    arguments = call.arguments()
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


def _attention_in(layer, label):
    """The one attention layer that a layer is or holds; `label` names the argument in error messages."""
    if isinstance(layer, ATTENTION_LAYERS):
        return layer
    found = {path: inner for path, inner in layer_paths(layer) if isinstance(inner, ATTENTION_LAYERS)}
    if len(found) != 1:
        raise ValueError(
            f"{label} must be or hold one attention layer of Keras's kind (keras.layers.MultiHeadAttention, "
            f"GroupQueryAttention or a subclass), but it holds {len(found)}"
            + (f": {sorted(found)}. Name one of them by its path." if found else ".")
        )
    return next(iter(found.values()))


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


_order = itertools.count()
_lock = threading.Lock()  # replicas of tf.distribute trace in threads of their own
_captures = {}  # (id of a layer, method): the calls lists that are being filled, by thread


@contextlib.contextmanager
def _captured_calls(layer, method):
    """Note the calls of `layer.method` on this thread in the list that is yielded; leave the layer as it was."""
    key, calls, thread = (id(layer), method), [], threading.get_ident()
    with _lock:
        captures = _captures.setdefault(key, [])
        if not captures:
            object.__setattr__(layer, method, _recorded(layer, method, captures))
        captures.append((thread, calls))
    try:
        yield calls
    finally:
        with _lock:
            captures.remove((thread, calls))
            if not captures:
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
