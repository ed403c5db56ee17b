"""Decoding of KerasHub's language models: with KerasHub's cache as without one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.sequences import BeamSearch, Generator, Sampling

keras_hub = pytest.importorskip("keras_hub", reason="KerasHub belongs to the extra students")
models = keras_hub.models

PROMPTS = np.array([[3, 4, 5, 6], [7, 8, 0, 0]])
SOURCES = {"encoder_token_ids": np.array([[3, 4, 5, 2], [5, 2, 0, 0]])}
END = 2


def enlarged(model):
    """The model with larger weights, so that its tokens are not all as likely."""
    rng = np.random.default_rng(0)
    model.set_weights([weights + rng.normal(0, 0.1, weights.shape) for weights in model.get_weights()])
    return model


def gpt2():
    return enlarged(models.GPT2CausalLM(models.GPT2Backbone(12, 2, 2, 8, 16, dropout=0.0, max_sequence_length=16)))


def gemma():
    options = {"vocabulary_size": 12, "num_layers": 2, "num_query_heads": 2, "num_key_value_heads": 1}
    sizes = {"hidden_dim": 8, "intermediate_dim": 16, "head_dim": 4}
    return enlarged(models.GemmaCausalLM(models.GemmaBackbone(**options, **sizes)))


def bart(blocks=2):
    return enlarged(
        models.BartSeq2SeqLM(models.BartBackbone(12, blocks, 2, 8, 16, dropout=0.0, max_sequence_length=16))
    )


def t5():
    return enlarged(models.T5Seq2SeqLM(models.T5Backbone(12, 2, 2, 8, 16, dropout=0.0)))


CASES = {
    "gpt2": (gpt2, {"token_ids": PROMPTS}, {}),
    "gemma": (gemma, {"token_ids": PROMPTS}, {}),
    "bart with a prompt": (bart, {**SOURCES, "decoder_token_ids": PROMPTS}, {}),
    "t5": (t5, SOURCES, {"start_id": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_cached_as_not_cached(case):
    make, inputs, options = CASES[case]
    model, search = make(), BeamSearch(beams=6, n_best=6)
    sampler = model.sampler
    cached = Generator(model, search, max_length=5, end_id=END, **options)(inputs)
    assert model.sampler is sampler
    inputs = dict(inputs)
    if "encoder_token_ids" in inputs:
        inputs["encoder_padding_mask"] = inputs["encoder_token_ids"] > 0
    expected = Generator(model, search, max_length=5, end_id=END, use_cache=False, **options)(inputs)
    np.testing.assert_array_equal(cached.ids, expected.ids)
    np.testing.assert_allclose(cached.scores, expected.scores, rtol=1e-4)
    np.testing.assert_array_equal(cached.lengths, expected.lengths)
    assert np.ptp(cached.scores, axis=0).all(), "both examples alike"


def test_as_keras_hub_generates():
    model = gpt2()
    model.compile(sampler="greedy")
    padded = np.pad(PROMPTS, [[0, 0], [0, 5]])
    expected = model.generate_step({"token_ids": tf.constant(padded), "padding_mask": tf.constant(padded > 0)})[
        "token_ids"
    ]
    ids = Generator(model, max_length=5, end_id=11)({"token_ids": PROMPTS}).ids[:, 0].numpy()
    np.testing.assert_array_equal(ids[0], expected[0, 4:])


def test_with_xla_and_sampling():
    model = bart(blocks=1)
    generate = Generator(model, Sampling(samples=3), max_length=4, start_id=1, end_id=END, jit_compile=True)
    hypotheses = generate(SOURCES)
    assert hypotheses.ids.shape == (2, 3, 4) and np.isfinite(hypotheses.scores).all()


def test_more_positions_than_the_model_has():
    with pytest.raises(ValueError, match="the model's 16 positions, got 17"):
        Generator(gpt2(), max_length=13, end_id=END)({"token_ids": PROMPTS})
    with pytest.raises(ValueError, match="the model's 16 positions, got 20"):
        sources = {"encoder_token_ids": np.ones((1, 20), "int32")}
        Generator(bart(), max_length=5, start_id=1, end_id=END)(sources)


def test_keras_hub_keeps_its_dtype_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    hypotheses = Generator(bart(blocks=1), BeamSearch(), max_length=3, start_id=1, end_id=END)(SOURCES)
    assert [tensor.dtype for tensor in hypotheses] == [tf.int32, tf.float32, tf.int32]
