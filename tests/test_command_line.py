"""keras-kd export and evaluate: a model of bytes becomes a file that takes strings, and is measured by language."""

import csv
import json
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import cli

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
WORDS = {"no": "bad", "yes": "good"}
LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes that knows "good" by its letters o, and texts in two languages."""
    folder = tmp_path_factory.mktemp("files")
    letters, dense = keras.layers.Embedding(256, 1), keras.layers.Dense(2)
    inputs = keras.Input((LENGTH,), dtype="uint8", name="bytes")
    model = keras.Model(inputs, dense(keras.layers.GlobalMaxPooling1D()(letters(inputs))))
    letters.set_weights([np.eye(256)[:, [ord("o")]]])
    dense.set_weights([np.array([[-2.0, 2.0]]), np.array([1.0, -1.0])])
    model.save(folder / "student.keras")
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "language"])
        for number in range(20):
            label = ["no", "yes"][number // 2 % 2]
            rows.writerow([f"{number} is {WORDS[label]}", label, ["en", "de"][number % 2]])
    return folder


def test_a_model_of_bytes_becomes_a_saved_model_of_strings_and_is_measured(folder, tmp_path, capsys):
    text = ["--data", str(folder / "texts.csv"), "--labels", "no,yes"]
    path = tmp_path / "served"
    assert cli.main(["export", str(folder / "student.keras"), str(path), *text, "--tokenizer", "bytes"]) == 0
    printed = capsys.readouterr().out
    assert "SavedModel" in printed and f"{path}.card.md" in printed
    served = tf.saved_model.load(str(path))
    answer = served.serve(tf.constant(["so good"]))
    assert answer["label"].numpy().tolist() == [b"yes"]

    measured = ["--bootstrap", "20", "--no-memory", "--no-latency", "--output", str(tmp_path / "scores")]
    assert cli.main(["evaluate", f"served={path}", *text, *measured]) == 0
    assert "served" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert list(scores["models"]) == ["served"] and scores["languages"] == ["de", "en"]
    accuracy = [row["value"] for row in scores["scores"] if row["metric"] == "accuracy"]
    assert accuracy and set(accuracy) == {1.0}


def test_a_file_that_answers_otherwise_ends_with_1(folder, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("agrees on 0.1")

    monkeypatch.setattr("keras_kd.deploy.command.export", refuse)
    assert cli.main(["export", str(folder / "student.keras"), str(tmp_path / "a.tflite")]) == 1
    assert "keras-kd export: agrees on 0.1" in capsys.readouterr().err


def test_the_commands_of_the_guide_are_understood(monkeypatch, capsys):
    def refuse(options):
        raise ValueError("read")

    monkeypatch.setattr("keras_kd.deploy.command._exported", refuse)
    monkeypatch.setattr("keras_kd.evaluation.command._measured", refuse)
    guide = (pathlib.Path(__file__).parents[1] / "docs/guides/command-line.md").read_text("utf-8")
    commands = re.findall(r"^keras-kd ((?:export|evaluate) .*)", guide, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert cli.main(shlex.split(command)) == 2
    assert capsys.readouterr().err.count(": read") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "none.keras", "a"], "MODEL.keras must be a file of keras.Model.save; none is at 'none.keras'"),
        (["export", "texts.csv", "a"], "texts.csv"),
        (["export", "student.keras", "a.tflite", "--quantize", "int8"], "calibration"),
        (["export", "student.keras", "a.tflite", "--tokenizer", "none.model"], "none.model"),
        (["evaluate", "none.keras", "--data", "texts.csv"], "none.keras"),
        (["evaluate", "student.keras", "--data", "none.csv"], "none.csv"),
    ],
)
def test_bad_input_ends_with_2_and_says_what(arguments, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "a").exists() and not (folder / "a.tflite").exists()
