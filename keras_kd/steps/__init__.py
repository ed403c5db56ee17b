"""The training and test step of the distiller, one module for each Keras backend."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_kd.steps.tensorflow import TensorFlowStep as Step
else:
    raise ImportError(
        f"keras_kd trains on Keras's tensorflow backend, but the backend is {keras.backend.backend()!r}. "
        "Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

__all__ = ["Step"]
