"""cldr_names: the split by term, one label a text, which labels are withheld, the same on every run, bad input."""

import collections
import contextlib
import io
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from babel import Locale

from keras_kd.datasets import KINDS, LANGUAGES, LATIN_SCRIPT_LANGUAGES, OTHER_SCRIPT_LANGUAGES, UNLABELLED, cldr_names

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def everything():
    return cldr_names()


def folded(text):
    return unicodedata.normalize("NFKC", str(text)).casefold()


def test_at_least_thirty_languages_are_in_every_split(everything):
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 40
    assert set(LATIN_SCRIPT_LANGUAGES) | set(OTHER_SCRIPT_LANGUAGES) == set(LANGUAGES)
    for split in SPLITS:
        assert set(getattr(everything, split).languages) == set(LANGUAGES)
    assert everything.class_names == KINDS
    assert len(everything.train) > 40_000
    assert 0.17 < len(everything.test) / sum(len(getattr(everything, split)) for split in SPLITS) < 0.23


def test_no_term_is_in_two_splits_in_any_language(everything):
    terms = {split: set(getattr(everything, split).terms) for split in SPLITS}
    assert not terms["train"] & terms["test"]
    assert not terms["train"] & terms["validation"]
    assert not terms["validation"] & terms["test"]
    test = everything.test
    assert len(set(test.languages[test.terms == test.terms[0]])) > 5  # a term is there in many languages


def test_no_text_is_in_two_splits_or_has_two_labels(everything):
    labels, splits = collections.defaultdict(set), collections.defaultdict(set)
    for split in SPLITS:
        names = getattr(everything, split)
        for text, label in zip(names.texts, names.labels, strict=True):
            labels[folded(text)].add(int(label))
            splits[folded(text)].add(split)
    assert max(map(len, labels.values())) == 1
    assert max(map(len, splits.values())) == 1


def test_names_are_those_of_cldr(everything):
    """Against Babel's own look-up, which goes another way than the data set's reader."""
    checked = collections.Counter()
    for names in (everything.train, everything.validation, everything.test):
        for text, language, term in zip(names.texts[:3000], names.languages[:3000], names.terms[:3000], strict=True):
            kind, code = term.split("/", 1)
            if kind in ("territory", "script", "currency"):
                locale = Locale.parse(str(language))
                table = {"territory": locale.territories, "script": locale.scripts, "currency": locale.currencies}[kind]
                assert table[code] == text
                checked[kind] += 1
    assert min(checked.values()) > 100


def test_labels_are_the_kind_of_the_term(everything):
    names = everything.train
    kinds = [everything.class_names[label] for label in names.labels]
    assert kinds == [term.split("/")[0] for term in names.terms]


def test_regional_variants_stay_with_their_language(everything):
    split_of = {term: split for split in SPLITS for term in getattr(everything, split).terms}
    variants = [term for term in split_of if term.startswith("language/") and "_" in term]
    both = [term for term in variants if term.split("_")[0] in split_of]
    assert len(both) > 5
    assert all(split_of[term] == split_of[term.split("_")[0]] for term in both)


def test_a_fraction_of_the_labels_is_kept_in_every_language_and_kind():
    options = {"languages": ["en", "el", "ja"], "kinds": ["territory", "currency"]}
    whole, tenth = cldr_names(**options).train, cldr_names(**options, label_fraction=0.1).train
    np.testing.assert_array_equal(whole.texts, tenth.texts)
    kept = tenth.labels != UNLABELLED
    np.testing.assert_array_equal(tenth.labels[kept], whole.labels[kept])
    for language in options["languages"]:
        for label in (0, 1):
            group = (whole.languages == language) & (whole.labels == label)
            assert kept[group].sum() == max(1, round(0.1 * group.sum()))
    smaller = cldr_names(**options, label_fraction=0.02).train.labels != UNLABELLED
    assert not (smaller & ~kept).any()


def test_validation_and_test_keep_their_labels():
    data = cldr_names(languages=["en", "el"], label_fraction=0.05, labelled_languages=["en"])
    assert (data.validation.labels >= 0).all()
    assert (data.test.labels >= 0).all()


def test_only_the_chosen_languages_are_labelled():
    train = cldr_names(languages=["en", "el", "sw"], labelled_languages=["el"]).train
    assert (train.labels[train.languages == "el"] >= 0).all()
    assert (train.labels[train.languages != "el"] == UNLABELLED).all()


def test_a_terms_split_does_not_depend_on_languages_and_kinds(everything):
    split_of = {term: split for split in SPLITS for term in getattr(everything, split).terms}
    few = cldr_names(languages=["el", "fr"], kinds=["city", "territory"])
    for split in SPLITS:
        terms = [term for term in getattr(few, split).terms if term in split_of]
        assert terms and all(split_of[term] == split for term in terms)


def test_the_seed_decides_the_split():
    one, again, other = (cldr_names(languages=["en", "ko"], seed=seed) for seed in (3, 3, 4))
    for split in SPLITS:
        for name in ("texts", "labels", "languages", "terms"):
            np.testing.assert_array_equal(getattr(getattr(one, split), name), getattr(getattr(again, split), name))
    assert set(one.test.terms) != set(other.test.terms)


def test_another_process_gives_the_same():
    code = (
        "import hashlib; from keras_kd.datasets import cldr_names; "
        "t = cldr_names(languages=['en', 'ka'], label_fraction=0.1).train; "
        "print(hashlib.sha256(''.join(t.texts).encode() + t.labels.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(code, {})
    assert there == here.getvalue()


def test_where_picks_examples(everything):
    greek = everything.test.where(everything.test.languages == "el")
    assert set(greek.languages) == {"el"}
    assert len(greek) == (everything.test.languages == "el").sum() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"languages": "en"}, TypeError, r"languages must be a list of str, got the str 'en'"),
        ({"languages": []}, ValueError, r"languages must name one or more, each once, got \[\]"),
        ({"languages": ["en", "en"]}, ValueError, r"each once, got \['en', 'en'\]"),
        ({"languages": ["zh-TW"]}, ValueError, r"languages: 'zh-TW' is unknown"),
        ({"kinds": ["planet"]}, ValueError, r"kinds must be one of .*got 'planet'"),
        ({"languages": ["en"], "labelled_languages": ["de"]}, ValueError, r"labelled_languages must be one of"),
        ({"label_fraction": 0.0}, ValueError, r"label_fraction must be > 0"),
        ({"label_fraction": 1.5}, ValueError, r"label_fraction must be .*<= 1, got 1.5"),
        ({"seed": 0.5}, TypeError, r"seed must be an int, got 0.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cldr_names(**arguments)
