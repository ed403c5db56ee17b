"""keras_kd: knowledge distillation for Keras 3. The public names, in the order the data flows."""

from keras_kd._version import __version__
from keras_kd.objectives import Hint, Objective, SoftLabels
from keras_kd.distiller import Distiller, load_distiller
from keras_kd.callbacks import LambdaRamp
