"""What is read from inside a model is what the layer computed, in any kind of model, and the model stays as it was."""

import threading

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model

from keras_kd._keras_private import get_mask
from keras_kd.outputs.hooks import NOT_ATTENDED, Hook
from keras_kd.outputs.reader import OutputReader

X = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
TOKENS = np.array([[3, 1, 4, 0, 0], [1, 5, 9, 2, 6]])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = dense_model(6, 5)
        self.last = keras.layers.Dense(3, name="last")

    def call(self, inputs):
        return self.last(self.inner(inputs))


def read(model, *hooks, inputs=X, training=False, role="student"):
    outputs = OutputReader(model, hooks, role=role)(inputs, training)
    return outputs.layers


def hooked_layers(model):
    return [layer.name for layer in model._flatten_layers() if {"call", "_compute_attention"} & set(vars(layer))]


def nested():
    inputs = keras.Input((8,))
    backbone = dense_model(6, 5, name="backbone")
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(backbone(inputs))), backbone


# Layers -------------------------------------------------------------------------------------------------------------


def test_layers_of_nested_models_are_read_by_name_or_by_path():
    model, backbone = nested()
    expected = np.maximum(X @ backbone.layers[0].get_weights()[0] + backbone.layers[0].get_weights()[1], 0)
    captured = read(model, Hook("hidden_0"), Hook("backbone/hidden_0"))
    for hook in ("hidden_0", "backbone/hidden_0"):
        np.testing.assert_allclose(captured[Hook(hook)], expected, rtol=1e-5)


def test_layers_of_subclassed_models_are_read():
    model = Subclassed()
    output = model(X)
    captured = read(model, Hook(f"{model.inner.name}/hidden_0"), Hook("last"))
    np.testing.assert_array_equal(captured[Hook("last")], output)
    assert OutputReader(model, [Hook("last")], role="student").symbolic() is None


def test_the_input_of_a_layer_is_read():
    model = dense_model(6, 5, 3)
    layers = read(model, Hook("hidden_1", "input"), Hook("hidden_0"))
    np.testing.assert_array_equal(layers[Hook("hidden_1", "input")], layers[Hook("hidden_0")])


def test_the_input_of_an_embedding_used_both_ways_is_what_it_makes_logits_of():
    tokens = keras.Input((None,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(10, 4, name="embedding")
    model = keras.Model(tokens, embedding(keras.layers.Dense(4, name="hidden")(embedding(tokens)), reverse=True))
    layers = read(model, Hook("embedding", "input"), Hook("hidden"), inputs=TOKENS)
    np.testing.assert_array_equal(layers[Hook("embedding", "input")], layers[Hook("hidden")])


def test_static_shapes_are_known_of_functional_models_before_any_batch():
    model, _ = nested()
    symbolic = OutputReader(model, [Hook("hidden_0")], role="student").symbolic()
    assert symbolic.layers[Hook("hidden_0")].shape == (None, 6)
    assert symbolic.prediction.shape == (None, 3)


def test_a_name_that_two_layers_have_must_be_told_apart_by_its_path():
    inputs = keras.Input((8,))
    outputs = [dense_model(6, 5, name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, keras.layers.Concatenate()(outputs))
    with pytest.raises(ValueError, match=r"could be any of \['left/hidden_0', 'right/hidden_0'\] of the teacher"):
        read(model, Hook("hidden_0"), role="teacher")
    assert read(model, Hook("right/hidden_0"))[Hook("right/hidden_0")].shape == (4, 6)


def test_a_layer_that_gives_several_tensors_is_refused():
    inputs = keras.Input((5, 4))
    outputs, *_ = keras.layers.LSTM(3, return_state=True, name="lstm")(inputs)
    with pytest.raises(ValueError, match=r"student_layer='lstm': gives several tensors.*gives one tensor"):
        read(keras.Model(inputs, outputs), Hook("lstm"))


def test_a_layer_that_is_not_part_of_the_pass_is_refused_when_the_model_runs():
    model = Subclassed()
    model.unused = keras.layers.Dense(3, name="unused")
    model(X)
    with pytest.raises(ValueError, match="student_layer='unused' is not called in the student"):
        read(model, Hook("unused"))


def test_models_are_left_as_they_were_also_after_an_error():
    model, _ = nested()
    reader = OutputReader(model, [Hook("hidden_0")], role="student")
    reader(X, training=True)
    assert hooked_layers(model) == []
    with pytest.raises(ValueError):
        reader(np.zeros((4, 9)), training=True)
    assert hooked_layers(model) == []


def test_threads_that_read_one_model_at_the_same_time_hear_their_own_pass():
    """As the replicas of a mirrored strategy do: each in its thread, over the same layers."""
    meeting_point, captured = threading.Barrier(2, timeout=60), {}

    class Meeting(keras.layers.Layer):
        def call(self, inputs):
            if threading.current_thread() is not threading.main_thread():
                meeting_point.wait()
            return inputs

    inputs, hidden = keras.Input((8,)), keras.layers.Dense(6, name="hidden_0")
    model = keras.Model(inputs, Meeting()(hidden(inputs)))
    reader = OutputReader(model, [Hook("hidden_0")], role="student")

    def run(scale):
        captured[scale] = reader(X * scale, training=False).layers[Hook("hidden_0")]

    threads = [threading.Thread(target=run, args=(scale,)) for scale in (1.0, -1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale in (1.0, -1.0):
        np.testing.assert_allclose(captured[scale], hidden(X * scale), rtol=1e-6)
    assert hooked_layers(model) == []


# Attention ------------------------------------------------------------------------------------------------------------


def attention_model(layer, masked=True, **call):
    """Token ids through an embedding and one attention layer."""
    inputs = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(12, 6, mask_zero=masked)
    embedded = embedding(inputs)
    return keras.Model(inputs, layer(embedded, embedded, **call)), embedding


def projected(embedding, dense):
    kernel, bias = dense.get_weights()
    return np.einsum("btw,whd->bthd", embedding(TOKENS), kernel) + bias


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_queries_keys_and_values_are_the_projections_and_padding_is_masked(part):
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model, embedding = attention_model(attention)
    output = read(model, Hook("attention", part), inputs=TOKENS)[Hook("attention", part)]
    np.testing.assert_allclose(output, projected(embedding, getattr(attention, f"_{part}_dense")), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(get_mask(output), TOKENS > 0)


def test_scores_are_scaled_products_and_hidden_keys_stand_out():
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model, embedding = attention_model(attention, use_causal_mask=True)
    scores = read(model, Hook("attention", "scores"), inputs=TOKENS)[Hook("attention", "scores")]
    query, key = projected(embedding, attention._query_dense), projected(embedding, attention._key_dense)
    expected = np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0
    real = TOKENS > 0
    seen = np.tril(np.ones((5, 5), bool)) & real[:, None, :] & real[:, :, None]
    np.testing.assert_allclose(
        scores, np.where(np.broadcast_to(seen[:, None], scores.shape), expected, NOT_ATTENDED), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("use_causal_mask", [False, True])
def test_without_padding_only_a_causal_mask_hides_keys(use_causal_mask):
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model, _ = attention_model(attention, masked=False, use_causal_mask=use_causal_mask)
    captured = read(model, Hook("attention", "scores"), Hook("attention", "key"), inputs=TOKENS)
    hidden = np.array(captured[Hook("attention", "scores")])[0, 0] == NOT_ATTENDED
    np.testing.assert_array_equal(hidden, np.triu(np.ones((5, 5), bool), 1) if use_causal_mask else False)
    mask = get_mask(captured[Hook("attention", "key")])
    assert mask is None or np.all(mask)


def test_grouped_queries_are_read_with_keys_for_every_head():
    attention = keras.layers.GroupQueryAttention(4, 4, 2, name="attention")
    model, _ = attention_model(attention)
    captured = read(model, Hook("attention", "query"), Hook("attention", "key"), inputs=TOKENS)
    assert [tensor.shape for tensor in captured.values()] == [(2, 5, 4, 4)] * 2


@pytest.mark.parametrize("normalize_first", [False, True])
def test_encoders_of_keras_hub_are_read_as_they_are(normalize_first):
    encoder = keras_hub.layers.TransformerEncoder(16, 2, normalize_first=normalize_first, name="encoder")
    inputs, padding = keras.Input((5, 8)), keras.Input((5,), dtype="bool")
    model = keras.Model([inputs, padding], encoder(inputs, padding_mask=padding))
    x, mask = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32"), TOKENS > 0
    output = read(model, Hook("encoder", "query"), inputs=[x, mask])[Hook("encoder", "query")]
    normalized = encoder._self_attention_layer_norm(x) if normalize_first else x
    np.testing.assert_allclose(output, encoder._self_attention_layer._query_dense(normalized), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(get_mask(output), mask)


def test_decoders_of_keras_hub_name_which_of_their_attentions():
    decoder = keras_hub.layers.TransformerDecoder(16, 2, name="decoder")
    inputs, encoded = keras.Input((5, 8)), keras.Input((3, 8))
    model = keras.Model([inputs, encoded], decoder(inputs, encoded))
    with pytest.raises(ValueError, match=r"holds 2: \['cross_attention', 'self_attention'\]. Name one of them"):
        OutputReader(model, [Hook("decoder", "query")], role="teacher")
    reader = OutputReader(model, [Hook("decoder/self_attention", "query")], role="teacher")
    assert reader.symbolic().layers[Hook("decoder/self_attention", "query")].shape == (None, 5, 2, 4)


def test_a_layer_without_attention_has_no_queries():
    with pytest.raises(ValueError, match=r"student_layer='hidden_0' must be or hold one attention layer.*it holds 0\."):
        OutputReader(dense_model(4, 3), [Hook("hidden_0", "query")], role="student")


def test_reading_is_traced_and_compiled_like_any_call():
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model, _ = attention_model(attention)
    reader = OutputReader(model, [Hook("attention", "query")], role="student")
    eager = reader(TOKENS, training=False).layers[Hook("attention", "query")]
    compiled = tf.function(lambda tokens: reader(tokens, training=False).layers, jit_compile=True)(tf.constant(TOKENS))
    np.testing.assert_allclose(compiled[Hook("attention", "query")], eager, rtol=1e-5, atol=1e-6)
