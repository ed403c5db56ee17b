"""CharacterEncoder: ids by hand, every script, in `tf.data`, inside models and their files, bad input."""

import unicodedata

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.text import CharacterEncoder


def test_ids_by_hand():
    """Vocabulary in the order of the code points: a b c é is "abce" and the accent, ids 2 to 6."""
    encoder = CharacterEncoder("cbaé", length=4)
    assert encoder.vocabulary == "abce\N{COMBINING ACUTE ACCENT}"
    assert encoder.vocabulary_size == 7
    expected = [[2, 3, 4, 0], [5, 6, 1, 0], [5, 6, 0, 0], [0, 0, 0, 0], [4, 4, 4, 4]]
    np.testing.assert_array_equal(encoder(["ABC", "É?", "e\N{COMBINING ACUTE ACCENT}", "", "cccccccc"]), expected)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("STRASSE", "straße"),  # full case folding
        ("ＡＢＣ", "abc"),  # compatibility forms
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),  # final sigma
        ("한", "한"),  # a Hangul syllable and its letters
        ("ガ", "カ\N{COMBINING KATAKANA-HIRAGANA VOICED SOUND MARK}"),
    ],
)
def test_texts_that_look_the_same_get_the_same_ids(text, same):
    encoder = CharacterEncoder.from_texts([text, same], length=16, min_count=1)
    first, second = encoder([text, same]).numpy()
    np.testing.assert_array_equal(first, second)
    assert first.max() > 1


@pytest.mark.parametrize("text", ["東京都", "Ελλάδα", "ประเทศไทย", "日本", "مصر", "भारत", "ኢትዮጵያ", "საქართველო", "😀"])
def test_every_script_has_its_characters(text):
    ids = CharacterEncoder.from_texts([text], length=24, min_count=1)([text]).numpy()[0]
    assert 1 not in ids
    assert len(set(ids)) > 1


def test_rare_characters_are_unknown():
    encoder = CharacterEncoder.from_texts(["aab", "abc"], length=3, min_count=2)
    assert encoder.vocabulary == "ab"
    np.testing.assert_array_equal(encoder(["abc"]), [[2, 3, 1]])


@pytest.mark.parametrize("kind", [list, np.array, tf.constant, lambda texts: np.array(texts, dtype=object)])
def test_strings_of_every_kind(kind):
    encoder = CharacterEncoder("ab", length=2)
    np.testing.assert_array_equal(encoder(kind(["a", "bé"])), [[2, 0], [3, 1]])
    np.testing.assert_array_equal(encoder(kind([["a"], ["bé"]])), [[2, 0], [3, 1]])


def test_maps_over_a_dataset_with_a_static_shape():
    dataset = tf.data.Dataset.from_tensor_slices(["a", "b"]).batch(2).map(CharacterEncoder("ab", length=3))
    assert dataset.element_spec == tf.TensorSpec((None, 3), tf.int32)
    np.testing.assert_array_equal(next(iter(dataset)), [[2, 0, 0], [3, 0, 0]])


def test_inside_a_model_that_takes_strings_saved_and_loaded(tmp_path):
    encoder = CharacterEncoder("ab", length=3, name="characters")
    after = [keras.layers.Embedding(encoder.vocabulary_size, 4), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((), dtype="string"), encoder, *after])
    texts = tf.constant(["ab", "bbb", "?"])
    expected = model.layers[-1](after[1](after[0](encoder(texts))))
    np.testing.assert_allclose(model.predict(texts, verbose=0), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("characters").get_config() == encoder.get_config()
    np.testing.assert_allclose(loaded.predict(texts, verbose=0), expected, atol=1e-6)


def test_line_breaks_and_blanks_survive_a_saved_file(tmp_path):
    """A vocabulary kept as lines of a file would lose them."""
    encoder = CharacterEncoder("a\n\r \t\N{LINE SEPARATOR}\N{NO-BREAK SPACE}b", length=8)
    model = keras.Sequential([keras.Input((), dtype="string"), encoder])
    texts = tf.constant(["a\nb\ra b\t", "\N{LINE SEPARATOR}\N{NO-BREAK SPACE}b", ""])
    expected = encoder(texts).numpy()
    assert len(np.unique(expected)) == 8  # padding, five blanks of which NFKD makes two one, a and b
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(texts), expected)
    clone = keras.models.clone_model(model)
    np.testing.assert_array_equal(clone(texts), expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "e\u0301",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "ﷺ",
        "한국어",
        "İstanbul",
        "a\u0300\u0301\u0302",
        "नमस्ते",
        "ไทย",
        "\u200d",
        "𠮷",
    ],
)
def test_ids_are_those_of_pythons_own_normalization(text):
    """`unicodedata` instead of tensorflow-text: NFKC_Casefold (which drops joiners), then NFKD."""
    characters = list(
        unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text.replace("\u200d", "")).casefold())
    )
    encoder = CharacterEncoder("abc" + text, length=24)
    known = sorted({*"abc", *characters})
    expected = [2 + known.index(character) for character in characters]
    np.testing.assert_array_equal(encoder([text]), [expected + [0] * (24 - len(expected))])


def test_a_model_that_takes_strings_ships_as_a_saved_model(tmp_path):
    encoder = CharacterEncoder("ab", length=3)
    layers = [keras.layers.Embedding(encoder.vocabulary_size, 4), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((), dtype="string"), encoder, *layers])
    texts = np.array(["ab", "bbb", "?"], dtype=object)
    report = keras_kd.export(model, tmp_path / "model", compare_with=texts)
    assert report.agreement == 1.0
    assert report.max_difference < 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vocabulary": ["a", "b"]}, TypeError, r"vocabulary must be a str of characters, got list"),
        ({"vocabulary": ""}, ValueError, r"vocabulary must hold one character or more"),
        ({"length": 0}, ValueError, r"length must be >= 1, got 0"),
        ({"length": 2.5}, TypeError, r"length must be a whole number >= 1, got 2.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CharacterEncoder(**{"vocabulary": "ab", "length": 3, **arguments})


def test_texts_without_frequent_characters_are_refused():
    with pytest.raises(ValueError, match=r"texts must hold characters that occur min_count=2 times, got none"):
        CharacterEncoder.from_texts(["ab"], length=3)
    with pytest.raises(ValueError, match=r"min_count must be >= 1, got 0"):
        CharacterEncoder.from_texts(["ab"], length=3, min_count=0)
