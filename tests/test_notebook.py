"""The notebook runs from top to bottom with small settings, and is committed with the outputs of a whole run."""

import importlib.util
import pathlib

import nbformat

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
specification = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
runner = importlib.util.module_from_spec(specification)
specification.loader.exec_module(runner)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_runs_from_top_to_bottom(tmp_path):
    notebook = runner.run(tmp_path / "run.ipynb", quick=True)
    last = code_cells(notebook)[-1]
    assert "distilled" in text_of(last) and "macro-F1" in text_of(last)
    assert sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs) == 3


def test_is_committed_with_the_outputs_of_a_whole_run():
    notebook = nbformat.read(runner.NOTEBOOK, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert any("LiteRT int8" in text_of(cell) for cell in cells)


def test_opens_in_colab():
    assert "colab.research.google.com" in nbformat.read(runner.NOTEBOOK, as_version=4).cells[0].source
