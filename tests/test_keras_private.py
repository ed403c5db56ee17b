"""What is taken from Keras's insides is still there and still means what we think: a new Keras shows here first."""

import keras
import numpy as np
import tensorflow as tf
from conftest import crossentropy, dense_model

from keras_kd import _keras_private as private


def test_call_model_passes_training_only_where_it_is_known():
    class Bare(keras.Model):
        def call(self, inputs):
            return inputs + 1.0

    class Knowing(keras.Model):
        def call(self, inputs, training=None):
            return inputs + (10.0 if training else 0.0)

    ones = tf.ones((1, 2))
    assert float(private.call_model(Bare(), ones, training=True)[0, 0]) == 2.0
    assert float(private.call_model(Knowing(), ones, training=True)[0, 0]) == 11.0
    assert float(private.call_model(Knowing(), ones, training=False)[0, 0]) == 1.0


def test_functional_graph_of_every_kind_of_model():
    class Subclassed(keras.Model):
        pass

    functional = keras.Model(inputs := keras.Input((2,)), keras.layers.Dense(3)(inputs))
    assert private.functional_graph(functional) is functional
    assert private.functional_graph(dense_model(4, 3)).output.shape == (None, 3)
    assert private.functional_graph(keras.Sequential([keras.layers.Dense(3)])) is None
    assert private.functional_graph(Subclassed()) is None

    class WithItsOwnCall(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return -super().call(inputs)

    assert private.functional_graph(WithItsOwnCall(functional.inputs, functional.outputs)) is None


def test_the_output_of_a_nested_model_is_found_inside_it():
    inner, outer = dense_model(4, 3), keras.Input((8,))
    operation, index, _ = private.producer(keras.Model(outer, inner(outer)).output)
    assert operation is inner
    assert private.producer(private.nested_output(operation, index))[0] is inner.get_layer("logits")
    assert private.nested_output(inner.get_layer("logits"), 0) is None


def test_masks_travel_with_tensors():
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    np.testing.assert_array_equal(private.get_mask(embedded), [[True, False]])
    tensor = private.set_mask(tf.ones((1, 2)), tf.constant([[False, True]]))
    np.testing.assert_array_equal(private.get_mask(tensor), [[False, True]])


def test_loss_weights_can_be_seen():
    model = dense_model(4, 3)
    model.compile("sgd", "mse", loss_weights=0.5)
    assert private.has_loss_weights(model)
    unweighted = dense_model(4, 3)
    unweighted.compile("sgd", "mse")
    assert not private.has_loss_weights(unweighted)


def test_the_arguments_of_a_call_have_names():
    embedding = keras.layers.ReversibleEmbedding(5, 2)
    arguments = private.call_arguments(embedding, (1,), {"reverse": True})
    assert list(arguments.items()) == [("self", embedding), ("inputs", 1), ("reverse", True)]


def test_the_compiled_loss_can_be_seen_and_replaced():
    model = dense_model(4, 3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert private.sparse_label_options(private.loss_argument(model)) == (True, None)
    model.compile("sgd", crossentropy(ignore_class=-1))
    assert private.sparse_label_options(private.loss_argument(model)) == (True, -1)
    assert private.loss_function(private.loss_argument(model))[1]["from_logits"] is True
    assert not private.has_loss_weights(model)
    model.fit(np.zeros((4, 8)), np.zeros(4), verbose=0)
    replaced = []

    class Zero:
        def __call__(self, y_true, y_pred, sample_weight=None):
            return 0.0 * tf.reduce_sum(y_pred)

    private.replace_compiled_losses(model, lambda loss: replaced.append(loss) or Zero())
    assert len(replaced) == 1 and isinstance(replaced[0], keras.losses.SparseCategoricalCrossentropy)
    assert float(model.compute_loss(y=np.zeros(4), y_pred=tf.ones((4, 3)))) == 0.0
    model.compile("sgd", {"logits": "sparse_categorical_crossentropy", "other": None})
    loss = private.loss_argument(model)
    assert private.sparse_label_options(loss["logits"]) == (True, None)
    assert private.sparse_label_options(loss["other"]) == (False, None)
    unlabelled = dense_model(4, 3)
    unlabelled.compile("sgd", None)
    assert private.loss_argument(unlabelled) is None


def test_xla_support_is_asked_of_every_layer():
    inner = dense_model(4, 3)
    model = keras.Sequential([keras.Input((8,)), inner])
    assert private.supports_jit(model)
    inner.layers[0].supports_jit = False
    assert not private.supports_jit(model)


def test_the_backend_variable_is_tensorflows():
    variable = keras.Variable(1.0)
    assert isinstance(private.backend_variable(variable), tf.Variable)


def test_producer():
    inputs, shared = keras.Input((2,)), keras.layers.Dense(2, name="shared")
    once = shared(inputs)
    model = keras.Model(inputs, shared(once))
    operation, index, sources = private.producer(model.output)
    assert (operation, index) == (shared, 0)
    assert sources[0] is once


def test_random_states_are_those_of_dropout():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    (state,) = private.random_states(model)
    before = state.numpy().copy()
    model(np.ones((1, 2)), training=True)
    assert not np.array_equal(state.numpy(), before)


def test_sublayers_learnable_variables_and_automatic_names():
    normalization, dense = keras.layers.BatchNormalization(), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((2,)), normalization, dense])
    assert private.sublayers(model)[-2:] == [normalization, dense]
    assert private.sublayers(dense) == []
    model.trainable = False
    assert [v.name for v in private.learnable_variables(model)] == ["gamma", "beta", "kernel", "bias"]
    for layer in (normalization, dense, keras.layers.Conv2D(1, 1), keras.layers.MultiHeadAttention(1, 2)):
        assert layer.name == private.automatic_name(layer)


def test_callbacks_ask_which_way_a_metric_improves():
    for lower_is_better, operation in ((True, keras.ops.less), (False, keras.ops.greater)):
        metric = keras.metrics.MeanMetricWrapper(lambda y_true, y_pred: y_true - y_pred, name="surplus")
        private.set_direction(metric, lower_is_better)
        model = dense_model(4, 3)
        model.compile("sgd", "mse", metrics=[metric])
        stopping = keras.callbacks.EarlyStopping(monitor="surplus")
        model.fit(np.zeros((4, 8)), np.zeros((4, 3)), verbose=0, callbacks=[stopping])
        assert stopping.monitor_op is operation
