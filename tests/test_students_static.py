"""The static student: a vector per piece, averaged."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_kd
from keras_kd import losses, students

WORDS = ["tea", "the", "чай", "##s", "red"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PAD, CLS, SEP = 0, 2, 3


@pytest.fixture(scope="module")
def tokenizer():
    return keras_hub.models.BertTokenizer(PIECES)


def make_teacher(unit_vectors=True, pieces=10):
    keras.utils.set_random_seed(1)
    backbone = keras_hub.models.BertBackbone(
        pieces, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.0
    )
    vector = backbone.output["sequence_output"][:, 0]
    return keras.Model(backbone.input, keras.layers.UnitNormalization()(vector) if unit_vectors else vector)


def inputs(*rows):
    ids = keras.utils.pad_sequences(rows, padding="post", value=PAD)
    mask = keras.utils.pad_sequences([[1] * len(row) for row in rows], padding="post")
    return {"token_ids": ids, "padding_mask": mask}


def read_by(teacher, rows):
    x = inputs(*rows)
    return teacher.predict({**x, "segment_ids": np.zeros_like(x["token_ids"])}, verbose=0)


@pytest.mark.parametrize("unit_vectors", [True, False])
def test_at_full_width_a_piece_has_the_vector_that_the_teacher_gives_it_as_a_text(tokenizer, unit_vectors):
    teacher = make_teacher(unit_vectors)
    student, _ = students.static_student(teacher, tokenizer, 8)
    expected = read_by(teacher, [[CLS, piece, SEP] for piece in range(len(PIECES))])
    found = student.predict(inputs(*[[piece] for piece in range(len(PIECES))]), verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_prefix_is_read_before_each_piece(tokenizer):
    teacher = make_teacher()
    student, _ = students.static_student(teacher, tokenizer, 8, prefix="the red")
    expected = read_by(teacher, [[CLS, 6, 9, piece, SEP] for piece in range(len(PIECES))])
    found = student.predict(inputs(*[[piece] for piece in range(len(PIECES))]), verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_text_is_the_weighted_mean_of_its_pieces_and_padding_is_none(tokenizer):
    teacher = make_teacher(unit_vectors=False)
    counts = np.array([0, 0, 0, 0, 0, 5, 90, 1, 0, 2])
    student, _ = students.static_student(teacher, tokenizer, 8, counts=counts)
    share = (counts + 1) / (counts + 1).sum()
    weights = 1e-3 / (1e-3 + share)
    alone = read_by(teacher, [[CLS, piece, SEP] for piece in range(len(PIECES))])
    for row in ([5, 6], [6, 6, 9, 7], [8]):
        expected = np.average(alone[row], axis=0, weights=weights[row])
        found = student.predict(inputs(row, [5] * 6), verbose=0)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fewer_components_are_those_with_the_most_variance(tokenizer):
    teacher = make_teacher(unit_vectors=False)
    alone = read_by(teacher, [[CLS, piece, SEP] for piece in range(len(PIECES))])
    singular = np.linalg.svd(alone - alone.mean(0), compute_uv=False)
    student, transfer = students.static_student(teacher, tokenizer, 3)
    found = student.predict(inputs(*[[piece] for piece in range(len(PIECES))]), verbose=0)
    np.testing.assert_allclose(np.square(found - alone).sum(), np.square(singular[3:]).sum(), rtol=1e-3)
    kept = 100 * np.square(singular[:3]).sum() / np.square(singular).sum()
    assert f"{kept:.1f} % of the variance" in transfer.rows[0].how


def test_it_learns_from_the_live_teacher_and_is_the_same_when_loaded(tokenizer, tmp_path):
    teacher = make_teacher()
    student, _ = students.static_student(teacher, tokenizer, 4)
    generator = np.random.default_rng(0)
    student.set_weights([generator.normal(size=weight.shape) for weight in student.get_weights()])
    x = inputs([CLS, 5, 6, SEP], [CLS, 7, SEP], [CLS, 9, 5, SEP], [CLS, 8, 8, 6, SEP])
    x["segment_ids"] = np.zeros_like(x["token_ids"])
    distiller = keras_kd.Distiller(teacher, student, losses.CosineFeatures())
    distiller.compile(keras.optimizers.Adam(0.05))
    history = distiller.fit(x, epochs=30, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    del x["segment_ids"]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), student.predict(x, verbose=0))


def test_a_text_without_pieces_gives_finite_numbers():
    layer = students.WeightedMean(5, 3)
    np.testing.assert_array_equal(layer(np.zeros((2, 4), int), np.zeros((2, 4), int)), np.zeros((2, 3)))


def test_the_teacher_is_unchanged(tokenizer):
    teacher = make_teacher()
    before = [np.array(weight) for weight in teacher.weights]
    students.static_student(teacher, tokenizer, 4)
    for weight, old in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_bad_input_is_named(tokenizer):
    teacher = make_teacher()
    with pytest.raises(ValueError, match=r"width must be <= 8"):
        students.static_student(teacher, tokenizer, 9)
    with pytest.raises(ValueError, match=r"counts must be one number for each of the 10 pieces"):
        students.static_student(teacher, tokenizer, 4, counts=np.ones(11))
    with pytest.raises(TypeError, match="tokenizer must be"):
        students.static_student(teacher, 3, 4)
    tokens = keras.Model(teacher.input, teacher.layers[-2].input)
    with pytest.raises(ValueError, match="one vector per text"):
        students.static_student(tokens, tokenizer, 4)
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="token_ids"):
        students.static_student(dense, tokenizer, 2)
    with pytest.raises(ValueError, match="10 pieces"):
        students.static_student(make_teacher(pieces=7), tokenizer, 4)
