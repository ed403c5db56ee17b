"""Scores of several models on the same examples, and how far they would move on other examples (paired bootstrap).

Every score is a function of sums over examples: hits, predictions and labels of each class, how far confidence is from
the truth in each bin, agreements, divergences. One sparse product `weights @ contributions` gives these sums for the
examples themselves (all weights 1) and for a thousand resamples, all models at once.
"""

import functools
import itertools
import typing

import numpy as np
from keras import ops

from keras_kd._extras import needs_extra
from keras_kd.evaluation.predictions import CALIBRATION_BINS
from keras_kd.metrics.classification import calibration_error, class_f1, macro_f1

OVERALL = "overall"
MEAN_OVER_LANGUAGES = "mean over languages"
METRICS = ("accuracy", "macro_f1", "ece", "agreement", "kl")
TEACHER_METRICS = ("agreement", "kl")  # only of models beside a teacher
LOWER_IS_BETTER = ("ece", "kl")
# Noise makes a calibration error larger, once in the sample and once more in each resample: percentiles of resamples
# lie too high by as much as the sample does, so they are mirrored at the sample's value (the basic bootstrap).
MIRRORED = ("ece",)
_DRAWS_AT_A_TIME = 4_000_000  # keeps the resampling weights to some 30 MB
_PERCENTILES = (2.5, 97.5)


class Estimate(typing.NamedTuple):
    """A score or a difference of scores, its 95 % bootstrap interval (None without bootstrap), and the examples."""

    value: float
    low: float | None
    high: float | None
    examples: int

    def __str__(self):
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{interval}"


def class_metric(class_name):
    """The name of the metric "F1 of one class"."""
    return f"f1:{class_name}"


def group_mean(group):
    """The name of the row that averages over a group's languages."""
    return f"mean of {group}"


def point_scores(labels, predictions, rows_by_language, classes, *, class_names=()):
    """Return {row name: {metric: (models,)}} for the overall row and one row per language.

    Args:
        labels: (examples,) integers.
        predictions: a list of `Predictions`, one per model.
        rows_by_language: {language: row numbers}; {} for the overall row alone.
        classes: the number of classes.
        class_names: where given, the overall row holds the F1 of each class as well.
    """
    contributions = _contributions_by_row(labels, predictions, rows_by_language, classes)
    block = _score_block(contributions, predictions, classes, lambda size: np.ones((1, size)), class_names)
    return {row: {metric: values[0] for metric, values in metrics.items()} for row, metrics in block.items()}


def bootstrap_scores(labels, predictions, rows_by_language, classes, *, resamples, seed, class_names=()):
    """Return {row name: {metric: (models, resamples)}}: scores on resampled examples, the same ones for every model.

    Each language is resampled to its own number of examples, with replacement; the overall row is the languages'
    resamples put together (with no languages, all examples are resampled).
    """
    contributions = _contributions_by_row(labels, predictions, rows_by_language, classes)
    generator = np.random.default_rng(seed)
    block_size = max(1, _DRAWS_AT_A_TIME // max(len(labels), _sums(classes)))
    blocks = []
    for start in range(0, resamples, block_size):
        count = min(block_size, resamples - start)
        draw = functools.partial(resampling_weights, resamples=count, generator=generator)
        blocks.append(_score_block(contributions, predictions, classes, draw, class_names))
    return {
        row: {metric: np.concatenate([block[row][metric] for block in blocks]).T for metric in metrics}
        for row, metrics in blocks[0].items()
    }


def _sums(classes):
    """The number of sums over examples that determine the scores of a model."""
    return 3 * classes + CALIBRATION_BINS + 2


def _contributions_by_row(labels, predictions, rows_by_language, classes):
    """{language, or overall: what each of its examples adds to the sums}: sparse, (examples, models x sums)."""
    with needs_extra("evaluate"):
        import scipy.sparse

    models = [scipy.sparse.csr_array(*_contributions(labels, model, classes)) for model in predictions]
    contributions = scipy.sparse.hstack(models, format="csr")
    rows_by_language = rows_by_language or {OVERALL: np.arange(len(labels))}
    return {name: contributions[rows] for name, rows in rows_by_language.items()}


def _contributions(labels, model, classes):
    """What each example adds to the sums of one model, as arguments of a sparse array: ((values, indices), shape).

    Columns: hits, predictions and labels of each class; the gap, right - confidence, in each bin; agreement; KL.
    """
    examples, width = len(labels), _sums(classes)
    zeros, ones, hits = np.zeros(examples), np.ones(examples), model.predicted == labels
    fidelity = [zeros if values is None else values for values in (model.agreed, model.divergence)]
    values = np.concatenate([hits, ones, ones, hits - model.confidence, *fidelity])
    by_class = [model.predicted, classes + model.predicted, 2 * classes + labels]
    columns = np.concatenate([*by_class, 3 * classes + model.bin, np.repeat([width - 2, width - 1], examples)])
    return (values, (np.tile(np.arange(examples), 6), columns)), (examples, width)


def _score_block(contributions_by_row, predictions, classes, draw, class_names):
    """{row: {metric: (resamples, models)}} of the examples weighted by `draw(their number)`, (resamples, examples)."""
    block, total, examples = {}, 0, 0
    for row, contributions in contributions_by_row.items():
        size = contributions.shape[0]
        sums = (draw(size) @ contributions).reshape(-1, len(predictions), _sums(classes))
        block[row] = _scores(sums, size, classes)
        total, examples = total + sums, examples + size  # not the sums of all rows at once, which take gigabytes
    block[OVERALL] = _scores(total, examples, classes)
    if predictions[0].agreed is None:
        block = {row: {m: values for m, values in block[row].items() if m not in TEACHER_METRICS} for row in block}
    if class_names:
        by_class = np.moveaxis(ops.convert_to_numpy(class_f1(*_class_counts(total, classes))), -1, 0)
        block[OVERALL].update(zip(map(class_metric, class_names), by_class, strict=True))
    return block


def resampling_weights(examples, resamples, generator):
    """Return how often each example is drawn in each resample: (resamples, examples), rows sum to `examples`."""
    drawn = generator.integers(examples, size=(resamples, examples))
    drawn += examples * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * examples).reshape(resamples, examples)


def _scores(sums, examples, classes):
    """{metric: (...,)} from sums (..., sums)."""
    return {
        "accuracy": sums[..., :classes].sum(axis=-1) / examples,
        "macro_f1": ops.convert_to_numpy(macro_f1(*_class_counts(sums, classes))[0]),
        "ece": ops.convert_to_numpy(calibration_error(sums[..., 3 * classes : -2], examples)),
        "agreement": sums[..., -2] / examples,
        "kl": sums[..., -1] / examples,
    }


def _class_counts(sums, classes):
    """Hits, predictions and labels of each class, (..., classes) each."""
    return (sums[..., i * classes : (i + 1) * classes] for i in range(3))


def add_means(table, means):
    """Return `table` ({row: {metric: values}}) with one more row per entry of `means` ({row: rows to average})."""
    added = {}
    for name, members in means.items():
        metrics = table[members[0]]
        added[name] = {metric: np.mean([table[member][metric] for member in members], axis=0) for metric in metrics}
    return {**table, **added}


def summarize(predictions, labels, rows_by_language, groups, *, classes, class_names, bootstrap, seed):
    """Return `Evaluation.scores` and `Evaluation.differences`.

    Args:
        predictions: {model name: Predictions}.
        labels: (examples,) integers.
        rows_by_language: {language: row numbers}; {} for the overall row alone.
        groups: {group: languages}.
        classes, class_names, bootstrap, seed: as for `evaluate`.
    """
    means = {group_mean(group): members for group, members in groups.items()}
    if rows_by_language:
        means[MEAN_OVER_LANGUAGES] = tuple(rows_by_language)
    counts = {language: len(rows) for language, rows in rows_by_language.items()} | {OVERALL: len(labels)}
    counts |= {row: sum(counts[member] for member in members) for row, members in means.items()}

    models = list(predictions.values())
    points = add_means(point_scores(labels, models, rows_by_language, classes, class_names=class_names), means)
    resampled = None
    if bootstrap:
        options = {"resamples": bootstrap, "seed": seed, "class_names": class_names}
        resampled = add_means(bootstrap_scores(labels, models, rows_by_language, classes, **options), means)
    return _estimates(list(predictions), points, resampled, counts)


def _estimates(names, points, resampled, counts):
    scores, differences = {}, {}
    for row, metrics in points.items():
        for metric, values in metrics.items():
            moved = None if resampled is None else resampled[row][metric]
            mirrored = metric in MIRRORED
            for i, name in enumerate(names):
                score = _estimate(values[i], None if moved is None else moved[i], counts[row], mirrored)
                scores[name, row, metric] = _as_a_share(score) if mirrored else score
            for i, j in itertools.combinations(range(len(names)), 2):
                moved_apart = None if moved is None else moved[i] - moved[j]
                gap = _estimate(values[i] - values[j], moved_apart, counts[row], mirrored)
                differences[names[i], names[j], row, metric] = gap
    return scores, differences


def _estimate(value, moved, examples, mirrored):
    low, high = (None, None) if moved is None else map(float, np.percentile(moved, _PERCENTILES))
    if mirrored and moved is not None:
        low, high = 2 * float(value) - high, 2 * float(value) - low
    return Estimate(float(value), low, high, examples)


def _as_a_share(score):
    """A score whose mirrored interval is cut off at 0 and 1."""
    if score.low is None:
        return score
    return score._replace(low=min(max(score.low, 0.0), 1.0), high=min(max(score.high, 0.0), 1.0))
