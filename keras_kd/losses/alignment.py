"""Tokens of two tokenizers aligned by the bytes of the text, and a loss over the groups that end together."""

import collections.abc

import keras
import numpy as np
from keras import ops

from keras_kd._hyperparameters import Hyperparameter
from keras_kd.losses.base import DistillationLoss, differ

_SIDES = ("teacher", "student")
_SMALLEST = 1e-6  # how far log p stays below 0, where log(1 − p) would be −∞


@keras.saving.register_keras_serializable(package="keras_kd")
class ApproximateLikelihoodMatching(DistillationLoss):
    """Approximate likelihood matching (ALM), for a teacher and a student with different tokenizers.

    A text is cut into groups of tokens where both tokenizers end a token at the same byte. A group has the same bytes
    on both sides, and so a likelihood by each model: `p_g = Π p(token | tokens before)` over the teacher's tokens
    of the group, `q_g` over the student's. They are compared as distributions over "these bytes come next" and "others
    do":

    `L = mean_g T · KL(Bernoulli(p_g^(1/T)) ‖ Bernoulli(q_g^(1/T)))`, in nats, one value per example. With the factor T
    the gradient keeps its scale when T changes; for T → ∞ L tends to
    `log p_g − log q_g + log p_g · log(log q_g / log p_g)`. An example without a group has the value 0.

    Both models predict the same text; each reads its own ids. What they are to predict, and the groups, are integer
    entries of a dict `x`, aligned with the outputs: the token that position i *predicts*, and that token's group.
    `alignment_entries` makes them. It counts the text that was written, and not what else might have been:
    `UniversalLogitDistillation` compares all tokens, but by position and rank.

    Args:
        temperature: T > 0; 100 as the authors, at which a likelihood of a group of several tokens still counts. Kept in
            a variable, `loss.temperature`, which callbacks may assign.
        teacher_targets, teacher_groups, student_targets, student_groups: The entries of `x`.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher: Logits `(batch, teacher length, teacher classes)`.
        student: Logits `(batch, student length, student classes)`.
        teacher_targets, student_targets: The token that each position predicts, integers `(batch, length)` of that
            side.
        teacher_groups, student_groups: The group of this token, likewise, 0, 1, … along the text; -1 for tokens that
            are not compared, such as padding.

    Raises:
        ValueError: `temperature` is not > 0; outputs are not sequences of equal batch; in `fit`: `x` lacks an entry.

    Example: Two tokens of the teacher, "di" and "stil", are one of the student's. 0.5 · 0.4 = 0.2.

    >>> loss = keras_kd.losses.ApproximateLikelihoodMatching()
    >>> round(float(loss(np.log([[[0.5, 0.5], [0.6, 0.4]]]), np.log([[[0.1, 0.1, 0.8]]]),
    ...     teacher_targets=[[0, 1]], teacher_groups=[[0, 0]], student_targets=[[2]], student_groups=[[0]])), 3)
    1.779

    Reference: Minixhofer, Vulić and Ponti, "Universal Cross-Tokenizer Distillation via Approximate Likelihood
    Matching", NeurIPS 2025 (https://arxiv.org/abs/2503.20083), section 3.
    """

    undoes = "softmax"
    temperature = Hyperparameter(above=0.0, hint="100 is usual.")

    def __init__(
        self,
        temperature=100.0,
        *,
        teacher_targets="teacher_targets",
        teacher_groups="teacher_groups",
        student_targets="student_targets",
        student_groups="student_groups",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.teacher_targets, self.teacher_groups = teacher_targets, teacher_groups
        self.student_targets, self.student_groups = student_targets, student_groups

    @property
    def batch_entries(self):
        return {f"{side}_{kind}": getattr(self, f"{side}_{kind}") for side in _SIDES for kind in ("targets", "groups")}

    def value_rank(self, output_rank):
        return 1

    def compared_axes(self, rank):
        return (0,)

    def check_shapes(self, teacher_shape, student_shape):
        shapes = teacher_shape, student_shape
        if {len(shape) for shape in shapes} != {3} or differ(*shapes, (0,)):
            raise self.shape_error("compares logits (batch, length, classes) of equal batch", *shapes)

    def token_mask(self, teacher, student):
        """None: tokens that do not count have no group."""
        return None

    def call(self, teacher, student, *, teacher_targets, teacher_groups, student_targets, student_groups):
        # (batch, length, classes) x2 of each side's length and classes, (batch, length) x4 -> (batch,) nats
        groups = ops.arange(ops.shape(student)[1])  # there are no more than the student has tokens
        teacher_log_probs, by_teacher = _group_log_probs(teacher, teacher_targets, teacher_groups, groups)
        student_log_probs, by_student = _group_log_probs(student, student_targets, student_groups, groups)
        compared = ops.cast(ops.logical_and(by_teacher, by_student), teacher.dtype)
        temperature = ops.cast(self.temperature, teacher.dtype)
        log_p, log_q = ((own - _SMALLEST) / temperature for own in (teacher_log_probs, student_log_probs))
        divergence = ops.exp(log_p) * (log_p - log_q) - ops.expm1(log_p) * (_log1mexp(log_p) - _log1mexp(log_q))
        count = ops.maximum(ops.sum(compared, axis=1), 1.0)
        return temperature * ops.sum(compared * divergence, axis=1) / count


def _group_log_probs(logits, targets, token_groups, groups):
    """The log-likelihood of each group, and whether there is a token of it: `(batch, groups)` nats, bool."""
    targets, token_groups = (ops.cast(ops.convert_to_tensor(ids), "int32") for ids in (targets, token_groups))
    for ids in (targets, token_groups):
        if differ(tuple(ids.shape), tuple(logits.shape[:2])):
            raise ValueError(
                f"targets and groups must have the batch and length of their side's logits, {tuple(logits.shape)}, got "
                f"{tuple(ids.shape)}. alignment_entries takes the length of each side's outputs."
            )
    targets = ops.expand_dims(ops.maximum(targets, 0), -1)
    log_probs = ops.take_along_axis(ops.log_softmax(logits, axis=-1), targets, axis=-1)[..., 0]
    member = token_groups[:, None, :] == groups[None, :, None]  # (batch, groups, length)
    log_likelihood = ops.sum(ops.where(member, log_probs[:, None, :], 0.0), axis=-1)
    return log_likelihood, ops.any(member, axis=-1)


def _log1mexp(log_probs):
    """log(1 − p) of log p < 0."""
    small = log_probs < -0.6931  # p < ½
    return ops.where(
        small,
        ops.log1p(-ops.exp(ops.where(small, log_probs, -1.0))),
        ops.log(-ops.expm1(ops.where(small, -0.5, log_probs))),
    )


# The alignment ------------------------------------------------------------------------------------------------------


def align_tokens(teacher_offsets, student_offsets):
    """Group the tokens of two tokenizers of one text: a group ends where both have a token that ends at the same byte.

    A token without bytes, such as a start token, is in no group: so one that only one side has shifts nothing. Nor is
    what follows the last byte at which both end. To compare an end token, give it the offsets `(n, n + 1)` on both
    sides, n being the number of bytes of the text.

    Args:
        teacher_offsets, student_offsets: `(start, end)` of each token, in bytes of the UTF-8 text, such as
            `tokenize_with_offsets` of tensorflow_text gives them. `byte_offsets` makes them of offsets in characters.
            The tokens of a character that is cut into several may all have its offsets.

    Returns:
        `(teacher_groups, student_groups)`: the group of each token, int32 `(tokens,)`; -1 for none.

    Raises:
        TypeError: Offsets are not whole numbers.
        ValueError: Offsets are no pairs, a token ends before it starts or before the token before it.

    Example: "distil" as "di" + "stil" and as "dis" + "ti" + "l", after a start token that only the teacher has.

    >>> teacher, student = keras_kd.losses.align_tokens([(0, 0), (0, 2), (2, 6)], [(0, 3), (3, 5), (5, 6)])
    >>> teacher.tolist(), student.tolist()
    ([-1, 0, 0], [0, 0, 0])
    """
    ends = [_checked_ends(*side) for side in zip((teacher_offsets, student_offsets), _SIDES, strict=True)]
    shared = np.intersect1d(*(own[own >= 0] for own in ends))
    return tuple(_groups(own, shared) for own in ends)


def _groups(ends, shared):
    """The position of the first shared end that is not before each token's end; -1 for none."""
    groups = np.searchsorted(shared, ends)
    return np.where((ends >= 0) & (groups < len(shared)), groups, -1).astype("int32")


def _checked_ends(offsets, side):
    """The end of each token, int64; -1 where it has no bytes."""
    offsets = np.asarray(offsets).reshape(-1, 2) if len(offsets) == 0 else np.asarray(offsets)
    if len(offsets) and offsets.dtype.kind not in "iu":
        raise TypeError(f"{side}_offsets must be whole numbers, bytes of the text, got {offsets.dtype}.")
    if offsets.ndim != 2 or offsets.shape[1] != 2:
        raise ValueError(f"{side}_offsets must be a (start, end) for each token, got the shape {offsets.shape}.")
    starts, ends = offsets.astype("int64").T
    with_bytes = ends > starts
    if (ends < starts).any() or (np.diff(ends[with_bytes]) < 0).any() or (starts < 0).any():
        raise ValueError(
            f"{side}_offsets must go along the text: 0 <= start <= end, no end before that of the token before, got "
            f"{offsets.tolist()!r:.200}."
        )
    return np.where(with_bytes, ends, -1)


def byte_offsets(text, offsets):
    """Offsets in characters, as the tokenizers of Hugging Face give them, as offsets in bytes of the UTF-8 text.

    Args:
        text: A str.
        offsets: `(start, end)` of each token, in characters.

    Returns:
        Integers `(tokens, 2)`.

    Raises:
        TypeError: `text` is no str.
        ValueError: An offset is beyond the text.

    Example:

    >>> keras_kd.losses.byte_offsets("für", [(0, 2), (2, 3)]).tolist()
    [[0, 3], [3, 4]]
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}.")
    offsets = np.asarray(offsets, "int64").reshape(-1, 2)
    if offsets.size and (offsets.min() < 0 or offsets.max() > len(text)):
        raise ValueError(f"offsets must be characters of the text, 0 to {len(text)}, got {offsets.max()}.")
    return np.cumsum([0, *(len(character.encode()) for character in text)])[offsets]


def alignment_entries(teacher_tokens, student_tokens, *, teacher_length=None, student_length=None):
    """The entries of `x` that `ApproximateLikelihoodMatching` reads, for texts of which two tokenizers made ids.

    Args:
        teacher_tokens: For each text `(ids, offsets)`: the ids that the teacher's positions predict, in their order,
            and the `(start, end)` of each in bytes, as in `align_tokens`. Position 0 of a model's output predicts the
            first id: of a decoder that reads a start token, the token after it; a language model that reads the text
            itself predicts `ids[1:]`, with `offsets[1:]`.
        student_tokens: The same of the student.
        teacher_length, student_length: The lengths of the outputs, to which entries are padded and cut; None: those of
            the longest texts.

    Returns:
        A dict of int32 arrays `(texts, length)`: "teacher_targets", "teacher_groups", "student_targets",
        "student_groups".

    Raises:
        TypeError: Offsets are not whole numbers.
        ValueError: Other numbers of texts, or of ids than offsets; offsets as in `align_tokens`.

    Example: "distil" as before.

    >>> entries = keras_kd.losses.alignment_entries(
    ...     [([7, 8], [(0, 2), (2, 6)])], [([1, 2, 3], [(0, 3), (3, 5), (5, 6)])], student_length=4)
    >>> entries["student_groups"].tolist()
    [[0, 0, 0, -1]]
    """
    sides = {"teacher": list(teacher_tokens), "student": list(student_tokens)}
    if len(sides["teacher"]) != len(sides["student"]):
        counts = [len(texts) for texts in sides.values()]
        raise ValueError(
            f"teacher_tokens and student_tokens must be of the same texts, got {counts[0]} and {counts[1]}."
        )
    for side, texts in sides.items():
        for row, (ids, offsets) in enumerate(texts):
            if not isinstance(ids, (collections.abc.Sequence, np.ndarray)) or len(ids) != len(offsets):
                raise ValueError(f"{side}_tokens[{row}] must have an offset for each id, got {ids!r:.60}.")
    lengths = {"teacher": teacher_length, "student": student_length}
    # What is cut off is no part of a group, which would otherwise lack its last tokens on one side.
    offsets = ([offsets[: lengths[side]] for _, offsets in sides[side]] for side in _SIDES)
    groups = [align_tokens(*pair) for pair in zip(*offsets, strict=True)]
    entries = {}
    for side, own in zip(_SIDES, zip(*groups, strict=True), strict=True):
        entries[f"{side}_targets"] = _padded([ids for ids, _ in sides[side]], lengths[side], 0)
        entries[f"{side}_groups"] = _padded(own, lengths[side], -1)
    return entries


def _padded(rows, length, filler):
    """Rows of integers as int32 `(rows, length)`."""
    length = max(map(len, rows), default=0) if length is None else length
    padded = np.full((len(rows), length), filler, "int32")
    for row, own in zip(padded, rows, strict=True):
        row[: min(len(own), length)] = own[:length]
    return padded
