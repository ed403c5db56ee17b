"""From a Keras model to a SavedModel folder, and on to LiteRT, ONNX and OpenVINO."""

import contextlib
import os
import re
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_kd._extras import needs_extra
from keras_kd._keras_private import allow_text_operations, call_model
from keras_kd._quiet import first_line, quiet
from keras_kd.deploy.fake_quantization import integers_as_constants, quantization_of
from keras_kd.deploy.formats import FORMATS, without_operation, without_usage_data
from keras_kd.deploy.int4 import with_int4_weights
from keras_kd.deploy.precision import rebuilt
from keras_kd.deploy.runtimes import named_outputs
from keras_kd.outputs.model_inputs import ONLY_INPUT, input_names

_LOW_DTYPES = (tf.float16, tf.bfloat16)
_LOOPS = {"While", "StatelessWhile"}  # as recurrent layers make them unless unrolled


def input_signature(student, specs):
    """Return `specs`, {input name: tf.TensorSpec}, in the structure that the student takes, each with its name."""
    names = input_names(student)
    if names is None:
        names = ONLY_INPUT if set(specs) == {ONLY_INPUT} else {name: name for name in specs}
    return keras.tree.map_structure(lambda name: tf.TensorSpec(specs[name].shape, specs[name].dtype, name), names)


def traced(student, signature):
    """Return the student in inference mode as a `tf.function`, traced once, for inputs of `signature`."""
    serve = tf.function(
        lambda inputs: call_model(student, inputs, training=False), input_signature=[signature], autograph=False
    )
    serve.get_concrete_function()
    return serve


def write_saved_model(student, endpoints, folder):
    """Write traced functions, `{name: function}`, and the weights they read, as a SavedModel; the first one serves."""
    archive = keras.export.ExportArchive()
    # The archive finds the weights in the functions, and the lookup tables below what it is told to track. Told to
    # track the student itself, it would write each weight twice.
    holder = tf.Module()
    holder.student = student
    archive.track(holder)
    for name, function in endpoints.items():
        archive.add_endpoint(name, function)
    with quiet():
        archive.write_out(os.fspath(folder), verbose=False)


def litert_bytes(student, signature, *, quantize=None, calibration=None):
    """Return the student as the bytes of a LiteRT file; one in low precision as its copy in float32.

    The operations of tensorflow-text are let in where the student takes strings. Without `calibration`, "int8" takes
    the ranges of activations that the graph holds. RuntimeError if LiteRT lacks an operation, or the float32 copy
    cannot be made.
    """
    with integers_as_constants():
        content = _litert_bytes(student, signature, quantize, calibration)
    has_int4 = quantize == "dynamic" and any(weights == "int4" for weights, _ in quantization_of(student).values())
    return with_int4_weights(content) if has_int4 else content


def _litert_bytes(student, signature, quantize, calibration):
    student, signature, serve = _traced_in_float32(student, signature, "LiteRT")
    if any(node.op in _LOOPS for node in _nodes(serve)):
        if quantize == "int8":  # the quantizer would crash the process
            raise ValueError(
                "quantize='int8' must not be used with loops, which recurrent layers make: the quantizer does not "
                "support them. Use quantize='dynamic' or 'float16', or build the layers with unroll=True."
            )
        # The lists in which loops collect their steps need a static shape.
        serve = traced(student, keras.tree.map_structure(_of_one_example, signature))
    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(student, {"serve": serve}, folder)
        takes_text = any(spec.dtype == tf.string for spec in keras.tree.flatten(signature))
        return converted(folder, quantize, calibration, takes_text=takes_text)


def _traced_in_float32(student, signature, title):
    """The student, its signature and both traced; one in low precision as its copy in float32."""
    serve = traced(student, signature)
    low = {dtype.as_datatype_enum for dtype in _LOW_DTYPES}
    if any(attribute.type in low for node in _nodes(serve) for attribute in node.attr.values()):
        failure = f"{title} computes in float32, and the student, which computes in float16 or bfloat16,"
        student = rebuilt(student, "float32", failure)
        signature = keras.tree.map_structure(_in_float32, signature)
        serve = traced(student, signature)
    return student, signature, serve


def _in_float32(spec):
    return tf.TensorSpec(spec.shape, tf.float32 if spec.dtype in _LOW_DTYPES else spec.dtype, spec.name)


def _of_one_example(spec):
    return tf.TensorSpec((1, *spec.shape[1:]), spec.dtype, spec.name)


def converted(folder, quantize, calibration=None, *, takes_text=False, signatures=None):
    """Return a SavedModel as the bytes of a LiteRT file, with these of its signatures or the one that serves."""
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=signatures)
    if takes_text:
        allow_text_operations(converter)
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        examples = len(next(iter(calibration.values())))
        converter.representative_dataset = lambda: (
            {name: _fed(array[row : row + 1]) for name, array in calibration.items()} for row in range(examples)
        )
    with _errors_of_conversion("litert"):
        return converter.convert()


def _fed(array):
    """What the calibrator reads as it is: of strings, only NumPy's own bytes; objects and str come out as garbage."""
    if array.dtype != object:
        return array
    return np.array([text if isinstance(text, bytes) else text.encode() for text in array.ravel()]).reshape(array.shape)


def write_onnx(student, signature, path):
    """Write the student as an ONNX file by tf2onnx; one in low precision as its copy in float32.

    Inputs and outputs have the names that they have in a SavedModel, and the batch is open. RuntimeError if it cannot
    be converted; an operation that ONNX lacks shows only when the file is loaded.
    """
    with needs_extra("onnx"):
        import tf2onnx

    import keras_kd.deploy.onnx_operations  # noqa: F401 (registers them)

    student, signature, _ = _traced_in_float32(student, signature, "ONNX")
    serve = tf.function(
        lambda inputs: named_outputs(call_model(student, inputs, training=False)),
        input_signature=[signature],
        autograph=False,
    )
    with _errors_of_conversion("onnx"):
        tf2onnx.convert.from_function(serve, [signature], output_path=os.fspath(path))


def write_openvino(student, signature, path, *, quantize=None):
    """Write the student as OpenVINO's .xml at `path` and .bin beside it; one in low precision as its copy in float32.

    RuntimeError if OpenVINO lacks an operation.
    """
    with needs_extra("openvino"), without_usage_data():
        import openvino

    student, _, serve = _traced_in_float32(student, signature, "OpenVINO")
    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(student, {"serve": serve}, folder)
        with _errors_of_conversion("openvino"):
            model = openvino.convert_model(folder)
            openvino.save_model(model, os.fspath(path), compress_to_fp16=quantize == "float16")


@contextlib.contextmanager
def _errors_of_conversion(format):
    """Silence a converter, and raise its errors, which are of no public class, as RuntimeError."""
    with quiet():
        try:
            yield
        except Exception as error:
            title = FORMATS[format].title
            raise RuntimeError(f"the student could not be converted to {title}: {_reason(error, format)}") from error


def _reason(error, format):
    """One line out of the converter's many."""
    lists = re.findall(r"(?:TF Select|Custom) ops: (.*)|No conversion rule found for operations: (.*)", str(error))
    missing = ", ".join("".join(found) for found in lists)
    return without_operation(missing, format) if missing else first_line(error)


def _nodes(serve):
    graph = serve.get_concrete_function().graph.as_graph_def()
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def
