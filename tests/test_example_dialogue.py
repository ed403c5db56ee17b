"""The script examples/dialogue.py, run as a reader would, on few dialogues."""

import importlib
import json
import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_kd  # noqa: F401
from keras_kd.evaluation import Evaluation

pytest.importorskip("keras_hub", reason="what the examples share needs the extra students")
pytest.importorskip("sacrebleu", reason="the example measures with sacrebleu")

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/xpersona"
sys.path.insert(0, str(ROOT / "examples"))
FILES = ["Fr_persona_split_valid_human_annotated.json", "Jp_persona_split_valid_human_annotated.json"]
DIALOGUES = 12


@pytest.fixture(scope="module")
def dialogue():
    return importlib.import_module("dialogue")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the first dialogues of two languages."""
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside this checkout")
    folder = tmp_path_factory.mktemp("data")
    (folder / "xpersona").mkdir()
    for name in FILES:
        first = json.loads((DATA / name).read_text(encoding="utf-8"))[:DIALOGUES]
        (folder / "xpersona" / name).write_text(json.dumps(first), encoding="utf-8")
    return folder


def options_of(dialogue, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["dialogue", *map(str, arguments)])
    return dialogue.arguments()


def test_responses_are_chosen_and_written(dialogue, data, tmp_path, monkeypatch, capsys):
    students = ["labels", "on-policy"]
    folders = ["--data", data, "--output", tmp_path]
    options = options_of(dialogue, monkeypatch, *folders, "--small", "--family", "cnn", "--students", *students)
    dialogue.main(options)
    reports = {name: Evaluation.from_json(tmp_path / f"{name}.json") for name in ("selection", "generation")}
    assert list(reports["selection"].models) == ["teacher", "labels only", "distilled"]
    assert reports["selection"].languages == reports["generation"].languages == ("fr", "ja")
    assert reports["selection"].metrics == ("recall_at_1", "mrr")
    assert reports["selection"].models["distilled"].latency_ms > 0
    for report in reports.values():
        teacher, *_, student = report.models.values()
        assert student.size_bytes < teacher.size_bytes
        assert report.score("teacher").examples == sum(len(d["dialogue"]) for d in first(data, 5))
    perplexity = Evaluation.from_json(tmp_path / "perplexity.json")
    assert list(perplexity.models) == list(reports["generation"].models) == ["teacher", *students]
    assert 1 < perplexity.score("on-policy").value < 5000  # of 600 pieces, hardly trained
    assert "teacher:" in capsys.readouterr().out
    teacher = dialogue.bi_encoder(options.size_mb, options)
    dialogue.fitted("selection_teacher", teacher, None, None, options)  # is there, thus not trained again
    assert "parameters," not in capsys.readouterr().out


def first(data, count):
    """The first dialogues of all languages."""
    for name in FILES:
        yield from json.loads((data / "xpersona" / name).read_text(encoding="utf-8"))[:count]


def test_a_dialogue_and_its_translations_are_in_one_part(dialogue, data, tmp_path, monkeypatch):
    options = options_of(dialogue, monkeypatch, "--data", data, "--output", tmp_path, "--small")
    pairs = dialogue.read_pairs(options)
    rows = [json.loads((data / "xpersona" / name).read_text(encoding="utf-8")) for name in FILES]
    responses = {
        split: [turn[1] for language in rows for row in language[part] for turn in row["dialogue"]]
        for split, part in {"test": slice(5), "validation": slice(5, 7), "train": slice(7, 12)}.items()
    }
    assert {split: part["response"] for split, part in pairs.items()} == responses
    persona, turns = rows[0][0]["persona"], rows[0][0]["dialogue"]
    assert pairs["test"]["context"][:2] == [
        "\n".join([turns[0][0], *persona]),
        "\n".join([turns[1][0], turns[0][1], *persona]),
    ]


def test_one_who_begins_answers_their_persona(dialogue):
    row = {"persona": ["i surf."], "turns": {"user": [dialogue.SILENCE, "hey"], "system": ["hi", "no"]}}
    assert list(dialogue.turns_of(row)) == [("i surf.", "hi"), ("hey\nhi\ni surf.", "no")]


def test_logits_are_of_each_context_with_each_response():
    dialogue = importlib.import_module("dialogue")
    contexts, responses = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    layer = dialogue.BatchSimilarities(batch=4, scale=20.0)
    np.testing.assert_allclose(layer(contexts, responses), 20.0 * contexts @ responses.T, rtol=1e-5)
    symbolic = layer(keras.Input((3,)), keras.Input((3,)))
    assert symbolic.shape == (None, 4)


def test_on_policy_needs_the_student_that_it_goes_on_from(dialogue, monkeypatch):
    with pytest.raises(SystemExit):
        options_of(dialogue, monkeypatch, "--data", "folder", "--students", "on-policy")


def test_labels_below_0_teach_nothing():
    loss = importlib.import_module("seq2seq").SmoothedCrossentropy(0.1)
    logits = np.random.default_rng(0).normal(size=(1, 3, 5)).astype("float32")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [-0.9 * log_probs[0, 0, 2] - 0.1 * log_probs[0, 0].mean(), 0.0, 0.0]
    np.testing.assert_allclose(loss.call(np.array([[2, -1, -1]]), logits)[0], expected, rtol=1e-5)
