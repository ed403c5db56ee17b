"""Students with fewer pieces and thinner embeddings."""

import io

import keras
import numpy as np
import pytest

from keras_kd.students import (
    FactorizedEmbedding,
    MapIds,
    count_pieces,
    factorize_embedding,
    fewer_layers,
    on_student_ids,
    trim_vocabulary,
)

keras_hub = pytest.importorskip("keras_hub")
sentencepiece = pytest.importorskip("sentencepiece")
tensorflow_text = pytest.importorskip("tensorflow_text")
from sentencepiece import sentencepiece_model_pb2  # noqa: E402

WORDS = {
    "en": ["house", "river", "mountain", "summer", "winter", "bread", "water", "stone", "green", "window", "quick"],
    "de": ["Haus", "Fluss", "Berg", "Sommer", "Winter", "Brot", "Wasser", "Stein", "grün", "Fenster", "schnell"],
    "el": ["σπίτι", "ποτάμι", "βουνό", "καλοκαίρι", "χειμώνας", "ψωμί", "νερό", "πέτρα", "πράσινο", "παράθυρο"],
    "zh": ["房子", "河流", "山", "夏天", "冬天", "面包", "水", "石头", "绿色", "窗户", "快"],
}


def sentences(words, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, rng.integers(3, 7))) for _ in range(60)]


TEXTS = {language: sentences(words, seed) for seed, (language, words) in enumerate(WORDS.items())}


def trained(**options):
    proto = io.BytesIO()
    every = [text for texts in TEXTS.values() for text in texts]
    options = {"vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(every), model_writer=proto, **options)
    return proto.getvalue()


PROTO = trained()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = sorted({letter for texts in TEXTS.values() for text in texts for letter in text} - {" "})
WORD_PIECES = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS["en"], *WORDS["el"], "wat", "##er"]
TOKENIZERS = {
    "sentencepiece of KerasHub": lambda: keras_hub.tokenizers.SentencePieceTokenizer(PROTO, add_eos=True),
    "XLM-R": lambda: keras_hub.models.XLMRobertaTokenizer(proto=PROTO),
    "tensorflow_text": lambda: tensorflow_text.SentencepieceTokenizer(PROTO, add_bos=True, add_eos=True),
    "WordPiece": lambda: keras_hub.models.BertTokenizer(WORD_PIECES),
}


def size_of(tokenizer):
    size = tokenizer.vocab_size() if isinstance(tokenizer, tensorflow_text.SentencepieceTokenizer) else None
    return int(tokenizer.vocabulary_size() if size is None else size)


def encode(tokenizer, texts):
    rows = tokenizer.tokenize(texts)
    return [np.asarray(row).tolist() for row in (rows.to_list() if hasattr(rows, "to_list") else rows)]


def backbone(rows, kind=keras_hub.models.BertBackbone):
    return randomized(kind(rows, 1, 2, 8, 16, max_sequence_length=64, dropout=0))


def randomized(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape, scale=0.5) for weight in model.weights])
    return model


def inputs_of(model, ids):
    values = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    return {name: np.array([values[name]]) for name in model.input}


def output(model, ids):
    """The first output of an encoder for one text."""
    outputs = model(inputs_of(model, ids))
    return np.asarray(outputs["sequence_output"] if isinstance(outputs, dict) else outputs)


def least_of(teacher, tokenizer, languages):
    """How many pieces trimming has to keep, as its message says."""
    with pytest.raises(ValueError, match="keep must be >= ") as error:
        trim_vocabulary(teacher, tokenizer, TEXTS, languages=languages, keep=6)
    return int(str(error.value).split(">= ")[1].split(",")[0])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_of_kept_pieces_get_equal_pieces_and_bit_equal_outputs(kind):
    tokenizer = TOKENIZERS[kind]()
    teacher = backbone(size_of(tokenizer))
    before = [np.asarray(weight).copy() for weight in teacher.weights]
    keep = least_of(teacher, tokenizer, ["en", "el"]) + 8
    trimmed = trim_vocabulary(teacher, tokenizer, TEXTS, languages=["en", "el"], keep=keep)
    assert type(trimmed.tokenizer) is type(tokenizer) and type(trimmed.student) is type(teacher)
    assert trimmed.student.vocabulary_size == len(trimmed.id_map) == keep == size_of(trimmed.tokenizer)
    texts = [word for language in ("en", "el") for word in WORDS[language]]
    old, new = encode(tokenizer, texts), encode(trimmed.tokenizer, texts)
    kept = [pair for pair in zip(old, new, strict=True) if set(pair[0]) <= set(trimmed.id_map.tolist())]
    assert 0 < len(kept) < len(texts)
    reading = on_student_ids(teacher, trimmed.id_map)
    for ids, student_ids in kept:
        assert trimmed.id_map[student_ids].tolist() == ids
        np.testing.assert_array_equal(output(trimmed.student, student_ids), output(teacher, ids))
        np.testing.assert_array_equal(output(reading, student_ids), output(teacher, ids))
    for weight, values in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(weight, values)
    assert size_of(tokenizer) == teacher.vocabulary_size


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_dropped_pieces_are_segmented_anew_and_no_character_is_lost(kind):
    tokenizer = TOKENIZERS[kind]()
    teacher = backbone(size_of(tokenizer))
    least = least_of(teacher, tokenizer, ["en", "zh"])
    trimmed = trim_vocabulary(teacher, tokenizer, TEXTS, languages=["en", "zh"], keep=least)
    for cost in trimmed.costs:
        assert cost.unknown[1] <= cost.unknown[0] == 0
        assert cost.tokens_per_word[1] >= cost.tokens_per_word[0]
    characters = ["".join(WORDS[language])[i] for language in ("en", "zh") for i in range(10)]
    unknown = encode(trimmed.tokenizer, ["Ж"])[0]
    mark = 1 if kind == "WordPiece" else 3 if kind == "XLM-R" else 0
    assert mark in unknown
    assert not any(mark in ids for ids in encode(trimmed.tokenizer, characters))


def test_a_word_that_would_become_unknown_keeps_its_pieces():
    """WordPiece takes the longest piece first: without "ab", "abcd" is a, ##bc, and no ##d follows."""
    letters = [form for letter in "abcx" for form in (letter, f"##{letter}")]
    pieces = [*SPECIAL, *letters, "ab", "##bc", "##cd"]
    texts = ["abcd", *["xbc"] * 9]  # "##bc" is the most frequent piece that is no character
    trimmed = trim_vocabulary(backbone(len(pieces)), keras_hub.models.BertTokenizer(pieces), texts, keep=15)
    assert {"ab", "##bc"} & {pieces[i] for i in trimmed.id_map} == {"ab"}
    assert trimmed.costs[0].unknown == (0.0, 0.0)


def test_the_least_likely_piece_stays():
    """SentencePiece scores an unknown character by it, so that dropping it would move unknown pieces."""
    normal = [p for p in sentencepiece_model_pb2.ModelProto.FromString(PROTO).pieces if p.type == p.NORMAL]
    least = min(normal, key=lambda piece: piece.score)
    teacher = backbone(size_of(TOKENIZERS["sentencepiece of KerasHub"]()))
    for language in TEXTS:
        trimmed = trim_vocabulary(teacher, PROTO, TEXTS, languages=[language])
        kept = sentencepiece_model_pb2.ModelProto.FromString(trimmed.tokenizer).pieces
        assert least.piece in [piece.piece for piece in kept]


def test_costs_are_counted_on_the_texts():
    tokenizer = TOKENIZERS["WordPiece"]()
    texts = {"en": ["water house", "stone"], "xx": ["Ж water"]}
    trimmed = trim_vocabulary(backbone(len(WORD_PIECES)), tokenizer, {"en": ["stone", "water"], "xx": texts["xx"]})
    english, other = trimmed.costs
    assert english.tokens_per_word == (1.0, 1.0) and english.pieces_kept == 1.0
    assert other.unknown == (0.5, 0.5) and other.tokens_per_word == (1.0, 1.0)
    assert "xx" in str(trimmed) and "xx" in repr(trimmed)


def test_each_language_counts_alike():
    tokenizer = TOKENIZERS["WordPiece"]()
    texts = {"en": ["house"] * 9 + ["river"] * 1, "el": ["νερό"]}
    trimmed = trim_vocabulary(backbone(len(WORD_PIECES)), tokenizer, texts)
    kept = {WORD_PIECES[i] for i in trimmed.id_map}
    assert {"house", "river", "νερό", "o", "##o", *SPECIAL} <= kept and not {"water", "b"} & kept
    fewer = trim_vocabulary(backbone(len(WORD_PIECES)), tokenizer, texts, keep=len(kept) - 1)
    assert kept - {WORD_PIECES[i] for i in fewer.id_map} == {"river"}  # a tenth of English; "νερό" is all of Greek


def test_counts_serve_as_texts():
    tokenizer = TOKENIZERS["XLM-R"]()
    counts = count_pieces(tokenizer, TEXTS)
    assert counts["zh"].sum() == sum(map(len, encode(tokenizer, TEXTS["zh"])))
    teacher = backbone(size_of(tokenizer))
    of_counts = trim_vocabulary(teacher, tokenizer, counts, languages=["zh"])
    of_texts = trim_vocabulary(teacher, tokenizer, TEXTS, languages=["zh"])
    np.testing.assert_array_equal(of_counts.id_map, of_texts.id_map)
    assert not of_counts.costs and of_texts.costs


def test_a_proto_gives_a_proto_from_bytes_or_a_file(tmp_path):
    (tmp_path / "pieces.model").write_bytes(PROTO)
    size = sentencepiece.SentencePieceProcessor(model_proto=PROTO).vocab_size()
    teacher = backbone(size + 2)  # rows that no piece uses
    given = [PROTO, tmp_path / "pieces.model", str(tmp_path / "pieces.model")]
    protos = [trim_vocabulary(teacher, each, TEXTS, languages=["de"]).tokenizer for each in given]
    assert isinstance(protos[0], bytes) and protos[1] == protos[2] == protos[0]
    processor = sentencepiece.SentencePieceProcessor(model_proto=protos[0])
    assert processor.vocab_size() < size and processor.decode(processor.encode("Wasser grün")) == "Wasser grün"


def test_byte_and_user_defined_pieces_stay():
    proto = trained(byte_fallback=True, vocab_size=600, user_defined_symbols=["<query>"])
    size = sentencepiece.SentencePieceProcessor(model_proto=proto).vocab_size()
    trimmed = trim_vocabulary(backbone(size), proto, TEXTS, languages=["en"])
    pieces = sentencepiece_model_pb2.ModelProto.FromString(trimmed.tokenizer).pieces
    assert sum(piece.type == piece.BYTE for piece in pieces) == 256
    assert "<query>" in [piece.piece for piece in pieces]
    processor = sentencepiece.SentencePieceProcessor(model_proto=trimmed.tokenizer)
    assert processor.decode(processor.encode("水 house")) == "水 house"


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
def test_a_tied_head_is_trimmed_together_with_the_embedding(kind):
    tokenizer = TOKENIZERS["WordPiece" if kind == "Bert" else "XLM-R"]()
    inner = backbone(size_of(tokenizer), getattr(keras_hub.models, f"{kind}Backbone"))
    teacher = randomized(getattr(keras_hub.models, f"{kind}MaskedLM")(inner))
    trimmed = trim_vocabulary(teacher, tokenizer, TEXTS, languages=["en"])
    student = trimmed.student
    assert student.masked_lm_head.token_embedding is student.backbone.token_embedding
    ids = np.arange(5, 10)
    positions = {"mask_positions": np.array([[1, 3]])}
    logits = student({**inputs_of(student.backbone, ids), **positions})
    expected = teacher({**inputs_of(inner, trimmed.id_map[ids]), **positions})
    np.testing.assert_allclose(logits, np.asarray(expected)[..., trimmed.id_map], rtol=1e-5, atol=1e-5)


def test_a_plain_language_model_with_an_untied_head():
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(len(WORD_PIECES), 6, name="pieces")(inputs)
    hidden = keras.layers.Dense(6, "tanh")(hidden)
    outputs = keras.layers.Softmax()(keras.layers.Dense(len(WORD_PIECES), name="head")(hidden))
    teacher = randomized(keras.Model(inputs, outputs))
    trimmed = trim_vocabulary(teacher, TOKENIZERS["WordPiece"](), TEXTS, languages=["en"])
    ids = np.array([[7, 5, 9]])
    probabilities = np.asarray(teacher(trimmed.id_map[ids]))[..., trimmed.id_map]
    expected = probabilities / probabilities.sum(-1, keepdims=True)
    np.testing.assert_allclose(trimmed.student(ids), expected, rtol=1e-4)


def test_the_map_of_ids_survives_saving(tmp_path):
    teacher = backbone(len(WORD_PIECES))
    reading = on_student_ids(teacher, [3, 7, 5])
    reading.save(tmp_path / "teacher.keras")
    loaded = keras.saving.load_model(tmp_path / "teacher.keras")
    np.testing.assert_array_equal(output(loaded, np.array([2, 0])), output(teacher, np.array([5, 3])))


# Thinner embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
def test_at_full_rank_the_student_is_the_teacher(kind, tmp_path):
    teacher = backbone(40, getattr(keras_hub.models, f"{kind}Backbone"))
    student, transfer = factorize_embedding(teacher, 8)
    assert not transfer.missing
    ids = np.arange(9, 15)
    np.testing.assert_allclose(output(student, ids), output(teacher, ids), atol=1e-5)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(output(loaded, ids), output(student, ids))


def test_the_product_is_the_nearest_of_its_rank():
    """The truncated SVD of the weighted table is the nearest one (Eckart and Young)."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 100, 30)
    teacher = randomized(keras.Sequential([keras.Input((None,)), keras.layers.Embedding(30, 6, name="pieces")]))
    student, transfer = factorize_embedding(teacher, 2, counts=counts)
    table = np.asarray(teacher.layers[0].embeddings, "float64")
    root = np.sqrt(counts + 1.0)[:, None]
    u, s, v = np.linalg.svd(root * table, full_matrices=False)
    nearest = (u[:, :2] * s[:2]) @ v[:2] / root
    np.testing.assert_allclose(student(np.arange(30)[None])[0], nearest, atol=1e-5)
    assert f"{100 * (s[:2] ** 2).sum() / (s**2).sum():.1f} %" in transfer.rows[0].how


def test_students_are_made_of_students():
    tokenizer = TOKENIZERS["WordPiece"]()
    teacher = randomized(keras_hub.models.BertBackbone(len(WORD_PIECES), 3, 2, 8, 16, max_sequence_length=16))
    shallow, _ = fewer_layers(teacher, 2)
    thin, _ = factorize_embedding(shallow, 8, counts=count_pieces(tokenizer, TEXTS["en"]))
    trimmed = trim_vocabulary(thin, tokenizer, TEXTS, languages=["en"])
    ids = np.arange(5, 12)
    expected = output(shallow, trimmed.id_map[ids])
    np.testing.assert_allclose(output(trimmed.student, ids), expected, atol=1e-5)
    assert trimmed.student.count_params() < thin.count_params()


def test_a_factorized_embedding_is_also_a_tied_head_and_masks_padding():
    layer = FactorizedEmbedding(7, 4, 3, mask_zero=True)
    vectors = layer(np.array([[2, 0]]))
    table = np.asarray(layer.table) @ np.asarray(layer.projection)
    np.testing.assert_allclose(vectors[0], table[[2, 0]], rtol=1e-5)
    np.testing.assert_allclose(layer(vectors, reverse=True)[0], table[[2, 0]] @ table.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(keras.layers.Masking().compute_mask(vectors).shape, (1, 2))
    pooled = keras.layers.GlobalAveragePooling1D()(vectors)
    np.testing.assert_allclose(pooled[0], table[2], rtol=1e-5)


# Bad input ----------------------------------------------------------------------------------------------------------


def trim(tokenizer="WordPiece", texts=TEXTS, rows=None, **options):
    given = TOKENIZERS[tokenizer]() if isinstance(tokenizer, str) else tokenizer
    return trim_vocabulary(backbone(rows or len(WORD_PIECES)), given, texts, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: trim(rows=40), ValueError, r"the tokenizer has \d+ pieces, but none of the teacher's embeddings"),
        (lambda: trim(rows=1000), ValueError, "Give the tokenizer that the teacher was trained with"),
        (lambda: trim(rows=1000, embedding="token_embedding"), ValueError, "does not belong to the teacher"),
        (lambda: trim(embedding="none"), ValueError, "is called 'none'"),
        (lambda: trim(languages=["en", "fi"]), ValueError, r"got \['en', 'fi'\].*pieces of \['fi'\]"),
        (lambda: trim(languages="en"), TypeError, "languages must be a list"),
        (lambda: trim(languages=[]), ValueError, "languages must be some of those with texts"),
        (lambda: trim(texts={"en": ["a"], "fi": [" "]}), ValueError, "got none for 'fi'"),
        (lambda: trim(texts={"en": "water"}), TypeError, "texts must hold lists of str"),
        (lambda: trim(texts={"en": [1]}), TypeError, "texts must hold str, got int"),
        (lambda: trim(texts={"en": np.ones(5, int)}), ValueError, "counts must be whole numbers >= 0, one for each"),
        (lambda: trim(texts={"en": np.zeros(len(WORD_PIECES), int)}), ValueError, "got only zeros for 'en'"),
        (lambda: trim(keep=1000), ValueError, "keep must be <= "),
        (lambda: trim(keep=3), ValueError, "keep must be >= "),
        (lambda: trim(keep="all"), TypeError, "keep must be a whole number"),
        (lambda: trim(tokenizer=str.split), TypeError, "tokenizer must be the proto of a SentencePiece model"),
        (lambda: trim(tokenizer=b"\xff\xff\xff"), ValueError, "that are none"),
        (lambda: trim(tokenizer=trained(model_type="bpe")), ValueError, "of type UNIGRAM, got BPE"),
        (lambda: factorize_embedding(backbone(40), 9), ValueError, "rank must be <= 8"),
        (lambda: factorize_embedding(backbone(40), 0), ValueError, "rank must be >= 1"),
        (lambda: factorize_embedding(backbone(40), 2, counts=np.ones(50)), ValueError, "counts must be one number"),
        (lambda: factorize_embedding(backbone(40), 2, counts=-np.ones(40)), ValueError, "finite and >= 0"),
        (lambda: factorize_embedding(backbone(40), 2, embedding="x"), ValueError, "embedding must name one"),
        (
            lambda: factorize_embedding(keras_hub.models.BertMaskedLM(backbone(40)), 2),
            ValueError,
            "give its backbone",
        ),
        (lambda: FactorizedEmbedding(5, 4, 6), ValueError, "rank must be <= output_dim = 4"),
        (lambda: on_student_ids(backbone(40), [1], ids="x"), ValueError, "ids must name the input"),
        (lambda: MapIds([[1]]), ValueError, "id_map must be"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
