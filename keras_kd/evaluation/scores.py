"""Scores of several models on the same examples, and how far they would move on other examples (paired bootstrap).

Point scores come from scikit-learn where it has them. The bootstrap needs them a thousand times over, so it counts
instead: every score is a function of sums over examples (hits, predictions and labels of each class, how far
confidence is from the truth in each bin, agreements, divergences), and one sparse product `weights @ contributions`
gives these sums for many resamples, all models at once.
"""

import numpy as np

from keras_kd._extras import needs_extra
from keras_kd.evaluation.outputs import CALIBRATION_BINS

OVERALL = "overall"
MEAN_OVER_LANGUAGES = "mean over languages"
METRICS = ("accuracy", "macro_f1", "ece", "agreement", "kl")
OF_TEACHER = ("agreement", "kl")  # only where there is a teacher, whose own they say nothing of
LOWER_IS_BETTER = ("ece", "kl")
# Noise makes a calibration error larger, once in the sample and once more in each resample: percentiles of resamples
# lie too high by as much as the sample does, so they are mirrored at the sample's value (the basic bootstrap).
MIRRORED = ("ece",)
_DRAWS_AT_A_TIME = 4_000_000  # keeps the resampling weights to some 30 MB


def class_metric(class_name):
    """The name of the metric "F1 of one class"."""
    return f"f1:{class_name}"


def group_mean(group):
    """The name of the row that averages over a group's languages."""
    return f"mean of {group}"


def point_scores(labels, answers, rows_of, class_names=()):
    """Return {row name: {metric: (models,)}} for the overall row and one row per language, from scikit-learn.

    Args:
        labels: (examples,) integers.
        answers: a list of `outputs.Answers`, one per model.
        rows_of: {language: row numbers}; {} for the overall row alone.
        class_names: where given, the overall row holds the F1 of each class as well.
    """
    everything = {OVERALL: np.arange(len(labels)), **rows_of}
    table = {name: _point_row(labels, answers, rows) for name, rows in everything.items()}
    if class_names:
        with needs_extra("evaluate"):
            from sklearn.metrics import f1_score

        classes = np.arange(len(class_names))
        by_model = [f1_score(labels, a.predicted, labels=classes, average=None, zero_division=0.0) for a in answers]
        table[OVERALL].update(zip(map(class_metric, class_names), np.array(by_model).T, strict=True))
    return table


def _point_row(labels, answers, rows):
    with needs_extra("evaluate"):
        from sklearn.metrics import accuracy_score, f1_score

    labels = labels[rows]
    row = {
        "accuracy": [accuracy_score(labels, a.predicted[rows]) for a in answers],
        "macro_f1": [f1_score(labels, a.predicted[rows], average="macro") for a in answers],
        "ece": [_calibration_error(labels, a, rows) for a in answers],
    }
    if answers[0].agreed is not None:
        row["agreement"] = [a.agreed[rows].mean() for a in answers]
        row["kl"] = [a.divergence[rows].mean() for a in answers]
    return {metric: np.array(values, dtype=np.float64) for metric, values in row.items()}


def _calibration_error(labels, answer, rows):
    gaps = np.bincount(answer.bin[rows], weights=_gaps(labels, answer, rows))
    return np.abs(gaps).sum() / len(rows)


def _gaps(labels, answer, rows):
    """How far each example's confidence is from the truth: 1 - confidence where it is right, else -confidence."""
    return (answer.predicted[rows] == labels) - answer.confidence[rows]


def bootstrap_scores(labels, answers, rows_of, classes, *, resamples, seed, class_names=()):
    """Return {row name: {metric: (models, resamples)}}: scores on resampled examples, the same ones for every model.

    Each language is resampled to its own number of examples, with replacement; the overall row is the languages'
    resamples put together (with no languages, all examples are resampled).
    """
    strata = rows_of or {OVERALL: np.arange(len(labels))}
    sums_of = {name: _contributions(labels, answers, rows, classes) for name, rows in strata.items()}
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _DRAWS_AT_A_TIME // max(len(labels), _sums(classes)))
    blocks = []
    for start in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - start)
        blocks.append(_score_block(sums_of, len(answers), classes, count, generator, class_names))
    unknown = OF_TEACHER if answers[0].agreed is None else ()
    return {
        row: {m: np.concatenate([block[row][m] for block in blocks]).T for m in metrics if m not in unknown}
        for row, metrics in blocks[0].items()
    }


def _sums(classes):
    """The number of sums over examples that the scores of a model are functions of."""
    return 3 * classes + CALIBRATION_BINS + 2


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


def _score_block(sums_of, models, classes, resamples, generator, class_names):
    """Score one block of resamples: {row: {metric: (resamples, models)}}."""
    block, total, examples = {}, 0, 0
    for name, contributions in sums_of.items():
        size = contributions.shape[0]
        sums = resampling_weights(size, resamples, generator) @ contributions
        sums = sums.reshape(resamples, models, _sums(classes))
        block[name] = _scores(sums, size, classes)
        total, examples = total + sums, examples + size
    block[OVERALL] = _scores(total, examples, classes)
    if class_names:
        by_class = np.moveaxis(_f1(total, classes)[0], -1, 0)
        block[OVERALL].update(zip(map(class_metric, class_names), by_class, strict=True))
    return block


def resampling_weights(examples, resamples, generator):
    """Return how often each example is drawn in each resample: (resamples, examples), rows sum to `examples`."""
    drawn = generator.integers(examples, size=(resamples, examples))
    drawn += examples * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * examples).reshape(resamples, examples)


def _scores(sums, examples, classes):
    """{metric: (...,)} from sums (..., sums)."""
    f1, occurs = _f1(sums, classes)
    gaps = sums[..., 3 * classes : -2]
    return {
        "accuracy": sums[..., :classes].sum(axis=-1) / examples,
        "macro_f1": f1.sum(axis=-1) / occurs.sum(axis=-1),
        "ece": np.abs(gaps).sum(axis=-1) / examples,
        "agreement": sums[..., -2] / examples,
        "kl": sums[..., -1] / examples,
    }


def _f1(sums, classes):
    """F1 of each class, (..., classes), 0 where it does not occur; and whether it occurs in labels or predictions."""
    hits, predicted, actual = (sums[..., i * classes : (i + 1) * classes] for i in range(3))
    occurs = predicted + actual > 0
    return 2 * hits / np.where(occurs, predicted + actual, 1), occurs


def add_means(table, means):
    """Return `table` ({row: {metric: values}}) with one more row per entry of `means` ({row: rows to average})."""
    added = {}
    for name, members in means.items():
        metrics = table[members[0]]
        added[name] = {metric: np.mean([table[member][metric] for member in members], axis=0) for metric in metrics}
    return {**table, **added}
