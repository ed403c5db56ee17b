"""What a step costs with a live teacher, an evaluation, and an epoch from the cache, beside what they need at least."""

import functools
import pathlib
import statistics
import tempfile

import keras
from bench_devices import accelerator, peak_bytes
from bench_models import forward_flops
from bench_sides import distillation_losses_of_ours, entrants, first_losses, ours, plain_student, reference_loss
from reporting import ratios, summed, timings

import keras_kd

BOUND = "teacher forward + plain student"  # no live teacher can do with less
LIVE = ("keras_kd", "by hand", "keras.distillation")  # who trains with a live teacher, beside PyTorch
IN_MEMORY, CACHED = "keras_kd, outputs in memory", "keras_kd, cached"
PASSES = 8  # over the data in a long epoch, beside whose steps what an epoch itself costs is small
KERAS_SIDES = ("plain student", "keras_kd", "keras.distillation")
MOST_OF_LOSS, MOST_OF_LOGITS = (
    1e-5,
    1e-4,
)  # how far the others may be from what they should equal, relative and absolute


def measured(task, rounds, peer=None, peak_flops=None):
    """Everyone's times and ratios on a task, once they have been seen to compute the same.

    Args:
        rounds: How often each has its turn.
        peer: A `TorchPeer` of the task, or None.
        peak_flops: FLOP/s of the device, for the share that is reached.

    Raises:
        RuntimeError: The sides compute different losses, or PyTorch's models give other logits.
    """
    sides = entrants(task)
    agreement = agreed(task, sides, peer)
    with tempfile.TemporaryDirectory() as folder:
        training = {**epochs(task, sides), **(peer.epochs() if peer else {})}
        taken = with_bounds(timings(training, rounds))
        memory = {name: peak_bytes(epoch) for name, epoch in training.items()} if accelerator() else {}
        without_teacher = timings(epochs_without_teacher(task, pathlib.Path(folder) / "outputs"), rounds)
    evaluation = timings(evaluations(task, sides), rounds)
    return {
        "agreement": agreement,
        "training": rows(task, taken, memory, peak_flops),
        "evaluation": rows(task, evaluation, {}, None, over="plain student"),
        "over keras.distillation": ratios(taken["keras_kd"], taken["keras.distillation"]),
        "without teacher": {
            name: ratios(of_one, without_teacher["plain student"]) for name, of_one in without_teacher.items()
        },
        "times": {"training": taken, "without teacher": without_teacher, "evaluation": evaluation},
        **({"peer": peer.about} if peer else {}),
    }


def agreed(task, sides, peer=None):
    """The loss of the first batch by the formula, and relative differences from it; PyTorch's logits as well."""
    expected, losses = reference_loss(task), first_losses(task, sides)
    found = {"loss": expected}
    if peer is not None:
        found["PyTorch's logits"] = peer.difference
        losses["torchdistill"] = peer.losses()[0]
    found |= {name: abs(float(loss) / expected - 1.0) for name, loss in losses.items()}
    apart = {name: found[name] for name in losses if not found[name] <= MOST_OF_LOSS}
    if apart or found.get("PyTorch's logits", 0.0) > MOST_OF_LOGITS:
        raise RuntimeError(f"{task.name}: what is compared is not the same: {found}")
    return found


def epochs(task, sides):
    """`{name: function that trains for an epoch}`, with the teacher's forward pass by itself."""
    dataset, by_hand = task.dataset(), sides["by hand"]
    batches = [keras.tree.map_structure(keras.ops.convert_to_tensor, batch) for batch in dataset]
    functions = {"teacher forward": lambda: by_hand.forward(batches)}
    for name in KERAS_SIDES:
        functions[name] = lambda name=name: fit(sides[name], dataset)
    functions["by hand"] = lambda: by_hand.train(dataset)
    return functions


def epochs_without_teacher(task, folder):
    """Long ones: of the plain student, with outputs in memory beside each example, and from a cache."""
    if task.layers or keras.config.backend() != "tensorflow":
        return {}
    dataset, logits = task.dataset(), task.teacher.predict(task.x, batch_size=task.batch, verbose=0)
    datasets = {
        IN_MEMORY: task._replace(x=keras_kd.outputs.precomputed.PrecomputedBatch(task.x, logits, {})).dataset(),
        CACHED: keras_kd.cache_teacher_outputs(
            task.teacher, dataset, folder, outputs=distillation_losses_of_ours(task.layers), verbose=0
        ),
    }
    students = {"plain student": (plain_student(task), dataset)}
    students |= {name: (ours(task, None), precomputed) for name, precomputed in datasets.items()}
    return {name: functools.partial(fit, model, of_one.repeat(PASSES)) for name, (model, of_one) in students.items()}


def fit(model, dataset):
    model.fit(dataset, shuffle=False, verbose=0)


def evaluations(task, sides):
    """`{name: function that evaluates on the data of a long epoch}`."""
    dataset = task.dataset().repeat(PASSES)
    return {name: lambda name=name: sides[name].evaluate(dataset, verbose=0) for name in KERAS_SIDES}


def with_bounds(taken):
    """The times, with the sum of the parts that nobody with a live teacher can leave out; PyTorch's own as well."""
    bounds = {BOUND: summed(taken["teacher forward"], taken["plain student"])}
    if "torchdistill" in taken:
        bounds[f"PyTorch: {BOUND}"] = summed(taken["PyTorch: teacher forward"], taken["PyTorch: plain student"])
    return {**taken, **bounds}


def rows(task, taken, memory, peak_flops, over=BOUND):
    """A row for everyone: ratios first, then times, throughput, and on an accelerator memory and share of its peak."""
    result = {}
    for name, timings_of_one in taken.items():
        walls = [1e3 * timing.wall / task.steps for timing in timings_of_one]
        of_plain = ratios(timings_of_one, taken["plain student"])["least"]
        result[name] = {
            **{f"{kind} ratio": ratio for kind, ratio in ratios(timings_of_one, taken[over]).items()},
            "over plain student": of_plain,
            "least ms": min(walls),
            "median ms": statistics.median(walls),
            "tokens/s" if task.tokens > 1 else "examples/s": 1e3 * task.batch * task.tokens / min(walls),
        }
        if name in memory:
            result[name]["peak GB"] = memory[name] / 1e9
        if peak_flops:
            result[name]["share of peak"] = 1e3 * flops_of(task, name) / min(walls) / peak_flops
    return result


def flops_of(task, name):
    """What the matrix products of a step need at least: the teacher once, the student forward and twice back."""
    teacher, student = (task.batch * forward_flops(model) for model in (task.teacher, task.student))
    if "teacher forward" in name and BOUND not in name:
        return teacher
    return 3 * student if ("plain student" in name and BOUND not in name) else teacher + 3 * student
