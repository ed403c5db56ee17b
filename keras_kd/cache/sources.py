"""Where teacher outputs come from: a model that runs over a dataset, or arrays that another program made."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_kd._keras_private import get_mask
from keras_kd.cache.codings import TopLogProbs, unequal_k
from keras_kd.cache.keys import fingerprint
from keras_kd.cache.layout import Layout, layer_name, named_outputs, named_tensors
from keras_kd.losses import DistillationLoss, KerasLoss
from keras_kd.outputs.endings import Ending
from keras_kd.outputs.hooks import PARTS, Hook
from keras_kd.outputs.pairing import hooks_of, require_comparable
from keras_kd.outputs.reader import OutputReader, output_names


class Source:
    """Gives `(batch, keys, content)` of each batch, the keys and hashes as int64 arrays `(batch,)`.

    Attributes:
        layout: The `Layout` of the outputs.
        batches: The number of batches, as `tf.data.Dataset.cardinality` gives it.
    """

    batches = tf.data.UNKNOWN_CARDINALITY

    def encoded(self, batch, keys, content, new):
        """What `Writer.add` takes of a batch: the outputs of its examples that are `new`, bool `(batch,)`."""
        rows, alike = self._encode(batch, *map(tf.constant, (keys, content, new)))
        sequences = {
            output: [entry for entry, same in flags.items() if same] if flags else None
            for output, flags in alike.items()
        }
        return {column: np.asarray(tensor) for column, tensor in rows.items()}, sequences  # tensor.numpy() would copy


class DatasetSource(Source):
    """What is computed of the batches of a batched `tf.data.Dataset`; `key` is the `Key` of its examples."""

    def __init__(self, dataset, key):
        self._dataset, self.batches = dataset, int(dataset.cardinality())
        self.spec = dataset.element_spec[0] if isinstance(dataset.element_spec, tuple) else dataset.element_spec
        self._keys = tf.function(lambda x: (key.of(x)[0], key.content(x)), input_signature=[self.spec], autograph=False)

    def __iter__(self):
        for element in self._dataset.prefetch(2):
            x = element[0] if isinstance(element, tuple) else element
            yield x, *(array.numpy() for array in self._keys(x))


class TeacherSource(DatasetSource):
    """The outputs of a built `keras.Model` that runs over a batched `tf.data.Dataset`.

    `coded` are `dtype`, `top_k` and `sampled` of `cache_teacher_outputs`.
    """

    def __init__(self, teacher, dataset, key, outputs, coded):
        super().__init__(dataset, key)
        selection = _Selection(teacher, outputs)
        compiled = {"jit_compile": True} if teacher.jit_compile else {}  # as `predict` would be
        read = tf.function(selection, input_signature=[self.spec], autograph=False, **compiled)
        shapes = read.get_concrete_function().structured_outputs
        self.layout = Layout.of(*shapes, key=key, endings=selection.endings, **coded)
        number, flag = (tf.TensorSpec((None,), dtype) for dtype in (tf.int64, tf.bool))
        self._encode = tf.function(
            lambda x, *examples: self.layout.encode(x, *examples, *read(x)),
            input_signature=[self.spec, number, number, flag],
            autograph=False,
        )


class ArraySource(Source):
    """Outputs from an iterable of batches of arrays, `(x or ids, prediction)` or with layers as a third."""

    def __init__(self, batches, key, coded):
        self._key, rest = key, map(self._in_tensors, batches)
        first = next(rest, None)
        if first is None:
            raise ValueError("dataset must give at least one batch of outputs, got none.")
        self.layout = Layout.of(*first[1:], key=key, **coded)
        self._batches = itertools.chain([first], rest)

    def __iter__(self):
        for batch in self._batches:
            x, prediction, layers, _ = batch
            if isinstance(x, dict) and set(x) == {self._key.entry}:  # ids alone: the outputs stand for the content
                content = fingerprint([_tensors(prediction), layers])
            else:
                content = self._key.content(x)
            yield batch, self._key.of(x)[0].numpy(), content.numpy()

    def _encode(self, batch, *examples):
        x, *outputs = batch
        return self.layout.encode(x, *examples, *outputs)

    def _in_tensors(self, element):
        """`(x, prediction, layers, masks)` of a batch, of tensors; what was ragged is dense and has a mask."""
        if not isinstance(element, tuple) or len(element) not in (2, 3):
            raise TypeError(
                "dataset must give tuples (x or ids, prediction) or (x or ids, prediction, layers), got "
                f"{type(element).__name__}."
            )
        x, prediction, layers = (*element, {})[:3]
        x = keras.tree.map_structure(_tensor, x) if isinstance(x, dict) else _tensor(x)
        if self._key.entry is not None and not isinstance(x, dict):
            x = {self._key.entry: x}
        structure, _ = named_outputs(prediction)
        dense, masks = {}, {}
        for name, output in named_tensors(prediction, layers).items():
            dense[name], mask = _dense(output, name)
            if mask is not None:
                masks[name] = mask
        prediction = keras.tree.map_structure(dense.get, structure)
        layers = {layer: dense[layer_name(layer)] for layer in layers}
        counts = {int(leaf.shape[0]) for leaf in _tensors([x, prediction, layers])}
        if len(counts) != 1:
            raise ValueError(f"x and outputs must have as many examples, got {sorted(counts)} in one batch.")
        return x, prediction, layers, masks


def _dense(output, name):
    """An output in dense tensors, and the mask of what was a `tf.RaggedTensor`, else None."""
    if isinstance(output, TopLogProbs):
        try:
            classes, log_p = _tensor(output.classes, name), _tensor(output.log_p, name)
        except ValueError:
            raise unequal_k(name, "rows of several lengths") from None
        if classes.shape.as_list() != log_p.shape.as_list() or log_p.shape[-1] is None:
            raise unequal_k(name, f"classes {classes.shape} and log_p {log_p.shape}")
        (classes, _), (log_p, mask) = _dense(classes, name), _dense(log_p, name)
        return output._replace(classes=classes, log_p=log_p), mask
    tensor = _tensor(output, name)
    if isinstance(tensor, tf.RaggedTensor):
        return tensor.to_tensor(), tf.sequence_mask(tensor.row_lengths())
    return tensor, None


def _tensor(array, name="x"):
    if isinstance(array, tf.RaggedTensor):
        return array
    try:
        array = np.asarray(array)
        return tf.convert_to_tensor(array.astype(object) if array.dtype.kind in "US" else array)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of one length, or be a tf.RaggedTensor: {error}") from None


def _tensors(structure):
    """The tensors of a structure, without the number of classes of `TopLogProbs`."""
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, tf.Tensor)]


class _Selection:
    """Reads the chosen outputs of a teacher; `outputs` are those of `cache_teacher_outputs`.

    Attributes:
        endings: `{output name: Ending}`, known after the first call.
    """

    def __init__(self, teacher, outputs):
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
        """`(prediction, layers, masks)` of a batch, outputs as logits where that is known: see `Layout.encode`."""
        outputs = self._reader(x, training=False)
        chosen = self._structured(outputs)
        endings = keras.tree.map_structure(lambda output: self._ending(outputs, output), chosen)
        self.endings = named_outputs(endings)[1]
        prediction = keras.tree.map_structure(
            lambda output, ending: self._reader.select(outputs, output, undo=ending.undone)[0], chosen, endings
        )
        layers = {hook.name: tensor for hook, tensor in outputs.layers.items()}
        masks = {name: get_mask(tensor) for name, tensor in named_tensors(prediction, layers).items()}
        return prediction, layers, {name: mask for name, mask in masks.items() if mask is not None}

    def _structured(self, outputs):
        """The names or indices of the outputs to store, in the structure in which losses look for them."""
        requested = [*self._outputs, *(loss.output_of("teacher") for loss in self._losses)]
        if not requested:
            return ()
        named = [isinstance(output, str) for output in requested]
        prediction = outputs.prediction
        if all(named):
            return {output: output for output in sorted(set(requested))}
        if isinstance(prediction, dict):
            return {key: key for key in prediction}
        count = len(keras.tree.flatten(prediction))
        if any(named) and count > 1:
            raise ValueError(
                f"outputs name some outputs and not others, {requested}, of a teacher whose outputs {self._names} "
                "are in a list. Name each output, or none."
            )
        if any(named):
            return {self._names[0]: 0}
        return tuple(range(count)) if isinstance(prediction, (list, tuple)) else 0

    def _ending(self, outputs, output):
        """How an output ends, and what of it the losses and names that chose it want undone."""
        (activation,), (position,) = (
            read(outputs, output) for read in (self._reader.activations, self._reader.positions)
        )
        known = activation if activation in ("softmax", "sigmoid") else None
        undone = {known} if output in self._outputs or None in self._outputs else set()
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
