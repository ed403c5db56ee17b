"""Which output of the teacher each loss compares with which of the student."""

from typing import NamedTuple

import keras

from keras_kd.outputs.endings import CHANNELS_FIRST, channels_last, ending_kind
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.precomputed import PrecomputedTeacher, without_teacher_outputs
from keras_kd.outputs.reader import OutputReader

_SIDES = ("teacher", "student")


class Pair(NamedTuple):
    """One teacher output and one student output of a batch, for a loss to compare.

    Attributes:
        teacher, student: The outputs.
        labels: The labels of the compared output, or None.
        sample_weight: Its sample weights, or None.
        projection: The name of the projection after the student's output, if there is one.
    """

    teacher: object
    student: object
    labels: object
    sample_weight: object
    projection: str


class Pairing:
    """The outputs of two models, read once each and paired for every loss.

    Args:
        distillation_losses: `DistillationLoss`es.
        student: A built `keras.Model`.
        teacher: A built `keras.Model`; the student itself for one that learns from its own outputs; a
            `PrecomputedTeacher` for outputs that come with the batches; or None.
        hooks: `{"teacher": (Hook, ...), "student": (Hook, ...)}` to read besides those of the losses.

    Raises:
        ValueError: Outputs do not fit: other shapes or activations, unknown layers or outputs.
    """

    def __init__(self, distillation_losses, student, teacher=None, *, hooks=None):
        self.distillation_losses = distillation_losses
        self.teacher = teacher
        self.is_self_taught = teacher is student
        if self.is_self_taught:
            _require_two_outputs(distillation_losses)
        by_side = {side: hooks_of(distillation_losses, side) + (hooks or {}).get(side, ()) for side in _SIDES}
        student_hooks = by_side["student"] + (by_side["teacher"] if self.is_self_taught else ())
        self._student_reader = self._teacher_reader = OutputReader(student, student_hooks, role="student")
        if isinstance(teacher, PrecomputedTeacher) or teacher is None:
            self._teacher_reader = teacher
        elif not self.is_self_taught:
            self._teacher_reader = OutputReader(teacher, by_side["teacher"], role="teacher")

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
        """The `Pair`s that a loss compares.

        Sample weights that differ by output weigh the losses over outputs; those over layers are then not weighted.
        """
        student = _outputs(self._student_reader, student_outputs, loss, "student")
        teacher = self._ordered_as_student(
            _outputs(self._teacher_reader, teacher_outputs, loss, "teacher"), loss, teacher_outputs, student_outputs
        )
        if len(teacher) != len(student):
            raise ValueError(
                f"{loss.name} compares every output of the teacher with one of the student, but the teacher has "
                f"{len(teacher)} and the student {len(student)}. Name one with output= and teacher_output=."
            )
        if loss.layers_of("student"):
            labels, weights = ([_shared_by_all_outputs(part)] * len(student) for part in (y, sample_weight))
        else:
            labels = self._student_reader.labels(student_outputs, y, loss.output)
            weights = self._student_reader.sample_weights(student_outputs, sample_weight, loss.output)
        projections = [_projection_name(loss, index) for index in range(len(student))]
        return [Pair(*parts) for parts in zip(teacher, student, labels, weights, projections, strict=True)]

    def _ordered_as_student(self, teacher, loss, teacher_outputs, student_outputs):
        """All outputs of the teacher, in the order of the student's where both have the same names."""
        if loss.layers_of("teacher") or loss.output_of("teacher") is not None or loss.layers_of("student"):
            return teacher
        names = [
            reader.names(outputs)
            for reader, outputs in ((self._teacher_reader, teacher_outputs), (self._student_reader, student_outputs))
        ]
        if len(names[0]) != len(teacher) or sorted(names[0]) != sorted(names[1]):
            return teacher
        return [teacher[names[0].index(name)] for name in names[1]]

    def outputs_of_unknown_ending(self, teacher_outputs, student_outputs):
        """`(name of the loss, side, tensors)` of the outputs that a loss takes for logits on trust."""
        sides = {"teacher": (self._teacher_reader, teacher_outputs), "student": (self._student_reader, student_outputs)}
        for loss in self.distillation_losses:
            for side, (reader, outputs) in sides.items():
                if loss.undoes != "softmax" or loss.layers_of(side) or outputs.prediction is None:
                    continue
                activations = reader.activations(outputs, loss.output_of(side))
                if "unknown" in activations:
                    tensors = reader.select(outputs, loss.output_of(side), undo=loss.undoes)
                    yield (
                        loss.name,
                        side,
                        [t for t, name in zip(tensors, activations, strict=True) if name == "unknown"],
                    )

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
            for reader, side in ((self._teacher_reader, "teacher"), (self._student_reader, "student")):
                if not loss.layers_of(side):
                    require_comparable(reader, loss, side)
            _require_one_kind(self._teacher_reader, self._student_reader, loss)
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


def _outputs(reader, outputs, loss, side):
    layers = loss.layers_of(side)
    if layers:
        return [_layer(outputs, Hook(layer, part), side) for layer in layers for part in loss.parts]
    tensors = reader.select(outputs, loss.output_of(side), undo=loss.undoes)
    activations = reader.activations(outputs, loss.output_of(side))
    axes = [1 if activation == CHANNELS_FIRST else None for activation in activations]
    return [channels_last(tensor, axis) for tensor, axis in zip(tensors, axes, strict=True)]


def _layer(outputs, hook, side):
    if hook not in outputs.layers:
        raise ValueError(
            f"{side}_layer={hook.layer!r} is not among the precomputed outputs of the batches, "
            f"{[tuple(known) for known in outputs.layers]}. Store {hook.part!r} of it as well."
        )
    return outputs.layers[hook]


def _projection_name(loss, index):
    return loss.name if index == 0 or loss.shares_projection else f"{loss.name}_{index}"


def _shared_by_all_outputs(structure):
    """Labels or sample weights that hold for all outputs alike; None where each output has its own."""
    return None if keras.tree.is_nested(structure) else structure


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
        if loss.undoes is None:
            continue
        if activation in ("softmax", "sigmoid") and activation != loss.undoes:
            raise ValueError(f"{loss.name} compares {_ENDINGS[activation].format(role=side)}")
        if activation == CHANNELS_FIRST:
            raise ValueError(
                f"{loss.name} compares distributions over the last axis, but the {side} ends in a layer with "
                'data_format="channels_first", whose classes are on axis 1. Use channels_last, or move the classes to '
                "the last axis, for instance with keras.layers.Permute."
            )
        if activation.startswith("softmax over"):
            raise ValueError(
                f"{loss.name} compares distributions over the last axis, but the {side} ends in {activation}. "
                "Move the classes to the last axis before the softmax, for instance with keras.layers.Permute."
            )


def _require_one_kind(teacher_reader, student_reader, loss):
    """Raise ValueError if a loss over outputs as they are would compare probabilities with logits."""
    sides = {"teacher": teacher_reader, "student": student_reader}
    if loss.undoes or any(loss.layers_of(side) or loss.expected_ending(side) for side in sides):
        return
    endings = {side: set(_known_endings(reader, loss, side)) for side, reader in sides.items()}
    kinds = [{ending_kind(ending) for ending in endings[side]} for side in sides]
    if sorted(map(len, kinds)) == [1, 1] and None not in kinds[0] | kinds[1] and kinds[0] != kinds[1]:
        raise ValueError(
            f"{loss.name} compares outputs as they are, but the teacher ends in {', '.join(endings['teacher'])} and "
            f"the student in {', '.join(endings['student'])}: probabilities and logits. Use "
            "keras_kd.losses.SoftLabels, which takes either (BinarySoftLabels for independent units), or end both "
            "models alike. A loss of your own that is for such a pair declares it in expected_ending."
        )


def _known_endings(reader, loss, side):
    """The last activations of the compared outputs; none where the model does not show them."""
    outputs = None if reader is None else reader.symbolic()
    return [] if outputs is None else reader.activations(outputs, loss.output_of(side))


_ENDINGS = {
    "sigmoid": "distributions over classes, but the {role} ends in sigmoid, one independent probability per unit. "
    "End it in a linear layer (logits) or a softmax, name another output with output=, or use "
    "keras_kd.losses.BinarySoftLabels.",
    "softmax": "independent probabilities, one per unit, but the {role} ends in softmax, a distribution over classes. "
    "End it in a linear layer (logits) or a sigmoid, name another output with output=, or use "
    "keras_kd.losses.SoftLabels.",
}
