"""`export`: ship the student in one of four formats, run what was written and compare it with the student."""

import contextlib
import dataclasses
import os
import pathlib
import re

import keras
import numpy as np
import tensorflow as tf
from rich.filesize import decimal

from keras_kd._checks import require_choice, require_model, require_number
from keras_kd._files import written_whole
from keras_kd._quiet import first_line
from keras_kd.deploy.cards import CARD, METADATA, beside, export_metadata, write_files
from keras_kd.deploy.comparison import Comparison, has_classes
from keras_kd.deploy.conversion import (
    input_signature,
    litert_bytes,
    traced,
    write_onnx,
    write_openvino,
    write_saved_model,
)
from keras_kd.deploy.end_to_end import TEXT, end_to_end_model
from keras_kd.deploy.example_inputs import fit_inputs, generated_inputs, read_dataset
from keras_kd.deploy.fake_quantization import quantization_of
from keras_kd.deploy.formats import FORMATS, format_of, model_files, require_packages, without_operation
from keras_kd.deploy.runtimes import KerasRuntime, open_runtime
from keras_kd.outputs.hooks import layer_paths
from keras_kd.outputs.model_inputs import input_specs, is_input_name, specs_of
from keras_kd.text.encoder import TextEncoder

COMPARED_EXAMPLES = 1024  # at most, the first ones of `compare_with`
CALIBRATION_EXAMPLES = 512  # at most, the first ones of `calibration`
LEAST_AGREEMENT = 0.5  # unless `min_agreement` says otherwise
_TIMED_CALLS = 100
_BATCH = 32

_FOREIGN_ENDINGS = (".keras", ".h5", ".lite", ".pb")
_DISTILLER = "keras_kd>Distiller"  # by its registered name: the distiller is no import of this module


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how its answers compare with the student's."""

    path: str
    format: str  # "saved_model", "litert", "onnx" or "openvino"
    quantize: str | None  # "float16", "dynamic" or "int8"
    size_bytes: int  # on disk
    batch_size: int | None  # examples per call, where the file is bound to a number (loops in LiteRT: 1)
    max_difference: float  # the largest |file - student| over all outputs
    mean_difference: float  # the mean of |file - student| over all outputs
    # The share of examples (for sequences, of positions) on which both answer alike: the same argmax over the last
    # axis, or for unit vectors the same nearest neighbour among the examples. The lowest share of several outputs; None
    # where none has two classes or more.
    agreement: float | None
    cosine: float | None  # for unit vectors, the mean cosine between the file's and the student's
    examples: int  # how many were compared
    generated: bool  # whether those were made up, because `compare_with` was None
    latency_ms: float  # median wall time of one example in the file's own runtime (but for a SavedModel, in one thread)
    latency_p99_ms: float  # the 99th percentile of 100 such calls
    # By how much the resident memory of a fresh process, with the packages imported, grows at most while it loads the
    # file and runs one example on the CPU; None where the system does not tell (Windows).
    peak_memory_bytes: int | None

    @property
    def kind(self):
        """Format and quantization in words: "LiteRT int8"."""
        return " ".join(filter(None, (FORMATS[self.format].title, self.quantize)))

    def __str__(self):
        bound = "" if self.batch_size is None else f", {self.batch_size} example a call"
        agreement = "" if self.agreement is None else f"agreement {100 * self.agreement:.2f} %, "
        if self.cosine is not None:
            agreement = agreement.replace("agreement", "same neighbour") + f"cosine {self.cosine:.4f}, "
        source = "generated inputs" if self.generated else "examples"
        memory = "" if self.peak_memory_bytes is None else f" and {decimal(self.peak_memory_bytes)} of memory"
        cost = f"{self.size_bytes:,} bytes, {self.latency_ms:.3g} ms{memory} for one example"
        return (
            f"{self.path}: {self.kind}, {cost}{bound}\n"
            f"  against the student on {self.examples:,} {source}: {agreement}outputs differ by "
            f"{self.mean_difference:.2g} on average, {self.max_difference:.2g} at most"
        )


def export(
    student,
    path,
    *,
    tokenizer=None,
    labels=None,
    quantize=None,
    calibration=None,
    compare_with=None,
    min_agreement=None,
    overwrite=False,
):
    """Write the student as SavedModel, LiteRT, ONNX or OpenVINO, run what was written, and compare its answers.

    The file is run twice: here, where its answers are compared and timed, and by the lines of its card in a fresh
    process without keras_kd, where its memory is measured; with TensorFlow to import, that takes some seconds. The file
    appears whole or not at all: it is written and checked beside `path`, then moved there. Where anything
    fails, nothing is left behind, and an older file stays as it was. Beside it lie its card, a page with what is known
    of it, and the same as JSON: see `keras_kd.deploy.write_card`.

    With `tokenizer` and `labels`, strings go in and answers come out: what is written is then the
    `keras_kd.deploy.end_to_end_model` of the three. In a LiteRT file, SentencePiece and WordPiece are operations of
    tensorflow-text, which an app links; with a `ByteEncoder`, the file takes the bytes that the encoder gives, and the
    stock runtime of any phone runs it.

    "int8" suits convolutions and dense layers. Attention and layer normalization can lose much: see `min_agreement`.
    Recurrent layers make loops, which LiteRT runs one example a call and does not quantize to int8; with `unroll=True`
    they have no such limits. A student with a mixed_float16 or mixed_bfloat16 policy goes into LiteRT as its copy in
    float32, and into a SavedModel as it is.

    A SavedModel needs TensorFlow and nothing of keras_kd to run; with operations of tensorflow-text in it, import
    `tensorflow_text` before loading it. To be written and run here, ONNX needs the extra `onnx` and OpenVINO the extra
    `openvino`. They hold no strings, so that tokenizer and labels stay outside; their batch is open, also with
    recurrent layers; a student in low precision goes into them as its copy in float32.

    Args:
        student: a built `keras.Model`; of a distiller, `distiller.student`. Input names are the dict's keys or the
            names of the `keras.Input`s; without names, "inputs" for a single one, else "input_0", "input_1", …
        path: where to write: a name ending in .tflite for LiteRT, in .onnx for ONNX, in .xml for OpenVINO, whose
            weights lie beside it in a .bin; else a folder for a SavedModel. Missing parent folders are made.
        tokenizer: what turns strings into the student's inputs: a layer of `keras_kd.text`, a KerasHub preprocessor, or
            any function of TensorFlow; see `keras_kd.deploy.end_to_end_model`. With it, `compare_with` and
            `calibration` are texts: a list of str, or a form below.
        labels: one str for each class; the outputs are then "label", "probabilities" and "logits".
        quantize: how the file keeps and uses the weights: LiteRT knows all of these, OpenVINO "float16".

            - None: float32.
            - "float16": kept in half precision, half as large; computed in float32.
            - "dynamic": kept as 8-bit integers, a quarter as large (arrays of fewer than 1,024 numbers stay float32);
              activations are float32, rounded to 8 bits where an operation multiplies them with such weights.
            - "int8": weights, activations and arithmetic are 8-bit integers, where LiteRT has the operation for them.
              `calibration` gives the ranges of activations; what lies outside them is clipped. Inputs and outputs keep
              the student's dtypes.
        calibration: for "int8", typical inputs, in the forms that `compare_with` takes; the first 512 examples are
            used.
        compare_with: inputs for the comparison: an array, a dict of arrays, or a batched `tf.data.Dataset` of x,
            (x, y) or (x, y, weight); the first 1,024 examples are used. None: 8 examples made up from the student's
            inputs (standard normal floats; integers 0 and 1; short strings; open lengths are 16), which show that the
            file runs, but no more. A student that is neither functional nor sequential does not tell its inputs and
            needs `compare_with`; its file takes examples of that shape and dtype.
        min_agreement: the least share in [0, 1] of examples on which file and student must answer alike: choose the
            same class, or, where the outputs are vectors of length 1, have the same nearest neighbour among the
            examples. None: 0.5 where `compare_with` is given and there is something to agree on, for a file below that
            is of use to nobody; 0 keeps any file. Needs `compare_with`.
        overwrite: whether to replace what is at `path`: a file, or a SavedModel folder.

    Returns:
        An `ExportReport`.

    Raises:
        TypeError: `student` is not a `keras.Model`, or is a distiller; another argument is of the wrong type.
        ValueError: an unbuilt student, or one whose input names a file cannot keep; another ending, or quantization or
            strings that the format lacks; int8 without calibration or with loops; data that does not fit the student's
            inputs.
        ImportError: the extra of ONNX or OpenVINO is not installed.
        FileExistsError: something is at `path`, and `overwrite` is False.
        OSError: nothing can be written there.
        RuntimeError: the student cannot be converted; or the file does not run, gives NaN or infinite outputs, or
            agrees on too few examples.

    Example:

    >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)])
    >>> x = np.random.default_rng(0).normal(size=(256, 8))
    >>> print(keras_kd.export(student, "student.tflite", quantize="int8", calibration=x, compare_with=x))
    student.tflite: LiteRT int8, 3,312 bytes, 0.00469 ms and 3.9 MB of memory for one example
      against the student on 256 examples: agreement 97.66 %, outputs differ by 0.005 on average, 0.019 at most
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path (str or PathLike), got {type(path).__name__}: {path!r}.")
    path = pathlib.Path(path)
    if path.suffix in _FOREIGN_ENDINGS:
        raise ValueError(
            "path must end in .tflite for LiteRT, in .onnx, in .xml for OpenVINO, or name a folder for a SavedModel, "
            f"got {os.fspath(path)!r}. A .keras file is written by student.save(path)."
        )
    format = format_of(path)
    _check_student(student, compare_with)
    has_ranges = format == "litert" and _has_ranges(student, quantize)
    _check_options(format, quantize, calibration, compare_with, min_agreement, has_ranges)
    _check_target(path, format, overwrite)
    _check_format(student, format, tokenizer, labels)
    model, encoder = _model_and_encoder(student, tokenizer, labels, format)
    inputs, specs = _inputs_and_specs(model, encoder, compare_with)
    if calibration is not None:
        calibration = _examples(calibration, specs, CALIBRATION_EXAMPLES, "calibration", encoder)
    reference = KerasRuntime(model)
    outputs = _checked_answers(reference, inputs, min_agreement)
    _check_strings(format, specs, outputs)

    with (
        written_whole(beside(path, CARD)) as page,
        written_whole(beside(path, METADATA)) as data,
        written_whole(path, FORMATS[format].weights_ending) as partial,
    ):
        _write(model, partial, format, specs, quantize, calibration)
        with _must_run(format):
            runtime = open_runtime(partial)
            one = {name: array[:1] for name, array in inputs.items()}
            latencies = runtime.latencies_ms(one, repeats=_TIMED_CALLS)
            memory = runtime.peak_memory_bytes(one)
        report = ExportReport(
            path=os.fspath(path),
            format=format,
            quantize=quantize,
            size_bytes=runtime.size_bytes,
            batch_size=runtime.fixed_batch,
            generated=compare_with is None,
            latency_ms=float(np.median(latencies)),
            latency_p99_ms=float(np.percentile(latencies, 99)),
            peak_memory_bytes=memory,
            **_compared(reference, runtime, inputs, format),
        )
        _check_agreement(report, min_agreement)
        write_files(export_metadata(report, partial, specs, outputs, student, tokenizer, labels), page, data)
        return report


def _model_and_encoder(student, tokenizer, labels, format):
    """The model to write, and the encoder that stays outside of the file: None, or one whose outputs the file takes."""
    if tokenizer is None and labels is None:
        return student, None
    model = end_to_end_model(student, tokenizer, labels)
    if format == "litert" and isinstance(tokenizer, TextEncoder) and not tokenizer.is_in_litert():
        return end_to_end_model(student, labels=labels), tokenizer
    return model, None


def _check_student(student, compare_with):
    require_model(student, "student")
    is_distiller = any(keras.saving.get_registered_name(cls) == _DISTILLER for cls in type(student).__mro__)
    if is_distiller or isinstance(student, keras.distillation.Distiller):
        raise TypeError("student must be the student alone, got a distiller; pass distiller.student.")
    if not student.built:
        raise ValueError("student must be built, got one without weights; call it once on a batch of inputs.")
    if compare_with is None and input_specs(student) is None:
        raise ValueError(
            "compare_with must be given for a student that is neither functional nor sequential: it does not tell the "
            "shapes and dtypes of its inputs."
        )


def _has_ranges(student, quantize):
    """Whether a student of `quantize_aware` brings the ranges of its activations; it is exported as it was trained."""
    trained = quantization_of(student).values()
    has_ranges = any(activations is not None for _, activations in trained)
    has_int4 = any(weights == "int4" for weights, _ in trained)
    wanted = ["int8"] if has_ranges else ["dynamic"] if has_int4 else [None, "float16", "dynamic", "int8"]
    if trained and quantize not in wanted:
        weights = f"{'int4' if has_int4 else 'int8'} weights" + " and int8 activations" * has_ranges
        raise ValueError(
            f"quantize must be {wanted[0]!r} for a student that was made by quantize_aware for {weights}, got "
            f"{quantize!r}."
        )
    return has_ranges


def _check_options(format, quantize, calibration, compare_with, min_agreement, has_ranges):
    require_choice(quantize, "quantize", [None, "float16", "dynamic", "int8"])
    form = FORMATS[format]
    if quantize not in form.quantize:
        raise ValueError(
            f"quantize={quantize!r} needs a path that ends in .tflite: quantization is LiteRT's, and {form.title} has "
            f"{' or '.join(map(repr, form.quantize))}."
        )
    if has_ranges and calibration is not None:
        raise ValueError(
            "calibration must be None for a student of quantize_aware(activations='int8'), whose ranges are trained."
        )
    if quantize == "int8" and calibration is None and not has_ranges:
        raise ValueError(
            "calibration must be given for quantize='int8': typical inputs, some hundred, from which the ranges of the "
            "activations are taken. quantize='dynamic' needs none."
        )
    if quantize != "int8" and calibration is not None:
        raise ValueError(f"calibration must be None unless quantize='int8', got quantize={quantize!r}.")
    if min_agreement is not None:
        require_number(min_agreement, "min_agreement", at_least=0.0, at_most=1.0)
        if compare_with is None:
            raise ValueError("compare_with must be given with min_agreement: made-up inputs tell nothing about it.")


def _check_format(student, format, tokenizer, labels):
    """What a format can hold, and the packages that it needs."""
    title = FORMATS[format].title
    if not FORMATS[format].holds_strings and (tokenizer is not None or labels is not None):
        argument = "labels" if tokenizer is None else "tokenizer"
        raise ValueError(
            f"{argument} must be None for {title}, which holds no strings. Export without tokenizer and labels, and "
            "compare_with the tokenizer's outputs; or write a SavedModel or a .tflite file."
        )
    quantized = _quantized_layers(student) if format == "openvino" else {}
    if quantized:  # it converts them, and answers with other numbers
        raise ValueError(
            f"student has layers that model.quantize() has quantized, which OpenVINO computes wrongly: {quantized}. "
            "Export the student as it was before; ONNX and SavedModel hold quantized layers."
        )
    require_packages(format)


def _check_strings(format, specs, outputs):
    if FORMATS[format].holds_strings:
        return
    strings = [name for name, spec in specs.items() if spec.dtype == tf.string]
    strings += [name for name, array in outputs.items() if array.dtype == object]
    if strings:
        raise ValueError(
            f"student must have no inputs or outputs of strings for {FORMATS[format].title}, got {strings}. Export the "
            "part from ids to logits, or write a SavedModel or a .tflite file."
        )


def _check_target(path, format, overwrite):
    files = *model_files(path), beside(path, CARD), beside(path, METADATA)
    there = [found for found in files if found.exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"path must not exist yet, nor its card, got {os.fspath(there[0])!r}; pass overwrite=True to replace it."
        )
    if not path.exists():
        return
    title = FORMATS[format].title
    if format != "saved_model" and not path.is_file():
        raise ValueError(f"path must be a file to be replaced by a {title} file, got the folder {os.fspath(path)!r}.")
    if format == "saved_model" and not (path / "saved_model.pb").exists():
        raise ValueError(
            f"path must be a SavedModel folder to be replaced by one, got {os.fspath(path)!r}, which has no "
            "saved_model.pb; choose another name, or remove it yourself."
        )


def _inputs_and_specs(model, encoder, compare_with):
    """Return the examples to compare on, and what the file will take: {input name: tf.TensorSpec}."""
    specs = input_specs(model)
    if compare_with is None:
        inputs = generated_inputs(specs)
    else:
        inputs = _examples(compare_with, specs, COMPARED_EXAMPLES, "compare_with", encoder)
    wrong = [name for name in inputs if not is_input_name(name)]
    if wrong:
        raise ValueError(
            f"student must have input names of letters a-z, digits and _, the first no digit, got {wrong}: TensorFlow "
            "does not keep others in a file. Name them in keras.Input(name=...), or by the keys of a dict of inputs."
        )
    return inputs, specs or specs_of(inputs)


def _examples(data, specs, limit, argument, encoder=None):
    """Return the first `limit` examples of `data` as {input name: array}, fitted to `specs`."""
    if isinstance(data, tf.data.Dataset):
        data = read_dataset(data, argument, lambda batch: batch[0] if isinstance(batch, tuple) else batch, limit)
    if isinstance(data, list) and all(isinstance(text, (str, bytes)) for text in data):
        data = np.array(data, dtype=object)
    arrays = list(data.values()) if isinstance(data, dict) else [data]
    if not arrays or not all(isinstance(array, (np.ndarray, tf.Tensor)) for array in arrays):
        raise TypeError(
            f"{argument} must be an array, a list of str, a dict of arrays, or a batched tf.data.Dataset of x, (x, y) "
            f"or (x, y, weight), got {type(data).__name__}. (Labels are not used: pass x alone.)"
        )
    first = {name: array[:limit] for name, array in data.items()} if isinstance(data, dict) else data[:limit]
    try:
        if encoder is not None:
            first, _ = fit_inputs(first, {TEXT: tf.TensorSpec((None,), tf.string)})
            first = encoder(first[TEXT]).numpy()
        inputs, _ = fit_inputs(first, specs)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    # Only a student that does not tell its dtypes leaves float64 as it is.
    return {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in inputs.items()}


def _checked_answers(reference, inputs, min_agreement):
    """The student's answer to one example, before anything is written; its outputs can agree where that is asked."""
    outputs = _answers(reference, {name: array[:1] for name, array in inputs.items()})
    if min_agreement is not None and not any(map(has_classes, outputs.values())):
        shapes = {name: array.shape for name, array in outputs.items()}
        raise ValueError(f"min_agreement must be None for a student without two classes or more, got outputs {shapes}.")
    return outputs


def _check_agreement(report, min_agreement):
    if report.agreement is None or report.generated:
        return
    least = LEAST_AGREEMENT if min_agreement is None else min_agreement
    if report.agreement < least:
        by = "" if report.cosine is None else ", by the nearest neighbours of their vectors"
        nearer = (
            " More calibration examples, quantize='dynamic' or 'float16' bring it nearer." if report.quantize else ""
        )
        raise RuntimeError(
            f"the exported file agrees with the student on {100 * report.agreement:.2f} % of the examples{by}, less "
            f"than min_agreement={least}; it was not kept.{nearer}"
        )


def _write(student, path, format, specs, quantize, calibration):
    signature = input_signature(student, specs)
    # The file or folder comes first: where nothing can be written, nothing needs to be converted.
    if format == "saved_model":
        path.mkdir()
        write_saved_model(student, {"serve": traced(student, signature)}, path)
        return
    path.touch()
    if format == "onnx":
        write_onnx(student, signature, path)
        return
    if format == "openvino":
        write_openvino(student, signature, path, quantize=quantize)
        return
    try:
        path.write_bytes(litert_bytes(student, signature, quantize=quantize, calibration=calibration))
    except RuntimeError as error:
        quantized = _quantized_layers(student)
        if not quantized:
            raise
        raise ValueError(
            f"student has layers that model.quantize() has quantized, which LiteRT cannot convert: {quantized}. Export "
            "the student as it was before, with quantize='int8' or 'dynamic' here: LiteRT then quantizes it itself. A "
            "SavedModel holds quantized layers."
        ) from error


def _quantized_layers(student):
    """{path: policy} of the layers that `model.quantize()` has quantized."""
    return {
        path: layer.dtype_policy.name
        for path, layer in layer_paths(student)
        if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy)
    }


def _compared(reference, runtime, inputs, format):
    """Part of an `ExportReport`, by batches: all outputs of a large vocabulary may not fit in memory."""
    examples = len(next(iter(inputs.values())))
    comparison = Comparison()
    for start in range(0, examples, _BATCH):
        rows = {name: array[start : start + _BATCH] for name, array in inputs.items()}
        expected = _answers(reference, rows)
        with _must_run(format):
            given = _answers(runtime, rows)
        _check_outputs(expected, given)
        comparison.add(expected, given)
    return {**comparison.summary(), "examples": examples}


def _answers(runtime, rows):
    outputs = runtime.predict(rows)
    return outputs if isinstance(outputs, dict) else {"output": outputs}


def _check_outputs(expected, given):
    shapes = [{name: array.shape for name, array in outputs.items()} for outputs in (expected, given)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"the exported file gives outputs {shapes[1]} where the student gives {shapes[0]}.")
    for whose, outputs in (("student", expected), ("exported file", given)):
        numbers = {name: array for name, array in outputs.items() if array.dtype != object}
        spoilt = [name for name, array in numbers.items() if not np.isfinite(array).all()]
        if spoilt:
            raise RuntimeError(f"the {whose} gives NaN or infinite outputs ({', '.join(spoilt)}); nothing was kept.")


@contextlib.contextmanager
def _must_run(format):
    try:
        yield
    except Exception as error:  # each runtime has its own
        cause = error.__cause__ or error
        missing = re.search(r"(?:unresolved custom op: (?:TFText>)?|No Op registered for )(\w+)", str(cause))
        reason = without_operation(missing[1], format) if missing else first_line(cause)
        raise RuntimeError(f"the exported file was written, but does not run, and was not kept: {reason}") from error
