"""A student whose feed-forward layers have fewer units: those that its teacher uses least are left out."""

import keras
import numpy as np

from keras_kd._checks import require_count
from keras_kd._keras_private import get_mask
from keras_kd.outputs.hooks import Hook, LayerCapture
from keras_kd.students.rebuilding import Rebuilding, hand_over, require_functional, walk

_UNITS, _INNER = "intermediate_dim", "feedforward_intermediate_dense"  # as KerasHub's transformer blocks call them


def narrower_feed_forward(teacher, units, data, *, batch_size=32):
    """Make a student whose transformer blocks have narrower feed-forward layers.

    Of each block the units with the largest mean |activation| on the data stay, in their old order. They keep their
    weights; all other layers keep all of theirs. In small steps, of a third or so, each distilled before the next, less
    is lost than in one.

    Heads are not taken out: the blocks of KerasHub give each head width / heads numbers, so that fewer heads would have
    to be wider.

    Args:
        teacher: a built functional `keras.Model` with blocks of `keras_hub.layers.TransformerEncoder`, such as a
            `BertBackbone`, an `XLMRobertaBackbone`, or a model made of their layers.
        units: how many units each feed-forward layer keeps, fewer than it has.
        data: inputs of the teacher, `(examples, ...)`; a few hundred examples do. Padding is left out.
        batch_size: examples per pass.

    Returns:
        `(student, transfer)`: a built `keras.Model`, all of it trainable, and the `keras_kd.transfer.Transfer`, which
        says of each block what share of the activation it keeps.

    Raises:
        TypeError: an argument of another type.
        ValueError: there are no such blocks, or they have no more units than are to be kept.

    Example:

    >>> import keras_hub
    >>> teacher = keras_hub.models.BertBackbone(50, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=32)
    >>> ids = np.arange(12).reshape(3, 4)
    >>> data = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": np.ones_like(ids)}
    >>> student, transfer = keras_kd.students.narrower_feed_forward(teacher, 16, data)
    >>> teacher.count_params() - student.count_params()  # 2 blocks, 16 units, 8 weights in, 1 bias and 8 weights out
    544

    Source: Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation",
    https://arxiv.org/abs/2407.14679.
    """
    blocks = _blocks(require_functional(teacher))
    widths = {path: block.get_config()[_UNITS] for path, block in blocks.items()}
    if require_count(units, "units", at_least=1) >= min(widths.values()):
        raise ValueError(f"units must be < {min(widths.values())}, those of the teacher's blocks, got {units}.")
    activations = _activations(teacher, blocks, data, require_count(batch_size, "batch_size", at_least=1))
    kept = {id(blocks[path]): np.sort(np.argsort(-sums, kind="stable")[:units]) for path, sums in activations.items()}
    shares = {id(blocks[path]): sums[kept[id(blocks[path])]].sum() / sums.sum() for path, sums in activations.items()}

    def narrowed(layer):
        config = layer.get_config() if isinstance(layer, keras.Model) or id(layer) in kept else {}
        return {**config, _UNITS: units} if _UNITS in config else None

    def values(new, old):
        how = f"{units} of {old.get_config()[_UNITS]} units, {100 * shares[id(old)]:.1f} % of their activation"
        weights = zip(old.get_weights(), new.weights, strict=True)
        return [_cut(weight, other.shape, kept[id(old)]) for weight, other in weights], how

    rebuilding = Rebuilding(narrowed)
    student = rebuilding(teacher)
    return student, hand_over(teacher, student, rebuilding.pairs, values=values)


def _blocks(teacher):
    """{path: block} of the transformer blocks, wherever in the teacher they are."""
    inside = dict(walk(teacher, inside=True))
    blocks = {path: layer for path, layer in inside.items() if f"{path}/{_INNER}" in inside}
    if not blocks:
        raise ValueError(
            f"teacher must have blocks of keras_hub.layers.TransformerEncoder, got {teacher.name!r} with the layers "
            f"{[layer.name for layer in teacher.layers]}."
        )
    return blocks


def _activations(teacher, blocks, data, batch_size):
    """{path: float64 `(units,)`}: Σ |activation| of each unit over all tokens that are no padding."""
    hooks = {path: Hook(f"{path}/{_INNER}") for path in blocks}
    capture = LayerCapture(teacher, hooks.values(), role="teacher")
    sums = dict.fromkeys(blocks, 0.0)
    examples = len(keras.tree.flatten(data)[0])
    for start in range(0, examples, batch_size):
        batch = keras.tree.map_structure(lambda rows, start=start: rows[start : start + batch_size], data)
        _, found, _ = capture.run(lambda batch=batch: teacher(batch, training=False))
        for path, hook in hooks.items():
            sums[path] += _sum_of_tokens(found[hook])
    return sums


def _sum_of_tokens(activations):
    # (batch, length, units) -> (units,)
    values, mask = np.abs(np.asarray(activations, "float64")), get_mask(activations)
    return values.sum(axis=(0, 1)) if mask is None else values[np.asarray(mask)].sum(axis=0)


def _cut(weight, shape, kept):
    """A weight with the kept units only, along the axis that gets shorter."""
    axes = [axis for axis, (old, new) in enumerate(zip(weight.shape, shape, strict=True)) if old != new]
    return weight.take(kept, axis=axes[0]) if axes else weight
