"""The README: short, its example runs as printed and measures what it says, its links and commands exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks():
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_is_short():
    assert len(README.splitlines()) <= 150
    assert len([word for word in README.split() if word != "|"]) <= 1200
    picture = README.index("](docs/images/gains.png)")
    assert len(README[:picture].splitlines()) <= 10


def test_the_example_runs_as_printed_and_gains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = code_blocks()
    lines = [line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 15
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    accuracy = {model: float(re.search(rf"{model} +([\d.]+) \[", printed)[1]) for model in names["models"]}
    assert accuracy["distilled"] > accuracy["labels only"] + 3
    assert f"{names['student'].count_params():,} in place of {names['teacher'].count_params():,}" in README.replace(
        " parameters", ""
    )


def test_every_make_target_that_is_named_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z-]+)\b", README):
        assert target in targets, target


def test_every_make_target_is_listed_with_what_it_does():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"\.PHONY: ((?:.*\\\n)*.*)", makefile)[1].replace("\\", "").split()
    assert sorted(phony) == sorted(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))


def test_every_link_to_a_file_leads_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
