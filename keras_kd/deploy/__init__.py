"""From a trained student to a file that ships: export, conversion, and the runtimes that run what was exported."""

from keras_kd.deploy.exporting import ExportReport, export
from keras_kd.deploy.runtimes import open_runtime

__all__ = ["ExportReport", "export", "open_runtime"]
