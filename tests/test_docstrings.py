"""The examples in the docstrings of the public names run, and print the numbers that they show."""

import doctest
import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd

# Public names that must have an example; others may.
WITH_EXAMPLE = [
    "Distiller",
    "LambdaRamp",
    "losses.Hint",
    "losses.SoftLabels",
    "outputs.ends_in_softmax",
    "transfer_weights",
]
# Examples that begin with trained models and a test set, and show what one run measured: not run.
OF_TRAINED_MODELS = ["evaluate", "export", "deploy.export"]
GLOBALS = {"keras": keras, "keras_kd": keras_kd, "np": np, "tf": tf}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_objects():
    """The public classes and functions, those of public modules too, by name."""
    for name in keras_kd.__all__:
        value = getattr(keras_kd, name)
        members = vars(value) if inspect.ismodule(value) else {"": value}
        for key, member in members.items():
            if key.startswith("_") or not (inspect.isclass(member) or inspect.isfunction(member)):
                continue
            if member.__module__.startswith(value.__name__ if key else "keras_kd"):
                yield f"{name}.{key}".strip("."), member


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name, value in public_objects():
        if name not in OF_TRAINED_MODELS:
            module_globals = vars(inspect.getmodule(value))
            found = finder.find(value, name, globs={**module_globals, **GLOBALS})
            yield from (test for test in found if test.examples)


EXAMPLES = list(examples())


def test_every_name_that_must_have_an_example_has_one():
    assert set(WITH_EXAMPLE) <= {test.name for test in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_examples(example, tmp_path, monkeypatch):
    """Warnings are shown as a console shows them, so that an example can name them."""
    monkeypatch.chdir(tmp_path)
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, kind, *_: print(f"{kind.__name__}: {message}"))
        failures, _ = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=shown.append)
    assert failures == 0, "".join(shown)
