"""Ids of tokens: which token of the teacher each token of the student is."""

import collections.abc
import numbers

import numpy as np


def match_vocabularies(student_vocabulary, teacher_vocabulary, *, allow_missing=False):
    """The `teacher_ids` of a `VocabularyMap`: for each token of the student, in the order of its ids, the teacher's id.

    Tokens are compared as they are. Tokenizers write the same piece in different ways ("▁the", "Ġthe", "##s"): bring
    them into one form first.

    Args:
        student_vocabulary: The student's tokens in the order of their ids, or a dict from token to id; the ids of the
            dict are 0, 1, … without a gap.
        teacher_vocabulary: The teacher's, likewise; its dict may have gaps.
        allow_missing: Give tokens that the teacher lacks the id -1, in place of an error: `VocabularyMap` leaves them
            out of the comparison.

    Returns:
        A list of ints, as long as the student's vocabulary.

    Raises:
        ValueError: The teacher lacks tokens of the student, some of which are listed; a token occurs twice; the ids of
            the student are not 0, 1, ….
        TypeError: A vocabulary is a single str, or neither a sequence nor a dict.

    Example:

    >>> keras_kd.match_vocabularies(["[PAD]", "a", "cat"], {"[PAD]": 0, "the": 1, "a": 2, "dog": 3, "cat": 4})
    [0, 2, 4]
    >>> keras_kd.match_vocabularies(["a", "zebra"], ["the", "a"], allow_missing=True)
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


def require_ids(teacher_ids):
    """Return the ids as an int array, after checking them by themselves."""
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
