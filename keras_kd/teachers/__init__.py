"""Teachers made of several models, a SavedModel, a function or the student itself.

A teacher is a `keras.Model` that gives logits. Each function returns one.
"""

from keras_kd.teachers.encoders import sentence_encoder
from keras_kd.teachers.ensembles import ensemble, multi_output
from keras_kd.teachers.external import from_function, from_saved_model
from keras_kd.teachers.half_precision import cast
from keras_kd.teachers.heads import logistic_head
from keras_kd.teachers.routing import route_by_language

__all__ = [
    "cast",
    "ensemble",
    "from_function",
    "from_saved_model",
    "logistic_head",
    "multi_output",
    "route_by_language",
    "sentence_encoder",
]
