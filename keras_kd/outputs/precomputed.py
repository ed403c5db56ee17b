"""Batches that bring their teacher's outputs along, so that no teacher has to run."""

import dataclasses
import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd._keras_private import set_mask
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.reader import ModelOutputs, logits_of, output_positions
from keras_kd.outputs.top_classes import in_full


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an output of a teacher ends, and in which form it is stored.

    Attributes:
        activation: As `output_activations` gives it.
        undone: "softmax" or "sigmoid" where the output is stored as logits without it; None where it is as it was.
    """

    activation: str = "unknown"
    undone: str | None = None


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
        endings: `{name: Ending}` of the outputs, where it is known; of the Python class, see `ending_in`.
    """

    x: object
    prediction: object
    layers: dict
    masks: dict = {}  # noqa: RUF012, which is for mutable defaults: nobody changes it
    endings = {}  # noqa: RUF012

    @staticmethod
    @functools.cache
    def ending_in(endings):
        """The Python class of batches whose outputs end so, `((name, Ending), ...)`."""
        return type("PrecomputedBatch", (PrecomputedBatch,), {"__slots__": (), "endings": dict(endings)})

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

    def reads(self, spec):
        """Whether batches of this spec are read as those of its own."""
        return self.spec == spec and type(self.spec) is type(spec)

    def symbolic(self):
        """The `ModelOutputs` without a batch, as symbolic tensors."""
        return self._symbolic

    def outputs(self, outputs, output=None, *, undo=None):
        """The outputs that `output` (dict key, index) names, in a list; None names all of them.

        They are logits where the ending `undo`, "softmax" or "sigmoid", is known or was undone when they were stored.

        Raises:
            ValueError: An output is stored as logits, and is asked for as the teacher gave it.
        """
        flat, found = keras.tree.flatten(outputs.prediction), []
        for position, ending in self._endings(outputs, output):
            if ending.undone is not None and undo is None:
                raise ValueError(
                    f"a loss compares outputs as the teacher gives them, but output {position} of a teacher that ends "
                    f"in {ending.activation} is stored as logits. Store it for that loss: "
                    "keras_kd.cache_teacher_outputs(..., outputs=losses) with another path."
                )
            stored_as_is = ending.undone is None and undo is not None and ending.activation == undo
            found.append(logits_of(flat[position], undo) if stored_as_is else flat[position])
        return found

    def activations(self, outputs, output=None):
        """The last activations of the named outputs of the teacher; "unknown" where nobody told."""
        return [ending.activation for _, ending in self._endings(outputs, output)]

    def _endings(self, outputs, output):
        prediction = outputs.prediction
        keys = sorted(prediction) if isinstance(prediction, dict) else []
        positions = output_positions(outputs, output, keys, self.role)
        names = keys or range(len(keras.tree.flatten(prediction)))
        names = [f"output {name}" for name in names] if keras.tree.is_nested(prediction) else ["output"]
        return [(i, self.spec.endings.get(names[i], Ending())) for i in positions]


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
