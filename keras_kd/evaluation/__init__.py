"""Scores of teacher, student and exported student on the same examples, overall and by language.

evaluate ──► examples.py     the data, read once, checked
         ├─► predictions.py  model outputs: checked, argmax, confidence, KL from the teacher
         ├─► scores.py       accuracy, macro-F1, calibration error, agreement, KL; intervals by paired bootstrap
         └─► Evaluation      result.py: look up, compare, save, load; display.py: tables and figure
"""

from keras_kd.evaluation.measure import evaluate
from keras_kd.evaluation.result import Evaluation, ModelFacts
from keras_kd.evaluation.scores import Estimate

__all__ = ["Estimate", "Evaluation", "ModelFacts", "evaluate"]
