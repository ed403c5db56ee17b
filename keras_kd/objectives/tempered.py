"""What the objectives over outputs share that have a temperature."""

from keras_kd._checks import require_number
from keras_kd.objectives.base import Objective, scalar_variable


class TemperedObjective(Objective):
    """Base class of the objectives over outputs that soften both sides with a temperature.

    Args:
        temperature: T > 0; 2 to 8 is usual. Kept in a variable, `objective.temperature`, which callbacks may assign.
        options: `weight`, `output`, `teacher_output`, `teacher_layer`, `student_layer`, `name`, `reduction`, `dtype`:
            as in `Objective`.

    Attributes:
        least_classes: The fewest units of an output that can be compared.
        scales_with_temperature: Whether the value is T² times a function of logits / T.
    """

    least_classes = 2
    scales_with_temperature = False

    def __init__(self, temperature=1.0, **options):
        super().__init__(**options)
        temperature = require_number(temperature, "temperature", above=0.0, hint="2 to 8 is usual.")
        self.temperature = scalar_variable(temperature, "temperature")

    def hyperparameters(self):
        return {**super().hyperparameters(), "temperature": self.temperature}

    def check_shapes(self, teacher_shape, student_shape):
        require_same_classes(self.name, teacher_shape, student_shape, at_least=self.least_classes)


def require_same_classes(objective_name, teacher_shape, student_shape, *, at_least=2):
    """Raise ValueError unless both shapes have the same rank and the same number of classes, `at_least` so many."""
    shapes = f"the teacher gives {teacher_shape}, the student {student_shape}"
    if len(teacher_shape) != len(student_shape):
        raise ValueError(f"{objective_name} compares logits of equal rank, but {shapes}.")
    teacher_classes, student_classes = teacher_shape[-1], student_shape[-1]
    if None not in (teacher_classes, student_classes) and teacher_classes != student_classes:
        raise ValueError(
            f"{objective_name} needs the same number of classes on both sides, but {shapes}. "
            "Give the student a last layer of the teacher's width, or name the output to compare with output=."
        )
    if student_classes is not None and student_classes < at_least:
        raise ValueError(
            f"{objective_name} compares distributions over at least {at_least} classes, but {shapes}. "
            "For one sigmoid unit, give both models two outputs and a softmax."
        )
