"""Students made from a teacher, or from nothing for a size: each comes with the table of what it took over."""

from keras_kd.students.depth import fewer_layers, layer_importance

__all__ = ["fewer_layers", "layer_importance"]
