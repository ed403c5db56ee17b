"""How the cost of a step grows with the classes, the length of the texts, and the number of teachers."""

import keras
import numpy as np
from bench_loops import TEMPERATURE, loop
from bench_models import Architecture, made, random_numbers
from bench_sides import crossentropy, of_keras, ours, plain_student
from bench_steps import BOUND, fit
from reporting import ratios, summed, timings

import keras_kd

CLASSES, LENGTHS, TEACHERS = (10, 100, 1000, 10_000, 100_000), (16, 64, 256, 512), (1, 2, 4, 8)


def measured(rounds, tiny=False):
    """`{"classes": {count: row}, …}`: least times, and the ratios to teacher forward + plain student."""
    growing = {
        "classes": (classes_task, CLASSES[:2] if tiny else CLASSES),
        "length": (length_task, LENGTHS[:1] if tiny else LENGTHS),
        "teachers": (teachers_task, TEACHERS[:2] if tiny else TEACHERS),
    }
    return {
        name: {str(count): row(make(count, tiny), rounds) for count in counts}
        for name, (make, counts) in growing.items()
    }


def row(task, rounds):
    """Who can take part in the task, timed in turn."""
    dataset = task.dataset()
    batches = [keras.tree.map_structure(keras.ops.convert_to_tensor, batch) for batch in dataset]
    forward = loop(task.teacher, task.new_student(), ()).forward
    models = {"plain student": plain_student(task), "keras_kd": ours(task, task.teacher)}
    models["keras.distillation"] = of_keras(task)
    if task.members:
        models["keras_kd, side by side"] = apart(task)
    functions = {"teacher forward": lambda: forward(batches)}
    functions |= {name: lambda model=model: fit(model, dataset) for name, model in models.items()}
    taken = timings(functions, rounds)
    bound = summed(taken["teacher forward"], taken["plain student"])
    shares = {name: ratios(taken[name], bound) for name in taken if name not in ("teacher forward", "plain student")}
    steps = {name: 1e3 * min(timing.wall for timing in of_one) / task.steps for name, of_one in taken.items()}
    return {"ratios": shares, "least ms": {**steps, BOUND: 1e3 * min(t.wall for t in bound) / task.steps}}


def apart(task):
    """The members of the ensemble, side by side, with a loss each: `keras.distillation` takes no such teacher."""
    share = 1.0 / len(task.members)
    distillation_losses = [
        keras_kd.losses.SoftLabels(TEMPERATURE, weight=share, teacher_output=name, name=f"from_{name}")
        for name in task.members
    ]
    distiller = keras_kd.Distiller(
        keras_kd.teachers.multi_output(task.members), task.new_student(), distillation_losses
    )
    distiller.compile("adam", crossentropy())
    return distiller


def classes_task(count, tiny=False):
    steps, batch = (2, 4) if tiny else (max(4, min(40, 40_000 // count)), 64)
    both = [Architecture("mlp", {"inputs": 64, "widths": widths, "classes": count}) for widths in ([256, 256], [64])]
    return made(f"{count} classes", both, (), random_numbers((batch * steps, 64)), batch)


def length_task(length, tiny=False):
    steps, batch = (2, 2) if tiny else (max(3, 512 // length), 8)
    options = {"length": length, "words": 256, "classes": 20}
    both = [
        Architecture("text", {**options, "width": width, "blocks": blocks}) for width, blocks in ((128, 4), (32, 1))
    ]
    x = np.random.default_rng(0).integers(0, 256, (batch * steps, length)).astype("int32")
    return made(f"length {length}", both, (), x, batch)._replace(tokens=length)


def teachers_task(count, tiny=False):
    """Teachers of one architecture, and their mean."""
    inputs, width, batch, steps = (12, 16, 4, 2) if tiny else (784, 512, 128, 20)
    both = [Architecture("mlp", {"inputs": inputs, "widths": widths, "classes": 10}) for widths in ([width] * 2, [64])]
    task = made(f"{count} teachers", both, (), random_numbers((batch * steps, inputs)), batch)
    members = {f"teacher_{i}": keras.models.clone_model(task.teacher) for i in range(count)}
    return task._replace(teacher=keras_kd.teachers.ensemble(list(members.values())), members=members)
