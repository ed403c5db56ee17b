"""Run the notebook from top to bottom, in an empty folder, and write its outputs into it.

python notebooks/run.py [--quick] [--output FILE]
"""

import argparse
import os
import pathlib
import tempfile

import nbformat
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).with_name("multilingual_distillation.ipynb")


def run(output, *, quick=False):
    """Run the notebook, with small settings if `quick`, and write it with its outputs to `output`; return it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = {**os.environ, "KERAS_KD_QUICK": "1" if quick else ""}
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=900, resources=resources, coalesce_streams=True).execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # TensorFlow's log lines, which name the machine it ran on
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, output)
    return notebook


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small settings")
    parser.add_argument("--output", type=pathlib.Path, default=NOTEBOOK)
    options = parser.parse_args()
    run(options.output, quick=options.quick)


if __name__ == "__main__":
    main()
