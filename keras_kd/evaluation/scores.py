"""Scores of several models on the same examples, and how far they would move on other examples (paired bootstrap).

Every score is a function of sums over examples: hits and occurrences of each class, how far confidence is from the
truth in each bin, agreements, divergences. They are taken of the examples themselves (all weights 1) and of a thousand
resamples, of all models at once.
"""

import functools
import itertools
import math
import typing

import numpy as np
from keras import ops

from keras_kd.evaluation.predictions import CALIBRATION_BINS
from keras_kd.metrics.classification import calibration_error, class_f1, macro_f1

OVERALL = "overall"
MEAN_OVER_LANGUAGES = "mean over languages"
METRICS = ("accuracy", "macro_f1", "ece", "agreement", "kl")
EMBEDDING_METRICS = ("retrieval", "retrieval_teacher", "cosine", "mse")
TEACHER_METRICS = ("agreement", "kl", "retrieval_teacher", "cosine", "mse")  # only of models beside a teacher
RANKING_METRICS = ("recall_at_1", "mrr")
LOWER_IS_BETTER = ("ece", "kl", "mse", "perplexity")
# Noise makes a calibration error larger, once in the sample and once more in each resample: percentiles of resamples
# lie too high by as much as the sample does, so they are mirrored at the sample's value (the basic bootstrap).
MIRRORED = ("ece",)
_DRAWS_AT_A_TIME = 4_000_000  # keeps the resampling weights to some 30 MB
_PERCENTILES = (2.5, 97.5)


class Estimate(typing.NamedTuple):
    """A score or a difference of scores, its 95 % bootstrap interval, and the examples.

    The interval is None without bootstrap, and for scores that resamples cannot show: see `evaluate_sequences`.
    """

    value: float
    low: float | None
    high: float | None
    examples: int

    def negated(self):
        bounds = (None, None) if self.low is None else (0.0 - self.high, 0.0 - self.low)  # -x would make -0.0 of 0.0
        return Estimate(0.0 - self.value, *bounds, self.examples)

    def __str__(self):
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{interval}"


def class_metric(class_name):
    return f"f1:{class_name}"


def group_mean(group):
    return f"mean of {group}"


def result_rows(languages, groups):
    """The rows that have scores: languages first, then means, "overall" last."""
    return [*languages, *map(group_mean, groups), *[MEAN_OVER_LANGUAGES] * bool(languages), OVERALL]


def bootstrap_scores(labels, predictions, rows_by_language, classes, *, resamples, seed, class_names=()):
    """Return {row name: {metric: (models, resamples)}}: scores on resampled examples, the same ones for every model.

    Each language is resampled to its own number of examples, with replacement; the overall row is the languages'
    resamples put together. `predictions` is a list of `Predictions`, `rows_by_language` {language: row numbers} or {}.
    """
    weigh = functools.partial(_weighted_scores, labels, predictions, rows_by_language, classes, class_names=class_names)
    return resampled_scores(weigh, resamples=resamples, seed=seed, numbers=max(len(labels), _sums(classes)))


def resampled_scores(weigh, *, resamples, seed, numbers):
    """Return {row name: {metric: (models, resamples)}}.

    Args:
        weigh: a function of `draw` that returns {row name: {metric: (resamples, models)}}, scores of examples weighted
            by `draw(their number)`, `(resamples, examples)`; it draws language by language.
        resamples, seed: how many, and of which generator.
        numbers: that each of them holds, examples or sums, which decides how many are made at once.
    """
    generator, at_a_time = np.random.default_rng(seed), max(1, _DRAWS_AT_A_TIME // numbers)
    blocks = []
    for start in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - start)
        blocks.append(weigh(functools.partial(resampling_weights, resamples=count, generator=generator)))
    return {
        row: {metric: np.concatenate([block[row][metric] for block in blocks]).T for metric in metrics}
        for row, metrics in blocks[0].items()
    }


def scores_of_sums(statistics, score, rows_by_language, draw):
    """Return {row: {metric: (resamples, models)}}, scores that are functions of sums over examples.

    Args:
        statistics: what each example adds to the sums of each model, (models, sums, examples).
        score: a function of the sums, (resamples, models, sums), and the number of examples: {metric: (resamples,
            models)}.
        rows_by_language: {language: row numbers} or {}.
        draw: as `resampled_scores` gives it.
    """
    models, sums, examples = statistics.shape
    flat = np.asarray(statistics, "float64").reshape(-1, examples).T  # sums of whole numbers are exact
    block, total = {}, 0.0
    for row, rows in (rows_by_language or {OVERALL: np.arange(examples)}).items():
        weights = draw(len(rows)).astype("float64")
        weighted = (weights @ flat[rows]).reshape(len(weights), models, sums)
        block[row] = score(weighted, len(rows))
        total = total + weighted
    block[OVERALL] = score(total, examples)
    return block


def means(metrics):
    """The `score` of `scores_of_sums` for metrics that are means over examples, in the order of the sums."""
    return lambda sums, examples: dict(zip(metrics, np.moveaxis(sums / examples, -1, 0), strict=True))


def resampling_weights(examples, resamples, generator):
    """Return how often each example is drawn in each resample: (resamples, examples), rows sum to `examples`."""
    drawn = generator.integers(examples, size=(resamples, examples))
    return np.stack([np.bincount(rows, minlength=examples) for rows in drawn])


def _sums(classes):
    """The number of a model's sums."""
    return 2 * classes + CALIBRATION_BINS + 2


def _entries(labels, predictions, classes):
    """What each example adds to the sums of all models, (examples, entries): the positions of the sums, the numbers.

    A model's sums: hits by class; predictions and labels by class; right - confidence by bin; agreements; divergences.
    """
    positions, numbers, width = [], [], _sums(classes)
    zeros, ones = np.zeros(len(labels), int), np.ones(len(labels), int)
    for index, model in enumerate(predictions):
        hits = model.predicted == labels
        by_class = [labels, classes + model.predicted, classes + labels]
        columns = [*by_class, 2 * classes + model.bin, zeros + width - 2, zeros + width - 1]
        positions += [index * width + column for column in columns]
        fidelity = [zeros if values is None else values for values in (model.agreed, model.divergence)]
        numbers += [hits, ones, ones, hits - model.confidence, *fidelity]
    return np.stack(positions, axis=1), np.stack(numbers, axis=1)


def _weighted_scores(labels, predictions, rows_by_language, classes, draw, class_names=()):
    """{row: {metric: (resamples, models)}} of the examples weighted by `draw(their number)`, (resamples, examples)."""
    positions, numbers = _entries(labels, predictions, classes)
    shape = (len(predictions), _sums(classes))
    block, total = {}, 0
    for row, rows in (rows_by_language or {OVERALL: np.arange(len(labels))}).items():
        where, what = positions[rows].ravel(), numbers[rows]
        sums = [np.bincount(where, (what * w[:, None]).ravel(), math.prod(shape)) for w in draw(len(rows))]
        sums = np.reshape(sums, (-1, *shape))
        block[row] = _scores(sums, len(rows), classes)
        total = total + sums  # not the sums of all rows at once, which take gigabytes
    block[OVERALL] = _scores(total, len(labels), classes)
    if predictions[0].agreed is None:
        block = {row: {m: values for m, values in block[row].items() if m not in TEACHER_METRICS} for row in block}
    if class_names:
        by_class = np.moveaxis(ops.convert_to_numpy(class_f1(*_class_counts(total, classes))), -1, 0)
        block[OVERALL].update(zip(map(class_metric, class_names), by_class, strict=True))
    return block


def _scores(sums, examples, classes):
    """{metric: (...,)} from sums (..., sums)."""
    return {
        "accuracy": sums[..., :classes].sum(axis=-1) / examples,
        "macro_f1": ops.convert_to_numpy(macro_f1(*_class_counts(sums, classes))[0]),
        "ece": ops.convert_to_numpy(calibration_error(sums[..., 2 * classes : -2], examples)),
        "agreement": sums[..., -2] / examples,
        "kl": sums[..., -1] / examples,
    }


def _class_counts(sums, classes):
    """Hits and occurrences of each class, (..., classes) each."""
    return sums[..., :classes], sums[..., classes : 2 * classes]


def add_means(table, means):
    """Return `table` ({row: {metric: values}}) with one more row per entry of `means` ({row: rows to average})."""
    added = {}
    for name, members in means.items():
        metrics = table[members[0]]
        added[name] = {metric: np.mean([table[member][metric] for member in members], axis=0) for metric in metrics}
    return {**table, **added}


def summarize(predictions, labels, rows_by_language, groups, *, classes, class_names, bootstrap, seed):
    """Return `Evaluation.scores` and `Evaluation.differences`; `predictions` is {model name: Predictions}."""
    data = (labels, list(predictions.values()), rows_by_language, classes)
    points = _weighted_scores(*data, all_once, class_names)
    resampled = bootstrap and bootstrap_scores(*data, resamples=bootstrap, seed=seed, class_names=class_names)
    return estimates(list(predictions), points, resampled, rows_by_language, groups, len(labels))


def all_once(examples):
    """The weights of the examples themselves: each once."""
    return np.ones((1, examples))


def estimates(names, points, resampled, rows_by_language, groups, examples):
    """Return `Evaluation.scores` and `Evaluation.differences`, with rows for the means.

    Args:
        names: of the models.
        points: {row name: {metric: (1, models)}}.
        resampled: as `resampled_scores` returns it, for some metrics or all; or something false.
        rows_by_language: {language: row numbers} or {}.
        groups: {group: languages}.
        examples: how many there are.
    """
    means = {group_mean(group): members for group, members in groups.items()}
    if rows_by_language:
        means[MEAN_OVER_LANGUAGES] = tuple(rows_by_language)
    counts = {language: len(rows) for language, rows in rows_by_language.items()} | {OVERALL: examples}
    counts |= {row: sum(counts[member] for member in members) for row, members in means.items()}
    points = add_means(points, means)
    resampled = resampled and add_means(resampled, means)
    scores, differences, unmoved = {}, {}, np.zeros((len(names), 0))
    for row, metrics in points.items():
        for metric, (values,) in metrics.items():
            moved = resampled[row].get(metric, unmoved) if resampled else unmoved
            for i, name in enumerate(names):
                scores[name, row, metric] = _estimate(values[i], moved[i], counts[row], metric, least=0.0, most=1.0)
            for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
                gap = _estimate(values[i] - values[j], moved[i] - moved[j], counts[row], metric)
                differences[names[i], names[j], row, metric] = gap
                differences[names[j], names[i], row, metric] = gap.negated()
    return scores, differences


def estimates_of_sums(table, score, names, rows_by_language, groups, *, bootstrap, seed):
    """What `estimates` returns for scores that are functions of sums over examples, with paired resamples.

    Args:
        table: What each example adds to each sum, `(models, sums, examples)`.
        score: As in `scores_of_sums`.
        names: Of the models.
        rows_by_language, groups: As in `estimates`.
        bootstrap, seed: Number of resamples, 0 for none, and their seed.
    """
    examples = table.shape[-1]
    weigh = functools.partial(scores_of_sums, table, score, rows_by_language)
    resampled = bootstrap and resampled_scores(weigh, resamples=bootstrap, seed=seed, numbers=examples)
    return estimates(names, weigh(all_once), resampled, rows_by_language, groups, examples)


def _estimate(value, moved, examples, metric, least=-math.inf, most=math.inf):
    """The `Estimate` with the interval of the resampled values `moved`; a mirrored one is cut off at the bounds."""
    if not len(moved):
        return Estimate(float(value), None, None, examples)
    low, high = np.percentile(moved, _PERCENTILES)
    if metric in MIRRORED:
        low, high = np.clip([2 * value - high, 2 * value - low], least, most)
    return Estimate(float(value), float(low), float(high), examples)
