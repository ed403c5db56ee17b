"""Layers that compute in floats what they will compute in integers, so that they can be trained for it.

A fake-quantized layer is an instance of a class made for it, a subclass of its own class: its name, weights, config and
calls are as before, also where another layer has made it for itself, as attention makes its projections.
"""

import contextlib
import contextvars
import functools
import inspect
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_kd._keras_private import BuildHook, call_arguments, set_mask, sublayers, unlocked, without_autocast
from keras_kd.outputs.hooks import layer_paths

BITS = {"int8": 8, "int4": 4}
MOMENTUM = 0.99  # of the moving averages of ranges
_LEAST_RANGE = 1e-6  # an activation that is always 0 needs some range
_FUSED = (keras.activations.linear, keras.activations.relu, keras.activations.relu6)  # LiteRT: part of the product
_LOOKUPS = (keras.layers.Embedding.call, keras.layers.ReversibleEmbedding.call)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_KERNELS = (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS, *_DEPTHWISE)
_LOOPS = (keras.layers.RNN, keras.layers.Wrapper)  # what they hold is called in a loop

_as_constants = contextvars.ContextVar("_as_constants", default=False)


@contextlib.contextmanager
def integers_as_constants():
    """Inside, calls give what a converter can read: weights and ranges are constants, vectors come from integers."""
    token = _as_constants.set(True)
    try:
        yield
    finally:
        _as_constants.reset(token)


# Numbers --------------------------------------------------------------------------------------------------------------


def integers_and_scales(weights, axes, bits):
    """The nearest symmetric integers of a layer's weights, as floats, and the scale of each channel.

    s = max |w| / (2ᵇ⁻¹ − 1), q = round(w / s). A channel has one scale for all its weights: those along `axes`.
    """
    levels = 2 ** (bits - 1) - 1
    scales = ops.max(ops.abs(weights), axis=axes, keepdims=True) / levels
    scales = ops.where(scales > 0, scales, ops.ones_like(scales))
    return ops.clip(ops.round(weights / scales), -levels, levels), scales


def fake_quantized(weights, axes, bits):
    """q · s of `integers_and_scales`, with the gradient of the weights themselves."""
    integers, scales = integers_and_scales(weights, axes, bits)
    return ops.stop_gradient(integers * scales) + (weights - ops.stop_gradient(weights))


def channel_axes(layer, name):
    """The axes of a weight of a layer along which its numbers share a scale, one for each output; None without such."""
    if name == "embeddings":
        return (1,)
    if name == "reverse_embeddings" or isinstance(layer, keras.layers.Dense):
        return (0,)
    if isinstance(layer, keras.layers.EinsumDense):
        return _summed_axes(layer.equation)
    if isinstance(layer, _DEPTHWISE):
        return tuple(range(layer.rank))
    return tuple(range(layer.rank + 1)) if layer.groups == 1 else None


def _letters(equation):
    """The axes of the inputs, the kernel and the outputs of an einsum."""
    return equation.replace("->", ",").replace(" ", "").split(",")


def _summed_axes(equation):
    """The axes of the kernel that an einsum sums over; None where others are those of a batch of products."""
    inputs, kernel, outputs = _letters(equation)
    summed = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
    of_batches = set(kernel) & set(inputs) & set(outputs)
    return None if of_batches or not all(kernel[axis] in inputs for axis in summed) else summed


@keras.saving.register_keras_serializable(package="keras_kd")
class FakeQuantization(keras.layers.Layer):
    """Rounds activations to 8 bits within a range that it tracks while training.

    In training mode the range [low, high] follows the least and the largest number of each batch, and 0, by a moving
    average. x ↦ s · round(clip(x, low, high) / s), s = (high − low) / 255; the gradient is 1 inside of the range, 0
    outside. Before the first batch, x is given back as it is.

    With `symmetric`, the range is widened to [−128 s, 127 s], s = max(−low, high) / 127.
    """

    def __init__(self, *, symmetric=False, **kwargs):
        super().__init__(**kwargs)
        self.symmetric = symmetric
        self.supports_masking = True

    def build(self, input_shape=None):
        self.range = self.add_weight(
            shape=(2,), initializer="zeros", dtype="float32", autocast=False, trainable=False, aggregation="mean",
            name="range",
        )  # fmt: skip

    def call(self, inputs, training=None):
        if _as_constants.get():
            return self._rounded(inputs, *self._constant_range())
        if training:
            self._follow(inputs)
        low, high = self.range[0], self.range[1]
        return ops.where(high > low, self._rounded(inputs, low, ops.maximum(high, low + _LEAST_RANGE)), inputs)

    def _rounded(self, inputs, low, high):
        if self.symmetric:
            scale = ops.maximum(-low, high) / 127
            low, high = -128 * scale, 127 * scale
        return keras.quantizers.fake_quant_with_min_max_vars(inputs, low, high)

    def _follow(self, inputs):
        inputs = ops.cast(ops.stop_gradient(inputs), "float32")
        low, high = ops.minimum(ops.min(inputs), 0.0), ops.maximum(ops.max(inputs), 0.0)
        batch = ops.stack([low, ops.maximum(high, low + _LEAST_RANGE)])
        before = ops.convert_to_tensor(self.range)
        after = ops.where(before[1] > before[0], MOMENTUM * before + (1.0 - MOMENTUM) * batch, batch)
        self.range.assign(ops.where(ops.all(ops.isfinite(batch)), after, before))

    def _constant_range(self):
        low, high = _constant(lambda: self.range)
        if not high > low:
            raise ValueError(
                f"student must be trained before it is exported, but no batch has given {self.path!r} a range of "
                "activations yet. fit it, or call it with training=True on some batches."
            )
        return low, high

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "symmetric": self.symmetric}


def _constant(read):
    """What `read()` gives, one tensor or several, in NumPy, also while a graph is traced."""
    with tf.init_scope():
        return keras.tree.map_structure(ops.convert_to_numpy, read())


@keras.saving.register_keras_serializable(package="keras_kd")
class QuantizedActivation(keras.layers.Layer):
    """An activation function and the rounding of a layer's outputs, where LiteRT rounds: after a relu, else before."""

    def __init__(self, activation, *, symmetric=False, **kwargs):
        super().__init__(**kwargs)
        self.function = keras.activations.get(activation)
        self.__name__ = getattr(self.function, "__name__", "")  # by which the endings of models are told
        self.output_range = FakeQuantization(symmetric=symmetric, name="output_range", dtype=self.dtype_policy)

    def build(self, input_shape=None):
        self.output_range.build(input_shape)

    def call(self, inputs):
        return self.after_product(self.within_product(inputs))

    def within_product(self, inputs):
        return self.function(inputs) if self.function in _FUSED else inputs

    def after_product(self, inputs):
        rounded = self.output_range(inputs)
        return rounded if self.function in _FUSED else self.function(rounded)

    def get_config(self):
        activation = keras.activations.serialize(self.function)
        return {**super().get_config(), "activation": activation, "symmetric": self.output_range.symmetric}


# Layers ---------------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="keras_kd")
class QuantizeAware(BuildHook):
    """The base of the classes that `quantized_class` makes, and what they are in a file.

    `quantization` is {"layer": the layer's own class as in a file, "weights", "activations": as in `quantize_aware`,
    "skip": paths, from here, of layers inside that stay as they are}.
    """

    def __init__(self, *args, quantization, **kwargs):
        self.quantization = quantization
        super().__init__(*args, **kwargs)

    def get_config(self):
        quantization = {key: list(value) if key == "skip" else value for key, value in self.quantization.items()}
        return {**super().get_config(), "quantization": quantization}

    @classmethod
    def from_config(cls, config):
        own = {key: value for key, value in config.items() if key != "quantization"}
        layer = keras.saving.deserialize_keras_object({**config["quantization"]["layer"], "config": own})
        # Of the class as it is in this process; all of them have one name in files.
        made = quantized_class(type(layer))
        return super(QuantizeAware, made).from_config(config)

    @property
    def bits(self):
        """Bits of a weight."""
        return BITS[self.quantization["weights"]]


class _QuantizedHolder(QuantizeAware):
    """A layer that holds others, which become fake-quantized."""

    def after_build(self):
        quantize_inside(self, self.quantization)


class _QuantizedKernel(QuantizeAware):
    """A layer that multiplies its inputs with a kernel."""

    # Keras's own read `kernel` for these: the integers would be saved instead of what is trained.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def after_build(self):
        if self.quantization["activations"] is not None:
            self.input_range = FakeQuantization(name="input_range", dtype=self.dtype_policy)
            # LiteRT's product of two activations, as in attention, takes 0 for the integer that stands for 0.
            options = {"symmetric": isinstance(self, keras.layers.EinsumDense), "dtype": self.dtype_policy}
            self.activation = QuantizedActivation(self.activation, name="activation", **options)
            with keras.name_scope(self.name):
                self.input_range.build()
                self.activation.build()

    def get_config(self):
        config = super().get_config()
        if self.built and self.quantization["activations"] is not None:
            config["activation"] = keras.activations.serialize(self.activation.function)
        return config


class _QuantizedLookup(QuantizeAware):
    """An embedding: each row of its table has a scale."""

    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def after_build(self):
        pass

    def vectors(self, ids):
        """The fake-quantized rows of these ids."""
        if _as_constants.get():
            return self._vectors_of_integers(ids)
        with without_autocast():
            return fake_quantized(ops.take(self._table(), ids, axis=0), (-1,), self.bits)

    def _table(self):
        return ops.convert_to_tensor(_stored(self.layer_class, "embeddings")(self))

    def _vectors_of_integers(self, ids):
        # The scales as the bits of integers: LiteRT would round an array of floats to 8 bits.
        integers, scales = _constant(lambda: integers_and_scales(self._table(), (1,), self.bits))
        scales = tf.bitcast(tf.gather(tf.constant(scales[:, 0].view("int32")), ids), tf.float32)
        return self._rows(integers, ids) * tf.expand_dims(scales, -1)

    def _rows(self, integers, ids):
        if self.bits == 8:
            return tf.cast(tf.gather(tf.constant(integers.astype("int8")), ids), tf.float32)
        odd = integers.shape[1] % 2
        padded = np.pad(integers, ((0, 0), (0, odd))) + 8
        pairs = (padded[:, ::2] + 16 * padded[:, 1::2]).astype("uint8")  # two numbers in a byte
        pairs = tf.cast(tf.gather(tf.constant(pairs), ids), tf.float32)
        second = tf.floor(pairs / 16)
        both = tf.stack([pairs - 16 * second, second], axis=-1)
        rows = tf.reshape(both, tf.concat([tf.shape(ids), [padded.shape[1]]], axis=0)) - 8.0
        return tf.split(rows, [integers.shape[1], odd], axis=-1)[0] if odd else rows


@functools.cache
def quantized_class(cls):
    """The fake-quantized subclass of the class of a layer; of one that is it already, the same."""
    if issubclass(cls, QuantizeAware):
        return cls
    base, names = _base_and_weights(cls)
    namespace = {name: _fake_quantized_weight(cls, name) for name in names}
    if base is not _QuantizedHolder:
        namespace["call"] = (_kernel_call if base is _QuantizedKernel else _lookup_call)(cls)
    made = type(f"Quantized{cls.__name__}", (base, cls), {**namespace, "layer_class": cls, "__module__": __name__})
    return keras.saving.register_keras_serializable(package="keras_kd", name=QuantizeAware.__name__)(made)


def _base_and_weights(cls):
    if issubclass(cls, _KERNELS):
        return _QuantizedKernel, ("kernel",)
    if cls.call in _LOOKUPS:
        is_reversible = issubclass(cls, keras.layers.ReversibleEmbedding)
        return _QuantizedLookup, ("embeddings", "reverse_embeddings") if is_reversible else ("embeddings",)
    return _QuantizedHolder, ()


def _stored(cls, name):
    """A function of a layer of this class that gives its weight of this name as it is trained."""
    found = inspect.getattr_static(cls, name, None)

    def stored(layer):
        if isinstance(found, property):
            return found.fget(layer)
        if name not in vars(layer):
            raise AttributeError(f"{layer.name!r} has no {name!r}")
        return vars(layer)[name]

    return stored


def _fake_quantized_weight(cls, name):
    """The attribute of a layer that holds its weights: what is read is fake-quantized."""
    stored = _stored(cls, name)

    def quantized(self):
        with without_autocast():
            return fake_quantized(ops.convert_to_tensor(stored(self)), channel_axes(self, name), self.bits)

    def read(self):
        value = _constant(lambda: quantized(self)) if _as_constants.get() else quantized(self)
        return ops.cast(ops.convert_to_tensor(value), self.compute_dtype)

    def write(self, value):
        vars(self)[name] = value

    return property(read, write)


def _kernel_call(cls):
    @functools.wraps(cls.call)
    def call(self, inputs, *args, **kwargs):
        if self.quantization["activations"] is not None:
            if _as_constants.get() and len(inputs.shape) > 2 and _is_matrix_product(self):
                return _matrix_product(self, inputs)
            inputs = self.input_range(inputs)
        return cls.call(self, inputs, *args, **kwargs)

    return call


def _is_matrix_product(layer):
    """Whether a layer multiplies the last axes of its inputs with a matrix, whose columns become the last axes."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return isinstance(layer, keras.layers.Dense)
    inputs, kernel, outputs = _letters(layer.equation)
    count = len(_summed_axes(layer.equation))
    has_all_biases = layer.bias is None or math.prod(layer.bias.shape) == math.prod(layer.kernel.shape[count:])
    return inputs.endswith(kernel[:count]) and inputs[:-count] + kernel[count:] == outputs and has_all_biases


def _matrix_product(layer, inputs):
    """What the layer gives, by way of a matrix: with open lengths, LiteRT adds biases in integers only there."""
    count = len(channel_axes(layer, "kernel"))
    kernel, columns = layer.kernel, layer.kernel.shape[count:]
    rows = layer.input_range(tf.reshape(inputs, (-1, math.prod(kernel.shape[:count]))))
    rows = rows @ tf.reshape(kernel, (-1, math.prod(columns)))
    rows = rows if layer.bias is None else rows + tf.reshape(tf.convert_to_tensor(layer.bias), (-1,))
    shape = tf.concat([tf.shape(inputs)[:-count], columns], axis=0)
    return layer.activation.after_product(tf.reshape(layer.activation.within_product(rows), shape))


def _lookup_call(cls):
    @functools.wraps(cls.call)
    def call(self, inputs, *args, **kwargs):
        if call_arguments(self, (inputs, *args), kwargs).get("reverse", False):
            return cls.call(self, inputs, *args, **kwargs)
        ids = ops.cast(inputs, "int32")
        vectors = ops.cast(self.vectors(ids), self.compute_dtype)
        mask = keras.layers.Embedding.compute_mask(self, inputs)
        return vectors if mask is None else set_mask(vectors, mask)

    return call


# A layer and those inside ---------------------------------------------------------------------------------------------


def can_be_quantized(layer):
    """Whether a layer has weights that are fake-quantized itself."""
    if isinstance(layer, _KERNELS):
        return channel_axes(layer, "kernel") is not None
    return type(layer).call in _LOOKUPS


def quantizable(layer):
    """`{path: layer}` of the layers in a layer or model that can be quantized, "" for itself; none inside of loops."""
    if can_be_quantized(layer):
        return {"": layer}
    if isinstance(layer, _LOOPS):
        return {}
    found = [(inner.name, *entry) for inner in sublayers(layer) for entry in quantizable(inner).items()]
    return {"/".join(filter(None, (name, path))): leaf for name, path, leaf in found}


def quantize_inside(layer, quantization):
    """Give the layers inside of a layer, as far as they can be quantized, their fake-quantized classes."""
    for inner in sublayers(layer):
        skip = inside(quantization["skip"], inner.name)
        if not isinstance(inner, QuantizeAware) and set(quantizable(inner)) - set(skip):
            _become_quantized(inner, {**quantization, "layer": class_in_files(inner), "skip": skip})


def inside(paths, name):
    """Of paths, those that go through a layer of this name, from there on; "" where it is the layer itself."""
    return [path[len(name) + 1 :] for path in paths if path == name or path.startswith(f"{name}/")]


def class_in_files(layer):
    """How files tell the class of a layer."""
    serialized = keras.saving.serialize_keras_object(layer)
    return {key: serialized[key] for key in ("module", "class_name", "registered_name")}


def _become_quantized(layer, quantization):
    layer.__class__ = quantized_class(type(layer))
    with unlocked(layer):
        layer.quantization = quantization
        if layer.built:
            layer.after_build()


def quantization_of(model):
    """`{path: (weights, activations)}` of the fake-quantized layers in a model; empty for a model in floats."""
    return {
        path: (layer.quantization["weights"], layer.quantization["activations"])
        for path, layer in layer_paths(model)
        if isinstance(layer, QuantizeAware)
    }
