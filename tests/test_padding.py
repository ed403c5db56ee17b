"""Padding that models take as an input, as KerasHub's do, stays out of every loss over tokens, as a Keras mask does."""

import keras
import keras_hub
import numpy as np
import pytest
from conftest import crossentropy

import keras_kd
from keras_kd import losses
from keras_kd._keras_private import get_mask
from keras_kd.outputs import Hook, OutputReader

LENGTH, REAL, CLASSES = 12, 3, 5
RNG = np.random.default_rng(0)


def bert(width=8, **options):
    backbone = keras_hub.models.BertBackbone(30, 2, 2, width, 16, dropout=0.0, max_sequence_length=LENGTH, **options)
    for weight in backbone.trainable_weights:
        weight.assign(weight * 10.0)  # or all tokens would look alike
    return backbone


def bert_inputs(tokens, length):
    mask = np.arange(length) < REAL
    return {
        "token_ids": tokens[:, :length],
        "segment_ids": np.zeros_like(tokens[:, :length]),
        "padding_mask": np.broadcast_to(mask, tokens[:, :length].shape).astype("int32"),
    }


def tagger(width=8):
    """A class for each token, from an encoder; the inputs have KerasHub's names."""
    backbone = bert(width)
    hidden = backbone(backbone.input)["sequence_output"]
    return keras.Model(backbone.input, keras.layers.Dense(CLASSES, name="tags")(hidden))


def renamed_tagger():
    """The same, whose inputs have other names: the mask is made inside."""
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    backbone = bert()
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": keras.ops.cast(ids > 0, "int32")}
    return keras.Model(ids, keras.layers.Dense(CLASSES, name="tags")(backbone(inputs)["sequence_output"]))


def plain_attention_tagger():
    """`keras.layers.MultiHeadAttention` with an attention mask, a residual and a normalization after it."""
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    hidden = keras.layers.Embedding(30, 8, name="embedding")(ids)
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    attended = attention(hidden, hidden, attention_mask=(ids > 0)[:, None, :])
    hidden = keras.layers.LayerNormalization(name="norm")(hidden + attended)
    return keras.Model(ids, keras.layers.Dense(CLASSES, name="tags")(hidden))


def decoder():
    return keras_hub.models.GPT2Backbone(30, 2, 2, 8, 16, dropout=0.0, max_sequence_length=LENGTH)


def tokens(low=1):
    """Ids whose padding is random, so that what is counted there shows."""
    return RNG.integers(low, 30, (4, LENGTH)).astype("int32")


def logged(teacher, student, loss, x):
    distiller = keras_kd.Distiller(teacher, student, loss)
    distiller.compile(keras.optimizers.SGD(0.0), None, run_eagerly=True)  # each call has a length of its own
    return distiller.fit(x, batch_size=4, verbose=0).history[distiller.distillation_losses[0].name][0]


LAYERS = {"teacher_layer": "transformer_layer_1", "student_layer": "transformer_layer_0"}
TOKEN_LOSSES = {
    "hint": lambda: losses.Hint(**LAYERS),
    "hint on embeddings": lambda: losses.Hint("token_embedding", "token_embedding", name="embeddings"),
    "cosine": lambda: losses.CosineFeatures(**LAYERS),
    "attention transfer": lambda: losses.AttentionTransfer(**LAYERS),
    "attention maps": lambda: losses.AttentionMaps(**LAYERS),
    "relations": lambda: losses.SelfAttentionRelations(**LAYERS),
}


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_losses_between_layers_of_kerashub_encoders(name):
    """The value equals that of the same texts cut to their real tokens."""
    ids, teacher, student = tokens(), bert(), bert()
    values = [logged(teacher, student, TOKEN_LOSSES[name](), bert_inputs(ids, length)) for length in (LENGTH, REAL)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("make", [lambda: losses.SoftLabels(2.0), losses.ReverseKL, losses.LogitsMSE])
def test_losses_over_the_logits_of_each_token(make):
    ids, teacher, student = tokens(), tagger(), tagger()
    values = [logged(teacher, student, make(), bert_inputs(ids, length)) for length in (LENGTH, REAL)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_logits_that_are_never_held():
    ids, teacher, student = tokens(), tagger(), tagger()
    values = []
    for length in (LENGTH, REAL):
        distiller = keras_kd.Distiller(teacher, student, losses.SoftLabels(2.0), fuse_logits=True)
        distiller.compile(keras.optimizers.SGD(0.0), None)
        values.append(distiller.fit(bert_inputs(ids, length), batch_size=4, verbose=0).history["soft_labels"][0])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("make", [renamed_tagger, plain_attention_tagger])
def test_a_mask_that_only_the_attention_got(make):
    """Whatever the padded tokens' logits are, the value is that of the real tokens alone."""
    ids = tokens()
    ids[:, REAL:] = 0
    teacher, student = make(), make()
    value = logged(teacher, student, losses.LogitsMSE(), ids)
    difference = teacher.predict(ids, verbose=0)[:, :REAL] - student.predict(ids, verbose=0)[:, :REAL]
    assert value == pytest.approx(np.mean(difference**2), rel=1e-4)


def test_a_decoder_whose_attention_is_causal_as_well():
    ids, teacher, student = tokens(), decoder(), decoder()
    values = []
    for length in (LENGTH, REAL):
        x = bert_inputs(ids, length)
        del x["segment_ids"]
        values.append(logged(teacher, student, losses.Hint(**LAYERS), x))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_loss_on_the_labels_is_that_of_plain_keras():
    """It counts padding, as plain `fit` does, unless sample weights say otherwise."""
    ids, y = bert_inputs(tokens(), LENGTH), RNG.integers(0, CLASSES, (4, LENGTH))
    teacher, student = tagger(), tagger()
    student.compile(keras.optimizers.SGD(0.0), crossentropy())
    distiller = keras_kd.Distiller(teacher, student, losses.SoftLabels(2.0))
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    logs = distiller.fit(ids, y, batch_size=4, verbose=0).history
    assert logs["hard_loss"][0] == pytest.approx(student.evaluate(ids, y, verbose=0), rel=1e-5)


def test_outputs_of_whole_texts_get_no_mask():
    reader = OutputReader(bert(), [Hook("pooled_dense")], role="student")
    outputs = reader(bert_inputs(tokens(), LENGTH), training=False)
    assert get_mask(outputs.layers[Hook("pooled_dense")]) is None
    assert get_mask(reader.select(outputs, "pooled_output")[0]) is None
    np.testing.assert_array_equal(
        get_mask(reader.select(outputs, "sequence_output")[0]), [[True] * REAL + [False] * (LENGTH - REAL)] * 4
    )
