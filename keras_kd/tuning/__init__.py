"""The search for λ, temperatures, weights and the learning rate, with KerasTuner.

tune ──► space.py        what is searched: ranges and choices, checked
     ├─► recipe.py       how a student is made, trained and scored with given values
     ├─► oracle.py       KerasTuner's oracles, which propose the values; the only module that imports it
     ├─► record.py       the folder of a search: every trial, and the best student's weights
     └─► Tuning          result.py: the best values, student and distiller; report.py: the table; figure.py: the picture
"""

from keras_kd.tuning.record import Trial
from keras_kd.tuning.result import Tuning
from keras_kd.tuning.search import tune
from keras_kd.tuning.space import Range

__all__ = ["Range", "Trial", "Tuning", "tune"]
