"""The layers of a model that hold weights, as a tree: nested models and composite layers hold further ones."""

import dataclasses
import functools
import itertools
import re

import keras

from keras_kd._checks import require_model
from keras_kd._keras_private import automatic_name, sublayers

# One of these has its weights handed over as a whole or not at all: half an attention is no attention.
_KERAS_LAYERS = tuple(
    kind
    for kind in vars(keras.layers).values()
    if isinstance(kind, type) and issubclass(kind, keras.layers.Layer) and kind is not keras.layers.Layer
)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A layer with weights, or the weights that a layer holds beside its children.

    Attributes:
        layer: the `keras.Layer`.
        path: its name, after those of the models and layers around it: "encoder/block_0/ffn".
        names: the parts of `path` that a person chose; () if the layer is named as Keras does: "dense_1" says nothing.
        weights: its variables, without those that belong to an earlier layer as well.
        children: the nodes inside it; weights it holds beside them are the first of these, "block_0 (own weights)".
    """

    layer: keras.layers.Layer
    path: str
    names: tuple
    weights: tuple
    children: tuple

    @property
    def class_name(self):
        return type(self.layer).__name__

    @property
    def is_keras_layer(self):
        """Whether it is one of Keras's own layers, or of a class derived from one."""
        return isinstance(self.layer, _KERAS_LAYERS)

    @functools.cached_property
    def spec(self):
        """For each weight its name, shape and kind: "float" of any precision, else the dtype."""
        names = [re.sub(r"^variable_?\d+$", "variable", weight.name) for weight in self.weights]  # Keras's own
        dtypes = [keras.backend.standardize_dtype(weight.dtype) for weight in self.weights]
        kinds = ["float" if "float" in dtype else dtype for dtype in dtypes]
        return tuple(zip(names, (tuple(weight.shape) for weight in self.weights), kinds, strict=True))

    @functools.cached_property
    def unfit(self):
        """Why its weights cannot be handed over or replaced as they are, or ""."""
        if any(name.startswith("lora_") for name, _, _ in self.spec):
            return "uses LoRA"
        modes = [node.layer.quantization_mode for node in walk(self)]
        return next((f"is quantized ({mode})" for mode in modes if mode is not None), "")

    @functools.cached_property
    def signature(self):
        """What two layers must share to be matched without a map; None if the layer is unfit."""
        return None if self.unfit else (type(self.layer), self.spec)


def layer_tree(model, role):
    """The root `Node` of the teacher or student. A layer that is used in several places appears in the first one."""
    if not require_model(model, role).built:
        raise ValueError(
            f"{role} {model.name!r} is not built, so it holds no weights. Call it once on a batch, or give it a "
            "keras.Input."
        )
    if not model.weights:
        raise ValueError(f"{role} {model.name!r} must have layers with weights, got none.")
    return _node(model, (), (), set())


def walk(node):
    """The node and all nodes inside it, in the order of the model."""
    yield node
    for child in node.children:
        yield from walk(child)


def without_models(nodes):
    """The nodes, with each nested model replaced by what is inside it."""
    for node in nodes:
        if isinstance(node.layer, keras.Model) and node.children:
            yield from without_models(node.children)
        else:
            yield node


def find_node(root, layer, argument, role):
    """The node of a layer: given as the layer itself, as its path, or as a name that only one layer has."""
    nodes = [node for node in walk(root) if node is not root]
    if isinstance(layer, keras.layers.Layer):
        found = [node for node in nodes if node.layer is layer][:1]  # the node of its own weights comes second
        shown = f"the given {type(layer).__name__} {layer.name!r}"
    elif isinstance(layer, str):
        named = [node for node in nodes if node.path.split("/")[-1] == layer]
        found = [node for node in nodes if node.path == layer] or named
        shown = repr(layer)
    else:
        raise TypeError(f"{argument} must name layers by str or be layers, got {type(layer).__name__}: {layer!r}.")
    if len(found) == 1:
        return found[0]
    paths = [node.path for node in found or nodes]
    if found:
        raise ValueError(f"{argument}: {shown} is the name of several layers of the {role}, {paths}. Give the path.")
    raise ValueError(f"{argument}: {shown} is not a layer of the {role} with weights; those are {paths}.")


def difference(student, teacher):
    """Why the weights of one node do not go into those of another, or "". The class may differ, the shapes may not."""
    for role, node in (("student", student), ("teacher", teacher)):
        if node.unfit:
            return f"the {role}'s layer {node.unfit}"
    if student.spec == teacher.spec:
        return ""
    same_class = type(student.layer) is type(teacher.layer)
    for one, other in itertools.zip_longest(student.spec, teacher.spec, fillvalue=("no further weight", None, None)):
        shown = f"differ: student {_shown(*one)}, teacher {_shown(*other)}"
        if one[1] != other[1]:
            return f"shapes {shown}"
        if one[2] != other[2] or (same_class and one[0] != other[0]):
            return f"weights {shown}"
    return ""


def _node(layer, path, names, seen_weights):
    weights = tuple(weight for weight in layer.weights if id(weight) not in seen_weights)
    children = []
    for child in sublayers(layer):
        chosen = () if has_automatic_name(child) else (child.name,)
        children.append(_node(child, (*path, child.name), (*names, *chosen), seen_weights))
    children = [child for child in children if child.weights]  # none: it has no weights, or it came up before
    own = tuple(weight for weight in weights if id(weight) not in seen_weights)
    seen_weights.update(map(id, own))
    names = () if path and has_automatic_name(layer) else names
    joined = "/".join(path)
    if own and children:
        own_names = (*names[:-1], f"{names[-1]} (own weights)") if names else ()
        children.insert(0, Node(layer, f"{joined} (own weights)".strip(), own_names, own, ()))
    return Node(layer, joined, names, weights, tuple(children))


def has_automatic_name(layer):
    """Whether the name is "dense", "dense_1", "dense_2", … for a Dense."""
    return re.fullmatch(rf"{automatic_name(layer)}(_[1-9]\d*)?", layer.name) is not None


def _shown(name, shape, kind):
    return " ".join(str(part) for part in (name, shape, kind) if part not in (None, "float"))
