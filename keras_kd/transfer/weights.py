"""`transfer_weights`: check everything, then write the teacher's weights, plus Δw, into the student."""

import dataclasses
import math
import random
import warnings

import keras
import numpy as np
from keras import ops

from keras_kd._checks import require_count, require_number
from keras_kd._keras_private import learnable_variables
from keras_kd._tables import plain_text
from keras_kd.transfer.layers import difference, find_node, layer_tree, walk
from keras_kd.transfer.matching import SHARED, Match, match_layers


@dataclasses.dataclass(frozen=True)
class LayerTransfer:
    """What became of one student layer.

    Attributes:
        student: path of the student layer: "encoder/block_0/ffn".
        layer_class: the name of its class.
        parameters: the number of numbers in its weights.
        teacher: path of the teacher layer whose weights it got; None if it got none.
        how: "by name", "by shape and order", "by the given map" or "is the teacher's own layer"; else why it got none.
    """

    student: str
    layer_class: str
    parameters: int
    teacher: str | None
    how: str


@dataclasses.dataclass(frozen=True, repr=False)
class Transfer:
    """What each student layer got; made by `keras_kd.transfer_weights`. `print(transfer)` shows the table.

    Attributes:
        rows: a `LayerTransfer` for each student layer with weights, in the order of the student's layers.
        frozen: whether the layers that got weights were frozen.
    """

    rows: tuple[LayerTransfer, ...]
    frozen: bool

    @property
    def transferred(self):
        """The rows of the layers that got weights."""
        return tuple(row for row in self.rows if row.teacher is not None)

    @property
    def missing(self):
        """The rows of the layers that got none; `row.how` says why."""
        return tuple(row for row in self.rows if row.teacher is None)

    def __repr__(self):
        return f"Transfer(transferred={len(self.transferred)}, missing={len(self.missing)}, frozen={self.frozen})"

    def __str__(self):
        return plain_text(self)

    def __rich__(self):
        from rich import box
        from rich.table import Table
        from rich.text import Text

        got, parameters = (sum(row.parameters for row in rows) for rows in (self.transferred, self.rows))
        title = (
            f"\n{len(self.transferred)} of {len(self.rows)} layers got the teacher's weights: {got:,} of "
            f"{parameters:,} parameters{', frozen' if self.frozen else ''}"
        )
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
        for heading in ("student layer", "class", "parameters", "teacher layer", "how, or why not"):
            table.add_column(heading, justify="right" if heading == "parameters" else "left", overflow="fold")
        for row in self.rows:
            cells = (row.student, row.layer_class, f"{row.parameters:,}", row.teacher or "–", row.how)
            table.add_row(*map(Text, cells), style=None if row.teacher else "yellow")
        return table


def transfer_weights(
    teacher,
    student,
    *,
    layers=None,
    last=None,
    noise=0.0,
    delta=None,
    seed=None,
    freeze=False,
    strict=False,
):
    """Hand the teacher's weights straight to the student, layer by layer: w_S = w_T + Δw.

    Layers match if they have the same class and their weights the same names and shapes: first those with the same name
    (names that Keras makes itself, such as "dense_1", are no names), then, among the rest, the longest sequence of
    layers that stand in the same order in both models, at the earliest teacher layers. Nested models are walked into. A
    composite layer is handed over whole, or else in those parts that match; Keras's own layers, such as
    MultiHeadAttention, only whole. All weights of a layer go along, also the mean and variance of BatchNormalization,
    but not the random state of Dropout, cast to the student's dtype. Layers with LoRA or quantized weights do not
    match. The teacher stays as it is. If anything raises, the student does, too.

    Args:
        teacher: a built `keras.Model`.
        student: another built `keras.Model`. Layers it shares with the teacher are left alone.
        layers: the explicit map {student layer: teacher layer}: only these layers get weights. A layer is named by its
            name, by its path if it is inside others ("encoder/block_0/ffn"), or given itself; it may be a composite
            layer or a nested model. The classes may differ, the weights' shapes may not. `every_kth_block` makes such
            a map.
        last: hand over only the last `last` ≥ 1 matching layers, in the student's order. The longest common sequence
            then ends at the latest teacher layers. Not together with `layers`.
        noise: Δw is drawn from N(0, noise²), one draw a number. A standard deviation ≥ 0 in the unit of the weights;
            Keras's default kernel of 128 inputs and 128 outputs starts with 0.088. The statistics of
            BatchNormalization get no noise, since a variance must not be negative.
        delta: Δw as arrays, {student layer: [one array a weight, in the order and shape of `layer.weights`]}, of layers
            that get weights. Not together with `noise`.
        seed: a whole number ≥ 0 for `noise`. None takes it from Python's `random`, which
            `keras.utils.set_random_seed` sets. Several workers must share one seed.
        freeze: set `trainable` to False on the layers that got weights, so that training leaves them as they are.
            Compile the student, or the distiller it is in, afterwards. In Keras, a frozen BatchNormalization also
            normalizes by its fixed mean and variance in training.
        strict: raise if a student layer with weights gets none. With `last`: if one does from the first of those layers
            on, that is, in between or after them.

    Returns:
        A `Transfer`: a row for each student layer with weights, what it got and from where, or why nothing. `print` it.

    Warns:
        UserWarning: without `layers` and `last`, if student layers found no partner. It names them.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unbuilt model; an unknown layer (the known ones are listed) or shapes that do not fit (both are
            shown), in `layers` or `delta`; fewer than `last` matches; values that the student's dtype cannot hold;
            `strict`, with a list of what found no partner and why.

    Example:

    >>> layers = keras.layers
    >>> teacher = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu", name="first"),
    ...     layers.Dense(16, "relu", name="second"), layers.Dense(5, name="logits")])
    >>> student = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu", name="first"),
    ...     layers.Dense(3, name="logits")])  # of other classes
    >>> transfer = keras_kd.transfer_weights(teacher, student, noise=0.01, seed=0)
    UserWarning: 1 of the student's 2 layers with weights found no partner in the teacher and keeps its own: ['logits'].
    The returned table says why; strict=True raises.
    >>> print(transfer)
    1 of 2 layers got the teacher's weights: 144 of 195 parameters
    <BLANKLINE>
      student layer   class   parameters   teacher layer   how, or why not
     ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
      first           Dense          144   first           by name
      logits          Dense           51   –               shapes differ: student kernel (16, 3), teacher kernel (16, 5)
    """
    teacher_root, student_root = layer_tree(teacher, "teacher"), layer_tree(student, "student")
    _check_options(teacher, student, layers, last, noise, delta, seed)
    if layers is None:
        matches, why_not = _matched(teacher_root, student_root, last)
    else:
        matches, why_not = _given_matches(teacher_root, student_root, layers), lambda node: "not in the given map"
    transfer = Transfer(tuple(_rows(student_root, {match.student: match for match in matches}, why_not)), bool(freeze))
    unmatched = _unmatched(transfer.rows, last)
    if strict and unmatched:
        raise ValueError(_unmatched_message(transfer, unmatched, strict=True))
    matches = [match for match in matches if match.how != SHARED]
    if delta is None:
        changes = _gaussian_noise(matches, student, noise, seed) if noise else {}
    else:
        changes = _given_changes(matches, student_root, delta)
    values = _new_values(matches, teacher, changes)
    if unmatched and layers is None and last is None:
        # before anything is written: it may be turned into an error
        warnings.warn(_unmatched_message(transfer, unmatched, strict=False), stacklevel=2)
    _assign(values)
    if freeze:
        _freeze(matches, student)
    return transfer


def _check_options(teacher, student, layers, last, noise, delta, seed):
    if teacher is student:
        raise ValueError("student must be another model than the teacher. keras.models.clone_model makes a copy.")
    if not isinstance(layers, dict | None):
        shown = f"{type(layers).__name__}: {layers!r}"
        raise TypeError(f"layers must be a dict {{student layer: teacher layer}}, got {shown}.")
    if layers == {}:
        raise ValueError("layers must name at least one layer, got {}. Leave it out to match layers by name and shape.")
    if layers is not None and last is not None:
        raise ValueError("layers and last exclude each other: name in layers= just the layers that shall get weights.")
    if last is not None:
        require_count(last, "last", at_least=1)
    require_number(noise, "noise", at_least=0.0, hint="It is the standard deviation of what is added to each weight.")
    if seed is not None:
        require_count(seed, "seed", at_least=0)
    if noise and delta is not None:
        raise ValueError("noise and delta exclude each other: add the noise to the arrays of delta=.")


def _matched(teacher_root, student_root, last):
    """What `match_layers` returns, of the last `last` matches."""
    matches, no_match = match_layers(student_root, teacher_root, from_back=last is not None)
    if last is None:
        return matches, no_match
    found = [match for match in matches if match.how != SHARED]
    if len(found) < last:
        paths = [match.student.path for match in found]
        raise ValueError(f"last must be <= {len(found)}, the number of matching layers, got {last}; they are {paths}.")
    before = {match.student for match in found[:-last]}

    def why_not(node):
        return f"matches, but stands before the last {last}" if node in before else no_match(node)

    return [match for match in matches if match.student not in before], why_not


def _given_matches(teacher_root, student_root, layers):
    matches, owners = [], {}
    for student_layer, teacher_layer in layers.items():
        student_node = find_node(student_root, student_layer, "layers", "student")
        teacher_node = find_node(teacher_root, teacher_layer, "layers", "teacher")
        why = difference(student_node, teacher_node)
        if why:
            raise ValueError(f"layers: {student_node.path!r} cannot get the weights of {teacher_node.path!r}: {why}.")
        for weight in student_node.weights:
            other = owners.setdefault(id(weight), student_node)
            if other is not student_node or any(match.student is student_node for match in matches):
                raise ValueError(
                    f"layers: {student_node.path!r} would get weights twice, also by {other.path!r}. Leave one."
                )
        matches.append(Match(student_node, teacher_node, "by the given map"))
    return matches


def _rows(node, matches, why_not):
    """A row for each layer: for the whole of it, unless it is a nested model or some of its parts got weights."""
    match = matches.get(node)
    is_model = isinstance(node.layer, keras.Model)
    if match is None and node.children and (is_model or any(part in matches for part in walk(node))):
        for child in node.children:
            yield from _rows(child, matches, why_not)
    else:
        teacher, how = (match.teacher.path, match.how) if match else (None, why_not(node))
        parameters = sum(math.prod(weight.shape) for weight in node.weights)
        yield LayerTransfer(node.path, node.class_name, parameters, teacher, how)


def _unmatched(rows, last):
    """The rows without weights that `strict` looks at."""
    if last is not None:
        rows = rows[min(i for i, row in enumerate(rows) if row.teacher is not None and row.how != SHARED) :]
    return [row for row in rows if row.teacher is None]


def _unmatched_message(transfer, unmatched, *, strict):
    count = f"{len(unmatched)} of the student's {len(transfer.rows)} layers with weights"
    if strict:
        lines = "\n".join(f"  {row.student!r} ({row.layer_class}): {row.how}" for row in unmatched)
        way_out = "Nothing was changed. Name their partners in layers=, or leave strict out to hand over the rest."
        return f"strict=True: {count} get none:\n{lines}\n{way_out}"
    keeps = "keeps its own" if len(unmatched) == 1 else "keep their own"
    paths = [row.student for row in unmatched]
    table = "The returned table says why; strict=True raises."
    return f"{count} found no partner in the teacher and {keeps}: {paths}. {table}"


# Δw ----------------------------------------------------------------------------------------------------------------


def _gaussian_noise(matches, student, scale, seed):
    """`{id of a student weight: array}`, draws from N(0, scale²) for each weight that training changes."""
    generator = np.random.default_rng(random.getrandbits(64) if seed is None else seed)
    learnable = {id(variable) for variable in learnable_variables(student)}
    return {
        id(weight): generator.normal(0.0, scale, shape)
        for match in matches
        for weight, (_, shape, kind) in zip(match.student.weights, match.student.spec, strict=True)
        if id(weight) in learnable and kind == "float"
    }


def _given_changes(matches, student_root, delta):
    """`{id of a student weight: array}` of `delta`, {student layer: arrays in the order of its weights}."""
    if not isinstance(delta, dict):
        raise TypeError(f"delta must be a dict {{student layer: list of arrays}}, got {type(delta).__name__}.")
    matched = {match.student: match.student.path for match in matches}
    changes = {}
    for layer, arrays in delta.items():
        node = find_node(student_root, layer, "delta", "student")
        if node not in matched:
            paths = list(matched.values())
            raise ValueError(f"delta: {node.path!r} gets no weights from the teacher; the layers that do are {paths}.")
        argument = f"delta[{node.path!r}]"
        if not isinstance(arrays, list | tuple):
            raise TypeError(f"{argument} must be a list of arrays, one a weight, got {type(arrays).__name__}.")
        arrays = [_real_array(array, argument) for array in arrays]
        shapes, expected = [array.shape for array in arrays], [f"{name} {shape}" for name, shape, _ in node.spec]
        if shapes != [shape for _, shape, _ in node.spec]:
            raise ValueError(f"{argument} must have one array for each of {expected}, got the shapes {shapes}.")
        if any(kind != "float" for _, _, kind in node.spec):
            raise ValueError(f"{argument}: some weights of this layer are not floats: {node.spec}.")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(f"{argument} must hold finite numbers, got NaN or infinity.")
        changes |= zip(map(id, node.weights), arrays, strict=True)
    return changes


def _real_array(array, argument):
    try:
        found = np.asarray(array)
        if found.dtype.kind == "c":
            raise TypeError("complex numbers")
        return found.astype("float64")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must hold arrays of real numbers, got {array!r} ({error}).") from None


# Writing -----------------------------------------------------------------------------------------------------------


def _new_values(matches, teacher, changes):
    """`[(student weight, its new value)]`, all of them before any is assigned."""
    teacher_weights = {id(weight) for weight in teacher.weights}
    values = []
    for match in matches:
        for weight, teacher_weight in zip(match.student.weights, match.teacher.weights, strict=True):
            if id(weight) in teacher_weights:
                raise ValueError(
                    f"the student's {match.student.path!r} holds weights of the teacher, which must stay as they are. "
                    "Give the student layers of its own, for instance with keras.models.clone_model."
                )
            source = np.asarray(teacher_weight)  # np.array warns: Keras variables do not know its `copy`
            if id(weight) in changes:
                source = source.astype("float64") + changes[id(weight)]
            value = ops.convert_to_numpy(ops.cast(source, weight.dtype))
            _check_finite(value.astype("float64"), source.astype("float64"), match, weight.dtype)
            values.append((weight, value))
    return values


def _check_finite(value, source, match, dtype):
    if np.isnan(value).any() or (np.isinf(value) & np.isfinite(source)).any():
        worst = "NaN" if np.isnan(value).any() else f"values up to {np.abs(source).max():.3g}"
        raise ValueError(
            f"the teacher's {match.teacher.path!r} would bring {worst} into the student's {match.student.path!r}, of "
            f"dtype {dtype}. Leave it out with layers=, or give the student a wider dtype."
        )


def _assign(values):
    before = [(weight, np.asarray(weight).copy()) for weight, _ in values]
    try:
        for weight, value in values:
            weight.assign(value)
    except BaseException:
        for weight, value in before:
            weight.assign(value)
        raise


def _freeze(matches, student):
    for match in matches:
        node = match.student
        if len(node.weights) == len(node.layer.weights):
            node.layer.trainable = False
        else:  # the layer also holds weights that it did not get
            for weight in node.weights:
                weight.trainable = False
    if student.compiled:
        student.train_function = None  # a step that was traced before would go on moving them
