"""Shows the `>>>` examples of docstrings as code: Markdown would take them for quotations."""

import griffe


class DoctestBlocks(griffe.Extension):
    """Puts a fence around each doctest of a docstring, from its `>>>` to the next blank line."""

    def on_instance(self, *, obj, **kwargs):
        if obj.is_alias or obj.docstring is None:
            return
        obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring):
    """The docstring with its doctests in fences.

    >>> print(fenced("Example:\\n\\n>>> 1 + 1\\n2"))
    Example:
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    lines, indent = [], None
    for line in [*docstring.split("\n"), ""]:
        if indent is None and line.lstrip().startswith(">>>"):
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}```pycon")
        elif indent is not None and not line.strip():
            lines.append(f"{indent}```")
            indent = None
        lines.append(line)
    return "\n".join(lines[:-1])
