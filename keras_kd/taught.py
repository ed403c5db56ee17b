"""Batches that bring their teacher's signals along, so that no teacher has to run."""

from typing import NamedTuple

import keras
import tensorflow as tf

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
    """

    x: object
    prediction: object
    layers: dict

    def signals(self):
        """The teacher's `Signals`."""
        return Signals(in_full(self.prediction), {Tap.named(name): tensor for name, tensor in self.layers.items()})


class BroughtAlong:
    """Reads the signals that a batch brings along, in place of a model.

    Args:
        spec: A `Taught` of tensor specs: what the batches of a dataset look like.
    """

    role = "teacher"

    def __init__(self, spec):
        self._symbolic = Taught(*keras.tree.map_structure(_symbolic_tensor, tuple(spec))).signals()

    def __call__(self, batch, training):
        """The `Signals` of a `Taught` batch."""
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
