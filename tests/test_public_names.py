"""Every dotted name of keras_kd that a docstring, a message or a page mentions can be imported under it."""

import ast
import importlib
import pathlib
import re

import pytest

import keras_kd

ROOT = pathlib.Path(keras_kd.__file__).parents[1]
DOTTED = re.compile(r"(?<![\w./\[-])keras_kd(?:\.[A-Za-z_]\w*)+")
FILES = r"\.(py|md|json|keras|ipynb|teacher_outputs)\b"


def mentions():
    for path in sorted((ROOT / "keras_kd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from ((path, name) for name in DOTTED.findall(node.value))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for path in pages:
        yield from ((path, name) for name in DOTTED.findall(path.read_text(encoding="utf-8")))


NAMES = sorted({name for _, name in mentions() if not re.search(FILES, name)})


def resolved(name):
    parts = name.split(".")
    value = keras_kd
    for depth, part in enumerate(parts[1:], 2):
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(".".join(parts[:depth]))
    return value


def test_there_are_names_to_look_at():
    assert len(NAMES) > 60 and "keras_kd.losses.SoftLabels" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_name_can_be_imported(name):
    assert resolved(name) is not None
