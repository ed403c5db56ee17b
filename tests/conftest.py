"""Shared by all tests: two logical CPU devices, fixed seeds, small models."""

import functools
import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Without oneDNN, which TensorFlow uses by itself on processors with AVX-512 only, a CPU has no convolutions with
# channels first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.ops import gradient_registry

from keras_kd.deploy import runtimes
from keras_kd.deploy.fresh_process import peak_memory

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
# Most graphs of the tests run once or twice: to optimize one takes longer than to run it as it was traced. The demo,
# the notebooks and the scripts run in processes of their own, as a user's would.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_sessionstart(session):
    """What TensorFlow says while it is imported is dropped: the summary is to be the last that is printed."""
    capture = session.config.pluginmanager.getplugin("capturemanager")
    if capture.is_globally_capturing():
        capture.read_global_capture()


# The files that take longest: started first, so that no worker is left alone with one at the end.
LONGEST = ["test_examples", "test_strategies", "test_demo", "test_notebook", "test_replicas", "test_fused_step"]


def pytest_collection_modifyitems(items):
    """Order the files for several workers; each file stays whole."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="module", autouse=True)
def _what_other_files_left():
    """Garbage is collected once a file, and the rest not looked at again: LiteRT's converter collects at each call."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts from the same seeds, the float32 policy and no left-over Keras names."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    yield
    keras.config.set_dtype_policy("float32")
    # TensorFlow keeps what `tf.custom_gradient` and `ReplicaContext.all_reduce`, thus each optimizer, put into a graph.
    for name in [name for name in gradient_registry.list() if name.startswith("CustomGradient-")]:
        del gradient_registry._registry[name]


@pytest.fixture(scope="session", autouse=True)
def _without_fresh_processes():
    """A fresh process imports TensorFlow for seconds: only the tests that ask for it start one at each export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "peak_memory", lambda path, inputs: None)
        yield


@pytest.fixture
def fresh_process(monkeypatch):
    """Exported files are run in fresh processes, as they are outside of the tests."""
    monkeypatch.setattr(runtimes, "peak_memory", peak_memory)


@pytest.fixture
def data():
    """37 examples of 8 features in 3 classes, which a linear rule can tell apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(37, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 3))).argmax(axis=-1)
    return x, y


def dense_model(*units, inputs=8, last=None, name=None, **options):
    """A small sequential classifier: relu layers called `hidden_0`, … and a last layer called `logits`."""
    layers = [keras.layers.Dense(n, "relu", name=f"hidden_{i}", **options) for i, n in enumerate(units[:-1])]
    return keras.Sequential(
        [keras.Input((inputs,)), *layers, keras.layers.Dense(units[-1], last, name="logits", **options)], name=name
    )


def crossentropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


@functools.cache
def strategy_of(replicas):
    """One strategy object a process: TensorFlow's collectives clash when two are made over the same devices."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][:replicas])
