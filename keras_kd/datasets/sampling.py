"""How often each language is seen, and how much its examples weigh."""

import collections.abc

import numpy as np
import tensorflow as tf

from keras_kd._checks import require_count, require_number
from keras_kd._languages import LanguageTable
from keras_kd.losses.base import with_rank


def sampling_probabilities(counts, temperature=5.0):
    """How often to draw from each language: `p_l = n_l^(1/τ) / Σ_k n_k^(1/τ)`.

    τ = 1 draws in proportion to size, a large τ from all languages alike. In between, small languages are drawn more
    often than by size, which helps them and costs the large ones a little.

    Args:
        counts: Examples of each language, `{language: n_l > 0}`.
        temperature: τ > 0; 5 is the paper's choice.

    Returns:
        `{language: p_l}`, in the order of `counts`.

    Raises:
        TypeError: A count or the temperature is not a number.
        ValueError: A count is not > 0, `counts` is empty, or the temperature not > 0.

    Example:

    >>> p = keras_kd.datasets.sampling_probabilities({"en": 1_000_000, "sw": 1_000}, temperature=5.0)
    >>> {language: round(share, 3) for language, share in p.items()}
    {'en': 0.799, 'sw': 0.201}

    Reference: Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild: Findings and
    Challenges", 2019 (https://arxiv.org/abs/1907.05019).
    """
    temperature = require_number(temperature, "temperature", above=0.0, hint="1 draws by size, 5 is usual.")
    if not counts:
        raise ValueError("counts must hold at least one language, got none.")
    sizes = [require_number(count, f"counts[{language!r}]", above=0) for language, count in counts.items()]
    logs = np.log(sizes) / temperature
    powers = np.exp(logs - logs.max())  # n^(1/τ) itself overflows at small τ
    return dict(zip(counts, (powers / powers.sum()).tolist(), strict=True))


def sample_by_language(datasets, temperature=5.0, *, seed, counts=None):
    """One endless dataset that draws each example from a language's dataset, with `sampling_probabilities`.

    Each language's dataset is repeated. For `fit`, give `steps_per_epoch`, which continues where the last epoch
    stopped; `take(n)` would begin anew each epoch. Shuffle each language's dataset beforehand
    (`dataset.shuffle(n, seed=...)` shuffles anew at each repetition), and batch the result.

    Args:
        datasets: `{language: tf.data.Dataset}` of single examples of one structure.
        temperature: τ > 0; 1 draws by size, 5 is usual.
        seed: A whole number ≥ 0. The same seed draws the same languages in the same order, each time the dataset is
            read.
        counts: Examples of each language, `{language: n}`, where `dataset.cardinality()` is unknown (after `filter` or
            `from_generator`).

    Returns:
        An infinite `tf.data.Dataset`.

    Raises:
        TypeError: Something is not a `tf.data.Dataset`; datasets of different structure; the seed is no whole number.
        ValueError: No dataset; an empty one; one of unknown or infinite size without a count; counts of an unknown
            language; a negative seed.

    Example:

    >>> english, swahili = (tf.data.Dataset.from_tensor_slices([name] * n) for name, n in (("en", 10_000), ("sw", 10)))
    >>> drawn = keras_kd.datasets.sample_by_language({"en": english, "sw": swahili}, temperature=5.0, seed=0)
    >>> round(float(np.mean([name == b"sw" for name in drawn.take(1000).as_numpy_iterator()])), 1)
    0.2

    Reference: as `sampling_probabilities`.
    """
    seed = require_count(seed, "seed", at_least=0)
    probabilities = sampling_probabilities(_counts(datasets, counts or {}), temperature)
    repeated = [dataset.repeat() for dataset in datasets.values()]
    weights = list(probabilities.values())
    return tf.data.Dataset.sample_from_datasets(repeated, weights, seed, rerandomize_each_iteration=False)


def weigh_by_language(dataset, weights, *, language_key="language", default=None):
    """Multiply each example's sample weight by the weight of its language.

    Args:
        dataset: A `tf.data.Dataset` of `(x, y)` or `(x, y, sample_weight)`, batched or not; y may be None. x is a
            dict; models ignore entries that they have no input for.
        weights: `{language: weight ≥ 0}`. Weights that average 1 over the data keep the scale of the loss.
        language_key: The entry of x with the language: str or integer, `()` or `(batch,)`.
        default: Weight ≥ 0 of languages that are not in `weights`; None: meeting one is an error.

    Returns:
        A `tf.data.Dataset` of `(x, y, sample_weight)`; sample weights are float32 unless the dataset has its own.

    Raises:
        TypeError: `dataset` is no `tf.data.Dataset`; a weight is no number; languages are neither all str nor all int.
        ValueError: A weight is negative; `weights` is empty; elements are of another structure.
        tf.errors.InvalidArgumentError: While reading, a language has no weight.

    Example:

    >>> x = {"text": ["good day", "habari"], "language": ["en", "sw"]}
    >>> dataset = tf.data.Dataset.from_tensor_slices((x, [0, 1])).batch(2)
    >>> weighed = keras_kd.datasets.weigh_by_language(dataset, {"en": 0.5, "sw": 1.5})
    >>> next(iter(weighed))[2].numpy().tolist()
    [0.5, 1.5]
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a tf.data.Dataset, got {type(dataset).__name__}.")
    table = LanguageTable(weights, "weights")
    values = [require_number(weight, f"weights[{name!r}]", at_least=0.0) for name, weight in weights.items()]
    default = None if default is None else require_number(default, "default", at_least=0.0)
    _require_language(dataset.element_spec, language_key)

    def weighed(x, y, sample_weight=None):
        weight = table.lookup(values, x[language_key], default)
        if sample_weight is None:
            return x, y, weight

        def product(given):  # per example, (batch,), or per token, (batch, length)
            return tf.cast(with_rank(weight, given.shape.rank), given.dtype) * given

        return x, y, tf.nest.map_structure(product, sample_weight)

    return dataset.map(weighed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _counts(datasets, counts):
    """Examples of each language, given or counted."""
    if not isinstance(datasets, collections.abc.Mapping) or not datasets:
        raise ValueError(f"datasets must be a dict {{language: tf.data.Dataset}} with at least one, got {datasets!r}.")
    unknown = [language for language in counts if language not in datasets]
    if unknown:
        raise ValueError(f"counts holds {unknown[:5]}, but datasets has {list(datasets)}.")
    found = {}
    for language, dataset in datasets.items():
        if not isinstance(dataset, tf.data.Dataset):
            raise TypeError(f"datasets[{language!r}] must be a tf.data.Dataset, got {type(dataset).__name__}.")
        size = counts.get(language, int(dataset.cardinality()))
        if size in (tf.data.UNKNOWN_CARDINALITY, tf.data.INFINITE_CARDINALITY):
            kind = "an infinite number" if size == tf.data.INFINITE_CARDINALITY else "an unknown number"
            raise ValueError(f"datasets[{language!r}] holds {kind} of examples. Pass counts={{{language!r}: ...}}.")
        found[language] = require_count(size, f"examples of {language!r}", at_least=1)
    return found


def _require_language(spec, language_key):
    """Raise ValueError unless elements are `(x, y[, sample_weight])`, and x holds one language per example."""
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(f"dataset must give (x, y) or (x, y, sample_weight), got elements {spec}.")
    if not isinstance(spec[0], dict) or language_key not in spec[0]:
        found = f"the entries {sorted(spec[0])}" if isinstance(spec[0], dict) else f"{spec[0]}"
        raise ValueError(
            f"x must be a dict with the entry {language_key!r}, the language of each example, got {found}."
        )
    if spec[0][language_key].shape.rank not in (0, 1):
        raise ValueError(f"x[{language_key!r}] must be of shape () or (batch,), got {spec[0][language_key].shape}.")
