"""`keras-kd demo --quick`: what it prints and writes, the same on every run, and the files in fresh processes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

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
def runs(tmp_path_factory):
    """Two runs of one seed: `(what was printed, the folder)` of each."""
    folders = [tmp_path_factory.mktemp("demo") / name for name in ("first", "second")]
    return [(run_quick(folder), folder) for folder in folders]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_prints_its_stages_the_table_by_language_and_the_exports(runs):
    printed = runs[0][0]
    for stage in ("data", "teacher", "labels only", "distilled", "transfer", "export", "evaluation"):
        assert f"\n{stage} " in f"\n{printed}"
    for language in QUICK.languages:
        assert f"\n  {language} " in printed
    assert "Files      " in printed and "Your data  " in printed
    assert "LiteRT int8" in printed and "SavedModel" in printed and "embedding" in printed


def test_writes_report_table_figure_and_files(runs):
    folder = runs[0][1]
    assert sorted(path.name for path in folder.iterdir()) == sorted(WRITTEN)
    report = report_of(folder)
    assert set(report["macro_f1"]) == {"teacher", "labels only", "distilled", "transfer", "int8"}
    assert 0 < report["labelled"] < 0.1 * report["examples"]["train"]
    assert report["exports"]["litert_int8"]["size_bytes"] == (folder / "student.tflite").stat().st_size
    assert (folder / "languages.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_it_ends_with_runs_and_names_a_class(runs):
    (line,) = [line for line in runs[0][0].splitlines() if line.startswith("Try it     ")]
    done = subprocess.run(line.removeprefix("Try it     "), shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in QUICK.kinds


def test_the_same_seed_repeats_exactly(runs):
    first, second = (report_of(folder) for _, folder in runs)
    for name in ("macro_f1", "accuracy", "gains", "labelled", "examples"):
        assert first[name] == second[name], name
    for folder_name in ("evaluation.json",):
        scores = [json.loads((folder / folder_name).read_text())["scores"] for _, folder in runs]
        assert scores[0] == scores[1]


def answers_in_a_fresh_process(code, folder, inputs):
    """Run code that imports no keras_kd, on inputs in a file; return what it wrote."""
    np.save(folder.parent / "inputs.npy", inputs)
    prelude = f"import sys, numpy as np\nx = np.load({str(folder.parent / 'inputs.npy')!r}, allow_pickle=True)\n"
    ending = f"\nassert 'keras_kd' not in sys.modules\nnp.save({str(folder.parent / 'answers.npy')!r}, answers)"
    subprocess.run([sys.executable, "-c", prelude + code + ending], check=True, capture_output=True, cwd=folder)
    return np.load(folder.parent / "answers.npy")


def test_the_files_answer_in_fresh_processes_without_keras_kd_and_agree(runs):
    folder = pathlib.Path(runs[0][1])
    demo = Demo(QUICK, seed=0)
    test = demo.names.test.where(np.arange(64))
    server = (
        "import tensorflow as tf, tensorflow_text\n"
        "served = tf.saved_model.load('student').signatures['serving_default']\n"
        "answers = next(iter(served(text=tf.constant(x.tolist())).values())).numpy()"
    )
    phone = (
        "import tensorflow as tf\n"
        "runner = tf.lite.Interpreter('student.tflite').get_signature_runner()\n"
        "answers = np.concatenate([next(iter(runner(ids=row[None]).values())) for row in x])"
    )
    from_strings = answers_in_a_fresh_process(server, folder, test.texts.astype(object))
    from_ids = answers_in_a_fresh_process(phone, folder, demo.ids(test))
    assert from_strings.shape == from_ids.shape == (64, len(QUICK.kinds))
    assert np.mean(from_strings.argmax(-1) == from_ids.argmax(-1)) > 0.95


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
