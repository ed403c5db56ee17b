"""The formats that `export` writes: the ending of each, what it can hold, and the packages that it needs."""

import contextlib
import dataclasses
import pathlib
import sys

from keras_kd._extras import needs_extra
from keras_kd._files import bytes_on_disk, content_hash


@dataclasses.dataclass(frozen=True)
class Format:
    """What a format is called, and what it can hold."""

    title: str
    ending: str  # of the path; "" for a folder
    quantize: tuple[str | None, ...]  # what `export(quantize=...)` may be
    holds_strings: bool
    weights_ending: str | None = None  # of the second file, which holds the weights, where there are two


FORMATS = {
    "saved_model": Format("SavedModel", "", (None,), True),
    "litert": Format("LiteRT", ".tflite", (None, "float16", "dynamic", "int8"), True),
    "onnx": Format("ONNX", ".onnx", (None,), False),
    "openvino": Format("OpenVINO", ".xml", (None, "float16"), False, ".bin"),
}
_BY_ENDING = {form.ending: name for name, form in FORMATS.items()}


def format_of(path):
    """The format that a path asks for by its ending, a key of `FORMATS`; a folder is a SavedModel."""
    return _BY_ENDING.get(pathlib.Path(path).suffix, "saved_model")


def model_files(path):
    """The file or folder of a model; of OpenVINO's, the .xml and the .bin beside it."""
    path = pathlib.Path(path)
    weights_ending = FORMATS[format_of(path)].weights_ending
    return [path] if weights_ending is None else [path, path.with_suffix(weights_ending)]


def model_size(path):
    """The bytes of a model on disk."""
    return sum(map(bytes_on_disk, model_files(path)))


def model_hash(path):
    """The SHA-256 of a model; of OpenVINO's, that of the .xml followed by the .bin."""
    return content_hash(*model_files(path))


def require_packages(format):
    """Import what converts to a format and runs it; ImportError names the extra."""
    if format == "onnx":
        with needs_extra("onnx"):
            import onnxruntime  # noqa: F401
            import tf2onnx  # noqa: F401
    elif format == "openvino":
        with needs_extra("openvino"), without_usage_data():
            import openvino  # noqa: F401


@contextlib.contextmanager
def without_usage_data():
    """Without openvino_telemetry, OpenVINO takes a stub of its own; with it, a forked process sends each report."""
    if "openvino_telemetry" in sys.modules:
        yield
        return
    sys.modules["openvino_telemetry"] = None
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]


def without_operation(missing, format):
    """The sentence about operations that a format lacks."""
    tokenizers = "take a tokenizer that LiteRT has (WordPieceEncoder, SentencePieceEncoder, ByteEncoder), "
    return (
        f"{FORMATS[format].title} has no {missing}. Keep such steps outside the student, "
        f"{tokenizers if format == 'litert' else ''}or export a SavedModel, which has them."
    )
