"""Whether the loss of two models can be computed from their last layers, without their logits."""

from typing import NamedTuple

import keras

from keras_kd._keras_private import functional_graph, nested_output, producer, symbolic_result
from keras_kd.large_vocabulary.heads import Head
from keras_kd.outputs.hooks import Hook, LayerCapture, layer_paths
from keras_kd.outputs.precomputed import PrecomputedTeacher
from keras_kd.outputs.top_classes import TopClasses

LEAST_VOCABULARY = 16_384  # from here on losses are fused, unless `fuse_logits` says otherwise


class CannotFuse(ValueError):
    """Logits are needed; the message says why."""


class Fusion:
    """A loss over the outputs of a teacher and a student that `fused_loss` computes from their last layers.

    The teacher is a built `keras.Model` or a `PrecomputedTeacher`. CannotFuse is raised where there is no such loss.

    Attributes:
        loss: The loss.
        student: The student's `LastLayer`.
        teacher: The teacher's `LastLayer`; None where a `TopClasses` comes with the batch.
    """

    def __init__(self, distillation_losses, student, teacher):
        over_outputs = [loss for loss in distillation_losses if not loss.layers_of("student")]
        if len(over_outputs) != 1 or not over_outputs[0].tokenwise:
            raise CannotFuse(
                "besides losses over layers, there may be one that compares logits token by token, as SoftLabels "
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
                "outputs that come with the batches must be the most likely classes (top_k=), not all logits"
            )

    @classmethod
    def wanted(cls, wish, distillation_losses, student, teacher):
        """The `Fusion`, or None. `wish` is True, False, or None: where it is possible and the vocabulary is large."""
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
        """The teacher's `ModelOutputs` for a batch without its logits."""
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


class LastLayer(NamedTuple):
    """The `Dense` or tied embedding that makes the logits of a model with one output, and the hook on its input."""

    layer: object
    hook: Hook

    @classmethod
    def of(cls, model):
        """The last layer of a model; None where it is another layer, or unknown, as in subclassed models."""
        graph = functional_graph(model)
        if graph is None or len(keras.tree.flatten(graph.output)) != 1:
            return None
        layer = _linear_layer(keras.tree.flatten(graph.output)[0])
        path = next((path for path, inner in layer_paths(model) if inner is layer), None)
        if path is None:
            return None
        hook = Hook(path, "input")
        try:
            capture = LayerCapture(model, [hook], role="model")
            symbolic_result(lambda inputs: capture.run(lambda: graph(inputs)), graph.input)
        except ValueError:  # the layer is called more than once
            return None
        return cls(layer, hook)

    def head(self, hidden):
        """The `Head` of its logits, for its input `hidden`."""
        if isinstance(self.layer, keras.layers.ReversibleEmbedding):
            if self.layer.tie_weights:
                return Head(hidden, self.layer.embeddings, vocabulary_first=True)
            return Head(hidden, self.layer.reverse_embeddings)
        return Head(hidden, self.layer.kernel, self.layer.bias)


def _linear_layer(tensor):
    """The layer that made a tensor, if it is a plain matrix product, with or without a bias; else None."""
    layer, index, inputs = producer(tensor)
    inner = nested_output(layer, index)
    if inner is not None:
        return _linear_layer(inner)
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    if isinstance(layer, keras.layers.Identity) or type(layer).__name__ == "Cast":
        return _linear_layer(inputs[0])
    if isinstance(layer, keras.layers.Activation):
        return _linear_layer(inputs[0]) if is_linear else None
    if type(layer).call not in (keras.layers.Dense.call, keras.layers.ReversibleEmbedding.call):
        return None
    if isinstance(layer, keras.layers.ReversibleEmbedding):
        is_linear = layer.logit_soft_cap is None
    return layer if is_linear and layer.quantization_mode is None and layer.activity_regularizer is None else None
