"""What the README shows runs as printed, and names what is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks():
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_example_runs_as_printed_and_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = code_blocks()[0]
    assert len(example.strip().splitlines()) <= 16
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "distilled" in printed
    assert (tmp_path / "student.tflite").stat().st_size > 0


@pytest.mark.parametrize("block", code_blocks()[1:], ids=lambda block: block.strip().splitlines()[-1][:40])
def test_every_other_block_runs(block):
    exec(compile(block, "README.md", "exec"), {"keras": __import__("keras"), "keras_kd": __import__("keras_kd")})


def test_the_tree_names_every_module():
    tree = README.split("```\nkeras_kd/\n")[1].split("```")[0]
    for path in (ROOT / "keras_kd").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "_version.py"):
            assert path.name in tree, f"{path.name} is not in the README's tree"
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert list(ROOT.rglob(name)), f"the README's tree names {name}, which does not exist"


def test_every_make_target_that_is_named_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+)\b", README):
        assert target in targets, target


def test_every_link_to_a_file_leads_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
