"""Fingerprints of models, data and settings, as JSON, by which two runs are known to be the same."""

import hashlib
import json
import re

import keras
import numpy as np
import tensorflow as tf


def fingerprint(value):
    """What distinguishes a value, as JSON; of dicts and lists, of each part.

    Models by class, size, architecture and weights: two that a function makes one after the other from the same seed
    have the same fingerprint. Arrays by content. Datasets, which may be endless or shuffled, by the spec and number of
    their elements. Anything else, such as a loss or an optimizer, by class and configuration.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): fingerprint(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(part) for part in value]
    if isinstance(value, (np.ndarray, tf.Tensor)):
        array = np.asarray(value)
        return {"shape": list(array.shape), "dtype": str(array.dtype), "content": _content_hash([array])}
    if isinstance(value, tf.data.Dataset):
        return {"elements": str(value.element_spec), "batches": int(value.cardinality())}
    if isinstance(value, keras.Model):
        return {
            "class": type(value).__name__,
            "parameters": value.count_params(),
            "architecture": _config_hash(value),
            "weights": _content_hash(variable.numpy() for variable in value.weights),
        }
    return {"class": getattr(value, "__name__", type(value).__name__), "config": _config_hash(value)}


def differences(found, expected, name=""):
    """A line for each leaf of two nested dicts of settings that differs."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in dict.fromkeys([*expected, *found]):
            yield from differences(found.get(key), expected.get(key), f"{name} {key}")
    elif found != expected:
        texts = (json.dumps(value, ensure_ascii=False)[:200] for value in (found, expected))
        yield " {}: there it is {}, here {}".format(name, *texts)


def _content_hash(arrays):
    content = hashlib.sha256()
    for array in arrays:
        content.update(array.astype(str).tobytes() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def _config_hash(value):
    """A hash of the configuration, or None where there is none."""
    try:
        config = keras.saving.serialize_keras_object(value)
        config.pop("compile_config", None)
        text = json.dumps(config, sort_keys=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    return hashlib.sha256(_renumbered(text).encode()).hexdigest()[:16]


def _renumbered(text):
    """Names such as "dense_7" numbered anew by their first appearance: Keras counts on through a process."""
    numbers = {}

    def renumber(match):
        names = numbers.setdefault(match[1], {})
        return f'"{match[1]}#{names.setdefault(match[0], len(names))}"'

    return re.sub(r'"([a-z]\w*?)(?:_\d+)?"', renumber, text)
