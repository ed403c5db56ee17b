"""Outputs on disk: right in whatever order they are asked for, refused when they are not what was written."""

import errno
import hashlib
import itertools
import json
import pathlib
import random
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of
from formulas import log_softmax

import keras_kd
from keras_kd.cache import TopLogProbs
from keras_kd.cache.keys import fingerprint
from keras_kd.cache.sources import TeacherSource
from keras_kd.outputs.precomputed import PrecomputedBatch

SMALL = {"shard_bytes": 200, "verbose": 0}  # several shards even of these few examples


def batches_of(*arrays, batch=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


def stored(teacher, dataset, folder, **options):
    return keras_kd.cache_teacher_outputs(teacher, dataset, folder, **{**SMALL, **options})


def logits_by_example(dataset):
    """`{bytes of an example of x: its output}` of a dataset of one or two passes."""
    outputs = {}
    for precomputed, *_ in dataset:
        for x, prediction in zip(precomputed.x.numpy(), precomputed.prediction.numpy(), strict=True):
            np.testing.assert_array_equal(outputs.setdefault(x.tobytes(), prediction), prediction)
    return outputs


def content_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# Learning from a cache ---------------------------------------------------------------------------------------------


def test_the_student_learns_what_it_learns_from_the_live_teacher(data, tmp_path):
    teacher, start = dense_model(16, 3), dense_model(4, 3)
    hidden = {"teacher_layer": "hidden_0", "student_layer": "hidden_0"}
    distillation_losses = [keras_kd.losses.SoftLabels(2.0), keras_kd.losses.RelationalKD(**hidden)]
    plain = batches_of(*data)

    def learnt(model, dataset):
        student = keras.models.clone_model(start)
        student.set_weights(start.get_weights())
        distiller = keras_kd.Distiller(model, student, distillation_losses)
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
        history = distiller.fit(dataset, epochs=2, shuffle=False, validation_data=plain, verbose=0).history
        return history, student.get_weights()

    live, live_weights = learnt(teacher, plain)
    for dtype, losses, weights in (("float32", 1e-4, 1e-5), ("float16", 3e-3, 1e-2)):
        outputs = stored(teacher, plain, tmp_path / dtype, outputs=distillation_losses, dtype=dtype)
        cached, cached_weights = learnt(None, outputs)
        for name, values in live.items():
            np.testing.assert_allclose(cached[name], values, rtol=losses, err_msg=name)
        for one, other in zip(live_weights, cached_weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=losses, atol=weights)


def test_two_replicas_learn_what_one_learns_and_ids_of_strings_do_not_stop_xla(data, tmp_path):
    x, y = data
    pixels = keras.Input((8,), name="pixels")
    teacher = keras.Model(pixels, keras.layers.Dense(3)(pixels))
    named = {"pixels": x, "id": np.array([f"name {i}" for i in range(37)])}
    precomputed = stored(teacher, batches_of(named, y), tmp_path / "cache", key="id")
    weights = []
    for strategy, jit_compile in ((tf.distribute.get_strategy(), True), (strategy_of(2), False)):
        with strategy.scope():
            inner = keras.Input((8,), name="pixels")
            student = keras.Model(inner, keras.layers.Dense(3, kernel_initializer="ones")(inner))
            distiller = keras_kd.Distiller(None, student)
            distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), jit_compile=jit_compile)
        distiller.fit(precomputed, epochs=2, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_the_teacher_comes_out_as_it_went_in_and_is_not_run_again(data, tmp_path, monkeypatch):
    teacher = dense_model(16, 3)
    teacher.trainable = False
    before = teacher.get_weights()
    stored(teacher, batches_of(*data), tmp_path / "cache")
    files = content_of(tmp_path / "cache")
    monkeypatch.setattr("keras_kd.cache.building.Writer", None)  # would fail if it were built again
    stored(teacher, batches_of(*data), tmp_path / "cache")
    assert content_of(tmp_path / "cache") == files
    assert not teacher.trainable
    for one, other in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# Keys --------------------------------------------------------------------------------------------------------------


def test_outputs_follow_their_examples_through_shuffling_batches_repeats_and_shards(data, tmp_path):
    x, y = data
    teacher = dense_model(16, 3)
    stored(teacher, batches_of(x, y), tmp_path / "cache", dtype="float32")
    cache = keras_kd.open_teacher_cache(tmp_path / "cache", teacher=teacher)
    expected = dict(zip([row.tobytes() for row in x], teacher.predict(x, verbose=0), strict=True))
    flat = tf.data.Dataset.from_tensor_slices((x, y))
    for dataset in (
        flat.shuffle(37, seed=2).batch(5),
        flat.shuffle(37, seed=3).repeat(2).batch(7),
        flat.batch(37).shuffle(2),
        flat.shard(3, 1).batch(4, drop_remainder=True),
        flat.batch(1).map(lambda x, y: x),
        flat.batch(6).map(lambda x, y: (x, y, tf.ones_like(y))),
    ):
        attached = cache.attach(dataset)
        assert attached.cardinality() == dataset.cardinality()
        for key, output in logits_by_example(attached).items():
            np.testing.assert_allclose(output, expected[key], rtol=1e-5, atol=1e-6)
    again = cache.attach(flat.batch(8)).unbatch().shuffle(37, seed=4).batch(9)  # the outputs travel with the examples
    assert len(logits_by_example(again)) == 37


@pytest.mark.parametrize("ids", [np.arange(37) * 2**40 - 5, np.array([f"näme {i}" for i in range(37)])])
def test_ids_name_the_examples_however_they_are_augmented(data, tmp_path, ids):
    pixels = keras.Input((8,), name="pixels")
    teacher = keras.Model(pixels, keras.layers.Dense(3)(pixels))
    dataset = batches_of({"pixels": data[0], "id": ids})
    stored(teacher, dataset, tmp_path / "cache", key="id", dtype="float32")
    noisy = dataset.map(lambda x: {**x, "pixels": x["pixels"] + tf.random.normal(tf.shape(x["pixels"]))})
    attached = keras_kd.open_teacher_cache(tmp_path / "cache").attach(noisy.unbatch().shuffle(37, seed=1).batch(4))
    order = np.concatenate([x["id"].numpy() for x in noisy.unbatch().shuffle(37, seed=1).batch(4)])
    order = [list(ids).index(one.decode() if isinstance(one, bytes) else one) for one in order]
    outputs = np.concatenate([precomputed.prediction.numpy() for (precomputed,) in attached])
    np.testing.assert_allclose(outputs, teacher.predict(data[0], verbose=0)[order], rtol=1e-5, atol=1e-6)


def test_fingerprints_are_those_of_farmhash():
    """FARM_FINGERPRINT's examples in BigQuery's documentation."""
    published = {b"1footrue": -1541654101129638711, b"2applefalse": 2794438866806483259, b"3true": -4880158226897771312}
    assert fingerprint(tf.constant(list(published))).numpy().tolist() == list(published.values())
    letters = tf.constant([list(b"1footrue")], tf.uint8)  # bytes of an array count as those of a string
    assert fingerprint(letters).numpy().tolist() == [-1541654101129638711]


def test_an_example_that_is_not_in_the_cache_is_named(data, tmp_path):
    x, y = data
    teacher = dense_model(3)
    stored(teacher, batches_of(x, y), tmp_path / "content")
    stranger = np.concatenate([x[:20], x[:1] + 1.0])
    key = int(fingerprint(tf.constant(stranger)).numpy()[-1]) % 2**64
    cache = keras_kd.open_teacher_cache(tmp_path / "content")
    distiller = keras_kd.Distiller(None, dense_model(3))
    distiller.compile("sgd", crossentropy())
    with pytest.raises(
        ValueError, match=rf"holds no outputs of the example content {key:016x} \(4 of its batch, 1 of 5"
    ):
        distiller.fit(cache.attach(batches_of(stranger, y[:21])), shuffle=False, verbose=0)
    ids = [(np.arange(37), teacher.predict(x, verbose=0))]
    cache = keras_kd.cache_teacher_outputs("numbers", ids, tmp_path / "ids", key="id", verbose=0)
    dataset = cache.attach(batches_of({"x": x[:9], "id": np.arange(9) * 9}))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"no outputs of the example.*id 45"):
        list(dataset)


def test_equal_examples_are_one_and_one_id_for_two_examples_is_refused(data, tmp_path):
    x, _ = data
    twice = np.concatenate([x, x[5:30]])
    attached = stored(dense_model(3), batches_of(twice), tmp_path / "content")
    assert len(logits_by_example(attached.repeat(2))) == 37
    manifest = json.loads((tmp_path / "content" / "manifest.json").read_text())
    assert manifest["examples"] == 37
    ids = np.arange(37) % 30
    pixels = keras.Input((8,), name="pixels")
    teacher = keras.Model(pixels, keras.layers.Dense(3)(pixels))
    for shard_bytes in (200, 2**20):
        with pytest.raises(ValueError, match="two different examples have the key 0"):
            stored(
                teacher,
                batches_of({"pixels": x, "id": ids}),
                tmp_path / f"ids {shard_bytes}",
                key="id",
                shard_bytes=shard_bytes,
            )
    with pytest.raises(ValueError, match="two different examples have the key 0"):
        keras_kd.cache_teacher_outputs("scores", [(ids, x)], tmp_path / "scores", key="id", verbose=0)


# Codings -----------------------------------------------------------------------------------------------------------


def test_several_outputs_at_once_each_in_its_coding(data, tmp_path):
    x, _ = data
    teacher = dense_model(16, 12, 5)
    outputs = [keras_kd.losses.SoftLabels(), keras_kd.losses.Hint("hidden_0", "hidden_0"), "hidden_1"]
    stored(teacher, batches_of(x), tmp_path / "cache", outputs=outputs, top_k=2, dtype="int8")
    outputs = {layer.name: layer.output for layer in teacher.layers}
    expected = keras.Model(teacher.inputs, outputs).predict(x, verbose=0)
    attached = keras_kd.open_teacher_cache(tmp_path / "cache").attach(batches_of(x))
    (precomputed,) = next(iter(attached.unbatch().batch(37)))
    for name in ("hidden_0", "hidden_1"):
        error = np.abs(precomputed.layers[name].numpy() - expected[name])
        assert 0 < error.max() <= expected[name].max() / 250
    likeliest = np.argsort(-expected["logits"], axis=-1)[:, :2]
    np.testing.assert_allclose(
        np.take_along_axis(precomputed.prediction.dense().numpy(), likeliest, -1),
        np.take_along_axis(log_softmax(expected["logits"]), likeliest, -1),
        rtol=2e-3,
        atol=1e-3,
    )
    assert {d.dtype for d in (precomputed.prediction.log_p, *precomputed.layers.values())} == {tf.float32}


def test_numbers_that_cannot_be_kept_are_refused(data, tmp_path):
    x, _ = data
    teacher = dense_model(3)
    teacher.set_weights([np.full((8, 3), 1e5), np.zeros(3)])
    with pytest.raises(ValueError, match=r"output 'output' of the example with the key -?\d+ holds.*float16 cannot"):
        stored(teacher, batches_of(x), tmp_path / "float16")
    assert len(logits_by_example(stored(teacher, batches_of(x), tmp_path / "float32", dtype="float32"))) == 37
    teacher.set_weights([np.full((8, 3), np.nan), np.zeros(3)])
    with pytest.raises(ValueError, match="holds NaN"):
        stored(teacher, batches_of(x), tmp_path / "nan", dtype="float32")


# Which outputs -----------------------------------------------------------------------------------------------------


def two_outputs(kind):
    pixels = keras.Input((8,), name="pixels")
    outputs = {"b": keras.layers.Dense(3, name="b")(pixels), "a": keras.layers.Dense(4, name="a")(pixels)}
    return keras.Model(pixels, outputs if kind == "dict" else list(outputs.values()))


@pytest.mark.parametrize(
    ("kind", "outputs", "widths"),
    [
        ("dict", None, {"a": 4, "b": 3}),
        ("list", None, (3, 4)),
        ("list", "a", {"a": 4}),
        ("dict", keras_kd.losses.SoftLabels(output="b"), {"b": 3}),
        ("list", keras_kd.losses.SoftLabels(output=1), (3, 4)),
        ("list", keras.losses.MeanSquaredError(), (3, 4)),
    ],
)
def test_outputs_come_back_in_the_structure_in_which_losses_look_for_them(data, tmp_path, kind, outputs, widths):
    attached = stored(two_outputs(kind), batches_of(data[0]), tmp_path / "cache", outputs=outputs)
    (precomputed,) = next(iter(attached))
    assert tf.nest.map_structure(lambda output: output.shape[1], precomputed.prediction) == widths


@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
def test_outputs_are_stored_as_logits(data, tmp_path, last):
    x, _ = data
    teacher = dense_model(3, last=last)
    (precomputed,) = next(iter(stored(teacher, batches_of(x, batch=37), tmp_path / "cache", dtype="float32")))
    linear = dense_model(3)
    linear.set_weights(teacher.get_weights())
    expected = linear.predict(x, verbose=0)
    if last == "softmax":
        expected = log_softmax(expected)
    np.testing.assert_allclose(precomputed.prediction, expected, rtol=1e-4, atol=1e-5)


def test_outputs_that_losses_need_in_two_forms_are_refused(data, tmp_path):
    x, _ = data
    both = [keras_kd.losses.SoftLabels(), keras_kd.losses.KerasLoss(keras.losses.MeanSquaredError())]
    with pytest.raises(ValueError, match="both as it is and as logits, and it ends in softmax"):
        stored(dense_model(3, last="softmax"), batches_of(x), tmp_path / "cache", outputs=both)
    with pytest.raises(ValueError, match=r"soft_labels compares distributions.*ends in sigmoid"):
        stored(dense_model(3, last="sigmoid"), batches_of(x), tmp_path / "cache", outputs=keras_kd.losses.SoftLabels())
    assert not (tmp_path / "cache").exists()


AS_IT_IS = keras_kd.losses.KerasLoss(keras.losses.MeanSquaredError(), name="as_it_is")
SOFT, BINARY = keras_kd.losses.SoftLabels(2.0), keras_kd.losses.BinarySoftLabels(2.0)


@pytest.mark.parametrize(
    ("kind", "loss", "last"),
    [
        *itertools.product(["one"], [SOFT, BINARY, AS_IT_IS], ["softmax", "sigmoid", "linear"]),
        ("list", SOFT, "softmax"),
        ("list", AS_IT_IS, "sigmoid"),
        ("dict", BINARY, "sigmoid"),
        ("dict", AS_IT_IS, "softmax"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_loss_gets_from_a_cache_what_the_live_teacher_gives_it_or_is_refused(data, tmp_path, kind, loss, last):
    """Whatever loss the outputs were stored for: with its teacher's ending it is refused, or computes the same."""
    x, _ = data
    pixels = keras.Input((8,))
    dense = keras.layers.Dense(3, activation=last, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    ends = {"one": lambda output: output, "list": lambda output: [output], "dict": lambda output: {"a": output}}[kind]
    teacher = keras.Model(pixels, ends(dense(pixels)))
    activation = last if loss is AS_IT_IS else None  # which is for models that end alike
    live = outcome_of(teacher, loss, batches_of(x), ends, activation)
    for number, outputs in enumerate([None, SOFT, BINARY, AS_IT_IS]):
        folder = tmp_path / f"cache {number}"
        try:
            dataset = stored(teacher, batches_of(x), folder, outputs=outputs, dtype="float32")
        except ValueError:
            assert (outputs, last) in [(SOFT, "sigmoid"), (BINARY, "softmax")]
            continue
        cached = outcome_of(None, loss, dataset, ends, activation)
        if isinstance(cached, str) and not isinstance(live, str):
            assert "is stored as logits" in cached
            assert loss is AS_IT_IS
            assert last != "linear"
        elif isinstance(live, str):
            assert live == cached
        else:
            assert cached == pytest.approx(live, rel=1e-4)


def outcome_of(teacher, loss, dataset, ends, activation):
    """The value of a loss over a dataset, or the message that refuses it."""
    pixels = keras.Input((8,))
    initializer = keras.initializers.RandomNormal(seed=2)
    dense = keras.layers.Dense(3, activation, kernel_initializer=initializer)
    student = keras.Model(pixels, ends(dense(pixels)))
    try:
        distiller = keras_kd.Distiller(teacher, student, loss)
        distiller.compile(keras.optimizers.SGD(0.0), loss=None, run_eagerly=True)
        return distiller.fit(dataset.map(lambda *element: (element[0],)), verbose=0).history[loss.name][0]
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"sampled": 2}])
def test_a_part_is_stored_of_distributions_only(data, tmp_path, options):
    with pytest.raises(ValueError, match="logits of distributions over classes, but 'output' ends in sigmoid"):
        stored(dense_model(3, last="sigmoid"), batches_of(data[0]), tmp_path / "cache", **options)
    with pytest.raises(ValueError, match="'output' ends in softmax and is stored as it is"):
        stored(dense_model(3, last="softmax"), batches_of(data[0]), tmp_path / "cache", outputs=AS_IT_IS, **options)
    assert not (tmp_path / "cache").exists()


def test_one_distiller_reads_caches_of_other_endings_one_after_the_other(data, tmp_path):
    x, _ = data
    distiller = keras_kd.Distiller(None, dense_model(3), SOFT)
    distiller.compile("sgd", loss=None)
    for last, outputs in (("softmax", AS_IT_IS), ("softmax", SOFT), ("linear", SOFT)):
        dataset = stored(dense_model(3, last=last), batches_of(x), tmp_path / f"{last} {outputs.name}", outputs=outputs)
        distiller.fit(dataset, shuffle=False, verbose=0)
    dataset = stored(dense_model(3, last="sigmoid"), batches_of(x), tmp_path / "sigmoid")
    with pytest.raises(ValueError, match=r"soft_labels compares distributions.*teacher ends in sigmoid"):
        distiller.fit(dataset, shuffle=False, verbose=0)


def test_only_a_layer_may_be_stored(data, tmp_path):
    attached = stored(dense_model(16, 3), batches_of(*data), tmp_path / "cache", outputs="hidden_0")
    distiller = keras_kd.Distiller(None, dense_model(4, 3), keras_kd.losses.Hint("hidden_0", "hidden_0"))
    distiller.compile("adam", crossentropy())
    history = distiller.fit(attached, epochs=5, shuffle=False, verbose=0).history["hint"]
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"top_k": 3},
            ValueError,
            r"top_k must be less than the number of classes, got 3 for 'output' of shape \(3,\)",
        ),
        ({"top_k": 0}, ValueError, "top_k must be >= 1"),
        ({"dtype": "float64"}, ValueError, "dtype must be one of"),
        ({"key": 3}, TypeError, "key must be the name of an entry"),
        ({"key": "id"}, ValueError, "key='id' must be an entry of x, which is no dict"),
        ({"outputs": "hidden_9"}, ValueError, "teacher_layer='hidden_9' is not a layer of the teacher"),
        ({"outputs": "hidden_0:soul"}, ValueError, "names no part of a layer; the parts are"),
        ({"outputs": 3}, TypeError, "outputs must be losses, names of outputs or names of layers"),
        ({"dataset": np.zeros((3, 8))}, TypeError, "dataset must be a batched tf.data.Dataset, got ndarray"),
        ({"dataset": tf.data.Dataset.range(3)}, TypeError, "Batch it first"),
        ({"dataset": tf.data.Dataset.from_tensors(np.zeros((3, 8))).repeat()}, ValueError, "dataset must end"),
        ({"dataset": tf.data.Dataset.from_tensors(np.zeros((0, 8)))}, ValueError, "at least one example"),
        ({"teacher": None}, TypeError, "teacher must be a keras.Model"),
        ({"teacher": "scores"}, TypeError, r"dataset must give tuples \(x or ids, prediction\)"),
    ],
)
def test_bad_arguments_are_named(data, tmp_path, options, error, message):
    arguments = {"teacher": dense_model(16, 3), "dataset": batches_of(data[0]), **options}
    with pytest.raises(error, match=message):
        keras_kd.cache_teacher_outputs(path=tmp_path / "cache", verbose=0, **arguments)


def test_a_folder_with_other_files_is_left_alone(data, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ValueError, match="path must be a new or empty folder"):
        stored(dense_model(3), batches_of(data[0]), tmp_path)
    assert content_of(tmp_path) == {"letters.txt": b"mine"}
    with pytest.raises(FileNotFoundError, match="path must be the folder of a cache"):
        keras_kd.open_teacher_cache(tmp_path)


# Outputs of other programs -----------------------------------------------------------------------------------------


def test_scores_of_scikit_learn_teach(data, tmp_path):
    from sklearn.linear_model import LogisticRegression

    x, y = data
    scores = LogisticRegression(max_iter=500).fit(x, y).predict_log_proba
    batches = ((part, scores(part)) for part in np.array_split(x, 4))
    cache = keras_kd.cache_teacher_outputs("logistic regression", batches, tmp_path / "cache", **SMALL)
    assert (cache.teacher, cache.examples, cache.names) == ("logistic regression", 37, ["output"])
    outputs = logits_by_example(cache.attach(batches_of(x, y)))
    for row, expected in zip(x, scores(x), strict=True):
        np.testing.assert_allclose(outputs[row.tobytes()], expected, rtol=1e-3, atol=1e-4)


def test_log_probabilities_of_an_api_teach(tmp_path):
    log_p = np.log([[0.5, 0.3], [0.9, 0.02]])
    answers = TopLogProbs(np.array([[4, 0], [1, 2]]), log_p, of=5)
    cache = keras_kd.cache_teacher_outputs(
        "api", [(["first", "second"], answers)], tmp_path / "cache", key="id", verbose=0
    )
    dataset = batches_of({"id": np.array(["second", "first"]), "x": np.zeros((2, 1))})
    (precomputed,) = next(iter(cache.attach(dataset)))
    expected = [[0.08 / 3, 0.9, 0.02, 0.08 / 3, 0.08 / 3], [0.3, 0.2 / 3, 0.2 / 3, 0.2 / 3, 0.5]]
    np.testing.assert_allclose(np.exp(precomputed.prediction.dense()), expected, rtol=1e-3)
    assert set(precomputed.x) == {"x"}


def test_layers_of_other_programs_come_along(data, tmp_path):
    x, _ = data
    cache = keras_kd.cache_teacher_outputs(
        "arrays", [(x, x[:, :3], {"block": x})], tmp_path / "cache", dtype="int8", verbose=0
    )
    (precomputed,) = next(iter(cache.attach(batches_of(x, batch=37))))
    assert isinstance(precomputed, PrecomputedBatch)
    np.testing.assert_allclose(precomputed.layers["block"], x, atol=np.abs(x).max() / 250)
    with pytest.raises(ValueError, match=r"as many examples, got \[3, 37\] in one batch"):
        keras_kd.cache_teacher_outputs("arrays", [(x, x[:3])], tmp_path / "other", verbose=0)


def write_by_hand(folder, arrays, outputs, *, layers=("block",), sequences=None):
    """Write a cache with NumPy, json and hashlib alone, as another program would."""
    folder.mkdir(exist_ok=True)
    parts = {}
    for name, array in arrays.items():
        array.tofile(folder / name)
        content = (folder / name).read_bytes()
        parts[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    layout = {
        "format": "keras_kd.teacher_outputs/4",
        "key": {"of": {"entry": "id"}, "padding": 0},
        "outputs": outputs,
        "masked": [],
        "prediction": "output",
        "layers": list(layers),
        "endings": {},
    }
    sequences, examples = sequences or {}, len(arrays["key.bin"])
    manifest = {
        "setting": {"teacher": "by hand", "preprocessing": None, "outputs": layout},
        "examples": examples,
        "sequences": sequences,
        "shards": [{"examples": examples, "sequences": sequences, "files": parts}],
    }
    signed(folder, manifest)


def test_a_folder_written_by_hand_in_the_documented_layout_is_read(tmp_path):
    arrays = {
        "key.bin": np.array([30, -10, 20], "<i8"),
        "content.bin": np.zeros(3, "<i8"),
        "output_0.bin": np.array([[3, 1], [1, 2], [2, 3]], "<f4"),
        "output_1.end.bin": np.array([2, 2, 3], "<i8"),  # two tokens, none, one
        "output_1.bin": np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], "<f2"),
    }
    outputs = {
        "output": {"coding": "Full", "shape": [2], "dtype": "float32"},
        "layer block": {"coding": "Full", "shape": [None, 3], "dtype": "float16"},
    }
    write_by_hand(tmp_path, arrays, outputs, sequences={"layer block": None})
    batch = {"id": np.array([20, 30, -10]), "tokens": np.ones((3, 3))}
    (precomputed,) = next(iter(keras_kd.open_teacher_cache(tmp_path).attach(batches_of(batch))))
    np.testing.assert_array_equal(precomputed.prediction, [[2, 3], [3, 1], [1, 2]])
    expected = np.zeros((3, 3, 3))
    expected[0, 0], expected[1, :2] = [7, 8, 9], [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(precomputed.layers["block"], expected)


@pytest.mark.parametrize("tokens", [False, True])
def test_folders_that_name_their_outputs_in_another_order_are_read_by_name(tmp_path, tokens):
    """Their files look alike and are numbered by the order in which each manifest names the outputs."""
    shape = [None, 2] if tokens else [2]
    names = ["output", "layer a", "layer b"]
    coded = {name: {"coding": "Full", "shape": shape, "dtype": "float32"} for name in names}
    expected = {name: np.arange(12, dtype="<f4").reshape(6, 2) + 100 * i for i, name in enumerate(names)}
    orders = [names, names[::-1], [*names[1:], names[0]]]
    for part, order in enumerate(orders):
        rows = slice(2 * part, 2 * part + 2)
        arrays = {"key.bin": np.arange(6)[rows].astype("<i8"), "content.bin": np.zeros(2, "<i8")}
        for i, name in enumerate(order):
            arrays[f"output_{i}.bin"] = expected[name][rows]
            if tokens:
                arrays[f"output_{i}.end.bin"] = np.array([1, 2], "<i8")
        sequences = dict.fromkeys(order) if tokens else {}
        outputs = {name: coded[name] for name in order}
        write_by_hand(tmp_path / str(part), arrays, outputs, layers=["a", "b"], sequences=sequences)
    cache = keras_kd.open_teacher_cache([tmp_path / str(part) for part in range(3)])
    (precomputed,) = next(iter(cache.attach(batches_of({"id": np.arange(6)}, batch=6))))
    found = {"output": precomputed.prediction, **{f"layer {name}": precomputed.layers[name] for name in "ab"}}
    for name, output in found.items():
        np.testing.assert_array_equal(np.reshape(output, (6, 2)), expected[name], err_msg=name)


def test_a_begun_build_that_names_its_outputs_in_another_order_resumes_by_name(data, tmp_path):
    x, folder = data[0], tmp_path / "cache"
    teacher = dense_model(4, 4, 3)
    interrupted(teacher, batches_of(x, batch=4), folder, 6, outputs=["hidden_0", "hidden_1"])
    begun = json.loads((folder / "building.json").read_text())
    outputs = begun["setting"]["outputs"]
    outputs["outputs"] = dict(reversed(outputs["outputs"].items()))
    for shard in begun["shards"]:
        files = shard["files"]
        files["output_0.bin"], files["output_1.bin"] = files["output_1.bin"], files["output_0.bin"]
    signed(folder, begun, "building.json")
    one, two = (folder / f"output_{i}.bin" for i in range(2))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    resumed = stored(teacher, batches_of(x, batch=4), folder, outputs=["hidden_0", "hidden_1"])
    both = keras.Model(teacher.inputs, {name: teacher.get_layer(name).output for name in ("hidden_0", "hidden_1")})
    for (precomputed,) in resumed:
        for name, expected in both(precomputed.x).items():
            np.testing.assert_allclose(precomputed.layers[name], expected, rtol=2e-3, atol=1e-3)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(data, tmp_path):
    stored(dense_model(16, 3, name="teacher"), batches_of(*data), tmp_path / "cache", outputs=["logits", "hidden_0"])
    return tmp_path / "cache"


FILES = ["manifest.json", "key.bin", "output_0.bin", "output_1.bin"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_wherever_it_is(cache, name):
    file = cache / name
    content, places = file.read_bytes(), random.Random(name)
    for _ in range(40):
        place, bit = places.randrange(len(content)), places.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"not as it was written, .*{name}"):
            keras_kd.open_teacher_cache(cache)
    file.write_bytes(content)
    keras_kd.open_teacher_cache(cache)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_longer_or_gone_is_noticed_without_reading_it(cache, name):
    file = cache / name
    content = file.read_bytes()
    for changed in (content[:0], content[:1], content[:100], content[:-1], content + b"!"):
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=f"not as it was written, .*{name}"):
            keras_kd.open_teacher_cache(cache, verify=False)
    file.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name}"):
        keras_kd.open_teacher_cache(cache)


def test_shards_and_files_that_changed_places_are_noticed(cache):
    shards = json.loads((cache / "manifest.json").read_text())["shards"]
    one, other = (shard["files"]["output_1.bin"]["bytes"] for shard in shards[:2])
    file = cache / "output_1.bin"
    content = file.read_bytes()
    file.write_bytes(content[one : one + other] + content[:one] + content[one + other :])
    with pytest.raises(ValueError, match=r"output_1.bin.*checksum of its part 0 is not that of the manifest"):
        keras_kd.open_teacher_cache(cache)
    file.write_bytes(content)
    keras_kd.open_teacher_cache(cache)


def signed(folder, manifest, name="manifest.json"):
    """Write a manifest with the checksum it should have, as whoever changes it on purpose would."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / name).write_text(json.dumps(content))


def test_a_cache_of_another_version_is_refused(cache):
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["setting"]["outputs"]["format"] = "keras_kd.teacher_outputs/9"
    signed(cache, manifest)
    with pytest.raises(ValueError, match=r"format is 'keras_kd.teacher_outputs/9'; this version reads '.*/4'"):
        keras_kd.open_teacher_cache(cache)


def changes(value, path=()):
    """`(path, changed)` of each field of a JSON value: another value of its kind, another kind, and without it."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield (*path, name), {other: one for other, one in value.items() if other != name}
            for deeper, changed in changes(part, (*path, name)):
                yield deeper, {**value, name: changed}
    elif isinstance(value, list):
        yield path, value[:-1] if value else ["more"]
        for i, part in enumerate(value):
            for deeper, changed in changes(part, (*path, i)):
                yield deeper, [*value[:i], changed, *value[i + 1 :]]
    others = {str: ["other", 3], int: [None, "x", -1], bool: [3], type(None): ["other"], dict: [[]], list: [{}]}
    for other in [*others[type(value)], *([value + 1] if type(value) is int else [])]:
        yield path, other


def test_a_manifest_that_was_changed_and_signed_again_is_refused_whatever_field_it_is(tmp_path):
    tokens = keras.Input((None,), dtype="int32", name="ids")
    hidden = keras.layers.Embedding(9, 4, mask_zero=True, name="hidden")(tokens)
    teacher = keras.Model(tokens, keras.layers.Dense(3, activation="softmax", name="logits")(hidden))
    x = {"ids": np.random.default_rng(0).integers(1, 9, (12, 5)), "id": np.arange(12)}
    folder = tmp_path / "cache"
    options = {"key": "id", "preprocessing": {"words": "abc"}, "outputs": ["logits", "hidden"]}
    stored(teacher, batches_of(x), folder, **options)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    tried = 0
    for path, changed in changes(manifest):
        if not path or changed == manifest:
            continue
        signed(folder, changed)
        with pytest.raises(ValueError) as error:
            keras_kd.open_teacher_cache(folder, teacher=teacher, preprocessing=options["preprocessing"])
            if path[:3] in FREE:  # what only whoever asks for it can know
                stored(teacher, batches_of(x), folder, **options)
        fields = [str(part) for part in path if isinstance(part, str)]
        assert str(folder) in str(error.value), path
        assert re.search(r"manifest\.json|\.bin", str(error.value)) or any(
            name in str(error.value) for name in fields
        ), path
        tried += 1
    assert tried > 200
    signed(folder, manifest)
    keras_kd.open_teacher_cache(folder, teacher=teacher)


def test_a_begun_build_that_was_changed_and_signed_again_is_refused_whatever_field_it_is(data, tmp_path):
    teacher, folder, dataset = dense_model(3), tmp_path / "cache", batches_of(data[0], batch=4)
    interrupted(teacher, dataset, folder, 6)
    begun = json.loads((folder / "building.json").read_text())
    del begun["sha256"]
    tried = 0
    for path, changed in changes({**begun, "shards": begun["shards"][:1]}):
        if not path or changed == {**begun, "shards": []}:  # without its last shards it resumes before them
            continue
        if path[-1] in ("preprocessing", "undone") and f'"{path[-1]}"' not in json.dumps(changed):  # they are null
            continue
        if isinstance(changed.get("shards"), list) and len(changed["shards"]) == 1:
            changed = {**changed, "shards": [*changed["shards"], *begun["shards"][1:]]}
        signed(folder, changed, "building.json")
        with pytest.raises(ValueError) as error:
            stored(teacher, dataset, folder)
        assert str(folder) in str(error.value), path
        tried += 1
    assert tried > 60
    signed(folder, begun, "building.json")
    stored(teacher, dataset, folder)


FREE = [("setting", "outputs", "key"), ("setting", "outputs", "endings")]


def test_another_teacher_or_other_settings_are_refused(data, tmp_path):
    teacher, folder = dense_model(16, 3), tmp_path / "cache"
    dataset = batches_of(*data)
    stored(teacher, dataset, folder)
    other_weights = keras.models.clone_model(teacher)
    before = content_of(folder)
    for changed, there in (
        ({"teacher": other_weights}, "teacher weights: there it is"),
        ({"teacher": dense_model(8, 3)}, "teacher architecture: there it is"),
        ({"dtype": "float32"}, 'dtype: there it is "float16", here "float32"'),
        ({"top_k": 2}, 'coding: there it is "Full", here "TopK"'),
        ({"outputs": "hidden_0"}, "layer hidden_0: there it is null"),
    ):
        with pytest.raises(ValueError, match="another teacher or of other settings") as error:
            stored(**{"teacher": teacher, "dataset": dataset, "folder": folder, **changed})
        assert there in str(error.value)
    with pytest.raises(ValueError, match="teacher weights: there it is"):
        keras_kd.open_teacher_cache(folder, teacher=other_weights)
    other_weights.set_weights(teacher.get_weights())
    keras_kd.open_teacher_cache(folder, teacher=other_weights)
    assert content_of(folder) == before


# Builds that stop --------------------------------------------------------------------------------------------------


class FullDisk:
    """A disk on which so many bytes fit: what is written beyond fails as the system would have it."""

    def __init__(self, monkeypatch, free):
        self.free, self._open = free, pathlib.Path.open
        monkeypatch.setattr(pathlib.Path, "open", lambda path, *args, **kwargs: self.opened(path, *args, **kwargs))

    def opened(self, path, mode="r", *args, **kwargs):
        file = self._open(path, mode, *args, **kwargs)
        if not set(mode) & set("wa"):
            return file
        disk = self

        class Limited:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, content):
                fits = content[: disk.free]
                disk.free -= len(fits)
                file.write(fits)
                if len(fits) < len(content):
                    raise OSError(errno.ENOSPC, "No space left on device")

        return Limited()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.99])
def test_a_full_disk_is_reported_and_the_build_resumes_when_there_is_space(data, tmp_path, monkeypatch, share):
    teacher, dataset = dense_model(3), batches_of(*data, batch=4)
    with monkeypatch.context() as patched:
        disk = FullDisk(patched, 10**6)
        stored(teacher, dataset, tmp_path / "whole")
        written = 10**6 - disk.free
    with monkeypatch.context() as patched:
        disk = FullDisk(patched, int(share * written))
        with pytest.raises(OSError, match=r"the disk is full. The shards that were finished are good") as error:
            stored(teacher, dataset, tmp_path / "cache")
        assert error.value.errno == errno.ENOSPC
        assert disk.free == 0
    with pytest.raises((ValueError, FileNotFoundError), match=r"only half built|must be the folder of a cache"):
        keras_kd.open_teacher_cache(tmp_path / "cache")
    stored(teacher, dataset, tmp_path / "cache")
    assert content_of(tmp_path / "cache") == content_of(tmp_path / "whole")


def interrupted(teacher, dataset, folder, batches, **options):
    """A build that fails after so many batches."""

    def fail(number, element):
        tf.debugging.assert_less(number, tf.constant(batches, tf.int64))
        return element

    with pytest.raises(tf.errors.InvalidArgumentError):
        stored(teacher, dataset.enumerate().map(fail), folder, **options)


@pytest.fixture
def runs(monkeypatch):
    """How many examples each batch had that a teacher ran on."""
    runs, encoded = [], TeacherSource.encoded
    monkeypatch.setattr(
        TeacherSource,
        "encoded",
        lambda source, x, keys, *rest: runs.append(len(keys)) or encoded(source, x, keys, *rest),
    )
    return runs


def test_an_interrupted_build_resumes_with_the_same_teacher_and_files_only(data, tmp_path, runs):
    teacher, folder = dense_model(3), tmp_path / "cache"
    dataset = batches_of(data[0], batch=4)
    interrupted(teacher, dataset, folder, 6)
    names = sorted(content_of(folder))
    assert names == ["building.json", "key.bin", "output_0.bin"]
    finished = len(json.loads((folder / "building.json").read_text())["shards"])
    assert 0 < finished < 6
    with pytest.raises(ValueError, match=r"only half built. Make the call that builds it again"):
        keras_kd.open_teacher_cache(folder)
    with pytest.raises(ValueError, match="another teacher or of other settings"):
        stored(dense_model(3), dataset, folder)
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b"!")
        with pytest.raises(ValueError, match=f"not as it was written, .*{name}"):
            stored(teacher, dataset, folder)
        (folder / name).write_bytes(content)
    (folder / ".building.0123456789abcdef.json").write_bytes(b"half")  # as a kill leaves it
    with (folder / "output_0.bin").open("ab") as file:
        file.write(b"half")
    runs.clear()
    stored(teacher, dataset, folder)
    before = json.loads((folder / "manifest.json").read_text())["shards"][:finished]
    assert sum(runs) == 37 - sum(shard["examples"] for shard in before)  # the stored batches are not run again
    stored(teacher, dataset, tmp_path / "whole")
    assert content_of(folder) == content_of(tmp_path / "whole")


def test_a_build_resumes_by_key_in_any_order(data, tmp_path, runs):
    x = data[0]
    teacher, folder = dense_model(16, 3), tmp_path / "cache"
    interrupted(teacher, batches_of(x, batch=4), folder, 6)
    done = sum(shard["examples"] for shard in json.loads((folder / "building.json").read_text())["shards"])
    more = np.concatenate([x, x[:9] + 1.0])  # an example that is new is stored as well
    flat = tf.data.Dataset.from_tensor_slices(more)
    runs.clear()
    found = logits_by_example(stored(teacher, flat.shuffle(46, seed=3).batch(1), folder, dtype="float16"))
    assert len(runs) == 46 - done  # batches of stored examples are not run
    whole = logits_by_example(stored(teacher, batches_of(more, batch=4), tmp_path / "whole"))
    assert found.keys() == whole.keys()
    for example, output in found.items():
        np.testing.assert_allclose(output, whole[example], rtol=2e-3, atol=1e-3)
    assert keras_kd.open_teacher_cache(folder).examples == 46
    keys = np.fromfile(folder / "key.bin", "<i8")
    assert len(np.unique(keys)) == 46


def test_the_order_in_which_layers_are_given_does_not_matter(data, tmp_path):
    x, folder = data[0], tmp_path / "cache"
    teacher = dense_model(4, 4, 3)  # two layers whose files look alike
    layers = ["hidden_0", "hidden_1"]
    interrupted(teacher, batches_of(x, batch=4), folder, 6, outputs=layers)
    resumed = stored(teacher, batches_of(x, batch=4), folder, outputs=layers[::-1])
    for part, order in enumerate((layers, layers[::-1])):
        stored(teacher, batches_of(x[part::2]), tmp_path / str(part), outputs=order)
    parts = keras_kd.open_teacher_cache([tmp_path / "0", tmp_path / "1"]).attach(batches_of(x))
    both = keras.Model(teacher.inputs, {name: teacher.get_layer(name).output for name in layers})
    for dataset in (resumed, parts):
        for (precomputed,) in dataset:
            for name, expected in both(precomputed.x).items():
                np.testing.assert_allclose(precomputed.layers[name], expected, rtol=2e-3, atol=1e-3)


def test_mixed_batches_run_whole_and_store_what_is_missing(data, tmp_path, runs):
    x = data[0]
    teacher, folder = dense_model(16, 3), tmp_path / "cache"
    interrupted(teacher, batches_of(x, batch=4), folder, 6)
    runs.clear()
    found = logits_by_example(stored(teacher, batches_of(x[::-1], batch=37), folder))
    assert runs == [37]
    assert len(found) == 37
    assert keras_kd.open_teacher_cache(folder).examples == 37


def test_a_build_may_go_on_with_other_data_of_the_same_teacher(data, tmp_path, runs):
    """Outputs belong to keys, so what was stored of other examples stays right; the data may have been mended."""
    x = data[0]
    teacher, folder = dense_model(3), tmp_path / "cache"
    interrupted(teacher, batches_of(x, batch=4), folder, 6)
    begun = sum(shard["examples"] for shard in json.loads((folder / "building.json").read_text())["shards"])
    runs.clear()
    found = logits_by_example(stored(teacher, batches_of(x[8:], batch=4), folder))
    assert found.keys() == {row.tobytes() for row in x[8:]}
    assert sum(runs) == 37 - begun
    assert len(logits_by_example(keras_kd.open_teacher_cache(folder).attach(batches_of(x)))) == 37


def test_arrays_of_other_programs_resume_by_key_as_well(data, tmp_path):
    x, folder = data[0], tmp_path / "cache"
    batches = [(part, part[:, :3]) for part in np.array_split(x, 9)]

    def stopped():
        yield from batches[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored("scores", stopped(), folder)
    cache = stored("scores", iter(batches[::-1]), folder)
    assert cache.examples == 37
    for example, output in logits_by_example(cache.attach(batches_of(x))).items():
        np.testing.assert_allclose(output, np.frombuffer(example, "float32")[:3], rtol=1e-3)


def test_ids_are_looked_up_in_what_was_stored_before(data, tmp_path):
    """Keys of earlier batches and of an earlier run are known."""
    x, ids = data[0], np.arange(37)
    pixels = keras.Input((8,), name="pixels")
    teacher = keras.Model(pixels, keras.layers.Dense(3)(pixels))
    twice = {"pixels": np.concatenate([x, x[::-1]]), "id": np.concatenate([ids, ids[::-1]])}
    stored(teacher, batches_of(twice, batch=4), tmp_path / "twice", key="id")
    assert keras_kd.open_teacher_cache(tmp_path / "twice").examples == 37
    for place in (1, 36):
        wrong = {"pixels": np.concatenate([x, x[:1] + 1.0]), "id": np.append(ids, place)}
        with pytest.raises(ValueError, match=f"two different examples have the key {place}\\."):
            stored(teacher, batches_of(wrong, batch=4), tmp_path / str(place), key="id")
        interrupted_with = batches_of({"pixels": x, "id": ids}, batch=4)
        folder = tmp_path / f"resumed {place}"
        interrupted(teacher, interrupted_with, folder, 6, key="id")
        swapped = {"pixels": x[::-1], "id": ids}
        with pytest.raises(ValueError, match="two different examples have the key"):
            stored(teacher, batches_of(swapped, batch=4), folder, key="id")


KILLED = """
import os, pathlib, random, signal, sys, time
import keras, numpy as np, tensorflow as tf
import keras_kd
folder = pathlib.Path(sys.argv[1])

def build(name, pause):
    keras.utils.set_random_seed(1)
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(320, 8)).astype("float32")
    slow = lambda x: tf.numpy_function(lambda x: time.sleep(pause) or x, [x], tf.float32)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8).map(lambda x: tf.ensure_shape(slow(x), (None, 8)))
    keras_kd.cache_teacher_outputs(teacher, dataset, folder / name, shard_bytes=100, verbose=0)

def child(name, pause):
    pid = os.fork()  # before TensorFlow has any threads
    if pid == 0:
        build(name, pause)
        os._exit(0)
    return pid

def shards_of(folder):
    begun = folder / "building.json"
    return begun.read_text().count("examples") if begun.exists() else 0

assert os.waitpid(child("whole", 0.0), 0)[1] == 0
moments = random.Random(7)
for shards in (0, 1, 2, 7, 15, 22, 30, 35):
    pid = child("killed", 0.01)
    while shards_of(folder / "killed") < shards:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.02) if shards else 0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("finished" if (folder / "killed" / "manifest.json").exists() else "killed", flush=True)
assert os.waitpid(child("killed", 0.0), 0)[1] == 0
"""


def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["killed"] * 8
    whole = content_of(tmp_path / "whole")
    assert len(json.loads(whole["manifest.json"])["shards"]) == 40
    assert content_of(tmp_path / "killed") == whole
