"""keras_kd: knowledge distillation for Keras 3. The public names, in the order the data flows."""

from keras_kd._version import __version__
from keras_kd import datasets, signals, text
from keras_kd.transfer import every_kth_block, transfer_weights
from keras_kd.objectives import Divergence, LabelledObjective, Objective
from keras_kd.objectives import JensenShannon, ReverseKL, SkewKL, SkewReverseKL, SoftLabels
from keras_kd.objectives import BinarySoftLabels, DecoupledKD, DIST, LogitsMSE, NormalizedKD
from keras_kd.objectives import Hint, KerasLoss
from keras_kd.distiller import Distiller, load_distiller
from keras_kd.callbacks import LambdaRamp
from keras_kd.evaluation import evaluate
from keras_kd.export import export

__all__ = [
    "DIST",
    "BinarySoftLabels",
    "DecoupledKD",
    "Distiller",
    "Divergence",
    "Hint",
    "JensenShannon",
    "KerasLoss",
    "LabelledObjective",
    "LambdaRamp",
    "LogitsMSE",
    "NormalizedKD",
    "Objective",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "SoftLabels",
    "__version__",
    "datasets",
    "evaluate",
    "every_kth_block",
    "export",
    "load_distiller",
    "signals",
    "text",
    "transfer_weights",
]
