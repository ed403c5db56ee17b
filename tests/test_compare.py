"""`keras-kd compare`: saved models on the examples of a file, what is printed and written, and the exit status."""

import csv
import json
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_kd
from keras_kd import cli
from keras_kd.evaluation import Evaluation, evaluate

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
ROOT = pathlib.Path(__file__).parents[1]
LENGTH, NAMES = 8, ("apple", "bean", "corn")  # the class is the letter, a, b or c, that a text has most of
TEXTS = {
    "de": [("aab", "apple"), ("bbc", "bean"), ("ccc", "corn"), ("ab b", "bean")],
    "fi": [("aaa", "apple"), ("b", "bean"), ("cca", "corn"), ("cc", "apple")],  # the last label is wrong
}
# The teacher counts letters: all right in "de", three of four in "fi". The student does not see b, and takes it for a.
RIGHT = {"teacher": {"de": 4, "fi": 3}, "student": {"de": 2, "fi": 2}}


def counting(encoder, weights):
    """A classifier whose logits are the sums over characters of `weights`, {character: logits}, times 3."""
    table = np.zeros((256, 3), "float32")
    for character, row in weights.items():
        table[int(np.max(encoder([character])))] = row
    embedding, logits = keras.layers.Embedding(256, 3), keras.layers.Dense(3, use_bias=False)
    ids = keras.Input((LENGTH,), dtype=encoder([""]).numpy().dtype.name, name="ids")
    model = keras.Sequential([ids, embedding, keras.layers.GlobalAveragePooling1D(), logits])
    embedding.set_weights([table])
    logits.set_weights([24 * np.eye(3)])
    return model


SEES_ALL = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}
SEES_NO_B = {"a": [1, 0, 0], "b": [0.5, 0, 0], "c": [0, 0, 1]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of a teacher that answers with logits, and of a student in three files that answer with labels."""
    folder = tmp_path_factory.mktemp("models")
    characters, bytes_ = keras_kd.text.CharacterEncoder("abc", LENGTH), keras_kd.text.ByteEncoder(LENGTH)
    teacher = keras_kd.deploy.end_to_end_model(counting(characters, SEES_ALL), characters)
    teacher.save(folder / "teacher.keras")
    student = counting(characters, SEES_NO_B)
    keras_kd.export(student, folder / "student", tokenizer=characters, labels=NAMES)
    keras_kd.deploy.end_to_end_model(student, characters, NAMES).save(folder / "student.keras")
    phone = counting(bytes_, SEES_NO_B)
    keras_kd.export(phone, folder / "student.tflite", tokenizer=bytes_, labels=NAMES, compare_with=["abc"])
    two = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), keras.layers.Embedding(9, 2)])
    two.add(keras.layers.GlobalAveragePooling1D())
    keras_kd.deploy.end_to_end_model(two, characters).save(folder / "two.keras")
    return folder


def write_rows(path, rows=None):
    """(text, label, language) in a CSV file."""
    rows = rows or [(text, label, language) for language, pairs in TEXTS.items() for text, label in pairs]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "language"), *rows])
    return path


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "test.csv")


def compare(*arguments):
    """The exit status, with argparse's too."""
    try:
        return cli.main(["compare", "--bootstrap=20", "--no-latency", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code


# --- What is measured -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_each_model_by_language(models, data, tmp_path, capsys):
    out = tmp_path / "new" / "report"
    students = [f"{kind}={models / name}" for kind, name in (("saved", "student"), ("phone", "student.tflite"))]
    paths = [f"teacher={models / 'teacher.keras'}", *students, f"keras={models / 'student.keras'}"]
    assert compare(*paths, f"--data={data}", f"--output={out}") == 0
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "report.html", "scores.csv"]
    found = Evaluation.from_json(out / "evaluation.json")
    assert list(found.models) == ["teacher", "saved", "phone", "keras"]
    assert found.teacher == "teacher" and found.languages == ("de", "fi")
    for name in found.models:
        for language, right in RIGHT["teacher" if name == "teacher" else "student"].items():
            assert found.score(name, "accuracy", language=language).value == right / 4, name
    assert found.score("saved", "agreement").value == 5 / 8
    assert found.score("saved", "f1:bean").value == 0.0
    printed = capsys.readouterr().out
    assert "macro-F1, %, by language" in printed and "FAILED" not in printed and "limit" not in printed
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len((out / "scores.csv").read_text().splitlines()) == 1 + 4 * (4 * 5 + 3)


def test_names_teacher_and_latency(models, data, tmp_path):
    paths = [models / "student.keras", models / "teacher.keras"]
    options = ["--bootstrap=0", f"--data={data}", "--teacher=teacher.keras", f"--output={tmp_path / 'out'}"]
    assert cli.main(["compare", *map(str, paths), *options]) == 0
    found = Evaluation.from_json(tmp_path / "out" / "evaluation.json")
    assert list(found.models) == ["student.keras", "teacher.keras"] and found.teacher == "teacher.keras"
    assert all(facts.latency_ms > 0 for facts in found.models.values())
    assert "against latency" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_one_model_has_no_teacher(models, data, capsys):
    assert compare(models / "student.keras", f"--data={data}") == 0
    assert "agreement" not in capsys.readouterr().out


def test_the_order_of_labels(models, tmp_path):
    """Indices are taken as they are; names are in the order given, as many as the models have classes."""
    out = f"--output={tmp_path / 'out'}"
    indices = {name: index for index, name in enumerate(NAMES)}
    rows = [(text, indices[label], language) for language, pairs in TEXTS.items() for text, label in pairs]
    assert compare(models / "teacher.keras", f"--data={write_rows(tmp_path / 'indices.csv', rows)}", out) == 0
    assert Evaluation.from_json(tmp_path / "out" / "evaluation.json").score("teacher.keras", "accuracy").value == 7 / 8
    letters = {"apple": "z", "bean": "m", "corn": "a"}
    renamed = [(text, letters[label], language) for language, pairs in TEXTS.items() for text, label in pairs]
    named = write_rows(tmp_path / "named.csv", renamed)
    assert compare(models / "teacher.keras", f"--data={named}", "--labels=z, m,a", out) == 0
    found = Evaluation.from_json(tmp_path / "out" / "evaluation.json")
    assert found.score("teacher.keras", "accuracy").value == 7 / 8
    assert "f1:z" in found.metrics


def test_lines_of_json_in_one_language(models, tmp_path):
    lines = [json.dumps({"text": text, "label": label}) for text, label in TEXTS["fi"]]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    options = [f"--data={tmp_path / 'test.jsonl'}", "--language=fi", f"--output={tmp_path / 'out'}"]
    assert compare(models / "teacher.keras", *options) == 0
    found = Evaluation.from_json(tmp_path / "out" / "evaluation.json")
    assert found.languages == ("fi",) and found.score("teacher.keras", "accuracy").value == 0.75


def test_arrays_for_models_that_take_ids(tmp_path):
    x = np.eye(3, dtype="float32")[[0, 1, 2, 2]]
    inputs = {name: keras.Input((3,), name=name) for name in ("left", "right")}
    for name in inputs:
        keras.Model(inputs, keras.layers.Identity()(inputs[name])).save(tmp_path / f"{name}.keras")
    languages = np.array(["de", "de", "fi", "fi"])
    arrays = {"left": x, "right": np.roll(x, 1, axis=1), "label": np.array([0, 1, 2, -1]), "language": languages}
    np.savez(tmp_path / "test.npz", **arrays)
    paths = [tmp_path / "left.keras", tmp_path / "right.keras"]
    assert compare(*paths, f"--data={tmp_path / 'test.npz'}", f"--output={tmp_path / 'out'}") == 0
    found = Evaluation.from_json(tmp_path / "out" / "evaluation.json")
    assert found.languages == ("de", "fi")
    assert [found.score(name, "accuracy").value for name in found.models] == [1.0, 0.0]
    assert found.score("left.keras", "accuracy", language="fi").examples == 1  # the other has no label


def test_evaluate_gives_texts_as_each_model_takes_them(models):
    """Strings in a column of their own, and bytes."""
    texts, labels = np.array(["aab", "bbc"], dtype=object), np.array([0, 1])
    ids = keras.layers.TextVectorization(split="character", vocabulary=["a", "b", "c"], output_sequence_length=8)
    embedding, column = keras.layers.Embedding(5, 3), keras.Input((1,), dtype="string")
    model = keras.Sequential([column, ids, embedding, keras.layers.GlobalAveragePooling1D()])
    embedding.set_weights([np.concatenate([np.zeros((2, 3)), np.eye(3)])])  # after padding and unknown: a, b, c
    found = evaluate({"column": model, "phone": models / "student.tflite"}, (texts, labels), bootstrap=0)
    assert found.score("column", "accuracy").value == 1.0
    assert found.score("phone", "accuracy").value == 0.5
    assert found.models["phone"].latency_ms > 0


def test_nothing_of_tensorflow_is_printed(models, data):
    command = [sys.executable, "-m", "keras_kd_command", "compare", str(models / "student"), f"--data={data}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == "" and "student" in done.stdout


# --- The gate ---------------------------------------------------------------------------------------------------------


def test_limits_that_are_kept_and_missed(models, data, capsys):
    run = [f"teacher={models / 'teacher.keras'}", f"student={models / 'student.keras'}", f"--data={data}"]
    assert compare(*run, "--fail-under=accuracy=0.5", "--fail-under=de:accuracy=0.5", "--fail-over=kl=100") == 0
    assert "Every score keeps its limit." in capsys.readouterr().out
    assert compare(*run, "--fail-under=accuracy=0.5", "--fail-under=fi:accuracy=0.6", "--fail-over=de:kl=0.01") == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert failed[0] == "FAILED student, fi: accuracy is 0.5000, 0.1000 below the limit of 0.6000"
    assert failed[1].startswith("FAILED student, de: kl is ") and len(failed) == 2


def test_a_drop_against_an_earlier_run(models, data, tmp_path, capsys):
    """The model that is called "student" was as good as the teacher before."""
    teacher, out = f"teacher={models / 'teacher.keras'}", tmp_path / "out"
    earlier = f"student={models / 'teacher.keras'}"
    assert compare(teacher, earlier, f"--data={data}", f"--output={out}") == 0
    run = [teacher, f"student={models / 'student.keras'}", f"--data={data}", f"--against={out / 'evaluation.json'}"]
    assert compare(*run, "--max-drop=accuracy=0.5") == 0
    capsys.readouterr()
    assert compare(*run, "--max-drop=accuracy=0.3", f"--output={tmp_path / 'now'}") == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert [line.split(":")[0] for line in failed] == ["FAILED student, de", "FAILED student, overall"]
    assert "accuracy is 0.5000, 0.2000 below the limit of 0.7000, 1.0000 before" in failed[0]
    assert (tmp_path / "now" / "report.html").exists()  # to see why


# --- Bad usage and input ----------------------------------------------------------------------------------------------

BAD_USAGE = {
    "no models": ([], r"the following arguments are required: \[NAME=\]PATH"),
    "no data": (["m.keras"], "required: --data"),
    "limit without a number": (["m.keras", "--data=x.csv", "--fail-under=macro_f1"], "METRIC=NUMBER .* got 'macro_f1'"),
    "limit with a word": (["m.keras", "--data=x.csv", "--fail-over=kl=high"], "got 'kl=high'"),
}


@pytest.mark.parametrize("kind", BAD_USAGE)
def test_bad_usage(kind, capsys):
    arguments, message = BAD_USAGE[kind]
    assert compare(*arguments) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def never_run(monkeypatch):
    def run(*args, **options):
        raise AssertionError("a model was opened")

    monkeypatch.setattr("keras_kd.evaluation.measure.open_runtime", run)


BEFORE_MODELS_RUN = {
    "unknown metric": (["--fail-under=f1=0.5"], r"fail_under must name a metric, one of \['accuracy', .*got 'f1'"),
    "unknown language": (["--fail-under=sw:accuracy=0.5"], r"the language is one of \['de', 'fi', .*'sw:accuracy'"),
    "direction": (["--fail-under=de:ece=0.5"], "give it to fail_over"),
    "drop alone": (["--max-drop=kl=0.5"], "against and max_drop must come together"),
    "no earlier run": (["--against=none.json", "--max-drop=kl=0.5"], "No such file .*none.json"),
    "earlier run of another kind": (["--against=test.csv", "--max-drop=kl=0.5"], r"test\.csv must be .*but is no JSON"),
    "no data": (["--data=none.csv"], "data must be a .csv, .*none is at 'none.csv'"),
    "other data": (["--data=notes.txt"], r"notes\.txt must be called \.csv"),
    "broken row": (["--data=broken.csv"], r"broken\.csv:3: 2 fields, but the header names 3"),
    "no CSV": (["--data=quotes.csv"], r"quotes\.csv:2: no CSV"),
    "no language": (["--data=plain.csv"], r"plain\.csv: no column 'language'\. Pass language="),
    "no label": (["--data=unlabelled.csv"], "must hold at least one labelled example, got 1 without"),
    "a label that is no class": (["--labels=apple,bean"], r"test\.csv:4: the label 'corn' is no class"),
    "no archive": (["--data=broken.npz"], r"'broken\.npz' is damaged or cannot be loaded"),
    "objects": (["--data=objects.npz"], r"'objects\.npz' .*cannot be loaded .*allow_pickle"),
    "array without labels": (["--data=alone.npz"], r"'alone\.npz' must hold 'label', .*\{'x': 'float64\[2\]'\}"),
    "unknown teacher": (["--teacher=big"], r"--teacher must be one of \['teacher\.keras'\], got 'big'"),
    "a file in the folder's place": (["--output=notes.txt"], "--output must be a folder, got the file 'notes.txt'"),
    "bootstrap": (["--bootstrap=-1"], "bootstrap must be >= 0, got -1"),
}


@pytest.mark.parametrize("kind", BEFORE_MODELS_RUN)
def test_bad_input_is_refused_before_a_model_runs_and_nothing_is_written(kind, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    never_run(monkeypatch)
    pathlib.Path("notes.txt").write_text("text")
    pathlib.Path("broken.csv").write_text("text,label,language\na,apple,de\nb,bean\n")
    pathlib.Path("quotes.csv").write_text('text,label,language\n"a,apple,de\n')
    pathlib.Path("plain.csv").write_text("text,label\na,apple\n")
    pathlib.Path("unlabelled.csv").write_text("text,label,language\na,-1,de\n")
    pathlib.Path("broken.npz").write_bytes(b"PK\x03\x04 nothing")
    np.savez("objects.npz", label=np.array([0, 1]), x=np.array(["a", 1], dtype=object))
    np.savez("alone.npz", x=np.zeros(2))
    files = sorted(path.name for path in tmp_path.iterdir())
    arguments, message = BEFORE_MODELS_RUN[kind]
    data = [] if any(argument.startswith("--data") for argument in arguments) else ["--data=test.csv"]
    assert compare("teacher.keras", "--output=out", *data, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-kd compare: ") and re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_models_that_do_not_fit(models, data, tmp_path, capsys):
    def refused(message, *arguments):
        assert compare(*arguments, f"--output={tmp_path / 'out'}") == 2
        error = capsys.readouterr().err
        assert re.search(message, error, flags=re.DOTALL), error
        assert not (tmp_path / "out").exists()

    given = f"--data={data}"
    refused(r"nothing is at 'none\.keras'.*models\['none\.keras'\]", "none.keras", given)
    refused("gives 3 and .* gives 2", models / "teacher.keras", models / "two.keras", given)
    refused(r"class_names must be 2 different names, .* got 3: \('apple'", models / "two.keras", given)
    names = "--labels=bean,apple,corn"
    refused(r"calls class 0 'apple', and class_names 'bean'.*--labels, in the order", models / "student", given, names)
    ids = np.zeros((2, 3))
    np.savez(tmp_path / "ids.npz", ids=ids, label=np.array([0, 1]))
    refused(
        r"x must have the model's inputs, \['text'\], got", models / "teacher.keras", f"--data={tmp_path / 'ids.npz'}"
    )


def test_models_of_one_name_need_names(data, capsys):
    assert compare("a/m.keras", "b/m.keras", f"--data={data}") == 2
    assert "models must have different names, got ['m.keras', 'm.keras']: NAME=PATH." in capsys.readouterr().err


def test_what_tensorflow_refuses_is_no_missed_limit(tmp_path, capsys):
    """Ids that an embedding does not have: status 2, and the model's name."""
    model = keras.Sequential([keras.Input((4,), dtype="int32", name="ids"), keras.layers.Embedding(9, 2)])
    model.add(keras.layers.GlobalAveragePooling1D())
    model.save(tmp_path / "small.keras")
    np.savez(tmp_path / "ids.npz", ids=np.full((2, 4), 99), label=np.array([0, 1]))
    assert compare(tmp_path / "small.keras", f"--data={tmp_path / 'ids.npz'}", "--fail-under=accuracy=0") == 2
    assert "models['small.keras']" in capsys.readouterr().err


def test_a_path_may_hold_an_equals_sign(data, tmp_path, models, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a=b.keras").write_bytes((models / "teacher.keras").read_bytes())
    assert compare("a=b.keras", f"--data={data}", "--output=out") == 0
    assert list(Evaluation.from_json("out/evaluation.json").models) == ["a=b.keras"]


def test_matplotlib_is_asked_for_before_a_model_runs(data, tmp_path, monkeypatch, capsys):
    never_run(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert compare("m.keras", f"--data={data}", f"--output={tmp_path / 'out'}") == 2
    assert "pip install 'keras-kd[plot]'" in capsys.readouterr().err


# --- The guide --------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_guide_are_understood(monkeypatch, capsys):
    """Each gets as far as reading its files."""
    monkeypatch.setattr(
        "keras_kd.evaluation.command._measured", lambda options: (_ for _ in ()).throw(ValueError("read"))
    )
    guide = (ROOT / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    commands = re.findall(r"keras-kd compare(?: .*\\\n)* .*", guide)
    assert len(commands) >= 2
    for command in commands:
        assert cli.main(shlex.split(command.replace("\\\n", " "))[1:]) == 2
        assert capsys.readouterr().err == "keras-kd compare: read\n"
