"""Checks of arguments, shared by every module: what was expected, what came, and the way out."""

import math
import numbers

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


def require_distiller(model, callback):
    """Return `model` if it is a Distiller, which this module does not know by its class, else raise TypeError."""
    if getattr(model, "hyperparameters", None) is None:
        raise TypeError(f"{callback} works with a keras_kd.Distiller, got {type(model).__name__}.")
    return model


def require_number(value, argument, *, above=None, at_least=None, at_most=None, hint=""):
    """Return `value` as a float if it is a finite real number within the bounds, else raise.

    Raises:
        TypeError: `value` is not a real number (bool and str are not).
        ValueError: `value` is NaN, infinite or outside the bounds.
    """
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
