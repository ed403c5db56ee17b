"""Losses over attention: against published values, NumPy, and the attention of models as they are."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, strategy_of
from formulas import self_attention_relations

import keras_kd
from keras_kd.outputs.hooks import NOT_ATTENDED

# The inputs of the published value: queries of (batch 2, heads 2, length 3); here (batch, length, heads, dim).
QUERIES_STUDENT = np.sin(0.7 * np.arange(48)).reshape(2, 2, 3, 4).swapaxes(1, 2)
QUERIES_TEACHER = np.cos(0.3 * np.arange(72)).reshape(2, 2, 3, 6).swapaxes(1, 2)
MASK = np.array([[True, True, True], [True, True, False]])
X = {
    "token_ids": np.random.default_rng(0).integers(1, 30, (12, 6)),
    "padding_mask": np.arange(6) < np.random.default_rng(1).integers(2, 7, (12, 1)),
}


def relations_of(**options):
    return keras_kd.losses.SelfAttentionRelations("a", "b", **options)


def maps_of(**options):
    return keras_kd.losses.AttentionMaps("a", "b", **options)


def transformer(layers, heads, width, name="backbone"):
    """A classifier over a backbone of KerasHub's encoders, nested in it."""
    tokens, padding = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="bool")
    hidden = keras.layers.Embedding(30, width, keras.initializers.RandomNormal(stddev=2.0), name="embedding")(tokens)
    for index in range(layers):
        encoder = keras_hub.layers.TransformerEncoder(2 * width, heads, name=f"layer_{index}")
        hidden = encoder(hidden, padding_mask=padding)
    backbone = keras.Model({"token_ids": tokens, "padding_mask": padding}, hidden, name=name)
    inputs = {"token_ids": keras.Input((None,), dtype="int32", name="token_ids")}
    inputs["padding_mask"] = keras.Input((None,), dtype="bool", name="padding_mask")
    pooled = keras.layers.GlobalMaxPooling1D()(backbone(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(pooled))


def attention_parts(model, index, part):
    """What a layer's attention gets and projects, computed layer by layer."""
    hidden = model.get_layer("backbone").get_layer("embedding")(X["token_ids"])
    for i in range(index):
        hidden = model.get_layer("backbone").get_layer(f"layer_{i}")(hidden, padding_mask=X["padding_mask"])
    attention = model.get_layer("backbone").get_layer(f"layer_{index}")._self_attention_layer
    return np.array(getattr(attention, f"_{part}_dense")(hidden), "float64")


def relation_loss(teacher, student, heads, mask):
    return self_attention_relations(teacher, student, heads, mask)[mask].mean()


def fitted(teacher, student, distillation_losses, loss=None, **options):
    distiller = keras_kd.Distiller(teacher, student, distillation_losses)
    distiller.compile("adam", loss, **options)
    return distiller.fit(X, batch_size=12, epochs=8, verbose=0).history


# SelfAttentionRelations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "expected"), [(None, 0.2429572051), (MASK, 0.2050400185)])
def test_relations_equal_the_published_values(mask, expected):
    """KL over relation heads of MiniLMv2's formula, each side scaled by its own width."""
    assert float(relations_of()(QUERIES_TEACHER, QUERIES_STUDENT, mask=mask)) == pytest.approx(expected, rel=1e-6)


def test_relations_may_be_split_into_any_number_of_heads():
    expected = relation_loss(QUERIES_TEACHER, QUERIES_STUDENT, 4, MASK)
    assert float(relations_of(heads=4)(QUERIES_TEACHER, QUERIES_STUDENT, mask=MASK)) == pytest.approx(expected, 1e-6)


def test_relations_gradient_is_that_of_the_formula():
    student, step = tf.constant(QUERIES_STUDENT), 1e-6
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = relations_of(dtype="float64")(QUERIES_TEACHER, student, mask=MASK)
    gradient = tape.gradient(loss, student).numpy()
    for index in [(0, 0, 0, 0), (1, 1, 1, 2), (0, 2, 1, 3)]:
        moved = [QUERIES_STUDENT.copy() for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        numeric = np.subtract(*(relation_loss(QUERIES_TEACHER, m, 2, MASK) for m in moved)) / (2 * step)
        assert gradient[index] == pytest.approx(numeric, abs=1e-8)
    assert not gradient[1, 2].any()  # padding learns nothing


def test_relations_are_zero_at_equality_and_sample_weights_weigh_texts():
    assert float(relations_of()(QUERIES_TEACHER, QUERIES_TEACHER, mask=MASK)) == pytest.approx(0.0, abs=1e-7)
    first, second = (float(relations_of()(QUERIES_TEACHER[i:][:1], QUERIES_STUDENT[i:][:1])) for i in range(2))
    weighted = relations_of()(QUERIES_TEACHER, QUERIES_STUDENT, np.array([[2.0], [0.5]]))
    assert float(weighted) == pytest.approx((2.0 * first + 0.5 * second) / 2, rel=1e-5)


def test_relations_of_half_precision_are_finite_far_out():
    far = tf.cast(QUERIES_TEACHER * 1e4, "bfloat16")
    value = relations_of()(far, tf.cast(QUERIES_STUDENT * 1e4, "bfloat16"))
    assert value.dtype == tf.float32 and np.isfinite(value)


def test_relations_of_unmodified_transformers_of_other_depth_width_and_heads():
    teacher, student = transformer(3, 4, 16), transformer(2, 2, 12)
    expected = sum(
        relation_loss(attention_parts(teacher, 2, p), attention_parts(student, 1, p), 4, X["padding_mask"])
        for p in ("query", "key", "value")
    )
    distillation_loss = keras_kd.losses.SelfAttentionRelations("layer_2", "backbone/layer_1", heads=4)
    history = fitted(teacher, student, distillation_loss, jit_compile=True)["self_attention_relations"]
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]


def test_one_relation_alone():
    teacher, student = transformer(1, 2, 8), transformer(1, 2, 8)
    expected = relation_loss(
        attention_parts(teacher, 0, "value"), attention_parts(student, 0, "value"), 2, X["padding_mask"]
    )
    distillation_loss = keras_kd.losses.SelfAttentionRelations("layer_0", "layer_0", of="value")
    assert fitted(teacher, student, distillation_loss)["self_attention_relations"][0] == pytest.approx(
        expected, rel=1e-4
    )


def test_relations_under_two_replicas_equal_those_of_one():
    """Uneven batches with padding: each token of the whole batch counts the same."""
    losses = []
    for strategy in (tf.distribute.get_strategy(), strategy_of(2)):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            teacher, student = transformer(1, 2, 8), transformer(1, 2, 8)
            distiller = keras_kd.Distiller(
                teacher, student, keras_kd.losses.SelfAttentionRelations("layer_0", "layer_0")
            )
            distiller.compile(keras.optimizers.SGD(0.1), None)
        data = tf.data.Dataset.from_tensor_slices((X,)).batch(11)
        losses.append(distiller.fit(data, epochs=3, shuffle=False, verbose=0).history["self_attention_relations"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_relations_that_do_not_fit_are_refused_before_anything_runs():
    teacher, student = transformer(1, 4, 16), transformer(1, 2, 12)
    with pytest.raises(
        ValueError, match=r"head by head, but the teacher's layer 'layer_0' gives \(None, None, 4, 4\), the student"
    ):
        keras_kd.Distiller(teacher, student, keras_kd.losses.SelfAttentionRelations("layer_0", "layer_0"))
    with pytest.raises(ValueError, match=r"heads must divide heads · dim of the student, 2 · 6 = 12, got 8"):
        keras_kd.Distiller(teacher, student, keras_kd.losses.SelfAttentionRelations("layer_0", "layer_0", heads=8))
    with pytest.raises(
        ValueError, match=r"token by token, but .* \(2, 3, 2, 6\), the student's layer 'b' \(2, 2, 2, 4\)"
    ):
        relations_of()(QUERIES_TEACHER, QUERIES_STUDENT[:, :2])
    with pytest.raises(ValueError, match=r"\(batch, length, heads, dim\), but"):
        relations_of()(QUERIES_TEACHER[0], QUERIES_STUDENT[0])
    with pytest.raises(ValueError, match="of must be some of 'query', 'key' and 'value', got 'scores'"):
        relations_of(of="scores")
    with pytest.raises(TypeError, match=r"heads must be a whole number >= 1, got 2\.5"):
        relations_of(heads=2.5)


# AttentionMaps --------------------------------------------------------------------------------------------------------


def scores_of(seed, heads=2):
    scores = np.random.default_rng(seed).normal(size=(2, heads, 3, 3))
    return np.where(np.broadcast_to(MASK[:, None, None, :], scores.shape), scores, NOT_ATTENDED)


@pytest.mark.parametrize(("mean_over_heads", "heads"), [(False, 2), (True, 2), (True, 4)])
def test_maps_are_compared_where_keys_are_not_masked(mean_over_heads, heads):
    teacher, student = scores_of(0, heads), scores_of(1)
    maps = [scores.mean(1, keepdims=True) if mean_over_heads else scores for scores in (teacher, student)]
    squares = np.square(np.subtract(*maps)).mean(1)  # (batch, queries, keys)
    expected = [squares[0].mean(-1), squares[1][:, :2].mean(-1)]
    values = maps_of(mean_over_heads=mean_over_heads, reduction=None, dtype="float64")(teacher, student)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_maps_have_a_gradient_where_keys_are_not_masked_and_none_elsewhere():
    student = tf.constant(scores_of(1))
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = maps_of(dtype="float64")(scores_of(0), student)
    seen = np.broadcast_to(MASK[:, None, None, :], student.shape)
    keys = MASK.sum(1)[:, None, None, None]
    expected = np.where(seen, 2 * (student - scores_of(0)) / (keys * 2 * 3 * 2), 0.0)
    np.testing.assert_allclose(tape.gradient(loss, student), expected, atol=1e-12)


def test_maps_and_hidden_states_of_several_layers_at_once():
    """TinyBERT: every third layer teaches one; the values of the pairs are added, one projection serves all."""
    teacher, student = transformer(3, 2, 16), transformer(2, 2, 8)
    expected = 0.0
    for deep, shallow in ((0, 0), (2, 1)):
        scores = []
        for model, index in ((teacher, deep), (student, shallow)):
            query, key = attention_parts(model, index, "query"), attention_parts(model, index, "key")
            scores.append(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]))
        squares = np.square(np.subtract(*scores)).mean(1)
        real = X["padding_mask"]
        by_query = (squares * real[:, None, :]).sum(-1) / real[:, None, :].sum(-1)
        expected += (by_query * real).sum() / real.sum()
    layers = ["layer_0", "layer_2"], ["layer_0", "layer_1"]
    distillation_losses = [
        keras_kd.losses.AttentionMaps(*layers),
        keras_kd.losses.Hint(["embedding", *layers[0]], ["embedding", *layers[1]], shared_projection=True),
    ]
    history = fitted(teacher, student, distillation_losses)
    assert history["attention_maps"][0] == pytest.approx(expected, rel=1e-4)
    assert history["hint"][-1] < history["hint"][0]


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"\(2, 4, 3, 3\), the student's layer 'b' \(2, 2, 3, 3\). Set mean_over_heads=True"
    ):
        maps_of()(scores_of(0, 4), scores_of(1))
    with pytest.raises(TypeError, match="mean_over_heads must be True or False, got 'yes'"):
        maps_of(mean_over_heads="yes")
    with pytest.raises(ValueError, match=r"equally many layers, got 2: \['a', 'b'\] and 1: 'c'"):
        keras_kd.losses.AttentionMaps(["a", "b"], "c")
    with pytest.raises(TypeError, match=r"teacher_layer must be the name of a layer, .* or None, got \[\]"):
        keras_kd.losses.AttentionMaps([], "c")


# All ------------------------------------------------------------------------------------------------------------------


def test_losses_and_their_distiller_survive_saving(tmp_path):
    losses = [
        keras_kd.losses.SelfAttentionRelations("layer_0", "layer_0", heads=4, of=("query", "key"), weight=0.5),
        keras_kd.losses.AttentionMaps(["layer_0"], ["layer_0"], mean_over_heads=True),
        keras_kd.losses.Hint(["layer_0"], ["layer_0"], shared_projection=True, name="hidden"),
    ]
    for loss in losses:
        restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
        assert type(restored) is type(loss) and restored.get_config() == loss.get_config()
    teacher, student = transformer(1, 4, 16), transformer(1, 2, 8)
    distiller = keras_kd.Distiller(teacher, student, [*losses, keras_kd.losses.SoftLabels()])
    distiller.compile("adam", crossentropy())
    y = np.arange(12) % 3
    distiller.fit(X, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher)
    histories = [one.fit(X, y, shuffle=False, verbose=0).history for one in (distiller, loaded)]
    assert histories[0] == histories[1]


def test_sample_weights_weigh_texts():
    """A text of weight 0 teaches nothing, whatever its length."""
    teacher, student = transformer(1, 2, 8), transformer(1, 2, 8)
    losses = []
    for weights in (np.ones(12), np.where(np.arange(12) == 3, 0.0, 1.0)):
        distillation_loss = keras_kd.losses.SelfAttentionRelations("layer_0", "layer_0")
        distiller = keras_kd.Distiller(teacher, student, distillation_loss)
        distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
        losses.append(distiller.fit(X, np.zeros(12), sample_weight=weights, batch_size=12, verbose=0).history)
    mask = X["padding_mask"][3:4]
    of_text = 0.0
    for part in ("query", "key", "value"):
        outputs = (attention_parts(model, 0, part)[3:4] for model in (teacher, student))
        of_text += self_attention_relations(*outputs, 2, mask)[mask].sum()
    difference = losses[0]["self_attention_relations"][0] - losses[1]["self_attention_relations"][0]
    assert difference == pytest.approx(of_text / X["padding_mask"].sum(), rel=1e-3)
