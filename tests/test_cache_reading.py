"""What reading a cache needs: the files where they were, and no memory that grows with them."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_kd

READ = """
import pathlib, sys
import numpy as np, tensorflow as tf
import keras_kd

def anonymous():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

def total(folder, examples):
    dataset = tf.data.Dataset.from_tensor_slices({"id": np.arange(examples)}).batch(64)
    attached = keras_kd.open_teacher_cache(folder, verify=False).attach(dataset)
    return sum(float(tf.reduce_sum(batch.prediction[:, 0])) for (batch,) in attached)

total(sys.argv[1], 64)  # TensorFlow's threads and kernels
before = anonymous()
found = total(sys.argv[2], 25_000)
print(anonymous() - before, found)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_cache(tmp_path):
    for name, parts in (("little", 1), ("much", 5)):
        parts = ((np.arange(5000 * i, 5000 * (i + 1)), np.full((5000, 1000), i, "float32")) for i in range(parts))
        keras_kd.cache_teacher_outputs("arrays", parts, tmp_path / name, key="id", dtype="float32", verbose=0)
    size = (tmp_path / "much" / "output_0.bin").stat().st_size
    assert size == 100_000_000
    command = [sys.executable, "-c", READ, str(tmp_path / "little"), str(tmp_path / "much")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, found = done.stdout.split()
    assert float(found) == 5000 * (0 + 1 + 2 + 3 + 4)
    assert int(grown) < size / 3


def test_a_cache_is_found_wherever_the_working_directory_is_by_then(tmp_path, monkeypatch):
    ids, outputs = np.arange(6), np.eye(6, dtype="float32")
    monkeypatch.chdir(tmp_path)
    cache = keras_kd.cache_teacher_outputs("arrays", [(ids, outputs)], "cache", key="id", verbose=0)
    monkeypatch.chdir("/")
    attached = cache.attach(tf.data.Dataset.from_tensors(({"id": ids[::-1]},)))
    (precomputed,) = next(iter(attached))
    np.testing.assert_array_equal(precomputed.prediction, outputs[::-1])
