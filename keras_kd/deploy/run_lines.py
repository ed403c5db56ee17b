"""The lines that run an exported file where keras_kd is not installed: on its card, and in a fresh process."""

from keras_kd.deploy.formats import format_of


def run_lines(path, examples, needs_text_operations):
    """The lines that import what the file at `path` needs, and those that load it and print its answers.

    `examples` holds the source of an array for each input: {input name: str}.
    """
    return _LINES[format_of(path)](str(path), examples, needs_text_operations)


def _saved_model(path, examples, needs_text_operations):
    arguments = _arguments({name: f"tf.constant({value})" for name, value in examples.items()})
    imports = ["import tensorflow as tf"]
    if needs_text_operations:
        imports.append("import tensorflow_text  # the tokenizer's operations")
    return imports, [
        f"model = tf.saved_model.load({path!r})",
        f'print(model.signatures["serving_default"]({arguments}))',
    ]


def _litert(path, examples, needs_text_operations):
    imports, interpreter = ["import tensorflow as tf"], f"tf.lite.Interpreter(model_path={path!r})"
    if needs_text_operations:
        imports = [
            "from tensorflow.lite.python.interpreter import InterpreterWithCustomOps",
            "from tensorflow_text.core.pybinds import tflite_registrar",
        ]
        operations = "custom_op_registerers=tflite_registrar.SELECT_TFTEXT_OPS"
        interpreter = f"InterpreterWithCustomOps(model_path={path!r}, {operations})"
    return imports, [f"run = {interpreter}.get_signature_runner()", f"print(run({_arguments(examples)}))"]


def _onnx(path, examples, _):
    return ["import onnxruntime"], [
        f'session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])',
        f"print(session.run(None, {_dictionary(examples)}))",
    ]


def _openvino(path, examples, _):
    return ["import openvino"], [
        'settings = {"INFERENCE_PRECISION_HINT": "f32"}  # the default is bfloat16 where the processor has it',
        f'model = openvino.Core().compile_model({path!r}, "CPU", settings)',
        f"print(model({_dictionary(examples)}))",
    ]


_LINES = {"saved_model": _saved_model, "litert": _litert, "onnx": _onnx, "openvino": _openvino}


def _arguments(examples):
    return ", ".join(f"{name}={value}" for name, value in examples.items())


def _dictionary(examples):
    return "{" + ", ".join(f"{name!r}: {value}" for name, value in examples.items()) + "}"
