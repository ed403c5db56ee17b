"""ONNX and OpenVINO under the gate of `export`, and every format's run in a fresh process."""

import hashlib
import json
import resource
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model
from keras import layers

from keras_kd import cli
from keras_kd.deploy import export, exporting, open_runtime, runtimes
from keras_kd.deploy.fresh_process import peak_memory
from keras_kd.evaluation import Evaluation

X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
FORMATS = ["a.onnx", "a.xml"]


def reader():
    """Ids of any length and numbers go in, two outputs come out; exact GELU, a mask, a loop."""
    ids, numbers = keras.Input((None,), dtype="int32", name="ids"), keras.Input((8,), name="numbers")
    steps = layers.Embedding(20, 8, mask_zero=True)(ids)
    steps = layers.LayerNormalization()(steps + layers.MultiHeadAttention(2, 4)(steps, steps))
    both = layers.Concatenate()([layers.GRU(4)(steps), layers.Dense(4, keras.ops.gelu)(numbers)])
    exact = layers.Lambda(lambda x: keras.ops.gelu(x, approximate=False))(both)
    return keras.Model([numbers, ids], {"topic": layers.Dense(3)(exact), "mood": layers.Dense(2, "softmax")(both)})


def by_onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda x: dict(zip(names, session.run(names, x), strict=True))


def by_openvino(path):
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: {output.get_any_name(): array for output, array in model(x).items()}


@pytest.mark.parametrize(("name", "run_by"), [("a.onnx", by_onnxruntime), ("a.xml", by_openvino)])
def test_a_file_answers_in_its_own_runtime_as_the_student_does(name, run_by, fresh_process, tmp_path):
    student, rng = reader(), np.random.default_rng(1)
    x = {"ids": rng.integers(0, 20, (40, 6)).astype("int32"), "numbers": X}
    path = tmp_path / name
    report = export(student, path, compare_with=x, min_agreement=1.0)
    assert report.batch_size is None and report.max_difference < 1e-5
    run = run_by(path)
    for examples, length in ((1, 6), (7, 3)):
        few = {"ids": x["ids"][:examples, :length], "numbers": X[:examples]}
        given, expected = run(few), student([few["numbers"], few["ids"]], training=False)
        assert set(given) == {"topic", "mood"}
        for output, array in given.items():
            np.testing.assert_allclose(array, expected[output], atol=1e-5)
    facts = json.loads(path.with_name(f"{name}.metadata.json").read_text("utf-8"))
    files = [path] if name == "a.onnx" else [path, path.with_suffix(".bin")]
    assert facts["sha256"] == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert facts["size_bytes"] == report.size_bytes == sum(file.stat().st_size for file in files)
    assert facts["kind"] == report.kind == {"a.onnx": "ONNX", "a.xml": "OpenVINO"}[name]
    assert facts["peak_memory_bytes"] == report.peak_memory_bytes > 0
    assert "| peak memory |" in path.with_name(f"{name}.card.md").read_text("utf-8")
    assert len(list(tmp_path.iterdir())) == len(files) + 2


def test_memory_is_the_files_own(tmp_path):
    """At least the weights, and nothing of the process that measures, which holds more."""
    export(dense_model(2000, inputs=2000), tmp_path / "a.onnx")  # 16 MB
    growth = peak_memory(tmp_path / "a.onnx", {"inputs": np.zeros((1, 2000), "float32")})
    assert 16e6 < growth < 100e6 < 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_file_that_runs_in_no_other_process_is_refused(fresh_process, tmp_path):
    x = keras.Input((8,))
    here = layers.Lambda(
        lambda x: tf.ensure_shape(tf.numpy_function(lambda array: 2 * array, [x], x.dtype), x.shape),
        output_shape=(8,),
    )
    with pytest.raises(RuntimeError, match=r"was not kept: in a fresh process, .*pyfunc"):
        export(keras.Model(x, layers.Dense(3)(here(x))), tmp_path / "a", compare_with=X)
    assert list(tmp_path.iterdir()) == []


def string_student():
    text = keras.Input((), dtype="string", name="text")
    ids = layers.TextVectorization(vocabulary=["a", "b"], output_sequence_length=4)(text)
    return keras.Model(text, layers.Embedding(30, 4)(ids))


def integer_student():
    student = dense_model(4, 3)
    student.quantize("int8")
    return student


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (dense_model, {"tokenizer": lambda text: text}, "tokenizer must be None for .* holds no strings.*compare_with"),
        (dense_model, {"labels": ["a", "b", "c"]}, "labels must be None for .* holds no strings"),
        (dense_model, {"quantize": "int8", "calibration": X}, r"needs a path that ends in \.tflite"),
        (dense_model, {"quantize": "dynamic"}, r"needs a path that ends in \.tflite"),
        (lambda *_: string_student(), {}, r"no inputs or outputs of strings for .*\['text'\].*SavedModel"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_any_work(name, student, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_write", None)
    with pytest.raises(ValueError, match=message):
        export(student(4, 3), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_of_one_format_alone(tmp_path):
    with pytest.raises(ValueError, match=r"quantize='float16' needs a path .* ONNX has None\."):
        export(dense_model(4, 3), tmp_path / "a.onnx", quantize="float16")
    with pytest.raises(ValueError, match=r"OpenVINO computes wrongly: \{'hidden_0': 'int8.*ONNX and SavedModel hold"):
        export(integer_student(), tmp_path / "a.xml")
    assert export(integer_student(), tmp_path / "a.onnx", compare_with=X).max_difference < 1e-5


@pytest.mark.parametrize(
    ("name", "operation", "layer"),
    [("a.onnx", "Lgamma", layers.Lambda(tf.math.lgamma)), ("a.xml", "DenseBincount", layers.CategoryEncoding(8))],
)
def test_an_operation_that_a_format_lacks_is_named(name, operation, layer, tmp_path):
    student = keras.Sequential([keras.Input((8,)), layer, layers.Dense(3)])
    with pytest.raises(RuntimeError, match=rf"has no {operation}\. Keep such steps outside the student, or export a"):
        export(student, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "extra", "package"), [("a.onnx", "onnx", "tf2onnx"), ("a.xml", "openvino", "openvino")]
)
def test_a_missing_package_is_named_with_its_extra(name, extra, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is needed here .*keras-kd\[{extra}\]"):
        export(dense_model(4, 3), tmp_path / name)


def test_half_precision_and_the_two_files_of_openvino(tmp_path, monkeypatch):
    path, student = tmp_path / "a.xml", dense_model(64, 64, 3)
    low = dense_model(64, 64, 3, dtype="mixed_bfloat16")
    low.set_weights(student.get_weights())
    export(low, path, compare_with=X)  # as its copy in float32
    weights = path.with_suffix(".bin")
    whole, answers = weights.stat().st_size, open_runtime(path).predict(X)
    np.testing.assert_allclose(answers, student.predict(X, verbose=0), atol=1e-5)
    path.unlink()
    with pytest.raises(FileExistsError, match=r"a\.bin"):
        export(student, path)
    report = export(student, path, quantize="float16", compare_with=X, overwrite=True)
    assert report.kind == "OpenVINO float16" and weights.stat().st_size < 0.6 * whole
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing is at 'a\.bin'"):
        open_runtime(path)


def test_nothing_of_two_files_is_left_behind(tmp_path, monkeypatch):
    def write_damaged(student, path, *_):
        path.write_text("<net>")
        path.with_suffix(".bin").write_text("weights")

    monkeypatch.setattr(exporting, "_write", write_damaged)
    with pytest.raises(RuntimeError, match="was not kept"):
        export(dense_model(4, 3), tmp_path / "a.xml")
    assert list(tmp_path.iterdir()) == []


def test_compare_measures_them_beside_the_others(tmp_path, capsys, monkeypatch):
    student, options = dense_model(16, 3, name="student"), {"compare_with": X}
    student.save(tmp_path / "a.keras")
    for name in FORMATS:
        export(student, tmp_path / name, **options)
    np.savez(tmp_path / "test.npz", inputs=X, label=np.arange(40) % 3)
    monkeypatch.setattr(runtimes, "peak_memory", lambda path, inputs: 12_300_000 + len(path.suffix))
    models = [str(tmp_path / name) for name in ("a.keras", *FORMATS)]
    command = ["compare", *models, "--data", str(tmp_path / "test.npz"), "--bootstrap", "0"]
    assert cli.main([*command, "--output", str(tmp_path / "out"), "--fail-under", "agreement=1"]) == 0
    assert capsys.readouterr().out.count("12.3 MB") == 2
    evaluation = Evaluation.from_json(tmp_path / "out" / "evaluation.json")
    measured = {name: facts.peak_memory_bytes for name, facts in evaluation.models.items()}
    assert measured == {"a.keras": None, "a.onnx": 12_300_005, "a.xml": 12_300_004}
    assert "12.3 MB" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert cli.main([*command, "--no-memory", "--no-latency"]) == 0
    assert "memory" not in capsys.readouterr().out
