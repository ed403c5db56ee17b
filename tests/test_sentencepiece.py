"""SentencePieceEncoder: ids of the sentencepiece package, padding, inside models and their files, bad input."""

import io

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

import keras_kd
from keras_kd.text import SentencePieceEncoder

TEXTS = ["a house by the river", "ein Haus am Fluss", "une maison", "дом у реки", "川の家", ""]


def train(**options):
    """A SentencePiece model over TEXTS."""
    writer = io.BytesIO()
    settings = {"vocab_size": 70, "hard_vocab_limit": False, "bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:-1] * 9), model_writer=writer, minloglevel=2, **settings | options
    )
    return writer.getvalue()


@pytest.fixture(scope="module")
def proto():
    return train()


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_ids_are_those_of_the_sentencepiece_package(proto, prefix):
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    encoded = SentencePieceEncoder(proto, length=40, prefix=prefix)(TEXTS)
    for text, ids, mask in zip(TEXTS, encoded["token_ids"].numpy(), encoded["padding_mask"].numpy(), strict=True):
        expected = [0, *processor.encode(prefix + text), 2]
        assert ids.tolist() == expected + [1] * (40 - len(expected))
        assert mask.tolist() == [1] * len(expected) + [0] * (40 - len(expected))


def test_a_long_text_keeps_its_end(proto):
    whole = SentencePieceEncoder(proto, length=40)(TEXTS[:1])["token_ids"].numpy()[0]
    cut = SentencePieceEncoder(proto, length=5)(TEXTS[:1])
    assert cut["token_ids"].numpy()[0].tolist() == [*whole[:4], 2]
    assert cut["padding_mask"].numpy()[0].tolist() == [1] * 5


@pytest.mark.parametrize("kind", [list, np.array, tf.constant, lambda texts: np.array(texts, dtype=object)])
def test_strings_of_every_kind_and_of_either_shape(proto, kind):
    encoder = SentencePieceEncoder(proto, length=12)
    expected = encoder(TEXTS)["token_ids"]
    np.testing.assert_array_equal(encoder(kind(TEXTS))["token_ids"], expected)
    np.testing.assert_array_equal(encoder(kind([[text] for text in TEXTS]))["token_ids"], expected)


def test_no_texts_no_ids(proto):
    assert SentencePieceEncoder(proto, length=12)(tf.constant([], tf.string))["token_ids"].shape == (0, 12)


def test_its_outputs_are_the_inputs_of_a_kerashub_encoder_and_map_over_a_dataset(proto):
    encoder = SentencePieceEncoder(proto, length=12, segment_ids=True)
    backbone = keras_hub.models.BertBackbone(encoder.vocabulary_size, 1, 2, 8, 16, max_sequence_length=12)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(encoder)
    assert dataset.element_spec["token_ids"].shape.as_list() == [None, 12]
    outputs = backbone.predict(dataset, verbose=0)
    np.testing.assert_allclose(outputs["pooled_output"], backbone(encoder(TEXTS))["pooled_output"], atol=1e-6)


def string_model(proto):
    text = keras.Input((), dtype="string", name="text")
    encoded = SentencePieceEncoder(proto, length=12, prefix="query: ")(text)
    embedded = keras.layers.Embedding(80, 4)(encoded["token_ids"])
    return keras.Model(text, keras.layers.Dense(3)(keras.layers.Flatten()(embedded)))


def test_a_model_of_strings_is_saved_and_loaded(proto, tmp_path):
    model = string_model(proto)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tf.constant(TEXTS)), model(tf.constant(TEXTS)))


def test_a_model_of_strings_is_exported(proto, tmp_path):
    model = string_model(proto)
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded.serve(tf.constant(TEXTS)), model(tf.constant(TEXTS)), atol=1e-6)


def test_a_path_and_its_bytes_are_the_same(proto, tmp_path):
    (tmp_path / "pieces.model").write_bytes(proto)
    from_path = SentencePieceEncoder(tmp_path / "pieces.model", length=12)
    assert from_path.get_config() == {**SentencePieceEncoder(proto, length=12).get_config(), "name": from_path.name}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proto": 3}, TypeError, "proto must be the bytes of a SentencePiece model or its path, got int"),
        ({"proto": b"no model"}, ValueError, "proto must be a SentencePiece model, got 8 bytes"),
        ({"proto": b""}, ValueError, "proto must be a SentencePiece model, got 0 bytes"),
        ({"proto": "nowhere.model"}, FileNotFoundError, "nowhere.model"),
        ({"length": 2}, ValueError, "length must be >= 3"),
        ({"length": 2.5}, TypeError, "length"),
        ({"prefix": b"query: "}, TypeError, "prefix must be a str, got bytes"),
        ({"segment_ids": 1}, TypeError, "segment_ids"),
    ],
)
def test_bad_input_is_named(proto, options, error, message):
    arguments = {"proto": proto, "length": 12} | options
    with pytest.raises(error, match=message):
        SentencePieceEncoder(arguments.pop("proto"), **arguments)


def test_a_model_without_padding_is_refused():
    with pytest.raises(ValueError, match="must hold the piece '<pad>'"):
        SentencePieceEncoder(train(pad_id=-1, bos_id=0, eos_id=1, unk_id=2), length=12)


def test_it_is_a_documented_name():
    assert keras_kd.text.SentencePieceEncoder is SentencePieceEncoder


def test_the_layer_of_a_kerashub_tokenizer_gives_its_ids():
    """XLM-R's tokenizer numbers the pieces otherwise than the SentencePiece model that it holds."""
    tokenizer = keras_hub.models.XLMRobertaTokenizer(train(bos_id=1, pad_id=-1, unk_id=0))
    encoder = keras_kd.text.from_keras_hub(tokenizer, length=40)
    texts = [*TEXTS, "zzz 😀 house"]
    encoded = encoder(texts)
    for text, ids, mask in zip(texts, encoded["token_ids"].numpy(), encoded["padding_mask"].numpy(), strict=True):
        expected = [tokenizer.start_token_id, *tokenizer(text).tolist(), tokenizer.end_token_id]
        assert ids.tolist() == expected + [tokenizer.pad_token_id] * (40 - len(expected))
        assert mask.sum() == len(expected)
    assert encoder.vocabulary_size == tokenizer.vocabulary_size() and encoder.is_in_litert()


def test_the_layer_of_a_trimmed_kerashub_tokenizer_gives_its_ids():
    tokenizer = keras_hub.models.XLMRobertaTokenizer(train(bos_id=1, pad_id=-1, unk_id=0))
    model = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(tokenizer.vocabulary_size(), 4)])
    trimmed = keras_kd.students.trim_vocabulary(model, tokenizer, ["a house"]).tokenizer
    ids = keras_kd.text.from_keras_hub(trimmed, length=20, prefix="a ")(["house"])["token_ids"].numpy()[0]
    assert ids[1:].tolist()[: len(trimmed("a house"))] == trimmed("a house").tolist()


@pytest.mark.parametrize("lowercase", [False, True])
def test_the_layer_of_a_word_piece_tokenizer_gives_its_ids(lowercase):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "ein",
        "Haus",
        "haus",
        "##e",
        "am",
        "川",
        "!",
        "cafe",
        "Café",
    ]
    tokenizer = keras_hub.models.BertTokenizer(words, lowercase=lowercase, strip_accents=lowercase)
    encoder = keras_kd.text.from_keras_hub(tokenizer, length=12, segment_ids=True)
    for text in ("ein Hause!", "am川 HAUS", "Café", "zzz"):
        expected = [2, *tokenizer(text).tolist(), 3]
        assert encoder([text])["token_ids"].numpy()[0].tolist() == expected + [0] * (12 - len(expected))
    assert set(encoder([""])) == {"token_ids", "padding_mask", "segment_ids"}


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]


@pytest.mark.parametrize(
    ("tokenizer", "options", "error", "message"),
    [
        (lambda: len, {}, TypeError, "must be a keras_hub.tokenizers.SentencePieceTokenizer or WordPieceTokenizer"),
        (lambda: keras_hub.models.BertTokenizer(WORDS), {"prefix": "query: "}, ValueError, "prefix must be empty"),
        (
            lambda: keras_hub.models.BertTokenizer(WORDS, lowercase=True),
            {},
            ValueError,
            r"'strip_accents': True.*got \{'strip_accents': False\}",
        ),
        (
            lambda: keras_hub.models.XLMRobertaTokenizer(train(bos_id=1, pad_id=-1, unk_id=0)),
            {"length": 2},
            ValueError,
            "length",
        ),
    ],
)
def test_a_kerashub_tokenizer_that_the_layer_is_not_is_refused(tokenizer, options, error, message):
    with pytest.raises(error, match=message):
        keras_kd.text.from_keras_hub(tokenizer(), **{"length": 8} | options)
