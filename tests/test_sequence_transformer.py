"""The Transformer of `keras_kd.sequences`: its values, masks, steps and files, and its part in a distiller."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd._keras_private import get_mask
from keras_kd.sequences import StepModel, Transformer
from keras_kd.sequences.transformer import SinusoidalPositions

SMALL = {"layers": 2, "decoder_layers": 1, "width": 8, "heads": 2, "feed_forward": 16}
X = {
    "source_ids": np.array([[3, 4, 5, 2], [5, 2, 0, 0]]),
    "target_ids": np.array([[1, 3, 4, 6, 3], [1, 5, 0, 0, 0]]),
}


@pytest.fixture(scope="module")
def model():
    return Transformer(9, **SMALL)


def test_parameters_of_the_published_size():
    """Of Transformer-Tiny: 4 + 4 layers, 128 wide, 256 in the feed-forward networks; one matrix of embeddings."""
    model, width, hidden = Transformer(10_000), 128, 256
    attention, norm = 4 * (width * width + width), 2 * width
    feed_forward = 2 * width * hidden + width + hidden
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    assert model.count_params() == 10_000 * width + 4 * encoder + 4 * decoder + 2 * norm
    assert model.count_params() == pytest.approx(2.6e6, rel=0.02)


def test_sinusoidal_positions():
    encoding = SinusoidalPositions()(np.zeros((1, 3, 4), "float32"), start=5)[0]
    expected = [[np.sin(p), np.sin(p / 100), np.cos(p), np.cos(p / 100)] for p in (5, 6, 7)]
    np.testing.assert_allclose(encoding, expected, atol=1e-6)


def test_steps_give_the_logits_of_the_whole_sequence(model):
    assert isinstance(model, StepModel)
    expected = model(X).numpy()
    context, state = model.start_decoding({"source_ids": tf.constant(X["source_ids"])}, 5)
    for position in range(5):
        ids = tf.constant(X["target_ids"][:, position], "int32")
        logits, state = model.decode_step(ids, tf.constant(position), context, state)
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-5)


def test_padding_of_the_source_and_later_tokens_change_nothing(model):
    expected = model(X).numpy()
    longer = {"source_ids": np.pad(X["source_ids"], [[0, 0], [0, 3]]), "target_ids": X["target_ids"]}
    np.testing.assert_allclose(model(longer), expected, atol=1e-5)
    later = {**X, "target_ids": np.concatenate([X["target_ids"][:, :3], [[7, 7], [7, 7]]], axis=1)}
    np.testing.assert_allclose(model(later)[:, :3], expected[:, :3], atol=1e-5)
    other = {**X, "source_ids": X["source_ids"][:, ::-1]}
    assert np.abs(model(other) - expected)[0].max() > 1e-3, "the order of the source counts"


def test_losses_leave_padding_out(model):
    labels = np.array([[3, 4, 6, 3, 2], [5, 2, 0, 0, 0]])
    np.testing.assert_array_equal(get_mask(model(X)), X["target_ids"] > 0)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = model.evaluate(X, labels, verbose=0)
    logits = model(X).numpy()
    values = [-tf.nn.log_softmax(logits)[row, place, labels[row, place]] for row, place in np.argwhere(labels)]
    assert len(values) == 7
    assert found == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_saved_model_is_the_same(policy, tmp_path):
    model = Transformer(9, dropout=0.2, dtype=policy, name="translator", **SMALL)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is Transformer
    assert loaded.get_config() == model.get_config()
    assert loaded.decoder_blocks[0].compute_dtype == model.compute_dtype
    np.testing.assert_array_equal(loaded(X), model(X))


def test_a_shallow_student_learns_in_a_distiller(model):
    student = Transformer(9, dropout=0.0, **{**SMALL, "layers": 1})
    distiller = keras_kd.Distiller(model, student, [keras_kd.losses.SoftLabels()], soft_weight=1.0, hard_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    history = distiller.fit(X, np.zeros((2, 5), "int32"), epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocabulary_size": 1}, ValueError, "vocabulary_size must be >= 2"),
        ({"layers": 0}, ValueError, "layers must be >= 1"),
        ({"decoder_layers": 0}, ValueError, "decoder_layers must be >= 1"),
        ({"width": 9, "heads": 3}, ValueError, "width must be even"),
        ({"width": 8, "heads": 3}, ValueError, "a multiple of heads"),
        ({"heads": 2.0}, TypeError, "heads must be a whole number"),
        ({"dropout": 1.0}, ValueError, "dropout must be < 1"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        Transformer(**{"vocabulary_size": 9, **options})
