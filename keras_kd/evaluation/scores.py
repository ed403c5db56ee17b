"""Scores of several models on the same examples, and how far they would move on other examples (paired bootstrap).

Point scores come from scikit-learn. The bootstrap needs them a thousand times over, so it counts instead: every score
is a function of sums over examples (hits, predictions and labels of each class, agreements, divergences), and one
sparse product `weights @ contributions` gives these sums for many resamples, all models at once.
"""

import numpy as np

OVERALL = "overall"
MEAN_OVER_LANGUAGES = "mean over languages"
METRICS = ("accuracy", "macro_f1", "agreement", "kl")  # the last two only where there is a teacher
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
        from sklearn.metrics import f1_score

        classes = np.arange(len(class_names))
        by_model = [f1_score(labels, a.predicted, labels=classes, average=None, zero_division=0.0) for a in answers]
        table[OVERALL].update(zip(map(class_metric, class_names), np.array(by_model).T, strict=True))
    return table


def _point_row(labels, answers, rows):
    from sklearn.metrics import accuracy_score, f1_score

    labels = labels[rows]
    row = {
        "accuracy": [accuracy_score(labels, a.predicted[rows]) for a in answers],
        "macro_f1": [f1_score(labels, a.predicted[rows], average="macro") for a in answers],
    }
    if answers[0].agreed is not None:
        row["agreement"] = [a.agreed[rows].mean() for a in answers]
        row["kl"] = [a.divergence[rows].mean() for a in answers]
    return {metric: np.array(values, dtype=np.float64) for metric, values in row.items()}


def bootstrap_scores(labels, answers, rows_of, classes, *, resamples, seed, class_names=()):
    """Return {row name: {metric: (models, resamples)}}: scores on resampled examples, the same ones for every model.

    Each language is resampled to its own number of examples, with replacement; the overall row is the languages'
    resamples put together (with no languages, all examples are resampled).
    """
    strata = rows_of or {OVERALL: np.arange(len(labels))}
    sums_of = {name: _contributions(labels, answers, rows, classes) for name, rows in strata.items()}
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _DRAWS_AT_A_TIME // max(len(labels), 3 * classes + 2))
    blocks = []
    for start in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - start)
        blocks.append(_score_block(sums_of, len(answers), classes, count, generator, class_names))
    unknown = ("agreement", "kl") if answers[0].agreed is None else ()
    return {
        row: {m: np.concatenate([block[row][m] for block in blocks]).T for m in metrics if m not in unknown}
        for row, metrics in blocks[0].items()
    }


def _contributions(labels, answers, rows, classes):
    """What each example adds to the sums of each model: sparse, (examples, models x (3 classes + 2))."""
    import scipy.sparse

    return scipy.sparse.hstack([_model_contributions(labels[rows], a, rows, classes) for a in answers], format="csr")


def _model_contributions(labels, answer, rows, classes):
    """Columns: hits, predictions and labels of each class, then agreement and divergence."""
    import scipy.sparse

    examples = len(rows)
    predicted = answer.predicted[rows]
    nothing = np.zeros(examples)
    agreed = nothing if answer.agreed is None else answer.agreed[rows]
    divergence = nothing if answer.divergence is None else answer.divergence[rows]
    ones = np.ones(examples)
    values = np.concatenate([predicted == labels, ones, ones, agreed, divergence])
    last = np.repeat([3 * classes, 3 * classes + 1], examples)
    columns = np.concatenate([predicted, classes + predicted, 2 * classes + labels, last])
    return scipy.sparse.csr_array((values, (np.tile(np.arange(examples), 5), columns)), (examples, 3 * classes + 2))


def _score_block(sums_of, models, classes, resamples, generator, class_names):
    """Score one block of resamples: {row: {metric: (resamples, models)}}."""
    block, total, examples = {}, 0, 0
    for name, contributions in sums_of.items():
        size = contributions.shape[0]
        sums = resampling_weights(size, resamples, generator) @ contributions
        sums = sums.reshape(resamples, models, 3 * classes + 2)
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
    """{metric: (...,)} from sums (..., 3 classes + 2)."""
    f1, occurs = _f1(sums, classes)
    return {
        "accuracy": sums[..., :classes].sum(axis=-1) / examples,
        "macro_f1": f1.sum(axis=-1) / occurs.sum(axis=-1),
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
