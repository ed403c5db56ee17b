"""`tf.distribute`: the same numbers with one and with several replicas, and one and several workers."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model

import keras_kd


@functools.cache
def strategy_of(replicas):
    """One strategy object a process: TensorFlow's collectives clash when two are made over the same devices."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][:replicas])


def distilled(
    replicas, dataset, *, loss=None, student=None, teacher=None, objectives=None, epochs=3, metrics=("accuracy",)
):
    """Train on `dataset` with so many replicas; return the weights, the logs and what `evaluate` says."""
    keras.utils.set_random_seed(7)
    teacher = teacher() if teacher else dense_model(16, 3)
    with strategy_of(replicas).scope():
        keras.utils.set_random_seed(8)
        student = student() if student else dense_model(6, 3)
        objectives = objectives() if objectives else [keras_kd.SoftLabels(3.0)]
        distiller = keras_kd.Distiller(teacher, student, objectives, soft_weight=0.7)
        distiller.compile(keras.optimizers.SGD(0.2), loss or crossentropy(), metrics=list(metrics) or None)
    history = distiller.fit(dataset, epochs=epochs, verbose=0).history
    evaluated = distiller.evaluate(dataset, verbose=0, return_dict=True)
    return distiller.student.get_weights(), history, evaluated


def assert_replicas_agree(dataset, **options):
    weights, history, evaluated = distilled(1, dataset, **options)
    mirrored_weights, mirrored_history, mirrored_evaluated = distilled(2, dataset, **options)
    for one, two in zip(weights, mirrored_weights, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-6)
    assert set(mirrored_history) == set(history)
    for name, values in history.items():
        assert mirrored_history[name] == pytest.approx(values, abs=2e-6), name
    assert mirrored_evaluated == pytest.approx(evaluated, abs=2e-6)


def dataset_of(*arrays, batch_size):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


# 37 rows: 16, 16 and an uneven 5; 12, 12, 12 and 1, so that one replica gets nothing; 37, an uneven first batch.
@pytest.mark.parametrize("batch_size", [16, 12, 37])
def test_uneven_batches_with_sample_weights(data, batch_size):
    x, y = data
    weights = np.linspace(0.0, 2.0, len(x)).astype("float32")
    assert_replicas_agree(dataset_of(x, y, weights, batch_size=batch_size))


def test_regularization(data):
    student = lambda: dense_model(6, 3, kernel_regularizer="l2", bias_regularizer="l1")  # noqa: E731
    assert_replicas_agree(dataset_of(*data, batch_size=16), student=student)


def test_a_loss_that_is_summed(data):
    assert_replicas_agree(dataset_of(*data, batch_size=16), loss=crossentropy(reduction="sum"), epochs=1)


def test_a_loss_that_is_divided_by_the_weights(data):
    x, y = data
    weights = np.linspace(0.1, 2.0, len(x)).astype("float32")
    loss = crossentropy(reduction="mean_with_sample_weight")
    assert_replicas_agree(dataset_of(x, y, weights, batch_size=16), loss=loss)


def test_partly_labelled_data(data):
    x, y = data
    partly = np.where(np.arange(len(y)) % 3 == 0, y, -1)
    loss = crossentropy(ignore_class=-1)
    weights, *_ = distilled(1, dataset_of(x, partly, batch_size=16), loss=loss)
    mirrored_weights, *_ = distilled(2, dataset_of(x, partly, batch_size=16), loss=loss)
    for one, two in zip(weights, mirrored_weights, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-6)


def token_model(width):
    return keras.Sequential(
        [keras.Input((6,), dtype="int32"), keras.layers.Embedding(20, width, mask_zero=True), keras.layers.Dense(4)]
    )


def test_masked_sequences_of_uneven_length():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (13, 6))
    ids[np.arange(6) >= rng.integers(1, 7, (13, 1))] = 0
    dataset = dataset_of(ids, rng.integers(0, 4, (13, 6)), batch_size=8)
    assert_replicas_agree(dataset, teacher=lambda: token_model(8), student=lambda: token_model(3))


def test_a_layer_objective_with_a_projection(data):
    objectives = lambda: [keras_kd.SoftLabels(), keras_kd.Hint("hidden_0", "hidden_0")]  # noqa: E731
    assert_replicas_agree(dataset_of(*data, batch_size=16), objectives=objectives)


def test_several_outputs(data):
    def two_headed(width):
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(width, "relu")(inputs)
        return keras.Model(inputs, {"a": keras.layers.Dense(3)(hidden), "b": keras.layers.Dense(3)(hidden)})

    x, y = data
    dataset = tf.data.Dataset.from_tensor_slices((x, {"a": y, "b": 2 - y})).batch(16)
    loss = {"a": crossentropy(), "b": crossentropy()}
    models = {"teacher": lambda: two_headed(9), "student": lambda: two_headed(4)}
    weights, *_ = distilled(1, dataset, **models, loss=loss, metrics=())
    mirrored, *_ = distilled(2, dataset, **models, loss=loss, metrics=())
    for one, two in zip(weights, mirrored, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-6)


def test_unlabelled_data(data):
    weights, *_ = distilled(1, dataset_of(data[0], batch_size=16).map(lambda x: x))
    mirrored, *_ = distilled(2, dataset_of(data[0], batch_size=16).map(lambda x: x))
    for one, two in zip(weights, mirrored, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-6)


def test_a_ramp_changes_lambda_on_every_replica(data):
    teacher = dense_model(16, 3)
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(teacher, dense_model(6, 3))
        distiller.compile("sgd", crossentropy())
    ramp = keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=2)
    logs = distiller.fit(dataset_of(*data, batch_size=16), epochs=3, verbose=0, callbacks=[ramp]).history
    assert logs["soft_weight"] == [0.0, 0.5, 1.0]
    assert logs["loss"][0] == pytest.approx(logs["hard_loss"][0], rel=1e-5)
    assert logs["loss"][2] == pytest.approx(logs["hard_loss"][2] + logs["soft_labels"][2], rel=1e-5)


def test_objectives_may_be_made_outside_the_scope(data):
    teacher, objective = dense_model(16, 3), keras_kd.SoftLabels(3.0)
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(teacher, dense_model(6, 3), objective)
        distiller.compile("sgd", crossentropy())
    ramp = keras_kd.LambdaRamp(4.0, 2.0, ramp_epochs=1, temperature_of="soft_labels")
    logs = distiller.fit(dataset_of(*data, batch_size=16), epochs=2, verbose=0, callbacks=[ramp]).history
    assert logs["soft_labels_temperature"] == [4.0, 2.0]
    assert np.isfinite(logs["soft_labels"]).all()


def test_a_student_made_outside_the_scope_is_refused():
    teacher, student = dense_model(16, 3), dense_model(6, 3, name="outsider")
    with strategy_of(2).scope(), pytest.raises(ValueError, match="student 'outsider' was made outside the scope"):
        keras_kd.Distiller(teacher, student)


@pytest.mark.parametrize("argument", [{"steps_per_execution": 2}, {"jit_compile": True}])
def test_what_mirrored_strategies_cannot_run_is_refused(argument):
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3))
        with pytest.raises(ValueError, match="does not run under MirroredStrategy with 2 replicas"):
            distiller.compile("sgd", crossentropy(), **argument)


# Several workers --------------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy() if "TF_CONFIG" in os.environ else tf.distribute.get_strategy()
import keras_kd

rng = np.random.default_rng(0)
x = rng.normal(size=(36, 8)).astype("float32")
y = (x @ rng.normal(size=(8, 3))).argmax(axis=-1)
w = np.linspace(0.0, 2.0, len(x)).astype("float32")

def model(width):
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(3)])

with strategy.scope():
    keras.utils.set_random_seed(4)
    distiller = keras_kd.Distiller(model(16), model(6), keras_kd.SoftLabels(3.0), soft_weight=0.7)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.2), loss, metrics=["accuracy"])
dataset = tf.data.Dataset.from_tensor_slices((x, y, w)).batch(12)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
dataset = dataset.with_options(options)
ramp = keras_kd.LambdaRamp(0.1, 0.7, ramp_epochs=2)
history = distiller.fit(dataset, epochs=3, verbose=0, callbacks=[ramp]).history
evaluated = distiller.evaluate(dataset, verbose=0, return_dict=True)
weights = [w.tolist() for w in distiller.student.get_weights()]
print("RESULT" + json.dumps({"history": history, "evaluated": evaluated, "weights": weights}))
"""


def start_worker(index, ports):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    root = str(pathlib.Path(keras_kd.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env=environment,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results_of(processes):
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    results = []
    for (out, err), process in zip(outputs, processes, strict=True):
        assert process.returncode == 0, err[-3000:]
        results.append(json.loads(out.partition("RESULT")[2]))
    return results


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_workers_equal_one_process():
    (alone,) = results_of([start_worker(0, [])])
    ports = free_ports(2)
    workers = results_of([start_worker(index, ports) for index in range(2)])
    for worker in workers:
        for one, two in zip(alone["weights"], worker["weights"], strict=True):
            np.testing.assert_allclose(two, one, atol=1e-6)
        for name, values in alone["history"].items():
            assert worker["history"][name] == pytest.approx(values, abs=2e-6), name
        assert worker["evaluated"] == pytest.approx(alone["evaluated"], abs=2e-6)
