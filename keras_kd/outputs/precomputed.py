"""Batches with precomputed teacher outputs, so that no teacher has to run."""

import dataclasses
import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd._keras_private import set_mask
from keras_kd.outputs.endings import logits_of
from keras_kd.outputs.hooks import Hook
from keras_kd.outputs.reader import ModelOutputs, dict_keys, output_positions
from keras_kd.outputs.top_classes import in_full


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an output of a teacher ends, and in which form it is stored.

    Attributes:
        activation: As `output_activations` gives it.
        undone: "softmax" or "sigmoid" where the output is stored as logits without it; None where it is as it was.
        output_name: The teacher's name of an output in a list.
    """

    activation: str = "unknown"
    undone: str | None = None
    output_name: str | None = None


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
    """Reads the teacher outputs that come with a batch, in place of a model: the other side of `OutputReader`.

    Args:
        spec: A `PrecomputedBatch` of tensor specs: the element of a dataset.
    """

    role = "teacher"

    def __init__(self, spec):
        self.spec = spec
        symbolic = keras.tree.map_structure(_symbolic_tensor, tuple(spec))
        self._symbolic = type(spec)(*symbolic).teacher_outputs()

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

    def symbolic(self):
        """The `ModelOutputs` without a batch, as symbolic tensors."""
        return self._symbolic

    def select(self, outputs, output=None, *, undo=None):
        """The outputs that `output` (name, dict key, index) names, in a list; None names all of them.

        They are logits where the ending `undo`, "softmax" or "sigmoid", is known or was undone when they were stored.

        Raises:
            ValueError: An output is stored as logits, and compared as the teacher gave it.
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
        """The last activations of the named outputs of the teacher; "unknown" where that is not known."""
        return [ending.activation for _, ending in self._endings(outputs, output)]

    def names(self, outputs):
        """The names of all outputs, in the order of `keras.tree.flatten`; an empty list where they have none."""
        prediction = outputs.prediction
        in_list = [f"output {i}" for i in range(len(prediction))] if isinstance(prediction, (list, tuple)) else []
        names = [self.spec.endings.get(name, Ending()).output_name for name in in_list]
        return dict_keys(outputs) or ([] if None in names else names)

    def _endings(self, outputs, output):
        prediction = outputs.prediction
        positions = output_positions(outputs, output, self.names(outputs), self.role)
        names = dict_keys(outputs) or range(len(keras.tree.flatten(prediction)))
        names = [f"output {name}" for name in names] if keras.tree.is_nested(prediction) else ["output"]
        return [(i, self.spec.endings.get(names[i], Ending())) for i in positions]


def _symbolic_tensor(spec):
    return keras.KerasTensor(spec.shape, spec.dtype)


def without_teacher_outputs(x):
    """The `x` that the models read, of a batch with or without precomputed outputs."""
    return x.x if isinstance(x, PrecomputedBatch) else x


def precomputed_spec(data):
    """The `PrecomputedBatch` of tensor specs of a dataset; None if its batches have no precomputed outputs."""
    spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
    x = spec[0] if isinstance(spec, tuple) and spec else None
    return x if isinstance(x, PrecomputedBatch) else None
