"""Teachers made from other things: from several models, from a file, from a function, in half the bytes.

A teacher is always a `keras.Model` that gives logits. Each function here returns one, so that the `Distiller` and all
losses take it as they take any other.
"""

from keras_kd.teachers.ensembles import ensemble, multi_output
from keras_kd.teachers.external import from_function, from_saved_model
from keras_kd.teachers.half_precision import cast
from keras_kd.teachers.moving_average import MeanTeacher, born_again
from keras_kd.teachers.routing import route_by_language

__all__ = [
    "MeanTeacher",
    "born_again",
    "cast",
    "ensemble",
    "from_function",
    "from_saved_model",
    "multi_output",
    "route_by_language",
]
