"""Models that generate sequences: a small Transformer, decoding and export; a teacher's text and a student's own."""

from keras_kd.sequences.decoded import DecodedDataset, SequenceTargets, decode_dataset, open_decoded_dataset
from keras_kd.sequences.decoders import StepModel
from keras_kd.sequences.generator import Generator
from keras_kd.sequences.on_policy import OnPolicy
from keras_kd.sequences.search import BeamSearch, Greedy, Hypotheses, Sampling
from keras_kd.sequences.shipping import TranslatorExport, decode_litert, export_steps, export_translator
from keras_kd.sequences.transformer import Transformer

__all__ = [
    "BeamSearch",
    "DecodedDataset",
    "Generator",
    "Greedy",
    "Hypotheses",
    "OnPolicy",
    "Sampling",
    "SequenceTargets",
    "StepModel",
    "Transformer",
    "TranslatorExport",
    "decode_dataset",
    "decode_litert",
    "export_steps",
    "export_translator",
    "open_decoded_dataset",
]
