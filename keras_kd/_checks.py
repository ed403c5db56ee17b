"""Checks of arguments, shared by every module: what was expected, what came, and the way out."""

import math
import numbers
import os

import keras


def require_tensorflow(what):
    """Raise RuntimeError if Keras runs on another backend than tensorflow."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"{what} runs on Keras's tensorflow backend, but the backend is {keras.backend.backend()!r}. Set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is imported."
        )


def require_model(value, argument):
    """Return `value` if it is a `keras.Model`, else raise TypeError."""
    if not isinstance(value, keras.Model):
        raise TypeError(
            f"{argument} must be a keras.Model, got {type(value).__name__}: {value!r}. "
            "Wrap other code in keras.Model, for instance with keras.Sequential or keras.layers.Lambda."
        )
    return value


def require_teacher(value, argument="teacher"):
    """Return `value` if it is a built `keras.Model`; else raise, and name the function that makes a teacher of it."""
    if not isinstance(value, keras.Model):
        got = f"{type(value).__name__}: {value!r:.200}"
        raise TypeError(f"{argument} must be a keras.Model, got {got}. {_how_to_make_a_teacher(value)}")
    if not value.built:
        raise ValueError(
            f"{argument} {value.name!r} is not built, so it holds no trained weights. Call it once on a batch, or give "
            "it a keras.Input, and load its weights first."
        )
    return value


def _from_function(kind, function, options=""):
    call = f"from_function({function}, inputs=keras.Input(shape), classes=n{options})"
    return f"For {kind}: keras_kd.teachers.{call}."


_FROM_SAVED_MODEL = "For the folder of a SavedModel: keras_kd.teachers.from_saved_model(path)."
_MULTI_OUTPUT = "For a model with an output per teacher: keras_kd.teachers.multi_output(teachers)"
_FROM_FILE = {
    ".weights.h5": "A file of weights alone: build the model, then model.load_weights(path).",
    (".keras", ".h5", ".hdf5"): "Load it: keras.saving.load_model(path).",
    "": _FROM_SAVED_MODEL,
}
_FROM_CLASS = {
    dict: f"For one teacher per language: keras_kd.teachers.route_by_language(teachers). {_MULTI_OUTPUT}.",
    (list, tuple, set): "For the mean of several teachers: keras_kd.teachers.ensemble(teachers). "
    f"{_MULTI_OUTPUT}, with a dict of them by name.",
    keras.Layer: "Make it a model: keras.Sequential([keras.Input(shape), layer]).",
}
_FROM_PACKAGE = {
    "sklearn": _from_function("scikit-learn", "model.predict_proba"),
    "torch": _from_function("PyTorch", "lambda x: model(torch.from_numpy(x)).detach().numpy()", ', gives="logits"'),
    "tensorflow": _FROM_SAVED_MODEL,
}


def _how_to_make_a_teacher(value):
    if isinstance(value, (str, os.PathLike)):
        return next(way for ending, way in _FROM_FILE.items() if os.fspath(value).endswith(ending))
    if isinstance(value, type):
        return f"That is the class: pass a model made with it, {value.__name__}(...)."
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    ways = [way for kind, way in _FROM_CLASS.items() if isinstance(value, kind)]
    ways += [way for package, way in _FROM_PACKAGE.items() if package in packages]
    if callable(value):
        ways.append(_from_function("a function of NumPy arrays", "function"))
    return next(iter(ways), "keras_kd.teachers makes teachers of several models, a SavedModel or a function.")


def require_distiller(model, callback):
    """Return `model` if it is a Distiller, which this module does not know by its class, else raise TypeError."""
    if getattr(model, "hyperparameters", None) is None:
        raise TypeError(f"{callback} works with a keras_kd.Distiller, got {type(model).__name__}.")
    return model


def require_number(value, argument, *, above=None, at_least=None, at_most=None, hint=""):
    """Return `value` as a float if it is a finite real number within the bounds, else raise TypeError or ValueError."""
    limits = ((">", above), (">=", at_least), ("<=", at_most))
    bounds = [f"{sign} {limit:g}" for sign, limit in limits if limit is not None]
    expected = f"{argument} must be " + (" and ".join(bounds) or "a finite number")
    ending = f", got {value!r}." + (f" {hint}" if hint else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{expected} (a number){ending}")
    value = float(value)
    too_low = (above is not None and not value > above) or (at_least is not None and value < at_least)
    if not math.isfinite(value) or too_low or (at_most is not None and value > at_most):
        raise ValueError(expected + ending)
    return value


def require_choice(value, argument, choices):
    """Return `value` if it is one of `choices`, else raise ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {list(choices)}, got {value!r}.")
    return value


def require_count(value, argument, *, at_least):
    """Return `value` as an int if it is a whole number of at least `at_least`, else raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{argument} must be a whole number >= {at_least}, got {value!r}.")
    if value < at_least:
        raise ValueError(f"{argument} must be >= {at_least}, got {value!r}.")
    return int(value)


def require_flag(value, argument):
    """Return `value` if it is a bool, else raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r}.")
    return value
