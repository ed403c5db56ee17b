"""Teachers that are not Keras models: a SavedModel, or any function of NumPy arrays."""

import keras
import numpy as np
import tensorflow as tf

from keras_kd._checks import require_choice, require_count
from keras_kd.deploy.runtimes import SavedModelRuntime, open_runtime
from keras_kd.outputs.endings import logits_of

_GIVES = ["logits", "probabilities"]
_LEAST_SUM, _LARGEST_SUM = 0.99, 1.01  # of probabilities, which may come in half precision


def from_saved_model(path, *, output=None, gives="logits"):
    """Load a SavedModel as a teacher, through its serving signature.

    Inputs have the names, shapes and dtypes of the signature, as `keras_kd.export(model, folder)`,
    `model.export(folder)` and other programs write it. The model's Python classes are not needed. Its weights are not
    weights of the returned model, so they are not saved or trained.

    Inputs may be strings (for `fit`: arrays of dtype object, `tf.constant`, or a `tf.data.Dataset`); `jit_compile` is
    then turned off.

    Args:
        path: The folder (str or PathLike).
        output: Name of the output, if the signature has several.
        gives: "logits", or "probabilities" over classes, whose log is taken.

    Returns:
        A functional `keras.Model` that gives logits in float32. It takes a tensor if the signature has one input, else
        a dict of tensors by name.

    Raises:
        TypeError: `path` is not a path.
        FileNotFoundError: `path` does not exist.
        ValueError: `path` is not a SavedModel, is damaged, or has no serving signature; the signature has a fixed batch
            size, an unknown rank, or an output that is not floating point; it has several outputs and `output` does not
            name one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3, activation="softmax")])
    >>> model.export("teacher", verbose=False)
    >>> teacher = keras_kd.teachers.from_saved_model("teacher", gives="probabilities")
    >>> teacher.input.name, teacher.output.shape
    ('features', (None, 3))
    """
    require_choice(gives, "gives", _GIVES)
    runtime = open_runtime(path)
    if not isinstance(runtime, SavedModelRuntime):
        raise ValueError(f"path must be a SavedModel folder, got {path!r}.")
    if runtime.fixed_batch is not None:
        raise ValueError(
            f"path must hold a SavedModel for any number of examples, got one for {runtime.fixed_batch} a call. Export "
            "it again with None as the first size of its inputs."
        )
    specs, outputs = runtime.specs(), runtime.signature.structured_outputs
    open_ranks = [name for name, spec in {**specs, **outputs}.items() if spec.shape.rank is None]
    if open_ranks:
        raise ValueError(
            f"path must hold a SavedModel whose inputs and outputs have a known rank, got {open_ranks} "
            "of unknown rank. Export it again with input_signature=."
        )
    output = _chosen_output(outputs, output)
    layer = ExternalModel(
        lambda inputs: runtime.signature(**inputs)[output],
        tuple(outputs[output].shape[1:]),
        gives,
        supports_jit=not any(spec.dtype == tf.string for spec in specs.values()),
        name="saved_model",
    )
    inputs = {
        name: keras.Input(tuple(spec.shape[1:]), dtype=spec.dtype.name, name=name) for name, spec in specs.items()
    }
    given = inputs if len(inputs) != 1 else next(iter(inputs.values()))
    return keras.Model(given, layer(inputs), name="from_saved_model")


def from_function(function, *, inputs, classes, gives="probabilities"):
    """Make a teacher of any function of NumPy arrays: scikit-learn's `predict_proba`, a PyTorch model, an API.

    The function is called once per batch, in this process and outside of TensorFlow's graph, and its results are
    checked. XLA cannot compile that (`jit_compile` is turned off with a warning), and the model cannot be saved or
    exported.

    For a PyTorch model: `lambda x: model(torch.from_numpy(x)).detach().numpy()`.

    Args:
        function: A callable. It gets NumPy arrays `(batch, ...)` in the structure of `inputs`, never an empty batch
            (strings as str in an array of dtype object), and returns an array of numbers, `(batch, classes)`.
        inputs: A `keras.Input`, or a list or flat dict of them: what the function takes. From a dict batch it gets the
            entries with the names of the inputs, or the keys of the dict.
        classes: Number of classes ≥ 1; a tuple for more dimensions: `(None, classes)` for one distribution per token.
        gives: "probabilities" over classes, whose log is taken, or "logits".

    Returns:
        A functional `keras.Model` that gives logits in float32.

    Raises:
        TypeError: `function` is not callable, `inputs` are not `keras.Input`s, or `classes` is not a whole number.
        ValueError: `classes` < 1.
        tf.errors.InvalidArgumentError: During training, the function returns another shape, or numbers that are not
            probabilities with `gives="probabilities"`.

    Example:

    >>> def always_the_second(x):
    ...     return np.tile([0.0, 1.0, 0.0], (len(x), 1))
    >>> teacher = keras_kd.teachers.from_function(always_the_second, inputs=keras.Input((4,)), classes=3)
    >>> teacher(np.zeros((2, 4))).numpy().argmax(axis=-1).tolist()
    [1, 1]
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}: {function!r}.")
    leaves = keras.tree.flatten(inputs)
    if not leaves or not all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
        raise TypeError(f"inputs must be a keras.Input, or a list or dict of them, got {inputs!r}.")
    require_choice(gives, "gives", _GIVES)
    sizes = classes if isinstance(classes, tuple) else (classes,)
    for size in sizes[:-1]:
        if size is not None:
            require_count(size, "classes", at_least=1)
    require_count(sizes[-1] if sizes else None, "classes", at_least=1)
    if isinstance(inputs, dict):  # Keras requires input names to equal the keys
        inputs = {key: keras.Input(tuple(i.shape[1:]), dtype=i.dtype, name=key) for key, i in inputs.items()}

    def in_numpy(inputs):
        def run(*arrays):
            given = keras.tree.pack_sequence_as(inputs, [_decoded(array) for array in arrays])
            return _answer(function, given, sizes, gives)

        return tf.numpy_function(run, keras.tree.flatten(inputs), tf.float32)

    layer = ExternalModel(in_numpy, sizes, gives, supports_jit=False, name="numpy_function")
    return keras.Model(inputs, layer(inputs), name="from_function")


class ExternalModel(keras.layers.Layer):
    """A layer whose `function`, of tensors, gives logits or probabilities of the shape `(batch, *sizes)`, as logits."""

    def __init__(self, function, sizes, gives, *, supports_jit, name):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.supports_jit = supports_jit
        self.function, self.sizes, self.gives = function, sizes, gives
        self.built = True

    def call(self, inputs):
        outputs = tf.ensure_shape(tf.cast(self.function(inputs), tf.float32), (None, *self.sizes))
        return logits_of(outputs, "softmax") if self.gives == "probabilities" else outputs


def _answer(function, inputs, sizes, gives):
    """The result of a function of NumPy arrays, checked, in float32."""
    examples = len(keras.tree.flatten(inputs)[0])
    if not examples:  # of a replica without examples
        return np.zeros((0, *(size or 1 for size in sizes)), np.float32)
    result = np.asarray(function(inputs))
    expected = (examples, *sizes)
    if result.dtype.kind not in "fiu" or not tf.TensorShape(result.shape).is_compatible_with(expected):
        raise ValueError(
            f"{function!r} must return an array of numbers of shape {expected} for {examples} examples, "
            f"got {result.dtype} of shape {result.shape}."
        )
    result = result.astype(np.float32)
    if gives == "probabilities":
        _require_probabilities(result, function)
    return result


def _require_probabilities(result, function):
    """Raise ValueError unless rows are distributions. NaN passes: the distiller names its batch."""
    sums = result.sum(axis=-1)
    if (result < 0).any() or (sums < _LEAST_SUM).any() or (sums > _LARGEST_SUM).any():
        raise ValueError(
            f"{function!r} must return probabilities that add up to 1 for each example, got numbers from "
            f"{result.min():.3g} to {result.max():.3g} that add up to {sums.min():.3g} to {sums.max():.3g}. "
            "For logits, pass gives='logits'."
        )


def _decoded(array):
    """The array with str in place of TensorFlow's bytes."""
    if array.dtype != object:
        return array
    return np.array([value.decode() for value in array.ravel()], dtype=object).reshape(array.shape)


def _chosen_output(outputs, name):
    if name is None and len(outputs) != 1:
        raise ValueError(
            f"output must name one of the SavedModel's {len(outputs)} outputs, {sorted(outputs)}, got None."
        )
    name = require_choice(name or next(iter(outputs)), "output", sorted(outputs))
    if not outputs[name].dtype.is_floating:
        raise ValueError(f"output {name!r} must hold {' or '.join(_GIVES)}, got {outputs[name].dtype.name}.")
    return name
