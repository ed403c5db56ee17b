"""Which outputs of a teacher are stored: those that losses compare, or those that are named."""

import keras

from keras_kd.losses import DistillationLoss, KerasLoss
from keras_kd.outputs.hooks import PARTS, Hook
from keras_kd.outputs.pairing import hooks_of, require_comparable
from keras_kd.outputs.reader import OutputReader, output_names

_UNDONE = ("softmax", "sigmoid")


class Selection:
    """Reads the chosen outputs of a teacher.

    Args:
        teacher: A built `keras.Model`.
        outputs: Losses, losses and names of outputs and layers ("layer" or "layer:part"), one or a list of them;
            None: all outputs.
    """

    def __init__(self, teacher, outputs=None):
        chosen = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        self._names = output_names(teacher)
        self._distillation_losses, self._outputs, hooks = [], [], []
        for one in chosen:
            if isinstance(one, (keras.losses.Loss, keras.distillation.DistillationLoss)):
                self._distillation_losses.append(one if isinstance(one, DistillationLoss) else KerasLoss(one))
            elif one is None or one in self._names:
                self._outputs.append(one)
            else:
                hooks.append(_hook(one))
        hooks += hooks_of(self._distillation_losses, "teacher")
        self._over_outputs = [one for one in self._distillation_losses if not one.layers_of("teacher")]
        self._reader = OutputReader(teacher, hooks, role="teacher")
        if self._reader.symbolic() is not None:
            for loss in self._over_outputs:
                require_comparable(self._reader, loss, "teacher")

    def __call__(self, x):
        """`(prediction, layers)` of a batch: outputs as logits where that is known, `{"layer:part": tensor}`."""
        outputs = self._reader(x, training=False)
        layers = {hook.name: tensor for hook, tensor in outputs.layers.items()}
        return self._prediction(outputs), layers

    def _prediction(self, outputs):
        asked = [*self._outputs, *(one.output_of("teacher") for one in self._over_outputs)]
        if not asked:
            return ()
        if all(isinstance(output, str) for output in asked):
            return {output: self._output(outputs, output) for output in sorted(set(asked))}
        prediction = outputs.prediction
        if isinstance(prediction, dict):
            return {key: self._output(outputs, key) for key in prediction}
        count = len(keras.tree.flatten(prediction))
        if any(isinstance(output, str) for output in asked):
            if count > 1:
                raise ValueError(
                    f"outputs name some outputs and not others, {asked}, of a teacher whose outputs {self._names} are "
                    "in a list. Name each output, or none."
                )
            return {self._names[0]: self._output(outputs, 0)}
        outputs = tuple(self._output(outputs, index) for index in range(count))
        return outputs if isinstance(prediction, (list, tuple)) else outputs[0]

    def _output(self, outputs, output):
        """One output, as those who asked for it want it."""
        activation = self._reader.activations(outputs, output)[0]
        named = output in self._outputs or None in self._outputs
        undone = {activation if activation in _UNDONE else None} if named else set()
        for loss in self._over_outputs:
            over = loss.output_of("teacher")
            if over is None or self._reader.select(outputs, over)[0] is self._reader.select(outputs, output)[0]:
                undone.add(activation if loss.undoes == activation else None)
        if len(undone) > 1:
            raise ValueError(
                f"outputs want the output {output!r} of the teacher both as it is and as logits, and it ends in "
                f"{activation}. End the teacher in a linear layer, or make a cache for each loss."
            )
        return self._reader.select(outputs, output, undo=next(iter(undone), None))[0]


def _hook(name):
    if not isinstance(name, str) or not name:
        raise TypeError(
            "outputs must be losses, names of outputs or names of layers ('layer' or 'layer:part'), got "
            f"{type(name).__name__}: {name!r}."
        )
    hook = Hook.named(name)
    if hook.part not in PARTS:
        raise ValueError(f"outputs: {name!r} names no part of a layer; the parts are {sorted(PARTS)}.")
    return hook
