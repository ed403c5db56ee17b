"""Teachers made from other things: from several models, from a file, from a function, in half the bytes.

A teacher is always a `keras.Model` that gives logits. Each function here returns one, so that the `Distiller` and all
objectives take it as they take any other.
"""

from keras_kd.teachers.combined import ensemble, side_by_side
from keras_kd.teachers.foreign import from_function, from_saved_model
from keras_kd.teachers.languages import by_language
from keras_kd.teachers.precision import in_dtype

__all__ = ["by_language", "ensemble", "from_function", "from_saved_model", "in_dtype", "side_by_side"]
