"""Δw: what is added to the teacher's weights on their way to the student."""

import random

import numpy as np

from keras_kd._keras_private import learnable_variables
from keras_kd.transfer.layers import find_node


def gaussian_noise(matches, model, scale, seed):
    """Return {id of a student weight: array} with draws from N(0, scale²) for each weight that training changes.

    Statistics, such as the mean and variance of BatchNormalization, get none: a variance must not become negative.
    """
    generator = np.random.default_rng(random.getrandbits(64) if seed is None else seed)
    learnable = {id(variable) for variable in learnable_variables(model)}
    found = {}
    for match in matches:
        for weight, (_, shape, kind) in zip(match.student.weights, match.student.spec, strict=True):
            if id(weight) in learnable and kind == "float":
                found[id(weight)] = generator.normal(0.0, scale, shape)
    return found


def given_arrays(matches, student_root, delta):
    """Return {id of a student weight: array} for `delta`, {student layer: arrays in the order of its weights}."""
    if not isinstance(delta, dict):
        raise TypeError(f"delta must be a dict {{student layer: list of arrays}}, got {type(delta).__name__}.")
    matched = {match.student for match in matches}
    found = {}
    for layer, arrays in delta.items():
        node = find_node(student_root, layer, "delta", "student")
        if node not in matched:
            paths = [match.student.path for match in matches]
            raise ValueError(f"delta: {node.path!r} gets no weights from the teacher; the layers that do are {paths}.")
        found.update(_checked_arrays(node, arrays))
    return found


def _checked_arrays(node, arrays):
    if not isinstance(arrays, list | tuple):
        raise TypeError(f"delta[{node.path!r}] must be a list of arrays, one a weight, got {type(arrays).__name__}.")
    expected = [f"{name} {shape}" for name, shape, _ in node.spec]
    arrays = [_real_array(array, node.path) for array in arrays]
    if [array.shape for array in arrays] != [shape for _, shape, _ in node.spec]:
        shapes = [array.shape for array in arrays]
        raise ValueError(f"delta[{node.path!r}] must have one array for each of {expected}, got the shapes {shapes}.")
    if any(kind != "float" for _, _, kind in node.spec):
        raise ValueError(f"delta[{node.path!r}]: some weights of this layer are not floats: {node.spec}.")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"delta[{node.path!r}] must hold finite numbers, got NaN or infinity.")
    return {id(weight): array for weight, array in zip(node.weights, arrays, strict=True)}


def _real_array(array, path):
    try:
        found = np.asarray(array)
        if found.dtype.kind == "c":
            raise TypeError("complex numbers")
        return found.astype("float64")
    except (TypeError, ValueError) as error:
        raise TypeError(f"delta[{path!r}] must hold arrays of real numbers, got {array!r} ({error}).") from None
