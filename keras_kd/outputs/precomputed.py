"""Batches that bring their teacher's outputs along, so that no teacher has to run."""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd._keras_private import set_mask
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.reader import ModelOutputs, output_positions
from keras_kd.outputs.top_classes import in_full


class PrecomputedBatch(NamedTuple):
    """A batch that brings its teacher's outputs along: the `x` of a dataset of `(x,)`, `(x, y)` or `(x, y, weight)`.

    Attributes:
        x: What the models read.
        prediction: The teacher's outputs, as logits where they are distributions: a tensor, list or dict. A
            `TopClasses` will do for logits.
        layers: What its layers gave: `{"path of the layer": tensor}`, of another part than the output
            `{"path:part": tensor}`.
        masks: The Keras masks of the teacher's outputs, where they had some: `{name: bool (batch, length)}`; an output
            is called "output", one of several "output 0" or "output a", a layer "layer path".
    """

    x: object
    prediction: object
    layers: dict
    masks: dict = {}  # noqa: RUF012, which is for mutable defaults: nobody changes it

    def outputs(self):
        """The teacher's `ModelOutputs`."""
        prediction = in_full(self.prediction)
        if isinstance(prediction, dict):
            prediction = {key: self._masked(output, f"output {key}") for key, output in prediction.items()}
        elif isinstance(prediction, (list, tuple)):
            prediction = type(prediction)(self._masked(one, f"output {i}") for i, one in enumerate(prediction))
        else:
            prediction = self._masked(prediction, "output")
        layers = {Hook.named(name): self._masked(tensor, f"layer {name}") for name, tensor in self.layers.items()}
        return ModelOutputs(prediction, layers)

    def _masked(self, output, name):
        return set_mask(output, self.masks[name]) if name in self.masks else output


class PrecomputedTeacher:
    """Reads the outputs that a batch brings along, in place of a model.

    Args:
        spec: A `PrecomputedBatch` of tensor specs: what the batches of a dataset look like.
    """

    role = "teacher"

    def __init__(self, spec):
        self.spec = spec
        self._symbolic = PrecomputedBatch(*keras.tree.map_structure(_symbolic_tensor, tuple(spec))).outputs()

    def __call__(self, batch, training):
        """The `ModelOutputs` of a `PrecomputedBatch` batch."""
        if not isinstance(batch, PrecomputedBatch):
            raise ValueError(
                "the distiller has no teacher, and the batch brings no outputs along. Hand in the teacher, "
                "distiller.teacher = teacher, or make x a keras_kd.PrecomputedBatch."
            )
        return batch.outputs()

    def symbolic(self):
        """The `ModelOutputs` without a batch, as symbolic tensors."""
        return self._symbolic

    def outputs(self, outputs, output=None, *, undo=None):
        """The outputs that `output` (dict key, index) names, in a list; None names all of them. They are logits."""
        keys = sorted(outputs.prediction) if isinstance(outputs.prediction, dict) else []
        return [keras.tree.flatten(outputs.prediction)[i] for i in output_positions(outputs, output, keys, self.role)]

    def activations(self, outputs, output=None):
        """Unknown: what was undone was undone when the outputs were stored."""
        return []


def _symbolic_tensor(spec):
    return keras.KerasTensor(spec.shape, spec.dtype)


def without_teacher_outputs(x):
    """A batch's `x`, without the teacher's outputs where it brings them along."""
    return x.x if isinstance(x, PrecomputedBatch) else x


def precomputed_spec(data):
    """What a dataset's batches bring along, a `PrecomputedBatch` of tensor specs; None if they bring nothing."""
    spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
    x = spec[0] if isinstance(spec, tuple) and spec else None
    return x if isinstance(x, PrecomputedBatch) else None
