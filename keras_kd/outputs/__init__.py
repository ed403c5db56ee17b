"""What is read of a model for a batch: its outputs and those of its inner layers, captured in one forward pass."""

from keras_kd.outputs.endings import ends_in_softmax, output_activations
from keras_kd.outputs.hooks import PARTS, Hook
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.reader import ModelOutputs, OutputReader, output_names
from keras_kd.outputs.top_classes import TopClasses

__all__ = [
    "PARTS",
    "Hook",
    "ModelOutputs",
    "OutputReader",
    "PrecomputedBatch",
    "TopClasses",
    "ends_in_softmax",
    "output_activations",
    "output_names",
]
