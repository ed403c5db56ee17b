"""Everyone who takes part in the benchmark, compiled alike: plain student, keras_kd, keras.distillation, by hand."""

import keras
import numpy as np
from bench_devices import accelerator
from bench_loops import TEMPERATURE, loop, with_layers

import keras_kd


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def distillation_losses_of_ours(layers):
    return [
        keras_kd.losses.SoftLabels(TEMPERATURE),
        *(keras_kd.losses.Hint(*pair, name=f"hint_{pair[1]}") for pair in layers),
    ]


def plain_student(task):
    student = task.new_student()
    student.compile("adam", crossentropy())
    return student


def ours(task, teacher):
    distiller = keras_kd.Distiller(teacher, task.new_student(), distillation_losses_of_ours(task.layers))
    distiller.compile("adam", crossentropy())
    return distiller


def of_keras(task):
    """`keras.distillation` at its best setting. Its loss is half of ours: it weighs both terms to a sum of 1."""
    losses = [keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())]
    losses += [keras.distillation.FeatureDistillation(keras.losses.MeanSquaredError(), *pair) for pair in task.layers]
    distiller = keras.distillation.Distiller(task.teacher, task.new_student(), losses, student_loss_weight=0.5)
    distiller.compile("adam", crossentropy())
    return distiller


def by_hand(task):
    return loop(task.teacher, task.new_student(), task.layers, jit_compile=accelerator() is not None)


def entrants(task):
    """`{name: who has copies of the task's student}`: models to fit, and the loop by hand."""
    return {
        "plain student": plain_student(task),
        "keras_kd": ours(task, task.teacher),
        "keras.distillation": of_keras(task),
        "by hand": by_hand(task),
    }


# What a first step says, before anything is timed ---------------------------------------------------------------------


def reference_loss(task):
    """The loss of the first batch by its formula, in float64 NumPy, from what both models give for it."""
    x, y = task.first_batch()
    teacher = _outputs(task.teacher, x, False, [pair[0] for pair in task.layers])
    student = _outputs(task.new_student(), x, True, [pair[1] for pair in task.layers])
    hard = -log_softmax(student[0])[np.arange(len(y)), y].mean()
    log_p, log_q = (log_softmax(one[0] / TEMPERATURE) for one in (teacher, student))
    soft = TEMPERATURE**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
    return hard + soft + sum(np.square(a - b).mean() for a, b in zip(teacher[1:], student[1:], strict=True))


def _outputs(model, x, training, layers):
    """Logits, then features, in float64."""
    outputs = with_layers(model, layers)(x, training=training)
    return [keras.ops.convert_to_numpy(tensor).astype("float64") for tensor in keras.tree.flatten(outputs)]


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def first_losses(task, entrants):
    """`{who: the loss of the first batch, before the first update}`, each as everyone's first step reports it."""
    x, y = task.first_batch()
    first = task._replace(x=x, y=y).dataset()

    def reported(name, log):
        return entrants[name].fit(first, shuffle=False, verbose=0).history[log][0]

    return {
        "keras_kd": reported("keras_kd", "loss"),
        "keras.distillation": 2 * reported("keras.distillation", "total_loss"),
        "by hand": entrants["by hand"].train(first)[0],
    }
