"""Quantization-aware students: numbers against NumPy, and files that hold what was trained."""

import functools

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of

import keras_kd
from keras_kd import losses
from keras_kd.deploy import quantize_aware
from keras_kd.deploy.fake_quantization import FakeQuantization, quantization_of

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
layers = keras.layers


def model_of(layer, shape, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype, name="x")
    model = keras.Model(inputs, layer(inputs))
    with_uneven_channels(layer)
    return model


def with_uneven_channels(layer):
    """Weights that differ much from channel to channel, and from row to row."""
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=w.shape) * np.exp(rng.normal(size=w.shape[-1:])) for w in layer.get_weights()])


def rounded(weights, axes, bits=8):
    levels = 2 ** (bits - 1) - 1
    scales = np.abs(weights).max(axis=axes, keepdims=True) / np.float32(levels)
    return np.round(weights / scales) * scales


# Each layer with the shape of its inputs and the axes of its kernel that share a scale.
KINDS = {
    "dense": (lambda: layers.Dense(96, "relu"), (24,), (0,)),
    "dense_over_tokens": (lambda: layers.Dense(96, "gelu"), (None, 24), (0,)),
    "query": (lambda: layers.EinsumDense("abc,cde->abde", (None, 4, 24), bias_axes="de"), (None, 24), (0,)),
    "attention_output": (lambda: layers.EinsumDense("abcd,cde->abe", (None, 96), bias_axes="e"), (None, 4, 6), (0, 1)),
    "conv1d": (lambda: layers.Conv1D(48, 3, padding="same", activation="relu"), (10, 12), (0, 1)),
    "conv2d": (lambda: layers.Conv2D(32, 3), (6, 6, 8), (0, 1, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (5, 5, 128), (0, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_are_those_of_the_formula(kind, bits):
    make, shape, axes = KINDS[kind]
    student = model_of(make(), shape)
    kernel = student.layers[-1].get_weights()[0]
    quantized = quantize_aware(student, weights=f"int{bits}")
    found = np.asarray(quantized.layers[-1].kernel)
    np.testing.assert_allclose(found, rounded(kernel, axes, bits), rtol=1e-6)
    assert np.array_equal(quantized.layers[-1].get_weights()[0], kernel)


def test_each_row_of_an_embedding_has_its_scale():
    student = model_of(layers.Embedding(40, 7, name="pieces"), (None,), "int32")
    table = student.get_weights()[0] * np.exp(np.random.default_rng(1).normal(size=(40, 1)))
    student.set_weights([table])
    ids = np.arange(40)[None]
    for bits in (8, 4):
        found = quantize_aware(student, weights=f"int{bits}").predict(ids, verbose=0)[0]
        np.testing.assert_allclose(found, rounded(table.astype("float32"), (1,), bits), rtol=1e-6)


def test_a_tied_last_layer_reads_the_rounded_table():
    embedding, ids = (
        layers.ReversibleEmbedding(40, 8, mask_zero=True, name="pieces"),
        keras.Input((None,), dtype="int32"),
    )
    student = keras.Model(ids, embedding(embedding(ids), reverse=True))
    table = rounded(student.get_weights()[0], (1,))
    quantized = quantize_aware(student)
    x = np.array([[3, 1, 0]])
    np.testing.assert_allclose(quantized.predict(x, verbose=0), table[x] @ table.T, atol=1e-6)
    assert len(quantized.weights) == 1


def test_gradients_pass_straight_through_the_weights():
    student = model_of(layers.Dense(5), (4,))
    quantized, x = quantize_aware(student), np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(x))
    kernel, _ = tape.gradient(loss, quantized.trainable_variables)
    np.testing.assert_allclose(kernel, np.repeat(x.sum(axis=0)[:, None], 5, axis=1), rtol=1e-5)


def test_activations_are_rounded_within_the_range_of_the_batches_before():
    layer = FakeQuantization()
    layer(np.zeros((1, 2), "float32"))
    x = np.array([[-1.0, 0.3, 4.1, 5.0]], "float32")
    assert np.array_equal(layer(x), x)  # no range yet
    layer(np.array([[-1.0, 4.0]], "float32"), training=True)
    layer(np.array([[0.5, 2.0]], "float32"), training=True)
    low, high = -0.99, 0.99 * 4 + 0.01 * 2  # the range holds 0
    np.testing.assert_allclose(layer.range, [low, high], rtol=1e-6)
    scale = (high - low) / 255
    zero = np.round(-low / scale)  # 0 is one of the 256 numbers
    expected = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        total = tf.reduce_sum(layer(tensor))
    assert tape.gradient(total, tensor).numpy().tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_a_batch_that_overflows_does_not_spoil_the_range():
    layer = FakeQuantization()
    for batch in ([[-1.0, 4.0]], [[np.inf, 1.0]]):
        layer(np.array(batch, "float32"), training=True)
    np.testing.assert_allclose(layer.range, [-1.0, 4.0])


# Models ---------------------------------------------------------------------------------------------------------------


def encoder(blocks=1):
    """A small sentence encoder: KerasHub's layers, mean pooling, vectors of length 1."""
    backbone = keras_hub.models.BertBackbone(90, blocks, 2, 32, 64, dropout=0.0, max_sequence_length=16)
    mean = layers.GlobalAveragePooling1D(name="mean")(backbone.output["sequence_output"])
    vector = layers.UnitNormalization(name="vector")(layers.Dense(12, name="projection")(mean))
    return keras.Model(backbone.input, vector, name="encoder")


def nested_encoder():
    backbone = keras_hub.models.BertBackbone(90, 1, 2, 32, 64, max_sequence_length=16)
    inputs = {
        key: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=key) for key, tensor in backbone.input.items()
    }
    mean = layers.GlobalAveragePooling1D()(backbone(inputs)["sequence_output"])
    return keras.Model(inputs, layers.Dense(4)(mean))


def text_cnn():
    ids = keras.Input((12,), dtype="int32", name="ids")
    h = layers.Conv1D(48, 3, activation="relu", name="window")(layers.Embedding(90, 24, name="pieces")(ids))
    return keras.Model(ids, layers.Dense(40, name="kind")(layers.GlobalMaxPooling1D()(h)))


MODELS = {"mlp": lambda: dense_model(64, 64, 4), "cnn": text_cnn, "encoder": encoder, "nested": nested_encoder}
OPTIONS = {"int8": {}, "activations": {"activations": "int8"}, "int4": {"weights": "int4"}}


def inputs_of(kind, examples=64):
    rng = np.random.default_rng(0)
    if kind == "mlp":
        return rng.normal(size=(examples, 8)).astype("float32")
    ids = rng.integers(1, 90, size=(examples, 12)).astype("int32")
    return ids if kind == "cnn" else {
        "token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"), [("mlp", "activations"), ("cnn", "int4"), ("encoder", "activations"), ("nested", "int8")]
)
def test_it_is_a_copy_that_is_saved_and_cloned(tmp_path, kind, options):
    teacher, x = MODELS[kind](), inputs_of(kind)
    before, answers = teacher.get_weights(), teacher.predict(x, verbose=0)
    student = quantize_aware(teacher, **OPTIONS[options])
    assert quantization_of(student)
    assert not quantization_of(teacher)
    student(x, training=True)
    assert all(map(np.array_equal, before, teacher.get_weights()))
    assert np.array_equal(answers, teacher.predict(x, verbose=0))

    expected = student.predict(x, verbose=0)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert np.array_equal(loaded.predict(x, verbose=0), expected)
    clone = keras.models.clone_model(student)
    clone.set_weights(student.get_weights())
    assert np.array_equal(clone.predict(x, verbose=0), expected)
    assert quantization_of(loaded) == quantization_of(clone) == quantization_of(student)


def test_distilling_brings_four_bits_nearer_to_the_teacher():
    teacher, x = encoder(), inputs_of("encoder")
    answers, student = teacher.predict(x, verbose=0), quantize_aware(teacher, weights="int4")
    distance = np.square(student.predict(x, verbose=0) - answers).mean()
    distiller = keras_kd.Distiller(teacher, student, losses.CosineFeatures())
    distiller.compile(keras.optimizers.Adam(1e-4))
    distiller.fit(x, epochs=20, batch_size=32, verbose=0)
    assert np.square(student.predict(x, verbose=0) - answers).mean() < 0.8 * distance


def test_the_projections_of_attention_and_the_feed_forward_layers_are_found():
    found = quantization_of(quantize_aware(encoder()))
    inner = {path.rpartition("/")[2] for path in found if path.startswith("transformer_layer_0/")}
    assert {"query", "key", "value", "attention_output"} <= inner
    assert {"feedforward_intermediate_dense", "feedforward_output_dense"} <= inner
    assert {"token_embedding", "segment_embedding", "projection"} <= set(found)


def test_layers_to_skip_stay_in_floats():
    student = encoder(blocks=2)
    every = set(quantization_of(quantize_aware(student)))
    left = quantize_aware(student, skip=["query", "transformer_layer_1", "projection"])
    skipped = {path for path in every if path.endswith("/query") or path.startswith("transformer_layer_1")}
    assert set(quantization_of(left)) == every - skipped - {"projection"}
    clone = keras.models.clone_model(left)
    assert quantization_of(clone) == quantization_of(left)
    kept = quantize_aware(student, skip=["transformer_layer_0", "transformer_layer_1", "projection", "token_embedding"])
    assert set(quantization_of(kept)) == {"segment_embedding"}


def test_names_frozen_layers_and_a_mask_are_kept():
    ids = keras.Input((None,), dtype="int32", name="ids")
    h = layers.Embedding(20, 8, mask_zero=True, name="pieces", trainable=False)(ids)
    student = keras.Model(
        ids, layers.Dense(2, name="last")(layers.GlobalAveragePooling1D(name="mean")(h)), name="small"
    )
    quantized = quantize_aware(student)
    assert quantized.name == "small" and [one.name for one in quantized.layers] == [one.name for one in student.layers]
    assert [w.path for w in quantized.trainable_variables] == [w.path for w in student.trainable_variables]
    x = np.array([[3, 4, 0, 0]])
    np.testing.assert_allclose(quantized.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-2)


def test_two_replicas_and_half_precision(data):
    x, y = data
    strategy = strategy_of(2)
    with strategy.scope():
        student = quantize_aware(dense_model(16, 3), activations="int8")
        student.compile("sgd", crossentropy())
    student.fit(x[:32], y[:32], batch_size=32, shuffle=False, verbose=0)
    (low, high) = student.layers[1].input_range.range.numpy()
    halves = x[:16], x[16:32]
    np.testing.assert_allclose([low, high], [np.mean([h.min() for h in halves]), np.mean([h.max() for h in halves])])

    keras.config.set_dtype_policy("mixed_float16")
    half = dense_model(16, 3)
    quantized = quantize_aware(half, activations="int8")
    kernel = half.layers[0].get_weights()[0]
    np.testing.assert_array_equal(quantized.layers[1].kernel, rounded(kernel, (0,)).astype("float16"))
    quantized.compile("adam", crossentropy())
    assert np.isfinite(quantized.fit(x[:32], y[:32], verbose=0).history["loss"]).all()


# Files ----------------------------------------------------------------------------------------------------------------


def export(student, tmp_path, **options):
    return keras_kd.export(student, tmp_path / "student.tflite", overwrite=True, **options)


def weights_in(path):
    """The dequantized weights of a file that are kept as 8-bit integers, by the number of numbers."""
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    found = {}
    for details in interpreter.get_tensor_details():
        scales = details["quantization_parameters"]["scales"]
        if details["dtype"] == np.int8 and len(scales) > 1:
            axes = [1] * len(details["shape"])
            axes[details["quantization_parameters"]["quantized_dimension"]] = -1
            found[details["name"]] = interpreter.get_tensor(details["index"]) * scales.reshape(axes)
    return found


def eight_bit_inputs(shape):
    """Inputs that the rounding of activations leaves alone: whole numbers from -128 to 127 in each row."""
    x = np.random.default_rng(0).integers(-128, 128, size=(4, *(5 if n is None else n for n in shape)))
    x[..., 0], x[..., 1] = -128, 127
    return x.astype("float32")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that gives (student, its inputs, the file's report) of a kind of layer in so many bits."""

    @functools.cache
    def write(kind, bits):
        make, shape, _ = KINDS[kind]
        student, x = quantize_aware(model_of(make(), shape), weights=f"int{bits}"), eight_bit_inputs(shape)
        folder = tmp_path_factory.mktemp(kind)
        return student, x, export(student, folder, quantize="dynamic", compare_with=x, min_agreement=0.0)

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_integers_that_were_trained(written, kind):
    student, x, report = written(kind, 8)
    assert report.max_difference < 2e-6 * np.abs(student.predict(x, verbose=0)).max()
    (found,) = weights_in(report.path).values()
    kernel = np.asarray(student.layers[-1].kernel)
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(kernel, axis=None), rtol=1e-6)


@pytest.mark.parametrize("kind", ["dense_over_tokens", "attention_output", "conv2d"])
def test_four_bits_are_half_of_eight(written, kind):
    student, x, report = written(kind, 4)
    assert report.max_difference < 2e-6 * np.abs(student.predict(x, verbose=0)).max()
    saved = written(kind, 8)[-1].size_bytes - report.size_bytes
    assert saved == pytest.approx(np.prod(student.layers[-1].kernel.shape) / 2, abs=64)


@pytest.mark.parametrize(("width", "bits"), [(24, 4), (25, 4), (25, 8)])
def test_a_file_holds_a_table_by_rows(tmp_path, width, bits):
    student = quantize_aware(model_of(layers.Embedding(500, width), (7,), "int32"), weights=f"int{bits}")
    ids = np.random.default_rng(0).integers(0, 500, (30, 7)).astype("int32")
    report = export(student, tmp_path, quantize="dynamic", compare_with=ids, min_agreement=0.0)
    assert report.max_difference < 1e-6 * np.abs(student.predict(ids, verbose=0)).max()
    assert report.size_bytes < 500 * (width + 1) * bits / 8 + 500 * 4 + 5000


def test_a_file_in_integers_needs_no_calibration(tmp_path):
    student, x = quantize_aware(encoder(), activations="int8"), inputs_of("encoder")
    for _ in range(3):
        student(x, training=True)
    report = export(student, tmp_path, quantize="int8", compare_with=x)
    assert report.mean_difference < 0.01 * np.abs(student.predict(x, verbose=0)).max()
    matrices = {tuple(w.shape) for w in weights_in(report.path).values()}
    kernels = [layer.kernel for layer in flat_layers(student) if isinstance(layer, layers.Dense)]
    assert {tuple(kernel.shape)[::-1] for kernel in kernels} <= matrices


def test_attention_in_integers_is_as_near_as_its_rounding(tmp_path):
    inputs = keras.Input((None, 24), name="x")
    block = keras_hub.layers.TransformerEncoder(48, num_heads=2, activation="relu")
    student = quantize_aware(keras.Model(inputs, block(inputs)), activations="int8")
    x = np.random.default_rng(0).normal(size=(16, 16, 24)).astype("float32")
    for batch in (x[:5], x[5:], x[:2]):  # so that the range of outputs is not that of the next layer's inputs
        student(batch, training=True)
    report = export(student, tmp_path, quantize="int8", compare_with=x, min_agreement=0.0)
    assert report.mean_difference < 0.02  # of numbers around 1; 0.2 where values have another zero than 0


def flat_layers(model):
    return [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]


def test_all_activations_of_a_convolutional_network_are_integers(tmp_path):
    inputs = keras.Input((16, 6), name="x")
    h = layers.Conv1D(32, 3, activation="relu")(inputs)
    student = keras.Model(inputs, layers.Dense(40)(layers.Flatten()(h)))
    x = np.random.default_rng(0).normal(size=(64, 16, 6)).astype("float32")
    quantized = quantize_aware(student, activations="int8")
    quantized(x, training=True)
    report = export(quantized, tmp_path, quantize="int8", compare_with=x)
    scale = np.ptp(quantized.layers[-1].activation.output_range.range.numpy()) / 255
    assert report.max_difference < 1.01 * scale  # a rounding apart
    interpreter = tf.lite.Interpreter(report.path)
    floats = [d["name"] for d in interpreter.get_tensor_details() if d["dtype"] == np.float32]
    assert len(floats) == 2  # what goes in and what comes out


def test_a_softmax_at_the_end_is_told_and_exported(tmp_path):
    student = quantize_aware(dense_model(64, 40, last="softmax"), activations="int8")
    assert keras_kd.outputs.ends_in_softmax(student) == [True]
    x = inputs_of("mlp")
    student(x, training=True)
    assert export(student, tmp_path, quantize="int8", compare_with=x).mean_difference < 1e-3


def test_half_precision_is_exported_as_it_is_rounded(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    student, x = quantize_aware(dense_model(64, 40)), inputs_of("mlp")
    export(student, tmp_path, quantize="dynamic", compare_with=x)
    (found,) = weights_in(tmp_path / "student.tflite").values()
    np.testing.assert_allclose(found, rounded(student.layers[2].get_weights()[0], (0,)).T, rtol=1e-6)


def test_a_saved_model_of_a_quantized_student(tmp_path):
    student, x = quantize_aware(text_cnn(), weights="int4"), inputs_of("cnn")
    assert keras_kd.export(student, tmp_path / "student", compare_with=x).max_difference < 1e-5


# Refused --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_quantized_is_refused():
    student = dense_model(8, 3)
    with pytest.raises(ValueError, match=r"weights must be one of \['int8', 'int4'\], got 'int2'"):
        quantize_aware(student, weights="int2")
    with pytest.raises(ValueError, match=r"activations must be one of \[None, 'int8'\], got 'int4'"):
        quantize_aware(student, activations="int4")
    with pytest.raises(ValueError, match="activations must be None with weights='int4'"):
        quantize_aware(student, weights="int4", activations="int8")
    with pytest.raises(ValueError, match=r"skip must name layers .*\['hidden_0', 'logits'\].* got 'logit'"):
        quantize_aware(student, skip=["logit"])
    with pytest.raises(TypeError, match=r"skip must be a list of names, .* pass \['logits'\]"):
        quantize_aware(student, skip="logits")
    with pytest.raises(ValueError, match="skip leaves none"):
        quantize_aware(student, skip=["logits", "hidden_0"])
    with pytest.raises(ValueError, match=r"student must have a layer that can be quantized, .* it has none"):
        quantize_aware(keras.Sequential([keras.Input((3, 2)), layers.LSTM(2)]))
    with pytest.raises(ValueError, match=r"student 'sequential.*' is not built"):
        quantize_aware(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(TypeError, match=r"student must be a keras.Model, got str"):
        quantize_aware("student.keras")
    with pytest.raises(ValueError, match=r"'hidden_0' is quantized already by keras_kd.deploy.quantize_aware"):
        quantize_aware(quantize_aware(student))
    student.quantize("int8")
    with pytest.raises(ValueError, match=r"'hidden_0' is quantized by model.quantize\(\), to int8_from_float32"):
        quantize_aware(student)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    student = Own()
    student(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="student must be a functional or sequential model, got Own"):
        quantize_aware(student)


def test_export_asks_for_what_was_trained(tmp_path):
    x = inputs_of("mlp")
    trained = quantize_aware(dense_model(8, 3), activations="int8")
    with pytest.raises(ValueError, match=r"quantize must be 'int8' for a student .* int8 activations, got 'dynamic'"):
        export(trained, tmp_path, quantize="dynamic")
    with pytest.raises(ValueError, match="calibration must be None for a student of quantize_aware"):
        export(trained, tmp_path, quantize="int8", calibration=x)
    with pytest.raises(ValueError, match=r"student must be trained before it is exported.*input_range"):
        export(trained, tmp_path, quantize="int8")
    with pytest.raises(ValueError, match=r"quantize must be 'dynamic' for a student .* int4 weights, got 'int8'"):
        export(quantize_aware(dense_model(8, 3), weights="int4"), tmp_path, quantize="int8", calibration=x)
    with pytest.raises(ValueError, match="calibration must be given for quantize='int8'"):
        export(quantize_aware(dense_model(8, 3)), tmp_path, quantize="int8")
    assert not list(tmp_path.iterdir())
    assert export(quantize_aware(dense_model(8, 40)), tmp_path, quantize="int8", calibration=x).quantize == "int8"
