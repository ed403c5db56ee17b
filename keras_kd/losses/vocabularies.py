"""Losses for a teacher and a student with different vocabularies or classes."""

import collections.abc
import numbers

import keras
import numpy as np
from keras import ops

from keras_kd._checks import require_count
from keras_kd._keras_private import get_mask, set_mask
from keras_kd.losses.base import DistillationLossWrapper, TemperatureLoss, differ, mask_of_tokens


@keras.saving.register_keras_serializable(package="keras_kd")
class UniversalLogitDistillation(TemperatureLoss):
    """Universal logit distillation (ULD): the distance of the two distributions by rank, whatever their tokens are.

    `L = Σ_r |p_(r) − q_(r)|`, where `p_(r)` is the teacher's r-th largest probability and `q_(r)` the student's, with
    `p = softmax(teacher / T)`, `q = softmax(student / T)`; ranks that only one side has are compared with 0. L is in
    [0, 2]. As in the authors' code there is no factor T², so that the gradient shrinks as T grows.

    It compares how sure the models are and between how many classes, not between which. Where most tokens are shared,
    `VocabularyMap` transfers more.

    Sequences may differ in length: token i is compared with token i, up to the end of the shorter one. The mean is over
    the student's tokens that are compared and that no Keras mask of either side leaves out. `reduction=None` gives one
    value per student token, 0 beyond the teacher's end.

    Sorting takes memory and time: on a CPU, 512 tokens of 50,000 classes took 11 s, and 1.0 s with `top_k=100`.

    Args:
        temperature: T > 0; 1 is usual. Kept in a variable, `loss.temperature`, which callbacks may assign.
        top_k: Compare the k largest probabilities of the full softmax only; None for all. The value then differs by at
            most the probability that the two sides have beyond rank k.
        **kwargs: See `keras_kd.losses.DistillationLoss`.

    Call arguments:
        teacher: Logits `(batch, teacher classes)`, or `(batch, teacher length, teacher classes)`.
        student: Logits `(batch, student classes)`, or `(batch, student length, student classes)`.

    Raises:
        ValueError: `temperature` is not > 0; `top_k` is below 1; the ranks of the logits differ.

    Example: Of a teacher of two classes and a student of three, each gives its first choice the same probability.

    >>> loss = keras_kd.losses.UniversalLogitDistillation()
    >>> round(float(loss(np.log([[0.7, 0.3]]), np.log([[0.2, 0.1, 0.7]]))), 4)
    0.2

    Reference: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    2024 (https://arxiv.org/abs/2402.12030).
    """

    undoes = "softmax"
    scales_with_temperature = False

    def __init__(self, temperature=1.0, *, top_k=None, **kwargs):
        super().__init__(temperature, **kwargs)
        self.top_k = None if top_k is None else require_count(top_k, "top_k", at_least=1)

    def check_shapes(self, teacher_shape, student_shape):
        shapes = teacher_shape, student_shape
        if differ(*shapes, (0,)):
            raise self.shape_error("compares logits of equal rank and batch", *shapes)
        if len(student_shape) not in (2, 3):
            way_out = "Flatten the axes between batch and classes with keras.layers.Reshape."
            raise self.shape_error("compares logits (batch, classes) or (batch, length, classes)", *shapes, way_out)

    def compared_axes(self, rank):
        return (0,)

    def token_mask(self, teacher, student):
        """The student's tokens that neither side masks, up to the teacher's end, bool; None: all of them."""
        if len(student.shape) != 3 or len(teacher.shape) != 3:
            return None
        if teacher.shape[1] is not None and teacher.shape[1] == student.shape[1]:
            return super().token_mask(teacher, student)
        teacher_mask, student_mask = mask_of_tokens(teacher), mask_of_tokens(student)
        if teacher_mask is None:
            teacher_mask = ops.ones(ops.shape(teacher)[:2], "bool")
        length = ops.shape(student)[1]
        missing = ops.zeros((ops.shape(teacher)[0], length), "bool")
        mask = ops.concatenate([teacher_mask, missing], axis=1)[:, :length]
        return mask if student_mask is None else ops.logical_and(mask, student_mask)

    def call(self, teacher, student):
        # (batch, [length,] classes) x2, lengths and classes of each side -> (batch, [student length])
        if len(student.shape) == 2:
            return self._distance(teacher, student)
        teacher_length, student_length = ops.shape(teacher)[1], ops.shape(student)[1]
        distance = self._distance(teacher[:, :student_length], student[:, :teacher_length])
        return ops.concatenate([distance, ops.zeros_like(student[:, teacher_length:, 0])], axis=1)

    def _distance(self, teacher, student):
        teacher, student = self._descending(teacher), self._descending(student)
        ranks = min(teacher.shape[-1], student.shape[-1])
        shared = ops.sum(ops.abs(teacher[..., :ranks] - student[..., :ranks]), axis=-1)
        return shared + ops.sum(teacher[..., ranks:], axis=-1) + ops.sum(student[..., ranks:], axis=-1)

    def _descending(self, logits):
        """The largest probabilities, `top_k` of them or all, in descending order."""
        logits = logits / ops.cast(self.temperature, logits.dtype)
        classes = logits.shape[-1]
        largest, _ = ops.top_k(logits, classes if self.top_k is None else min(self.top_k, classes))
        return ops.exp(largest - ops.logsumexp(logits, axis=-1, keepdims=True))


@keras.saving.register_keras_serializable(package="keras_kd")
class VocabularyMap(DistillationLossWrapper):
    """A loss over outputs, for a student whose tokens (classes) are some of the teacher's.

    The teacher's logits are gathered to the student's tokens, `teacher[..., teacher_ids]`, and the loss compares
    them with the student's. So the teacher's distribution is renormalized over the student's vocabulary: the
    probability of other tokens is lost. Independent units (`BinarySoftLabels`) are gathered in the same way.

    A token that the teacher lacks has the id -1: it is left out on both sides, and only the labels train it.

    Args:
        loss: A `DistillationLoss` over logits, for instance `SoftLabels(temperature=2.0)`. Weight, temperature, output,
            name, reduction and dtype are its own. If it needs labels, they are ids of the student.
        teacher_ids: For each token of the student, in the order of its ids, the token's id in the teacher's vocabulary,
            or -1. `match_vocabularies` makes the list.

    Raises:
        ValueError: `loss` is not over logits; ids are below -1 or not different; fewer than 2 are shared; the loss
            needs labels and an id is -1. When the models are known: an id is beyond the teacher's classes, or there are
            more or fewer ids than classes of the student.

    Example: The student has three of the teacher's four tokens; the teacher's own logits fit it exactly.

    >>> loss = keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(temperature=2.0), teacher_ids=[3, 0, 1])
    >>> float(loss(np.array([[1.0, 2.0, 9.0, 0.0]]), np.array([[0.0, 1.0, 2.0]])))
    0.0
    >>> float(loss(np.array([[1.0, 2.0, 9.0, 0.0]]), np.array([[0.0, 0.0, 0.0]])))
    0.3136...
    """

    def __init__(self, loss, teacher_ids):
        super().__init__(loss)
        if loss.undoes is None and loss.expected_ending("teacher") != "logits":
            raise ValueError(
                f"{loss.name} compares outputs as they are, and only logits can be gathered by token. Wrap a loss over "
                "logits, such as keras_kd.losses.SoftLabels; declare one of your own with undoes='softmax'."
            )
        ids = _checked_ids(teacher_ids)
        self._classes = ids.size  # of the student
        self._student_ids = np.flatnonzero(ids >= 0).astype("int32")
        self._teacher_ids = ids[self._student_ids].astype("int32")
        if self.needs_labels and self._student_ids.size < ids.size:
            raise ValueError(
                f"{self.name} needs labels, and {ids.size - self._student_ids.size} of the student's {ids.size} tokens "
                "have the id -1 in teacher_ids: the teacher has no such class. Wrap a loss without "
                "labels, such as keras_kd.losses.SoftLabels."
            )

    @property
    def teacher_ids(self):
        """A list: for each token of the student its id in the teacher's vocabulary, or -1."""
        ids = np.full(self._classes, -1)
        ids[self._student_ids] = self._teacher_ids
        return ids.tolist()

    def check_shapes(self, teacher_shape, student_shape):
        shapes = f"the teacher gives {teacher_shape}, the student {student_shape}"
        if student_shape[-1] not in (None, self._classes):
            raise ValueError(
                f"teacher_ids has {self._classes} entries, one for each token of the student, but {shapes}: "
                f"{student_shape[-1]} classes."
            )
        if teacher_shape[-1] is not None and self._teacher_ids.max() >= teacher_shape[-1]:
            raise ValueError(
                f"teacher_ids holds {self._teacher_ids.max()}, but {shapes}: the teacher's ids go from 0 to "
                f"{teacher_shape[-1] - 1}."
            )
        super().check_shapes(*self._shared_shapes(teacher_shape, student_shape))

    def make_projection(self, teacher_shape, student_shape):
        return super().make_projection(*self._shared_shapes(teacher_shape, student_shape))

    def _shared_shapes(self, *shapes):
        return [(*shape[:-1], self._teacher_ids.size) for shape in shapes]

    def __call__(self, teacher, student, sample_weight=None, **kwargs):
        """The wrapped loss's mean over the batch; `labels=`, `mask=` or `languages=` as of that loss."""
        # (..., teacher classes), (..., student classes) -> (..., shared tokens) x2
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        teacher = self._on_shared(teacher, self._teacher_ids)
        if self._student_ids.size < self._classes:
            student = self._on_shared(student, self._student_ids)
        return self.loss(teacher, student, sample_weight, **kwargs)

    def _on_shared(self, logits, ids):
        shared = ops.take(logits, ids, axis=-1)
        mask = get_mask(logits)
        return shared if mask is None else set_mask(shared, mask)

    def get_config(self):
        return {**super().get_config(), "teacher_ids": self.teacher_ids}


def match_vocabularies(student_vocabulary, teacher_vocabulary, *, allow_missing=False):
    """The `teacher_ids` of a `VocabularyMap`: for each token of the student, in the order of its ids, the teacher's id.

    Tokens are compared as they are. Tokenizers write the same piece in different ways ("▁the", "Ġthe", "##s"): bring
    them into one form first.

    Args:
        student_vocabulary: The student's tokens in the order of their ids, or a dict from token to id; the ids of the
            dict are 0, 1, … without a gap.
        teacher_vocabulary: The teacher's, likewise; its dict may have gaps.
        allow_missing: Give tokens that the teacher lacks the id -1, in place of an error.

    Returns:
        A list of ints, as long as the student's vocabulary.

    Raises:
        ValueError: The teacher lacks tokens of the student; a token occurs twice; the student's ids are not 0, 1, ….
        TypeError: A vocabulary is a single str, or neither a sequence nor a dict.

    Example:

    >>> keras_kd.losses.match_vocabularies(["[PAD]", "a", "cat"], {"[PAD]": 0, "the": 1, "a": 2, "dog": 3, "cat": 4})
    [0, 2, 4]
    >>> keras_kd.losses.match_vocabularies(["a", "zebra"], ["the", "a"], allow_missing=True)
    [1, -1]
    """
    student = _ids_by_token(student_vocabulary, "student_vocabulary")
    teacher = _ids_by_token(teacher_vocabulary, "teacher_vocabulary")
    if not student:
        raise ValueError("student_vocabulary holds no token.")
    if sorted(student.values()) != list(range(len(student))):
        raise ValueError(
            f"student_vocabulary must have the ids 0 to {len(student) - 1}, one for each of its {len(student)} tokens: "
            f"the classes of the student's output; got ids from {min(student.values())} to {max(student.values())}."
        )
    tokens = sorted(student, key=student.get)
    missing = [token for token in tokens if token not in teacher]
    if missing and not allow_missing:
        more = ", …" if len(missing) > 5 else ""
        raise ValueError(
            f"teacher_vocabulary lacks {len(missing)} of the student's {len(student)} tokens: "
            f"{', '.join(map(repr, missing[:5]))}{more}. Pass allow_missing=True to leave them out of the comparison."
        )
    return [int(teacher.get(token, -1)) for token in tokens]


def _ids_by_token(vocabulary, argument):
    if isinstance(vocabulary, collections.abc.Mapping):
        return dict(vocabulary)
    if isinstance(vocabulary, (str, bytes)) or not isinstance(vocabulary, (collections.abc.Sequence, np.ndarray)):
        raise TypeError(
            f"{argument} must hold the tokens in the order of their ids, or be a dict from token to id, got "
            f"{type(vocabulary).__name__}."
        )
    ids = {token: i for i, token in enumerate(vocabulary)}
    if len(ids) < len(vocabulary):
        twice = next(token for i, token in enumerate(vocabulary) if ids[token] != i)
        raise ValueError(f"{argument} holds {twice!r} more than once: a token has one id.")
    return ids


def _checked_ids(teacher_ids):
    """The ids as an int array."""
    ids = list(teacher_ids)
    wrong = [i for i in ids if isinstance(i, (bool, np.bool_)) or not isinstance(i, numbers.Integral)]
    if wrong:
        raise TypeError(f"teacher_ids must be whole numbers, ids in the teacher's vocabulary, got {wrong[0]!r}.")
    ids = np.array(ids, "int64")
    if ids.size and ids.min() < -1:
        raise ValueError(f"teacher_ids must be >= 0, or -1 for a token that the teacher lacks, got {ids.min()}.")
    shared, counts = np.unique(ids[ids >= 0], return_counts=True)
    if shared.size < 2:
        raise ValueError(f"teacher_ids must share at least 2 tokens with the student, got {shared.size} ids >= 0.")
    if counts.max() > 1:
        twice = shared[counts.argmax()]
        raise ValueError(
            f"teacher_ids holds {twice} more than once, at {np.flatnonzero(ids == twice)[:5].tolist()}: its "
            "probability would be counted twice. Give all but one of these tokens the id -1."
        )
    return ids
