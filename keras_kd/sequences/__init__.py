"""Sequence-level distillation: what a teacher writes, on disk, and as targets."""

from keras_kd.sequences.decoded import DecodedDataset, SequenceTargets, decode_dataset, open_decoded_dataset

__all__ = ["DecodedDataset", "SequenceTargets", "decode_dataset", "open_decoded_dataset"]
