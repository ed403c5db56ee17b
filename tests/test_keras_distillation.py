"""Every point on which `benchmarks/compare_keras_distillation.py` says that we differ, run on our side."""

import importlib.util
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "compare_keras_distillation.py"
specification = importlib.util.spec_from_file_location("compare_keras_distillation", SCRIPT)
comparison = importlib.util.module_from_spec(specification)
specification.loader.exec_module(comparison)


@pytest.mark.parametrize("point", comparison.POINTS, ids=lambda point: point.__name__)
def test_ours_is_right(point):
    right, seen = comparison.run(point, comparison.distiller_of_ours)
    assert right, seen


def test_the_comparison_can_tell_right_from_wrong():
    """`keras.distillation` applies neither softmax nor T² with its default loss: the point must see that."""
    assert comparison.run(comparison.value, comparison.distiller_of_keras)[1] != "3.0154"
