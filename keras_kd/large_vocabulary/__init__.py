"""The losses over logits for large vocabularies, from hidden states and heads."""

from keras_kd.large_vocabulary.fused import FusedLoss, fused_loss
from keras_kd.large_vocabulary.heads import Head
from keras_kd.outputs.top_classes import TopClasses

__all__ = ["FusedLoss", "Head", "TopClasses", "fused_loss"]
