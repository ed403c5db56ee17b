"""Data sets to distil on. Importing this registers `sib200`, `umsab`, `multi30k` and `xpersona` for `tfds.load`."""

from keras_kd.datasets.builders import Multi30k, Sib200, TextBuilder, Umsab, Xpersona
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
from keras_kd.datasets.texts import TextDatasets, from_files, from_tfds

__all__ = [
    "KINDS",
    "LANGUAGES",
    "LATIN_SCRIPT_LANGUAGES",
    "OTHER_SCRIPT_LANGUAGES",
    "UNLABELLED",
    "CldrNames",
    "Multi30k",
    "Names",
    "Sib200",
    "TextBuilder",
    "TextDatasets",
    "Umsab",
    "Xpersona",
    "cldr_names",
    "from_files",
    "from_tfds",
    "sample_by_language",
    "sampling_probabilities",
    "weigh_by_language",
]
