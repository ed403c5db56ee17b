"""The losses over logits for large vocabularies, from hidden states and heads."""

from keras_kd.large_vocabulary.fused import FusedLoss, fused_loss
from keras_kd.large_vocabulary.sides import Head, TopTokens

__all__ = ["FusedLoss", "Head", "TopTokens", "fused_loss"]
