"""From point scores and resampled scores to estimates: scores and differences, each with its interval."""

import itertools

import numpy as np

from keras_kd.evaluation.result import Estimate
from keras_kd.evaluation.scores import (
    MEAN_OVER_LANGUAGES,
    MIRRORED,
    OVERALL,
    add_means,
    bootstrap_scores,
    group_mean,
    point_scores,
)

_PERCENTILES = (2.5, 97.5)


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
