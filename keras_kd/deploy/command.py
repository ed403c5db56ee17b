"""The command `keras-kd export`."""

import pathlib
import sys

import keras
import tensorflow as tf

from keras_kd._files import naming_damaged_file
from keras_kd._quiet import quiet
from keras_kd.deploy.exporting import export
from keras_kd.evaluation.command import DATA, names
from keras_kd.evaluation.data_files import read_data_file
from keras_kd.outputs.model_inputs import input_specs
from keras_kd.text import ByteEncoder, SentencePieceEncoder

BYTES = "bytes"


def add_commands(commands):
    """Add it to the subparsers of `keras-kd`; its default `run` takes options and returns the exit code."""
    command = commands.add_parser(
        "export",
        help="write a .keras file as SavedModel, LiteRT, ONNX or OpenVINO, run the file and compare its answers",
        description="Writes a model in another format, beside its place; runs the file, compares its answers with the "
        "model's, times it; and puts it in place with a card. Exit status: 0; 1 where the file answers otherwise than "
        "the model; 2 for bad usage or input.",
    )
    add = command.add_argument
    add("model", metavar="MODEL.keras", help="a file of keras.Model.save")
    add("path", metavar="PATH", help="a folder for a SavedModel; or a name that ends in .tflite, .onnx or .xml")
    add("--data", metavar="FILE", help=f"typical examples, on which file and model are compared: {DATA}")
    add(
        "--quantize",
        choices=["float16", "dynamic", "int8"],
        help="of LiteRT, float16 also of OpenVINO; int8 takes its ranges from --data",
    )
    add("--tokenizer", metavar="MODEL", help="to take strings: a SentencePiece .model, or 'bytes' for models of bytes")
    add("--length", type=int, help="pieces, or bytes, per text; by default as many as the model takes")
    add("--labels", type=names, metavar="NAMES", help="the classes in the order of the outputs, a,b,c: the answers")
    add("--min-agreement", type=float, metavar="SHARE", help="of the examples; with --data 0.5 if not given")
    add("--overwrite", action="store_true", help="replace what is at PATH")
    command.set_defaults(run=_run)


def _run(options):
    try:
        report = _exported(options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"keras-kd export: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"keras-kd export: {error}", file=sys.stderr)
        return 1
    print(report)
    print(f"Its card, with the lines that run it: {options.path}.card.md")
    return 0


def _exported(options):
    with quiet():  # the first use of devices looks for GPUs
        tf.config.list_logical_devices()
    path = pathlib.Path(options.model)
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.keras must be a file of keras.Model.save; none is at {options.model!r}.")
    with naming_damaged_file(path, Exception):
        model = keras.saving.load_model(path, compile=False)
    examples = options.data and read_data_file(options.data, labels=options.labels).x
    return export(
        model,
        options.path,
        tokenizer=_tokenizer(options, model),
        labels=options.labels,
        quantize=options.quantize,
        calibration=examples if options.quantize == "int8" else None,
        compare_with=examples,
        min_agreement=options.min_agreement,
        overwrite=options.overwrite,
    )


def _tokenizer(options, model):
    """The layer that --tokenizer names, or None."""
    if options.tokenizer is None:
        return None
    length = options.length or _length(model)
    if options.tokenizer == BYTES:
        return ByteEncoder(length)
    return SentencePieceEncoder(pathlib.Path(options.tokenizer).read_bytes(), length)


def _length(model):
    """The number of ids or bytes that a model takes per text."""
    shapes = [spec.shape for spec in (input_specs(model) or {}).values()]
    lengths = {shape[1] for shape in shapes if len(shape) == 2}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"--length must be given: the model takes texts of any length, inputs of the shapes {shapes}.")
    return lengths.pop()
