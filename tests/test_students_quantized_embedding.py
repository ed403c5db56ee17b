"""Embeddings in codes, by product quantization."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd import losses, students


def make_backbone(pieces=400, width=16):
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(pieces, 2, 2, width, 32, dropout=0.0, max_sequence_length=12)
    backbone.token_embedding.set_weights([np.random.default_rng(0).normal(size=(pieces, width))])
    return backbone


def ids_for(model, pieces=400, rows=5):
    ids = np.random.default_rng(1).integers(0, pieces, (rows, 7)).astype("int32")
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}


@pytest.mark.parametrize("codes", [1, 4])
def test_a_table_whose_parts_have_few_values_is_kept_whole(codes):
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(100, 16 // codes))[generator.integers(0, 100, 400)] for _ in range(codes)]
    backbone = make_backbone()
    backbone.token_embedding.set_weights([np.concatenate(parts, axis=1)])
    student, transfer = students.quantize_embedding(backbone, codes)
    x = ids_for(backbone)
    expected, found = backbone.predict(x, verbose=0), student.predict(x, verbose=0)
    np.testing.assert_allclose(found["sequence_output"], expected["sequence_output"], atol=1e-4)
    (row,) = [row for row in transfer.rows if row.layer_class == "ProductQuantizedEmbedding"]
    assert row.how == f"{codes} codes per piece, 100.0 % kept"
    assert all(row.teacher for row in transfer.rows)


def test_more_codes_are_nearer_to_the_table_and_frequent_pieces_are_nearer_than_rare_ones():
    backbone = make_backbone(pieces=2000)
    table = backbone.token_embedding.get_weights()[0]
    counts = np.where(np.arange(2000) < 250, 1000, 0)
    errors = {}
    for codes in (2, 4, 8):
        student, _ = students.quantize_embedding(backbone, codes, counts=counts)
        vectors = student.get_layer("token_embedding")(np.arange(2000)).numpy()
        errors[codes] = np.square(vectors - table).sum(axis=1)
    assert errors[2].mean() > 1.5 * errors[4].mean() > 3 * errors[8].mean()
    assert all(2 * error[:250].mean() < error[250:].mean() for error in errors.values())


def test_the_share_kept_is_that_of_the_weighted_squares():
    backbone = make_backbone()
    table = backbone.token_embedding.get_weights()[0]
    counts = np.arange(400)
    student, transfer = students.quantize_embedding(backbone, 2, counts=counts)
    vectors = student.get_layer("token_embedding")(np.arange(400)).numpy()
    squares = [((counts + 1) * np.square(values).sum(axis=1)).sum() for values in (table - vectors, table)]
    (row,) = [row for row in transfer.rows if row.layer_class == "ProductQuantizedEmbedding"]
    assert f"{100 * (1 - squares[0] / squares[1]):.1f} % kept" in row.how


def test_training_moves_the_centroids_and_leaves_the_codes():
    backbone = make_backbone()
    encoder = keras.Model(backbone.input, backbone.output["sequence_output"][:, 0])
    student, _ = students.quantize_embedding(encoder, 4)
    layer = student.get_layer("token_embedding")
    before = [np.array(weight) for weight in (layer.centroids, layer.code_table)]
    distiller = keras_kd.Distiller(encoder, student, losses.CosineFeatures())
    distiller.compile(keras.optimizers.Adam(0.01))
    history = distiller.fit(ids_for(encoder, rows=32), epochs=15, verbose=0).history["loss"]
    assert history[-1] < history[0] / 3
    assert np.abs(np.array(layer.centroids) - before[0]).max() > 1e-3
    np.testing.assert_array_equal(layer.code_table, before[1])


def test_a_tied_last_layer_gives_the_products_with_the_table():
    layer = students.ProductQuantizedEmbedding(300, 8, codes=4)
    vectors = layer(np.arange(300)).numpy()
    states = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    np.testing.assert_allclose(layer(states, reverse=True), states @ vectors.T, atol=1e-5)
    assert layer.compute_output_spec(keras.KerasTensor((2, 3, 8)), reverse=True).shape == (2, 3, 300)


def test_the_id_0_is_masked_where_the_teacher_masks_it():
    inputs = keras.Input((5,), dtype="int32")
    teacher = keras.Model(inputs, keras.layers.LSTM(3)(keras.layers.Embedding(300, 8, mask_zero=True)(inputs)))
    student, _ = students.quantize_embedding(teacher, 8)
    x = np.array([[4, 5, 0, 0, 0], [4, 5, 9, 0, 0]])
    first, padded = student.predict(x[:, :], verbose=0)
    assert np.abs(first - padded).max() > 1e-6
    np.testing.assert_allclose(student(np.array([[4, 5, 0, 0, 0]]))[0], first, atol=1e-6)
    found, expected = (model.predict(x, verbose=0) for model in (student, teacher))
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_it_is_the_same_when_loaded_and_a_litert_file_holds_the_codes_as_bytes(tmp_path):
    backbone = make_backbone(pieces=8_000)
    encoder = keras.Model(backbone.input, backbone.output["sequence_output"][:, 0])
    student, _ = students.quantize_embedding(encoder, 4)
    x = {key: value[:1] for key, value in ids_for(encoder, 8_000).items()}
    expected = student.predict(x, verbose=0)
    student.save(tmp_path / "student.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "student.keras").predict(x, verbose=0), expected)
    keras_kd.export(student, tmp_path / "student.tflite", compare_with=x)
    layer = student.get_layer("token_embedding")
    others = sum(int(np.prod(w.shape)) * 4 for w in student.weights if w is not layer.code_table)
    assert (tmp_path / "student.tflite").stat().st_size < 8_000 * 4 + others + 60_000
    runtime = tf.lite.Interpreter(str(tmp_path / "student.tflite"))
    assert not any("Flex" in op["op_name"] for op in runtime._get_ops_details())


def test_bad_input_is_named():
    backbone = make_backbone()
    with pytest.raises(ValueError, match="codes must divide output_dim = 16, got 5"):
        students.quantize_embedding(backbone, 5)
    with pytest.raises(TypeError, match="codes must be a whole number"):
        students.quantize_embedding(backbone, 2.0)
    with pytest.raises(ValueError, match="must have 256 rows or more, got 200"):
        students.quantize_embedding(make_backbone(pieces=200), 4)
    with pytest.raises(ValueError, match="counts must be one number for each of the 400 rows"):
        students.quantize_embedding(backbone, 4, counts=np.ones((3, 3)))
    with pytest.raises(ValueError, match="embedding must name one"):
        students.quantize_embedding(backbone, 4, embedding="nothing")


# An encoder for a size ------------------------------------------------------------------------------------------------


def word_tokenizer():
    """1,000 pieces: words such as w17, and the characters that spell them."""
    digits = [f"{before}{digit}" for before in ("", "##") for digit in range(10)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w", "##w", *digits]
    return keras_hub.models.BertTokenizer(pieces + [f"w{number}" for number in range(10, 983)])


def compressed(size_mb, **options):
    """The student of one layer in 4 codes per piece, and its tokenizer: 800 words, those with odd numbers twice."""
    texts = {"en": [f"w{number}" for number in range(10, 810) for _ in range(1 + number % 2)]}
    arguments = {"texts": texts, "layers": 1, "codes": 4} | options
    return students.compress_encoder(make_backbone(pieces=1000), word_tokenizer(), size_mb=size_mb, **arguments)


@pytest.mark.parametrize(("size_mb", "pieces"), [(0.0105, 827), (0.00925, 600), (0.0085, 413)])
def test_an_encoder_keeps_as_many_pieces_as_there_is_room_for(size_mb, pieces):
    """4 bytes a piece; 27 pieces always stay, and 800 are used."""
    student, tokenizer = compressed(size_mb)
    assert tokenizer.vocabulary_size() == pieces
    assert student.count_params() <= 1e6 * size_mb and (pieces == 827 or student.count_params() > 1e6 * size_mb - 4)
    words = set(tokenizer.get_vocabulary())
    assert pieces < 450 or all(f"w{number}" in words for number in range(11, 810, 2))
    assert [layer.name for layer in student.layers if "transformer" in layer.name] == ["transformer_layer_0"]


def test_fewer_pieces_than_centroids_need_no_codes():
    student, tokenizer = compressed(1.0, texts=["w11 w12 w13"])
    assert tokenizer.vocabulary_size() == 16  # 5 special ones, w, 1, 2 and 3 with and without ##, and 3 words
    assert student.get_layer("token_embedding").get_weights()[0].shape == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_mb": 0.001}, r"size_mb must be > 0\.01 for 1 layers of '.*' and 4 codes"),
        ({"size_mb": 0}, "size_mb must be > 0"),
        ({"size_mb": 1.0, "codes": 5}, "codes must divide output_dim = 16"),
        ({"size_mb": 1.0, "layers": 3}, "3"),
    ],
)
def test_an_encoder_that_cannot_be_so_small(options, message):
    with pytest.raises(ValueError, match=message):
        compressed(**options)


def test_a_size_without_room_for_the_characters():
    alphabet = [chr(0x4E00 + number) for number in range(400)]
    tokenizer = keras_hub.models.BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *alphabet])
    backbone, texts = make_backbone(pieces=405), ["".join(alphabet)]
    with pytest.raises(ValueError, match=r"size_mb must be larger: 0.008 leaves room for 288 pieces. keep must be"):
        students.compress_encoder(backbone, tokenizer, texts, 0.008, layers=1, codes=4)
