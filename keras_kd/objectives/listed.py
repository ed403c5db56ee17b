"""What a distiller takes as its objectives."""

import keras

from keras_kd.objectives.base import Objective
from keras_kd.objectives.foreign import KerasLoss
from keras_kd.objectives.logits import SoftLabels


def objective_list(objectives):
    """The `Objective`s of an argument: one, a list of them, losses of Keras among them, or None for `SoftLabels()`."""
    if objectives is None:
        objectives = [SoftLabels()]
    objectives = list(objectives) if isinstance(objectives, (list, tuple)) else [objectives]
    objectives = [_as_objective(objective) for objective in objectives]
    if not objectives:
        raise ValueError("objectives must be at least one, got an empty list. keras_kd.SoftLabels() is the usual one.")
    _require_distinct_names(objectives)
    unreduced = [objective.name for objective in objectives if objective.reduction in ("none", None)]
    if unreduced:
        raise ValueError(
            f"objectives must each give one number, but {unreduced} have reduction=None. Use 'sum_over_batch_size'."
        )
    return objectives


def _as_objective(objective):
    """The objective, or a loss of Keras as one."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, (keras.losses.Loss, keras.distillation.DistillationLoss)):
        return KerasLoss(objective)
    raise TypeError(
        "objectives must be a keras_kd.Objective, a keras.losses.Loss or a list of them, got "
        f"{type(objective).__name__}: {objective!r}. keras_kd.SoftLabels(temperature=4.0) is the usual one."
    )


def _require_distinct_names(objectives):
    """Raise ValueError if two values would stand under one name in the logs or among the knobs."""
    names = ["loss", "hard_loss", "soft_weight", "hard_weight"]
    for objective in objectives:
        names += [objective.name, *(f"{objective.name}_{name}" for name in objective.hyperparameters())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"objectives must come each with its own name, but with {[objective.name for objective in objectives]} the "
            f"logs would hold {twice[0]!r} twice. Give other names with name=."
        )
