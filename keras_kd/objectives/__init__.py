"""What the student is asked to imitate: one class an objective, each a `keras.losses.Loss`."""

from keras_kd.objectives.attention import AttentionMaps, HiddenStates, SelfAttentionRelations
from keras_kd.objectives.base import LabelledObjective, Objective
from keras_kd.objectives.by_language import ByLanguage
from keras_kd.objectives.contrast import ContrastiveKD
from keras_kd.objectives.features import AttentionTransfer, CosineFeatures, Embeddings, Hint
from keras_kd.objectives.foreign import KerasLoss
from keras_kd.objectives.logits import Divergence, JensenShannon, ReverseKL, SkewKL, SkewReverseKL, SoftLabels
from keras_kd.objectives.relations import DIST, RelationalKD
from keras_kd.objectives.scores import BinarySoftLabels, LogitsMSE
from keras_kd.objectives.similarities import CorrelationCongruence, SimilarityPreserving
from keras_kd.objectives.targets import DecoupledKD, NormalizedKD
from keras_kd.objectives.token_ids import match_vocabularies
from keras_kd.objectives.vocabularies import SortedProbabilities, VocabularyMap

__all__ = [
    "DIST",
    "AttentionMaps",
    "AttentionTransfer",
    "BinarySoftLabels",
    "ByLanguage",
    "ContrastiveKD",
    "CorrelationCongruence",
    "CosineFeatures",
    "DecoupledKD",
    "Divergence",
    "Embeddings",
    "HiddenStates",
    "Hint",
    "JensenShannon",
    "KerasLoss",
    "LabelledObjective",
    "LogitsMSE",
    "NormalizedKD",
    "Objective",
    "RelationalKD",
    "ReverseKL",
    "SelfAttentionRelations",
    "SimilarityPreserving",
    "SkewKL",
    "SkewReverseKL",
    "SoftLabels",
    "SortedProbabilities",
    "VocabularyMap",
    "match_vocabularies",
]
