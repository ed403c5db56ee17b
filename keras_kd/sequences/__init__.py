"""Sequence-level distillation: what a teacher writes, on disk and as targets; a student's own samples."""

from keras_kd.sequences.decoded import DecodedDataset, SequenceTargets, decode_dataset, open_decoded_dataset
from keras_kd.sequences.on_policy import OnPolicy

__all__ = ["DecodedDataset", "OnPolicy", "SequenceTargets", "decode_dataset", "open_decoded_dataset"]
