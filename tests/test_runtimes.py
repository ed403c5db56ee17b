"""runtimes: every form of a model answers as Keras's own predict does, and says what does not fit."""

import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model

from keras_kd.deploy.runtimes import KerasRuntime, LiteRTRuntime, SavedModelRuntime, open_runtime
from keras_kd.evaluation import evaluate

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
layers = keras.layers
X = np.random.default_rng(0).normal(size=(10, 8)).astype("float32")
IDS = np.random.default_rng(0).integers(0, 50, size=(10, 6)).astype("int32")


def two_in_two_out():
    features, ids = keras.Input((8,), name="features"), keras.Input((6,), dtype="int32", name="ids")
    h = layers.Concatenate()([features, layers.Flatten()(layers.Embedding(50, 2)(ids))])
    return keras.Model({"features": features, "ids": ids}, {"kind": layers.Dense(4)(h), "amount": layers.Dense(1)(h)})


def write(model, folder):
    """The model in every form: {form: what opens it}, written by Keras and TensorFlow alone."""
    model.save(folder / "model.keras")
    model.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "model.tflite").write_bytes(converter.convert())
    return {
        "live": model,
        "keras": folder / "model.keras",
        "saved_model": str(folder / "saved"),
        "litert": folder / "model.tflite",
    }


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A model with one input and one output, in every form."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    return write(dense_model(16, 4), tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    """A model with two inputs and two outputs, in every form."""
    keras.utils.set_random_seed(1)
    return write(two_in_two_out(), tmp_path_factory.mktemp("double"))


FORMS = {"live": KerasRuntime, "keras": KerasRuntime, "saved_model": SavedModelRuntime, "litert": LiteRTRuntime}


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_as_predict_does(single, double, form):
    runtime = open_runtime(single[form])
    assert type(runtime) is FORMS[form]
    (name,) = runtime.specs()  # Keras writes other names than keras_kd.export
    expected = single["live"].predict(X, verbose=0)
    for x in (X, X.astype("float64"), tf.constant(X), X.tolist(), {name: X}):
        given = runtime.predict(x, batch_size=4)
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, expected, atol=1e-6)
    inputs = {"features": X, "ids": IDS}
    given, expected = open_runtime(double[form]).predict(inputs), double["live"].predict(inputs, verbose=0)
    assert set(given) == set(expected) == {"kind", "amount"}
    for name, array in expected.items():
        np.testing.assert_allclose(given[name], array, atol=1e-6)


def test_facts(single):
    parameters = 8 * 16 + 16 + 16 * 4 + 4
    facts = {
        form: (open_runtime(source).parameters, open_runtime(source).size_bytes) for form, source in single.items()
    }
    assert facts["live"] == (parameters, 4 * parameters)
    assert facts["keras"] == (parameters, single["keras"].stat().st_size)
    assert facts["saved_model"][0] == parameters and facts["saved_model"][1] > 4 * parameters
    assert facts["litert"] == (None, single["litert"].stat().st_size)
    assert {open_runtime(source).fixed_batch for source in single.values()} == {None}
    half = dense_model(16, 4, dtype="bfloat16")
    assert open_runtime(half).size_bytes == 2 * parameters


def test_a_live_model_is_followed_and_left_alone():
    model = keras.Sequential([keras.Input((8,)), layers.Dropout(0.9), layers.Dense(4)])
    runtime = open_runtime(model)
    np.testing.assert_allclose(runtime.predict(X), runtime.predict(X))  # no dropout
    model.layers[-1].bias.assign([1, 2, 3, 4])
    np.testing.assert_allclose(runtime.predict(X), model.predict(X, verbose=0), atol=1e-6)
    fresh = dense_model(4)
    open_runtime(fresh).predict(X)
    assert not fresh.compiled and fresh.predict_function is None


def test_several_outputs_of_a_list_are_numbered():
    x = keras.Input((8,))
    model = keras.Model(x, [layers.Dense(4)(x), layers.Dense(2)(x)])
    given, expected = open_runtime(model).predict(X), model.predict(X, verbose=0)
    np.testing.assert_allclose(given["output_0"], expected[0], atol=1e-6)
    np.testing.assert_allclose(given["output_1"], expected[1], atol=1e-6)


class Shift(tf.Module):
    """x + 0, + 1, + 2 … by position in the batch, for batches of 4 only: it shows how examples were laid out."""

    @tf.function(input_signature=[tf.TensorSpec((4, 8), name="x")])
    def __call__(self, x):
        return {"y": x + tf.range(4.0)[:, None]}


@pytest.mark.parametrize("form", ["saved_model", "litert"])
def test_a_file_bound_to_a_batch_size(tmp_path, form):
    module = Shift()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.__call__)
    path = tmp_path / "saved"
    if form == "litert":
        path = tmp_path / "a.tflite"
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert())
    runtime = open_runtime(path)
    assert runtime.fixed_batch == 4
    np.testing.assert_allclose(runtime.predict(X), X + (np.arange(10) % 4)[:, None])  # pieces of 4, 4 and 2
    np.testing.assert_allclose(runtime.predict(X[:1]), X[:1])
    assert runtime.latency_ms(X[:1], repeats=2) > 0


@pytest.mark.parametrize("side", ["inference_input_type", "inference_output_type"])
def test_a_file_with_integers_outside_is_refused(single, tmp_path, side):
    converter = tf.lite.TFLiteConverter.from_saved_model(single["saved_model"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    (name,) = open_runtime(single["saved_model"]).specs()
    converter.representative_dataset = lambda: ({name: X[i : i + 1]} for i in range(len(X)))
    setattr(converter, side, tf.int8)
    (tmp_path / "int8.tflite").write_bytes(converter.convert())
    with pytest.raises(ValueError, match=r"must take and give real numbers, but .* are quantized"):
        open_runtime(tmp_path / "int8.tflite")


def test_a_dtype_that_fits_is_cast():
    runtime = open_runtime(two_in_two_out())
    expected = runtime.predict({"features": X, "ids": IDS})
    for dtype in ("int64", "uint8"):
        given = runtime.predict({"features": X, "ids": IDS.astype(dtype)})
        np.testing.assert_array_equal(given["kind"], expected["kind"])
    pixels = np.arange(16, dtype="uint8").reshape(2, 8)
    model = dense_model(4)
    np.testing.assert_allclose(open_runtime(model).predict(pixels), model.predict(pixels * 1.0, verbose=0), atol=1e-5)


# --- Latency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_latency_of_every_form(double, form):
    assert 0 < open_runtime(double[form]).latency_ms({"features": X[:1], "ids": IDS[:1]}, repeats=3) < 1000


def test_latency_is_in_milliseconds_and_the_first_calls_do_not_count():
    class Slow(keras.Model):
        calls = 0

        def call(self, x):
            Slow.calls += 1
            time.sleep(0.02 if Slow.calls > 3 else 0.5)
            return x

    slow = Slow()
    slow.build((None, 8))
    slow.compile(run_eagerly=True)
    assert 20 <= open_runtime(slow).latency_ms(X[:1], repeats=2, warmup=3) < 200
    assert Slow.calls == 5


def test_latency_is_of_one_example(single):
    with pytest.raises(ValueError, match=r"x_one must be a batch of one example, got 10; pass x\[:1\]"):
        open_runtime(single["live"]).latency_ms(X)


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X, r"x must be a dict with an array for each input, \['features', 'ids'\], got a single array"),
        ({"features": X}, r"x must have the model's inputs, \['features', 'ids'\], got \['features'\]"),
        ({"features": X, "ids": IDS, "more": X}, r"got \['features', 'ids', 'more'\]"),
        ({"features": X, "ids": IDS[:3]}, r"as many in each input, got the shapes .*\(10, 8\).*\(3, 6\)"),
        ({"features": X[:0], "ids": IDS[:0]}, "x must hold at least one example"),
        ({"features": X[:, :5], "ids": IDS}, r"input 'features' must have shape \(None, 8\), got \(10, 5\)"),
        ({"features": X[..., None], "ids": IDS}, r"input 'features' must have shape \(None, 8\), got \(10, 8, 1\)"),
        ({"features": X, "ids": X[:, :6]}, "input 'ids' must be of dtype int32, got float32"),
        ({"features": X, "ids": IDS.astype("int64") + 2**31}, "input 'ids' holds numbers outside int32: 2147483648 to"),
        ({"features": X, "ids": IDS.astype(str)}, "input 'ids' must be of dtype int32, got object"),
        ({"features": np.float32(3), "ids": IDS}, r"as many in each input, got the shapes"),
    ],
)
def test_data_that_does_not_fit(double, form, x, message):
    with pytest.raises(ValueError, match=message):
        open_runtime(double[form]).predict(x)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_batch_size(single, size, error):
    with pytest.raises(error, match="batch_size must be"):
        open_runtime(single["live"]).predict(X, batch_size=size)


def test_numbers_are_not_text():
    text = keras.Input((), dtype="string", name="text")
    model = keras.Model(text, layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(text))
    np.testing.assert_array_equal(open_runtime(model).predict(["b", "?"]), [[0, 0, 1], [1, 0, 0]])
    with pytest.raises(ValueError, match="input 'text' must be of dtype string, got float64"):
        open_runtime(model).predict([1.0])


@pytest.mark.parametrize(
    "outputs", [lambda x: {"a": {"b": x}}, lambda x: [[x], x], lambda x: {0: x}], ids=["nested", "lists", "numbers"]
)
def test_outputs_without_names(outputs):
    x = keras.Input((8,))
    with pytest.raises(ValueError, match="the model's outputs must be a tensor, a list of tensors or a dict of them"):
        open_runtime(keras.Model(x, outputs(layers.Dense(2)(x)))).predict(X)


def test_an_output_that_is_not_by_example():
    x = keras.Input((8,))
    model = keras.Model(x, keras.ops.reshape(layers.Dense(4)(x), (-1, 2)))
    with pytest.raises(ValueError, match="output 'output_0' has 20 rows for 10 examples"):
        open_runtime(model).predict(X)


# --- Files ------------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def other(path):
    path.write_bytes(b"something else" * 100)


@pytest.mark.parametrize("damage", [cut, empty, other])
@pytest.mark.parametrize(
    "damaged", ["model.keras", "model.tflite", "saved/saved_model.pb", "saved/variables/variables.data-00000-of-00001"]
)
def test_damaged_files(single, tmp_path, damage, damaged):
    shutil.copytree(single["keras"].parent, tmp_path / "copy")
    damage(tmp_path / "copy" / damaged)
    path = tmp_path / "copy" / damaged.split("/")[0]
    with pytest.raises(ValueError, match=f"{path}' is damaged or cannot be loaded .*Save it again"):
        open_runtime(path)


@pytest.mark.parametrize(
    ("damaged", "places"),
    [
        ("model.keras", [0.1, 0.3, 0.5, 0.7, 0.9]),
        # It has no checksum, and a tenth of it may hold any bytes (names in attributes, shapes that are not
        # read); where these are depends on what TensorFlow has counted. The types of operations are noticed.
        ("saved/saved_model.pb", [0.0, b"MatMul", b"StatefulPartitionedCall"]),
        ("saved/variables/variables.data-00000-of-00001", [0.0, 0.1, 0.5, 0.9, 0.999]),
        ("model.tflite", [0.0, 0.02]),  # its header: LiteRT has no checksum, weights may hold any bytes
    ],
)
def test_a_flipped_byte_is_noticed(single, tmp_path, damaged, places):
    shutil.copytree(single["keras"].parent, tmp_path / "copy")
    file, path = tmp_path / "copy" / damaged, tmp_path / "copy" / damaged.split("/")[0]
    whole = file.read_bytes()
    for place in places:
        content = bytearray(whole)
        content[content.index(place) if isinstance(place, bytes) else int(place * len(content))] ^= 0xFF
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}' is damaged or cannot be loaded .*Save it again"):
            open_runtime(path)
    file.write_bytes(whole)
    assert open_runtime(path).predict(X).shape == (10, 4)


@pytest.mark.parametrize(
    "missing", ["variables", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_saved_model_without_its_variables(single, tmp_path, missing):
    shutil.copytree(single["saved_model"], tmp_path / "saved")
    gone = tmp_path / "saved" / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ValueError, match=r"saved' is damaged or cannot be loaded .*Save it again"):
        open_runtime(tmp_path / "saved")


def test_a_file_without_a_signature(single, tmp_path):
    function = tf.function(lambda x: x + 1.0, input_signature=[tf.TensorSpec((None, 8))])
    tf.saved_model.save(tf.Module(), str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"saved must have a signature 'serving_default', got \[\]"):
        open_runtime(tmp_path / "saved")
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    (tmp_path / "a.tflite").write_bytes(converter.convert())
    with pytest.raises(ValueError, match=r"a\.tflite must have a signature; convert it with TFLiteConverter"):
        open_runtime(tmp_path / "a.tflite")


def test_what_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for path, error, message in [
        (tmp_path / "none.tflite", FileNotFoundError, "nothing is at '.*none.tflite'"),
        (tmp_path, ValueError, "got a folder without saved_model.pb"),
        (tmp_path / "notes.txt", ValueError, "got a file of another kind: '.*notes.txt'"),
        (3, TypeError, "model_or_path must be a keras.Model, or the path of .*, got int: 3"),
        (None, TypeError, "got NoneType"),
        (keras.Sequential([layers.Dense(4)]), ValueError, "model must be built, got 'sequential.*' without weights"),
    ]:
        with pytest.raises(error, match=message):
            open_runtime(path)


def test_evaluate_measures_files_as_it_does_models(single):
    labels = single["live"].predict(X, verbose=0).argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % 4
    evaluation = evaluate({"teacher": single["live"], **single}, (X, labels), bootstrap=0)
    for form in single:
        assert evaluation.score(form, "accuracy").value == 0.7
        assert evaluation.score(form, "macro_f1") == evaluation.score("teacher", "macro_f1")
        assert evaluation.score(form, "agreement").value == 1.0
        assert evaluation.score(form, "kl").value == pytest.approx(0.0, abs=1e-9)
        assert evaluation.models[form].latency_ms > 0
        assert evaluation.models[form].size_bytes == open_runtime(single[form]).size_bytes
