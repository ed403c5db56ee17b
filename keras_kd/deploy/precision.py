"""A model again, in another floating dtype."""

import json
import pathlib
import random
import tempfile

import keras

from keras_kd._quiet import first_line, quiet

LOW_PRECISION = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
_FLOATING = (*LOW_PRECISION, "float32", "float64")
_KEPT = ("Normalization",)  # in low precision: it reads raw numbers, of any size, and has hardly any weights


def rebuilt(model, dtype, failure):
    """The model, saved and loaded with every floating policy replaced by the one of the name `dtype`.

    Through Keras's own files, which keep weights and vocabularies alike; what `compile` left is not taken over.
    `failure` begins the RuntimeError for a model that cannot be rebuilt from its config.
    """
    policy = keras.config.dtype_policy()  # what layers get that the model's own classes make
    state = random.getstate()  # Keras draws the seeds of new layers from it
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():  # Keras writes files with a deprecated NumPy call
            path = pathlib.Path(folder) / "model"
            keras.saving.save_model(model, path, zipped=False)
            config_file = path / "config.json"
            config = _with_policy(json.loads(config_file.read_text("utf-8")), dtype)
            config_file.write_text(json.dumps(config), "utf-8")
            keras.config.set_dtype_policy(dtype)
            return keras.saving.load_model(path, compile=False, safe_mode=False)
    except Exception as error:  # whatever a config of the user's own raises
        raise RuntimeError(
            f"{failure} could not be rebuilt from its config: {first_line(error)} Give its own classes get_config, and "
            "register them with keras.saving.register_keras_serializable."
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(state)


def _with_policy(config, name):
    """A serialized model with every floating dtype policy replaced by the one of this name, but for float32 inputs."""
    if isinstance(config, list):
        return [_with_policy(part, name) for part in config]
    if not isinstance(config, dict) or (name in LOW_PRECISION and config.get("class_name") in _KEPT):
        return config
    if config.get("class_name") == "DTypePolicy" and config["config"]["name"] in _FLOATING:
        # Without its shared_object_id: what is kept may share the policy that is replaced.
        return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}, "registered_name": None}
    return {
        key: name if key == "dtype" and value in LOW_PRECISION else _with_policy(value, name)
        for key, value in config.items()
        if key != "compile_config"
    }
