"""The script examples/translation.py, run as a reader would, on few sentences."""

import gzip
import importlib
import pathlib
import sys

import pytest

import keras_kd
from keras_kd.evaluation import Evaluation

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
    options = ["--data", data, "--output", tmp_path, "--small", "--students", "both", "--searches", "greedy"]
    monkeypatch.setattr(sys, "argv", ["translation", *map(str, options)])
    translation.main(translation.arguments())
    report = Evaluation.from_json(tmp_path / "report.json")
    assert report.teacher == "teacher, greedy" and report.metrics == ("bleu", "chrf")
    assert report.models["both, greedy"].parameters < report.models["teacher, greedy"].parameters
    texts = (tmp_path / "both_greedy.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(texts) == report.score("both, greedy").examples == 8
    store = keras_kd.sequences.open_decoded_dataset(tmp_path / "decoded")
    assert store.examples == LINES and store.n_best == 1
    assert "teacher:" in capsys.readouterr().out

    translation.main(translation.arguments())  # of what is there, nothing is trained again
    assert "teacher:" not in capsys.readouterr().out
    assert Evaluation.from_json(tmp_path / "report.json") == report
