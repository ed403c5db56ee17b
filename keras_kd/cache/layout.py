"""What a cache holds of each example: its outputs by name, the coding of each, and where they go when they are read."""

import dataclasses
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_kd.cache import codings
from keras_kd.cache.codings import TopLogProbs
from keras_kd.cache.keys import Key, last_true
from keras_kd.outputs.endings import Ending
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.top_classes import TopClasses

FORMAT = "keras_kd.teacher_outputs/4"
KEY, CONTENT = ("", "key"), ("", "content")
END, MASK = ".end", ".mask"  # fields of outputs by token


class Column(NamedTuple):
    """What one file of a cache holds: its name, NumPy's name of the dtype, the shape of a row, a row per what."""

    file: str
    dtype: str = "<i8"
    shape: tuple = ()
    by_token: bool = False


class Layout:
    """The outputs of an example, and the files that hold them.

    Attributes:
        key: The `Key` of the examples.
        codings: `{output name: coding}`; where the first axis of its shape is None, it is the axis of tokens, of which
            examples may have any number.
        masked: Names of the outputs by token that come with a mask.
        prediction: Names of outputs in the structure of the teacher's outputs: a name, a list of them, or a dict.
        layers: "layer" or "layer:part" of each layer whose output is stored.
        endings: `{output name: Ending}` of the outputs in `prediction`, where they are known.
        by_token: Names of the outputs by token.
        columns: `{(output name, field): Column}`: the same in all folders, whatever their files are called.
    """

    def __init__(self, key, codings, masked, prediction, layers, endings):
        self.key, self.codings, self.masked = key, codings, masked
        self.prediction, self.layers, self.endings = prediction, layers, endings
        self.by_token = [name for name, coding in codings.items() if coding.shape[:1] == (None,)]
        self.columns = {KEY: Column("key.bin")}
        if key.entry is not None:
            self.columns[CONTENT] = Column("content.bin")
        for number, (name, coding) in enumerate(codings.items()):
            by_token, file = name in self.by_token, f"output_{number}{{}}.bin"
            if by_token:
                self.columns[name, END] = Column(file.format(END))
            if name in masked:
                self.columns[name, MASK] = Column(file.format(MASK), "|u1", (), by_token=True)
            for field, (dtype, shape) in coding.fields().items():
                row = tuple(shape[1:] if by_token else shape)
                self.columns[name, field] = Column(file.format(field), dtype, row, by_token)

    @classmethod
    def of(cls, prediction, layers, masks, *, key, endings=None, **options):
        """The layout for outputs of these shapes.

        Args:
            prediction, layers: The teacher's, of tensors or specs with the examples first, or of `TopLogProbs`.
            masks: `{output name: mask}` of the outputs by token that have one.
            options: `dtype`, `top_k` and `sampled` of `cache_teacher_outputs`.
        """
        structure, outputs = named_outputs(prediction)
        layers = dict(sorted(layers.items()))  # runs may give them in another order
        named = outputs | {layer_name(layer): tensor for layer, tensor in layers.items()}
        shapes = {name: _shape(output, name, name in masks) for name, output in named.items()}
        if not shapes:
            raise ValueError("outputs must name at least one output or layer, got none.")
        given_k = {name: one.log_p.shape[-1] if isinstance(one, TopLogProbs) else None for name, one in outputs.items()}
        masked = sorted(name for name in masks if shapes[name][:1] == (None,))
        endings = endings or {}
        return cls(key, _chosen(shapes, endings, given_k, options), masked, structure, list(layers), endings)

    def coded(self, key, **options):
        """The layout of the same outputs under another key and in other codings."""
        shapes = {name: coding.shape for name, coding in self.codings.items()}
        given_k = dict.fromkeys(named_outputs(self.prediction)[1])
        chosen = _chosen(shapes, self.endings, given_k, options)
        return Layout(key, chosen, self.masked, self.prediction, self.layers, self.endings)

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
        }

    @classmethod
    def from_config(cls, config):
        """The layout that a manifest names; ValueError if its fields do not fit together."""
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']!r}; this version reads {FORMAT!r}")
        coded = {name: codings.coding_from(coding) for name, coding in config["outputs"].items()}
        masked = sorted(name for name in {*config["masked"]} & {*coded} if coded[name].shape[:1] == (None,))
        structure, outputs = named_outputs(config["prediction"])
        endings = {name: Ending(**ending) for name, ending in config["endings"].items()}
        layout = cls(Key.from_config(config["key"]), coded, masked, structure, list(config["layers"]), endings)
        fields = layout.config()
        wrong = [field for field in {**fields, **config} if fields.get(field) != config.get(field)]
        if {*coded} != {*outputs, *map(layer_name, layout.layers)}:
            wrong.append("outputs")
        if not {*endings} <= {*outputs} or any(one.undone not in (None, one.activation) for one in endings.values()):
            wrong.append("endings")
        if wrong:
            raise ValueError(f"its field {wrong[0]!r} does not fit the others")
        return layout

    def encode(self, x, keys, content, chosen, prediction, layers, masks):
        """The chosen examples of a batch, whose keys, content and bool `chosen` are `(batch,)`, as the files hold them.

        Returns:
            `{column: tensor}`, with numbers of tokens in the place of ends; and of each output by token, which of
            `key.sequences(x)` are padded as far as it, `{output: {entry: bool}}`.
        """
        outputs = named_tensors(prediction, layers)
        rows, alike, examples = {KEY: keys, CONTENT: content}, {}, tf.where(chosen)
        kept = dict.fromkeys(self.columns, examples)
        for name, coding in self.codings.items():
            _require_fit(outputs[name], coding, name)
            fields = coding.encode(outputs[name], keys)
            if name in self.by_token:
                count = tf.shape(next(iter(fields.values())), tf.int64)[1]
                entries = self.key.sequences(x).items()
                alike[name] = {entry: tf.shape(tokens, tf.int64)[1] == count for entry, tokens in entries}
                mask = masks.get(name)
                length = self.key.lengths(x, count, keys) if mask is None else last_true(mask)
                stored = tf.sequence_mask(length, count)
                if name in self.masked:
                    fields[MASK] = tf.cast(stored if mask is None else mask, tf.uint8)
                kept |= {(name, field): tf.where(chosen[:, None] & stored) for field in fields}
                fields[END] = length
            rows |= {(name, field): tensor for field, tensor in fields.items()}
        return {column: tf.gather_nd(rows[column], kept[column]) for column in self.columns}, alike

    def decode(self, x, rows):
        """A batch as `PrecomputedBatch`, of `{column: tensor}` `(batch, ...)`, by token `(batch, length, ...)`.

        Numbers of tokens stand in the place of ends; after them, outputs are zero.
        """
        outputs, masks = {}, {}
        for name, coding in self.codings.items():
            fields = {field: rows[name, field] for field in coding.fields()}
            outputs[name] = coding.decode(fields)
            if name in self.by_token:
                tokens = next(iter(fields.values()))
                stored = tf.sequence_mask(rows[name, END], tf.shape(tokens)[1])  # (batch, length)
                stored = tf.ensure_shape(stored, tokens.shape[:2])
                outputs[name] = _zero_beyond(outputs[name], stored)
                if name in self.masked:
                    masks[name] = stored & tf.cast(rows[name, MASK], tf.bool)
        structure = tuple(self.prediction) if isinstance(self.prediction, list) else self.prediction
        prediction = tf.nest.map_structure(outputs.get, structure)
        layers = {layer: outputs[layer_name(layer)] for layer in self.layers}
        return PrecomputedBatch.ending_in(tuple(self.endings.items()))(x, prediction, layers, masks)


def named_outputs(prediction):
    """The outputs' names in their structure, and `{name: output}`."""
    if isinstance(prediction, dict):
        structure = {key: f"output {key}" for key in sorted(prediction)}
        named = {structure[key]: prediction[key] for key in structure}
    elif isinstance(prediction, (list, tuple)) and not isinstance(prediction, TopLogProbs):
        structure = [f"output {index}" for index in range(len(prediction))]
        named = dict(zip(structure, prediction, strict=True))
    else:
        structure, named = "output", {"output": prediction}
    if any(keras.tree.is_nested(one) and not isinstance(one, TopLogProbs) for one in named.values()):
        raise ValueError(f"outputs must be a tensor, or a flat list or dict of tensors, got {prediction!r}.")
    return structure, named


def named_tensors(prediction, layers):
    """`{output name: tensor}` of what a teacher gives."""
    return named_outputs(prediction)[1] | {layer_name(layer): tensor for layer, tensor in layers.items()}


def layer_name(layer):
    return f"layer {layer}"


def _chosen(shapes, endings, given_k, options):
    """The coding of each output by name; those that `given_k` does not name are layers."""
    chosen = {}
    for name, shape in shapes.items():
        if name in given_k:
            if options["top_k"] or options["sampled"]:
                _require_distribution(name, shape, endings.get(name, Ending()))
            chosen[name] = codings.coding_of_output(name, shape, given_k[name], **options)
        else:
            chosen[name] = codings.coding_of_layer(shape, options["dtype"])
    return chosen


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


def _shape(output, name, varying=False):
    """The shape of one example's output, None where the number of tokens may vary."""
    shape = (*output.log_p.shape[:-1], output.of) if isinstance(output, TopLogProbs) else tuple(output.shape)
    if varying and len(shape) > 1:
        shape = (shape[0], None, *shape[2:])
    if not shape or None in shape[2:]:
        raise ValueError(
            f"outputs may vary in the axis after the batch alone, that of tokens, but {name!r} has {shape}. Pad all "
            "batches to one length, for instance with dataset.padded_batch(batch, padded_shapes=...)."
        )
    return shape[1:]


def _require_fit(output, coding, name):
    """Raise ValueError unless an output is as that of the first batch, whose coding this is."""
    if isinstance(output, TopLogProbs):
        k = coding.k if isinstance(coding, codings.TopK) else "all"
        if output.log_p.shape[-1] != k:
            raise codings.unequal_k(name, f"{output.log_p.shape[-1]} classes after {k}")
    found, shape = _shape(output, name), coding.shape
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
