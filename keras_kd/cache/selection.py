"""Which signals of a teacher are stored: those that objectives compare, or those that are named."""

import keras

from keras_kd.objectives import KerasLoss, Objective
from keras_kd.pairing import require_comparable, taps_of
from keras_kd.signals import SignalReader, output_names
from keras_kd.taps import PARTS, Tap

_UNDONE = ("softmax", "sigmoid")


class Selection:
    """Reads the chosen signals of a teacher.

    Args:
        teacher: A built `keras.Model`.
        signals: Objectives, losses and names of outputs and layers ("layer" or "layer:part"), one or a list of them;
            None: all outputs.
    """

    def __init__(self, teacher, signals=None):
        chosen = signals if isinstance(signals, (list, tuple)) else [signals]
        self._names = output_names(teacher)
        self._objectives, self._outputs, taps = [], [], []
        for one in chosen:
            if isinstance(one, (keras.losses.Loss, keras.distillation.DistillationLoss)):
                self._objectives.append(one if isinstance(one, Objective) else KerasLoss(one))
            elif one is None or one in self._names:
                self._outputs.append(one)
            else:
                taps.append(_tap(one))
        taps += taps_of(self._objectives, "teacher")
        self._over_outputs = [one for one in self._objectives if not one.layers_of("teacher")]
        self._reader = SignalReader(teacher, taps, role="teacher")
        if self._reader.symbolic() is not None:
            for objective in self._over_outputs:
                if objective.undoes:
                    require_comparable(self._reader, objective, "teacher")

    def __call__(self, x):
        """`(prediction, layers)` of a batch: outputs as logits where that is known, `{"layer:part": tensor}`."""
        signals = self._reader(x, training=False)
        layers = {tap.name: tensor for tap, tensor in signals.layers.items()}
        return self._prediction(signals), layers

    def _prediction(self, signals):
        asked = [*self._outputs, *(one.output_of("teacher") for one in self._over_outputs)]
        if not asked:
            return ()
        if all(isinstance(output, str) for output in asked):
            return {output: self._output(signals, output) for output in sorted(set(asked))}
        prediction = signals.prediction
        if isinstance(prediction, dict):
            return {key: self._output(signals, key) for key in prediction}
        count = len(keras.tree.flatten(prediction))
        if any(isinstance(output, str) for output in asked):
            if count > 1:
                raise ValueError(
                    f"signals name some outputs and not others, {asked}, of a teacher whose outputs {self._names} are "
                    "in a list. Name each output, or none."
                )
            return {self._names[0]: self._output(signals, 0)}
        outputs = tuple(self._output(signals, index) for index in range(count))
        return outputs if isinstance(prediction, (list, tuple)) else outputs[0]

    def _output(self, signals, output):
        """One output, as those who asked for it want it."""
        activation = self._reader.activations(signals, output)[0]
        named = output in self._outputs or None in self._outputs
        undone = {activation if activation in _UNDONE else None} if named else set()
        for objective in self._over_outputs:
            over = objective.output_of("teacher")
            if over is None or self._reader.outputs(signals, over)[0] is self._reader.outputs(signals, output)[0]:
                undone.add(activation if objective.undoes == activation else None)
        if len(undone) > 1:
            raise ValueError(
                f"signals want the output {output!r} of the teacher both as it is and as logits, and it ends in "
                f"{activation}. End the teacher in a linear layer, or make a cache for each objective."
            )
        return self._reader.outputs(signals, output, undo=next(iter(undone), None))[0]


def _tap(name):
    if not isinstance(name, str) or not name:
        raise TypeError(
            "signals must be objectives, names of outputs or names of layers ('layer' or 'layer:part'), got "
            f"{type(name).__name__}: {name!r}."
        )
    tap = Tap.named(name)
    if tap.part not in PARTS:
        raise ValueError(f"signals: {name!r} names no part of a layer; the parts are {sorted(PARTS)}.")
    return tap
