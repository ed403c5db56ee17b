"""A classifier on top of an encoder, from few labels."""

import keras
import numpy as np

from keras_kd._checks import require_number
from keras_kd._extras import needs_extra


def logistic_head(vectors, labels, *, C=10.0, name="head"):
    """Return a `Dense` layer of logits, fitted by logistic regression on an encoder's vectors.

    It turns an encoder into a teacher of classes. The labels of one language suffice if the encoder places translations
    side by side, as multilingual sentence encoders do. The solution is the optimum of a convex problem, found by
    scikit-learn: no learning rate, no epochs, the same weights each time.

        head = keras_kd.teachers.logistic_head(encoder.predict(x), y)
        teacher = keras.Model(encoder.inputs, head(encoder.outputs[0]))

    Args:
        vectors: An array `(examples, width)`: the encoder's outputs, from Keras or any other engine.
        labels: Class ids 0 to classes - 1, `(examples,)`. Labels below 0 are unlabelled, and left out.
        C: Inverse strength of the L2 penalty on the weights, > 0, as in `sklearn.linear_model.LogisticRegression`. Unit
            vectors, whose entries are small, want 10 or more.
        name: Name of the layer.

    Returns:
        A built `keras.layers.Dense(classes)` without activation.

    Raises:
        ImportError: scikit-learn is not installed (extra `teachers`).
        TypeError: `labels` are not integers.
        ValueError: The shapes do not fit, vectors are not finite, a class between 0 and the largest label has no
            example, or there are fewer than two classes; `C` is not a positive number.

    Example:

    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> head = keras_kd.teachers.logistic_head(vectors, np.array([0, 0, 1, 1]))
    >>> head(np.array([[0.8, 0.2], [0.3, 0.7]])).numpy().argmax(axis=-1).tolist()
    [0, 1]

    Reference:
        [Alain and Bengio, 2016](https://arxiv.org/abs/1610.01644) ("linear probes")
    """
    with needs_extra("teachers"):
        from sklearn.linear_model import LogisticRegression
    require_number(C, "C", above=0)
    vectors, labels = _labelled(np.asarray(vectors), np.asarray(labels))
    classes = _number_of_classes(labels)
    model = LogisticRegression(C=C, max_iter=10_000).fit(vectors, labels)
    kernel, bias = model.coef_.T, model.intercept_  # (width, classes), (classes,)
    if classes == 2:  # scikit-learn keeps the log-odds of class 1
        kernel, bias = np.concatenate([-kernel, kernel], axis=1) / 2, np.concatenate([-bias, bias]) / 2
    layer = keras.layers.Dense(classes, name=name)
    layer.build((None, vectors.shape[1]))
    layer.set_weights([kernel, bias])
    return layer


def _labelled(vectors, labels):
    """The rows that have a label, as float32 vectors and labels; the arguments are checked first."""
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(
            "vectors must have the shape (examples, width) and labels (examples,), got "
            f"{vectors.shape} and {labels.shape}."
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}. Give each class a number, 0 to classes - 1.")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite, got NaN or infinite numbers.")
    return vectors[labels >= 0].astype(np.float32), labels[labels >= 0]


def _number_of_classes(labels):
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError(f"labels must hold two classes or more, got {present.tolist()}.")
    if present[-1] + 1 != len(present):
        missing = int(np.argmax(present != np.arange(len(present))))
        raise ValueError(
            f"labels must hold an example of each class 0 to {present[-1]}, got none of class {missing}. Number the "
            "classes without gaps."
        )
    return len(present)
