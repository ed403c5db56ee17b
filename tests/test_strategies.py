"""`tf.distribute`: which strategies and settings are supported, and each loss with a replica without examples."""

import collections
import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of
from loss_table import LOSSES

import keras_kd
from keras_kd.steps import replicas

# Batches of 16 and of 1: of the last, one of two replicas gets nothing.
ROWS, BATCH = 17, 16


def languages_of(rows):
    return np.array(["en", "sw", "fi"])[np.arange(rows) % 3]


def made_examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 8)).astype("float32")
    return x, (x @ rng.normal(size=(8, 5))).argmax(axis=-1)


examples = pytest.fixture(made_examples, name="examples")


def off_zero(model):
    """A model without zero biases, so that no dead relu gives flat features."""
    rng = np.random.default_rng(3)
    for variable in model.variables:
        variable.assign(variable + 0.2 * rng.normal(size=variable.shape))
    return model


def trained(strategy, dataset, *, teacher, student, loss, optimizer=lambda: keras.optimizers.SGD(0.01), **compiled):
    """Train and evaluate; the student's weights, the logs, and what `evaluate` gives."""
    keras.utils.set_random_seed(7)
    teacher = teacher()
    with strategy.scope():
        keras.utils.set_random_seed(8)
        distiller = keras_kd.Distiller(teacher, off_zero(student()), loss())
        compiled = {"metrics": lambda: ["accuracy"], **compiled}
        distiller.compile(optimizer(), crossentropy(), **{**compiled, "metrics": compiled["metrics"]()})
    history = distiller.fit(dataset, epochs=2, verbose=0).history
    evaluated = distiller.evaluate(dataset, verbose=0, return_dict=True)
    return distiller.student.get_weights(), history, evaluated


def assert_equal(got, expected, atol=1e-6):
    for one, two in zip(expected[0], got[0], strict=True):
        np.testing.assert_allclose(two, one, atol=atol)
    for one, two in zip(expected[1:], got[1:], strict=True):
        assert set(two) == set(one)
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, rtol=atol, atol=2 * atol, err_msg=name)


def assert_as_one_device(dataset, strategy=None, **options):
    expected = trained(tf.distribute.get_strategy(), dataset, **options)
    assert_equal(trained(strategy or strategy_of(2), dataset, **options), expected)


def batches(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


# A replica without examples ---------------------------------------------------------------------------------------


ROWS_BY_MODEL = collections.defaultdict(dict)  # each distiller has all losses that its models suit: each is logged
for name, row in LOSSES.items():
    ROWS_BY_MODEL[row.model][re.sub(r"\W", "_", name)] = row


@pytest.mark.parametrize("model", ROWS_BY_MODEL)
def test_every_loss(model, examples):
    rows = ROWS_BY_MODEL[model]
    models = {"teacher": lambda: model(8), "student": lambda: model(4)}
    losses = lambda: [row.make(name=name) for name, row in rows.items()]  # noqa: E731
    expected = trained(tf.distribute.get_strategy(), batches(*examples), **models, loss=losses)
    assert set(rows) <= set(expected[1])
    assert_equal(trained(strategy_of(2), batches(*examples), **models, loss=losses), expected)


@pytest.mark.parametrize("eager", [False, True])
def test_metrics_that_look_labels_up(examples, eager):
    def metrics():
        names = ("MacroF1", "Agreement", "MeanKL", "ExpectedCalibrationError")
        made = [getattr(keras_kd.metrics, name) for name in names]
        return [made[0](classes=5), *(metric() for metric in made[1:]), "accuracy"]

    models = {"teacher": lambda: dense_model(8, 5), "student": lambda: dense_model(4, 5)}
    assert_as_one_device(
        batches(*examples), **models, loss=keras_kd.losses.SoftLabels, metrics=metrics, run_eagerly=eager
    )


@pytest.mark.parametrize("wrapped", ["soft_labels", "dist"])
def test_what_goes_by_language(examples, wrapped):
    """A teacher for each language, a loss weighed by language and a metric by language."""
    x, y = examples
    languages = ["en", "sw", "fi"]
    dataset = batches({"x": x, "language": languages_of(ROWS)}, y)

    def keyed(width):
        inputs = keras.Input((8,), name="x")
        hidden = keras.layers.Dense(width, "relu")(inputs)
        return keras.Model({"x": inputs}, keras.layers.Dense(5)(hidden))

    def teacher():
        return keras_kd.teachers.route_by_language({language: keyed(8) for language in languages})

    def loss():
        weights = {"en": 1.0, "sw": 2.0, "fi": 0.5}
        return keras_kd.losses.ByLanguage(LOSSES[wrapped].make(), weights=weights)

    def metrics():
        return [keras_kd.metrics.MacroF1ByLanguage(classes=5, languages=languages)]

    assert_as_one_device(dataset, teacher=teacher, student=lambda: keyed(4), loss=loss, metrics=metrics)


@pytest.mark.parametrize("eager", [False, True])
def test_masked_sequences(eager):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (ROWS, 6))
    ids[np.arange(6) >= rng.integers(1, 7, (ROWS, 1))] = 0

    def tokens(width):
        embedding = keras.layers.Embedding(20, width, mask_zero=True)
        return keras.Sequential([keras.Input((6,), dtype="int32"), embedding, keras.layers.Dense(5)])

    models = {"teacher": lambda: tokens(8), "student": lambda: tokens(4)}
    dataset = batches(ids, rng.integers(0, 5, (ROWS, 6)))
    assert_as_one_device(dataset, **models, loss=keras_kd.losses.SoftLabels, run_eagerly=eager)


def test_a_wrong_label_on_one_replica_is_explained_by_fit_and_evaluate(examples):
    x, y = examples
    y = np.where(np.arange(ROWS) == ROWS - 1, 9, y)
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(dense_model(8, 5), dense_model(4, 5))
        distiller.compile("sgd", metrics=[keras_kd.metrics.MacroF1(classes=5)])
    for method in (distiller.fit, distiller.evaluate):
        with pytest.raises(ValueError, match=r"^macro_f1: labels must lie in 0 … 4, .*; got 9\.$"):
            method(batches(x, y), verbose=0)


# Settings ---------------------------------------------------------------------------------------------------------

SETTINGS = {
    "no setting": {},
    "jit_compile": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 2},
    "run_eagerly": {"run_eagerly": True},
    "gradient_accumulation_steps": {"optimizer": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)},
}
MAKE = {
    "MirroredStrategy, 1 replica": lambda: strategy_of(1),
    "MirroredStrategy, 2 replicas": lambda: strategy_of(2),
    "CentralStorageStrategy, 1 replica": lambda: tf.distribute.experimental.CentralStorageStrategy(["CPU:0"]),
    "OneDeviceStrategy": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
}


def trained_with(setting, strategy):
    models = {"teacher": lambda: dense_model(8, 5), "student": lambda: dense_model(4, 5)}
    loss = lambda: [keras_kd.losses.SoftLabels(), keras_kd.losses.RelationalKD()]  # noqa: E731
    return trained(strategy, batches(*made_examples()), **models, loss=loss, **SETTINGS[setting])


on_one_device = functools.cache(lambda setting: trained_with(setting, tf.distribute.get_strategy()))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", MAKE)
def test_each_setting_trains_as_one_device_or_is_refused_by_name(kind, setting):
    strategy = MAKE[kind]()
    if setting not in replicas.unusable_settings(strategy):
        assert_equal(trained_with(setting, strategy), on_one_device(setting))
        return
    count = f"{strategy.num_replicas_in_sync} replica"
    with pytest.raises(ValueError, match=f"{setting}=.* does not run under {type(strategy).__name__} with {count}"):
        trained_with(setting, strategy)


def test_what_the_table_lets_through():
    """That the test above trains, and does not only see refusals."""
    refused = {kind: set(replicas.unusable_settings(make())) for kind, make in MAKE.items()}
    accumulation = {"gradient_accumulation_steps"}
    assert refused == {
        "MirroredStrategy, 1 replica": accumulation,
        "MirroredStrategy, 2 replicas": {"jit_compile", "steps_per_execution", *accumulation},
        "CentralStorageStrategy, 1 replica": accumulation,
        "OneDeviceStrategy": set(),
    }


class OtherStrategy(tf.distribute.Strategy):
    """A strategy that nobody has tried."""

    def __init__(self):
        super().__init__(tf.distribute.OneDeviceStrategy("CPU:0").extended)


def test_a_parameter_server_strategy_is_refused_by_name():
    """Without making one, which needs servers."""
    strategy = object.__new__(tf.distribute.ParameterServerStrategy)
    with pytest.raises(ValueError, match=r"does not train under ParameterServerStrategy.* Use MirroredStrategy, "):
        replicas.unusable_settings(strategy)


def test_several_replicas_of_central_storage_are_refused():
    """There, Keras's own metrics lose updates: an accuracy of 8/34 is logged as 7/33."""
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"])
    with strategy.scope(), pytest.raises(ValueError, match="under CentralStorageStrategy with 2 replicas"):
        keras_kd.Distiller(dense_model(8, 5), dense_model(4, 5))


def test_an_unknown_strategy_is_refused_when_the_distiller_is_made():
    with OtherStrategy().scope(), pytest.raises(ValueError, match="does not train under OtherStrategy"):
        keras_kd.Distiller(dense_model(8, 5), dense_model(4, 5))


# Communication ----------------------------------------------------------------------------------------------------


def all_reduces(make, dataset, monkeypatch):
    """How often the training step of a model calls for a sum over replicas, as it is traced."""
    calls = []
    original = tf.distribute.ReplicaContext.all_reduce

    def counting(context, *args, **kwargs):
        calls.append(context.replica_id_in_sync_group)
        return original(context, *args, **kwargs)

    with strategy_of(2).scope():
        model = make()
        model.compile("sgd", crossentropy(), metrics=["accuracy"])
    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", counting)
    model.fit(dataset, verbose=0)
    monkeypatch.undo()
    return sum(replica == 0 for replica in (int(tf.get_static_value(call)) for call in calls))


def test_few_sums_over_replicas_in_a_step(examples, monkeypatch):
    """The gradients', as in plain Keras; the teacher's check and the number of examples; the labels' check."""
    dataset = batches(*examples)
    plain = all_reduces(lambda: dense_model(4, 5), dataset, monkeypatch)

    def distiller():
        losses = [keras_kd.losses.SoftLabels(), keras_kd.losses.LogitsMSE(), keras_kd.losses.Hint("logits", "logits")]
        return keras_kd.Distiller(dense_model(8, 5), dense_model(4, 5, kernel_regularizer="l2"), losses)

    assert all_reduces(distiller, dataset, monkeypatch) == plain + 2
