"""A teacher's copy in half precision."""

import keras
from keras import ops

from keras_kd._checks import require_choice
from keras_kd._keras_private import call_model, functional_graph
from keras_kd.deploy.precision import rebuilt
from keras_kd.outputs.reader import output_names
from keras_kd.teachers.members import require_teacher


def cast(teacher, dtype):
    """A copy of the teacher whose weights and computation are bfloat16 or float16: half the bytes.

    For inference: nothing in it is trainable. Its outputs are float32, under the names that they have in the teacher.
    The teacher itself stays as it is, and the two share nothing. Inputs are taken as the teacher takes them, and
    rounded by the first layer, but for `keras.layers.Normalization`, which stays in float32, so that raw numbers are
    standardized before they are rounded.

    How much faster it is depends on the machine: `benchmarks/teachers.py` measures it. float16 overflows beyond 65,504;
    bfloat16 has the range of float32, and 8 bits for the digits.

    The copy is made through Keras's own files, in a temporary folder that holds the teacher's weights for a moment, so
    the teacher's own classes need `get_config` and registration.

    Args:
        teacher: A built `keras.Model`.
        dtype: "bfloat16" or "float16".

    Returns:
        A `keras.Model`, functional if the teacher is functional or sequential.

    Raises:
        TypeError: `teacher` is not a `keras.Model`.
        ValueError: `teacher` is not built; another dtype.
        RuntimeError: the teacher cannot be rebuilt from its config.

    Example:

    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> small = keras_kd.teachers.cast(teacher, "bfloat16")
    >>> {weight.dtype for weight in small.weights}, small.output.dtype
    ({'bfloat16'}, 'float32')
    """
    require_teacher(teacher, "teacher")
    require_choice(dtype, "dtype", ["bfloat16", "float16"])
    copy = rebuilt(teacher, dtype, f"the teacher {teacher.name!r}")
    copy.trainable = False
    graph = functional_graph(copy)
    if graph is None:
        return Float32Outputs(copy, name=teacher.name)
    names = output_names(copy)
    copy = keras.Model(graph.input, keras.tree.map_structure(_in_float32, graph.output), name=teacher.name)
    copy.trainable = False
    if not isinstance(graph.output, dict):
        copy.output_names = names  # of the layers, not of the casts behind them
    return copy


@keras.saving.register_keras_serializable(package="keras_kd")
class Float32Outputs(keras.Model):
    """A model that gives the outputs of another in float32.

    Args:
        model: A built `keras.Model`.
        name: Name of the model.
    """

    def __init__(self, model, *, name=None):
        super().__init__(name=name, trainable=model.trainable)
        self.model = model
        self.built = True

    def call(self, inputs, training=None):
        return keras.tree.map_structure(_in_float32, call_model(self.model, inputs, training))

    def get_config(self):
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(model, name=config["name"])


def _in_float32(tensor):
    is_low = keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16")
    return ops.cast(tensor, "float32") if is_low else tensor
