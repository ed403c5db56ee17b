"""logistic_head: scikit-learn's probabilities inside Keras, unlabelled rows, bad input."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import keras_kd


def vectors_and_labels(classes, examples=60, width=5):
    rng = np.random.default_rng(0)
    labels = np.arange(examples) % classes
    return rng.normal(size=(classes, width))[labels] + rng.normal(size=(examples, width)), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_its_softmax_is_scikit_learns_predict_proba(classes):
    vectors, labels = vectors_and_labels(classes)
    head = keras_kd.teachers.logistic_head(vectors, labels, C=3.0)
    expected = LogisticRegression(C=3.0, max_iter=10_000).fit(vectors, labels).predict_proba(vectors)
    np.testing.assert_allclose(keras.ops.softmax(head(vectors)), expected, atol=1e-4)


def test_unlabelled_rows_are_left_out():
    vectors, labels = vectors_and_labels(3)
    outliers = np.full((4, 5), 100.0)
    head = keras_kd.teachers.logistic_head(np.concatenate([vectors, outliers]), np.append(labels, [-1] * 4))
    expected = keras_kd.teachers.logistic_head(vectors, labels)
    np.testing.assert_allclose(head.kernel, expected.kernel, atol=1e-6)


def test_an_encoder_becomes_a_teacher_of_classes():
    encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5, name="vector")])
    x = np.random.default_rng(1).normal(size=(40, 8)).astype("float32")
    labels = (encoder.predict(x, verbose=0)[:, 0] > 0).astype(int)
    head = keras_kd.teachers.logistic_head(encoder.predict(x, verbose=0), labels, C=1000.0)
    teacher = keras.Model(encoder.inputs, head(encoder.outputs[0]))
    assert (teacher.predict(x, verbose=0).argmax(axis=-1) == labels).mean() > 0.9
    student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.SoftLabels(2.0))
    distiller.compile("adam")
    assert np.isfinite(distiller.fit(x, epochs=1, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("vectors", "labels", "options", "error", "message"),
    [
        (np.ones((3, 2, 2)), [0, 1, 2], {}, ValueError, r"vectors must have the shape \(examples, width\)"),
        (np.ones((3, 2)), [0, 1], {}, ValueError, r"labels \(examples,\), got \(3, 2\) and \(2,\)"),
        (np.ones((3, 2)), [[0, 1], [1, 0], [1, 0]], {}, ValueError, r"got \(3, 2\) and \(3, 2\)"),
        (np.ones((3, 2)), [0.0, 1.0, 2.0], {}, TypeError, "labels must be integers, got float64"),
        (np.ones((3, 2)), ["a", "b", "a"], {}, TypeError, "labels must be integers, got <U1"),
        (np.array([[np.nan], [1.0]]), [0, 1], {}, ValueError, "vectors must be finite"),
        (np.ones((3, 2)), [1, 1, 1], {}, ValueError, r"two classes or more, got \[1\]"),
        (np.ones((3, 2)), [-1, -1, -1], {}, ValueError, r"two classes or more, got \[\]"),
        (np.ones((3, 2)), [0, 2, 10**9], {}, ValueError, "got none of class 1"),
        (np.ones((2, 2)), [0, 1], {"C": 0}, ValueError, "C must be > 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(vectors, labels, options, error, message):
    with pytest.raises(error, match=message):
        keras_kd.teachers.logistic_head(vectors, np.array(labels), **options)
