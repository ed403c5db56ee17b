"""Students with narrower feed-forward layers."""

import keras
import keras_hub
import numpy as np
import pytest
from conftest import dense_model

import keras_kd
from keras_kd import students

BLOCK = "transformer_layer_0"


def make_backbone(kind=keras_hub.models.BertBackbone, layers=2, **options):
    keras.utils.set_random_seed(0)
    backbone = kind(50, layers, 2, 8, 24, dropout=0.0, max_sequence_length=12, **options)
    generator = np.random.default_rng(0)
    backbone.set_weights([generator.normal(size=weight.shape) for weight in backbone.get_weights()])
    return backbone


def inputs_for(model, rows=5):
    ids = np.random.default_rng(1).integers(0, 50, (rows, 7)).astype("int32")
    mask = (np.arange(7) < np.array([[7], [4], [6], [2], [5]])[:rows]).astype("int32")
    x = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask}
    return {name: x[name] for name in model.input}


def hidden(model, x):
    outputs = model.predict(x, verbose=0)
    return outputs["sequence_output"] if isinstance(outputs, dict) else outputs


def silence(backbone, units):
    """Make units of each block's feed-forward layer give 0 for any input."""
    for block in backbone.transformer_layers:
        dense = block._feedforward_intermediate_dense
        kernel, bias = dense.get_weights()
        kernel[:, units], bias[units] = 0.0, 0.0
        dense.set_weights([kernel, bias])


@pytest.mark.parametrize("kind", [keras_hub.models.BertBackbone, keras_hub.models.XLMRobertaBackbone])
@pytest.mark.parametrize("nested", [False, True])
def test_units_that_are_silent_are_left_out_and_nothing_changes(kind, nested):
    backbone = make_backbone(kind)
    silence(backbone, [0, 3, 4, 20])
    teacher = keras_kd.teachers.sentence_encoder(backbone) if nested else backbone
    x = inputs_for(teacher)
    student, transfer = students.narrower_feed_forward(teacher, 20, x)
    np.testing.assert_allclose(hidden(student, x), hidden(teacher, x), atol=1e-4)
    assert teacher.count_params() - student.count_params() == 2 * 4 * (8 + 1 + 8)
    rows = {row.student: row for row in transfer.rows}
    assert rows[BLOCK].how == "20 of 24 units, 100.0 % of their activation"
    assert type(student) is type(teacher) and all(row.teacher for row in transfer.rows)


def test_those_that_are_active_stay_where_padding_does_not_count():
    """By NumPy: the mean |gelu| over the tokens that are no padding, of the inputs of the first block's layer."""
    backbone = make_backbone(layers=1)
    x = inputs_for(backbone)
    block = backbone.get_layer(BLOCK)
    (kernel, bias), found = block._feedforward_intermediate_dense.get_weights(), []
    keras_kd_hook = keras_kd.outputs.hooks.Hook(f"{BLOCK}/feedforward_intermediate_dense", "input")
    capture = keras_kd.outputs.hooks.LayerCapture(backbone, [keras_kd_hook], role="teacher")
    _, captured, _ = capture.run(lambda: backbone(x))
    given = captured[keras_kd_hook].numpy()[x["padding_mask"] == 1] @ kernel + bias
    active = np.abs(keras.activations.gelu(given, approximate=True).numpy()).mean(axis=0)
    found = np.sort(np.argsort(-active)[:10])
    student, transfer = students.narrower_feed_forward(backbone, 10, x, batch_size=2)
    student_kernel, student_bias = student.get_layer(BLOCK)._feedforward_intermediate_dense.get_weights()
    np.testing.assert_array_equal(student_kernel, kernel[:, found])
    np.testing.assert_array_equal(student_bias, bias[found])
    (row,) = [row for row in transfer.rows if row.student == BLOCK]
    assert row.how == f"10 of 24 units, {100 * active[found].sum() / active.sum():.1f} % of their activation"


def test_the_teacher_stays_and_the_student_trains_and_is_saved(tmp_path):
    backbone = make_backbone()
    before = backbone.get_weights()
    teacher = keras_kd.teachers.sentence_encoder(backbone)
    x = inputs_for(teacher)
    student, _ = students.narrower_feed_forward(teacher, 12, x)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.CosineFeatures())
    distiller.compile(keras.optimizers.Adam(0.001))
    history = distiller.fit(x, epochs=5, batch_size=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    for weight, other in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, other)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "units", "error", "message"),
    [
        (make_backbone, 24, ValueError, "units must be < 24"),
        (make_backbone, 0, ValueError, "units must be >= 1"),
        (make_backbone, 2.5, TypeError, "units must be a whole number"),
        (lambda: dense_model(3, 2), 4, ValueError, "blocks of keras_hub.layers.TransformerEncoder"),
        (lambda: "e5", 4, TypeError, "teacher must be a keras.Model"),
    ],
)
def test_what_cannot_be_narrower_is_refused(teacher, units, error, message):
    with pytest.raises(error, match=message):
        students.narrower_feed_forward(teacher(), units, inputs_for(make_backbone()))
