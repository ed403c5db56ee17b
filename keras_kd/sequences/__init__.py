"""Models that generate sequences: a small Transformer, and greedy search, beam search and sampling of any model."""

from keras_kd.sequences.decoders import StepModel
from keras_kd.sequences.generator import Generator
from keras_kd.sequences.search import BeamSearch, Greedy, Hypotheses, Sampling
from keras_kd.sequences.transformer import Transformer

__all__ = ["BeamSearch", "Generator", "Greedy", "Hypotheses", "Sampling", "StepModel", "Transformer"]
