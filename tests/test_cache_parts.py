"""Caches that several processes build and read, and the preprocessing that is stored with them."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model
from test_cache import batches_of, logits_by_example, stored

import keras_kd

WORKERS = """
import os, pathlib, signal, sys, time
import keras, numpy as np, tensorflow as tf
import keras_kd
folder = pathlib.Path(sys.argv[1])
index = 0 if os.fork() else 1  # before TensorFlow has any threads
signal.alarm(100)  # where the other fails, this one does not wait for ever
x = np.load(folder / "x.npy")
teacher = keras.saving.load_model(folder / "teacher.keras")
mine = tf.data.Dataset.from_tensor_slices((x,)).shard(2, index)
keras_kd.cache_teacher_outputs(teacher, mine.batch(5), folder / f"part {index}", dtype="float32", verbose=0)
pathlib.Path(folder / f"built {index}").touch()
while not all((folder / f"built {one}").exists() for one in range(2)):
    time.sleep(0.01)
cache = keras_kd.open_teacher_cache([folder / "part 0", folder / "part 1"], teacher=teacher)
others = tf.data.Dataset.from_tensor_slices((x,)).shuffle(37, seed=index).shard(2, index).batch(4)
for (batch,) in cache.attach(others):
    np.testing.assert_allclose(batch.prediction, teacher(batch.x), rtol=1e-5, atol=1e-6)
print(cache.examples, flush=True)
if index == 0:
    os.wait()
"""


def test_two_processes_build_a_part_each_and_read_both(data, tmp_path):
    np.save(tmp_path / "x.npy", data[0])
    dense_model(16, 3).save(tmp_path / "teacher.keras")
    done = subprocess.run([sys.executable, "-c", WORKERS, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["37", "37"], done.stderr[-2000:]


def test_parts_are_read_as_one(data, tmp_path):
    x, _ = data
    teacher = dense_model(16, 3)
    folders = [tmp_path / str(part) for part in range(3)]
    for folder, rows in zip(folders, (slice(0, 20), slice(15, 30), slice(30, 37)), strict=True):
        stored(teacher, batches_of(x[rows]), folder)
    cache = keras_kd.open_teacher_cache(folders, teacher=teacher)
    assert (cache.examples, cache.paths) == (42, folders)
    stored(teacher, batches_of(x), tmp_path / "whole")
    shuffled = tf.data.Dataset.from_tensor_slices(x).shuffle(37, seed=1).batch(9)
    expected = logits_by_example(keras_kd.open_teacher_cache(tmp_path / "whole").attach(shuffled))
    found = logits_by_example(cache.attach(shuffled))
    assert len(found) == 37
    for example, output in found.items():
        np.testing.assert_allclose(output, expected[example], rtol=2e-3, atol=1e-3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"holds no outputs of the example.*2 of 8 are missing"):
        list(
            keras_kd.open_teacher_cache([folders[0], folders[2]]).attach(
                batches_of(np.concatenate([x[:20], x[28:], x[:8]]))
            )
        )


def test_parts_with_tokens_are_read_as_one(tmp_path):
    rng = np.random.default_rng(0)
    outputs = [rng.random((length, 2)).astype("float32") for length in (3, 0, 5, 1, 4, 2, 0)]
    for part, numbers in enumerate(([0, 1], [2, 3, 4], [5], [6])):
        ragged = tf.RaggedTensor.from_row_lengths(
            np.concatenate([outputs[i] for i in numbers]), [len(outputs[i]) for i in numbers]
        )
        keras_kd.cache_teacher_outputs(
            "arrays", [(np.array(numbers), ragged)], tmp_path / str(part), key="id", verbose=0
        )
    cache = keras_kd.open_teacher_cache([tmp_path / str(part) for part in range(4)])
    ids = np.array([5, 0, 4, 1, 2, 6, 3])
    (precomputed,) = next(iter(cache.attach(tf.data.Dataset.from_tensors(({"id": ids},)))))
    for row, number in zip(precomputed.prediction.numpy(), ids, strict=True):
        expected = np.zeros((5, 2))
        expected[: len(outputs[number])] = outputs[number]
        np.testing.assert_allclose(row, expected, rtol=1e-3)


def test_parts_of_other_settings_are_refused(data, tmp_path):
    x, _ = data
    teacher = dense_model(16, 3)
    stored(teacher, batches_of(x), tmp_path / "one")
    stored(teacher, batches_of(x), tmp_path / "two", dtype="float32")
    with pytest.raises(ValueError, match='dtype: there it is "float16", here "float32"'):
        keras_kd.open_teacher_cache([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(ValueError, match="path must be a folder or a list of at least one"):
        keras_kd.open_teacher_cache([])


def test_another_preprocessing_is_refused(data, tmp_path):
    teacher, dataset, folder = dense_model(3), batches_of(data[0]), tmp_path / "cache"
    tokenizer = {"tokenizer": "bytes", "vocabulary": "1f3a"}
    stored(teacher, dataset, folder, preprocessing=tokenizer)
    stored(teacher, dataset, folder, preprocessing=dict(reversed(tokenizer.items())))
    keras_kd.open_teacher_cache(folder)
    keras_kd.open_teacher_cache(folder, preprocessing=tokenizer)
    other = {**tokenizer, "vocabulary": "99"}
    reason = 'preprocessing vocabulary: there it is "1f3a", here "99"'
    with pytest.raises(ValueError, match=reason):
        stored(teacher, dataset, folder, preprocessing=other)
    with pytest.raises(ValueError, match=reason):
        keras_kd.open_teacher_cache(folder, preprocessing=other)
    with pytest.raises(ValueError, match="preprocessing: there it is"):
        stored(teacher, dataset, folder)
    with pytest.raises(TypeError, match="preprocessing must be what JSON can hold"):
        stored(teacher, dataset, folder, preprocessing=keras.layers.Dense(3))
