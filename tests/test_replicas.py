"""`tf.distribute`: the same numbers with one and with several replicas, and one and several workers."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of

import keras_kd


def distilled(
    replicas,
    dataset,
    *,
    loss=None,
    student=None,
    teacher=None,
    distillation_losses=None,
    epochs=3,
    optimizer=None,
    **compiled,
):
    """Train on `dataset` with so many replicas; return the weights, the logs and what `evaluate` says."""
    keras.utils.set_random_seed(7)
    teacher = teacher() if teacher else dense_model(16, 3)
    with strategy_of(replicas).scope():
        keras.utils.set_random_seed(8)
        student = student() if student else dense_model(6, 3)
        distillation_losses = distillation_losses() if distillation_losses else [keras_kd.losses.SoftLabels(3.0)]
        distiller = keras_kd.Distiller(teacher, student, distillation_losses, soft_weight=0.7)
        optimizer = optimizer() if optimizer else keras.optimizers.SGD(0.2)
        distiller.compile(optimizer, loss or crossentropy(), **{"metrics": ["accuracy"], **compiled})
    history = distiller.fit(dataset, epochs=epochs, verbose=0).history
    evaluated = distiller.evaluate(dataset, verbose=0, return_dict=True)
    return distiller.student.get_weights(), history, evaluated


def assert_replicas_agree(dataset, atol=1e-6, **options):
    weights, history, evaluated = distilled(1, dataset, **options)
    mirrored_weights, mirrored_history, mirrored_evaluated = distilled(2, dataset, **options)
    for one, two in zip(weights, mirrored_weights, strict=True):
        np.testing.assert_allclose(two, one, atol=atol)
    assert set(mirrored_history) == set(history)
    for name, values in history.items():
        assert mirrored_history[name] == pytest.approx(values, abs=2 * atol), name
    assert mirrored_evaluated == pytest.approx(evaluated, abs=2 * atol)


def dataset_of(*arrays, batch_size):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


# 37 rows: 12, 12, 12 and 1, so that one replica gets nothing; 37, an uneven first batch.
@pytest.mark.parametrize("batch_size", [12, 37])
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
    assert_replicas_agree(dataset_of(x, partly, batch_size=16), loss=crossentropy(ignore_class=-1))


def token_model(width):
    return keras.Sequential(
        [keras.Input((6,), dtype="int32"), keras.layers.Embedding(20, width, mask_zero=True), keras.layers.Dense(4)]
    )


@pytest.mark.parametrize("shape", [(13, 1), (13, 6)], ids=["by sequence", "by token"])
def test_masked_sequences_of_uneven_length(shape):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (13, 6))
    ids[np.arange(6) >= rng.integers(1, 7, (13, 1))] = 0
    weights = rng.uniform(0, 2, shape).astype("float32")
    dataset = dataset_of(ids, rng.integers(0, 4, (13, 6)), weights, batch_size=8)
    assert_replicas_agree(dataset, teacher=lambda: token_model(8), student=lambda: token_model(3), epochs=2)


def test_losses_over_masked_and_unmasked_tokens_that_are_divided_by_the_same_weights():
    """What one loss is divided by must not become what the other is."""

    def model(width):
        hidden = [keras.layers.Dense(units, use_bias=False, name=f"of_{units}") for units in (width, 4)]
        return keras.Sequential([keras.Input((6, 8)), *hidden, keras.layers.Masking(), keras.layers.Dense(4)])

    def losses():
        options = {"reduction": "mean_with_sample_weight"}
        return [keras_kd.losses.SoftLabels(**options), keras_kd.losses.Hint("of_4", "of_4", **options)]

    rng = np.random.default_rng(0)
    x = rng.normal(size=(13, 6, 8)).astype("float32")
    x[np.arange(6) >= rng.integers(1, 7, (13, 1))] = 0.0  # which the last layers mask, and those before do not
    dataset = dataset_of(x, rng.integers(0, 4, (13, 6)), rng.uniform(0, 2, (13, 6)).astype("float32"), batch_size=8)
    models = {"teacher": lambda: model(8), "student": lambda: model(3)}
    assert_replicas_agree(dataset, **models, distillation_losses=losses, epochs=2)


def test_a_layer_loss_with_a_projection(data):
    distillation_losses = lambda: [keras_kd.losses.SoftLabels(), keras_kd.losses.Hint("hidden_0", "hidden_0")]  # noqa: E731
    assert_replicas_agree(dataset_of(*data, batch_size=16), distillation_losses=distillation_losses)


def test_losses_that_need_labels(data):
    x, y = data
    partly = np.where(np.arange(len(y)) % 3 == 0, y, -1)
    distillation_losses = lambda: [keras_kd.losses.DecoupledKD(temperature=2.0), keras_kd.losses.SkewKL(alpha=0.1)]  # noqa: E731
    loss = crossentropy(ignore_class=-1)
    assert_replicas_agree(
        dataset_of(x, partly, batch_size=16), distillation_losses=distillation_losses, loss=loss, metrics=()
    )


def test_several_outputs(data):
    def two_headed(width):
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(width, "relu")(inputs)
        return keras.Model(inputs, {name: keras.layers.Dense(3, name=name)(hidden) for name in ("a", "b")})

    x, y = data
    weights = {"a": np.linspace(0.0, 2.0, 37), "b": np.linspace(1.0, 0.0, 37)}
    dataset = dataset_of(x, {"a": y, "b": 2 - y}, weights, batch_size=16)
    models = {"teacher": lambda: two_headed(9), "student": lambda: two_headed(4)}
    loss = {"a": crossentropy(), "b": crossentropy()}
    options = {"loss": loss, "loss_weights": {"a": 2.0, "b": 0.5}, "metrics": {"a": ["accuracy"]}}
    assert_replicas_agree(dataset, **models, **options)


def test_unlabelled_data(data):
    assert_replicas_agree(dataset_of(data[0], batch_size=16).map(lambda x: x))


def test_a_loss_function_of_ones_own(data):
    def squared(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(keras.ops.cast(y_true, "float32")[:, None] - y_pred), axis=-1)

    assert_replicas_agree(dataset_of(*data, batch_size=16), loss=squared, metrics=None)


@pytest.mark.parametrize(
    ("policy", "atol", "optimizer"),
    [
        ("float32", 1e-5, lambda: keras.optimizers.Adam(0.01, use_ema=True)),
        ("float32", 1e-6, lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)),
        ("mixed_float16", 1e-3, lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    ],
    ids=["adam", "momentum", "mixed_float16"],
)
def test_optimizers_with_variables_of_their_own(data, policy, atol, optimizer):
    keras.config.set_dtype_policy(policy)
    assert_replicas_agree(dataset_of(*data, batch_size=16), optimizer=optimizer, epochs=2, atol=atol)


def test_synchronized_batchnorm(data):
    def student():
        return keras.Sequential(
            [keras.Input((8,)), keras.layers.BatchNormalization(synchronized=True), keras.layers.Dense(3)]
        )

    assert_replicas_agree(dataset_of(*data, batch_size=16), student=student, epochs=2)


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


def test_losses_may_be_made_outside_the_scope(data):
    teacher, distillation_loss = dense_model(16, 3), keras_kd.losses.SoftLabels(3.0)
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(teacher, dense_model(6, 3), distillation_loss)
        distiller.compile("sgd", crossentropy())
    ramp = keras_kd.LambdaRamp(4.0, 2.0, ramp_epochs=1, temperature_of="soft_labels")
    logs = distiller.fit(dataset_of(*data, batch_size=16), epochs=2, verbose=0, callbacks=[ramp]).history
    assert logs["soft_labels_temperature"] == [4.0, 2.0]
    assert np.isfinite(logs["soft_labels"]).all()


def test_a_run_killed_under_a_strategy_is_resumed(data, tmp_path):
    """`BackupAndRestore`, with Dropout, a projection and a ramp; then `save` and `load_distiller`."""

    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    def make():
        keras.utils.set_random_seed(4)
        teacher = dense_model(16, 3)
        with strategy_of(2).scope():
            layers = [keras.layers.Dense(6, name="thin"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
            student = keras.Sequential([keras.Input((8,)), *layers])
            distillation_losses = [keras_kd.losses.SoftLabels(), keras_kd.losses.Hint("hidden_0", "thin")]
            distiller = keras_kd.Distiller(teacher, student, distillation_losses)
            distiller.compile("adam", crossentropy())
        return distiller

    def fit(distiller, epochs, *callbacks, **options):
        callbacks = [keras_kd.LambdaRamp(0.0, 1.0, ramp_epochs=4), *callbacks]
        return distiller.fit(dataset_of(*data, batch_size=16), epochs=epochs, verbose=0, callbacks=callbacks, **options)

    whole = make()
    fit(whole, 4)
    with pytest.raises(Killed):
        fit(make(), 4, keras.callbacks.BackupAndRestore(tmp_path / "backup"), Kill())
    resumed = make()
    fit(resumed, 4, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    whole.save(tmp_path / "distiller.keras")
    with strategy_of(2).scope():
        loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", whole.teacher)
    expected = fit(whole, 5, initial_epoch=4).history
    assert fit(loaded, 5, initial_epoch=4).history == expected


@pytest.mark.parametrize("wrong", ["teacher", "label"])
def test_what_is_wrong_on_one_replica_stops_all(data, wrong):
    """Example 31, the last of batch 1, is in the second replica's half."""

    class FailsOnLargeValues(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.where(inputs > 90.0, np.nan, inputs)

    x, y = data[0].copy(), data[1].copy()
    if wrong == "teacher":
        x[31] = 100.0
    else:
        y[31] = 7
    teacher = keras.Sequential([keras.Input((8,)), FailsOnLargeValues(), keras.layers.Dense(3)])
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(teacher, dense_model(6, 3))
        distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=rf"{wrong}.* in training batch 1 "):
        distiller.fit(dataset_of(x, y, batch_size=16), verbose=0)


def test_a_student_made_outside_the_scope_is_refused(data):
    teacher, student = dense_model(16, 3), dense_model(6, 3, name="outsider")
    with strategy_of(2).scope(), pytest.raises(ValueError, match="student 'outsider' was made outside the scope"):
        keras_kd.Distiller(teacher, student)
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile("sgd", crossentropy())
    with strategy_of(2).scope(), pytest.raises(ValueError, match="student 'outsider' was made outside the scope"):
        distiller.fit(*data, verbose=0)


def test_a_distiller_or_optimizer_made_outside_the_scope_is_refused():
    with strategy_of(2).scope():
        student = dense_model(6, 3, name="insider")
        distiller = keras_kd.Distiller(dense_model(16, 3), student)
    with pytest.raises(ValueError, match=r"student 'insider' was made inside the scope .* but the distiller outside"):
        keras_kd.Distiller(dense_model(16, 3), student)
    with pytest.raises(ValueError, match=r"optimizer was made outside the scope of the MirroredStrategy"):
        distiller.compile("sgd", crossentropy())


@pytest.mark.parametrize(
    ("optimizer", "argument"),
    [
        ("sgd", {"steps_per_execution": 2}),
        ("sgd", {"jit_compile": True}),
        (lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), {}),
    ],
    ids=["steps_per_execution", "jit_compile", "gradient_accumulation_steps"],
)
def test_what_mirrored_strategies_cannot_run_is_refused(optimizer, argument):
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3))
        optimizer = optimizer() if callable(optimizer) else optimizer
        with pytest.raises(ValueError, match="does not run under MirroredStrategy with 2 replicas"):
            distiller.compile(optimizer, crossentropy(), **argument)


# Several workers --------------------------------------------------------------------------------------------------

TRAINED = """
import json, os
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
    distiller = keras_kd.Distiller(model(16), model(6), keras_kd.losses.SoftLabels(3.0), soft_weight=0.7)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.2), loss, metrics=["accuracy"])
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
dataset = tf.data.Dataset.from_tensor_slices((x, y, w)).batch(12).with_options(options)
ramp = keras_kd.LambdaRamp(0.1, 0.7, ramp_epochs=2)
history = distiller.fit(dataset, epochs=3, verbose=0, callbacks=[ramp]).history
evaluated = distiller.evaluate(dataset, verbose=0, return_dict=True)
weights = [w.tolist() for w in distiller.student.get_weights()]
try:
    y[20] = 7  # in batch 1, in the half of one worker
    distiller.fit(tf.data.Dataset.from_tensor_slices((x, y, w)).batch(12).with_options(options), verbose=0)
    error = "none"
except ValueError as raised:
    error = str(raised)
results = {"history": history, "evaluated": evaluated, "weights": weights, "error": error}
"""

RESTARTED = """
import pathlib, shutil

index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
folder = pathlib.Path(os.environ["FOLDER"]) / f"backup_{index}"
x, y = np.random.default_rng(0).normal(size=(24, 8)).astype("float32"), np.arange(24) % 3
dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).with_options(options)

def make():
    keras.utils.set_random_seed(4)
    model = lambda: keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    with strategy.scope():
        distiller = keras_kd.Distiller(model(), model(), keras_kd.losses.SoftLabels(3.0))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.2), loss)
    return distiller

class KeepBackups(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        shutil.copytree(folder, f"{folder}_{epoch}")

def resumed(epoch, distiller):
    kept = f"{folder}_{epoch}"
    if os.path.exists(kept):
        shutil.copytree(kept, f"{folder}_resumed", dirs_exist_ok=True)  # the callback writes into its folder
    backup = keras.callbacks.BackupAndRestore(f"{folder}_resumed")
    try:
        return distiller.fit(dataset, epochs=4, verbose=0, callbacks=[backup]).epoch
    except ValueError as error:
        return str(error)

make().fit(dataset, epochs=2, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(folder), KeepBackups()])
results |= {"same": resumed(1, make()), "other epochs": resumed(index, make())}
shutil.rmtree(f"{folder}_resumed")
distiller = make()
distiller.fit(dataset, verbose=0)
if index == 1:
    for variable in distiller.trainable_variables:
        for part in variable.value.values:
            part.assign(part + 0.01)
results["other weights"] = resumed("none", distiller)
print("RESULT" + json.dumps(results))
"""


def start_worker(index, ports, folder):
    """Start one process; `ports` are those of all workers."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["FOLDER"] = str(folder)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    root = str(pathlib.Path(keras_kd.__file__).parents[1])
    command = [sys.executable, "-c", TRAINED + RESTARTED]
    with open(folder / f"out_{index}", "w") as out, open(folder / f"err_{index}", "w") as err:
        return subprocess.Popen(command, env=environment, cwd=root, stdout=out, stderr=err)


def run_workers(count, folder):
    """Run so many workers at once; return what each printed, or its errors. None outlives the first that fails."""
    folder.mkdir()
    ports = free_ports(count)
    processes = [start_worker(index, ports, folder) for index in range(count)]
    deadline = time.monotonic() + 240
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    succeeded = all(process.returncode == 0 for process in processes)
    return succeeded, [(folder / f"{'out' if succeeded else 'err'}_{index}").read_text() for index in range(count)]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Results of two workers. A port that was free may be taken when a worker opens it: then they start again."""
    for attempt in range(3):
        succeeded, texts = run_workers(2, tmp_path_factory.mktemp("workers") / str(attempt))
        if succeeded:
            return [json.loads(text.partition("RESULT")[2]) for text in texts]
        if not any("gRPC server" in text or "already in use" in text for text in texts):
            break
    raise AssertionError("\n\n".join(text[-3000:] for text in texts))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_workers_equal_one_process(workers):
    """Weights, logs and evaluation; and a bad label that only one worker sees is explained by both."""
    exec(TRAINED, here := {})
    alone = here["results"]
    for worker in workers:
        for one, two in zip(alone["weights"], worker["weights"], strict=True):
            np.testing.assert_allclose(two, one, atol=1e-6)
        for name, values in alone["history"].items():
            assert worker["history"][name] == pytest.approx(values, abs=2e-6), name
        assert worker["evaluated"] == pytest.approx(alone["evaluated"], abs=2e-6)
        assert "y holds a label outside the student's classes in training batch" in worker["error"]
        assert worker["error"] == alone["error"]


def test_workers_that_restart_from_different_epochs_are_refused(workers):
    """`BackupAndRestore` gives each worker what that worker kept last."""
    for worker in workers:
        assert worker["same"] == [2, 3]
        assert "workers start at different steps (replica 0: step 3, replica 1: step 6)" in worker["other epochs"]
        assert "restore the same epoch on all" in worker["other epochs"]
        assert "workers start with different weights (replica 0: step 3, replica 1: step 3)" in worker["other weights"]
