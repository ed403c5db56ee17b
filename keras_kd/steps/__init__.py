"""The training and test step of the distiller, one module for each Keras backend."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_kd.steps.tensorflow import TensorFlowStep as Step
elif keras.backend.backend() == "jax":
    from keras_kd.steps.jax import JAXStep as Step
else:
    raise ImportError(
        f"keras_kd trains on Keras's backends tensorflow and jax, but the backend is {keras.backend.backend()!r}. "
        "Set the environment variable KERAS_BACKEND=tensorflow, or jax, before Keras is imported."
    )

__all__ = ["Step"]
