"""Objectives around another objective."""

import keras

from keras_kd.objectives.base import Objective


class WrappedObjective(Objective):
    """Base class of the objectives that change what another objective compares, or how much it counts.

    Weight, temperature, output, layers, name, reduction and dtype are those of the wrapped objective, and callbacks
    find its knobs under its name. A subclass implements `__call__`, which calls `self.objective`.

    Args:
        objective: The objective.

    Raises:
        TypeError: `objective` is no `Objective`.
    """

    def __init__(self, objective):
        if not isinstance(objective, Objective):
            raise TypeError(f"objective must be a keras_kd.Objective, got {type(objective).__name__}: {objective!r}.")
        super().__init__(
            output=objective.output,
            teacher_output=objective.teacher_output,
            teacher_layer=objective.teacher_layer,
            student_layer=objective.student_layer,
            reduction=objective.reduction,
            name=objective.name,
            dtype=objective.dtype,
        )
        self.objective = objective
        self.weight = objective.weight
        self.undoes, self.parts, self.shares_projection = objective.undoes, objective.parts, objective.shares_projection
        self.needs_labels, self.entry = objective.needs_labels, objective.entry

    def hyperparameters(self):
        return self.objective.hyperparameters()

    def rank_of_values(self, signal_rank):
        return self.objective.rank_of_values(signal_rank)

    def check_shapes(self, teacher_shape, student_shape):
        self.objective.check_shapes(teacher_shape, student_shape)

    def make_projection(self, teacher_shape, student_shape):
        return self.objective.make_projection(teacher_shape, student_shape)

    def get_config(self):
        return {"objective": keras.saving.serialize_keras_object(self.objective)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "objective": keras.saving.deserialize_keras_object(config["objective"])})
