"""Students with fewer layers of their teacher."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import keras_kd
from keras_kd.students import fewer_layers, layer_importance

keras_hub = pytest.importorskip("keras_hub")


def backbone(num_layers=6):
    return keras_hub.models.BertBackbone(50, num_layers, 2, 8, 16, max_sequence_length=12, dropout=0)


def tokens():
    rng = np.random.default_rng(0)
    mask = np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    return {"token_ids": rng.integers(0, 50, (3, 7)), "segment_ids": np.zeros((3, 7), int), "padding_mask": mask}


def randomized(model, seed=0):
    """Weights large enough that each block matters."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape, scale=0.5) for w in model.weights])
    return model


def one_by_one(model, blocks, x):
    """The sequence output of a backbone that runs only these blocks: the same layers, called by hand."""
    hidden = model.token_embedding(x["token_ids"])
    hidden = hidden + model.position_embedding(hidden) + model.segment_embedding(x["segment_ids"])
    hidden = model.embeddings_layer_norm(hidden)
    for i in blocks:
        hidden = model.transformer_layers[i](hidden, padding_mask=x["padding_mask"])
    return np.asarray(hidden)


@pytest.mark.parametrize(("keep", "blocks"), [(3, [0, 2, 5]), (1, [0]), ([4, 1], [1, 4]), (6, range(6))])
def test_the_student_computes_what_the_kept_blocks_compute(keep, blocks):
    teacher, x = randomized(backbone()), tokens()
    before = [np.asarray(w).copy() for w in teacher.weights]
    student, transfer = fewer_layers(teacher, keep)
    assert isinstance(student, keras_hub.models.BertBackbone) and student.num_layers == len(blocks)
    np.testing.assert_allclose(student(x)["sequence_output"], one_by_one(teacher, blocks, x), atol=1e-6)
    assert not transfer.missing
    taken = [row.teacher for row in transfer.rows if "transformer_layer" in row.student]
    assert taken == [f"transformer_layer_{i}" for i in blocks]
    for weight, values in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(weight, values)


def test_a_task_keeps_its_class_and_its_tied_head():
    teacher = randomized(keras_hub.models.BertMaskedLM(backbone()))
    student, transfer = fewer_layers(teacher, 2)
    assert isinstance(student, keras_hub.models.BertMaskedLM) and not transfer.missing
    assert student.masked_lm_head.token_embedding is student.backbone.token_embedding
    x = {**tokens(), "mask_positions": np.array([[1, 2]] * 3)}
    hidden = one_by_one(teacher.backbone, [0, 5], x)
    np.testing.assert_allclose(student(x), teacher.masked_lm_head(hidden, x["mask_positions"]), rtol=1e-5, atol=1e-5)


def test_a_backbone_inside_a_model_of_ones_own(tmp_path):
    inner = backbone()
    pooled = layers.GlobalAveragePooling1D()(inner(inner.input)["sequence_output"])
    teacher = randomized(keras.Model(inner.input, layers.Dense(3, name="topics")(pooled)))
    student, _ = fewer_layers(teacher, 2)
    pooled = one_by_one(inner, [0, 5], tokens()).mean(axis=1)
    np.testing.assert_allclose(student(tokens()), teacher.get_layer("topics")(pooled), rtol=1e-5, atol=1e-5)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded.predict(tokens(), verbose=0), student.predict(tokens(), verbose=0))


def transformer(numbers, form):
    """A plain functional transformer of numbered layers; the additions are unnumbered operations or layers."""
    inputs = hidden = keras.Input((5, 8))
    mask = keras.Input((5,), dtype="bool")
    for i in numbers:
        attention = layers.MultiHeadAttention(2, 4, name=f"block_{i}_attention")
        dense, *norms = (
            layers.Dense(8, "gelu", name=f"block_{i}_ffn"),
            layers.LayerNormalization(name=f"block_{i}_norm_0"),
            layers.LayerNormalization(name=f"block_{i}_norm_1"),
        )
        if form == "post-norm":
            hidden = norms[0](hidden + attention(hidden, hidden, attention_mask=mask[:, None]))
            hidden = norms[1](hidden + dense(hidden))
        else:
            normed = norms[0](hidden)
            hidden = hidden + attention(normed, normed, attention_mask=mask[:, None])
            hidden = layers.Add()([hidden, dense(norms[1](hidden))])
    return keras.Model([inputs, mask], layers.Dense(3, name="logits")(hidden))


@pytest.mark.parametrize(
    ("form", "blocks"),
    [("post-norm", [1, 3]), ("post-norm", [0]), ("pre-norm", [1, 3]), ("pre-norm", [3]), ("pre-norm", [0, 1, 2, 3])],
)
def test_blocks_are_cut_out_of_a_plain_functional_model(form, blocks):
    teacher, expected = randomized(transformer(range(4), form)), transformer(blocks, form)
    for layer in expected.layers:
        if layer.weights:
            layer.set_weights(teacher.get_layer(layer.name).get_weights())
    student, transfer = fewer_layers(teacher, blocks)
    assert not transfer.missing
    x = [np.random.default_rng(1).normal(size=(2, 5, 8)), np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)]
    np.testing.assert_allclose(student(x), expected(x), atol=1e-6)


def test_a_sequential_model_loses_blocks():
    blocks = [layers.Dense(8, "tanh", name=f"block_{i}") for i in range(4)]
    teacher = randomized(keras.Sequential([keras.Input((8,)), *blocks, layers.Dense(3, name="logits")]))
    student, _ = fewer_layers(teacher, [0, 3])
    x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    np.testing.assert_allclose(student(x), teacher.get_layer("logits")(blocks[3](blocks[0](x))), atol=1e-6)


def test_importance_is_the_turn_of_each_block():
    teacher, x = randomized(backbone(3)), tokens()
    expected = []
    for i in range(3):
        before, after = one_by_one(teacher, range(i), x), one_by_one(teacher, range(i + 1), x)
        cosine = (before * after).sum(-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
        expected.append(1 - cosine[x["padding_mask"] == 1].mean())
    np.testing.assert_allclose(layer_importance(teacher, x, batch_size=2), expected, rtol=1e-4)


def test_the_most_important_blocks_are_kept():
    teacher, x = randomized(backbone(4)), tokens()
    teacher.transformer_layers[2].set_weights([w * 0 for w in teacher.transformer_layers[2].get_weights()])
    norm = teacher.transformer_layers[2]._feedforward_layer_norm  # hidden / norm: the vectors are centered already
    norm.gamma.assign(np.ones(8))
    teacher.transformer_layers[2]._self_attention_layer_norm.gamma.assign(np.ones(8))
    importance = layer_importance(teacher, x)
    _, transfer = fewer_layers(teacher, 2, data=x)
    taken = [int(row.teacher[-1]) for row in transfer.rows if "transformer_layer" in row.student]
    assert taken == sorted(np.argsort(-importance)[:2])


def test_a_frozen_teacher_gives_a_trainable_student():
    teacher = backbone(2)
    teacher.trainable = False
    student, _ = fewer_layers(teacher, 1)
    assert len(student.trainable_weights) == len(student.weights) and not teacher.trainable_weights


def test_a_student_is_distilled():
    teacher = randomized(backbone(4))
    student, _ = fewer_layers(teacher, 2)
    vectors = [keras.Model(m.input, m.output["sequence_output"]) for m in (teacher, student)]
    distiller = keras_kd.Distiller(*vectors, keras_kd.losses.Hint(), hard_weight=0.0)
    distiller.compile("adam")
    history = distiller.fit(tokens(), epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


one_backbone = functools.cache(backbone)  # for those who do not get further than to look at it


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def called(model):
    model(np.zeros((1, 4)))
    return model


@pytest.mark.parametrize(
    ("teacher", "arguments", "error", "message"),
    [
        (one_backbone, {"keep": 7}, ValueError, "keep must be <= 6, the number of the teacher's blocks, got 7"),
        (one_backbone, {"keep": 0}, ValueError, "keep must be >= 1"),
        (one_backbone, {"keep": 2.0}, TypeError, "keep must be a whole number"),
        (one_backbone, {"keep": [0, 6]}, ValueError, "keep must list different blocks from 0 to 5"),
        (one_backbone, {"keep": [-1]}, ValueError, "keep must be >= 0"),
        (one_backbone, {"keep": [1, 1]}, ValueError, "keep must list different blocks"),
        (one_backbone, {"keep": []}, ValueError, "keep must list different blocks"),
        (one_backbone, {"keep": [0], "data": {}}, ValueError, "give it with a number for keep"),
        (one_backbone, {"keep": 2, "pattern": "none_{}"}, ValueError, "fits no layer"),
        (lambda: called(OwnCall()), {"keep": 1}, ValueError, "must be a functional or sequential model"),
        (lambda: "bert", {"keep": 1}, TypeError, "teacher must be a keras.Model"),
        (lambda: keras.Sequential([layers.Dense(3)]), {"keep": 1}, ValueError, "is not built"),
    ],
)
def test_bad_input_is_named(teacher, arguments, error, message):
    with pytest.raises(error, match=message):
        fewer_layers(teacher(), **arguments)


def test_a_block_of_another_width_cannot_be_cut_out():
    blocks = [layers.Dense(4 + i, name=f"block_{i}") for i in range(3)]
    with pytest.raises(ValueError, match=r"'block_1'.*cannot be cut out"):
        fewer_layers(keras.Sequential([keras.Input((4,)), *blocks]), [0, 2])


def test_importance_is_measured_on_the_model_that_holds_the_blocks():
    inner = backbone(2)
    teacher = keras.Model(inner.input, layers.Dense(3)(inner(inner.input)["pooled_output"]))
    with pytest.raises(ValueError, match="measure there"):
        layer_importance(teacher, tokens())
