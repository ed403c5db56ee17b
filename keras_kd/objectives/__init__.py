"""What the student is asked to imitate: one class an objective, each a `keras.losses.Loss`."""

from keras_kd.objectives.base import LabelledObjective, Objective
from keras_kd.objectives.features import Hint
from keras_kd.objectives.foreign import KerasLoss
from keras_kd.objectives.logits import Divergence, JensenShannon, ReverseKL, SkewKL, SkewReverseKL, SoftLabels
from keras_kd.objectives.relations import DIST
from keras_kd.objectives.scores import BinarySoftLabels, LogitsMSE
from keras_kd.objectives.targets import DecoupledKD, NormalizedKD

__all__ = [
    "DIST",
    "BinarySoftLabels",
    "DecoupledKD",
    "Divergence",
    "Hint",
    "JensenShannon",
    "KerasLoss",
    "LabelledObjective",
    "LogitsMSE",
    "NormalizedKD",
    "Objective",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "SoftLabels",
]
