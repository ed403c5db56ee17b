"""Batches that bring their teacher's signals along, so that no teacher has to run."""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd._keras_private import set_mask
from keras_kd.signals import Signals, output_positions
from keras_kd.taps import Tap
from keras_kd.top_classes import in_full


class Taught(NamedTuple):
    """A batch that brings its teacher's signals along: the `x` of a dataset of `(x,)`, `(x, y)` or `(x, y, weight)`.

    Attributes:
        x: What the models read.
        prediction: The teacher's outputs, as logits where they are distributions: a tensor, list or dict. A
            `TopClasses` will do for logits.
        layers: What its layers gave: `{"path of the layer": tensor}`, of another part than the output
            `{"path:part": tensor}`.
        masks: The Keras masks of the teacher's signals, where they had some: `{name: bool (batch, length)}`; an output
            is called "output", one of several "output 0" or "output a", a layer "layer path".
    """

    x: object
    prediction: object
    layers: dict
    masks: dict = {}  # noqa: RUF012, which is for mutable defaults: nobody changes it

    def signals(self):
        """The teacher's `Signals`."""
        prediction = in_full(self.prediction)
        if isinstance(prediction, dict):
            prediction = {key: self._masked(output, f"output {key}") for key, output in prediction.items()}
        elif isinstance(prediction, (list, tuple)):
            prediction = type(prediction)(self._masked(one, f"output {i}") for i, one in enumerate(prediction))
        else:
            prediction = self._masked(prediction, "output")
        layers = {Tap.named(name): self._masked(tensor, f"layer {name}") for name, tensor in self.layers.items()}
        return Signals(prediction, layers)

    def _masked(self, signal, name):
        return set_mask(signal, self.masks[name]) if name in self.masks else signal


class BroughtAlong:
    """Reads the signals that a batch brings along, in place of a model.

    Args:
        spec: A `Taught` of tensor specs: what the batches of a dataset look like.
    """

    role = "teacher"

    def __init__(self, spec):
        self.spec = spec
        self._symbolic = Taught(*keras.tree.map_structure(_symbolic_tensor, tuple(spec))).signals()

    def __call__(self, batch, training):
        """The `Signals` of a `Taught` batch."""
        if not isinstance(batch, Taught):
            raise ValueError(
                "the distiller has no teacher, and the batch brings no signals along. Hand in the teacher, "
                "distiller.teacher = teacher, or make x a keras_kd.taught.Taught."
            )
        return batch.signals()

    def symbolic(self):
        """The `Signals` without a batch, as symbolic tensors."""
        return self._symbolic

    def outputs(self, signals, output=None, *, undo=None):
        """The outputs that `output` (dict key, index) names, in a list; None names all of them. They are logits."""
        keys = sorted(signals.prediction) if isinstance(signals.prediction, dict) else []
        return [keras.tree.flatten(signals.prediction)[i] for i in output_positions(signals, output, keys, self.role)]

    def activations(self, signals, output=None):
        """Unknown: what was undone was undone when the signals were stored."""
        return []


def _symbolic_tensor(spec):
    return keras.KerasTensor(spec.shape, spec.dtype)


def without_signals(x):
    """A batch's `x`, without the teacher's signals where it brings them along."""
    return x.x if isinstance(x, Taught) else x


def brought_spec(data):
    """What a dataset's batches bring along, a `Taught` of tensor specs; None if they bring nothing."""
    spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
    x = spec[0] if isinstance(spec, tuple) and spec else None
    return x if isinstance(x, Taught) else None
