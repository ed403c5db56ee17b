"""A student that starts from nothing, for a size."""

from keras_kd._checks import require_choice, require_count, require_number
from keras_kd.students.byte_models import byte_cnn, ngram_student

_BLOCKS = 4


def student_for(size_mb, units, *, family="ngrams", bits=8, length=256, name=None):
    """Make the widest student of a family whose weights fit into a size.

    Args:
        size_mb: megabytes (10⁶ bytes) > 0 of the weights as they are to ship; the file adds some kilobytes.
        units: numbers per text: classes, as logits, or the width of the teacher's vector.
        family: "ngrams", `ngram_student`: the fastest, linear in a vector per hashed n-gram; or "cnn", `byte_cnn`,
            which sees the order of words and computes a thousand times more.
        bits: of a weight in the shipped file: 32, 16, 8 or 4.
        length: bytes per text.
        name: name of the model; None is that of the family.

    Returns:
        A functional `keras.Model` from uint8 bytes `(batch, length)` to `(batch, units)`; `count_params() · bits / 8`
        is its size in bytes.

    Raises:
        TypeError: an argument of another type.
        ValueError: no student of the family is so small, or so large; another family or number of bits.

    Example:

    >>> student = keras_kd.students.student_for(size_mb=3, units=7)
    >>> student.count_params()
    2999997
    """
    require_choice(bits, "bits", (4, 8, 16, 32))
    require_count(units, "units", at_least=1)
    budget = int(require_number(size_mb, "size_mb", above=0) * 1e6 * 8 / bits)
    make, candidates, parameters = _FAMILIES[require_choice(family, "family", _FAMILIES)]
    fitting = [sizes for sizes in candidates(budget, units) if parameters(units, *sizes) <= budget]
    if not fitting:
        raise ValueError(_no_student(family, size_mb, units, bits))
    sizes = max(fitting, key=lambda sizes: parameters(units, *sizes))
    return make(units, *sizes, length=length, **({} if name is None else {"name": name}))


def _ngram_candidates(budget, units):
    """(buckets, width): a row of 32 numbers, or of 64 where there is room for 50,000 of them."""
    width = 64 if budget > 50_000 * 65 + 65 * units else 32
    buckets = (budget - (width + 1) * units) // (width + 1)
    return [(buckets, width)] if 1_000 <= buckets <= 1_000_000 else []


def _ngram_parameters(units, buckets, width):
    return buckets * (width + 1) + (width + 1) * units


def _cnn_candidates(budget, units):
    return [(filters,) for filters in range(8, 1025, 8)]


def _cnn_parameters(units, filters):
    block = 2 * filters + 5 * filters**2 + filters
    return 256 * filters + _BLOCKS * block + 2 * filters + (filters + 1) * units


_FAMILIES = {
    "ngrams": (ngram_student, _ngram_candidates, _ngram_parameters),
    "cnn": (byte_cnn, _cnn_candidates, _cnn_parameters),
}


def _no_student(family, size_mb, units, bits):
    smallest = {"ngrams": _ngram_parameters(units, 1_000, 32), "cnn": _cnn_parameters(units, 8)}[family]
    largest = {"ngrams": _ngram_parameters(units, 1_000_000, 64), "cnn": _cnn_parameters(units, 1024)}[family]
    low, high = (parameters * bits / 8e6 for parameters in (smallest, largest))
    return (
        f"size_mb must be from {low:.3f} to {high:.0f} for the family {family!r} with {units} units in {bits} bits, "
        f"got {size_mb}. Choose another family, or make a student from the teacher: keras_kd.students.fewer_layers."
    )
