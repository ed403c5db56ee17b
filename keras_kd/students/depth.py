"""A student with fewer layers of its teacher: which ones, by a rule or by measured importance."""

import os
import re

import keras
import numpy as np

from keras_kd._checks import require_count
from keras_kd._keras_private import functional_graph, graph_calls
from keras_kd.students.rebuilding import Rebuilding, hand_over, require_functional, walk
from keras_kd.transfer import every_kth_block


def fewer_layers(teacher, keep, *, data=None, pattern=None):
    """Make a student of some of the teacher's blocks; everything else, such as embeddings and heads, stays.

    With a number for `keep` and no `data`, the blocks are spread evenly and hold the first and the last one: of 12, 3
    are 0, 5 and 11. With `data`, they are those that `layer_importance` ranks highest. Either way they keep their
    order. The student computes what the teacher would with the other blocks cut out, and is to be distilled next.

    A KerasHub backbone gives a backbone of the same class. In other functional models, a block must take one tensor and
    give one of the same shape, as those of a transformer do; where several layers make a block, all of them carry its
    number ("block_3_attention", "block_3_ffn"), and additions between them are found.

    Args:
        teacher: a built functional or sequential `keras.Model`, or one that nests the model with the blocks.
        keep: how many blocks, 1 or more; or the list of those to keep, counted from 0.
        data: inputs of the teacher, `(examples, ...)`, to measure the importance on; a few hundred examples do.
        pattern: where the number stands in the blocks' names: see `keras_kd.transfer.every_kth_block`.

    Returns:
        `(student, transfer)`: a built `keras.Model`, all of it trainable, and the `keras_kd.transfer.Transfer` that
        says which layer of the teacher each of its layers was.

    Raises:
        TypeError: an argument of another type.
        ValueError: no blocks are found; more are to be kept than there are, or ones that do not exist; a block that
            cannot be cut out.

    Example:

    >>> blocks = [keras.layers.Dense(8, "gelu", name=f"block_{i}") for i in range(12)]
    >>> teacher = keras.Sequential([keras.Input((8,)), *blocks, keras.layers.Dense(3, name="logits")])
    >>> student, transfer = keras_kd.students.fewer_layers(teacher, 3)
    >>> [row.teacher for row in transfer.rows]
    ['block_0', 'block_5', 'block_11', 'logits']

    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", https://arxiv.org/abs/1910.01108; importance:
    Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation",
    https://arxiv.org/abs/2407.14679.
    """
    blocks = _blocks(require_functional(teacher), pattern)
    kept = _chosen(teacher, keep, len(blocks), data, pattern)
    owner = _owner(teacher, blocks)
    config = owner.get_config()
    if config.get("num_layers") == len(blocks):
        dropped = {id(layer) for i, block in enumerate(blocks) if i not in kept for layer in block}
        rebuilding = Rebuilding(lambda layer: {**config, "num_layers": len(kept)} if layer is owner else None, dropped)
        student = rebuilding(teacher)
    else:
        regions = [_region(owner, block, blocks) for i, block in enumerate(blocks) if i not in kept]
        rebuilding = _Cutting(regions)
        student = rebuilding(teacher)
    return student, hand_over(teacher, student, rebuilding.pairs)


def layer_importance(teacher, data, *, pattern=None, batch_size=32):
    """Measure how much each block changes what passes through it: Block Influence, 1 - cos(input, output).

    The mean over all positions and examples; padding is left out where the teacher takes a "padding_mask". A block that
    changes little can be cut out at little cost.

    Args:
        teacher: a built functional `keras.Model` that holds the blocks itself, such as a KerasHub backbone.
        data: its inputs, `(examples, ...)`.
        pattern: see `fewer_layers`.
        batch_size: examples per pass.

    Returns:
        float64 `(blocks,)`, from 0 to 2.

    Raises:
        ValueError: no blocks are found, a block is not one of one input and one output, or the blocks are in a model
            inside the teacher.

    Example:

    >>> scale = lambda i, factors: keras.layers.Rescaling(factors, name=f"scale_{i}")
    >>> blocks = [keras.layers.Dense(2, kernel_initializer=matrix, name=f"block_{i}")
    ...     for i, matrix in enumerate(["identity", lambda shape, dtype: np.array([[0, 1], [1, 0]])])]
    >>> teacher = keras.Sequential([keras.Input((2,)), *blocks])
    >>> keras_kd.students.layer_importance(teacher, np.array([[1.0, 0.0]]))  # the second turns the vector by 90°
    array([0., 1.])

    Source: Men et al. 2024, "ShortGPT", https://arxiv.org/abs/2403.03853, used in Minitron,
    https://arxiv.org/abs/2407.14679.
    """
    blocks = _blocks(require_functional(teacher), pattern)
    owner = _owner(teacher, blocks)
    if owner is not teacher:
        raise ValueError(
            f"the blocks are in the model {owner.name!r} inside the teacher {teacher.name!r}: measure there, with its "
            "own inputs, and give fewer_layers(keep=[...]) the list."
        )
    require_count(batch_size, "batch_size", at_least=1)
    graph = functional_graph(teacher)
    regions = [_region(teacher, block, blocks) for block in blocks]
    ends = keras.Model(graph.input, [tensor for region in regions for tensor in (region.input, region.output)])
    mask = data.get("padding_mask") if isinstance(data, dict) else None
    values = ends.predict(data, batch_size=batch_size, verbose=0)
    return np.array([_influence(*values[i : i + 2], mask) for i in range(0, len(values), 2)])


def _influence(before, after, mask):
    before, after = np.asarray(before, "float64"), np.asarray(after, "float64")
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    change = 1 - (before * after).sum(axis=-1) / np.maximum(norms, 1e-12)
    return np.average(change, weights=None if mask is None else np.asarray(mask, "float64"))


def _chosen(teacher, keep, count, data, pattern):
    """The blocks to keep, in order."""
    if isinstance(keep, (list, tuple, range, np.ndarray)):
        kept = [require_count(number, "keep", at_least=0) for number in keep]
        if not kept or len(set(kept)) < len(kept) or max(kept) >= count:
            raise ValueError(f"keep must list different blocks from 0 to {count - 1}, at least one, got {kept}.")
        if data is not None:
            raise ValueError("data measures which blocks to keep: give it with a number for keep, not with a list.")
        return sorted(kept)
    if require_count(keep, "keep", at_least=1) > count:
        raise ValueError(f"keep must be <= {count}, the number of the teacher's blocks, got {keep}.")
    if data is not None:
        order = np.argsort(-layer_importance(teacher, data, pattern=pattern), kind="stable")
        return sorted(order[:keep].tolist())
    return [i * (count - 1) // max(keep - 1, 1) for i in range(keep)]


def _blocks(teacher, pattern):
    """The layers of each block, in the order of the blocks' numbers."""
    paths = list(every_kth_block(teacher, teacher, k=1, pattern=pattern))
    prefix = os.path.commonprefix(paths).rstrip("0123456789")  # noqa: RUF071, of the names' letters
    layers, blocks = dict(walk(teacher)), {}
    for path in paths:
        if path not in layers:
            raise ValueError(
                f"the block {path!r} is inside a layer that is no model, so it cannot be cut out. Give pattern= for "
                "the layers of the functional model itself."
            )
        blocks.setdefault(re.match(r"_?(\d*)", path.removeprefix(prefix))[0], []).append(layers[path])
    return list(blocks.values())


def _owner(teacher, blocks):
    """The functional model that holds the blocks: the teacher or one inside it."""
    models = [teacher, *(layer for _, layer in walk(teacher) if isinstance(layer, keras.Model))]
    return next(model for model in models if any(layer is blocks[0][0] for layer in model.layers))


class _Cutting(Rebuilding):
    """Makes a model anew without some regions of its graph: what goes into one comes out of it unchanged."""

    def __init__(self, regions):
        super().__init__(lambda layer: None, call=self._call_or_skip)
        self._region_of = {id(operation): region for region in regions for operation in region.operations}
        self._inputs = {}

    def _remade(self, layer):
        return _Skipped(layer) if id(layer) in self._region_of else super()._remade(layer)

    def _call_or_skip(self, layer, *args, **kwargs):
        if not isinstance(layer, _Skipped):
            return layer(*args, **kwargs)
        region = self._region_of[id(layer.operation)]
        given = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, keras.KerasTensor)]
        for old, new in zip(region.inputs_of[id(layer.operation)], given, strict=True):
            if old is region.input:
                self._inputs[id(region)] = new
        return self._inputs.get(id(region), given[0])  # used only for the region's output


class _Skipped:
    def __init__(self, operation):
        self.operation = operation


class _Region:
    """The operations of a block, and the one tensor that goes in and the one that comes out.

    Attributes:
        operations: the operations.
        input: the tensor that goes in; a mask that goes in as well has another shape.
        output: the tensor that comes out.
        inputs_of: {id of an operation: its input tensors}.
    """

    def __init__(self, calls, model):
        self.operations = [operation for operation, _, _ in calls]
        self.inputs_of = {id(operation): inputs for operation, inputs, _ in calls}
        inside = {id(tensor) for _, _, outputs in calls for tensor in outputs}
        members = {id(operation) for operation in self.operations}
        others = [call for call in graph_calls(model) if id(call[0]) not in members]
        used = {id(tensor) for _, inputs, _ in others for tensor in inputs}
        used |= {id(tensor) for tensor in functional_graph(model).outputs}
        outputs = [tensor for _, _, outputs in calls for tensor in outputs if id(tensor) in used]
        self.output = outputs[0] if len(outputs) == 1 else None
        entering = {id(t): t for _, inputs, _ in calls for t in inputs if id(t) not in inside}
        fitting = [t for t in entering.values() if self.output is not None and _alike(t, self.output)]
        self.input = fitting[0] if len(fitting) == 1 else None
        self.is_clean = self.input is not None and id(self.input) not in used
        self.boundary = set(entering) | inside


def _alike(tensor, other):
    return tuple(tensor.shape) == tuple(other.shape) and tensor.dtype == other.dtype


def _region(model, block, blocks):
    """The `_Region` of a block: its layers, what lies between them, and the additions that end it."""
    calls = graph_calls(model)
    numbered = {id(layer) for layers in blocks for layer in layers}
    members = {id(layer) for layer in block}
    while True:
        members |= _between(calls, members)
        region = _Region([call for call in calls if id(call[0]) in members], model)
        if region.is_clean:
            return region
        inside = {id(tensor) for operation, _, outputs in calls if id(operation) in members for tensor in outputs}
        ending = {
            id(operation)
            for operation, inputs, _ in calls
            if id(operation) not in members | numbered
            and any(id(tensor) in inside for tensor in inputs)
            and all(id(tensor) in region.boundary for tensor in inputs)
        }
        if not ending or len(members | ending) == len(calls):
            raise ValueError(
                f"the block of {[layer.name for layer in block]} cannot be cut out: it must take one tensor and give "
                'one of the same shape. Give all layers of a block its number, as in "block_3_add".'
            )
        members |= ending


def _between(calls, members):
    """The operations that lie on a way from one member to another."""
    after, before = set(), set()
    tensors = set()
    for operation, inputs, outputs in calls:
        if id(operation) in members or any(id(tensor) in tensors for tensor in inputs):
            after.add(id(operation))
            tensors |= {id(tensor) for tensor in outputs}
    tensors = set()
    for operation, inputs, outputs in reversed(calls):
        if id(operation) in members or any(id(tensor) in tensors for tensor in outputs):
            before.add(id(operation))
            tensors |= {id(tensor) for tensor in inputs}
    return after & before
