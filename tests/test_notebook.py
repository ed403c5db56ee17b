"""The notebooks run from top to bottom with small settings, and are committed with the outputs of a whole run."""

import importlib.util
import pathlib

import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
specification = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
runner = importlib.util.module_from_spec(specification)
specification.loader.exec_module(runner)
NOTEBOOKS = runner.NOTEBOOKS


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)


def test_a_classifier_is_distilled(tmp_path):
    notebook = runner.run(NOTEBOOKS["multilingual_distillation"], tmp_path / "run.ipynb", quick=True)
    last = code_cells(notebook)[-1]
    assert "distilled" in text_of(last) and "macro-F1" in text_of(last)
    assert pictures(notebook) == 3


def test_a_file_for_a_phone_is_shipped(tmp_path):
    notebook = runner.run(NOTEBOOKS["ship_to_mobile"], tmp_path / "run.ipynb", quick=True)
    printed = "".join(map(text_of, code_cells(notebook)))
    assert "student/student.tflite: LiteRT dynamic" in printed and "macro-F1, %, by language" in printed
    assert "FAILED phone, overall: macro_f1 is" in printed and "exit status 1" in printed
    assert pictures(notebook) == 2


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_committed_with_the_outputs_of_a_whole_run(name):
    cells = code_cells(nbformat.read(NOTEBOOKS[name], as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert any("LiteRT " in text_of(cell) for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_opens_in_colab(name):
    first = nbformat.read(NOTEBOOKS[name], as_version=4).cells[0].source
    assert f"colab.research.google.com/github/keras-kd/keras_kd/blob/main/notebooks/{name}.ipynb" in first
