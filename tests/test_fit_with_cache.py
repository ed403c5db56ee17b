"""`fit(cache=folder)`: stores the outputs that are not stored yet, then trains from the stored ones."""

import errno

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model
from test_cache import FullDisk

import keras_kd


class Counting(keras.Model):
    """A teacher that counts its passes."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.passes = tf.Variable(0, trainable=False)
        self.built = True

    def call(self, inputs):
        self.passes.assign_add(1)
        return self.model(inputs)


def distiller_of(teacher, distillation_losses=None):
    keras.utils.set_random_seed(5)
    distiller = keras_kd.Distiller(teacher, dense_model(4, 3), distillation_losses or keras_kd.losses.SoftLabels(2.0))
    distiller.compile(keras.optimizers.Adam(0.01), crossentropy(), metrics=["accuracy"])
    return distiller


def dataset_of(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=7, reshuffle_each_iteration=False).batch(8)


def test_the_teacher_runs_once_and_the_numbers_are_those_of_a_live_teacher(data, tmp_path):
    x, y = data
    teacher = Counting(dense_model(16, 3))
    live = distiller_of(teacher)
    live_history = live.fit(dataset_of(x, y), epochs=3, verbose=0).history
    passes = int(teacher.passes)
    cached = distiller_of(teacher)
    cache = {"path": tmp_path / "outputs", "dtype": "float32"}
    cached_history = cached.fit(dataset_of(x, y), epochs=3, cache=cache, verbose=0).history
    assert passes == 15
    assert int(teacher.passes) - passes == 5
    for name, values in live_history.items():
        np.testing.assert_allclose(cached_history[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(live.get_weights(), cached.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)


def test_it_trains_as_on_the_cached_dataset_whether_the_cache_was_there_or_not(data, tmp_path):
    teacher, dataset = dense_model(16, 3), dataset_of(*data)
    built = keras_kd.cache_teacher_outputs(teacher, dataset, tmp_path / "built", verbose=0, top_k=2)
    histories = [distiller_of(None).fit(built, epochs=2, verbose=0).history]
    for _ in range(2):
        cache = {"path": tmp_path / "outputs", "top_k": 2}
        histories.append(distiller_of(teacher).fit(dataset, epochs=2, cache=cache, verbose=0).history)
    assert histories[0] == histories[1] == histories[2]


def test_a_stopped_fit_resumes_though_its_data_is_shuffled_anew(data, tmp_path):
    teacher = Counting(dense_model(16, 3))
    flat = tf.data.Dataset.from_tensor_slices(data).shuffle(37)
    cache = {"path": tmp_path / "outputs", "shard_bytes": 50}

    def fail(number, element):
        with tf.control_dependencies([tf.debugging.assert_less(number, tf.constant(20, tf.int64))]):
            return tf.nest.map_structure(tf.identity, element)

    with pytest.raises(tf.errors.InvalidArgumentError):
        distiller_of(teacher).fit(flat.batch(1).enumerate().map(fail), cache=cache, verbose=0)
    stopped = int(teacher.passes)
    assert 0 < stopped <= 20
    distiller_of(teacher).fit(flat.batch(1), cache=cache, epochs=2, verbose=0)
    assert 37 <= int(teacher.passes) < 37 + stopped  # what the open shard held is run again
    assert keras_kd.open_teacher_cache(tmp_path / "outputs").examples == 37


def test_a_full_disk_is_reported_as_an_os_error_before_training(data, tmp_path, monkeypatch):
    distiller = distiller_of(dense_model(16, 3))
    before = distiller.student.get_weights()
    with monkeypatch.context() as patched:
        FullDisk(patched, 1000)
        with pytest.raises(OSError, match=r"the disk is full. The shards that were finished are good") as error:
            distiller.fit(dataset_of(*data), cache={"path": tmp_path / "outputs", "shard_bytes": 100}, verbose=0)
    assert error.value.errno == errno.ENOSPC
    np.testing.assert_equal(distiller.student.get_weights(), before)
    distiller.fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)
    assert keras_kd.open_teacher_cache(tmp_path / "outputs").examples == 37


def test_a_finished_cache_needs_no_teacher(data, tmp_path):
    teacher = dense_model(16, 3)
    distiller_of(teacher).fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)
    assert keras_kd.open_teacher_cache(tmp_path / "outputs", teacher=teacher).examples == len(data[0])
    history = distiller_of(None).fit(dataset_of(*data), cache=str(tmp_path / "outputs"), verbose=0).history
    assert np.isfinite(history["soft_labels"])


def test_a_finished_cache_without_a_teacher_is_compared_with_the_given_options(data, tmp_path):
    distillation_losses = [
        keras_kd.losses.SoftLabels(1.0),
        keras_kd.losses.Hint(teacher_layer="hidden_0", student_layer="hidden_0"),
    ]
    stored = {"path": tmp_path / "outputs", "preprocessing": "characters", "shard_bytes": 1000}
    distiller_of(dense_model(16, 3), distillation_losses).fit(dataset_of(*data), cache=stored, verbose=0)
    student = distiller_of(None, distillation_losses)
    student.fit(dataset_of(*data), cache=stored, verbose=0)
    for options, differs in (
        ({"preprocessing": "words"}, "preprocessing"),
        ({"key": "id"}, "key"),
        ({"padding": 1}, "padding"),
        ({"top_k": 1}, "output"),
        ({"sampled": 4}, "output"),
        ({"dtype": "float32"}, "output"),
        ({"dtype": "int8"}, "layer hidden_0"),
    ):
        with pytest.raises(ValueError, match=f"of other settings.*\n(.*\n)*.*{differs}"):
            student.fit(dataset_of(*data), cache=stored | options)


def test_a_finished_cache_of_samples_is_for_losses_of_temperature_one(data, tmp_path):
    stored = {"path": tmp_path / "outputs", "sampled": 4}
    distiller_of(dense_model(16, 3), keras_kd.losses.SoftLabels(1.0)).fit(dataset_of(*data), cache=stored, verbose=0)
    student = distiller_of(None, keras_kd.losses.SoftLabels(1.0))
    for cache in ({"path": tmp_path / "outputs"}, stored):
        student.fit(dataset_of(*data), cache=cache, verbose=0)
        with pytest.raises(ValueError, match=r"sampled is for losses of temperature 1, got 2\.0 of soft_labels"):
            distiller_of(None, keras_kd.losses.SoftLabels(2.0)).fit(dataset_of(*data), cache=cache, verbose=0)


def test_hidden_states_that_losses_compare_are_stored(data, tmp_path):
    distillation_losses = [
        keras_kd.losses.Hint(teacher_layer="hidden_0", student_layer="hidden_0"),
        keras_kd.losses.SoftLabels(2.0),
    ]
    distiller = distiller_of(dense_model(16, 3), distillation_losses)
    history = distiller.fit(dataset_of(*data), epochs=2, cache=tmp_path / "outputs", verbose=0).history
    assert history["hint"][1] < history["hint"][0]
    assert keras_kd.open_teacher_cache(tmp_path / "outputs").names == ["output", "layer hidden_0"]


def test_fewer_steps_than_the_dataset_has_and_validation(data, tmp_path):
    x, y = data
    teacher = Counting(dense_model(16, 3))
    distiller = distiller_of(teacher)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    options = {"cache": tmp_path / "outputs", "verbose": 0, "validation_data": (x, y)}
    history = distiller.fit(dataset.repeat(2), epochs=5, steps_per_epoch=2, **options).history
    assert len(history["val_loss"]) == 5
    assert int(teacher.passes) == 5


def test_examples_may_go_by_an_id(data, tmp_path):
    x, y = data
    inputs = {"x": keras.Input((8,), name="x")}
    teacher = keras.Model(inputs, keras.layers.Dense(3)(inputs["x"]))
    student = keras.Model(inputs, keras.layers.Dense(3)(inputs["x"]))
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    dataset = tf.data.Dataset.from_tensor_slices(({"x": x, "id": np.arange(len(x))}, y)).batch(8)
    distiller.fit(dataset, epochs=2, cache={"path": tmp_path / "outputs", "key": "id"}, verbose=0)
    assert keras_kd.open_teacher_cache(tmp_path / "outputs").examples == len(x)


def test_another_teacher_is_refused(data, tmp_path):
    distiller_of(dense_model(16, 3)).fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)
    with pytest.raises(ValueError, match="another teacher"):
        distiller_of(dense_model(16, 3)).fit(dataset_of(*data), cache=tmp_path / "outputs", verbose=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that holds a finished cache, "cache"."""
    folder = tmp_path_factory.mktemp("finished")
    dataset = tf.data.Dataset.from_tensors(np.zeros((4, 8), "float32"))
    keras_kd.cache_teacher_outputs(dense_model(16, 3), dataset, folder / "cache", verbose=0)
    return folder


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize(
    ("cache", "error", "message"),
    [
        ({}, ValueError, r"fit\(cache=...\) must have the entry 'path', a folder, got \{\}"),
        ({"top_k": 2}, ValueError, r"fit\(cache=...\) must have the entry 'path'"),
        (
            {"path": "cache", "epochs": 3},
            TypeError,
            r"fit\(cache=...\) has no entry 'epochs'; its entries are .*'top_k'",
        ),
        ({"path": "cache", "topk": 3}, TypeError, r"fit\(cache=...\) has no entry 'topk'; its entries are \['path'"),
        ({"path": "cache", "outputs": "a"}, TypeError, r"fit\(cache=...\) has no entry 'outputs'"),
        ({"Path": "cache"}, TypeError, r"fit\(cache=...\) has no entry 'Path'"),
        ({"path": None}, TypeError, r"fit\(cache=...\) must be a folder or \{'path': folder, ...\}, got None"),
        (3, TypeError, r"fit\(cache=...\) must be a folder or .*, got 3"),
        (True, TypeError, r"fit\(cache=...\) must be a folder or .*, got True"),
        ({"path": "cache", "top_k": 0}, ValueError, "top_k must be >= 1"),
        ({"path": "cache", "dtype": "int4"}, ValueError, "dtype must be one of"),
        ({"path": "cache", "shard_bytes": 0}, ValueError, "shard_bytes must be >= 1"),
    ],
)
def test_wrong_entries_of_cache_are_named(data, finished, tmp_path, monkeypatch, teacher, cache, error, message):
    folder = tmp_path if teacher else finished
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=message):
        distiller_of(dense_model(16, 3) if teacher else None).fit(dataset_of(*data), cache=cache)
    assert (folder / "cache").exists() is not teacher


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.zeros((4, 8), "float32"), np.zeros(4, "int32")


FEW = np.zeros((4, 8), "float32")


@pytest.mark.parametrize(
    ("x", "kind", "way_out"),
    [
        (FEW, "ndarray", r"from_tensor_slices\(\(x, y\)\).batch"),
        (tf.constant(FEW), "EagerTensor", r"from_tensor_slices\(\(x, y\)\).batch"),
        ({"x": FEW}, "dict", r"from_tensor_slices\(\(x, y\)\).batch"),
        (FEW.tolist(), "list", r"from_tensor_slices\(\(np.array\(x\), y\)\).batch"),
        ([FEW, FEW], "list", r"a dict or tuple of arrays: \(\(x1, x2\), y\)"),
        (tf.ragged.constant([[1], [2, 3]]), "RaggedTensor", r"from_tensor_slices\(\(x.to_tensor\(\), y\)\).batch"),
        (tf.sparse.from_dense(FEW), "SparseTensor", r"from_tensor_slices\(\(tf.sparse.to_dense\(x\), y\)\)"),
        (((FEW, FEW) for _ in range(2)), "generator", r"tf.data.Dataset.from_generator\(function"),
        (Batches(), "Batches", r"lambda: \(data\[i\] for i in range\(len\(data\)\)\)"),
    ],
)
def test_other_data_than_a_dataset_is_named_with_a_way_out(tmp_path, x, kind, way_out):
    distiller = distiller_of(dense_model(16, 3))
    expected = rf"x \(with cache=\) must be a batched tf\.data\.Dataset, got \w*{kind}\. .*{way_out}"
    with pytest.raises(TypeError, match=expected):
        distiller.fit(x, cache=tmp_path / "outputs")


@pytest.mark.parametrize(
    ("dataset", "way_out"),
    [
        (tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3]])).batch(2), r"x.to_tensor\(\)"),
        (tf.data.Dataset.from_tensors(tf.sparse.from_dense(FEW)), "tf.sparse.to_dense"),
        (tf.data.Dataset.range(3), r"dataset.batch\(32\)"),
        (tf.data.Dataset.from_tensors(FEW).map(lambda x: tf.numpy_function(abs, [x], tf.float32)), "tf.ensure_shape"),
        (tf.data.Dataset.from_tensors((FEW, FEW, FEW, FEW)), r"x: dataset.map\(lambda x1, x2, y, weight: \(\(x1, x2\)"),
        (tf.data.Dataset.from_tensors(FEW).window(2), r"dataset.batch\(32\)"),
        (tf.data.Dataset.from_tensors((keras_kd.PrecomputedBatch(FEW, FEW, {}),)), "holds teacher outputs already"),
    ],
)
def test_datasets_of_other_elements_are_refused_with_a_way_out(tmp_path, dataset, way_out):
    distiller = distiller_of(dense_model(16, 3))
    with pytest.raises(TypeError, match=rf"(?s)x \(with cache=\) must give batches of .*{way_out}"):
        distiller.fit(dataset, cache=tmp_path / "outputs")


def test_what_does_not_fit_is_refused(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="path"):
        distiller_of(None).fit(dataset_of(*data), cache=tmp_path / "outputs")
    with pytest.raises(ValueError, match=r"dataset must end, got an endless one\. .* before \.repeat\(\)"):
        distiller_of(dense_model(16, 3)).fit(
            dataset_of(*data).repeat(), cache=tmp_path / "outputs", steps_per_epoch=5, verbose=0
        )
    student = dense_model(4, 3)
    itself = keras_kd.Distiller(
        student, student, keras_kd.losses.Hint(teacher_layer="logits", student_layer="hidden_0")
    )
    itself.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="the teacher is the student, which changes while it learns"):
        itself.fit(dataset_of(*data), cache=tmp_path / "outputs")


def test_an_example_that_is_missing_says_that_random_augmentation_needs_ids(data, tmp_path):
    x, y = data
    random = np.random.default_rng(0)

    def augment(x, y):
        return x + tf.ensure_shape(tf.numpy_function(lambda: np.float32(random.normal()), [], tf.float32), ()), y

    augmented = dataset_of(x, y).map(augment)
    message = r"holds no outputs of the example content .*augmented at random needs ids, `key=`"
    with pytest.raises(ValueError, match=message):
        distiller_of(dense_model(16, 3)).fit(augmented, cache=tmp_path / "outputs", verbose=0)


def test_a_fit_that_is_quiet_by_position_builds_quietly(data, tmp_path, capsys):
    x, y = data
    distiller = distiller_of(dense_model(16, 3))
    distiller.fit(dataset_of(x, y), None, None, 1, 0, cache=tmp_path / "outputs")
    assert capsys.readouterr().out == ""
