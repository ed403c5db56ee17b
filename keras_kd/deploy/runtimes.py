"""Run a model, whatever form it has: a live `keras.Model`, a .keras file, or a file of any format of `export`."""

import abc
import math
import os
import pathlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from keras_kd._checks import require_count
from keras_kd._extras import needs_extra
from keras_kd._files import naming_damaged_file
from keras_kd._keras_private import call_model, text_interpreter
from keras_kd._quiet import quiet
from keras_kd.deploy.example_inputs import fit_inputs
from keras_kd.deploy.formats import format_of, model_files, model_size, without_usage_data
from keras_kd.deploy.fresh_process import peak_memory
from keras_kd.outputs.model_inputs import ONLY_INPUT, any_batch, input_names, input_specs, specs_of

_SIGNATURE = "serving_default"
_ACCEPTED = "a keras.Model, or the path of a SavedModel folder, or of a .tflite, .onnx, .xml (OpenVINO) or .keras file"


def open_runtime(model_or_path):
    """Return a `Runtime` for a live `keras.Model`, or for the path of a model.

    That is a SavedModel folder, or a file that ends in .tflite, in .onnx (needs the extra `onnx`), in .xml (OpenVINO's,
    with the .bin beside it; needs the extra `openvino`) or in .keras. LiteRT, ONNX and OpenVINO files have no checksum:
    damaged weights go unnoticed.
    """
    if isinstance(model_or_path, keras.Model):
        return KerasRuntime(model_or_path)
    if not isinstance(model_or_path, (str, os.PathLike)):
        raise TypeError(f"model_or_path must be {_ACCEPTED}, got {type(model_or_path).__name__}: {model_or_path!r}.")
    path = pathlib.Path(model_or_path)
    if not path.exists():
        raise FileNotFoundError(f"model_or_path must be {_ACCEPTED}; nothing is at {os.fspath(path)!r}.")
    if path.is_dir() and (path / "saved_model.pb").exists():
        return SavedModelRuntime(path)
    if path.is_file() and format_of(path) in _OF_FILES:
        return _OF_FILES[format_of(path)](path)
    if path.is_file() and path.suffix == ".keras":
        with naming_damaged_file(path, Exception):
            model = keras.saving.load_model(path, compile=False)
        return KerasRuntime(model, size_bytes=path.stat().st_size)
    came = "a folder without saved_model.pb" if path.is_dir() else "a file of another kind"
    raise ValueError(f"model_or_path must be {_ACCEPTED}, got {came}: {os.fspath(path)!r}.")


class Runtime(abc.ABC):
    """A model that answers in NumPy, one interface for every form of it.

    Attributes:
        parameters: the number of weights, or None where the file does not tell.
        size_bytes: bytes on disk; for a live `keras.Model`, the bytes of its weights.
        fixed_batch: the number of examples per call that the file is bound to, None where any will do. `predict` takes
            any number of examples all the same.
    """

    def __init__(self, parameters, size_bytes, fixed_batch=None, path=None):
        self.parameters = parameters
        self.size_bytes = size_bytes
        self.fixed_batch = fixed_batch
        self._path = path

    def predict(self, x, batch_size=256):
        """Return the model's outputs in inference mode: an array, (examples, ...), or a dict of several.

        They are float32, but for strings, which are objects of bytes.

        `x` is an array or {input name: array}. Integers are cast to the model's dtype if they fit, float64 to float32.
        """
        batch_size = self.fixed_batch or require_count(batch_size, "batch_size", at_least=1)
        inputs, examples = fit_inputs(x, self.specs())
        batches = [
            self._run_batch({name: array[start : start + batch_size] for name, array in inputs.items()})
            for start in range(0, examples, batch_size)
        ]
        names = sorted(batches[0])  # files list them in any order
        outputs = {name: _joined([batch[name] for batch in batches]) for name in names}
        for name, array in outputs.items():
            if len(array) != examples:
                raise ValueError(f"output {name!r} has {len(array)} rows for {examples} examples; it needs one each.")
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def latency_ms(self, x_one, repeats=50, warmup=5):
        """Return the median wall time, in milliseconds, from one example in NumPy to its outputs in NumPy.

        A LiteRT file runs in one thread, TensorFlow in as many as it likes. `x_one` is a batch of one; the first
        `warmup` calls, which trace and allocate, do not count.
        """
        return statistics.median(self.latencies_ms(x_one, repeats, warmup))

    def latencies_ms(self, x_one, repeats=50, warmup=5):
        """Return the wall time of each of `repeats` such calls, in milliseconds."""
        inputs, examples = fit_inputs(x_one, self.specs())
        if examples != 1:
            raise ValueError(f"x_one must be a batch of one example, got {examples}; pass x[:1].")
        times = []
        for _ in range(warmup + repeats):
            start = time.perf_counter()
            self._run_batch(inputs)
            times.append(1e3 * (time.perf_counter() - start))
        return times[warmup:]

    def peak_memory_bytes(self, x_one):
        """Return by how much a fresh process grows at most, in bytes, to load the file and run one example on the CPU.

        Counted from where the packages are imported: weights, arrays that come and go, and what the runtime sets up;
        not Python and the packages. None for a `keras.Model`, live or of a .keras file, and where the system does not
        tell (Windows). RuntimeError if the file does not run in a fresh process.
        """
        if self._path is None:
            return None
        inputs, _ = fit_inputs(x_one, self.specs())
        return peak_memory(self._path, self._filled(inputs))

    def _run_batch(self, inputs):
        if self.fixed_batch is None:
            return self._run(inputs)
        examples = len(next(iter(inputs.values())))
        outputs = self._run(self._filled(inputs))
        return {name: array[:examples] for name, array in outputs.items()}

    def _filled(self, inputs):
        """The inputs, filled up to a fixed batch with copies of the last example."""
        if self.fixed_batch is None:
            return inputs
        rows = np.minimum(np.arange(self.fixed_batch), len(next(iter(inputs.values()))) - 1)
        return {name: array[rows] for name, array in inputs.items()}

    @abc.abstractmethod
    def specs(self):
        """Return {input name: tf.TensorSpec}, or None if the model does not tell."""

    @abc.abstractmethod
    def _run(self, inputs):
        """Return {output name: array} for {input name: array}, one batch."""


class KerasRuntime(Runtime):
    """A live `keras.Model`, called in inference mode; its weights may change between calls.

    A functional or sequential model takes any number of inputs, any other an array or a dict of arrays.
    """

    def __init__(self, model, size_bytes=None):
        if not model.built:
            raise ValueError(
                f"model must be built, got {model.name!r} without weights; call it once on a batch of inputs."
            )
        weights = sum(math.prod(weight.shape) * tf.as_dtype(weight.dtype).size for weight in model.weights)
        super().__init__(model.count_params(), weights if size_bytes is None else size_bytes)
        self._model = model
        self._names = input_names(model)
        self._functions = {}

    def specs(self):
        return input_specs(self._model)

    def _run(self, inputs):
        specs = self.specs() or specs_of(inputs)
        outputs = self._function(specs)({name: tf.convert_to_tensor(array) for name, array in inputs.items()})
        return {name: np.asarray(tensor) for name, tensor in outputs.items()}

    def _function(self, specs):
        """The model as a graph for inputs of `specs`, traced once; the model itself where it is to run eagerly."""
        # Not model.predict: that would compile functions into the caller's model, and takes tens of ms a call.
        if self._model.run_eagerly:
            return self._forward
        key = tuple(sorted(specs.items()))
        if key not in self._functions:
            self._functions[key] = tf.function(self._forward, autograph=False).get_concrete_function(specs)
        return self._functions[key]

    def _forward(self, inputs):
        """The outputs by name, for inputs by name."""
        if self._names is not None:
            inputs = keras.tree.map_structure(lambda name: inputs[name], self._names)
        elif set(inputs) == {ONLY_INPUT}:
            inputs = inputs[ONLY_INPUT]
        return named_outputs(call_model(self._model, inputs, training=False))


class SavedModelRuntime(Runtime):
    """A SavedModel folder, run through its serving signature.

    Attributes:
        signature: the serving signature, a function of tensors by name that gives tensors by name; it can be traced.
            It runs as long as the runtime is kept.
    """

    def __init__(self, path):
        self._loaded = _load_saved_model(path)  # the signature does not keep the variables alive
        signatures = self._loaded.signatures
        if _SIGNATURE not in signatures:
            raise ValueError(f"{path} must have a signature {_SIGNATURE!r}, got {sorted(signatures)}.")
        self.signature = signatures[_SIGNATURE]
        parameters = sum(math.prod(variable.shape) for variable in self.signature.variables)
        super().__init__(parameters, model_size(path), _fixed_batch(spec.shape for spec in self.specs().values()), path)

    def specs(self):
        _, specs = self.signature.structured_input_signature
        return specs

    def _run(self, inputs):
        outputs = self.signature(**{name: tf.convert_to_tensor(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


class LiteRTRuntime(Runtime):
    """A .tflite file, run by `ai_edge_litert` where that is installed, else by the interpreter in TensorFlow.

    `parameters` is None: the file keeps weights and other constants together. Not for several threads at once.
    """

    def __init__(self, path):
        self._interpreter = litert_interpreter(path)
        keys = list(self._interpreter.get_signature_list())
        if not keys:
            raise ValueError(f"{path} must have a signature; convert it with TFLiteConverter.from_saved_model.")
        self._runner = self._interpreter.get_signature_runner(_SIGNATURE if _SIGNATURE in keys else keys[0])
        self._inputs = self._runner.get_input_details()
        tensors = {**self._inputs, **self._runner.get_output_details()}
        quantized = sorted(name for name in tensors if tensors[name]["quantization_parameters"]["scales"].size)
        if quantized:
            raise ValueError(
                f"{path} must take and give real numbers, but {quantized} are quantized. Convert it with float32 "
                "inputs and outputs, as keras_kd.export does."
            )
        super().__init__(None, model_size(path), _fixed_batch(map(_litert_shape, self._inputs.values())), path)

    def specs(self):
        return {name: any_batch(_litert_shape(details), details["dtype"]) for name, details in self._inputs.items()}

    def _run(self, inputs):
        return self._runner(**inputs)


class ONNXRuntime(Runtime):
    """An .onnx file, run by ONNX Runtime on the CPU, in one thread. `parameters` is None, as for LiteRT."""

    def __init__(self, path):
        with needs_extra("onnx"):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        with naming_damaged_file(path, Exception):
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        super().__init__(None, model_size(path), _fixed_batch(map(_onnx_shape, self._session.get_inputs())), path)

    def specs(self):
        return {each.name: any_batch(_onnx_shape(each), _onnx_dtype(each)) for each in self._session.get_inputs()}

    def _run(self, inputs):
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


class OpenVINORuntime(Runtime):
    """An OpenVINO .xml with the .bin beside it, run on the CPU, in one thread. `parameters` is None, as for LiteRT.

    It computes in float32, also on processors where OpenVINO's default is bfloat16.
    """

    def __init__(self, path):
        with needs_extra("openvino"), without_usage_data():
            import openvino

        for part in model_files(path):
            if not part.exists():
                raise FileNotFoundError(
                    f"{os.fspath(path)!r} needs its weights beside it: nothing is at {part.name!r}."
                )
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        with naming_damaged_file(path, Exception):
            self._model = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
        super().__init__(None, model_size(path), _fixed_batch(map(_openvino_shape, self._model.inputs)), path)

    def specs(self):
        return {
            port.get_any_name(): any_batch(_openvino_shape(port), port.element_type.to_dtype())
            for port in self._model.inputs
        }

    def _run(self, inputs):
        answers = self._model(inputs)
        return {port.get_any_name(): answers[port] for port in self._model.outputs}


_OF_FILES = {"litert": LiteRTRuntime, "onnx": ONNXRuntime, "openvino": OpenVINORuntime}


def _fixed_batch(shapes):
    """The number of examples per call that inputs of these shapes are bound to; None where it is open."""
    return max((shape[0] for shape in shapes if shape and shape[0] is not None), default=None)


def _litert_shape(details):
    return [None if size == -1 else int(size) for size in details["shape_signature"]]


def _onnx_shape(value):
    return [size if isinstance(size, int) else None for size in value.shape]  # an open size has a name


def _onnx_dtype(value):
    """The dtype of an input of ONNX Runtime, "tensor(float)"."""
    name = value.type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _openvino_shape(port):
    return [size.get_length() if size.is_static else None for size in port.partial_shape]


def named_outputs(outputs):
    """Return a model's outputs as a dict: "output_0", "output_1", … for a single tensor or a list of them."""
    if isinstance(outputs, dict):
        named = dict(outputs)
    else:
        listed = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        named = {f"output_{i}": tensor for i, tensor in enumerate(listed)}
    wrong = [name for name, tensor in named.items() if keras.tree.is_nested(tensor) or not isinstance(name, str)]
    if wrong:
        raise ValueError(
            "the model's outputs must be a tensor, a list of tensors or a dict of them with strings for keys, "
            f"got something else in {wrong}."
        )
    return named


def _load_saved_model(path):
    with naming_damaged_file(path, Exception):  # which TensorFlow has of every kind
        try:
            return tf.saved_model.load(os.fspath(path))
        except (FileNotFoundError, RuntimeError) as error:  # one or the other, by where in the graph the operation is
            if "not registered" not in str(error):
                raise
            import tensorflow_text  # noqa: F401 (registers the operations of tokenizers)

            return tf.saved_model.load(os.fspath(path))


def litert_interpreter(path):
    """The interpreter of a .tflite file, its tensors allocated."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter
    content = path.read_bytes()  # not the path: the interpreter would map the file, which must stay replaceable
    with quiet(), naming_damaged_file(path, Exception):
        interpreter = Interpreter(model_content=content)
        if any(np.dtype(details["dtype"]).kind in "OS" for details in interpreter.get_input_details()):
            interpreter = text_interpreter(content)  # strings: a tokenizer of tensorflow-text is inside
        interpreter.allocate_tensors()  # the first time in a process, this announces a delegate
        return interpreter


def _joined(batches):
    """Outputs of one name, end to end."""
    joined = np.concatenate(batches)
    return joined if joined.dtype == object else joined.astype(np.float32)
