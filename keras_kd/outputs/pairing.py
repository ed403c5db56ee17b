"""Which output of the teacher each loss compares with which of the student."""

from typing import NamedTuple

import keras

from keras_kd.outputs.endings import CHANNELS_FIRST, UNKNOWN, channels_last, ending_kind
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.precomputed import PrecomputedTeacher, without_teacher_outputs
from keras_kd.outputs.reader import OutputReader

_SIDES = ("teacher", "student")


class Pair(NamedTuple):
    """One teacher output and one student output of a batch, for a loss to compare."""

    teacher: object
    student: object
    labels: object  # of the compared output, or None
    sample_weight: object  # likewise
    projection: str  # the name of the projection after the student's output, if there is one


class Pairing:
    """The outputs of two models, read once each and paired for every loss.

    The teacher is a built `keras.Model`; the student itself for one that learns from its own outputs; a
    `PrecomputedTeacher` for outputs that come with the batches; or None. `hooks`, `{"teacher": (Hook, ...), "student":
    (Hook, ...)}`, are read besides those of the losses.
    """

    def __init__(self, distillation_losses, student, teacher=None, *, hooks=None):
        self.distillation_losses, self.teacher = distillation_losses, teacher
        self.is_self_taught = teacher is student
        if self.is_self_taught:
            _require_two_outputs(distillation_losses)
        hooks = {side: hooks_of(distillation_losses, side) + (hooks or {}).get(side, ()) for side in _SIDES}
        student_hooks = hooks["student"] + (hooks["teacher"] if self.is_self_taught else ())
        self._student_reader = self._teacher_reader = OutputReader(student, student_hooks, role="student")
        if teacher is None or isinstance(teacher, PrecomputedTeacher):
            self._teacher_reader = teacher
        elif not self.is_self_taught:
            self._teacher_reader = OutputReader(teacher, hooks["teacher"], role="teacher")
        self._readers = {"teacher": self._teacher_reader, "student": self._student_reader}

    def student_inputs(self, x):
        """Of a batch, what the student reads."""
        return self._student_reader.own_inputs(without_teacher_outputs(x))

    def read_teacher(self, x):
        """The teacher's `ModelOutputs` for a batch, in inference mode; None for a student that teaches itself."""
        self.require_teacher()
        return None if self.is_self_taught else self._teacher_reader(x, training=False)

    def require_teacher(self):
        """Raise ValueError if there is no teacher."""
        if self._teacher_reader is None:
            raise ValueError(
                "the distiller has no teacher. Assign it before fit, distiller.teacher = teacher, or give fit a "
                "dataset with precomputed teacher outputs: see keras_kd.cache_teacher_outputs."
            )

    def read_student(self, x, training):
        """The student's `ModelOutputs` for a batch."""
        return self._student_reader(x, training=training)

    def pairs(self, loss, teacher_outputs, student_outputs, y=None, sample_weight=None):
        """The `Pair`s that a loss compares."""
        teacher = _compared(self._teacher_reader, teacher_outputs, loss, "teacher")
        student = _compared(self._student_reader, student_outputs, loss, "student")
        if len(teacher) != len(student):
            raise ValueError(
                f"{loss.name} compares every output of the teacher with one of the student, but the teacher has "
                f"{len(teacher)} and the student {len(student)}. Name one with output= and teacher_output=."
            )
        if not loss.layers_of("teacher") and not loss.layers_of("student") and loss.output_of("teacher") is None:
            teacher = self._in_order_of_names(teacher, teacher_outputs, student_outputs)
        if loss.layers_of("student"):  # to which labels or weights that differ by output do not apply
            shared = (None if keras.tree.is_nested(part) else part for part in (y, sample_weight))
            labels, weights = ([part] * len(student) for part in shared)
        else:
            labels = self._student_reader.parts(student_outputs, y, loss.output)
            weights = self._student_reader.parts(student_outputs, sample_weight, loss.output)
            _require_weight_per_output(sample_weight, student_outputs.prediction)
        others = [loss.name if loss.shares_projection else f"{loss.name}_{i}" for i in range(1, len(student))]
        projections = [loss.name, *others]
        return [Pair(*parts) for parts in zip(teacher, student, labels, weights, projections, strict=True)]

    def _in_order_of_names(self, teacher, teacher_outputs, student_outputs):
        """All outputs of the teacher, in the order of the student's where both have the same names."""
        names, student_names = self._teacher_reader.names(teacher_outputs), self._student_reader.names(student_outputs)
        is_named = names and sorted(names) == sorted(student_names)
        return [teacher[names.index(name)] for name in student_names] if is_named else teacher

    def outputs_of_unknown_ending(self, teacher_outputs, student_outputs):
        """`(name of the loss, side, tensors)` of the outputs that a loss takes for logits on trust."""
        for loss in self.distillation_losses:
            for side, outputs in (("teacher", teacher_outputs), ("student", student_outputs)):
                if loss.undoes != "softmax" or loss.layers_of(side) or outputs.prediction is None:
                    continue
                flat, output, reader = keras.tree.flatten(outputs.prediction), loss.output_of(side), self._readers[side]
                endings = zip(reader.positions(outputs, output), reader.activations(outputs, output), strict=True)
                tensors = [flat[position] for position, activation in endings if activation == UNKNOWN]
                if tensors:
                    yield loss.name, side, tensors

    def logits(self, teacher_outputs, student_outputs):
        """The logits of teacher and student, for metrics that compare them."""
        teacher = self._teacher_reader.select(teacher_outputs, undo="softmax")
        student = self._student_reader.select(student_outputs, undo="softmax")
        if self.is_self_taught or len(teacher) != 1 or len(student) != 1:
            found = "one model that teaches itself" if self.is_self_taught else f"{len(teacher)} and {len(student)}"
            raise ValueError(
                f"metrics that compare with the teacher need a teacher and a student with one output each, got {found}."
            )
        return teacher[0], student[0]

    def symbolic_pairs(self):
        """`(loss, Pair)` with static shapes, for every pair; nothing where a subclassed model shows none.

        Raises:
            ValueError: An output is known to end in an activation that a loss over it cannot undo.
        """
        for loss in self.distillation_losses:
            for side, reader in self._readers.items():
                if not loss.layers_of(side):
                    require_comparable(reader, loss, side)
            _require_one_kind(self._readers, loss)
        teacher, student = self._teacher_reader.symbolic(), self._student_reader.symbolic()
        if teacher is None or student is None:
            return  # the shapes show when the first batch is traced, where the losses check them again
        for loss in self.distillation_losses:
            for pair in self.pairs(loss, teacher, student):
                yield loss, pair


def hooks_of(distillation_losses, side):
    """The `Hook`s that losses have on the "teacher" or the "student"."""
    return tuple(
        Hook(layer, part) for one in distillation_losses for layer in one.layers_of(side) for part in one.parts
    )


def _require_two_outputs(distillation_losses):
    """Raise ValueError if a loss would compare an output of the one model with itself."""
    for loss in distillation_losses:
        if all(of("teacher") == of("student") for of in (loss.layers_of, loss.output_of)):
            raise ValueError(
                f"teacher and student are one model, and {loss.name} compares each of its outputs with itself. "
                "Give another model as the teacher (keras.models.clone_model makes a copy); or, for a model whose deep "
                "output teaches a shallow one, name both: output='shallow', teacher_output='deep'."
            )


def _compared(reader, outputs, loss, side):
    """The outputs of one side that a loss compares, with their channels last."""
    if not loss.layers_of(side):
        tensors = reader.select(outputs, loss.output_of(side), undo=loss.undoes)
        activations = reader.activations(outputs, loss.output_of(side))
        axes = [1 if activation == CHANNELS_FIRST else None for activation in activations]
        return list(map(channels_last, tensors, axes))
    hooks = hooks_of([loss], side)
    for hook in hooks:
        if hook not in outputs.layers:
            raise ValueError(
                f"{side}_layer={hook.layer!r} is not among the precomputed outputs of the batches, "
                f"{[tuple(known) for known in outputs.layers]}. Store {hook.part!r} of it as well."
            )
    return [outputs.layers[hook] for hook in hooks]


def _require_weight_per_output(weights, prediction):
    given, count = len(keras.tree.flatten(weights)), len(keras.tree.flatten(prediction))
    if keras.tree.is_nested(weights) and given != count:
        raise ValueError(f"sample_weight must be one array, or one for each of {count} outputs, got {given}.")


_LAST_AXIS = "distributions over the last axis"
_PERMUTE = "Move the classes to the last axis before the softmax, for instance with keras.layers.Permute."
_NOT_UNDONE = {  # what a loss compares instead of an output that ends so, how that is put, and the way out
    "sigmoid": (
        "distributions over classes",
        "sigmoid, one independent probability per unit",
        "End it in a linear layer (logits) or a softmax, name another output with output=, or use "
        "keras_kd.losses.BinarySoftLabels.",
    ),
    "softmax": (
        "independent probabilities, one per unit",
        "softmax, a distribution over classes",
        "End it in a linear layer (logits) or a sigmoid, name another output with output=, or use "
        "keras_kd.losses.SoftLabels.",
    ),
    CHANNELS_FIRST: (_LAST_AXIS, 'a layer with data_format="channels_first", whose classes are on axis 1', _PERMUTE),
}


def require_comparable(reader, loss, side):
    """Raise ValueError if outputs that a loss compares are known to end in an activation that it cannot undo."""
    expected = loss.expected_ending(side)
    for activation in _known_endings(reader, loss, side):
        if expected and ending_kind(activation) not in (None, expected):
            raise ValueError(
                f"{loss.name} needs {expected} from the {side}, but the {side} ends in {activation}, and gives "
                f"{ending_kind(activation)}. Use keras_kd.losses.SoftLabels, which takes either (BinarySoftLabels for "
                "independent units), or, to compare outputs as they are, keras_kd.losses.Hint()."
            )
        over_other_axis = (_LAST_AXIS, activation, _PERMUTE) if activation.startswith("softmax over") else None
        refused = _NOT_UNDONE.get(activation, over_other_axis)
        if loss.undoes not in (None, activation) and refused is not None:
            compared, ending, way_out = refused
            raise ValueError(f"{loss.name} compares {compared}, but the {side} ends in {ending}. {way_out}")


def _require_one_kind(readers, loss):
    """Raise ValueError if a loss over outputs as they are would compare probabilities with logits."""
    if loss.undoes or any(loss.layers_of(side) or loss.expected_ending(side) for side in readers):
        return
    endings = {side: set(_known_endings(reader, loss, side)) for side, reader in readers.items()}
    kinds = [set(map(ending_kind, activations)) for activations in endings.values()]
    if kinds in ([{"logits"}, {"probabilities"}], [{"probabilities"}, {"logits"}]):
        raise ValueError(
            f"{loss.name} compares outputs as they are, but the teacher ends in {', '.join(endings['teacher'])} and "
            f"the student in {', '.join(endings['student'])}: probabilities and logits. Use "
            "keras_kd.losses.SoftLabels, which takes either (BinarySoftLabels for independent units), or end both "
            "models alike. A loss of your own that is for such a pair declares it in expected_ending."
        )


def _known_endings(reader, loss, side):
    """The last activations of the compared outputs; none where the model does not show them."""
    outputs = reader.symbolic()
    return [] if outputs is None else reader.activations(outputs, loss.output_of(side))
