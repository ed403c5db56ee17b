"""The card beside an exported file: true to the file, extended by write_card, and its lines run."""

import hashlib
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import crossentropy, dense_model
from test_end_to_end import ENCODERS, LABELS, TEXTS, student_for

import keras_kd
from keras_kd.deploy import export, write_card

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
Y = np.arange(40) % 3


def metadata(path):
    return json.loads(path.with_name(path.name + ".metadata.json").read_text("utf-8"))


def page(path):
    return path.with_name(path.name + ".card.md").read_text("utf-8")


def test_the_facts_are_the_files(tmp_path):
    path = tmp_path / "a.tflite"
    report = export(dense_model(16, 3, name="small"), path, quantize="dynamic", compare_with=X)
    facts = metadata(path)
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["size_bytes"] == path.stat().st_size == report.size_bytes
    assert facts["kind"] == "LiteRT dynamic" and facts["file"] == "a.tflite"
    assert facts["student"] == {"name": "small", "parameters": 8 * 16 + 16 + 16 * 3 + 3}
    assert facts["inputs"] == {"inputs": {"shape": [None, 8], "dtype": "float32"}}
    assert facts["outputs"] == {"output": {"shape": [None, 3], "dtype": "float32"}}
    assert facts["comparison"]["agreement"] == report.agreement and facts["latency_ms"] == report.latency_ms
    assert facts["versions"]["keras"] == keras.__version__
    text = page(path)
    assert text.startswith("# a.tflite\n") and facts["sha256"] in text and f"{report.size_bytes:,} bytes" in text
    assert "Training" not in text and "Scores" not in text


ELSEWHERE = """
import contextlib, io, json, os, pathlib, sys
sys.modules["keras_kd"] = None
printed = {}
for folder, code in json.loads(pathlib.Path("codes.json").read_text("utf-8")).items():
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as text:
        exec(code, {})
    printed[folder] = text.getvalue()
print(json.dumps(printed))
"""


def test_its_lines_run_elsewhere(tmp_path):
    """What the pages tell a stranger to run answers, in a process without keras_kd."""
    codes = {}
    for kind, name in [("prefix", "a"), ("prefix", "a.tflite"), ("bytes", "a.tflite"), (None, "a")]:
        folder = tmp_path / f"{kind}_{name}"
        folder.mkdir()
        if kind is None:
            export(dense_model(4, 3), folder / name, labels=LABELS)
        else:
            encoder = ENCODERS[kind]()
            export(student_for(encoder), folder / name, tokenizer=encoder, labels=LABELS, compare_with=TEXTS)
        (codes[folder.name],) = re.findall(r"```python\n(.*?)```", page(folder / name), re.DOTALL)
    (tmp_path / "codes.json").write_text(json.dumps(codes), "utf-8")
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed.keys() == codes.keys()
    for text in printed.values():
        assert "label" in text and "probabilities" in text


def test_how_it_was_trained_and_scores_is_added(tmp_path):
    teacher, student = dense_model(16, 3, name="large"), dense_model(4, 3)
    losses = [keras_kd.losses.SoftLabels(temperature=3.0), keras_kd.losses.LogitsMSE(weight=0.25)]
    distiller = keras_kd.Distiller(teacher, student, losses, soft_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.125), crossentropy())
    distiller.fit(X, Y, epochs=2, batch_size=20, verbose=0)
    path = tmp_path / "a"
    export(student, path, compare_with=X)
    evaluation = keras_kd.evaluate(
        {"teacher": teacher, "file": path}, (X, Y), languages=["de", "sw"] * 20, bootstrap=20, latency=False
    )
    assert write_card(path, details={"data": "made up", "seeds": [0, 1]}) == tmp_path / "a.card.md"
    write_card(path, distiller=distiller, evaluation=evaluation, model="file", details={"license": "Apache-2.0"})
    facts = metadata(path)
    assert facts["training"]["teacher"] == {"name": "large", "parameters": teacher.count_params()}
    assert facts["training"]["losses"] == ["SoftLabels", "LogitsMSE"]
    assert facts["training"]["hyperparameters"] == {
        "soft_weight": 0.5,
        "hard_weight": 1.0,
        "soft_labels_weight": 1.0,
        "soft_labels_temperature": 3.0,
        "logits_mse_weight": 0.25,
    }
    assert (facts["training"]["optimizer"], facts["training"]["learning_rate"]) == ("SGD", 0.125)
    assert facts["training"]["steps"] == 4
    assert facts["details"] == {"data": "made up", "seeds": [0, 1], "license": "Apache-2.0"}
    of_file = evaluation.score("file", language="sw")
    rows = [row for row in facts["scores"]["rows"] if (row["model"], row["language"]) == ("file", "sw")]
    assert next(row for row in rows if row["metric"] == "macro_f1")["value"] == of_file.value
    assert f"{of_file.value:.3f} [{of_file.low:.3f}, {of_file.high:.3f}]" in page(path)
    assert re.search(r"\| soft_labels_temperature \| 3 \|", page(path))


def test_a_card_is_only_written_for_the_file_that_it_describes(tmp_path):
    student = dense_model(4, 3)
    with pytest.raises(ValueError, match=r"a\.tflite\.metadata\.json beside it"):
        write_card(tmp_path / "a.tflite")
    export(student, tmp_path / "a.tflite")
    export(student, tmp_path / "b")
    (tmp_path / "a.tflite").write_bytes(b"another")
    (tmp_path / "b" / "more").write_bytes(b"another")
    for name in ("a.tflite", "b"):
        before = page(tmp_path / name)
        with pytest.raises(ValueError, match="has changed since it was exported"):
            write_card(tmp_path / name, details={"seed": 1})
        assert page(tmp_path / name) == before
    (tmp_path / "b.metadata.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        write_card(tmp_path / "b")


def test_a_card_of_the_users_is_not_replaced(tmp_path):
    (tmp_path / "a.tflite.card.md").write_text("mine")
    with pytest.raises(FileExistsError, match="nor its card"):
        export(dense_model(4, 3), tmp_path / "a.tflite")
    assert page(tmp_path / "a.tflite") == "mine"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"distiller": "mine"}, TypeError, "Distiller"),
        ({"details": ["seed"]}, TypeError, "dict with str for keys"),
        ({"details": {"x": float("nan")}}, ValueError, "what JSON holds"),
        ({"details": {"x": object()}}, ValueError, "what JSON holds"),
    ],
)
def test_bad_input(options, error, message, tmp_path):
    export(dense_model(4, 3), tmp_path / "a")
    before = page(tmp_path / "a")
    with pytest.raises(error, match=message):
        write_card(tmp_path / "a", **options)
    assert page(tmp_path / "a") == before


def test_a_file_that_was_not_evaluated(tmp_path):
    student = dense_model(4, 3)
    export(student, tmp_path / "a")
    evaluation = keras_kd.evaluate({"student": student}, (X, Y), bootstrap=0, latency=False)
    with pytest.raises(ValueError, match=r"one of \['student'\], got 'file'"):
        write_card(tmp_path / "a", evaluation=evaluation, model="file")
