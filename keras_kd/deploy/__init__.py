"""From a trained student to a file that ships: export, conversion, and the runtimes that run what was exported."""

from keras_kd.deploy.cards import write_card
from keras_kd.deploy.end_to_end import end_to_end_model
from keras_kd.deploy.exporting import ExportReport, export
from keras_kd.deploy.quantization import quantize_aware
from keras_kd.deploy.runtimes import open_runtime

__all__ = ["ExportReport", "end_to_end_model", "export", "open_runtime", "quantize_aware", "write_card"]
