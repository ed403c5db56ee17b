"""What the student is asked to imitate: one class an objective, each a `keras.losses.Loss`."""

from keras_kd.objectives.base import Objective
from keras_kd.objectives.features import Hint
from keras_kd.objectives.logits import SoftLabels

__all__ = ["Hint", "Objective", "SoftLabels"]
