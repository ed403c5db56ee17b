"""A student of an encoder for a size: fewer layers, fewer pieces, and the embedding in codes."""

import numpy as np

from keras_kd._checks import require_number
from keras_kd.students.depth import fewer_layers
from keras_kd.students.embedding import CENTROIDS, find_embedding, quantize_embedding
from keras_kd.students.vocabulary import count_pieces, trim_vocabulary


def compress_encoder(encoder, tokenizer, texts, size_mb, *, layers=3, codes=32, seed=0):
    """Make a student of an encoder whose weights fit into a size, and its tokenizer.

    Three steps, each of which is a function of its own: some of the layers (`fewer_layers`); of the vocabulary, the
    pieces that the texts use, or as many of the most frequent ones as there is room for (`trim_vocabulary`); and
    `codes` bytes for each piece (`quantize_embedding`), unless they are fewer than 256, which need none. The student is
    to be distilled next.

    Args:
        encoder: the teacher: a built functional `keras.Model`, such as `keras_kd.teachers.sentence_encoder` makes.
        tokenizer: the teacher's, as in `trim_vocabulary`.
        texts: {language: list of str}, as the tokenizer is to see them: with the prefix, where the encoder wants one.
        size_mb: megabytes (10⁶ bytes) > 0 of the weights in 8 bits; a file that holds the tokenizer is larger by that.
        layers: how many of the encoder's, or which ones, as in `fewer_layers`.
        codes: bytes per piece: a divisor of the width of the embedding.
        seed: of k-means.

    Returns:
        `(student, tokenizer)`: a functional `keras.Model`, and a tokenizer of the kind that was given.

    Raises:
        TypeError: an argument of another type.
        ValueError: the size leaves too little room for pieces, or an argument is wrong in one of the steps.

    Example:

    >>> import keras_hub
    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(995))]
    >>> tokenizer = keras_hub.models.BertTokenizer(words)
    >>> backbone = keras_hub.models.BertBackbone(1000, num_layers=4, num_heads=2, hidden_dim=64, intermediate_dim=64)
    >>> texts = {"en": [f"w{number}" for number in range(600)]}
    >>> student, smaller = keras_kd.students.compress_encoder(backbone, tokenizer, texts, 0.09, layers=1, codes=16)
    >>> student.count_params() <= 90_000, smaller.vocabulary_size()
    (True, 605)
    """
    budget = int(1e6 * require_number(size_mb, "size_mb", above=0))
    student, _ = fewer_layers(encoder, layers)
    embedding, _ = find_embedding(student)
    others = student.count_params() - embedding.input_dim * embedding.output_dim
    room = (budget - others - CENTROIDS * embedding.output_dim) // codes
    if room < CENTROIDS:
        least = others + CENTROIDS * (embedding.output_dim + codes)
        raise ValueError(
            f"size_mb must be > {least / 1e6:.2f} for {layers} layers of {encoder.name!r} and {codes} codes per piece, "
            f"got {size_mb}. Keep fewer layers, or use a student that starts from nothing: "
            "keras_kd.students.student_for."
        )
    trimmed = _trimmed(student, tokenizer, texts, room, size_mb)
    if len(trimmed.id_map) < CENTROIDS:
        return trimmed.student, trimmed.tokenizer
    pieces = count_pieces(trimmed.tokenizer, texts)
    counts = np.sum(list(pieces.values()), axis=0) if isinstance(pieces, dict) else pieces
    student, _ = quantize_embedding(trimmed.student, codes, counts=counts, seed=seed)
    return student, trimmed.tokenizer


def _trimmed(student, tokenizer, texts, room, size_mb):
    """The `TrimmedVocabulary` of what the texts use, or of as many pieces as there is room for."""
    trimmed = trim_vocabulary(student, tokenizer, texts)
    if len(trimmed.id_map) <= room:
        return trimmed
    try:
        return trim_vocabulary(student, tokenizer, texts, keep=room)
    except ValueError as error:
        raise ValueError(f"size_mb must be larger: {size_mb} leaves room for {room} pieces. {error}") from error
