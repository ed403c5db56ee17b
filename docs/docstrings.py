"""Shows docstrings as their authors mean them: `>>>` examples as code, "Call arguments" as a list."""

import re

import griffe


class Docstrings(griffe.Extension):
    """Rewrites each docstring with `call_arguments_listed` and `fenced`."""

    def on_instance(self, *, obj, **kwargs):
        if obj.is_alias or obj.docstring is None:
            return
        obj.docstring.value = fenced(call_arguments_listed(obj.docstring.value))


def fenced(docstring):
    """The docstring with a fence around each doctest, from its `>>>` to the next blank line.

    Markdown would take it for a quotation.
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


def call_arguments_listed(docstring):
    """The docstring with its section "Call arguments", which Google style does not know, as a Markdown list.

    >>> print(call_arguments_listed("Call arguments:\\n    teacher: Logits\\n        `(batch, classes)`.\\n\\nEnd."))
    **Call arguments:**
    <BLANKLINE>
    - **`teacher`** – Logits `(batch, classes)`.
    <BLANKLINE>
    End.
    """

    def as_list(section):
        text = re.sub(r"\n {8}\s*", " ", section[1])
        return "**Call arguments:**\n\n" + re.sub(r" {4}([\w, ]+): ", r"- **`\1`** – ", text)

    return re.sub(r"^Call arguments:\n((?: {4}.*(?:\n|$))+)", as_list, docstring, flags=re.MULTILINE)
