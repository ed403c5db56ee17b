"""Students that start from nothing and read bytes: hashed n-grams, and a convolutional network."""

import keras
from keras import ops

from keras_kd._checks import require_count
from keras_kd.students.static import WeightedMean

ORDERS = (3, 4, 6, 8, 9, 12)  # bytes: 3 to 12 Latin letters, 2 to 6 Cyrillic ones, 1 to 4 of the scripts of 3 bytes
_MODULUS = 8_388_593  # the largest prime below 2²³: times 251 it is still below 2³¹, so that int32 does not overflow
_FACTOR = 251
_SPACE = 32


@keras.saving.register_keras_serializable(package="keras_kd")
class HashedNGrams(keras.layers.Layer):
    """Map bytes of UTF-8 to ids of the n-grams in them: those that begin and end with a whole character.

    An n-gram's id is a polynomial hash of its bytes, modulo the number of ids; n-grams that share an id share what is
    learned of it. A space is read before and after the text, and the letters A to Z as a to z. It computes with int32
    and operations that every runtime has, LiteRT's built-in ones among them.

    Args:
        buckets: number of ids, from 1 to 8,388,593.
        orders: lengths of the n-grams in bytes ≥ 1. A Latin letter has 1, a Greek or Cyrillic one 2, most others 3.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: bytes, `(batch, length)`, padded with 0: see `keras_kd.text.ByteEncoder`.

    Returns:
        `(ids, mask)`, both int32 `(batch, orders · (length + 2))`: 1 for an n-gram, 0 where there is none.

    Raises:
        TypeError: `buckets` or an order is no int.
        ValueError: `buckets` or an order is out of its range, or there is no order.

    Example:

    >>> text = keras_kd.text.ByteEncoder(length=4)(["tea"])
    >>> ids, mask = keras_kd.students.HashedNGrams(1000, orders=[3, 5])(text)  # " te", "tea", "ea " and " tea "
    >>> int(ops.sum(mask))
    4

    Source: Kaliamoorthi et al. 2019, "PRADO", and Botha et al. 2017, https://arxiv.org/abs/1708.00214.
    """

    def __init__(self, buckets, orders=ORDERS, **kwargs):
        super().__init__(trainable=False, **{**kwargs, "dtype": "int32"})
        self.buckets = require_count(buckets, "buckets", at_least=1)
        if buckets > _MODULUS:
            raise ValueError(f"buckets must be <= {_MODULUS:,}, got {buckets:,}.")
        self.orders = tuple(sorted({require_count(order, "orders", at_least=1) for order in orders}))
        if not self.orders:
            raise ValueError("orders must hold one length of n-grams or more, got none.")

    def call(self, inputs):
        text = _between_spaces(ops.cast(inputs, "int32"))
        starts = ops.not_equal(text // 64, 2)  # bytes 128 to 191 continue a character
        hashes, whole, ids, mask = ops.ones_like(text), text > 0, [], []
        for order in range(1, self.orders[-1] + 1):
            last = _shifted(text, order - 1)
            hashes = (hashes * _FACTOR + last) % _MODULUS
            whole = ops.logical_and(whole, last > 0)
            if order in self.orders:
                ends = ops.logical_and(whole, _shifted(starts, order, fill=True))
                ids.append(hashes % self.buckets)
                mask.append(ops.cast(ops.logical_and(starts, ends), "int32"))
        return ops.concatenate(ids, axis=1), ops.concatenate(mask, axis=1)

    def compute_output_spec(self, inputs):
        batch, length = inputs.shape
        shape = (batch, None if length is None else len(self.orders) * (length + 2))
        return keras.KerasTensor(shape, "int32"), keras.KerasTensor(shape, "int32")

    def get_config(self):
        return {"name": self.name, "buckets": self.buckets, "orders": list(self.orders)}


def _between_spaces(text):
    """`(batch, length + 2)`: the letters A to Z as a to z, a space before the text and one after it."""
    letters = ops.logical_and(text >= ord("A"), text <= ord("Z"))
    text = ops.pad(ops.where(letters, text + 32, text), [[0, 0], [1, 1]])
    present = text > 0
    beside = ops.logical_or(_shifted(present, 1, fill=False), _shifted(present, -1, fill=False))
    return ops.where(ops.logical_and(ops.logical_not(present), beside), _SPACE, text)


def _shifted(tensor, by, fill=0):
    """`(batch, length)` moved to the left, and filled up."""
    if by == 0:
        return tensor
    filling = ops.cast(ops.full_like(tensor[:, : abs(by)], fill), tensor.dtype)
    return ops.concatenate([tensor[:, by:], filling] if by > 0 else [filling, tensor[:, :by]], axis=1)


def ngram_student(units, buckets, width, *, length=256, orders=ORDERS, name="ngram_student"):
    """Make a student that is the weighted mean of a learned vector per hashed n-gram, and a Dense layer.

    It needs no tokenizer and no teacher's weights, reads every script, and runs on the stock LiteRT runtime. Like
    every student that starts from nothing, it wants far more text than one made from the teacher.

    Args:
        units: numbers per text: classes, as logits, or the width of the teacher's vector.
        buckets: rows of the table, one for the n-grams of each hash: see `HashedNGrams`.
        width: numbers per row ≥ 1.
        length: bytes per text.
        orders: lengths of the n-grams in bytes.
        name: name of the model.

    Returns:
        A functional `keras.Model` from uint8 bytes `(batch, length)`, the input "bytes", to `(batch, units)`.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number out of its range.

    Example:

    >>> student = keras_kd.students.ngram_student(units=7, buckets=4096, width=16)
    >>> student(keras_kd.text.ByteEncoder(256)(["Ein rotes Haus"])).shape, student.count_params()
    (TensorShape([1, 7]), 69751)
    """
    inputs = keras.Input((require_count(length, "length", at_least=1),), dtype="uint8", name="bytes")
    ids, mask = HashedNGrams(buckets, orders, name="ngrams")(inputs)
    mean = WeightedMean(buckets, width, name="vectors")(ids, mask)
    return keras.Model(inputs, _dense(units)(mean), name=name)


def byte_cnn(units, filters, *, blocks=4, length=256, name="byte_cnn"):
    """Make a student that is a residual convolutional network over bytes, averaged over the text.

    Block i is layer normalization, a convolution over 5 bytes that are 2ⁱ apart, and GELU, added to its input.

    Args:
        units: numbers per text: classes, as logits, or the width of the teacher's vector.
        filters: width of the hidden layers ≥ 1.
        blocks: number of blocks, from 1 to 8; 4 see 61 bytes around each.
        length: bytes per text.
        name: name of the model.

    Returns:
        A functional `keras.Model` from uint8 bytes `(batch, length)`, the input "bytes", to `(batch, units)`.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number out of its range.

    Example:

    >>> student = keras_kd.students.byte_cnn(units=7, filters=32)
    >>> student(keras_kd.text.ByteEncoder(256)(["Ein rotes Haus"])).shape, student.count_params()
    (TensorShape([1, 7]), 29351)

    Source: van den Oord et al. 2016, "WaveNet", https://arxiv.org/abs/1609.03499, for the dilated convolutions.
    """
    if require_count(blocks, "blocks", at_least=1) > 8:
        raise ValueError(f"blocks must be <= 8, got {blocks}: eight see 1,021 bytes around each.")
    require_count(filters, "filters", at_least=1)
    inputs = keras.Input((require_count(length, "length", at_least=1),), dtype="uint8", name="bytes")
    present = ops.expand_dims(ops.cast(ops.not_equal(inputs, 0), keras.config.floatx()), -1)
    x = keras.layers.Embedding(256, filters, name="embedding")(inputs) * present
    for block in range(blocks):
        update = keras.layers.LayerNormalization(name=f"block_{block}_norm")(x) * present
        options = {"padding": "same", "dilation_rate": 2**block, "activation": "gelu"}
        x = x + keras.layers.Conv1D(filters, 5, name=f"block_{block}_convolution", **options)(update) * present
    mean = ops.sum(x, axis=1) / ops.maximum(ops.sum(present, axis=1), 1.0)
    return keras.Model(inputs, _dense(units)(keras.layers.LayerNormalization(name="norm")(mean)), name=name)


def _dense(units):
    return keras.layers.Dense(require_count(units, "units", at_least=1), name="outputs")
