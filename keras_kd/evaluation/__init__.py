"""Scores of teacher, student and exported student on the same examples, overall and by language."""

from keras_kd.evaluation.embeddings import evaluate_embeddings
from keras_kd.evaluation.gate import Failure
from keras_kd.evaluation.measure import evaluate
from keras_kd.evaluation.result import Evaluation, ModelFacts
from keras_kd.evaluation.scores import Estimate

__all__ = ["Estimate", "Evaluation", "Failure", "ModelFacts", "evaluate", "evaluate_embeddings"]
