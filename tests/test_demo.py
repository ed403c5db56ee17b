"""`keras-kd demo --quick`: what it prints and writes, the same on every run, and the files in fresh processes."""

import dataclasses
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from keras_kd import cli
from keras_kd.demo.run import FULL, QUICK, Demo

WRITTEN = ["evaluation.json", "languages.png", "report.json", "scores.csv", "student", "student.tflite", "table.txt"]
WRITTEN += [file + ending for file in ("student", "student.tflite") for ending in (".card.md", ".metadata.json")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`(what was printed, the folder)` of a run."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "keras_kd_command", "demo", "--quick", "--seed", "0"]
    done = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True, check=True)
    assert done.stderr == ""  # nothing of TensorFlow's
    return done.stdout, folder


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_prints_its_stages_the_table_by_language_and_the_exports(run):
    printed, _ = run
    for stage in ("data", "teacher", "labels only", "distilled", "transfer", "export", "evaluation"):
        assert f"\n{stage} " in f"\n{printed}"
    for language in QUICK.languages:
        assert f"\n  {language} " in printed
    assert "Files      " in printed and "Your data  " in printed
    assert "LiteRT int8" in printed and "SavedModel" in printed and "embedding" in printed


def test_writes_report_table_figure_and_files(run):
    _, folder = run
    assert sorted(path.name for path in folder.iterdir()) == sorted(WRITTEN)
    report = report_of(folder)
    assert set(report["macro_f1"]) == {"teacher", "labels only", "distilled", "transfer", "int8"}
    assert 0 < report["labelled"] < 0.1 * report["examples"]["train"]
    assert report["exports"]["litert_int8"]["size_bytes"] == (folder / "student.tflite").stat().st_size
    assert (folder / "languages.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_repeats_exactly():
    """Of a smaller demo, and in one process: the same labels are kept, and every model ends with the same weights."""
    size = dataclasses.replace(QUICK.student, filters=4, windows=(2,), embedding=8, hidden=8)
    options = {"languages": ("en", "el"), "teacher": size, "student": size, "teacher_steps": 3, "student_steps": 3}
    setting = dataclasses.replace(QUICK, **options, epochs=3, batch_size=32)
    demos = [Demo(setting, seed=0) for _ in range(2)]
    np.testing.assert_array_equal(demos[0].few_labels, demos[1].few_labels)
    first, again = (demo.models()[0] for demo in demos)
    for name, model in first.items():
        for weight, same in zip(model.get_weights(), again[name].get_weights(), strict=True):
            np.testing.assert_array_equal(weight, same, err_msg=name)


ELSEWHERE = """
import contextlib, io, sys
import numpy as np, tensorflow as tf, tensorflow_text
given, command = np.load("../inputs.npz"), sys.argv[1]
served = tf.saved_model.load("student").signatures["serving_default"]
runner = tf.lite.Interpreter("student.tflite").get_signature_runner()
strings = next(iter(served(text=tf.constant(given["texts"].tolist())).values())).numpy()
ids = np.concatenate([next(iter(runner(ids=row[None]).values())) for row in given["ids"]])
with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(command, {})
assert "keras_kd" not in sys.modules
np.savez("../answers.npz", strings=strings, ids=ids, printed=printed.getvalue())
"""


@pytest.fixture(scope="module")
def answers(run):
    """What the files answer in a process that imports no keras_kd, and what the printed command says there."""
    printed, folder = run
    (line,) = [line for line in printed.splitlines() if line.startswith("Try it     ")]
    python, option, command = shlex.split(line.removeprefix("Try it     "))
    assert (python, option) == (sys.executable, "-c")
    demo = Demo(QUICK, seed=0)
    test = demo.names.test.where(np.arange(64))
    np.savez(folder.parent / "inputs.npz", texts=test.texts.astype(str), ids=demo.ids(test))
    subprocess.run([sys.executable, "-c", ELSEWHERE, command], check=True, capture_output=True, cwd=folder)
    return np.load(folder.parent / "answers.npz")


def test_the_command_that_it_ends_with_runs_and_names_a_class(answers):
    assert str(answers["printed"]).strip() in QUICK.kinds


def test_the_files_answer_in_fresh_processes_without_keras_kd_and_agree(answers):
    assert answers["strings"].shape == answers["ids"].shape == (64, len(QUICK.kinds))
    assert np.mean(answers["strings"].argmax(-1) == answers["ids"].argmax(-1)) > 0.95


def test_the_full_setting_is_what_the_readme_tells():
    assert len(FULL.languages) == 40
    assert FULL.label_fraction == 0.05
    assert FULL.student_steps % FULL.epochs == FULL.teacher_steps % FULL.epochs == 0


def test_help_and_version(capsys):
    for arguments in (["--help"], ["demo", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.mark.parametrize("seed", ["-1", "1.5", str(2**32)])
def test_a_seed_out_of_range_is_refused_before_any_work(seed, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", f"--seed={seed}"])
    assert ended.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "command" in capsys.readouterr().err
