"""Teacher, student and exported student side by side, overall and by language.

evaluate ──► examples.py   the data, read once, checked
         ├─► outputs.py    model outputs: checked, argmax, confidence, KL from the teacher
         ├─► scores.py     accuracy, macro-F1, calibration error, agreement, KL and their paired bootstrap
         ├─► summary.py    values and intervals: of each score, of each difference between two models
         └─► Evaluation    result.py: look up, compare, save, load; report.py: tables; figure.py: the picture
"""

from keras_kd.evaluation.measure import evaluate
from keras_kd.evaluation.result import Estimate, Evaluation, ModelFacts

__all__ = ["Estimate", "Evaluation", "ModelFacts", "evaluate"]
