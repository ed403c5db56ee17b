"""Batches with precomputed teacher outputs, so that no teacher has to run."""

import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd._keras_private import set_mask
from keras_kd.outputs.endings import Ending
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.reader import ModelOutputs, Reader
from keras_kd.outputs.top_classes import in_full


class PrecomputedBatch(NamedTuple):
    """A batch with its teacher outputs: the `x` of a dataset of `(x,)`, `(x, y)` or `(x, y, sample_weight)`.

    `Distiller(None, student, losses).fit(dataset)` learns from it without a teacher. `keras_kd.cache_teacher_outputs`
    makes such datasets; any other program's scores can be put into one by hand.

    Attributes:
        x: The inputs of the models.
        prediction: The teacher's outputs, as logits where they are distributions: a tensor, list or dict. A
            `keras_kd.large_vocabulary.TopClasses` can stand for logits.
        layers: Intermediate outputs: `{"path of the layer": tensor}`, or `{"path:part": tensor}` for another part than
            the layer's output: see `keras_kd.outputs.PARTS`.
        masks: The Keras masks of the teacher's outputs, where they had some: `{name: bool (batch, length)}`; an output
            is called "output", one of several "output 0" or "output a", a layer "layer path".
        endings: `{name: Ending}` of the outputs, where it is known; an attribute of the Python class: see
            `ending_in`.

    Example:

    >>> x, y = np.random.rand(32, 8), np.random.randint(0, 3, 32)
    >>> logits = np.random.rand(32, 3)  # from any teacher
    >>> batches = (keras_kd.PrecomputedBatch(x, logits, {}), y)
    >>> dataset = tf.data.Dataset.from_tensor_slices(batches).batch(16)
    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> distiller = keras_kd.Distiller(None, student, keras_kd.losses.SoftLabels(temperature=2.0))
    >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = distiller.fit(dataset, shuffle=False, verbose=0)
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

    def teacher_outputs(self):
        """The teacher's `ModelOutputs`."""
        prediction = in_full(self.prediction)
        masked = map(self._masked, keras.tree.flatten(prediction), stored_names(prediction))
        prediction = keras.tree.pack_sequence_as(prediction, list(masked))
        layers = {Hook.named(name): self._masked(tensor, f"layer {name}") for name, tensor in self.layers.items()}
        return ModelOutputs(prediction, layers)

    def _masked(self, output, name):
        return set_mask(output, self.masks[name]) if name in self.masks else output


class PrecomputedTeacher(Reader):
    """Reads the teacher outputs that come with batches of this spec, a `PrecomputedBatch`, in place of a model."""

    def __init__(self, spec):
        self.spec = spec
        symbolic = keras.tree.map_structure(lambda one: keras.KerasTensor(one.shape, one.dtype), tuple(spec))
        super().__init__("teacher", type(spec)(*symbolic).teacher_outputs())

    def __call__(self, batch, training):
        """The `ModelOutputs` of a `PrecomputedBatch`."""
        if not isinstance(batch, PrecomputedBatch):
            raise ValueError(
                "the distiller has no teacher, and the batch has no precomputed outputs. Assign the teacher, "
                "distiller.teacher = teacher, or make x a keras_kd.PrecomputedBatch."
            )
        return batch.teacher_outputs()

    def reads(self, spec):
        """Whether batches of this spec are read as those of its own."""
        return self.spec == spec and type(self.spec) is type(spec)

    def _names(self, outputs):
        names = [ending.output_name for ending in self._endings(outputs)]
        return [] if None in names else names

    def _endings(self, outputs):
        return [self.spec.endings.get(name, Ending()) for name in stored_names(outputs.prediction)]


def stored_names(prediction):
    """What outputs are called in a `PrecomputedBatch`, in the order of `keras.tree.flatten`."""
    if isinstance(prediction, dict):
        return [f"output {key}" for key in sorted(prediction)]
    return [f"output {i}" for i in range(len(prediction))] if isinstance(prediction, (list, tuple)) else ["output"]


def without_teacher_outputs(x):
    """The `x` that the models read, of a batch with or without precomputed outputs."""
    return x.x if isinstance(x, PrecomputedBatch) else x


def precomputed_spec(data):
    """The `PrecomputedBatch` of tensor specs of a dataset; None if its batches have no precomputed outputs."""
    spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
    x = spec[0] if isinstance(spec, tuple) and spec else None
    return x if isinstance(x, PrecomputedBatch) else None
