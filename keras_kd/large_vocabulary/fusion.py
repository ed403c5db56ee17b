"""Whether the loss of two models can be had without their logits."""

import keras

from keras_kd._keras_private import functional_graph
from keras_kd.large_vocabulary.last_layer import LastLayer
from keras_kd.outputs.precomputed import PrecomputedTeacher
from keras_kd.outputs.top_classes import TopClasses

LEAST_VOCABULARY = 16_384  # from where on logits are done without, unless asked otherwise


class CannotFuse(ValueError):
    """Why logits are needed."""


class Fusion:
    """A loss over the outputs of a teacher and a student, which `fused_loss` takes from their last layers.

    Args:
        losses: The `DistillationLoss`s of a distiller.
        student: A built `keras.Model`.
        teacher: Likewise; or a `PrecomputedTeacher`.

    Attributes:
        loss: The loss, a divergence mostly.
        student: The student's `LastLayer`.
        teacher: The teacher's; None where a `TopClasses` comes with the batch.

    Raises:
        CannotFuse: There is no such loss, or more than that depends on the logits.
    """

    def __init__(self, distillation_losses, student, teacher):
        over_outputs = [loss for loss in distillation_losses if not loss.layers_of("student")]
        if len(over_outputs) != 1 or not over_outputs[0].tokenwise:
            raise CannotFuse(
                "beside losses over layers, there may be one that compares logits token by token, as SoftLabels "
                f"does, got {[loss.name for loss in over_outputs]}"
            )
        if teacher is student:
            raise CannotFuse("the teacher must be another model than the student")
        self.loss = over_outputs[0]
        self.student = _last_layer(student, "student")
        if not isinstance(teacher, PrecomputedTeacher):
            self.teacher = _last_layer(teacher, "teacher")
        elif isinstance(teacher.spec.prediction, TopClasses):
            self.teacher = None
        else:
            raise CannotFuse(
                "outputs that come with the batches must be the likeliest classes (top_k=), not all logits"
            )

    @classmethod
    def wanted(cls, wish, distillation_losses, student, teacher):
        """The `Fusion` of losses, student and teacher; None where it is not wanted.

        Args:
            wish: True; False; or None: if it can be had, and the vocabulary is large.
        """
        if wish is False or (wish is None and not _has_many_classes(student)):
            return None
        try:
            return cls(distillation_losses, student, teacher)
        except CannotFuse as error:
            if wish:
                raise ValueError(refusal(error)) from None
            return None

    def hooks(self):
        """The `Hook`s on the inputs of the last layers: `{"teacher": (Hook,) or (), "student": (Hook,)}`."""
        return {"teacher": () if self.teacher is None else (self.teacher.hook,), "student": (self.student.hook,)}

    def without_logits(self, outputs, x):
        """The teacher's `ModelOutputs` for a batch, with nothing of the size of its logits."""
        return outputs._replace(prediction=None if self.teacher is not None else x.prediction)

    def teacher_head(self, outputs):
        """The `Head` of a live teacher, or the `TopClasses` of precomputed outputs."""
        return outputs.prediction if self.teacher is None else self.teacher.head(outputs.layers[self.teacher.hook])

    def student_head(self, outputs):
        """The student's `Head`."""
        return self.student.head(outputs.layers[self.student.hook])


def refusal(reason):
    """The error message where fuse_logits=True is not possible."""
    return f"fuse_logits=True is not possible: {reason}. Leave fuse_logits out to compute logits where needed."


def _has_many_classes(student):
    graph = functional_graph(student)
    outputs = [] if graph is None else keras.tree.flatten(graph.output)
    return any(output.shape and (output.shape[-1] or 0) >= LEAST_VOCABULARY for output in outputs)


def _last_layer(model, role):
    last = LastLayer.of(model)
    if last is None:
        raise CannotFuse(
            f"the {role} must be a functional model with one output that ends in a Dense without activation or a "
            "ReversibleEmbedding, which gets its input from one place"
        )
    return last
