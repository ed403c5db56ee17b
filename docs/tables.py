"""Keeps measured values of tables on one line: "11.8 ± 2.8" and "1.08 / 1.40 / 1.01"."""

import re


def on_page_markdown(markdown, **_):
    return "\n".join(
        re.sub(r"(?<=\d) ([±/]) (?=\d)", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", line)
        if line.startswith("|")
        else line
        for line in markdown.split("\n")
    )
