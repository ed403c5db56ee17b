"""Run a notebook from top to bottom, in an empty folder, and write its outputs into it.

python notebooks/run.py [NOTEBOOK] [--quick] [--output FILE]
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = {path.stem: path for path in sorted(pathlib.Path(__file__).parent.glob("*.ipynb"))}


def run(path, output, *, quick=False):
    """Run the notebook at `path`, with small settings if `quick`, and write it to `output`; return it."""
    notebook = nbformat.read(path, as_version=4)
    commands = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])  # of this environment
    environment = {**os.environ, "KERAS_KD_QUICK": "1" if quick else "", "PATH": commands}
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=900, resources=resources, coalesce_streams=True).execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # TensorFlow's log lines, which name the machine it ran on
            cell.outputs = [shown for shown in cell.outputs if shown.get("name") != "stderr"]
            for shown in cell.outputs:
                if "text" in shown:
                    shown.text = plain(shown.text)
    nbformat.write(notebook, output)
    return notebook


def plain(text):
    """Without the colors and bars that commands draw on a terminal."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n")
    return "\n".join(line.rstrip() for line in lines if "━" not in line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", choices=list(NOTEBOOKS), nargs="?", default="multilingual_distillation")
    parser.add_argument("--quick", action="store_true", help="small settings")
    parser.add_argument("--output", type=pathlib.Path, help="where to write it; in its place")
    options = parser.parse_args()
    path = NOTEBOOKS[options.notebook]
    run(path, options.output or path, quick=options.quick)


if __name__ == "__main__":
    main()
