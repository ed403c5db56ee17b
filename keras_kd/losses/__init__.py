"""Distillation losses: each compares a teacher output with a student output, and is a `keras.losses.Loss`."""

from keras_kd.losses.alignment import ApproximateLikelihoodMatching, align_tokens, alignment_entries, byte_offsets
from keras_kd.losses.attention import AttentionMaps, SelfAttentionRelations
from keras_kd.losses.base import DistillationLoss, LabelledDistillationLoss
from keras_kd.losses.by_language import ByLanguage
from keras_kd.losses.features import AttentionTransfer, CosineFeatures, Hint
from keras_kd.losses.keras_losses import KerasLoss
from keras_kd.losses.labelled import DecoupledKD, NormalizedKD
from keras_kd.losses.logits import (
    BinarySoftLabels,
    Divergence,
    JensenShannon,
    LogitsMSE,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SoftLabels,
)
from keras_kd.losses.relations import DIST, ContrastiveKD, CorrelationCongruence, RelationalKD, SimilarityPreserving
from keras_kd.losses.vocabularies import UniversalLogitDistillation, VocabularyMap, match_vocabularies

__all__ = [
    "DIST",
    "ApproximateLikelihoodMatching",
    "AttentionMaps",
    "AttentionTransfer",
    "BinarySoftLabels",
    "ByLanguage",
    "ContrastiveKD",
    "CorrelationCongruence",
    "CosineFeatures",
    "DecoupledKD",
    "DistillationLoss",
    "Divergence",
    "Hint",
    "JensenShannon",
    "KerasLoss",
    "LabelledDistillationLoss",
    "LogitsMSE",
    "NormalizedKD",
    "RelationalKD",
    "ReverseKL",
    "SelfAttentionRelations",
    "SimilarityPreserving",
    "SkewKL",
    "SkewReverseKL",
    "SoftLabels",
    "UniversalLogitDistillation",
    "VocabularyMap",
    "align_tokens",
    "alignment_entries",
    "byte_offsets",
    "match_vocabularies",
]
