"""examples/digits.py, as a reader would run it."""

import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import digits


def test_a_row_for_each_model(capsys):
    digits.main(types.SimpleNamespace(seeds=[0], epochs=3, soft_weight=0.1))
    rows = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert [name.strip() for name in rows] == ["teacher", "labels only", "distilled", "distilled after transfer"]
    accuracy = {name.strip(): float(score.split()[0]) for name, score in rows.items()}
    assert accuracy["teacher"] > 70  # of ten digits
