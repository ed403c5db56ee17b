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


def point_scores(labels, answers, rows_of, classes, *, class_names=()):
    """Return {row name: {metric: (models,)}} for the overall row and one row per language.

    Args:
        labels: (examples,) integers.
        answers: a list of `Answers`, one per model.
        rows_of: {language: row numbers}; {} for the overall row alone.
        classes: the number of classes.
        class_names: where given, the overall row holds the F1 of each class as well.
    """
    contributions = _contributions_by_row(labels, answers, rows_of, classes)
    block = _score_block(contributions, len(answers), classes, lambda size: np.ones((1, size)), class_names)
    return {row: {metric: values[0] for metric, values in metrics.items()} for row, metrics in _known(block, answers)}


def _gaps(labels, answer, rows):
    """How far each example's confidence is from the truth: 1 - confidence where it is right, else -confidence."""
    return (answer.predicted[rows] == labels) - answer.confidence[rows]


def bootstrap_scores(labels, answers, rows_of, classes, *, resamples, seed, class_names=()):
    """Return {row name: {metric: (models, resamples)}}: scores on resampled examples, the same ones for every model.

    Each language is resampled to its own number of examples, with replacement; the overall row is the languages'
    resamples put together (with no languages, all examples are resampled).
    """
    contributions = _contributions_by_row(labels, answers, rows_of, classes)
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _DRAWS_AT_A_TIME // max(len(labels), _sums(classes)))
    blocks = []
    for start in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - start)
        draw = functools.partial(resampling_weights, resamples=count, generator=generator)
        blocks.append(dict(_known(_score_block(contributions, len(answers), classes, draw, class_names), answers)))
    return {
        row: {metric: np.concatenate([block[row][metric] for block in blocks]).T for metric in metrics}
        for row, metrics in blocks[0].items()
    }


def _known(block, answers):
    """The rows of a block, without what only a teacher makes known where there is none."""
    unknown = TEACHER_METRICS if answers[0].agreed is None else ()
    for row, metrics in block.items():
        yield row, {metric: values for metric, values in metrics.items() if metric not in unknown}


def _sums(classes):
    """The number of sums over examples that the scores of a model are functions of."""
    return 3 * classes + CALIBRATION_BINS + 2


def _contributions_by_row(labels, answers, rows_of, classes):
    """{language, or overall: what each of its examples adds to the sums of each model}."""
    rows_of = rows_of or {OVERALL: np.arange(len(labels))}
    return {name: _contributions(labels, answers, rows, classes) for name, rows in rows_of.items()}


def _contributions(labels, answers, rows, classes):
    """What each example adds to the sums of each model: sparse, (examples, models x sums)."""
    with needs_extra("evaluate"):
        import scipy.sparse

    return scipy.sparse.hstack([_model_contributions(labels[rows], a, rows, classes) for a in answers], format="csr")


def _model_contributions(labels, answer, rows, classes):
    """Columns: hits, predictions and labels of each class; the gap in each bin; agreement and divergence."""
    with needs_extra("evaluate"):
        import scipy.sparse

    examples = len(rows)
    predicted = answer.predicted[rows]
    nothing = np.zeros(examples)
    agreed = nothing if answer.agreed is None else answer.agreed[rows]
    divergence = nothing if answer.divergence is None else answer.divergence[rows]
    ones = np.ones(examples)
    values = np.concatenate([predicted == labels, ones, ones, _gaps(labels, answer, rows), agreed, divergence])
    by_class = [predicted, classes + predicted, 2 * classes + labels]
    width = _sums(classes)
    columns = np.concatenate([*by_class, 3 * classes + answer.bin[rows], np.repeat([width - 2, width - 1], examples)])
    return scipy.sparse.csr_array((values, (np.tile(np.arange(examples), 6), columns)), (examples, width))


def _score_block(contributions_by_row, models, classes, draw, class_names):
    """{row: {metric: (resamples, models)}} of the examples weighted by `draw(their number)`, (resamples, examples)."""
    block, total, examples = {}, 0, 0
    for name, contributions in contributions_by_row.items():
        size = contributions.shape[0]
        sums = draw(size) @ contributions
        sums = sums.reshape(len(sums), models, _sums(classes))
        block[name] = _scores(sums, size, classes)
        total, examples = total + sums, examples + size
    block[OVERALL] = _scores(total, examples, classes)
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


def summarize(answer_of, labels, rows_of, groups, *, classes, class_names, bootstrap, seed):
    """Return `Evaluation.scores` and `Evaluation.differences`.

    Args:
        answer_of: {model name: outputs.Answers}.
        labels: (examples,) integers.
        rows_of: {language: row numbers}; {} for the overall row alone.
        groups: {group: languages}.
        classes, class_names, bootstrap, seed: as for `evaluate`.
    """
    means = {group_mean(group): members for group, members in groups.items()}
    if rows_of:
        means[MEAN_OVER_LANGUAGES] = tuple(rows_of)
    counts = {language: len(rows) for language, rows in rows_of.items()} | {OVERALL: len(labels)}
    counts |= {row: sum(counts[member] for member in members) for row, members in means.items()}

    answers = list(answer_of.values())
    points = add_means(point_scores(labels, answers, rows_of, classes, class_names=class_names), means)
    resampled = None
    if bootstrap:
        options = {"resamples": bootstrap, "seed": seed, "class_names": class_names}
        resampled = add_means(bootstrap_scores(labels, answers, rows_of, classes, **options), means)
    return _estimates(list(answer_of), points, resampled, counts)


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
