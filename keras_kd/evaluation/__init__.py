"""Scores of teacher, student and exported student on the same examples, overall and by language."""

from keras_kd.evaluation.embeddings import evaluate_embeddings
from keras_kd.evaluation.gate import Failure
from keras_kd.evaluation.measure import evaluate
from keras_kd.evaluation.perplexity import evaluate_perplexity
from keras_kd.evaluation.response_selection import evaluate_response_selection, sample_candidates
from keras_kd.evaluation.result import Evaluation, ModelFacts
from keras_kd.evaluation.scores import Estimate
from keras_kd.evaluation.sequences import evaluate_sequences

__all__ = [
    "Estimate",
    "Evaluation",
    "Failure",
    "ModelFacts",
    "evaluate",
    "evaluate_embeddings",
    "evaluate_perplexity",
    "evaluate_response_selection",
    "evaluate_sequences",
    "sample_candidates",
]
