"""Where teacher outputs come from: a model that runs over a dataset, or arrays that another program made."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import get_mask
from keras_kd.cache.codings import TopLogProbs
from keras_kd.cache.keys import fingerprint
from keras_kd.cache.layout import Layout, named_outputs, named_tensors
from keras_kd.losses import DistillationLoss, KerasLoss
from keras_kd.outputs.hooks import PARTS, Hook
from keras_kd.outputs.pairing import hooks_of, require_comparable
from keras_kd.outputs.precomputed import Ending
from keras_kd.outputs.reader import OutputReader, output_names

_UNDONE = ("softmax", "sigmoid")


class Encoded(NamedTuple):
    """The outputs of a batch as the files of a cache hold them.

    Attributes:
        rows: `{file: array}` of the outputs; of outputs by token, one row per token, example after example.
        lengths: `{output by token: int64 (batch,)}`, the number of tokens of each example.
        sequences: `{output by token: names of the entries of x that are padded as far as it}`; None instead of the
            names where `x` has no sequences.
    """

    rows: dict
    lengths: dict
    sequences: dict

    def for_examples(self, chosen, layout):
        """The same for some examples, bool `(batch,)`."""
        if chosen.all():
            return self
        by_token = {file: output for output, files in layout.files_by_token.items() for file in files}
        of_tokens = {output: np.repeat(chosen, lengths) for output, lengths in self.lengths.items()}
        rows = {
            file: values[of_tokens[by_token[file]] if file in by_token else chosen]
            for file, values in self.rows.items()
        }
        return self._replace(rows=rows, lengths={output: one[chosen] for output, one in self.lengths.items()})


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
        spec = x_of(dataset.element_spec)
        self._dataset, self._key, self._coded = dataset, key, coded
        self._selection = Selection(teacher, outputs)
        self._read = _reading(self._selection, teacher.jit_compile)
        self.layout = None
        self._keys = tf.function(lambda x: (key.of(x)[0], key.content(x)), input_signature=[spec], autograph=False)
        keys = tf.TensorSpec((None,), tf.int64)
        self._run = tf.function(self._packed, input_signature=[spec, keys], autograph=False).get_concrete_function()
        self._sequences = list(key.sequences(spec))

    @property
    def batches(self):
        """The number of batches; None if it is not known."""
        count = int(self._dataset.cardinality())
        return count if count >= 0 else None

    def __iter__(self):
        return (x_of(element) for element in self._dataset.prefetch(2))

    def keys(self, x):
        """`(keys, content)` of a batch, int64 arrays `(batch,)`."""
        return [array.numpy() for array in self._keys(x)]

    def encoded(self, x, keys):
        """Run the teacher on a batch; return its outputs as `Encoded`."""
        return _in_numpy(self._run(x, tf.constant(keys)), self._sequences)

    def _packed(self, x, keys):
        prediction, layers, masks = self._read(x)
        if self.layout is None:  # the first trace, which is the only one
            endings = self._selection.endings
            self.layout = Layout.of(prediction, layers, key=self._key, masked=masks, endings=endings, **self._coded)
        return _packed(self.layout, x, keys, prediction, layers, masks, {})


class ArraySource:
    """Outputs from an iterable of batches of arrays, `(x or ids, prediction)` or with layers as a third."""

    batches = None

    def __init__(self, batches, key, coded):
        self._key, self._rest = key, iter(batches)
        try:
            self._first = next(self._rest)
        except StopIteration:
            raise ValueError("dataset must give at least one batch of outputs, got none.") from None
        x, prediction, layers, lengths = self._parts(self._first)
        self.layout = Layout.of(prediction, layers, key=key, masked=(), ragged=lengths, **coded)
        self._sequences = list(key.sequences(x))

    def __iter__(self):
        yield self._first
        yield from self._rest

    def keys(self, element):
        x, prediction, layers, _ = self._parts(element)
        keys = self._key.of(x)[0].numpy()
        if isinstance(x, dict) and set(x) == {self._key.entry}:  # ids alone: the outputs stand for the content
            return keys, fingerprint([keras.tree.flatten(_dense_parts(prediction)), layers]).numpy()
        return keys, self._key.content(x).numpy()

    def encoded(self, element, keys):
        x, prediction, layers, lengths = self._parts(element)
        return _in_numpy(_packed(self.layout, x, tf.constant(keys), prediction, layers, {}, lengths), self._sequences)

    def _parts(self, element):
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
        lengths = {
            name: part.row_lengths()
            for name, one in named_tensors(prediction, layers).items()
            if isinstance(part := one.log_p if isinstance(one, TopLogProbs) else one, tf.RaggedTensor)
        }
        prediction, layers = _mapped(_dense, prediction), _mapped(_dense, layers)
        counts = {int(leaf.shape[0]) for leaf in keras.tree.flatten([x, _dense_parts(prediction), layers])}
        if len(counts) != 1:
            raise ValueError(f"x and outputs must have as many examples, got {sorted(counts)} in one batch.")
        return x, prediction, layers, lengths


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


def x_of(element):
    """What the models read, of an element of a dataset or its spec."""
    return element[0] if isinstance(element, tuple) else element


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


def _packed(layout, x, keys, prediction, layers, masks, lengths):
    """`(rows, lengths, sequences)` of a batch, all of tensors; `sequences` in place of names a bool for each."""
    rows = layout.encode(named_tensors(prediction, layers), keys)
    lengths, sequences = dict(lengths), {}
    for name, files in layout.files_by_token.items():
        count = tf.shape(rows[files[0]], tf.int64)[1]
        if name not in lengths:
            lengths[name] = _lengths(layout.key, x, count, keys, masks.get(name))
        stored = tf.sequence_mask(lengths[name], count)
        if name in layout.masked:
            rows[layout.mask_of(name)] = tf.cast(masks[name], tf.uint8)
        for file in files:
            rows[file] = tf.boolean_mask(rows[file], stored)
        as_long = [tf.shape(entry, tf.int64)[1] == count for entry in layout.key.sequences(x).values()]
        sequences[name] = tf.stack(as_long) if as_long else tf.zeros([0], tf.bool)
    return rows, lengths, sequences


def _lengths(key, x, count, keys, mask):
    """How many of the `count` tokens of an output are stored for each example: up to the last that is no padding."""
    if mask is not None:
        ends = tf.where(mask, tf.range(1, count + 1), 0)
        return tf.reduce_max(tf.pad(ends, [[0, 0], [1, 0]]), axis=1)
    lengths = tf.zeros_like(keys)
    padded = tf.constant(False)
    for length, each_length in key.lengths(x):
        lengths = tf.where(length == count, tf.maximum(lengths, each_length), lengths)
        padded |= length == count
    return tf.where(padded, lengths, count)


def _in_numpy(packed, names):
    rows, lengths, sequences = tf.nest.map_structure(np.asarray, packed)
    named = {
        output: [name for name, same in zip(names, alike, strict=True) if same] if names else None
        for output, alike in sequences.items()
    }
    return Encoded(rows, lengths, named)


def _mapped(function, outputs):
    """A structure of outputs with the function's value in place of each array."""
    if isinstance(outputs, TopLogProbs):
        return TopLogProbs(function(outputs.classes), function(outputs.log_p), outputs.of)
    if isinstance(outputs, dict):
        return {name: _mapped(function, outputs[name]) for name in sorted(outputs)}
    if isinstance(outputs, (list, tuple)):
        return tuple(_mapped(function, output) for output in outputs)
    return function(outputs)


def _tensor(array):
    if isinstance(array, tf.RaggedTensor):
        return array
    array = np.asarray(array)
    return tf.convert_to_tensor(array.astype(object) if array.dtype.kind in "US" else array)


def _dense(tensor):
    return tensor.to_tensor() if isinstance(tensor, tf.RaggedTensor) else tensor


def _dense_parts(prediction):
    """Every tensor of a prediction, without the number of classes of `TopLogProbs`."""
    parts = []
    _mapped(parts.append, prediction)
    return parts
