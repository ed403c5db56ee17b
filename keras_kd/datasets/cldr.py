"""Names in many languages and scripts, from the Unicode CLDR data that Babel carries: no download."""

import collections
import difflib
import hashlib
import typing
import unicodedata
from dataclasses import dataclass

import numpy as np

from keras_kd._checks import require_choice, require_number
from keras_kd._extras import needs_extra

LATIN_SCRIPT_LANGUAGES = (
    *("en", "de", "nl", "sv", "da", "es", "fr", "it", "pt", "ro", "pl", "cs", "hr", "lt", "fi", "hu", "et", "tr"),
    *("vi", "id", "sw"),
)
OTHER_SCRIPT_LANGUAGES = (
    *("ru", "uk", "bg", "el", "he", "ar", "fa", "ur", "hi", "bn", "ta", "te", "th", "ka", "hy", "am", "ko", "ja", "zh"),
)
LANGUAGES = (*LATIN_SCRIPT_LANGUAGES, *OTHER_SCRIPT_LANGUAGES)
KINDS = ("territory", "language", "script", "currency", "city", "unit", "date")
UNLABELLED = -1

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1


@dataclass(frozen=True, eq=False)
class Names:
    """Examples of one split: four arrays of one length.

    Attributes:
        texts: Names, str, as CLDR writes them.
        labels: Index of the kind in `class_names`, int32; -1 for unlabelled examples.
        languages: Babel's identifier of the language, str.
        terms: The kind and CLDR's code of what is named, str, for instance "territory/FR".
    """

    texts: np.ndarray
    labels: np.ndarray
    languages: np.ndarray
    terms: np.ndarray

    def __len__(self):
        return len(self.texts)

    def where(self, mask):
        """The examples of a boolean mask or an index array, for instance `names.where(names.labels >= 0)`."""
        return Names(self.texts[mask], self.labels[mask], self.languages[mask], self.terms[mask])


class CldrNames(typing.NamedTuple):
    """The result of `cldr_names`: three splits, and the kinds of name, which the labels index."""

    train: Names
    validation: Names
    test: Names
    class_names: tuple[str, ...]


class _Name(typing.NamedTuple):
    text: str
    language: str
    kind: str
    code: str


def cldr_names(*, languages=LANGUAGES, kinds=KINDS, labelled_languages=None, label_fraction=1.0, seed=0):
    """Names of territories, languages, scripts, currencies, cities, units and dates; the label is the kind of name.

    63,900 names in 40 languages and 16 writing systems (Babel 2.18, CLDR 47; other releases differ a little): about
    44,700 to train on, 6,400 to validate and 12,800 to test. Other languages of Babel may be given as well.

    The split is by term, that is, by what is named: the names of France are in one split in all languages, so that no
    translation of a test term is seen in training. It depends on the seed and the term's code only (10 % of the terms
    are for validation, 20 % for test); the regional variants of a language (en_GB) are in one split. A text that names
    two terms ("Malta", the country and the language), letter case and Unicode compatibility forms (NFKC) aside, is
    dropped everywhere, so that a text has one label and is in one split. A term with the same name in several languages
    ("Euro") gives one example for each.

    In training, a share `label_fraction` of the examples of each language in `labelled_languages` and each kind, at
    least one, keep their label; the others have -1: compile with a cross-entropy with `ignore_class=-1`. A smaller
    share keeps a subset of what a larger one keeps. Validation and test keep all labels. The same seed gives the same
    examples in the same, shuffled order, whatever is labelled.

    Args:
        languages: Babel identifiers, for instance "fr" or "zh_Hant".
        kinds: Which kinds of name, from `KINDS`: the classes, in the order given.
        labelled_languages: Those of `languages` that are labelled in training; None for all.
        label_fraction: Share of the labels to keep, in (0, 1].
        seed: Any int, for the split of the terms, the order and which labels are kept.

    Returns:
        `CldrNames(train, validation, test, class_names)`; each split has `texts`, `labels`, `languages` and `terms`.

    Raises:
        ValueError: An unknown language or kind, one named twice, none at all; `label_fraction` outside (0, 1].
        TypeError: A single str where several are expected, or a seed that is no int.

    Example:

    >>> names = keras_kd.datasets.cldr_names(languages=["en", "el"], label_fraction=0.05)
    >>> japan = names.train.where(names.train.terms == "territory/JP")
    >>> dict(zip(japan.languages.tolist(), japan.texts.tolist()))
    {'en': 'Japan', 'el': 'Ιαπωνία'}

    Source and licence: Unicode CLDR (https://cldr.unicode.org), © Unicode, Inc., Unicode License v3, as packaged by
    Babel (file `locale-data/LICENSE.unicode`).
    """
    languages = _require_languages(languages, "languages")
    kinds = _require_some(kinds, "kinds")
    for kind in kinds:
        require_choice(kind, "kinds", KINDS)
    labelled = languages if labelled_languages is None else _require_some(labelled_languages, "labelled_languages")
    for language in labelled:
        require_choice(language, "labelled_languages", languages)
    label_fraction = require_number(label_fraction, "label_fraction", above=0.0, at_most=1.0)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int, got {seed!r}.")

    names = _unambiguous(name for language in languages for name in _names_of(language, kinds))
    names.sort(key=lambda name: _draw(seed, "order", *name))
    splits = {"train": [], "validation": [], "test": []}
    for name in names:
        splits[_split_of(name, seed)].append(name)
    train, validation, test = splits.values()
    kept = _kept_labels(train, set(labelled), label_fraction)
    return CldrNames(_arrays(train, kinds, kept), _arrays(validation, kinds), _arrays(test, kinds), kinds)


def _require_some(values, argument):
    if isinstance(values, str):
        raise TypeError(f"{argument} must be a list of str, got the str {values!r}. Write [{values!r}].")
    values = tuple(values)
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{argument} must name one or more, each once, got {list(values)}.")
    return values


def _require_languages(languages, argument):
    with needs_extra("demo"):
        from babel import localedata

    languages = _require_some(languages, argument)
    known = localedata.locale_identifiers()
    for language in languages:
        if language not in known:
            close = difflib.get_close_matches(str(language), known)
            raise ValueError(
                f"{argument}: {language!r} is unknown" + (f" (did you mean {close}?)" if close else "") + ". "
                f"Known are {list(LANGUAGES)} and all of babel.localedata.locale_identifiers()."
            )
    return languages


def _names_of(language, kinds):
    """Every name of the kinds in one language; a term may have several (month names with and without a day)."""
    with needs_extra("demo"):
        from babel import Locale

    locale = Locale.parse(language)
    for kind in kinds:
        for code, text in _READERS[kind](locale):
            if text and text != code:  # an untranslated name is no name
                yield _Name(text, language, kind, str(code))


def _date_words(locale):
    for what, contexts in (("month", locale.months), ("day", locale.days)):
        for widths in contexts.values():
            yield from ((f"{what}-{number}", text) for number, text in widths["wide"].items())


_READERS = {
    "territory": lambda locale: locale.territories.items(),
    "language": lambda locale: locale.languages.items(),
    "script": lambda locale: locale.scripts.items(),
    "currency": lambda locale: locale.currencies.items(),
    "city": lambda locale: ((code, zone.get("city")) for code, zone in locale.time_zones.items()),
    "unit": lambda locale: ((code, widths.get("long")) for code, widths in locale.unit_display_names.items()),
    "date": _date_words,
}


def _unambiguous(names):
    """The names, each once, without those whose text names more than one term."""
    by_text = collections.defaultdict(dict)
    for name in names:
        same_to_readers = unicodedata.normalize("NFKC", name.text).casefold()
        by_text[same_to_readers].setdefault((name.kind, name.code, name.language), name)
    return [
        name
        for alike in by_text.values()
        if len({(kind, code) for kind, code, _ in alike}) == 1
        for name in alike.values()
    ]


def _draw(seed, *parts):
    """A number in [0, 1) that depends on the seed and the parts only, on any machine and in any run."""
    digest = hashlib.blake2b("\0".join([str(int(seed)), *parts]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _split_of(name, seed):
    base_code = name.code.split("_")[0] if name.kind == "language" else name.code
    drawn = _draw(seed, "split", name.kind, base_code)
    if drawn < _TEST_SHARE:
        return "test"
    return "validation" if drawn < _TEST_SHARE + _VALIDATION_SHARE else "train"


def _kept_labels(names, labelled_languages, fraction):
    """Indices of the names that keep their label: the first ones, in shuffled order, of each language and kind."""
    groups = collections.defaultdict(list)
    for index, name in enumerate(names):
        if name.language in labelled_languages:
            groups[name.language, name.kind].append(index)
    return {index for group in groups.values() for index in group[: max(1, round(fraction * len(group)))]}


def _arrays(names, kinds, kept=None):
    labels = [
        kinds.index(name.kind) if kept is None or index in kept else UNLABELLED for index, name in enumerate(names)
    ]
    return Names(
        texts=np.array([name.text for name in names], dtype=str),
        labels=np.array(labels, dtype="int32"),
        languages=np.array([name.language for name in names], dtype=str),
        terms=np.array([f"{name.kind}/{name.code}" for name in names], dtype=str),
    )
