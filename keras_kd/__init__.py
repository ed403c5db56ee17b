"""keras_kd: knowledge distillation for Keras 3. The public names, in the order the data flows."""

import importlib

from keras_kd._version import __version__
from keras_kd import outputs, text
from keras_kd import losses, metrics, sequences, students, teachers, transfer
from keras_kd.transfer import transfer_weights
from keras_kd.outputs import PrecomputedBatch
from keras_kd import cache, large_vocabulary
from keras_kd.cache import cache_teacher_outputs, open_teacher_cache
from keras_kd.balancing import UncertaintyBalance
from keras_kd.distiller import Distiller, load_distiller
from keras_kd.callbacks import LambdaRamp
from keras_kd.tuning import tune
from keras_kd.evaluation import evaluate, evaluate_embeddings
from keras_kd import deploy
from keras_kd.deploy import export

__all__ = [
    "Distiller",
    "LambdaRamp",
    "PrecomputedBatch",
    "UncertaintyBalance",
    "__version__",
    "cache",
    "cache_teacher_outputs",
    "datasets",
    "deploy",
    "evaluate",
    "evaluate_embeddings",
    "export",
    "large_vocabulary",
    "load_distiller",
    "losses",
    "metrics",
    "open_teacher_cache",
    "outputs",
    "sequences",
    "students",
    "teachers",
    "text",
    "transfer",
    "transfer_weights",
    "tune",
]


def __getattr__(name):
    """`keras_kd.datasets` is imported when it is used: it imports TensorFlow Datasets, which nothing else needs."""
    if name == "datasets":
        return importlib.import_module("keras_kd.datasets")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
