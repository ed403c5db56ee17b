"""The accelerator, where there is one: its name, its memory, and what share of its peak a step reaches."""

import keras

NO_GPU = "not yet measured: no GPU was at hand"


def accelerator():
    """The name of the GPU or TPU that Keras runs on; None where there is none."""
    if keras.config.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else None


def peak_bytes(function):
    """The most memory of the accelerator that was in use while a function ran; on JAX, since the process began."""
    if keras.config.backend() == "jax":
        import jax

        function()
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats("GPU:0")
    function()
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
