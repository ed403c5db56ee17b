"""keras_kd: knowledge distillation for Keras 3. The public names, in the order the data flows."""

from keras_kd._version import __version__
from keras_kd import datasets, signals, teachers, text
from keras_kd.transfer import every_kth_block, transfer_weights
from keras_kd.objectives import Divergence, LabelledObjective, Objective
from keras_kd.objectives import JensenShannon, ReverseKL, SkewKL, SkewReverseKL, SoftLabels
from keras_kd.objectives import BinarySoftLabels, DecoupledKD, DIST, LogitsMSE, NormalizedKD
from keras_kd.objectives import AttentionTransfer, CosineFeatures, Embeddings, Hint
from keras_kd.objectives import ContrastiveKD, CorrelationCongruence, RelationalKD, SimilarityPreserving
from keras_kd.objectives import SortedProbabilities, VocabularyMap, match_vocabularies
from keras_kd.objectives import AttentionMaps, HiddenStates, SelfAttentionRelations
from keras_kd.objectives import ByLanguage, KerasLoss
from keras_kd import large_vocabulary
from keras_kd.balancing import GradientNormBalance, UncertaintyBalance
from keras_kd.cache import cache_signals, open_cache
from keras_kd.distiller import Distiller, load_distiller
from keras_kd.callbacks import LambdaRamp
from keras_kd.self_distillation import MeanTeacher, born_again
from keras_kd.tuning import tune
from keras_kd import metrics
from keras_kd.evaluation import evaluate
from keras_kd.export import export

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
    "Distiller",
    "Divergence",
    "Embeddings",
    "GradientNormBalance",
    "HiddenStates",
    "Hint",
    "JensenShannon",
    "KerasLoss",
    "LabelledObjective",
    "LambdaRamp",
    "LogitsMSE",
    "MeanTeacher",
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
    "UncertaintyBalance",
    "VocabularyMap",
    "__version__",
    "born_again",
    "cache_signals",
    "datasets",
    "evaluate",
    "every_kth_block",
    "export",
    "large_vocabulary",
    "load_distiller",
    "match_vocabularies",
    "metrics",
    "open_cache",
    "signals",
    "teachers",
    "text",
    "transfer_weights",
    "tune",
]
