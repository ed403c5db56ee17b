"""`keras-kd demo --quick`: what it prints and writes, the same on every run, and the files in fresh processes."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import rich.console

from keras_kd import cli
from keras_kd.demo.run import FULL, QUICK, Demo

WRITTEN = ["evaluation.json", "languages.png", "report.json", "scores.csv", "student", "student.tflite", "table.txt"]
WRITTEN += [file + ending for file in ("student", "student.tflite") for ending in (".card.md", ".metadata.json")]


def run_quick(folder, seed=0):
    """What is printed, on the standard error too: nothing of TensorFlow's."""
    command = [sys.executable, "-m", "keras_kd_command", "demo", "--quick", "--seed", str(seed)]
    done = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What a run printed, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    return run_quick(folder), folder


def test_prints_its_stages_the_table_by_language_and_the_exports(done):
    printed, _ = done
    for stage in ("data", "teacher", "labels only", "distilled", "transfer", "export", "evaluation"):
        assert f"\n{stage} " in f"\n{printed}"
    for language in QUICK.languages:
        assert f"\n  {language} " in printed
    assert "Files      " in printed and "Your data  " in printed
    assert "LiteRT int8" in printed and "SavedModel" in printed and "embedding" in printed


def test_writes_report_table_figure_and_files(done):
    _, folder = done
    assert sorted(path.name for path in folder.iterdir()) == sorted(WRITTEN)
    report = json.loads((folder / "report.json").read_text())
    assert set(report["macro_f1"]) == {"teacher", "labels only", "distilled", "transfer", "int8"}
    assert 0 < report["labelled"] < 0.1 * report["examples"]["train"]
    assert report["exports"]["litert_int8"]["size_bytes"] == (folder / "student.tflite").stat().st_size
    assert (folder / "languages.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_it_ends_with_runs_and_names_a_class(done):
    printed, _ = done
    (line,) = [line for line in printed.splitlines() if line.startswith("Try it     ")]
    tried = subprocess.run(line.removeprefix("Try it     "), shell=True, capture_output=True, text=True, check=True)
    assert tried.stdout.strip() in QUICK.kinds


def test_the_same_seed_repeats_exactly():
    setting = dataclasses.replace(QUICK, languages=("en", "el"), teacher_steps=6, student_steps=6)
    runs = [Demo(setting, seed=3, console=rich.console.Console(quiet=True)) for _ in range(2)]
    np.testing.assert_array_equal(*(demo.few_labels for demo in runs))
    first, second = (demo.models()[0] for demo in runs)
    for name, model in first.items():
        for one, two in zip(model.get_weights(), second[name].get_weights(), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)


ANSWERS = """
import sys
import numpy as np
import tensorflow as tf
runner = tf.lite.Interpreter("student.tflite").get_signature_runner()
phone = np.concatenate([next(iter(runner(ids=row[None]).values())) for row in np.load("../ids.npy")])
import tensorflow_text
served = tf.saved_model.load("student").signatures["serving_default"]
texts = np.load("../texts.npy", allow_pickle=True).tolist()
server = next(iter(served(text=tf.constant(texts)).values())).numpy()
assert "keras_kd" not in sys.modules
np.savez("../answers.npz", phone=phone, server=server)
"""


def test_the_files_answer_in_a_fresh_process_without_keras_kd_and_agree(done):
    _, folder = done
    demo = Demo(QUICK, seed=0)
    test = demo.names.test.where(np.arange(64))
    np.save(folder.parent / "ids.npy", demo.ids(test))
    np.save(folder.parent / "texts.npy", test.texts.astype(object))
    subprocess.run([sys.executable, "-c", ANSWERS], check=True, capture_output=True, cwd=folder)
    answers = np.load(folder.parent / "answers.npz")
    assert answers["phone"].shape == answers["server"].shape == (64, len(QUICK.kinds))
    assert np.mean(answers["phone"].argmax(-1) == answers["server"].argmax(-1)) > 0.95


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
