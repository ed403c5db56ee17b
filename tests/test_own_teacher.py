"""One model that teaches itself, deep to shallow, and students that teach each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, strategy_of
from formulas import soft_labels

import keras_kd


def two_exits(dropout=0.0):
    inputs = keras.Input((8,))
    shallow = keras.layers.Dense(6, "relu", name="shallow_hidden")(inputs)
    deep = keras.layers.Dense(6, "relu", name="deep_hidden")(keras.layers.Dropout(dropout)(shallow))
    exits = {"shallow": keras.layers.Dense(3)(shallow), "deep": keras.layers.Dense(3)(deep)}
    return keras.Model(inputs, exits)


def batch(rows=12):
    x = np.random.default_rng(0).normal(size=(rows, 8)).astype("float32")
    y = np.arange(rows) % 3
    return x, {"shallow": y, "deep": y}


def deep_to_shallow(**options):
    return keras_kd.losses.SoftLabels(temperature=2.0, output="shallow", teacher_output="deep", **options)


def compiled(model, distillation_losses, **options):
    distiller = keras_kd.Distiller(model, model, distillation_losses)
    distiller.compile(keras.optimizers.SGD(0.1), {"shallow": crossentropy(), "deep": crossentropy()}, **options)
    return distiller


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_deep_output_teaches_the_shallow_one_and_learns_nothing_from_it(jit_compile):
    """The update of the deep head is that of its own labels, to the last bit of the formula."""
    model = two_exits()
    x, y = batch()
    with tf.GradientTape() as tape:
        outputs = model(x)
        hard = sum(crossentropy()(y[name], outputs[name]) for name in outputs)
        log_p, log_q = (tf.nn.log_softmax(outputs[name] / 2.0) for name in ("deep", "shallow"))
        log_p = tf.stop_gradient(log_p)
        soft = 4.0 * tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1))
        loss = hard + soft
    gradients = tape.gradient(loss, model.trainable_variables)
    expected = [v.numpy() - 0.1 * g.numpy() for v, g in zip(model.trainable_variables, gradients, strict=True)]
    formula = soft_labels(outputs["deep"].numpy(), outputs["shallow"].numpy(), 2.0).mean()
    history = compiled(model, deep_to_shallow(), jit_compile=jit_compile).fit(x, y, batch_size=12, verbose=0).history
    assert history["soft_labels"][0] == pytest.approx(formula, rel=1e-5)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


def test_the_model_runs_once_per_step():
    calls = []

    class Counting(keras.layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    inputs = keras.Input((8,))
    hidden = Counting()(keras.layers.Dense(6)(inputs))
    model = keras.Model(inputs, {"shallow": keras.layers.Dense(3)(hidden), "deep": keras.layers.Dense(3)(hidden)})
    distiller = compiled(model, deep_to_shallow(), run_eagerly=True)
    calls.clear()
    distiller.fit(*batch(), batch_size=12, verbose=0)
    assert len(calls) == 1


def test_deep_layers_teach_shallow_ones_too():
    distiller = compiled(two_exits(0.5), [deep_to_shallow(), keras_kd.losses.Hint("deep_hidden", "shallow_hidden")])
    history = distiller.fit(*batch(), epochs=20, verbose=0).history
    assert history["hint"][-1] < history["hint"][0]


def test_a_loaded_model_is_its_own_teacher_again(tmp_path):
    distiller = compiled(two_exits(), deep_to_shallow())
    distiller.fit(*batch(), verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras")
    assert loaded.teacher is loaded.student
    assert loaded.fit(*batch(), shuffle=False, verbose=0).history == (
        distiller.fit(*batch(), shuffle=False, verbose=0).history
    )


def test_two_replicas_learn_what_one_learns():
    weights = []
    for strategy in (tf.distribute.get_strategy(), strategy_of(2)):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            model = two_exits()
            distiller = compiled(model, deep_to_shallow())
        data = tf.data.Dataset.from_tensor_slices(batch(11)).batch(7)
        distiller.fit(data, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_students_teach_each_other():
    """Mutual learning: two networks in one model; each gets the soft labels of the other, and no gradient from it."""
    inputs = keras.Input((8,))
    towers = {
        name: keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(3)])
        for name in ("a", "b")
    }
    both = keras.Model(inputs, {name: tower(inputs) for name, tower in towers.items()})
    x, y = batch()[0], np.arange(12) % 3
    distillation_losses = [
        keras_kd.losses.SoftLabels(1.0, output="a", teacher_output="b", name="b_to_a"),
        keras_kd.losses.SoftLabels(1.0, output="b", teacher_output="a", name="a_to_b"),
    ]
    expected = {}
    for name, other in (("a", "b"), ("b", "a")):
        with tf.GradientTape() as tape:
            own, log_p = towers[name](x), tf.stop_gradient(tf.nn.log_softmax(towers[other](x)))
            soft = tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - tf.nn.log_softmax(own)), -1))
            loss = crossentropy()(y, own) + soft
        variables = towers[name].trainable_variables
        gradients = tape.gradient(loss, variables)
        expected[name] = [v.numpy() - 0.1 * g.numpy() for v, g in zip(variables, gradients, strict=True)]
    distiller = keras_kd.Distiller(both, both, distillation_losses)
    distiller.compile(keras.optimizers.SGD(0.1), {"a": crossentropy(), "b": crossentropy()})
    distiller.fit(x, {"a": y, "b": y}, batch_size=12, verbose=0)
    for name, tower in towers.items():
        for variable, value in zip(tower.trainable_variables, expected[name], strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


def test_the_teachers_output_may_have_another_name():
    """A teacher with two outputs and a student with one: each loss names the output that it takes."""
    teacher, x = two_exits(), batch()[0]
    student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="only")])
    distillation_losses = [
        keras_kd.losses.SoftLabels(2.0, output="only", teacher_output="deep"),
        keras_kd.losses.LogitsMSE(output="only", teacher_output="shallow"),
    ]
    outputs, own = teacher.predict(x, verbose=0), student.predict(x, verbose=0)
    distiller = keras_kd.Distiller(teacher, student, distillation_losses)
    distiller.compile("sgd", None)
    history = distiller.fit(x, batch_size=12, verbose=0).history
    assert history["soft_labels"][0] == pytest.approx(soft_labels(outputs["deep"], own, 2.0).mean(), rel=1e-4)
    assert history["logits_mse"][0] == pytest.approx(np.mean((outputs["shallow"] - own) ** 2), rel=1e-4)
    with pytest.raises(
        ValueError, match=r"output='middle' is not an output of the teacher; it has \['deep', 'shallow'"
    ):
        keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(output="only", teacher_output="middle"))
