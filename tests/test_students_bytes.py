"""Students that start from nothing: bytes in, a size as wanted."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd import losses, students
from keras_kd.text import ByteEncoder

TEXTS = [
    "a tea",
    "Ein Maß Öl",
    "чай с лимоном",
    "茶が好き",
    "ชา",
    "नमस्ते",
    "🍵🍵",
    "",
    " ",
    "x",
    "e\u0301a",
    "NUL\x00behind",
]
LENGTH = 48


def n_grams(text, order):
    """The n-grams of this many bytes that are made of whole characters, in plain Python."""
    lowered = "".join(c.lower() if c.isascii() else c for c in text.replace("\x00", " "))
    if not lowered:
        return []
    characters = [c.encode() for c in f" {lowered} "]
    joined = [b"".join(characters[i:j]) for i, j in itertools.combinations(range(len(characters) + 1), 2)]
    return sorted(gram for gram in joined if len(gram) == order)


def polynomial_hash(gram, buckets):
    value = 1
    for byte in gram:
        value = (value * 251 + byte) % 8_388_593
    return value % buckets


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("orders", [(1,), (2, 3), (3, 4, 6, 8, 9, 12)])
def test_the_ids_are_the_hashes_of_the_n_grams_of_whole_characters(text, orders):
    ids, mask = students.HashedNGrams(5000, orders)(ByteEncoder(LENGTH)([text]))
    found = sorted(np.asarray(ids)[np.asarray(mask) == 1].tolist())
    expected = sorted(polynomial_hash(gram, 5000) for order in orders for gram in n_grams(text, order))
    assert found == expected


def test_other_lengths_of_padding_give_the_same_vector():
    short, long = (students.ngram_student(4, 500, 8, length=length) for length in (LENGTH, 90))
    long.set_weights(short.get_weights())
    outputs = [model.predict(ByteEncoder(model.input.shape[1])(TEXTS), verbose=0) for model in (short, long)]
    np.testing.assert_allclose(*outputs, atol=1e-6)


def test_a_byte_cnn_does_not_see_the_padding():
    keras.utils.set_random_seed(0)
    model = students.byte_cnn(4, 16, length=LENGTH)
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    other = students.byte_cnn(4, 16, length=120)
    other.set_weights(model.get_weights())
    outputs = [m.predict(ByteEncoder(m.input.shape[1])(TEXTS), verbose=0) for m in (model, other)]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    assert np.isfinite(outputs[0]).all()


@pytest.mark.parametrize("family", ["ngrams", "cnn"])
@pytest.mark.parametrize("size_mb", [0.2, 1, 3, 9.5])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_the_student_fills_its_size(family, size_mb, bits):
    student = students.student_for(size_mb, 7, family=family, bits=bits)
    size = student.count_params() * bits / 8e6
    assert 0.75 * size_mb < size <= size_mb
    assert student.output_shape == (None, 7)


@pytest.mark.parametrize("family", ["ngrams", "cnn"])
def test_it_is_the_same_when_loaded_and_in_litert_without_custom_operations(family, tmp_path):
    keras.utils.set_random_seed(0)
    student = students.student_for(0.05, 3, family=family, length=LENGTH)
    student.set_weights([weight + 0.05 for weight in student.get_weights()])
    x = ByteEncoder(LENGTH)(TEXTS).numpy()
    expected = student.predict(x, verbose=0)
    student.save(tmp_path / "student.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "student.keras").predict(x, verbose=0), expected)
    student.export(tmp_path / "student.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(tmp_path / "student.tflite"))  # with built-in operations alone
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert into["dtype"] == np.uint8
    for row, want in zip(x, expected, strict=True):
        interpreter.set_tensor(into["index"], row[None])
        interpreter.invoke()
        np.testing.assert_allclose(interpreter.get_tensor(out["index"])[0], want, atol=1e-5)


def test_it_learns_languages_from_a_teacher_that_reads_the_same_bytes():
    keras.utils.set_random_seed(0)
    words = {0: ["tea", "house", "river", "the"], 1: ["чай", "дом", "река", "это"], 2: ["茶", "家", "川", "これ"]}
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    texts = [" ".join(generator.choice(words[label], 3)) for label in labels]
    x = ByteEncoder(LENGTH)(texts).numpy()
    logits = keras.utils.to_categorical(labels, 3) * 8.0
    student = students.ngram_student(3, 1000, 8, length=LENGTH)
    distiller = keras_kd.Distiller(None, student, losses.SoftLabels(1.0))
    distiller.compile(keras.optimizers.Adam(0.05))
    batch = keras_kd.PrecomputedBatch(x[:200], logits[:200].astype("float32"), {})
    distiller.fit(tf.data.Dataset.from_tensor_slices((batch,)).batch(50), epochs=8, verbose=0)
    assert (student.predict(x[200:], verbose=0).argmax(-1) == labels[200:]).mean() > 0.95


def test_bytes_are_those_of_the_string():
    strings = [b"\xff\xfe broken", "née".encode(), b""]
    rows = ByteEncoder(6)(tf.constant(strings)).numpy()
    assert [bytes(row) for row in rows] == [b"\xff\xfe bro", b"n\xc3\xa9e\x00\x00", b"\x00" * 6]
    assert ByteEncoder(6)(tf.constant([], tf.string)).shape == (0, 6)
    assert ByteEncoder(6)(tf.constant([["a"], ["b"]])).shape == (2, 6)
    model = keras.Sequential([keras.Input((1,), dtype="string"), ByteEncoder(6)])
    assert model.output_shape == (None, 6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="length must be >= 1"):
        ByteEncoder(0)
    with pytest.raises(ValueError, match="buckets must be <= 8,388,593"):
        students.HashedNGrams(9_000_000)
    with pytest.raises(ValueError, match="orders must hold"):
        students.HashedNGrams(10, [])
    with pytest.raises(TypeError, match="orders must be a whole number"):
        students.HashedNGrams(10, [2.5])
    with pytest.raises(ValueError, match="blocks must be <= 8"):
        students.byte_cnn(3, 8, blocks=9)
    with pytest.raises(ValueError, match="family must be one of"):
        students.student_for(3, 7, family="transformer")
    with pytest.raises(ValueError, match="bits must be one of"):
        students.student_for(3, 7, bits=2)
    for size in (0.001, 500):
        with pytest.raises(
            ValueError, match=r"size_mb must be from 0\.0\d+ to \d+ for the family 'ngrams' with 7 units"
        ):
            students.student_for(size, 7)
    with pytest.raises(ValueError, match="size_mb must be > 0"):
        students.student_for(0, 7)
