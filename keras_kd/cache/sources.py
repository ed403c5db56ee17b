"""Where teacher outputs come from: a model that runs over a dataset, or arrays that another program made."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import get_mask
from keras_kd.cache.codings import TopLogProbs
from keras_kd.cache.keys import fingerprint
from keras_kd.cache.layout import Layout, named_outputs, named_tensors
from keras_kd.losses import DistillationLoss, KerasLoss
from keras_kd.outputs.endings import Ending
from keras_kd.outputs.hooks import PARTS, Hook
from keras_kd.outputs.pairing import hooks_of, require_comparable
from keras_kd.outputs.reader import OutputReader, output_names

_UNDONE = ("softmax", "sigmoid")


class TeacherSource:
    """The outputs of a teacher that runs over a dataset.

    Args:
        teacher: A built `keras.Model`.
        dataset: A batched `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, weight)`.
        key: The `Key` of the examples.
        outputs: As in `cache_teacher_outputs`.
        coded: `dtype`, `top_k` and `sampled` of `cache_teacher_outputs`.
    """

    def __init__(self, teacher, dataset, key, outputs, coded):
        spec = dataset.element_spec
        spec = spec[0] if isinstance(spec, tuple) else spec
        self._dataset = dataset
        self._keys = tf.function(lambda x: (key.of(x)[0], key.content(x)), input_signature=[spec], autograph=False)
        selection = Selection(teacher, outputs)
        read = tf.function(_reading(selection, teacher.jit_compile), input_signature=[spec], autograph=False)
        outputs = read.get_concrete_function().structured_outputs
        self.layout = Layout.of(*outputs, key=key, endings=selection.endings, **coded)
        number, flag = (tf.TensorSpec((None,), dtype) for dtype in (tf.int64, tf.bool))
        self._encode = tf.function(
            lambda x, *examples: self.layout.encode(x, *examples, *read(x)),
            input_signature=[spec, number, number, flag],
            autograph=False,
        )

    @property
    def batches(self):
        """The number of batches; None if it is not known."""
        count = int(self._dataset.cardinality())
        return count if count >= 0 else None

    def __iter__(self):
        for element in self._dataset.prefetch(2):
            yield element[0] if isinstance(element, tuple) else element

    def keys(self, x):
        """`(keys, content)` of a batch, int64 arrays `(batch,)`."""
        return [array.numpy() for array in self._keys(x)]

    def encoded(self, x, *examples):
        """Run the teacher on a batch; return what `Writer.add` takes.

        Args:
            examples: Arrays `(batch,)`: keys, content, and which of them are to be stored.
        """
        return _in_numpy(self._encode(x, *map(tf.constant, examples)), self.layout.key.sequences(x))


class ArraySource:
    """Outputs from an iterable of batches of arrays, `(x or ids, prediction)` or with layers as a third."""

    batches = None

    def __init__(self, batches, key, coded):
        self._key, rest = key, map(self._parts, batches)
        try:
            first = next(rest)
        except StopIteration:
            raise ValueError("dataset must give at least one batch of outputs, got none.") from None
        self.layout = Layout.of(*first[1:], key=key, **coded)
        self._elements = itertools.chain([first], rest)

    def __iter__(self):
        return self._elements

    def keys(self, element):
        x, prediction, layers, _ = element
        keys = self._key.of(x)[0].numpy()
        if isinstance(x, dict) and set(x) == {self._key.entry}:  # ids alone: the outputs stand for the content
            return keys, fingerprint([_tensors(prediction), layers]).numpy()
        return keys, self._key.content(x).numpy()

    def encoded(self, element, *examples):
        x, *outputs = element
        return _in_numpy(self.layout.encode(x, *map(tf.constant, examples), *outputs), self._key.sequences(x))

    def _parts(self, element):
        """`(x, prediction, layers, masks)` of a batch, of tensors; what was ragged is dense and has a mask."""
        if not isinstance(element, tuple) or len(element) not in (2, 3):
            raise TypeError(
                "dataset must give tuples (x or ids, prediction) or (x or ids, prediction, layers), got "
                f"{type(element).__name__}."
            )
        x, prediction, layers = (*element, {})[:3]
        x = _mapped(_tensor, x) if isinstance(x, dict) else _tensor(x)
        if self._key.entry is not None and not isinstance(x, dict):
            x = {self._key.entry: x}
        prediction, layers = _mapped(_tensor, prediction), _mapped(_tensor, layers)
        masks = {}
        for name, one in named_tensors(prediction, layers).items():
            one = one.log_p if isinstance(one, TopLogProbs) else one
            if isinstance(one, tf.RaggedTensor):
                masks[name] = tf.sequence_mask(one.row_lengths())
        prediction, layers = _mapped(_dense, prediction), _mapped(_dense, layers)
        counts = {int(leaf.shape[0]) for leaf in _tensors([x, prediction, layers])}
        if len(counts) != 1:
            raise ValueError(f"x and outputs must have as many examples, got {sorted(counts)} in one batch.")
        return x, prediction, layers, masks


class Selection:
    """Reads the chosen outputs of a teacher.

    Args:
        teacher: A built `keras.Model`.
        outputs: Losses, names of outputs, names of layers ("layer" or "layer:part"), or a list of these; None: all
            outputs.

    Attributes:
        endings: `{output name: Ending}`, known after the first call.
    """

    def __init__(self, teacher, outputs=None):
        self._names = output_names(teacher)
        self._losses, self._outputs, hooks = [], [], []
        for one in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
            if isinstance(one, (keras.losses.Loss, keras.distillation.DistillationLoss)):
                self._losses.append(one if isinstance(one, DistillationLoss) else KerasLoss(one))
            elif one is None or one in self._names:
                self._outputs.append(one)
            else:
                hooks.append(_hook(one))
        self._reader = OutputReader(teacher, [*hooks, *hooks_of(self._losses, "teacher")], role="teacher")
        self._losses = [loss for loss in self._losses if not loss.layers_of("teacher")]
        for loss in self._losses:
            if loss.undoes:
                require_comparable(self._reader, loss, "teacher")
        self.endings = {}

    def __call__(self, x):
        """`(prediction, layers)` of a batch: outputs as logits where that is known, `{"layer:part": tensor}`."""
        outputs = self._reader(x, training=False)
        layers = {hook.name: tensor for hook, tensor in outputs.layers.items()}
        requested = [*self._outputs, *(loss.output_of("teacher") for loss in self._losses)]
        if not requested:
            return (), layers
        chosen = self._structured(outputs, requested)
        endings = keras.tree.map_structure(lambda output: self._ending(outputs, output), chosen)
        self.endings = named_outputs(endings)[1]
        return keras.tree.map_structure(
            lambda output, ending: self._reader.select(outputs, output, undo=ending.undone)[0], chosen, endings
        ), layers

    def _structured(self, outputs, requested):
        """The names or indices of the outputs to store, in the structure in which losses look for them."""
        if all(isinstance(output, str) for output in requested):
            return {output: output for output in sorted(set(requested))}
        prediction = outputs.prediction
        if isinstance(prediction, dict):
            return {key: key for key in prediction}
        count = len(keras.tree.flatten(prediction))
        if any(isinstance(output, str) for output in requested):
            if count > 1:
                raise ValueError(
                    f"outputs name some outputs and not others, {requested}, of a teacher whose outputs {self._names} "
                    "are in a list. Name each output, or none."
                )
            return {self._names[0]: 0}
        return tuple(range(count)) if isinstance(prediction, (list, tuple)) else 0

    def _ending(self, outputs, output):
        """How an output ends, and what of it the losses and names that chose it want undone."""
        (activation,), (position,) = (
            read(outputs, output) for read in (self._reader.activations, self._reader.positions)
        )
        known = activation if activation in _UNDONE else None
        named = output in self._outputs or None in self._outputs
        undone = {known} if named else set()
        for loss in self._losses:
            if position in self._reader.positions(outputs, loss.output_of("teacher")):
                undone.add(known if loss.undoes == known else None)
        if len(undone) > 1:
            raise ValueError(
                f"outputs want the output {output!r} of the teacher both as it is and as logits, and it ends in "
                f"{activation}. End the teacher in a linear layer, or make a cache for each loss."
            )
        names = self._reader.names(outputs)
        return Ending(activation, next(iter(undone), None), output_name=names[position] if names else None)


def _hook(name):
    if not isinstance(name, str) or not name:
        raise TypeError(
            "outputs must be losses, names of outputs or names of layers ('layer' or 'layer:part'), got "
            f"{type(name).__name__}: {name!r}."
        )
    hook = Hook.named(name)
    if hook.part not in PARTS:
        raise ValueError(f"outputs: {name!r} names no part of a layer; the parts are {sorted(PARTS)}.")
    return hook


def _reading(selection, jit_compile):
    """`x -> (prediction, layers, masks)`, the masks by output name; compiled where the teacher's `predict` would be."""

    def read(x):
        prediction, layers = selection(x)
        masks = {name: get_mask(tensor) for name, tensor in named_tensors(prediction, layers).items()}
        return prediction, layers, {name: mask for name, mask in masks.items() if mask is not None}

    return tf.function(read, jit_compile=True, autograph=False) if jit_compile else read


def _in_numpy(encoded, entries):
    """What `Writer.add` takes, from what `Layout.encode` gives and `key.sequences(x)`."""
    rows, alike = encoded
    sequences = {
        output: [name for name, same in zip(entries, flags, strict=True) if same] if entries else None
        for output, flags in alike.items()
    }
    return {file: np.asarray(tensor) for file, tensor in rows.items()}, sequences  # tensor.numpy() would copy


def _mapped(function, outputs):
    """A structure of outputs with the function's value in place of each array."""

    def replaced(one):
        if isinstance(one, TopLogProbs):
            return one._replace(classes=function(one.classes), log_p=function(one.log_p))
        return None if keras.tree.is_nested(one) else function(one)  # None: look inside

    return keras.tree.traverse(replaced, outputs)


def _tensor(array):
    if isinstance(array, tf.RaggedTensor):
        return array
    array = np.asarray(array)
    return tf.convert_to_tensor(array.astype(object) if array.dtype.kind in "US" else array)


def _dense(tensor):
    return tensor.to_tensor() if isinstance(tensor, tf.RaggedTensor) else tensor


def _tensors(structure):
    """The tensors of a structure, without the number of classes of `TopLogProbs`."""
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, tf.Tensor)]
