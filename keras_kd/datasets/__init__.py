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

__all__ = [
    "KINDS",
    "LANGUAGES",
    "LATIN_SCRIPT_LANGUAGES",
    "OTHER_SCRIPT_LANGUAGES",
    "UNLABELLED",
    "CldrNames",
    "Names",
    "cldr_names",
]
