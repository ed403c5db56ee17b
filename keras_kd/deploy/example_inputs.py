"""Examples to try a model on: read from data, fitted to its inputs, or generated."""

import keras
import numpy as np
import tensorflow as tf

from keras_kd.outputs.model_inputs import ONLY_INPUT

GENERATED_EXAMPLES = 8
GENERATED_LENGTH = 16  # of dimensions that the model leaves open, sequence lengths mostly


def fit_inputs(x, specs):
    """Return `x`, an array or a dict of them, as {input name: array} fitted to `specs`, and the number of examples."""
    if not isinstance(x, dict):
        if specs is not None and len(specs) != 1:
            raise ValueError(f"x must be a dict with an array for each input, {sorted(specs)}, got a single array.")
        x = {ONLY_INPUT if specs is None else next(iter(specs)): x}
    inputs = {name: np.asarray(values) for name, values in x.items()}
    # TensorFlow has no dtype for NumPy's "U".
    inputs = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in inputs.items()}
    if specs is not None:
        if set(inputs) != set(specs):
            raise ValueError(f"x must have the model's inputs, {sorted(specs)}, got {sorted(map(str, inputs))}.")
        inputs = {name: _fitted(array, specs[name], name) for name, array in inputs.items()}
    lengths = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = {name: array.shape for name, array in inputs.items()}
        raise ValueError(f"x must hold at least one example, as many in each input, got the shapes {shapes}.")
    return inputs, lengths.pop()


def read_dataset(dataset, argument, part, limit=None):
    """Return `part(batch)` of the batches of a `tf.data.Dataset`, end to end, as NumPy arrays.

    `part` gives what is read of a batch, in any structure; no further than the batch that reaches `limit` examples.
    """
    if limit is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{argument} never ends: take(n) a number of batches, or leave out repeat().")
    batches, examples = [], 0
    for batch in map(part, dataset):
        tensors = keras.tree.flatten(batch)
        if not all(isinstance(tensor, tf.Tensor) and tensor.shape.rank for tensor in tensors):
            raise TypeError(
                f"{argument} must give batches of dense tensors, got {dataset.element_spec}. Of single examples, "
                "dataset.batch(256) makes batches."
            )
        batches.append(batch)
        examples += tensors[0].shape[0]
        if limit is not None and examples >= limit:
            break
    if not batches:
        raise ValueError(f"{argument} must hold at least one example, got an empty dataset.")
    try:
        return keras.tree.map_structure(lambda *parts: np.concatenate([part.numpy() for part in parts]), *batches)
    except ValueError as error:
        raise ValueError(f"{argument} must have batches of one shape; pad them all to one length: {error}.") from error


def generated_inputs(specs):
    """Return made-up inputs, {input name: array}, that fit {input name: tf.TensorSpec}; the same in each call.

    Floats are standard normal; integers are 0 and 1, which every vocabulary has; strings are short.
    """
    random = np.random.default_rng(0)
    inputs = {}
    for name, spec in specs.items():
        shape = [GENERATED_EXAMPLES, *(GENERATED_LENGTH if size is None else size for size in spec.shape[1:])]
        if spec.dtype == tf.string:
            inputs[name] = random.choice(["a", "b c"], shape).astype(object)
        elif spec.dtype.is_integer or spec.dtype.is_bool:
            inputs[name] = random.integers(0, 2, shape).astype(spec.dtype.as_numpy_dtype)
        else:
            inputs[name] = random.normal(size=shape).astype(spec.dtype.as_numpy_dtype)
    return inputs


def _fitted(array, spec, name):
    """Return `array` in the dtype of `spec`, if shape and values fit (float64 is rounded to float32)."""
    if array.ndim and not spec.shape[1:].is_compatible_with(array.shape[1:]):
        raise ValueError(f"input {name!r} must have shape {(None, *spec.shape[1:])}, got {array.shape}.")
    is_text = array.dtype.kind in "OS"
    if is_text != (spec.dtype == tf.string) or (array.dtype.kind == "f" and spec.dtype.is_integer):
        raise ValueError(f"input {name!r} must be of dtype {spec.dtype.name}, got {array.dtype}.")
    if is_text:
        return array
    cast = array.astype(spec.dtype.as_numpy_dtype)
    if spec.dtype.is_integer and not np.array_equal(cast, array):
        raise ValueError(f"input {name!r} holds numbers outside {spec.dtype.name}: {array.min()} to {array.max()}.")
    return cast
