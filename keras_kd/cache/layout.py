"""What a cache holds of each example: its outputs by name, how each is coded, and where they go when they come back."""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd.cache import coding
from keras_kd.cache.keys import Key
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.top_classes import TopClasses

FORMAT = "keras_kd.outputs/2"
KEY, CONTENT = "key.bin", "content.bin"


class Column(NamedTuple):
    """What one file of a cache holds.

    Attributes:
        dtype: As NumPy writes it: "<f2".
        shape: Of a row.
        by_token: Whether there is a row for each token, not for each example.
    """

    dtype: str
    shape: tuple
    by_token: bool = False


class Layout:
    """The outputs of an example, and the files that hold them.

    Args:
        key: The `Key` of the examples.
        codings: `{output name: coding}`; where the first axis of its shape is None, it is that of tokens, of which
            examples may have any number.
        masked: Names of the outputs by token that come with a Keras mask.
        prediction: Names of outputs in the structure of the teacher's outputs: a name, a list of them, or a dict.
        layers: `{"layer" or "layer:part": output name}`.

    Attributes:
        columns: `{file: Column}`.
        files_by_token: `{output by token: the files that have a row for each of its tokens}`.
    """

    def __init__(self, key, codings, masked, prediction, layers):
        self.key, self.codings, self.masked = key, codings, masked
        self.prediction, self.layers = prediction, layers
        self.by_token = [name for name, kept in codings.items() if kept.shape[:1] == (None,)]
        self._files = {name: f"output_{number}" for number, name in enumerate(codings)}
        self.columns = {KEY: Column("<i8", ())}
        if key.entry is not None:
            self.columns[CONTENT] = Column("<i8", ())
        for name, kept in codings.items():
            by_token = name in self.by_token
            if by_token:
                self.columns[self.end_of(name)] = Column("<i8", ())
            if name in masked:
                self.columns[self.mask_of(name)] = Column("|u1", (), by_token=True)
            for part, (dtype, shape) in kept.fields().items():
                self.columns[self._file(name, part)] = Column(dtype, tuple(shape[1:] if by_token else shape), by_token)
        self.files_by_token = {
            name: [*self.files_of(name), *([self.mask_of(name)] if name in masked else [])] for name in self.by_token
        }

    @classmethod
    def of(cls, prediction, layers, *, key, masked, dtype, ragged=(), **sparse):
        """The layout for outputs of these shapes.

        Args:
            prediction, layers: The teacher's, of tensors or specs with the examples first, or of `TopLogProbs`.
            masked: Names of the outputs that have a Keras mask.
            ragged: Names of those that have another number of tokens in each example.
        """
        structure, outputs = named_outputs(prediction)
        names = {name: _layer_name(name) for name in layers}
        varying = {*masked, *ragged}
        codings = {}
        for name, output in outputs.items():
            shape = _shape(output, name, name in varying)
            if shape == (None,) and any(sparse.values()):
                raise ValueError(f"top_k and sampled are for distributions over classes, but {name!r} has none.")
            codings[name] = coding.coding_of_output(output, shape, name, dtype=dtype, **sparse)
        for layer, tensor in layers.items():
            name = names[layer]
            codings[name] = coding.coding_of_layer(_shape(tensor, name, name in varying), dtype=dtype)
        if not codings:
            raise ValueError("outputs must name at least one output or layer, got none.")
        return cls(key, codings, sorted(masked), structure, names)

    def coded(self, key, *, dtype, **sparse):
        """The layout of the same outputs under another key and in other codings."""
        codings = {
            name: coding.coding_of_layer(kept.shape, dtype=dtype)
            if name in self.layers.values()
            else coding.coding_of_output(None, kept.shape, name, dtype=dtype, **sparse)
            for name, kept in self.codings.items()
        }
        return Layout(key, codings, self.masked, self.prediction, self.layers)

    def config(self):
        """What the manifest says of it."""
        return {
            "format": FORMAT,
            "key": self.key.config(),
            "outputs": {name: coding.config_of(kept) for name, kept in self.codings.items()},
            "masked": self.masked,
            "prediction": self.prediction,
            "layers": self.layers,
            "files": {
                file: {"dtype": dtype, "shape": list(shape), "a row": "a token" if by_token else "an example"}
                for file, (dtype, shape, by_token) in self.columns.items()
            },
        }

    @classmethod
    def from_config(cls, config):
        """The layout that a manifest names."""
        codings = {name: coding.coding_of(kept) for name, kept in config["outputs"].items()}
        key = Key.from_config(config["key"])
        layout = cls(key, codings, config["masked"], config["prediction"], config["layers"])
        if layout.config() != config:
            raise TypeError(f"files should be {layout.config()['files']}")
        return layout

    def end_of(self, name):
        """The file that says of each example behind which token of all its tokens of this output end."""
        return f"{self._files[name]}.end.bin"

    def mask_of(self, name):
        """The file of an output's mask."""
        return f"{self._files[name]}.mask.bin"

    def files_of(self, name):
        """The files that hold an output itself."""
        return [self._file(name, part) for part in self.codings[name].fields()]

    def encode(self, outputs, keys):
        """`{file: tensor}` of a batch, each output with all its tokens; `keys`, int64 `(batch,)`, are the examples'."""
        encoded = {}
        for name, kept in self.codings.items():
            _require_shape(outputs[name], kept.shape, name)
            for part, tensor in kept.encode(outputs[name], keys).items():
                encoded[self._file(name, part)] = tensor
        return encoded

    def decode(self, x, rows, lengths):
        """A `PrecomputedBatch` batch.

        Args:
            x: What the models read.
            rows: `{file: tensor}` `(batch, ...)`, of outputs by token `(batch, length, ...)`.
            lengths: `{output by token: (batch,)}`: behind these, outputs are zero.
        """
        outputs, masks = {}, {}
        for name, kept in self.codings.items():
            parts = {part: rows[self._file(name, part)] for part in kept.fields()}
            outputs[name] = kept.decode(parts)
            if name in lengths:
                count = next(iter(parts.values()))
                there = tf.sequence_mask(lengths[name], tf.shape(count)[1])  # (batch, length)
                there = tf.ensure_shape(there, count.shape[:2])
                outputs[name] = _zero_elsewhere(outputs[name], there)
                if name in self.masked:
                    masks[name] = there & tf.cast(rows[self.mask_of(name)], tf.bool)
        prediction = self.prediction
        if isinstance(prediction, dict):
            prediction = {key: outputs[name] for key, name in prediction.items()}
        elif isinstance(prediction, list):
            prediction = tuple(outputs[name] for name in prediction)
        else:
            prediction = outputs[prediction]
        return PrecomputedBatch(x, prediction, {name: outputs[output] for name, output in self.layers.items()}, masks)

    def _file(self, name, part):
        return f"{self._files[name]}{part}.bin"


def named_outputs(prediction):
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


def named_tensors(prediction, layers):
    """`{output name: tensor}` of what a teacher gives."""
    return named_outputs(prediction)[1] | {_layer_name(name): tensor for name, tensor in layers.items()}


def _layer_name(name):
    return f"layer {name}"


def _shape(output, name, varying=False):
    """The shape of one example's output, None where the number of tokens may vary."""
    if isinstance(output, coding.TopLogProbs):
        shape = (*tuple(output.log_p.shape)[:-1], output.of)
    else:
        shape = tuple(output.shape)
    if varying and len(shape) > 1:
        shape = (shape[0], None, *shape[2:])
    if not shape or None in shape[2:]:
        raise ValueError(
            f"outputs may vary in the axis behind the batch alone, that of tokens, but {name!r} has {shape}. Pad all "
            "batches to one length, for instance with dataset.padded_batch(batch, padded_shapes=...)."
        )
    return shape[1:]


def _require_shape(output, shape, name):
    there = _shape(output, name)
    if len(there) != len(shape) or any(one != two for one, two in zip(there, shape, strict=True) if two is not None):
        raise ValueError(
            f"outputs must have one shape for all batches, but {name!r} has {shape} and {there}. Where the number of "
            "tokens varies, give a tf.RaggedTensor."
        )


def _zero_elsewhere(output, there):
    """An output with zeros where a token is not `there`, bool `(batch, length)`: as logits, all classes alike."""
    if isinstance(output, TopClasses):
        return type(output)(*(_zero_elsewhere(part, there) for part in output))
    for _ in range(output.shape.rank - 2):
        there = there[..., None]
    return tf.where(there, output, tf.zeros((), output.dtype))
