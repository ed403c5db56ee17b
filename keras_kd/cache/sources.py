"""Where outputs come from: a teacher that runs over a dataset, or arrays that another program made."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import get_mask
from keras_kd.cache.coding import TopLogProbs
from keras_kd.cache.keys import fingerprint
from keras_kd.cache.layout import CONTENT, KEY, Layout, named_tensors
from keras_kd.cache.selection import Selection


class Encoded(NamedTuple):
    """The outputs of a batch as the files of a cache hold them.

    Attributes:
        rows: `{file: array}`, without the ends; of outputs by token, one row for each token of one example after the
            other.
        lengths: `{output by token: int64 (batch,)}`, how many tokens each example has.
        sequences: `{output by token: names of the entries of x that are padded as far as it}`; None instead of the
            names where `x` has no sequences.
    """

    rows: dict
    lengths: dict
    sequences: dict


class TeacherSource:
    """The outputs of a teacher, which runs once over a dataset.

    Args:
        teacher: A built `keras.Model`.
        dataset: A batched `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, weight)`.
        key: The `Key` of the examples.
        outputs: As in `cache_teacher_outputs`.
        coded: `dtype`, `top_k` and so on of `cache_teacher_outputs`.
    """

    def __init__(self, teacher, dataset, key, outputs, coded):
        spec = x_of(dataset.element_spec)
        self._dataset, self._key, self._coded = dataset, key, coded
        self._read = _reading(Selection(teacher, outputs), teacher.jit_compile)
        self.layout = None
        self._run = tf.function(self._packed, input_signature=[spec], autograph=False).get_concrete_function()
        self._keys = tf.function(lambda x: (key.of(x)[0], key.content(x)), input_signature=[spec])
        self._sequences = list(key.sequences(spec))

    @property
    def batches(self):
        """How many there are; None if that is not known."""
        count = int(self._dataset.cardinality())
        return count if count >= 0 else None

    def __iter__(self):
        return (x_of(element) for element in self._dataset.prefetch(2))

    def keys(self, x):
        """`(keys, content)` of a batch, int64 arrays."""
        return [array.numpy() for array in self._keys(x)]

    def encoded(self, x):
        """A batch as `Encoded`."""
        return _in_numpy(self._run(x), self._sequences)

    def _packed(self, x):
        prediction, layers, masks = self._read(x)
        if self.layout is None:  # the first trace, which is the only one
            self.layout = Layout.of(prediction, layers, key=self._key, masked=masks, **self._coded)
        return _packed(self.layout, x, prediction, layers, masks, {})


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
        return self._key.of(x)[0].numpy(), self._content(x, prediction, layers)

    def encoded(self, element):
        x, prediction, layers, lengths = self._parts(element)
        encoded = _in_numpy(_packed(self.layout, x, prediction, layers, {}, lengths), self._sequences)
        if CONTENT in encoded.rows:
            encoded.rows[CONTENT] = self._content(x, prediction, layers)
        return encoded

    def _content(self, x, prediction, layers):
        """The fingerprint of what comes with the ids: of the outputs, where there is nothing else."""
        if isinstance(x, dict) and set(x) == {self._key.entry}:
            return fingerprint([_tensors_of(prediction), layers]).numpy()
        return self._key.content(x).numpy()

    def _parts(self, element):
        if not isinstance(element, tuple) or len(element) not in (2, 3):
            raise TypeError(
                "dataset must give tuples (x or ids, prediction) or (x or ids, prediction, layers), got "
                f"{type(element).__name__}."
            )
        x, prediction, layers = (*element, {})[:3]
        x = _tensors(x) if isinstance(x, dict) else _tensor(x)
        if self._key.entry is not None and not isinstance(x, dict):
            x = {self._key.entry: x}
        prediction, layers = _tensors(prediction), _tensors(layers)
        lengths = {name: length for name, length in _ragged_lengths(prediction, layers).items() if length is not None}
        prediction, layers = _dense(prediction), _dense(layers)
        counts = {int(leaf.shape[0]) for leaf in keras.tree.flatten([x, _tensors_of(prediction), layers])}
        if len(counts) != 1:
            raise ValueError(f"x and outputs must have as many examples, got {sorted(counts)} in one batch.")
        return x, prediction, layers, lengths


def x_of(element):
    """What the models read, of an element of a dataset or its spec."""
    return element[0] if isinstance(element, tuple) else element


def _reading(selection, jit_compile):
    """`x -> (prediction, layers, masks)`, the masks by output name; compiled where the teacher's `predict` would be."""

    def read(x):
        prediction, layers = selection(x)
        masks = {name: get_mask(tensor) for name, tensor in named_tensors(prediction, layers).items()}
        return prediction, layers, {name: mask for name, mask in masks.items() if mask is not None}

    return tf.function(read, jit_compile=True, autograph=False) if jit_compile else read


def _packed(layout, x, prediction, layers, masks, lengths):
    """`(rows, lengths, sequences)` of a batch, all of tensors; `sequences` in place of names a bool for each."""
    keys = layout.key.of(x)[0]
    rows = {KEY: keys, **layout.encode(named_tensors(prediction, layers), keys)}
    if CONTENT in layout.columns:
        rows[CONTENT] = layout.key.content(x)
    lengths, sequences = dict(lengths), {}
    for name in layout.by_token:
        files = layout.files_by_token[name]
        count = tf.shape(rows[files[0]], tf.int64)[1]
        if name not in lengths:
            lengths[name] = _lengths(layout.key, x, count, keys, masks.get(name))
        there = tf.sequence_mask(lengths[name], count)
        if name in layout.masked:
            rows[layout.mask_of(name)] = tf.cast(masks[name], tf.uint8)
        for file in files:
            rows[file] = tf.boolean_mask(rows[file], there)
        of_entries = [tf.shape(entry, tf.int64)[1] == count for entry in layout.key.sequences(x).values()]
        sequences[name] = tf.stack(of_entries) if of_entries else tf.zeros([0], tf.bool)
    return rows, lengths, sequences


def _lengths(key, x, count, keys, mask):
    """How many tokens of an output of `count` tokens are stored of each example: up to the last that is no padding."""
    if mask is not None:
        places = tf.where(mask, tf.range(1, count + 1), 0)
        return tf.reduce_max(tf.pad(places, [[0, 0], [1, 0]]), axis=1)
    lengths = tf.zeros_like(keys)
    padded = tf.constant(False)
    for length, of_each in key.lengths(x):
        lengths = tf.where(length == count, tf.maximum(lengths, of_each), lengths)
        padded |= length == count
    return tf.where(padded, lengths, count)


def _in_numpy(packed, names):
    rows, lengths, sequences = tf.nest.map_structure(np.asarray, packed)
    named = {
        output: [name for name, same in zip(names, alike, strict=True) if same] if names else None
        for output, alike in sequences.items()
    }
    return Encoded(rows, lengths, named)


def _tensors(outputs):
    if isinstance(outputs, TopLogProbs):
        return TopLogProbs(_tensor(outputs.classes), _tensor(outputs.log_p), outputs.of)
    if isinstance(outputs, dict):
        return {name: _tensors(output) for name, output in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return tuple(_tensors(output) for output in outputs)
    return _tensor(outputs)


def _tensor(array):
    if isinstance(array, tf.RaggedTensor):
        return array
    array = np.asarray(array)
    return tf.convert_to_tensor(array.astype(object) if array.dtype.kind in "US" else array)


def _dense(outputs):
    """The same with ragged tensors filled up with zeros."""
    if isinstance(outputs, TopLogProbs):
        return TopLogProbs(_dense(outputs.classes), _dense(outputs.log_p), outputs.of)
    if isinstance(outputs, dict):
        return {name: _dense(output) for name, output in outputs.items()}
    if isinstance(outputs, tuple):
        return tuple(_dense(output) for output in outputs)
    return outputs.to_tensor() if isinstance(outputs, tf.RaggedTensor) else outputs


def _ragged_lengths(prediction, layers):
    """`{output name: int64 (batch,), or None where it is dense}`."""
    named = named_tensors(prediction, layers).items()
    parts = {name: one.log_p if isinstance(one, TopLogProbs) else one for name, one in named}
    return {name: one.row_lengths() if isinstance(one, tf.RaggedTensor) else None for name, one in parts.items()}


def _tensors_of(prediction):
    """Every tensor of a prediction."""
    if isinstance(prediction, TopLogProbs):
        return [prediction.classes, prediction.log_p]
    if isinstance(prediction, dict):
        return [_tensors_of(prediction[name]) for name in sorted(prediction)]
    return [_tensors_of(one) for one in prediction] if isinstance(prediction, tuple) else prediction
