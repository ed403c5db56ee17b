"""Write the tree of `keras_kd/` into docs/design.md: each module with the first line of its docstring.

python docs/design_tree.py
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- tree: python docs/design_tree.py -->", "<!-- end of tree -->"


def tree():
    """The tree as a nested Markdown list: folders with what their `__init__.py` says, then their modules."""
    return "\n".join(
        "    " * (len(path.relative_to(ROOT).parts) - 2)
        + (f"- **`{path.name}/`** " if path.is_dir() else f"- `{path.name}` ")
        + _first_line(path / "__init__.py" if path.is_dir() else path)
        for path in _in_order(ROOT / "keras_kd")
    )


def _in_order(folder):
    """Folders and modules, public ones first."""
    paths = [
        path
        for path in folder.iterdir()
        if (path / "__init__.py").exists()
        or (path.suffix == ".py" and path.name != "__init__.py")
    ]
    for path in sorted(paths, key=lambda path: (path.name.startswith("_"), path.name)):
        yield path
        if path.is_dir():
            yield from _in_order(path)


def _first_line(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0]


def page_with_tree(page):
    """The page with the tree as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tree()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
