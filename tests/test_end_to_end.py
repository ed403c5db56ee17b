"""end_to_end_model, and export with a tokenizer and labels: a string goes in, the same answer comes out everywhere."""

import csv
import functools
import io
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from conftest import dense_model

import keras_kd
from keras_kd.deploy import end_to_end_model, export, open_runtime

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
layers = keras.layers
LENGTH, LABELS = 16, ["sport", "Wetter", "наука"]
SIB200 = pathlib.Path(__file__).parents[2] / "shared/data/sib200"
TEXTS = ["ein Haus am See", "une maison", "a house!", "Вокзал закрыт", "駅は閉まっています", "the house"] * 9
ODD = [
    "",
    " ",
    "\t\n",
    "😀 a",
    "ａ́b ﬁ",
    "Вокзал house 駅",
    "a" * 100_000,
    "houses " * 20_000,
    b"\xff\xfe a",
    "\u200b",
    "a",
]


def piece_proto(texts=TEXTS, vocabulary=120, **options):
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=proto,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        pad_id=3,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        **options,
    )
    return proto.getvalue()


WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "house", "##s", "ein", "am", "see", "!", "a", "вокзал", "駅"]
ENCODERS = {
    "sentencepiece": lambda: keras_kd.text.SentencePieceEncoder(piece_proto(), LENGTH, segment_ids=True),
    "prefix": lambda: keras_kd.text.SentencePieceEncoder(piece_proto(), LENGTH, prefix="query: "),
    "wordpiece": lambda: keras_kd.text.WordPieceEncoder(WORD_PIECES, LENGTH),
    "uncased": lambda: keras_kd.text.WordPieceEncoder(WORD_PIECES, LENGTH, lowercase=True, segment_ids=True),
    "bytes": lambda: keras_kd.text.ByteEncoder(LENGTH),
    "characters": lambda: keras_kd.text.CharacterEncoder("abcdehosu", LENGTH),
}


def student_for(encoder, last=None, units=3):
    """A small student that takes what an encoder gives: the mean of embedded ids, and a dense layer."""
    keras.utils.set_random_seed(0)
    encoded = encoder(["a"])
    names = encoded if isinstance(encoded, dict) else {"ids": encoded}
    inputs = {name: keras.Input((LENGTH,), dtype=names[name].dtype.name, name=name) for name in names}
    (ids, *others) = inputs.values()
    h = layers.Embedding(256, 8, embeddings_initializer="normal")(ids)
    for other in others:
        h = h * (1.0 + keras.ops.cast(other, "float32")[..., None])
    outputs = layers.Dense(units, last, kernel_initializer="orthogonal")(layers.GlobalAveragePooling1D()(h))
    return keras.Model(inputs if isinstance(encoded, dict) else ids, outputs)


def by_hand(student, encoder, texts):
    """What the student answers to texts that are encoded outside of it."""
    outputs = student.predict(keras.tree.map_structure(lambda t: t.numpy(), encoder(texts)), verbose=0)
    return outputs, [LABELS[i].encode() for i in outputs.argmax(axis=-1)]


# --- One model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS)
def test_text_in_answer_out(kind):
    encoder = ENCODERS[kind]()
    student = student_for(encoder)
    model = end_to_end_model(student, encoder, LABELS)
    texts = TEXTS[:6] + ODD
    logits, labels = by_hand(student, encoder, texts)
    given = model(tf.constant(texts))
    np.testing.assert_allclose(given["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(given["probabilities"], tf.nn.softmax(logits), atol=1e-6)
    assert given["label"].numpy().tolist() == labels
    empty = model(tf.constant([], tf.string))
    assert {key: tuple(tensor.shape) for key, tensor in empty.items()} == {
        "label": (0,),
        "logits": (0, 3),
        "probabilities": (0, 3),
    }


def test_without_labels_or_tokenizer_the_rest_stays_the_students():
    encoder = ENCODERS["sentencepiece"]()
    student = student_for(encoder)
    expected, labels = by_hand(student, encoder, TEXTS)
    np.testing.assert_allclose(end_to_end_model(student, encoder)(tf.constant(TEXTS)), expected, atol=1e-6)
    ids = encoder(TEXTS)
    assert end_to_end_model(student, labels=LABELS)(ids)["label"].numpy().tolist() == labels


def test_the_logits_of_a_softmax_are_its_log_probabilities():
    encoder = ENCODERS["bytes"]()
    student = student_for(encoder, last="softmax")
    answers = end_to_end_model(student, encoder, LABELS)(tf.constant(TEXTS))
    expected, _ = by_hand(student, encoder, TEXTS)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(answers["logits"], np.log(expected), atol=1e-5)


def test_the_weights_are_the_students():
    encoder = ENCODERS["bytes"]()
    student = student_for(encoder)
    model = end_to_end_model(student, encoder, LABELS)
    student.layers[-1].set_weights([np.zeros((8, 3)), np.array([0.0, 5.0, 0.0])])
    assert model(tf.constant(["a"]))["label"].numpy().tolist() == [b"Wetter"]
    assert [id(w) for w in model.weights] == [id(w) for w in student.weights]


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_is_saved_with_its_tokenizer(kind, tmp_path):
    encoder = ENCODERS[kind]()
    model = end_to_end_model(student_for(encoder), encoder, LABELS)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for key, tensor in model(tf.constant(TEXTS)).items():
        np.testing.assert_array_equal(loaded(tf.constant(TEXTS))[key], tensor)


def test_any_function_of_tensorflow_is_a_tokenizer():
    encoder = ENCODERS["bytes"]()
    student = student_for(encoder)
    model = end_to_end_model(student, lambda texts: encoder(tf.strings.upper(texts)), LABELS)
    np.testing.assert_allclose(
        model(tf.constant(["house"]))["logits"], by_hand(student, encoder, ["HOUSE"])[0], atol=1e-6
    )


def test_a_preprocessor_of_keras_hub(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    tokenizer = keras_hub.models.BertTokenizer([*WORD_PIECES, "[MASK]"])
    preprocess = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=LENGTH)
    encoder = keras_kd.text.WordPieceEncoder(WORD_PIECES, LENGTH, segment_ids=True)
    student = student_for(encoder)
    report = export(
        student, tmp_path / "saved", tokenizer=preprocess, labels=LABELS, compare_with=["a house", "ein see"]
    )
    assert report.max_difference == 0.0
    logits, _ = by_hand(student, encoder, ["a house"])
    given = open_runtime(tmp_path / "saved").predict(np.array(["a house"]))["logits"]
    np.testing.assert_allclose(given, logits, atol=1e-6)


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that gives (encoder, student, the file's report), of a kind of encoder and the name of a file.

    Each is written once. "dynamic.tflite" and "int8.tflite" are quantized so.
    """

    @functools.cache
    def write(kind, file):
        encoder = ENCODERS[kind]()
        student = student_for(encoder)
        quantize = file.partition(".")[0] if file.startswith(("dynamic", "int8")) else None
        report = export(
            student,
            tmp_path_factory.mktemp(kind) / file,
            tokenizer=encoder,
            labels=LABELS,
            quantize=quantize,
            calibration=TEXTS if quantize == "int8" else None,
            compare_with=TEXTS + ODD,
            min_agreement=0.0 if quantize == "int8" else None,
        )
        return encoder, student, report

    return write


FILES = [
    *[(kind, "saved") for kind in ENCODERS],
    *[(kind, "float32.tflite") for kind in ENCODERS if kind != "characters"],
    ("sentencepiece", "dynamic.tflite"),
    ("bytes", "dynamic.tflite"),
]


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_every_file_answers_as_the_model_does(kind, file, written):
    encoder, student, report = written(kind, file)
    tolerance = 0.05 if report.quantize else 1e-5
    assert report.max_difference <= tolerance
    texts = np.array([t if isinstance(t, bytes) else t.encode() for t in TEXTS[:6] + ODD], dtype=object)
    logits, labels = by_hand(student, encoder, texts)
    x = encoder(texts).numpy() if kind == "bytes" and file != "saved" else texts
    given = open_runtime(report.path).predict(x)
    np.testing.assert_allclose(given["logits"], logits, atol=tolerance)
    if not report.quantize:
        assert given["label"].tolist() == labels


def test_characters_are_not_for_litert(tmp_path):
    encoder = ENCODERS["characters"]()
    with pytest.raises(ValueError, match=r"LiteRT, which has no operations for CharacterEncoder"):
        export(student_for(encoder), tmp_path / "a.tflite", tokenizer=encoder, compare_with=TEXTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["saved", "float32.tflite"])
@pytest.mark.parametrize("kind", ["prefix", "wordpiece", "bytes"])
def test_a_batch_of_none_is_answered_with_none(kind, file, written):
    *_, report = written(kind, file)
    if file == "saved":
        model = tf.saved_model.load(report.path)
        answer = model.signatures["serving_default"](text=tf.constant([], tf.string))
    else:
        none = {"text": np.array([], dtype=object)} if kind != "bytes" else {"ids": np.zeros((0, LENGTH), np.uint8)}
        answer = open_runtime(report.path)._runner(**none)
    assert {name: tuple(np.array(array).shape) for name, array in answer.items()} == {
        "label": (0,),
        "logits": (0, 3),
        "probabilities": (0, 3),
    }


ELSEWHERE = """
import runpy
import sys
import numpy as np
import tensorflow as tf
import tensorflow_text

sys.modules["keras_kd"] = None  # it cannot be imported
texts = np.load("texts.npy", allow_pickle=True)
saved = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
given = [saved(text=tf.constant(texts))]

from tensorflow.lite.python.interpreter import InterpreterWithCustomOps
from tensorflow_text.core.pybinds import tflite_registrar

interpreter = InterpreterWithCustomOps(
    model_path=sys.argv[2], custom_op_registerers=tflite_registrar.SELECT_TFTEXT_OPS
)
given.append(interpreter.get_signature_runner()(text=texts))

stock = tf.lite.Interpreter(model_path=sys.argv[3]).get_signature_runner()
padded = [np.frombuffer(text[:16].ljust(16, bytes(1)), np.uint8) for text in texts]
given.append(stock(ids=np.stack(padded)))
for name, answer in zip(["text", "text", "bytes"], given):
    np.testing.assert_allclose(np.array(answer["logits"]), np.load(name + ".npy"), atol=1e-5)
print(*[np.array(answer["label"])[0].decode() for answer in given])
empty = saved(text=tf.constant([], tf.string))
assert empty["logits"].shape == (0, 3), empty

# What TensorFlow's own command tells of the file.
sys.argv = ["saved_model_cli", "show", "--dir", sys.argv[1], "--tag_set", "serve", "--signature_def", "serving_default"]
runpy.run_module("tensorflow.python.tools.saved_model_cli", run_name="__main__")
"""


@pytest.fixture(scope="module")
def told_elsewhere(written, tmp_path_factory):
    """What a process prints in which keras_kd cannot be imported: labels, then what a SavedModel takes and gives."""
    folder = tmp_path_factory.mktemp("elsewhere")
    texts = np.array([text.encode() for text in TEXTS[:6]], dtype=object)
    np.save(folder / "texts.npy", texts)
    files, expected = [], []
    for kind, file in (("prefix", "saved"), ("prefix", "float32.tflite"), ("bytes", "float32.tflite")):
        encoder, student, report = written(kind, file)
        logits, labels = by_hand(student, encoder, texts)
        np.save(folder / ("bytes.npy" if kind == "bytes" else "text.npy"), logits)
        files.append(report.path)
        expected.append(labels[0].decode())
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *files], cwd=folder, capture_output=True, text=True)
    labels, _, told = done.stdout.partition("\n")
    return labels.split(), expected, told, done.stderr[-2000:]


def test_a_string_is_answered_where_keras_kd_cannot_be_imported(told_elsewhere):
    """The SavedModel, the LiteRT file with a tokenizer, and the one that stock LiteRT runs on bytes."""
    labels, expected, _, errors = told_elsewhere
    assert labels == expected, errors


def test_the_saved_model_is_one_that_tensorflow_serving_takes(told_elsewhere):
    """As TensorFlow's own command tells: the batch is open, and first in each input and output."""
    *_, told, errors = told_elsewhere
    found = re.findall(r"(inputs|outputs)\['(\w+)'\].*?dtype: (\w+)\s+shape: \(([^)]*)\)", told, flags=re.DOTALL)
    assert sorted(found) == [
        ("inputs", "text", "DT_STRING", "-1"),
        ("outputs", "label", "DT_STRING", "-1"),
        ("outputs", "logits", "DT_FLOAT", "-1, 3"),
        ("outputs", "probabilities", "DT_FLOAT", "-1, 3"),
    ], errors
    assert "tensorflow/serving/predict" in told


def test_int8_runs_the_tokenizer_while_it_calibrates(written, tmp_path):
    """The file that takes text answers as the one that takes ids, which was calibrated on the same ids."""
    encoder, student, report = written("prefix", "int8.tflite")
    ids = keras.tree.map_structure(lambda tensor: tensor.numpy(), encoder(TEXTS))
    options = {"quantize": "int8", "calibration": ids, "compare_with": ids, "min_agreement": 0.0}
    export(student, tmp_path / "ids.tflite", labels=LABELS, **options)
    given = open_runtime(report.path).predict(np.array(TEXTS, dtype=object))
    expected = open_runtime(tmp_path / "ids.tflite").predict(ids)
    np.testing.assert_allclose(given["logits"], expected["logits"], atol=1e-6)
    assert np.ptp(given["logits"], axis=0).min() > 0


def test_a_low_precision_student_goes_into_litert_with_its_tokenizer(tmp_path):
    encoder = ENCODERS["prefix"]()
    keras.config.set_dtype_policy("mixed_bfloat16")
    student = student_for(encoder)
    report = export(student, tmp_path / "a.tflite", tokenizer=encoder, labels=LABELS, compare_with=TEXTS)
    assert report.max_difference < 0.02


def test_evaluate_reads_a_file_that_takes_text(written):
    encoder, student, report = written("sentencepiece", "float32.tflite")
    x = {key: tensor.numpy() for key, tensor in encoder(TEXTS).items()} | {"text": np.array(TEXTS, dtype=object)}
    labels = student.predict({k: v for k, v in x.items() if k != "text"}, verbose=0).argmax(axis=-1)
    models = {"student": student, "file": report.path}
    evaluation = keras_kd.evaluate(models, (x, labels), bootstrap=0)
    assert evaluation.score("file", "accuracy").value == evaluation.score("student", "accuracy").value == 1.0


# --- Vectors ----------------------------------------------------------------------------------------------------------


def vector_student(noise=0.0):
    """Unit vectors of 8 numbers; with noise they differ in every call."""
    x = keras.Input((8,))
    h = layers.Dense(8, kernel_initializer="orthogonal")(x)
    return keras.Model(x, layers.UnitNormalization()(Noise(noise)(h) if noise else h))


class Noise(layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        return x + self.size * tf.random.normal(tf.shape(x))


POINTS = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")


def test_vectors_agree_where_their_nearest_neighbours_are_the_same(tmp_path):
    report = export(vector_student(), tmp_path / "a", compare_with=POINTS)
    assert report.agreement == 1.0 and report.cosine == pytest.approx(1.0)
    assert "same neighbour 100.00 %, cosine 1.0000" in str(report)
    assert export(dense_model(4), tmp_path / "b", compare_with=POINTS).cosine is None


def test_the_share_of_neighbours_by_hand(tmp_path, monkeypatch):
    """Four points on a circle, of which the file moves the last: the first and the third keep their neighbours."""
    angles = np.radians([0, 10, 90, 120])
    moved = np.radians([0, 10, 90, 15])  # the third is still nearest to it, but the second is now, too
    given, expected = (np.stack([np.cos(a), np.sin(a) - 1e-3], axis=1).astype("float32") for a in (moved, angles))
    student = keras.Sequential([keras.Input((2,)), layers.UnitNormalization()])
    runtime = sys.modules["keras_kd.deploy.runtimes"].SavedModelRuntime
    monkeypatch.setattr(runtime, "predict", lambda self, x: given / np.linalg.norm(given, axis=1, keepdims=True))
    report = export(student, tmp_path / "a", compare_with=expected, min_agreement=0.0)

    def nearest(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return [max((j for j in range(4) if j != i), key=lambda j: unit[i] @ unit[j]) for i in range(4)]

    assert (nearest(expected), nearest(given)) == ([1, 0, 3, 2], [1, 3, 3, 1])
    assert report.agreement == 2 / 4


@pytest.mark.parametrize("output", ["vectors", "classes"])
def test_a_file_that_answers_otherwise_is_not_kept_by_default(output, tmp_path):
    student = vector_student(noise=30.0)
    if output == "classes":
        student = keras.Model(student.input, Noise(30.0)(layers.Dense(4)(student.output)))
    with pytest.raises(
        RuntimeError, match=r"agrees with the student on \d+.\d\d % .* less than min_agreement=0.5; it was"
    ):
        export(student, tmp_path / "a", compare_with=POINTS)
    assert not list(tmp_path.iterdir())
    assert export(student, tmp_path / "a", compare_with=POINTS, min_agreement=0.0).agreement < 0.5
    assert export(student, tmp_path / "b").generated  # made-up inputs tell nothing about it


# --- The tokenizers of LiteRT -----------------------------------------------------------------------------------------


def sentences(count):
    """Sentences of SIB-200 in 46 languages."""
    if not SIB200.is_dir():
        pytest.skip("SIB-200 is not beside this checkout")
    found = []
    for folder in sorted(SIB200.iterdir()):
        with open(folder / "test.tsv", encoding="utf-8", newline="\n") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            found += [row["text"] for row, _ in zip(rows, range(count), strict=False)]
    return found


def by_sentencepiece(proto, texts, length, prefix):
    """What SentencePiece's own package makes of texts."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    rows = np.full((len(texts), length), processor.pad_id())
    for row, text in zip(rows, texts, strict=True):
        ids = [processor.bos_id(), *processor.encode(prefix + text)[: length - 2], processor.eos_id()]
        row[: len(ids)] = ids
    return rows


@pytest.fixture(scope="module")
def many_pieces():
    """Sentences and odd texts, and SentencePiece's model of them."""
    texts = sentences(30) + [t for t in ODD if isinstance(t, str)]
    return texts, piece_proto(texts, vocabulary=3000)


@pytest.mark.parametrize("prefix", ["", "query: ", "a  ", "query:"])
def test_text_is_cut_as_sentencepiece_does(many_pieces, prefix):
    """But for words that can be cut in two equally likely ways: some 2 of 1,000 sentences, with one piece swapped."""
    texts, proto = many_pieces
    given = keras_kd.text.SentencePieceEncoder(proto, 64, prefix=prefix)(texts)
    equal = (by_sentencepiece(proto, texts, 64, prefix) == given["token_ids"].numpy()).all(axis=-1)
    assert equal.mean() > 0.99, [texts[i] for i in np.flatnonzero(~equal)[:5]]
    assert equal[-len(ODD) + 1 :].all()


@pytest.mark.parametrize("options", [{"model_type": "bpe"}, {"byte_fallback": True, "vocabulary": 400}])
def test_other_kinds_of_sentencepiece_are_cut_as_it_does_and_not_in_litert(options, tmp_path):
    proto = piece_proto(**options)
    encoder = keras_kd.text.SentencePieceEncoder(proto, LENGTH)
    texts = [*TEXTS[:6], "😀 zebra", ""]
    np.testing.assert_array_equal(encoder(texts)["token_ids"], by_sentencepiece(proto, texts, LENGTH, ""))
    with pytest.raises(ValueError, match="type unigram without byte pieces to run in LiteRT"):
        encoder.is_in_litert()


@pytest.mark.parametrize("prefix", ["query: ", "query:"])
def test_an_encoder_lives_on_when_seeds_are_set(prefix):
    """TensorFlow drops the resource in which tensorflow-text's older tokenizer keeps its model."""
    encoder = keras_kd.text.SentencePieceEncoder(piece_proto(), LENGTH, prefix=prefix)
    expected = encoder(TEXTS)["token_ids"].numpy()
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(encoder(TEXTS)["token_ids"], expected)
    keras.utils.clear_session()
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(100).map(encoder)
    np.testing.assert_array_equal(next(iter(dataset))["token_ids"], expected)


def test_wordpiece_cuts_text_as_keras_hub_does():
    keras_hub = pytest.importorskip("keras_hub")
    texts = sentences(10)
    words = {word for text in texts for word in text.split() if word.isalpha()}
    characters = sorted({character for word in words for character in word})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocabulary += sorted(words - set(characters))[::3]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary)
    encoder = keras_kd.text.WordPieceEncoder(vocabulary, 512)
    given = encoder(texts)["token_ids"].numpy()
    different = [
        text
        for text, ids in zip(texts, given, strict=True)
        if ids[ids != 0][1:-1].tolist() != np.asarray(tokenizer(text)).tolist()
    ]
    assert len(different) <= 0.05 * len(texts), different[:5]


# --- Bad input --------------------------------------------------------------------------------------------------------

ENCODER = keras_kd.text.ByteEncoder(LENGTH)


def bytes_student(**options):
    return student_for(ENCODER, **options)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(keras.ops.cast(x, "float32"))


def built_subclassed():
    model = Subclassed()
    model(np.zeros((1, LENGTH), "uint8"))
    return model


BAD = {
    "subclassed student": lambda: (built_subclassed(), ENCODER, None, ValueError, "functional or sequential"),
    "no student": lambda: ("student", ENCODER, None, TypeError, "keras.Model"),
    "no function": lambda: (bytes_student(), "bert", None, TypeError, "layer or function"),
    "another length": lambda: (
        bytes_student(),
        keras_kd.text.ByteEncoder(8),
        None,
        ValueError,
        r"shape \(None, 16\) for the student, got shape \(2, 8\)",
    ),
    "one tensor for two inputs": lambda: (
        student_for(ENCODERS["prefix"]()),
        ENCODER,
        None,
        ValueError,
        r"\['padding_mask', 'token_ids'\], got one tensor",
    ),
    "an input is missing": lambda: (
        student_for(ENCODERS["sentencepiece"]()),
        ENCODERS["prefix"](),
        None,
        ValueError,
        r"without \['segment_ids'\]",
    ),
    "too few labels": lambda: (bytes_student(), None, ["a", "b"], ValueError, "3 different strings.*got 2"),
    "a label twice": lambda: (bytes_student(), None, ["a", "b", "a"], ValueError, "3 different strings"),
    "labels that are numbers": lambda: (bytes_student(), None, [0, 1, 2], TypeError, "list of str"),
    "one unit": lambda: (bytes_student(units=1), None, ["a"], ValueError, "two classes or more"),
    "a sigmoid": lambda: (bytes_student(last="sigmoid"), None, LABELS, ValueError, "ends in 'sigmoid'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case, tmp_path):
    student, tokenizer, labels, error, message = BAD[case]()
    with pytest.raises(error, match=message):
        end_to_end_model(student, tokenizer, labels)
    if case != "no student":
        with pytest.raises(error, match=message):
            export(student, tmp_path / "a", tokenizer=tokenizer, labels=labels, compare_with=TEXTS)
        assert not list(tmp_path.iterdir())


def test_a_prefix_that_litert_cannot_join():
    encoder = keras_kd.text.SentencePieceEncoder(piece_proto(), LENGTH, prefix="query:")
    with pytest.raises(ValueError, match="prefix that ends in a space"):
        encoder.is_in_litert()
    encoder = keras_kd.text.SentencePieceEncoder(piece_proto(), 3, prefix="query: ")
    with pytest.raises(ValueError, match=r"a length > \d+, for the prefix"):
        encoder.is_in_litert()


@pytest.mark.parametrize(
    ("vocabulary", "error", "message"),
    [
        (["[PAD]", "[UNK]", "[CLS]"], ValueError, r"\['\[SEP\]'\] missing"),
        ([*WORD_PIECES, "ein"], ValueError, r"\['ein'\] more than once"),
        ({"a": 1}, TypeError, "list of str"),
    ],
)
def test_a_vocabulary_that_is_none(vocabulary, error, message):
    with pytest.raises(error, match=message):
        keras_kd.text.WordPieceEncoder(vocabulary, 8)
