"""Where signals come from: a teacher that runs over a dataset, or arrays that another program made."""

import keras
import numpy as np
import tensorflow as tf

from keras_kd.cache.coding import TopLogProbs
from keras_kd.cache.keys import fingerprint
from keras_kd.cache.layout import Layout
from keras_kd.cache.selection import Selection


class TeacherSource:
    """The signals of a teacher, which runs once over a dataset.

    Args:
        teacher: A built `keras.Model`.
        dataset: A batched `tf.data.Dataset` of `x`, `(x,)`, `(x, y)` or `(x, y, weight)`.
        key: The `Key` of the examples.
        signals: As in `cache_signals`.
        coded: `top_k` and `dtype` of `cache_signals`.
    """

    def __init__(self, teacher, dataset, key, signals, coded):
        selection = Selection(teacher, signals)
        spec = x_of(dataset.element_spec)
        self._dataset, self._key = dataset, key
        prediction, layers = tf.function(selection).get_concrete_function(spec).structured_outputs
        self.layout = Layout.of(prediction, layers, key=key, **coded)
        self._keys = tf.function(lambda x: (key.of(x)[0], key.content(x)), input_signature=[spec])
        self._encode = tf.function(lambda x: self.layout.encode(*selection(x)), input_signature=[spec])

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
        """`{field: array}` of a batch."""
        return {name: tensor.numpy() for name, tensor in self._encode(x).items()}


class ArraySource:
    """Signals from an iterable of batches of arrays, `(x or ids, prediction)` or with layers as a third."""

    batches = None

    def __init__(self, batches, key, coded):
        self._key, self._rest = key, iter(batches)
        try:
            self._first = next(self._rest)
        except StopIteration:
            raise ValueError("dataset must give at least one batch of signals, got none.") from None
        _, prediction, layers = self._parts(self._first)
        self.layout = Layout.of(prediction, layers, key=key, **coded)

    def __iter__(self):
        yield self._first
        yield from self._rest

    def keys(self, element):
        x, prediction, layers = self._parts(element)
        keys, content = self._key.of(x)[0], self._key.content(x)
        if isinstance(x, dict) and set(x) == {self._key.entry}:
            content = fingerprint([_without_count(prediction), layers])
        return keys.numpy(), content.numpy()

    def encoded(self, element):
        _, prediction, layers = self._parts(element)
        return {name: tensor.numpy() for name, tensor in self.layout.encode(prediction, layers).items()}

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
        counts = {int(leaf.shape[0]) for leaf in keras.tree.flatten([x, _without_count(prediction), layers])}
        if len(counts) != 1:
            raise ValueError(f"x and signals must have as many examples, got {sorted(counts)} in one batch.")
        return x, prediction, layers


def x_of(element):
    """What the models read, of an element of a dataset or its spec."""
    return element[0] if isinstance(element, tuple) else element


def _tensors(signals):
    if isinstance(signals, TopLogProbs):
        return TopLogProbs(_tensor(signals.classes), _tensor(signals.log_p), signals.of)
    if isinstance(signals, dict):
        return {name: _tensors(signal) for name, signal in signals.items()}
    if isinstance(signals, (list, tuple)):
        return tuple(_tensors(signal) for signal in signals)
    return _tensor(signals)


def _tensor(array):
    array = np.asarray(array)
    return tf.convert_to_tensor(array.astype(object) if array.dtype.kind in "US" else array)


def _without_count(prediction):
    """Every tensor of a prediction."""
    if isinstance(prediction, TopLogProbs):
        return [prediction.classes, prediction.log_p]
    if isinstance(prediction, dict):
        return [_without_count(prediction[name]) for name in sorted(prediction)]
    return [_without_count(one) for one in prediction] if isinstance(prediction, tuple) else prediction
