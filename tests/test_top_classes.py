"""The likeliest classes of a distribution in place of all of them, on their way from a dataset into the step."""

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.outputs.precomputed import PrecomputedBatch
from keras_kd.outputs.top_classes import TopClasses

RNG = np.random.default_rng(0)
CLASSES, K = 7, 3


def likeliest(logits, k=K):
    """The k likeliest classes with their log-probabilities, in float64."""
    log_p = formulas.log_softmax(logits)
    classes = np.argsort(-log_p, axis=-1)[..., :k]
    return classes, np.take_along_axis(log_p, classes, axis=-1)


@pytest.mark.parametrize("shape", [(5,), (4, 6)])
def test_the_other_classes_share_what_is_left(shape):
    classes, log_p = likeliest(RNG.normal(size=(*shape, CLASSES)))
    rest = np.log((1 - np.exp(log_p).sum(-1, keepdims=True)) / (CLASSES - K))
    expected = np.repeat(rest, CLASSES, axis=-1)
    np.put_along_axis(expected, classes, log_p, axis=-1)
    np.testing.assert_allclose(TopClasses.of(classes, log_p, CLASSES).dense(), expected, atol=1e-5)


def test_where_nothing_is_left_the_others_stay_finite():
    dense = TopClasses.of([[1]], [[0.0]], 4).dense()
    assert np.isfinite(dense).all()
    assert np.argmax(dense) == 1


def test_classes_and_their_log_probabilities_must_have_one_shape():
    with pytest.raises(ValueError, match="classes and log_p must have one shape"):
        TopClasses.of(np.zeros((4, 2)), np.zeros((4, 3)), 5)


@pytest.mark.parametrize("length", [None, 4])
def test_a_dataset_of_them_teaches_as_the_dense_logits_do(length):
    shape = (16,) if length is None else (16, length)
    x, logits = RNG.normal(size=(*shape, 5)).astype("float32"), RNG.normal(size=(*shape, CLASSES))
    sparse = TopClasses.of(*likeliest(logits), CLASSES)
    weights = []
    for prediction in (sparse, sparse.dense()):
        keras.utils.set_random_seed(0)
        student = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(CLASSES)])
        distiller = keras_kd.Distiller(None, student, keras_kd.losses.SoftLabels(2.0))
        distiller.compile(keras.optimizers.SGD(0.1))
        dataset = (
            tf.data.Dataset.from_tensor_slices((PrecomputedBatch(x, prediction, {}),)).shuffle(16, seed=1).batch(5)
        )
        distiller.fit(dataset, epochs=2, verbose=0)
        weights.append(student.get_weights()[0])
    np.testing.assert_allclose(*weights, atol=1e-6)


def test_they_stand_for_an_output_of_several():
    x = RNG.normal(size=(8, 5)).astype("float32")
    prediction = {"a": TopClasses.of(*likeliest(RNG.normal(size=(8, CLASSES))), CLASSES), "b": np.zeros((8, 2), "f4")}
    inputs = keras.Input((5,))
    outputs = {"a": keras.layers.Dense(CLASSES)(inputs), "b": keras.layers.Dense(2)(inputs)}
    distiller = keras_kd.Distiller(None, keras.Model(inputs, outputs), keras_kd.losses.SoftLabels(2.0))
    distiller.compile("sgd")
    history = distiller.fit(
        tf.data.Dataset.from_tensor_slices((PrecomputedBatch(x, prediction, {}),)).batch(4), verbose=0
    )
    assert np.isfinite(history.history["soft_labels"])


def test_another_number_of_classes_is_refused_before_the_first_step():
    x = np.zeros((8, 5), "float32")
    prediction = TopClasses.of(*likeliest(RNG.normal(size=(8, CLASSES))), CLASSES)
    student = keras.Sequential([keras.Input((5,)), keras.layers.Dense(CLASSES + 1)])
    distiller = keras_kd.Distiller(None, student, keras_kd.losses.SoftLabels(2.0))
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=f"teacher gives .*{CLASSES}.*student .*{CLASSES + 1}"):
        distiller.fit(tf.data.Dataset.from_tensor_slices((PrecomputedBatch(x, prediction, {}),)).batch(4), verbose=0)


def test_they_go_through_unbatch_batch_and_map():
    classes, log_p = likeliest(RNG.normal(size=(6, 4, CLASSES)))
    top = TopClasses.of(classes, log_p, CLASSES)
    dataset = tf.data.Dataset.from_tensor_slices(top).batch(4).unbatch().batch(6)
    again = next(iter(dataset))
    assert isinstance(again, TopClasses)
    assert dataset.element_spec.count == again.count == CLASSES
    np.testing.assert_array_equal(again.dense(), top.dense())
