"""export: what is written answers as the student does, also elsewhere; where it does not, nothing is left."""

import dataclasses
import json
import logging
import pathlib
import random
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of

import keras_kd
from keras_kd.deploy.exporting import export
from keras_kd.deploy.runtimes import KerasRuntime, open_runtime

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
layers, ops = keras.layers, keras.ops


def names_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


def with_cards(*names):
    """The names of files, and of the two that export writes beside each."""
    return sorted(name + ending for name in names for ending in ("", ".card.md", ".metadata.json"))


def predict(model, x):
    """What Keras itself answers: the expected values of all comparisons, by output name."""
    outputs = model.predict(x, verbose=0)
    if isinstance(outputs, dict):
        return outputs
    return {f"output_{i}": array for i, array in enumerate(outputs if isinstance(outputs, list) else [outputs])}


def trained(model, x, y):
    model.compile(keras.optimizers.Adam(0.01), crossentropy())
    model.fit(x, y, epochs=15, verbose=0)
    return model


@pytest.fixture(scope="module")
def mlp():
    """A trained classifier of 4 noisy clusters, its inputs."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=300)
    x = (rng.normal(size=(4, 8))[y] + 0.5 * rng.normal(size=(300, 8))).astype("float32")
    return trained(dense_model(64, 64, 4), x, y), x


def text_cnn():
    ids = keras.Input((12,), dtype="int32", name="ids")
    h = layers.Conv1D(48, 3, activation="relu")(layers.Embedding(80, 24)(ids))
    return keras.Model(ids, layers.Dense(4)(layers.GlobalMaxPooling1D()(h)))


@pytest.fixture(scope="module")
def texts():
    """A trained text classifier (which of 4 ranges of tokens occurs), its inputs: token ids, 0 for padding."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=300)
    x = rng.integers(41, 80, size=(300, 12)).astype("int32")
    x[np.arange(300), rng.integers(0, 8, size=300)] = 1 + 10 * y + rng.integers(10, size=300)
    x[:, 10:] = 0
    return trained(text_cnn(), x, y), x


@pytest.fixture(scope="module")
def written(mlp, texts, tmp_path_factory):
    """Both students in every quantization: {"mlp" or "texts": {quantization: the report}}."""

    def write(student, x, calibration):
        folder = tmp_path_factory.mktemp("written")
        return {
            quantize: export(
                student,
                folder / f"{quantize}.tflite",
                quantize=quantize,
                calibration=calibration if quantize == "int8" else None,
                compare_with=x,
            )
            for quantize in (None, "float16", "dynamic", "int8")
        }

    x = mlp[1]
    batches = tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(70)
    batches = batches.map(lambda x, y: (tf.concat([0 * x[:1], x], axis=0), y))  # the first example alone tells nothing
    return {"mlp": write(*mlp, batches), "texts": write(*texts, texts[1])}


# --- Answers and figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "texts"])
def test_each_quantization_is_as_near_and_as_small_as_it_should_be(request, written, kind):
    student, x = request.getfixturevalue(kind)
    reports = written[kind]
    for quantize, report in reports.items():
        path = pathlib.Path(report.path)
        assert report.size_bytes == path.stat().st_size
        assert (path.name, report.format, report.quantize) == (f"{quantize}.tflite", "litert", quantize)
        assert (report.examples, report.generated, report.batch_size) == (300, False, None)
        assert 0 < report.latency_ms < 1000
        # The figures, from Keras's own answers and from the interpreter without anything of ours.
        expected, given = predict(student, x)["output_0"], interpreted(path, x)
        difference = np.abs(expected.astype("float64") - given)
        assert report.max_difference == pytest.approx(difference.max(), abs=1e-5)
        assert report.mean_difference == pytest.approx(difference.mean(), abs=1e-6)
        assert report.agreement == pytest.approx(np.mean(expected.argmax(-1) == given.argmax(-1)), abs=1e-9)
    largest = np.abs(predict(student, x)["output_0"]).max()
    assert reports[None].max_difference < 1e-5
    assert 0 < reports["float16"].max_difference < 2e-3 * largest
    assert reports["float16"].mean_difference < reports["dynamic"].mean_difference < 0.02 * largest
    assert reports["int8"].mean_difference < 0.05 * largest
    assert [reports[quantize].agreement for quantize in (None, "float16")] == [1, 1]
    assert reports["dynamic"].agreement > 0.97 and reports["int8"].agreement > 0.95
    weights = 4 * student.count_params()
    sizes = {quantize: report.size_bytes for quantize, report in reports.items()}
    assert weights < sizes[None] < weights + 4000
    assert sizes[None] - sizes["float16"] == pytest.approx(weights / 2, rel=0.15)
    assert sizes[None] - sizes["dynamic"] == pytest.approx(weights * 3 / 4, rel=0.25)
    assert sizes["int8"] < 0.6 * sizes[None]
    check_that_int8_is_integers_inside(reports["int8"].path, x.dtype)


def check_that_int8_is_integers_inside(path, dtype):
    interpreter = tf.lite.Interpreter(path)
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"], answer["dtype"]) == (dtype, np.float32)
    edges = {given["index"], answer["index"]}
    inside = {d["dtype"] for d in interpreter.get_tensor_details() if d["index"] not in edges and d["shape"].size}
    assert np.int8 in inside and np.float32 not in inside  # beside int8: biases and token ids (int32), comparisons


def interpreted(path, x):
    """The answers of a .tflite file, by TensorFlow's interpreter alone."""
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_calibration_decides_the_ranges(mlp, written, tmp_path):
    student, x = mlp
    good = written["mlp"]["int8"]
    bad = export(student, tmp_path / "bad.tflite", quantize="int8", calibration=0.05 * x, compare_with=x)
    assert good.agreement > bad.agreement + 0.1
    assert good.mean_difference < 0.1 * bad.mean_difference


def test_agreement_by_hand(tmp_path, monkeypatch):
    """The file is stood in for by another model: 4 examples, 1 of which changes its class in 1 of 2 outputs."""
    student = two_outputs_from_one_input([0.0, 0.0, 0.0], 0.0)
    elsewhere = two_outputs_from_one_input([0.0, 1.0, 0.0], 0.5)
    monkeypatch.setattr(sys.modules["keras_kd.deploy.exporting"], "open_runtime", lambda path: KerasRuntime(elsewhere))
    x = np.array([[3, 1, 0], [1, 0.5, 0], [0, 3, 1], [0, 1, 3]], "float32")
    report = export(student, tmp_path / "a", compare_with=x)
    assert report.agreement == 0.75
    assert report.max_difference == 1.0
    # Of 4 x 3 numbers 4 differ by 1; of 4 x 2 all differ by 0.5.
    assert report.mean_difference == pytest.approx((4 * 1.0 + 8 * 0.5) / 20)
    with pytest.raises(RuntimeError, match=r"agrees with the student on 75.00 % .* less than min_agreement=0.76"):
        export(student, tmp_path / "b", compare_with=x, min_agreement=0.76)
    export(student, tmp_path / "b", compare_with=x, min_agreement=0.75)


def two_outputs_from_one_input(shift, further):
    x = keras.Input((3,))
    return keras.Model(x, {"three": x + np.float32(shift), "two": x[:, :2] + further})


# --- Every kind of student --------------------------------------------------------------------------------------------


def ids_input(length=12):
    return keras.Input((length,), dtype="int32")


def pooled(h):
    return layers.Dense(4)(layers.GlobalAveragePooling1D()(h))


def lstm():
    h = layers.Embedding(80, 8, mask_zero=True)(x := ids_input())
    return keras.Model(x, layers.Dense(4)(layers.LSTM(6)(h)))


def unrolled_gru():
    h = layers.Embedding(80, 8)(x := ids_input(4))
    return keras.Model(x, layers.Dense(4)(layers.GRU(6, unroll=True)(h)))


def attention():
    h = layers.Embedding(80, 8, mask_zero=True)(x := ids_input())
    return keras.Model(x, pooled(layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 4)(h, h))))


def any_length():
    return keras.Model(x := ids_input(None), pooled(layers.Conv1D(8, 3, padding="same")(layers.Embedding(80, 8)(x))))


def named_inputs():
    return {"features": keras.Input((8,), name="features"), "ids": keras.Input((12,), dtype="int32", name="ids")}


def merged(features, ids):
    return layers.Concatenate()([layers.Dense(4, "relu")(features), layers.Flatten()(layers.Embedding(80, 2)(ids))])


def dicts():
    h = merged(**(x := named_inputs()))
    return keras.Model(x, {"kind": layers.Dense(4)(h), "amount": layers.Dense(1)(h)})


def lists():
    h = merged(**(x := named_inputs()))
    return keras.Model(list(x.values()), [layers.Dense(4)(h), layers.Dense(1)(h)])


def nested():
    h = merged(**(x := named_inputs()))
    return keras.Model({"all": x}, layers.Dense(4)(h))


def preprocessing():
    """Rescaling, BatchNormalization that has seen something, Dropout, softmax."""
    model = keras.Sequential(
        [keras.Input((8,)), layers.Rescaling(0.5, offset=1.0), layers.Dense(16), layers.BatchNormalization()]
    )
    for layer in (layers.ReLU(), layers.Dropout(0.5), layers.Dense(4, "softmax")):
        model.add(layer)
    for _ in range(20):
        model(3 + 2 * np.random.default_rng(0).normal(size=(32, 8)), training=True)
    return model


class Subclassed(keras.Model):
    """Keras does not know its input: it is token ids."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embedding, self.last = layers.Embedding(80, 8), layers.Dense(4)

    def call(self, ids):
        return self.last(ops.mean(self.embedding(ids), axis=1))


class TakesDict(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden, self.last = layers.Dense(8), layers.Dense(4)

    def call(self, inputs):
        return {"logits": self.last(self.hidden(inputs["a"]) * inputs["b"])}


def called(model, x):
    model(x)
    return model


def in_policy(policy, make):
    keras.config.set_dtype_policy(policy)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(50, 8)).astype("float32")
IDS = RNG.integers(0, 80, size=(50, 12)).astype("int32")
BOTH = {"features": FEATURES, "ids": IDS}
A_AND_B = {"a": FEATURES, "b": np.abs(FEATURES)}

# name: (student, what Keras predicts from, what export compares on, largest difference to allow)
STUDENTS = {
    "lstm": (lstm, IDS, IDS, 1e-5),
    "unrolled_gru": (unrolled_gru, IDS[:, :4], IDS[:, :4], 1e-5),
    "attention": (attention, IDS, IDS, 1e-5),
    "any_length": (any_length, IDS, IDS, 1e-5),
    "dicts": (dicts, BOTH, BOTH, 1e-5),
    "lists": (lists, list(BOTH.values()), BOTH, 1e-5),
    "nested": (nested, {"all": BOTH}, BOTH, 1e-5),
    "preprocessing": (preprocessing, FEATURES, FEATURES, 1e-5),
    "subclassed": (lambda: called(Subclassed(), IDS), IDS, IDS, 1e-5),
    "subclassed, dict": (lambda: called(TakesDict(), A_AND_B), A_AND_B, A_AND_B, 1e-5),
    "eager": (lambda: eager(), FEATURES, FEATURES, 1e-5),
    "mixed_float16": (lambda: in_policy("mixed_float16", attention), IDS, IDS, 0.003),
    "float16": (lambda: in_policy("float16", lambda: dense_model(16, 4)), FEATURES, FEATURES, 0.01),
    "low-precision input": (lambda: low_precision_input(), FEATURES, FEATURES, 0.05),
}


def low_precision_input():
    x = keras.Input((8,), dtype="bfloat16")
    return keras.Model(x, layers.Dense(4, dtype="mixed_bfloat16")(x))


def eager():
    model = dense_model(16, 4)
    model.compile(run_eagerly=True)
    return model


@pytest.mark.parametrize("name", STUDENTS)
def test_the_files_answer_as_the_student_does(tmp_path, name):
    make, x, named, tolerance = STUDENTS[name]
    student = make()
    expected = predict(student, x)
    for path, allowed in ((tmp_path / "a", 0.0), (tmp_path / "a.tflite", tolerance)):
        report = export(student, path, compare_with=named, min_agreement=0.9 if allowed > 1e-4 else 1.0)
        assert report.max_difference <= allowed
        given = open_runtime(path).predict(named)
        given = given if isinstance(given, dict) else dict.fromkeys(expected, given)
        assert set(given) == set(expected)
        for output, array in expected.items():
            np.testing.assert_allclose(given[output], array.astype("float32"), atol=tolerance)
    assert not {spec.dtype for spec in open_runtime(path).specs().values()} & {tf.float16, tf.bfloat16}
    one_a_call = name == "lstm"
    assert report.batch_size == (1 if one_a_call else None)
    assert ("1 example a call" in str(report)) == one_a_call
    assert sorted(found.name for found in tmp_path.iterdir()) == with_cards("a", "a.tflite")  # and nothing hidden


@pytest.mark.parametrize("make", [unrolled_gru, any_length, dicts])
def test_int8_of_other_students(tmp_path, make):
    named = {"unrolled_gru": IDS[:, :4], "any_length": IDS, "dicts": BOTH}[make.__name__]
    report = export(make(), tmp_path / "a.tflite", quantize="int8", calibration=named, compare_with=named)
    assert report.agreement > 0.85
    assert report.mean_difference < 0.05


def test_what_a_low_precision_student_has_adapted_to_is_kept(tmp_path):
    """Mean and variance of Normalization are no weights that `set_weights` would carry over."""

    def adapted():
        normalization = layers.Normalization()
        normalization.adapt(FEATURES * 100.0 + 50.0)
        return keras.Sequential([keras.Input(FEATURES.shape[1:]), normalization, layers.Dense(4)])

    student = in_policy("mixed_bfloat16", adapted)
    report = export(student, tmp_path / "a.tflite", compare_with=FEATURES * 100.0 + 50.0)
    assert report.max_difference < 0.1


def test_a_low_precision_student_may_hold_classes_of_the_users(tmp_path):
    """The float32 copy of a registered class, whose inner layers get the policy of the moment they are made in."""
    student = in_policy("mixed_bfloat16", lambda: called(Scaled(), FEATURES))

    def users_loss(y, logits):
        return ops.mean(logits)

    student.compile(loss=users_loss)  # which cannot be rebuilt, and need not be
    report = export(student, tmp_path / "a.tflite", compare_with=FEATURES)
    assert report.max_difference < 0.05
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(RuntimeError, match=r"could not be rebuilt from its config: .*'Subclassed'.* register"):
        export(in_policy("mixed_bfloat16", lambda: called(Subclassed(), IDS)), tmp_path / "b.tflite", compare_with=IDS)
    keras.config.set_dtype_policy("mixed_bfloat16")  # where that is still the user's policy
    assert export(student, tmp_path / "c.tflite", compare_with=FEATURES).max_difference < 0.05
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert names_in(tmp_path) == with_cards("a.tflite", "c.tflite")


@keras.saving.register_keras_serializable(package="test_export")
class Scaled(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.last = layers.Dense(4)

    def call(self, x):
        return self.last(2 * x)

    def build(self, input_shape):
        self.last.build(input_shape)
        self.built = True

    def get_config(self):
        return {}


def test_the_forms_of_data(mlp, tmp_path):
    student, x = mlp[0], mlp[1][:100]
    weights = np.ones(len(x))
    forms = {"float64": x.astype("float64"), "tensor": tf.constant(x), "dict": {"inputs": x}}
    for parts in ((x, weights), (x, weights, weights), {"inputs": x}):
        forms[f"dataset {len(forms)}"] = tf.data.Dataset.from_tensor_slices(parts).batch(70)
    for form, data in forms.items():
        assert export(student, tmp_path / form, compare_with=data).examples == 100, form


def test_no_more_examples_than_the_first_are_read(mlp, tmp_path):
    student, x = mlp
    data = tf.data.Dataset.from_tensor_slices(x).batch(70).repeat()  # without an end
    assert export(student, tmp_path / "a", compare_with=data).examples == 1024


def test_made_up_inputs_fit_the_student(tmp_path):
    report = export(dicts(), tmp_path / "a")
    assert (report.examples, report.generated, report.max_difference) == (8, True, 0.0)
    assert "8 generated inputs" in str(report)
    assert export(any_length(), tmp_path / "b").generated


def test_input_names_do_not_depend_on_what_keras_has_counted(tmp_path):
    two = [keras.Input((8,)), keras.Input((8,), name="second")]
    export(keras.Model(two, layers.Dense(4)(layers.Add()(two))), tmp_path / "two")
    export(dense_model(4, inputs=8), tmp_path / "one")
    unnamed = keras.Sequential([layers.Dense(4)])
    unnamed(FEATURES)
    export(unnamed, tmp_path / "unnamed")
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    names = {path.name: set(signature(path).structured_input_signature[1]) for path in folders}
    assert names == {"two": {"input_0", "second"}, "one": {"inputs"}, "unnamed": {"inputs"}}


def signature(path):
    return tf.saved_model.load(str(path)).signatures["serving_default"]


def test_a_student_of_a_strategy(tmp_path):
    with strategy_of(2).scope():
        student = dense_model(8, 4)
    for path in (tmp_path / "a", tmp_path / "a.tflite"):
        assert export(student, path, compare_with=FEATURES).max_difference < 1e-5


def test_the_report_reads_well(written, tmp_path):
    report = written["mlp"]["int8"]
    first, second = str(report).splitlines()
    assert first.startswith(f"{report.path}: LiteRT int8, {report.size_bytes:,} bytes, ")
    assert first.endswith(" ms for one example")
    assert second.startswith("  against the student on 300 examples: agreement ")
    assert json.loads(json.dumps(dataclasses.asdict(report)))["agreement"] == report.agreement
    regression = export(dense_model(1), tmp_path / "b", compare_with=FEATURES)
    assert regression.agreement is None and "agreement" not in str(regression)


# --- Text inside the student, other processes -------------------------------------------------------------------------


class Codes(layers.Layer):
    """Strings to code points below 80: normalized by tensorflow-text, padded with 0."""

    def call(self, text):
        import tensorflow_text

        codes = tf.strings.unicode_decode(tensorflow_text.normalize_utf8(text, "NFKC"), "UTF-8")
        return tf.math.floormod(codes, 80).to_tensor(shape=(None, 12))

    def compute_output_spec(self, text):
        return keras.KerasTensor((text.shape[0], 12), "int32")


@pytest.fixture(scope="module")
def string_student():
    text = keras.Input((), dtype="string", name="text")
    x = np.array(["hello", "wörld", "日本語", "ﬁne", "", "a much longer text than that"] * 5, dtype=object)
    return keras.Model(text, pooled(layers.Embedding(80, 8)(Codes()(text)))), x


@pytest.mark.parametrize("kind", [object, "U", "S", tf.string])
def test_text_goes_into_a_saved_model(string_student, tmp_path, kind):
    student, x = string_student
    x = [text.encode() for text in x] if kind == "S" else list(x)
    x = tf.constant(x) if kind == tf.string else np.array(x, dtype=kind)
    report = export(student, tmp_path / "a", compare_with=x, min_agreement=1.0)
    assert (report.examples, report.max_difference) == (30, 0.0)


def test_text_does_not_go_into_litert(string_student, tmp_path):
    with pytest.raises(RuntimeError, match=r"LiteRT has no NormalizeUTF8.* export a SavedModel"):
        export(string_student[0], tmp_path / "a.tflite", compare_with=string_student[1])
    assert names_in(tmp_path) == []


def test_lookup_tables_come_along(tmp_path):
    vectorize = layers.TextVectorization(20, output_sequence_length=6, vocabulary=["a", "b", "c"])
    text = keras.Input((1,), dtype="string", name="text")
    student = keras.Model(text, pooled(layers.Embedding(20, 8)(vectorize(text))))
    x = np.array([["a b"], ["c d a"], ["b"]], dtype=object)
    assert export(student, tmp_path / "a", compare_with=x, min_agreement=1.0).max_difference == 0.0
    np.testing.assert_array_equal(open_runtime(tmp_path / "a").predict(x), student.predict(tf.constant(x), verbose=0))


ELSEWHERE = """
import sys
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("saved")
ids = np.load("ids.npy")
given = model.signatures["serving_default"](ids=tf.constant(ids))["output_0"].numpy()
np.testing.assert_array_equal(given, model.serve(ids).numpy())
np.testing.assert_allclose(given, np.load("logits.npy"), atol=1e-6)
for name, tolerance in (("None", 1e-5), ("int8", 0.2)):
    run = tf.lite.Interpreter(f"{name}.tflite").get_signature_runner("serving_default")
    np.testing.assert_allclose(run(ids=ids)["output_0"], np.load("logits.npy"), atol=tolerance)

assert not [name for name in sys.modules if name.startswith("keras_kd")]

from keras_kd.deploy import open_runtime

assert "tensorflow_text" not in sys.modules  # it is loaded where a file needs it
text = np.load("text.npy", allow_pickle=True)
np.testing.assert_allclose(open_runtime("strings").predict(text), np.load("text_logits.npy"), atol=1e-6)
assert "tensorflow_text" in sys.modules
print("equal")
"""


def test_the_files_answer_in_another_process(texts, written, string_student, tmp_path):
    """Without keras_kd; where it is there, `open_runtime` loads the operations of tensorflow-text by itself."""
    student, ids = texts
    export(student, tmp_path / "saved", compare_with=ids)
    for quantize in (None, "int8"):
        shutil.copy(written["texts"][quantize].path, tmp_path)
    strings, text = string_student
    export(strings, tmp_path / "strings", compare_with=text)
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "logits.npy", student.predict(ids, verbose=0))
    np.save(tmp_path / "text.npy", text)
    np.save(tmp_path / "text_logits.npy", strings.predict(tf.constant(list(text)), verbose=0))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr[-2000:]


# --- Nothing of the user's changes ------------------------------------------------------------------------------------


def compiled_student():
    keras.utils.set_random_seed(3)
    student = in_policy("mixed_bfloat16", lambda: dense_model(16, 8, 4))
    student.layers[0].trainable = False
    student.compile(keras.optimizers.Adam(0.01), crossentropy(), metrics=["accuracy"])
    train_on(student)
    return student


def train_on(student):
    student.fit(FEATURES, IDS[:, 0] % 4, epochs=1, batch_size=16, shuffle=False, verbose=0)


def what_could_change(student):
    return {
        "trainable": [layer.trainable for layer in student.layers],
        "policies": [layer.dtype_policy.name for layer in student.layers],
        "functions": (student.train_function, student.test_function, student.predict_function),
        "optimizer": student.optimizer,
        "config": student.get_config(),
        "variables": [id(variable) for variable in student.variables],
        "policy of Keras": keras.config.dtype_policy().name,
        "logging": (logging.root.level, tf.get_logger().level, list(logging.root.handlers)),
        "random numbers": random.getstate(),
    }


def test_an_export_changes_nothing_but_its_files(tmp_path, capfd):
    undisturbed, exported = compiled_student(), compiled_student()
    weights, before = exported.get_weights(), what_could_change(exported)
    data = FEATURES.astype("float64")
    data.flags.writeable = False
    capfd.readouterr()
    export(exported, tmp_path / "a", compare_with=data)
    export(exported, tmp_path / "a.tflite", quantize="int8", calibration=data, compare_with={"inputs": data})
    assert capfd.readouterr() == ("", "")
    print("back", file=sys.stderr)
    assert capfd.readouterr().err == "back\n"
    np.testing.assert_array_equal(data, FEATURES)
    assert what_could_change(exported) == before
    for array, other in zip(weights, exported.get_weights(), strict=True):
        np.testing.assert_array_equal(array, other)
    train_on(undisturbed)
    train_on(exported)
    for array, other in zip(undisturbed.get_weights(), exported.get_weights(), strict=True):
        np.testing.assert_array_equal(array, other)


# --- Failures leave nothing behind ------------------------------------------------------------------------------------


def no_such_operation():
    """LiteRT has no Erf: the conversion fails midway."""
    return keras.Model(x := keras.Input((8,)), layers.Dense(4)(ops.erf(x)))


def does_not_run():
    """It converts, but LiteRT has the Fourier transform for powers of two only, and 6 is none."""
    return keras.Model(x := keras.Input((8,)), layers.Dense(4)(ops.rfft(x[:, :6])[0]))


def gives_nan():
    model = dense_model(4, 4)
    model.layers[-1].bias.assign([0, 0, np.nan, 0])
    return model


class Noise(layers.Layer):
    """Answers differently each time, in inference mode too."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


def gives_noise():
    return keras.Model(x := keras.Input((8,)), Noise()(layers.Dense(4)(x)))


FAILURES = {
    "conversion": (no_such_operation, "a.tflite", {}, "could not be converted to LiteRT: LiteRT has no Erf"),
    "does not run": (does_not_run, "a.tflite", {}, r"does not run, and was not kept: (?!.*damaged).*RFFT"),
    "NaN": (gives_nan, "a", {}, r"student gives NaN or infinite outputs"),
    "agreement, LiteRT": (
        lambda: dense_model(16, 4),
        "a.tflite",
        {"quantize": "int8", "calibration": 1e-3 * FEATURES, "min_agreement": 1.0},
        r"agrees with the student on \d+.\d\d % of the examples, less than min_agreement=1.0; it was not kept. More",
    ),
    "agreement, SavedModel": (
        gives_noise,
        "a",
        {"min_agreement": 1.0},
        r"less than min_agreement=1.0; it was not kept.$",
    ),
}


def older(path):
    """Put a file there, or a folder that passes for a SavedModel."""
    content = path
    if path.suffix != ".tflite":
        path.mkdir()
        content = path / "saved_model.pb"
    content.write_bytes(b"old")


def contents(folder):
    return {found: found.read_bytes() if found.is_file() else None for found in folder.rglob("*")}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_the_older_file(tmp_path, failure):
    make, name, options, message = FAILURES[failure]
    older(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        export(make(), tmp_path / name, compare_with=FEATURES, overwrite=True, **options)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failure", ["conversion", "NaN"])
def test_a_failure_leaves_nothing_where_nothing_was(tmp_path, failure):
    make, name, options, message = FAILURES[failure]
    with pytest.raises(RuntimeError, match=message):
        export(make(), tmp_path / "new folder" / name, compare_with=FEATURES, **options)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["a.tflite", "a"])
def test_a_place_that_cannot_be_written_to(mlp, tmp_path, name, monkeypatch):
    (tmp_path / "file").write_text("kept")
    for function in ("litert_bytes", "write_saved_model", "traced"):  # no work before it shows
        monkeypatch.setattr(sys.modules["keras_kd.deploy.exporting"], function, None)
    for folder in [tmp_path / "file", pathlib.Path("/proc/self")]:
        if folder.exists():
            with pytest.raises(OSError):
                export(mlp[0], folder / name)
    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def converted_before(written, monkeypatch):
    """The bytes of a LiteRT file of `mlp`, which every conversion of the test gives."""
    content = pathlib.Path(written["mlp"][None].path).read_bytes()
    monkeypatch.setattr(sys.modules["keras_kd.deploy.exporting"], "litert_bytes", lambda *args, **options: content)


@pytest.mark.parametrize("name", ["a.tflite", "a"])
def test_a_move_that_fails_leaves_the_older_file(mlp, converted_before, tmp_path, name, monkeypatch):
    older(tmp_path / name)
    before = contents(tmp_path)

    def failing_replace(source, target):
        raise PermissionError("not yours")

    monkeypatch.setattr("os.replace", failing_replace)
    with pytest.raises(PermissionError):
        export(mlp[0], tmp_path / name, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a.tflite", "a"])
def test_overwrite_replaces(mlp, converted_before, tmp_path, name):
    student, x = mlp
    path = tmp_path / name
    older(path)
    before = contents(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"path must not exist yet, nor its card, got .*; pass overwrite=True to replace it"
    ):
        export(student, path)
    assert contents(tmp_path) == before
    export(student, path, overwrite=True)
    np.testing.assert_allclose(open_runtime(path).predict(x), student.predict(x, verbose=0), atol=1e-5)
    assert sorted(found.name for found in tmp_path.iterdir()) == with_cards(name)


def test_overwrite_does_not_remove_other_folders(mlp, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"1")
    (tmp_path / "a.tflite").mkdir()
    (tmp_path / "notes").write_text("kept")
    before = names_in(tmp_path)
    for name, message in [
        ("photos", "path must be a SavedModel folder to be replaced by one"),
        ("notes", "path must be a SavedModel folder to be replaced by one"),
        ("a.tflite", "path must be a file to be replaced by a LiteRT file"),
    ]:
        with pytest.raises(ValueError, match=message):
            export(mlp[0], tmp_path / name, overwrite=True)
    assert names_in(tmp_path) == before


# --- Bad input --------------------------------------------------------------------------------------------------------


def distiller_of(cls, **options):
    return cls(teacher=dense_model(16, 4), student=dense_model(8, 4), **options)


def renamed(name):
    return keras.Model(x := keras.Input((8,), name=name), layers.Dense(4)(x))


def dataset(x):
    return tf.data.Dataset.from_tensor_slices(x)


BAD = {
    "no model": ({"student": "student.keras"}, TypeError, "student must be a keras.Model, got str"),
    "distiller": (
        {"student": lambda: distiller_of(keras_kd.Distiller)},
        TypeError,
        r"student must be the student alone, got a distiller; pass distiller\.student",
    ),
    "Keras's distiller": (
        {
            "student": lambda: distiller_of(
                keras.distillation.Distiller, distillation_losses=keras.distillation.LogitsDistillation()
            )
        },
        TypeError,
        "student must be the student alone",
    ),
    "unbuilt": ({"student": lambda: keras.Sequential([layers.Dense(4)])}, ValueError, "student must be built"),
    "inputs unknown": ({"student": lambda: called(Subclassed(), IDS)}, ValueError, "compare_with must be given for a"),
    "input name": (
        {"student": lambda: renamed("my input")},
        ValueError,
        r"student must have input names of .*my input",
    ),
    "keyword for a name": ({"student": lambda: renamed("class")}, ValueError, r"got \['class'\]"),
    "path": ({"path": 3}, TypeError, "path must be a path .*, got int: 3"),
    "ending": ({"path": "a.lite"}, ValueError, r"path must end in \.tflite for LiteRT, .*, or name a folder"),
    "ending, Keras": ({"path": "a.keras"}, ValueError, r"A \.keras file is written by student\.save\(path\)"),
    "quantize": ({"quantize": "int4"}, ValueError, r"quantize must be one of \[None, 'float16', .*\], got 'int4'"),
    "quantized SavedModel": ({"path": "a", "quantize": "float16"}, ValueError, "needs a path that ends in .tflite"),
    "no calibration": ({"quantize": "int8"}, ValueError, "calibration must be given for quantize='int8'"),
    "calibration for nothing": (
        {"calibration": FEATURES},
        ValueError,
        "calibration must be None unless quantize='int8'",
    ),
    "bound without examples": ({"min_agreement": 0.9}, ValueError, "compare_with must be given with min_agreement"),
    "bound": (
        {"min_agreement": 90, "compare_with": FEATURES},
        ValueError,
        "min_agreement must be >= 0 and <= 1, got 90",
    ),
    "bound without classes": (
        {"student": lambda: dense_model(1), "min_agreement": 0.9, "compare_with": FEATURES},
        ValueError,
        "min_agreement must be None for a student without two classes",
    ),
    "labels too": (
        {"compare_with": (FEATURES, IDS)},
        TypeError,
        "compare_with must be an array.*got tuple.*pass x alone",
    ),
    "shape": (
        {"compare_with": FEATURES[:, :5]},
        ValueError,
        r"compare_with: input 'inputs' must have shape \(None, 8\)",
    ),
    "text": (
        {"compare_with": np.full((3, 8), "a")},
        ValueError,
        "compare_with: input 'inputs' must be of dtype float32",
    ),
    "no examples": ({"compare_with": FEATURES[:0]}, ValueError, "compare_with: x must hold at least one example"),
    "empty dataset": (
        {"compare_with": dataset(FEATURES[:0]).batch(4)},
        ValueError,
        "^compare_with must hold at least one",
    ),
    "unknown input": (
        {"compare_with": {"x": FEATURES}},
        ValueError,
        r"compare_with: x must have the model's inputs, \['inputs'\], got \['x'\]",
    ),
    "unbatched": (
        {"compare_with": dataset(FEATURES[:, 0])},
        TypeError,
        "compare_with must give batches of dense tensors",
    ),
    "ragged": (
        {"compare_with": dataset(tf.ragged.constant([[1.0], [1.0, 2.0]])).batch(2)},
        TypeError,
        "compare_with must give batches of dense tensors",
    ),
    "batches that differ": (
        {"student": any_length, "compare_with": dataset(IDS).batch(2).concatenate(dataset(IDS[:, :5]).batch(2))},
        ValueError,
        "compare_with must have batches of one shape; pad them all to one length",
    ),
    "calibration's shape": (
        {"quantize": "int8", "calibration": FEATURES[:, :5]},
        ValueError,
        r"calibration: input 'inputs' must have shape \(None, 8\), got \(50, 5\)",
    ),
    "calibration's names, inputs unknown": (
        {
            "student": lambda: called(Subclassed(), IDS),
            "compare_with": IDS,
            "quantize": "int8",
            "calibration": {"ids": IDS},
        },
        ValueError,
        r"calibration: x must have the model's inputs, \['inputs'\], got \['ids'\]",
    ),
    "token ids too large": (
        {"student": any_length, "compare_with": IDS.astype("int64") + 2**40},
        ValueError,
        "compare_with: input 'inputs' holds numbers outside int32",
    ),
    "fractions for token ids": (
        {"student": any_length, "compare_with": IDS / 2},
        ValueError,
        "compare_with: input 'inputs' must be of dtype int32, got float64",
    ),
    "int8 with loops": (
        {"student": lstm, "compare_with": IDS, "quantize": "int8", "calibration": IDS},
        ValueError,
        "quantize='int8' must not be used with loops.*unroll=True",
    ),
    "outputs": (
        {"student": lambda: keras.Model(x := keras.Input((8,)), {"a": {"b": layers.Dense(4)(x)}})},
        ValueError,
        r"outputs must be a tensor, a list of tensors or a dict of them .*, got something else in \['a'\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, case):
    arguments, error, message = BAD[case]
    arguments = {"student": lambda: dense_model(8, 4), "path": "new/a.tflite", **arguments}
    student, path = arguments.pop("student"), arguments.pop("path")
    student = student() if callable(student) else student
    with pytest.raises(error, match=message):
        export(student, path if path == 3 else tmp_path / path, **arguments)
    assert names_in(tmp_path) == []


def test_the_distillers_student_is_exported_without_the_teacher(tmp_path):
    distiller = distiller_of(keras_kd.Distiller)
    export(distiller.student, tmp_path / "a", compare_with=FEATURES)
    assert open_runtime(tmp_path / "a").parameters == distiller.student.count_params()


# Students that Keras has quantized ------------------------------------------------------------------------------------


def quantized(mode):
    """A dense layer in a nested model, an embedding, and an einsum, all quantized by Keras."""
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu", name="inner")], name="nested")
    einsum = keras.layers.EinsumDense("ab,bc->ac", output_shape=3, name="einsum")
    model = keras.Sequential([keras.Input((8,)), inner, einsum])
    model.quantize(mode)
    return model


def test_litert_of_a_student_that_keras_has_quantized_names_the_layers(tmp_path):
    with pytest.raises(ValueError, match=r"'nested/inner': 'int8_from_float32', 'einsum': 'int8_.*as it was before"):
        keras_kd.export(quantized("int8"), tmp_path / "student.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_a_saved_model_holds_quantized_layers(tmp_path, mode):
    report = keras_kd.export(quantized(mode), tmp_path / "student")
    assert report.max_difference < 1e-5


def test_litert_of_an_embedding_that_keras_has_quantized(tmp_path):
    """It is a lookup of integers and a product, which LiteRT has."""
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(20, 8, name="words"), keras.layers.Flatten()]
    )
    model.quantize("int4")
    assert model.layers[0].dtype_policy.name.startswith("int4")
    assert keras_kd.export(model, tmp_path / "student.tflite").max_difference < 1e-5
