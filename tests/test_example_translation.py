"""The script examples/translation.py, run as a reader would, on few sentences."""

import gzip
import importlib
import json
import pathlib
import sys

import pytest

import keras_kd  # noqa: F401

pytest.importorskip("keras_hub", reason="what the examples share needs the extra students")
pytest.importorskip("sacrebleu", reason="the example measures with sacrebleu")

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/multi30k"
sys.path.insert(0, str(ROOT / "examples"))
LINES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the first lines of each file."""
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside this checkout")
    folder = tmp_path_factory.mktemp("data")
    (folder / "multi30k").mkdir()
    for path in sorted(DATA.glob("*.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[:LINES]
        (folder / "multi30k" / path.name).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return folder


def test_a_translator_and_a_student_of_it(data, tmp_path, monkeypatch, capsys):
    translation = importlib.import_module("translation")
    options = ["--data", data, "--output", tmp_path, "--small", "--pieces", 90, "--students", "both"]
    monkeypatch.setattr(sys, "argv", ["translation", *map(str, options)])
    translation.main(translation.arguments())
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"teacher, greedy", "teacher, beams", "both, greedy", "both, beams"}
    assert report["both, beams"]["parameters"] < report["teacher, beams"]["parameters"]
    assert len((tmp_path / "both_beams.txt").read_text().split("\n")) == 8 + 1
    (translated,) = (tmp_path / "translations").iterdir()
    assert len(json.loads(translated.read_text())) == LINES
    assert "teacher:" in capsys.readouterr().out

    translation.main(translation.arguments())  # of what is there, nothing is trained again
    assert "teacher:" not in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text()) == report
