"""Fidelity, calibration and macro-F1 while training: metrics for `compile(metrics=[...])`.

What `keras_kd.evaluate` measures of finished models, batch by batch, of a `Distiller` or of any Keras model. An
unlabelled example (token), one with a label below 0 or a one-hot row of zeros, is left out of the metrics of labels,
whatever its outputs, weight and language; the metrics of fidelity need no labels and count it.
"""

from keras_kd.metrics.classification import ExpectedCalibrationError, MacroF1, MacroF1ByLanguage
from keras_kd.metrics.fidelity import Agreement, FidelityMetric, MeanKL

__all__ = ["Agreement", "ExpectedCalibrationError", "FidelityMetric", "MacroF1", "MacroF1ByLanguage", "MeanKL"]
