"""Models that generate sequences: a small Transformer; greedy search, beam search and sampling; export."""

from keras_kd.sequences.decoders import StepModel
from keras_kd.sequences.generator import Generator
from keras_kd.sequences.search import BeamSearch, Greedy, Hypotheses, Sampling
from keras_kd.sequences.shipping import TranslatorExport, decode_litert, export_steps, export_translator
from keras_kd.sequences.transformer import Transformer

__all__ = [
    "BeamSearch",
    "Generator",
    "Greedy",
    "Hypotheses",
    "Sampling",
    "StepModel",
    "Transformer",
    "TranslatorExport",
    "decode_litert",
    "export_steps",
    "export_translator",
]
