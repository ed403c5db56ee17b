"""What a cache holds of each example: its outputs by name, the coding of each, and where they go when they are read."""

import dataclasses
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd.cache import codings
from keras_kd.cache.keys import Key, last_true
from keras_kd.outputs.endings import Ending
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.top_classes import TopClasses

FORMAT = "keras_kd.teacher_outputs/3"
KEY, CONTENT = "key.bin", "content.bin"
_END, _MASK = ".end", ".mask"  # fields of outputs by token


class Column(NamedTuple):
    """What one file of a cache holds.

    Attributes:
        dtype: As NumPy writes it: "<f2".
        shape: Of a row.
        output: The name of the output that it belongs to; None of keys.
        by_token: Whether there is a row per token instead of per example.
    """

    dtype: str = "<i8"
    shape: tuple = ()
    output: str | None = None
    by_token: bool = False


class Layout:
    """The outputs of an example, and the files that hold them.

    Args:
        key: The `Key` of the examples.
        codings: `{output name: coding}`; where the first axis of its shape is None, it is the axis of tokens, of which
            examples may have any number.
        masked: Names of the outputs by token that come with a mask.
        prediction: Names of outputs in the structure of the teacher's outputs: a name, a list of them, or a dict.
        layers: `{"layer" or "layer:part": output name}`.
        endings: `{output name: Ending}` of the outputs in `prediction`, where they are known.

    Attributes:
        by_token: Names of the outputs by token.
        columns: `{file: Column}`.
    """

    def __init__(self, key, codings, masked, prediction, layers, endings):
        self.key, self.codings, self.masked = key, codings, masked
        self.prediction, self.layers, self.endings = prediction, layers, endings
        self.by_token = [name for name, coding in codings.items() if coding.shape[:1] == (None,)]
        self._numbers = {name: number for number, name in enumerate(codings)}
        self.columns = {KEY: Column()}
        if key.entry is not None:
            self.columns[CONTENT] = Column()
        for name, coding in codings.items():
            by_token = name in self.by_token
            if by_token:
                self.columns[self.end_of(name)] = Column(output=name)
            if name in masked:
                self.columns[self._file(name, _MASK)] = Column("|u1", (), name, by_token=True)
            for field, (dtype, shape) in coding.fields().items():
                row = tuple(shape[1:] if by_token else shape)
                self.columns[self._file(name, field)] = Column(dtype, row, name, by_token)

    @classmethod
    def of(cls, prediction, layers, masks, *, key, dtype, endings=None, **sparse):
        """The layout for outputs of these shapes.

        Args:
            prediction, layers: The teacher's, of tensors or specs with the examples first, or of `TopLogProbs`.
            masks: `{output name: mask}` of the outputs by token that have one.
        """
        structure, outputs = named_outputs(prediction)
        names = {layer: _layer_name(layer) for layer in sorted(layers)}  # runs may give them in another order
        endings, kept = endings or {}, {}
        for name, output in outputs.items():
            shape = _shape(output, name, name in masks)
            if any(sparse.values()):
                _require_distribution(name, shape, endings.get(name, Ending()))
            kept[name] = codings.coding_of_output(output, shape, name, dtype=dtype, **sparse)
        for layer, name in names.items():
            kept[name] = codings.coding_of_layer(_shape(layers[layer], name, name in masks), dtype=dtype)
        if not kept:
            raise ValueError("outputs must name at least one output or layer, got none.")
        masked = sorted(name for name in masks if kept[name].shape[:1] == (None,))
        return cls(key, kept, masked, structure, names, endings)

    def coded(self, key, *, dtype, **sparse):
        """The layout of the same outputs under another key and in other codings."""
        kept = {
            name: codings.coding_of_layer(coding.shape, dtype=dtype)
            if name in self.layers.values()
            else codings.coding_of_output(None, coding.shape, name, dtype=dtype, **sparse)
            for name, coding in self.codings.items()
        }
        return Layout(key, kept, self.masked, self.prediction, self.layers, self.endings)

    def config(self):
        """The layout as the manifest holds it."""
        return {
            "format": FORMAT,
            "key": self.key.config(),
            "outputs": {name: codings.config_of(coding) for name, coding in self.codings.items()},
            "masked": self.masked,
            "prediction": self.prediction,
            "layers": self.layers,
            "endings": {name: dataclasses.asdict(ending) for name, ending in self.endings.items()},
            "files": {
                file: {"dtype": dtype, "shape": list(shape), "per": "token" if by_token else "example"}
                for file, (dtype, shape, _, by_token) in self.columns.items()
            },
        }

    @classmethod
    def from_config(cls, config):
        """The layout that a manifest names; ValueError if its fields do not fit together."""
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']!r}; this version reads {FORMAT!r}")
        kept = {name: codings.coding_from(coding) for name, coding in config["outputs"].items()}
        masked = sorted(name for name in {*config["masked"]} & {*kept} if kept[name].shape[:1] == (None,))
        structure, outputs = named_outputs(config["prediction"])
        layers = {layer: _layer_name(layer) for layer in config["layers"]}
        endings = {name: Ending(**ending) for name, ending in config["endings"].items()}
        layout = cls(Key.from_config(config["key"]), kept, masked, structure, layers, endings)
        fields = layout.config()
        wrong = [field for field in {**fields, **config} if fields.get(field) != config.get(field)]
        if {*kept} != {*outputs, *layers.values()}:
            wrong.append("outputs")
        if not {*endings} <= {*outputs} or any(one.undone not in (None, one.activation) for one in endings.values()):
            wrong.append("endings")
        if wrong:
            raise ValueError(f"its field {wrong[0]!r} does not fit the others")
        return layout

    def end_of(self, name):
        """The file that holds, per example, after which of all tokens of this output its own end."""
        return self._file(name, _END)

    def encode(self, x, keys, content, chosen, prediction, layers, masks):
        """The chosen examples of a batch as the files hold them.

        Args:
            x: What the models read.
            keys, content: int64 `(batch,)`.
            chosen: bool `(batch,)`.
            prediction, layers, masks: The teacher's outputs with all their tokens, masks by output name.

        Returns:
            `{file: tensor}`, with numbers of tokens in the place of ends; and of each output by token, which of
            `key.sequences(x)` are padded as far as it.
        """
        outputs = named_tensors(prediction, layers)
        rows, alike, kept = {KEY: keys, CONTENT: content}, {}, {None: tf.where(chosen)}
        entries = [tf.shape(entry, tf.int64)[1] for entry in self.key.sequences(x).values()]
        for name, coding in self.codings.items():
            _require_shape(outputs[name], coding.shape, name)
            fields = coding.encode(outputs[name], keys)
            if name in self.by_token:
                count = tf.shape(next(iter(fields.values())), tf.int64)[1]
                alike[name] = [entry == count for entry in entries]
                mask = masks.get(name)
                length = self.key.lengths(x, count, keys) if mask is None else last_true(mask)
                stored = tf.sequence_mask(length, count)
                fields[_END], kept[name] = length, tf.where(chosen[:, None] & stored)
                if name in self.masked:
                    fields[_MASK] = tf.cast(stored if mask is None else mask, tf.uint8)
            rows |= {self._file(name, field): tensor for field, tensor in fields.items()}
        return {
            file: tf.gather_nd(rows[file], kept[column.output if column.by_token else None])
            for file, column in self.columns.items()
        }, alike

    def decode(self, x, rows):
        """A batch as `PrecomputedBatch`.

        Args:
            x: What the models read.
            rows: `{file: tensor}` `(batch, ...)`, of outputs by token `(batch, length, ...)`; with numbers of tokens in
                the place of ends, after which outputs are zero.
        """
        outputs, masks = {}, {}
        for name, coding in self.codings.items():
            fields = {field: rows[self._file(name, field)] for field in coding.fields()}
            outputs[name] = coding.decode(fields)
            if name in self.by_token:
                tokens = next(iter(fields.values()))
                stored = tf.sequence_mask(rows[self.end_of(name)], tf.shape(tokens)[1])  # (batch, length)
                stored = tf.ensure_shape(stored, tokens.shape[:2])
                outputs[name] = _zero_beyond(outputs[name], stored)
                if name in self.masked:
                    masks[name] = stored & tf.cast(rows[self._file(name, _MASK)], tf.bool)
        structure = tuple(self.prediction) if isinstance(self.prediction, list) else self.prediction
        prediction = tf.nest.map_structure(outputs.get, structure)
        layers = {layer: outputs[name] for layer, name in self.layers.items()}
        return PrecomputedBatch.ending_in(tuple(self.endings.items()))(x, prediction, layers, masks)

    def _file(self, name, field):
        return f"output_{self._numbers[name]}{field}.bin"


def named_outputs(prediction):
    """The outputs' names in their structure, and `{name: output}`."""
    if isinstance(prediction, dict):
        structure = {key: f"output {key}" for key in sorted(prediction)}
        named = {structure[key]: prediction[key] for key in structure}
    elif isinstance(prediction, (list, tuple)) and not isinstance(prediction, codings.TopLogProbs):
        structure = [f"output {index}" for index in range(len(prediction))]
        named = dict(zip(structure, prediction, strict=True))
    else:
        structure, named = "output", {"output": prediction}
    if any(keras.tree.is_nested(one) and not isinstance(one, codings.TopLogProbs) for one in named.values()):
        raise ValueError(f"outputs must be a tensor, or a flat list or dict of tensors, got {prediction!r}.")
    return structure, named


def named_tensors(prediction, layers):
    """`{output name: tensor}` of what a teacher gives."""
    return named_outputs(prediction)[1] | {_layer_name(name): tensor for name, tensor in layers.items()}


def _layer_name(name):
    return f"layer {name}"


def _shape(output, name, varying=False):
    """The shape of one example's output, None where the number of tokens may vary."""
    if isinstance(output, codings.TopLogProbs):
        shape = (*tuple(output.log_p.shape)[:-1], output.of)
    else:
        shape = tuple(output.shape)
    if varying and len(shape) > 1:
        shape = (shape[0], None, *shape[2:])
    if not shape or None in shape[2:]:
        raise ValueError(
            f"outputs may vary in the axis after the batch alone, that of tokens, but {name!r} has {shape}. Pad all "
            "batches to one length, for instance with dataset.padded_batch(batch, padded_shapes=...)."
        )
    return shape[1:]


def _require_distribution(name, shape, ending):
    """Raise ValueError if an output is no distribution over classes, of which a part could be stored."""
    if shape == (None,):
        raise ValueError(f"top_k and sampled are for distributions over classes, but {name!r} has none.")
    if ending.activation == "sigmoid" or (ending.activation, ending.undone) == ("softmax", None):
        raise ValueError(
            f"top_k and sampled are for logits of distributions over classes, but {name!r} ends in "
            f"{ending.activation} and is stored {'as logits of each class' if ending.undone else 'as it is'}. "
            "Leave them out, or store it for losses over distributions."
        )


def _require_shape(output, shape, name):
    found = _shape(output, name)
    if len(found) != len(shape) or any(one != two for one, two in zip(found, shape, strict=True) if two is not None):
        raise ValueError(
            f"outputs must have one shape for all batches, but {name!r} has {shape} and {found}. Where the number of "
            "tokens varies, give a tf.RaggedTensor."
        )


def _zero_beyond(output, stored):
    """An output with zeros where no token is `stored`, bool `(batch, length)`: as logits, all classes alike."""
    if isinstance(output, TopClasses):
        return type(output)(*(_zero_beyond(part, stored) for part in output))
    for _ in range(output.shape.rank - 2):
        stored = stored[..., None]
    return tf.where(stored, output, tf.zeros((), output.dtype))
