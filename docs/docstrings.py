"""Shows docstrings as their authors mean them: `>>>` examples as code, "Call arguments" as a list."""

import re

import griffe


class Docstrings(griffe.Extension):
    """Rewrites each docstring with the functions below."""

    def on_instance(self, *, obj, **kwargs):
        if obj.is_alias or obj.docstring is None:
            return
        value = obj.docstring.value
        obj.docstring.value = (
            aligned_kept(value) if obj.is_module else fenced(call_arguments_listed(value))
        )


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
        return "**Call arguments:**\n\n" + re.sub(
            r" {4}([\w, ]+): ", r"- **`\1`** – ", text
        )

    return re.sub(
        r"^Call arguments:\n((?: {4}.*(?:\n|$))+)", as_list, docstring, flags=re.MULTILINE
    )


def aligned_kept(docstring):
    """The docstring of a module with fences around paragraphs that are aligned with spaces, or drawn.

    >>> print(aligned_kept("A module.\\n\\nkey.bin    the ids\\nlog.bin    the rest"))
    A module.
    <BLANKLINE>
    ```text
    key.bin    the ids
    log.bin    the rest
    ```
    """
    paragraphs = docstring.split("\n\n")
    aligned = re.compile(r"\S {3,}\S|[│├└─]")
    return "\n\n".join(
        f"```text\n{text}\n```" if aligned.search(text) else text for text in paragraphs
    )
