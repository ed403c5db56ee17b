"""Which signal of the teacher each objective compares with which of the student."""

from typing import NamedTuple

import keras

from keras_kd.large_vocabulary.fusion import Fusion
from keras_kd.signals import SignalReader
from keras_kd.taps import Tap
from keras_kd.taught import BroughtAlong, without_signals


class Pair(NamedTuple):
    """What an objective compares at once, of one batch.

    Attributes:
        teacher, student: The signals.
        labels: The labels of the compared output, or None.
        sample_weight: Its sample weights, or None.
        projection: The name of the projection behind the student's signal, if there is one.
    """

    teacher: object
    student: object
    labels: object
    sample_weight: object
    projection: str


class Pairing:
    """The signals of two models, read once each and paired for every objective.

    Args:
        objectives: `Objective`s.
        student: A built `keras.Model`.
        teacher: A built `keras.Model`; the student itself for one that learns from its own signals; a `BroughtAlong`
            for signals that come with the batches; or None.
        fuse_logits: As of the `Distiller`.

    Attributes:
        fusion: How losses can do without the logits, a `Fusion`; or None.

    Raises:
        ValueError: Signals do not fit: other shapes or activations, unknown layers or outputs.
    """

    def __init__(self, objectives, student, teacher=None, *, fuse_logits=False):
        self.objectives = objectives
        self.teacher = teacher
        self.of_itself = teacher is student
        if self.of_itself:
            _require_two_signals(objectives)
        self.fusion = None if teacher is None else Fusion.wanted(fuse_logits, objectives, student, teacher)
        taps = self._taps("student") + (taps_of(objectives, "teacher") if self.of_itself else ())
        self._student_reader = self._teacher_reader = SignalReader(student, taps, role="student")
        if isinstance(teacher, BroughtAlong) or teacher is None:
            self._teacher_reader = teacher
        elif not self.of_itself:
            self._teacher_reader = SignalReader(teacher, self._taps("teacher"), role="teacher")

    def _taps(self, side):
        return taps_of(self.objectives, side) + (() if self.fusion is None else self.fusion.taps(side))

    def inputs_of_student(self, x):
        """Of a batch, what the student reads."""
        return self._student_reader.own_inputs(without_signals(x))

    def read_teacher(self, x):
        """The teacher's `Signals` for a batch, in inference mode; None for a student that learns from its own."""
        self.require_teacher()
        return None if self.of_itself else self._teacher_reader(x, training=False)

    def require_teacher(self):
        """Raise ValueError if there is no teacher."""
        if self._teacher_reader is None:
            raise ValueError(
                "the distiller has no teacher. Hand it in before fit, distiller.teacher = teacher, or give fit a "
                "dataset that brings the teacher's signals along."
            )

    def read_student(self, x, training):
        """The student's `Signals` for a batch."""
        return self._student_reader(x, training=training)

    def pairs(self, objective, teacher_signals, student_signals, y=None, sample_weight=None):
        """The `Pair`s that an objective compares.

        Sample weights that differ by output weigh the objectives over outputs; those over layers are then not weighted.
        """
        teacher = _signals(self._teacher_reader, teacher_signals, objective, "teacher")
        student = _signals(self._student_reader, student_signals, objective, "student")
        if len(teacher) != len(student):
            raise ValueError(
                f"{objective.name} compares every output of the teacher with one of the student, but the teacher has "
                f"{len(teacher)} and the student {len(student)}. Name one with output= and teacher_output=."
            )
        if objective.layers_of("student"):
            labels, weights = ([_of_all_outputs(part)] * len(student) for part in (y, sample_weight))
        else:
            labels = self._student_reader.labels(student_signals, y, objective.output)
            weights = self._student_reader.sample_weights(student_signals, sample_weight, objective.output)
        projections = [_projection_name(objective, index) for index in range(len(student))]
        return [Pair(*parts) for parts in zip(teacher, student, labels, weights, projections, strict=True)]

    def logits(self, teacher_signals, student_signals):
        """The logits of teacher and student, for metrics that compare them."""
        signals = ((self._teacher_reader, teacher_signals), (self._student_reader, student_signals))
        outputs = [reader.outputs(of_model, undo="softmax") for reader, of_model in signals]
        if self.of_itself or [len(one) for one in outputs] != [1, 1]:
            raise ValueError(
                "metrics that compare with the teacher need a teacher and a student with one output each, got "
                + ("one model that teaches itself." if self.of_itself else f"{len(outputs[0])} and {len(outputs[1])}.")
            )
        return outputs[0][0], outputs[1][0]

    def symbolic_pairs(self):
        """`(objective, Pair)` with static shapes, for every pair; nothing where a subclassed model shows none.

        Raises:
            ValueError: An output is known to end in an activation that an objective over it cannot undo.
        """
        for objective in self.objectives:
            for reader, side in ((self._teacher_reader, "teacher"), (self._student_reader, "student")):
                if objective.undoes and not objective.layers_of(side):
                    require_comparable(reader, objective, side)
        teacher, student = self._teacher_reader.symbolic(), self._student_reader.symbolic()
        if teacher is None or student is None:
            return  # the shapes show when the first batch is traced, where the objectives check them again
        for objective in self.objectives:
            for pair in self.pairs(objective, teacher, student):
                yield objective, pair


def taps_of(objectives, side):
    """The `Tap`s that objectives have on the "teacher" or the "student"."""
    return tuple(Tap(layer, part) for one in objectives for layer in one.layers_of(side) for part in one.parts)


def _require_two_signals(objectives):
    """Raise ValueError if an objective would compare a signal of the one model with itself."""
    for objective in objectives:
        if all(of("teacher") == of("student") for of in (objective.layers_of, objective.output_of)):
            raise ValueError(
                f"teacher and student are one model, and {objective.name} compares each of its outputs with itself. "
                "Give another model as the teacher (keras.models.clone_model makes a copy); or, for a model whose deep "
                "output teaches a shallow one, name both: output='shallow', teacher_output='deep'."
            )


def _signals(reader, signals, objective, side):
    layers = objective.layers_of(side)
    if layers:
        return [_layer(signals, Tap(layer, part), side) for layer in layers for part in objective.parts]
    return reader.outputs(signals, objective.output_of(side), undo=objective.undoes)


def _layer(signals, tap, side):
    if tap not in signals.layers:
        raise ValueError(
            f"{side}_layer={tap.layer!r} is not among the signals that the batches bring along, "
            f"{[tuple(known) for known in signals.layers]}. Store {tap.part!r} of it, too."
        )
    return signals.layers[tap]


def _projection_name(objective, index):
    return objective.name if index == 0 or objective.shares_projection else f"{objective.name}_{index}"


def _of_all_outputs(structure):
    """Labels or sample weights that hold for all outputs alike; None where each output has its own."""
    return None if keras.tree.is_nested(structure) else structure


def require_comparable(reader, objective, side):
    """Raise ValueError if outputs that an objective compares are known to end in an activation that it cannot undo."""
    signals = reader.symbolic()
    for activation in [] if signals is None else reader.activations(signals, objective.output_of(side)):
        if activation in ("softmax", "sigmoid") and activation != objective.undoes:
            raise ValueError(f"{objective.name} compares {_ENDINGS[activation].format(role=side)}")
        if activation.startswith("softmax over"):
            raise ValueError(
                f"{objective.name} compares distributions over the last axis, but the {side} ends in {activation}. "
                "Move the classes to the last axis before the softmax, for instance with keras.layers.Permute."
            )


_ENDINGS = {
    "sigmoid": "distributions over classes, but the {role} ends in sigmoid, one independent probability a unit. End it "
    "in a linear layer (logits) or a softmax, name another output with output=, or use keras_kd.BinarySoftLabels.",
    "softmax": "independent probabilities, one a unit, but the {role} ends in softmax, a distribution over classes. "
    "End it in a linear layer (logits) or a sigmoid, name another output with output=, or use keras_kd.SoftLabels.",
}
