"""What a cache holds of each example: its signals by name, how each is coded, and where they go when they come back."""

import keras
import numpy as np
import tensorflow as tf

from keras_kd.cache import coding
from keras_kd.cache.keys import Key
from keras_kd.taught import Taught

FORMAT = "keras_kd.signals/1"


class Layout:
    """The signals of one example as a record of fixed size.

    Args:
        key: The `Key` of the examples.
        codings: `{signal name: coding}`.
        prediction: Names of signals in the structure of the teacher's outputs: a name, a list of them, or a dict.
        layers: `{"layer" or "layer:part": signal name}`.
    """

    def __init__(self, key, codings, prediction, layers):
        self.key, self.codings, self.prediction, self.layers = key, codings, prediction, layers
        self.fields = [("key", "<i8", ())]
        if key.entry is not None:
            self.fields.append(("content", "<i8", ()))
        for name, kept in codings.items():
            self.fields += [(name + part, dtype, shape) for part, (dtype, shape) in kept.fields().items()]
        self.record = np.dtype(self.fields)

    @classmethod
    def of(cls, prediction, layers, *, key, top_k, dtype):
        """The layout for signals of these shapes.

        Args:
            prediction, layers: The teacher's, of tensors or specs with the examples first, or of `TopLogProbs`.
        """
        structure, outputs = _named(prediction)
        names = {name: f"layer {name}" for name in layers}
        codings = {name: _output_coding(tensor, name, top_k, dtype) for name, tensor in outputs.items()}
        codings |= {names[name]: _layer_coding(tensor, names[name], dtype) for name, tensor in layers.items()}
        if not codings:
            raise ValueError("signals must name at least one output or layer, got none.")
        return cls(key, codings, structure, names)

    def config(self):
        """What the manifest says of it."""
        return {
            "format": FORMAT,
            "key": self.key.config(),
            "signals": {name: coding.config_of(kept) for name, kept in self.codings.items()},
            "prediction": self.prediction,
            "layers": self.layers,
            "record": [[name, dtype, list(shape)] for name, dtype, shape in self.fields],
        }

    @classmethod
    def from_config(cls, config):
        """The layout that a manifest names."""
        codings = {name: coding.coding_of(kept) for name, kept in config["signals"].items()}
        return cls(Key.from_config(config["key"]), codings, config["prediction"], config["layers"])

    def encode(self, prediction, layers):
        """`{field: tensor}` of a batch."""
        signals = _named(prediction)[1] | {self.layers[name]: tensor for name, tensor in layers.items()}
        encoded = {}
        for name, kept in self.codings.items():
            _require_shape(signals[name], kept.shape, name)
            encoded |= {name + part: tensor for part, tensor in kept.encode(signals[name]).items()}
        return encoded

    def decode(self, x, fields):
        """A `Taught` batch, from `{field: tensor}`."""
        signals = {
            name: kept.decode({part: fields[name + part] for part in kept.fields()})
            for name, kept in self.codings.items()
        }
        prediction = self.prediction
        if isinstance(prediction, dict):
            prediction = {key: signals[name] for key, name in prediction.items()}
        elif isinstance(prediction, list):
            prediction = tuple(signals[name] for name in prediction)
        else:
            prediction = signals[prediction]
        return Taught(x, prediction, {name: signals[signal] for name, signal in self.layers.items()})


def _named(prediction):
    """The outputs' names in their structure, and `{name: output}`."""
    if isinstance(prediction, dict):
        structure = {key: f"output {key}" for key in sorted(prediction)}
        named = {structure[key]: prediction[key] for key in structure}
    elif isinstance(prediction, (list, tuple)) and not isinstance(prediction, coding.TopLogProbs):
        structure = [f"output {index}" for index in range(len(prediction))]
        named = dict(zip(structure, prediction, strict=True))
    else:
        structure, named = "output", {"output": prediction}
    if any(keras.tree.is_nested(one) and not isinstance(one, coding.TopLogProbs) for one in named.values()):
        raise ValueError(f"outputs must be a tensor, or a flat list or dict of tensors, got {prediction!r}.")
    return structure, named


def _output_coding(output, name, top_k, dtype):
    dtype = "float16" if dtype == coding.INT8 else dtype
    shape = _shape(output, name)
    if isinstance(output, coding.TopLogProbs):
        return coding.TopK(shape, tuple(output.log_p.shape)[-1], dtype)
    if top_k is None:
        return coding.Full(shape, dtype)
    if not shape or top_k >= shape[-1]:
        raise ValueError(f"top_k must be less than the number of classes, got {top_k} for {name!r} of shape {shape}.")
    return coding.TopK(shape, top_k, dtype)


def _layer_coding(tensor, name, dtype):
    shape = _shape(tensor, name)
    if dtype != coding.INT8:
        return coding.Full(shape, dtype)
    return coding.Int8(shape) if shape else coding.Full(shape, "float32")


def _shape(signal, name):
    """The shape of one example's signal."""
    if isinstance(signal, coding.TopLogProbs):
        return (*tuple(signal.log_p.shape)[1:-1], signal.of)
    shape = tuple(signal.shape)
    if not shape or None in shape[1:]:
        raise ValueError(
            f"signals must have one shape for all examples, but {name!r} has {shape}. Pad all batches to one length, "
            "for instance with dataset.padded_batch(batch, padded_shapes=...)."
        )
    return shape[1:]


def _require_shape(signal, shape, name):
    if _shape(signal, name) != shape:
        raise ValueError(f"signals must have one shape for all batches, but {name!r} has {shape} and {signal.shape}.")


def tensor_specs(layout):
    """`[(field, tf dtype, shape)]` of the fields that hold signals."""
    skipped = ("key", "content")
    return [(name, tf.as_dtype(np.dtype(d)), shape) for name, d, shape in layout.fields if name not in skipped]
