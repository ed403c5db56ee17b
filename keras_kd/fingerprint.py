"""Fingerprints of models, data and settings, as JSON, by which two runs are known to be the same."""

import hashlib
import json
import re

import keras
import numpy as np
import tensorflow as tf


def model_fingerprint(model):
    """A model's class, size, architecture and weights.

    Two models that a function makes one after the other from the same seed have the same fingerprint.
    """
    weights = hashlib.sha256()
    for variable in model.weights:
        weights.update(_bytes(variable.numpy()))
    return {
        "class": type(model).__name__,
        "parameters": model.count_params(),
        "architecture": _config_hash(model),
        "weights": weights.hexdigest()[:16],
    }


def object_fingerprint(value):
    """The class and configuration of a loss, a metric or an optimizer."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): object_fingerprint(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [object_fingerprint(part) for part in value]
    return {"class": getattr(value, "__name__", type(value).__name__), "config": _config_hash(value)}


def data_fingerprint(data):
    """Arrays by content; datasets, which may be endless or shuffled, by the spec and number of their elements."""
    if data is None or isinstance(data, (str, bool, int, float)):
        return data
    if isinstance(data, dict):
        return {str(key): data_fingerprint(part) for key, part in data.items()}
    if isinstance(data, (list, tuple)):
        return [data_fingerprint(part) for part in data]
    if isinstance(data, (np.ndarray, tf.Tensor)):
        array = np.asarray(data)
        content = hashlib.sha256(_bytes(array)).hexdigest()[:16]
        return {"shape": list(array.shape), "dtype": str(array.dtype), "content": content}
    if isinstance(data, tf.data.Dataset):
        return {"elements": str(data.element_spec), "batches": int(data.cardinality())}
    return {"class": type(data).__name__}


def differences(there, asked, name=""):
    """A line for each leaf of two nested dicts of settings that differs."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in dict.fromkeys([*asked, *there]):
            yield from differences(there.get(key), asked.get(key), f"{name} {key}")
    elif there != asked:
        texts = (json.dumps(value, ensure_ascii=False)[:200] for value in (there, asked))
        yield " {}: there it is {}, here {}".format(name, *texts)


def _bytes(array):
    return array.astype(str).tobytes() if array.dtype == object else np.ascontiguousarray(array).tobytes()


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
