"""Data sets to distil on."""

from keras_kd.datasets.cldr import (
    KINDS,
    LANGUAGES,
    LATIN_SCRIPT_LANGUAGES,
    OTHER_SCRIPT_LANGUAGES,
    UNLABELLED,
    CldrNames,
    Names,
    cldr_names,
)
from keras_kd.datasets.sampling import sample_by_language, sampling_probabilities, weigh_by_language

__all__ = [
    "KINDS",
    "LANGUAGES",
    "LATIN_SCRIPT_LANGUAGES",
    "OTHER_SCRIPT_LANGUAGES",
    "UNLABELLED",
    "CldrNames",
    "Names",
    "cldr_names",
    "sample_by_language",
    "sampling_probabilities",
    "weigh_by_language",
]
