"""Several teachers as one model: their mean, or one output per teacher."""

import math

import keras
from keras import ops

from keras_kd._checks import require_choice, require_number
from keras_kd.outputs.reader import output_names
from keras_kd.teachers.members import ending_in, input_structure, like_members, members_of, require_alike, shared_inputs


def ensemble(teachers, *, weights=None, mean_of="probabilities"):
    """Return the weighted mean of several teachers as one model.

    With zᵢ the logits of teacher i:

    - `mean_of="probabilities"`: `log Σᵢ wᵢ softmax(zᵢ)`, in log space and float32. Its softmax is the mean of the
      teachers' distributions.
    - `mean_of="logits"`: `Σᵢ wᵢ zᵢ`. Its softmax is their normalized geometric mean. Use it for regression too.

    For a teacher that ends in softmax, zᵢ are its log probabilities. If all end in sigmoid, the mean is that of each
    unit's Bernoulli distribution, and the ensemble ends in sigmoid. Several outputs are averaged one by one.

    Each teacher reads its inputs by name, so that a dict of inputs serves teachers with different tokenizers. The
    teachers are not changed.

    Args:
        teachers: A list of functional or sequential models.
        weights: A number > 0 per teacher; they are divided by their sum. None: all equal.
        mean_of: "probabilities" or "logits".

    Returns:
        A functional `keras.Model` that gives logits, with the output structure and names of the first teacher.

    Raises:
        TypeError: `teachers` is not a list of `keras.Model`s, or a weight not a number.
        ValueError: A teacher is not built, or neither functional nor sequential; inputs of one name, or outputs,
            differ; `weights` are not > 0 or not one per teacher.

    Example:

    >>> def teacher(probabilities):
    ...     bias = keras.initializers.Constant(np.log(probabilities))
    ...     layer = keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer=bias)
    ...     return keras.Sequential([keras.Input((1,)), layer])
    >>> both = keras_kd.teachers.ensemble([teacher([0.9, 0.1]), teacher([0.5, 0.5])], weights=[3.0, 1.0])
    >>> keras.ops.softmax(both(np.zeros((1, 1)))).numpy().round(3).tolist()  # 0.75 · 0.9 + 0.25 · 0.5 = 0.8
    [[0.800..., 0.200...]]

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531).
    """
    if not isinstance(teachers, (list, tuple)):
        raise TypeError(f"teachers must be a list of keras.Models, got {type(teachers).__name__}: {teachers!r}.")
    require_choice(mean_of, "mean_of", list(_MEANS))
    members = members_of({f"teachers[{i}]": teacher for i, teacher in enumerate(teachers)})
    shares = _shares(weights, len(members))
    inputs = shared_inputs(members)
    outputs = [member(inputs) for member in members]
    _, endings = require_alike(members, outputs)
    means = [
        _MEANS[mean_of][ending](logits, shares)
        for logits, ending in zip(zip(*outputs, strict=True), endings, strict=True)
    ]
    return keras.Model(input_structure(members, inputs), like_members(members, means, endings), name="ensemble")


def multi_output(teachers):
    """Return several teachers as one model with one output per teacher, for losses that each use another teacher.

    The output is a dict, `{"bert": logits, "cnn": logits}`. A teacher that ends in softmax gives its log probabilities,
    one that ends in sigmoid its probabilities, as losses over independent units expect. Several outputs of one teacher
    are named "teacher/output", by name or index: "bert/hidden", "bert/0". Inputs are as in `ensemble`.

    Args:
        teachers: A dict of functional or sequential models by name.

    Returns:
        A functional `keras.Model` with a dict of outputs, float32.

    Raises:
        TypeError: `teachers` is not a dict of `keras.Model`s by str.
        ValueError: A teacher is not built, or neither functional nor sequential; inputs of one name differ.

    Example:

    >>> def classifier(classes):
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(classes)])
    >>> both = keras_kd.teachers.multi_output({"topic": classifier(5), "tone": classifier(3)})
    >>> {name: logits.shape for name, logits in both.output.items()}
    {'topic': (None, 5), 'tone': (None, 3)}
    """
    if not isinstance(teachers, dict) or not all(isinstance(name, str) for name in teachers):
        raise TypeError(f"teachers must be a dict of keras.Models by str, got {type(teachers).__name__}: {teachers!r}.")
    members = members_of({f"teachers[{name!r}]": teacher for name, teacher in teachers.items()})
    inputs = shared_inputs(members)
    outputs = {}
    for name, member in zip(teachers, members, strict=True):
        tensors = member(inputs)
        keys = output_names(member.model) or range(len(tensors))
        for key, tensor, ending in zip(keys, tensors, member.endings, strict=True):
            ended = ending_in("sigmoid" if ending == "sigmoid" else "linear", tensor)
            outputs[name if len(tensors) == 1 else f"{name}/{key}"] = ended
    return keras.Model(input_structure(members, inputs), outputs, name="multi_output")


def _shares(weights, count):
    """The weights as shares that add up to 1."""
    if weights is None:
        weights = [1.0] * count
    if not isinstance(weights, (list, tuple)) or len(weights) != count:
        raise ValueError(f"weights must be a list with one number for each of {count} teachers, got {weights!r}.")
    hint = "Leave a teacher out to ignore it."
    weights = [require_number(weight, f"weights[{i}]", above=0.0, hint=hint) for i, weight in enumerate(weights)]
    return [weight / math.fsum(weights) for weight in weights]


# Means of `(batch, ..., classes)` logits of each teacher, of the same shape.


def _mean_of_logits(logits, shares):
    return sum(share * tensor for share, tensor in zip(shares, logits, strict=True))


def _log_mean_of(logs, shares):
    """log Σᵢ wᵢ exp(logsᵢ)."""
    return ops.logsumexp(ops.stack([log + math.log(w) for log, w in zip(logs, shares, strict=True)]), axis=0)


def _mean_of_distributions(logits, shares):
    return _log_mean_of([ops.log_softmax(tensor, axis=-1) for tensor in logits], shares)


def _mean_of_units(logits, shares):
    """log p − log(1 − p) of each unit's mean p."""
    on, off = ([ops.log_sigmoid(sign * tensor) for tensor in logits] for sign in (1.0, -1.0))
    return _log_mean_of(on, shares) - _log_mean_of(off, shares)


# By `mean_of`, and by the ending of the teachers.
_MEANS = {
    "probabilities": {"linear": _mean_of_distributions, "sigmoid": _mean_of_units},
    "logits": {"linear": _mean_of_logits, "sigmoid": _mean_of_logits},
}
