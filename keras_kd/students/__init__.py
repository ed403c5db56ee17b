"""Students made from a teacher, or from nothing for a size: each comes with the table of what it took over."""

from keras_kd.students.byte_models import HashedNGrams, byte_cnn, ngram_student
from keras_kd.students.depth import fewer_layers, layer_importance
from keras_kd.students.embedding import (
    FactorizedEmbedding,
    ProductQuantizedEmbedding,
    factorize_embedding,
    quantize_embedding,
)
from keras_kd.students.encoders import compress_encoder
from keras_kd.students.sizes import student_for
from keras_kd.students.static import WeightedMean, static_student
from keras_kd.students.vocabulary import (
    LanguageCost,
    MapIds,
    TrimmedVocabulary,
    count_pieces,
    on_student_ids,
    trim_vocabulary,
)
from keras_kd.students.width import narrower_feed_forward

__all__ = [
    "FactorizedEmbedding",
    "HashedNGrams",
    "LanguageCost",
    "MapIds",
    "ProductQuantizedEmbedding",
    "TrimmedVocabulary",
    "WeightedMean",
    "byte_cnn",
    "compress_encoder",
    "count_pieces",
    "factorize_embedding",
    "fewer_layers",
    "layer_importance",
    "narrower_feed_forward",
    "ngram_student",
    "on_student_ids",
    "quantize_embedding",
    "static_student",
    "student_for",
    "trim_vocabulary",
]
