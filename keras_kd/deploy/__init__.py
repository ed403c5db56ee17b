"""From a trained student to a file that ships: export, conversion, and the runtimes that run what was exported."""

from keras_kd.deploy.export import export

__all__ = ["export"]
