"""The map for a student with fewer blocks than its teacher: every k-th block of a deep encoder."""

import re

from keras_kd._checks import require_count
from keras_kd.transfer.layers import has_automatic_name, layer_tree, walk

_BARE = -1  # the number of "transformer_block", which Keras makes before "transformer_block_1"


def every_kth_block(teacher, student, k=2, *, offset=0, pattern=None):
    """Return the map for `transfer_weights(layers=...)` by which the student takes every k-th block of the teacher.

    The student's block i gets the teacher's block k·i + offset, both counted from 0 in the order of the numbers in
    their names: with k = 2, offset = 0 the blocks 0, 2, 4, …; with offset = 1 the blocks 1, 3, 5, … DistilBERT was
    started this way, from one layer out of two.

    A block is one layer with a number in its name ("block_3": a composite layer or a nested model), or all layers that
    have the same number there ("block_3_attention", "block_3_ffn", "encoder/block_3/norm"); these are paired by what
    follows the number. The map holds the blocks only; add embeddings and heads by hand:
    `layers={**every_kth_block(teacher, student), "embedding": "embedding"}`.

    Args:
        teacher: a built `keras.Model` with at least k·(n - 1) + offset + 1 blocks, for n blocks in the student. Blocks
            beyond the last one taken are left out; to span the whole depth, k is teacher blocks // student blocks.
        student: a built `keras.Model`.
        k: the step, a whole number ≥ 1.
        offset: the first block taken, from 0 to k - 1; k - 1 takes the last block of each group of k.
        pattern: where the number stands in the names, as "{}": "block_{}", or with the layers around it
            "encoder/block_{}". A pair (teacher's, student's) where they differ. None finds it, if there is one answer:
            the numbered names that both models have and that hold the most. Names that Keras makes count for nested
            models and layers of your own only: "transformer_block", "transformer_block_1", … in the order of making.

    Returns:
        {student path: teacher path}, one entry a block or a part of a block.

    Raises:
        TypeError: a model, number or pattern of another type.
        ValueError: k or offset out of range; no blocks, or blocks of several kinds, are found; the teacher has too few
            blocks, or its block lacks a part of the student's.

    Example:

    >>> def encoder(depth):
    ...     block = lambda i: keras.layers.Dense(16, "gelu", name=f"block_{i}_ffn")
    ...     return keras.Sequential([keras.Input((16,)), *map(block, range(depth))])
    >>> teacher, student = encoder(6), encoder(3)
    >>> layers = keras_kd.transfer.every_kth_block(teacher, student)
    >>> layers
    {'block_0_ffn': 'block_0_ffn', 'block_1_ffn': 'block_2_ffn', 'block_2_ffn': 'block_4_ffn'}
    >>> transfer = keras_kd.transfer_weights(teacher, student, layers=layers)

    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", https://arxiv.org/abs/1910.01108.
    """
    teacher_root, student_root = layer_tree(teacher, "teacher"), layer_tree(student, "student")
    k, offset = require_count(k, "k", at_least=1), require_count(offset, "offset", at_least=0)
    if offset >= k:
        raise ValueError(f"offset must be < k = {k}, got {offset}: it is the place within each group of {k} blocks.")
    teacher_pattern, student_pattern = _patterns(pattern, teacher_root, student_root)
    teacher_blocks = _found_blocks(teacher_root, teacher_pattern, "teacher")
    student_blocks = _found_blocks(student_root, student_pattern, "student")
    needed = k * (len(student_blocks) - 1) + offset + 1
    if len(teacher_blocks) < needed:
        raise ValueError(
            f"the teacher has {len(teacher_blocks)} blocks {teacher_pattern!r}, but {len(student_blocks)} student "
            f"blocks with k={k} and offset={offset} need {needed}. Choose a smaller k, or write the map by hand."
        )
    layers = {}
    for student_block, teacher_block in zip(student_blocks, teacher_blocks[offset::k], strict=False):
        for suffix, node in student_block.items():
            if suffix not in teacher_block:
                raise ValueError(
                    f"the teacher's block has no part that ends in {suffix!r} as the student's {node.path!r} does; its "
                    f"parts are {[part.path for part in teacher_block.values()]}. Give pattern=, or write the map by "
                    "hand."
                )
            layers[node.path] = teacher_block[suffix].path
    return layers


def _patterns(pattern, teacher_root, student_root):
    """The patterns of the teacher and of the student."""
    if pattern is None:
        return [_common_pattern(teacher_root, student_root)] * 2
    patterns = [pattern, pattern] if isinstance(pattern, str) else pattern
    if not isinstance(patterns, list | tuple) or len(patterns) != 2 or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f'pattern must be a str such as "block_{{}}" or a pair of them, got {pattern!r}.')
    for each in patterns:
        if each.count("{}") != 1:
            raise ValueError(f'pattern must have one "{{}}" where the number stands, as in "block_{{}}", got {each!r}.')
    return list(patterns)


def _found_blocks(root, pattern, role):
    """The blocks of one model in their order, each as {what follows the number: node}."""
    parts = _parts(root, pattern)
    if not parts:
        raise ValueError(f"pattern={pattern!r} fits no layer of the {role}; they are {_paths(root)}.")
    places = sorted({place for place, *_ in parts})
    if len(places) > 1:
        raise ValueError(
            f"pattern={pattern!r} is found in several places of the {role}: {places}. Name one of them in the pattern, "
            f'as in pattern="{places[-1]}{pattern}".'
        )
    blocks = {}
    for _, number, suffix, node in parts:
        blocks.setdefault(number, {})[suffix] = node
    return [blocks[number] for number in sorted(blocks)]


def _parts(node, pattern):
    """`[(what stands before the pattern, number, what follows, node)]` of the outermost layers that fit."""
    before, after = map(re.escape, pattern.split("{}"))
    if fit := re.fullmatch(rf"((?:.*?/)?){before}(\d+){after}(?![^\W_])(.*)", node.path):
        return [(fit[1], int(fit[2]), fit[3], node)]
    bare = re.fullmatch(rf"((?:.*/)?){before.removesuffix('_')}{after}", node.path)
    if bare and has_automatic_name(node.layer) and not node.is_keras_layer:
        return [(bare[1], _BARE, "", node)]
    return [part for child in node.children for part in _parts(child, pattern)]


def _common_pattern(teacher_root, student_root):
    """The one pattern that both models have, of which the teacher has at least two blocks, and that holds the most."""
    covered = {}
    for pattern in _numbered_names(student_root):
        teacher_blocks = {(place, number) for place, number, *_ in _parts(teacher_root, pattern)}
        if len(teacher_blocks) > len({place for place, _ in teacher_blocks}):
            covered[pattern] = {id(weight) for *_, node in _parts(student_root, pattern) for weight in node.weights}
    largest = []
    for pattern in sorted(covered, key=lambda name: (-len(covered[name]), len(name))):
        if not any(covered[pattern] <= covered[other] for other in largest):
            largest.append(pattern)
    if len(largest) == 1:
        return largest[0]
    if largest:
        raise ValueError(f"several kinds of numbered blocks are found: {largest}. Choose one with pattern=.")
    raise ValueError(
        'no numbered blocks are found that both models have; name layers as in "block_0_attention", or give pattern= '
        f"(two where they differ). Teacher's layers: {_paths(teacher_root)}. Student's: {_paths(student_root)}."
    )


def _paths(root):
    return [node.path for node in walk(root) if node is not root]


def _numbered_names(root):
    """Patterns for each number that ends a word in a layer's name: "block_{}" of "block_3_ffn", but not of "conv2d"."""
    found = {}
    for node in walk(root):
        name = node.layer.name
        if node is root or (has_automatic_name(node.layer) and node.is_keras_layer):
            continue
        for number in re.finditer(r"\d+(?![^\W_])", name):
            found[f"{name[: number.start()]}{{}}"] = None
        if has_automatic_name(node.layer):
            found[f"{name}_{{}}"] = None
    return list(found)
