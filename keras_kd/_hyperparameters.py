"""Numbers that may be assigned while training: kept in variables, so that no step is traced again."""

import keras
import numpy as np

from keras_kd._checks import require_number


class Hyperparameter:
    """An attribute that holds a float32 `keras.Variable` and takes numbers: `loss.temperature = 2.0`.

    What is assigned is checked against the bounds, and takes effect at the next step. The variable is no weight of a
    model: `set_weights` and early stopping with `restore_best_weights=True` leave it as it is. A distiller's files and
    checkpoints hold it all the same. Bounds are as in `require_number`, and `hint` ends its message.
    """

    def __init__(self, *, above=None, at_least=None, hint=""):
        self._bounds, self._hint = {"above": above, "at_least": at_least}, hint

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        try:
            return instance.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__} has no {self._name} yet.") from None

    def __set__(self, instance, value):
        current = instance.__dict__.get(self._name)
        if isinstance(value, keras.Variable):
            value = scalar_value(value)
        value = require_number(value, self._name, hint=self._hint, **self._bounds)
        if current is None:
            instance.__dict__[self._name] = keras.Variable(value, trainable=False, dtype="float32", name=self._name)
        else:
            assign_scalar(current, value)


def assign_scalar(variable, value):
    """Assign a number. As a NumPy scalar: TensorFlow keeps a constant of every Python float it has seen."""
    variable.assign(np.float32(value))


def scalar_value(variable):
    """The value of a scalar variable as a float, also of one that is mirrored over replicas."""
    return float(variable.numpy())
