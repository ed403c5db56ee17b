"""A teacher in half precision."""

import keras
from keras import ops

from keras_kd._checks import require_choice, require_teacher
from keras_kd._keras_private import functional_graph
from keras_kd.deploy.precision import rebuilt
from keras_kd.outputs.reader import output_names


def cast(teacher, dtype):
    """Return a copy of the teacher with bfloat16 or float16 weights and computation: half the memory.

    For inference: nothing in it is trainable. Outputs keep their names, and are float32, but those of a subclassed
    model. The teacher is not changed, and the copy shares nothing with it. The first layer rounds the inputs, except
    `keras.layers.Normalization`, which stays in float32.

    float16 overflows above 65,504; bfloat16 has the range of float32 and 8 significant bits. The speed depends on the
    machine: `benchmarks/teachers.py` measures it. Custom classes need `get_config` and registration, since the copy is
    made by saving and loading.

    Args:
        teacher: A built `keras.Model`.
        dtype: "bfloat16" or "float16".

    Returns:
        A `keras.Model`, functional if the teacher is functional or sequential.

    Raises:
        TypeError: `teacher` is not a `keras.Model`.
        ValueError: `teacher` is not built, or `dtype` is another one.
        RuntimeError: The teacher cannot be rebuilt from its config.

    Example:

    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> small = keras_kd.teachers.cast(teacher, "bfloat16")
    >>> {weight.dtype for weight in small.weights}, small.output.dtype
    ({'bfloat16'}, 'float32')
    """
    require_teacher(teacher)
    require_choice(dtype, "dtype", ["bfloat16", "float16"])
    copy = rebuilt(teacher, dtype, f"the teacher {teacher.name!r}")
    graph = functional_graph(copy)
    if graph is not None:
        names = output_names(copy)
        copy = keras.Model(graph.input, keras.tree.map_structure(_in_float32, graph.output), name=teacher.name)
        if not isinstance(graph.output, dict):
            copy.output_names = names  # of the layers, not of the casts after them
    copy.trainable = False
    return copy


def _in_float32(tensor):
    is_low = keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16")
    return ops.cast(tensor, "float32") if is_low else tensor
