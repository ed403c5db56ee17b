"""`evaluate_response_selection`: dialogue models, by the rank of the true response among candidates."""

import collections.abc

import numpy as np

from keras_kd._checks import require_count
from keras_kd.evaluation.examples import language_rows
from keras_kd.evaluation.measure import DEFAULT_TEACHER, checked_groups, checked_teacher, errors_naming
from keras_kd.evaluation.result import Evaluation, ModelFacts
from keras_kd.evaluation.scores import RANKING_METRICS, estimates_of_sums, means


def evaluate_response_selection(
    systems,
    contexts,
    candidates,
    *,
    languages=None,
    groups=None,
    teacher=DEFAULT_TEACHER,
    bootstrap=1000,
    seed=0,
):
    """Measure systems that score the candidate responses of a dialogue, of which the first is the true one.

    Scores, overall and for each language, each with a 95 % interval over dialogues as in `evaluate`:

    - `recall_at_1` (R@1): the share of dialogues whose true response has the highest score.
    - `mrr`: the mean reciprocal rank, mean of 1 / rank of the true response.

    A candidate with the same score as the true response counts as above it: a system that gives all the same score has
    R@1 of 0.

    Args:
        systems: {name: scores}, floats (dialogues, candidates), higher for better ones; or {name: function} of
            `contexts` and `candidates` that returns them.
        contexts: A context per dialogue, as functions take it, usually a str.
        candidates: Lists of responses, one per dialogue, all of one length ≥ 2, the true one first:
            `keras_kd.evaluation.sample_candidates` makes them.
        languages, groups, teacher, bootstrap, seed: As in `evaluate_sequences`, of dialogues.

    Returns:
        An `Evaluation`.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: Lengths that differ, scores of another shape or not finite, unknown names.

    Example:

    >>> scores = np.array([[3.0, 1.0, 2.0], [1.0, 4.0, 0.0]])  # the true response comes first, then second
    >>> evaluation = keras_kd.evaluate_response_selection(
    ...     {"model": scores}, ["Hello!", "How are you?"], [["Hi", "No", "Yes"], ["Fine", "Hi", "No"]], bootstrap=0)
    >>> evaluation.score("model", "recall_at_1").value, evaluation.score("model", "mrr").value
    (0.5, 0.75)

    Source: Lowe et al. 2015, "The Ubuntu Dialogue Corpus", https://arxiv.org/abs/1506.08909; with 20 candidates, Zhang
    et al. 2018, "Personalizing Dialogue Agents", https://arxiv.org/abs/1801.07243.
    """
    teacher = checked_teacher(systems, teacher, argument="systems", bootstrap=bootstrap, seed=seed)
    shape = _checked_shape(contexts, candidates)
    rows_by_language = language_rows(languages, np.ones(shape[0], bool))
    groups = checked_groups(groups, rows_by_language)
    values = []
    for name, system in systems.items():
        with errors_naming(name, "systems"):
            scores = system(contexts, candidates) if callable(system) else system
            ranks = _ranks(_checked_scores(scores, name, shape))
        values.append([ranks == 1, 1 / ranks])
    resampling = {"bootstrap": bootstrap, "seed": seed}
    scores, differences = estimates_of_sums(
        np.array(values), means(RANKING_METRICS), list(systems), rows_by_language, groups, **resampling
    )
    return Evaluation(
        models={name: ModelFacts(None, None, None, "scores") for name in systems},
        teacher=teacher,
        metrics=RANKING_METRICS,
        languages=tuple(rows_by_language),
        groups=groups,
        bootstrap=int(bootstrap),
        seed=int(seed),
        scores=scores,
        differences=differences,
    )


def sample_candidates(responses, *, count=20, languages=None, seed=0):
    """Candidates for `evaluate_response_selection`: each dialogue's own response, then others of its language.

    Args:
        responses: The true response of each dialogue, a list of str.
        count: Candidates per dialogue, the true one among them, ≥ 2.
        languages: One string per dialogue: candidates are of one language; or None.
        seed: Of the choice.

    Returns:
        A list of `count` different str for each dialogue.

    Raises:
        TypeError: `responses` is a single str.
        ValueError: A language has fewer than `count` different responses.

    Example:

    >>> keras_kd.evaluation.sample_candidates(["Hi", "No"], count=2)
    [['Hi', 'No'], ['No', 'Hi']]
    """
    count = require_count(count, "count", at_least=2)
    if isinstance(responses, (str, bytes)):
        raise TypeError(f"responses must be a list of str, got the single {responses!r:.60}.")
    generator, sampled = np.random.default_rng(seed), [None] * len(responses)
    rows_by_language = language_rows(languages, np.ones(len(responses), bool))
    for language, rows in (rows_by_language or {"all": range(len(responses))}).items():
        pool = list(dict.fromkeys(responses[row] for row in rows))
        if len(pool) < count:
            raise ValueError(
                f"responses must hold at least {count} different ones to choose candidates from, got {len(pool)}"
                + (f" in the language {language!r}." if rows_by_language else ".")
            )
        for row in rows:
            drawn = [pool[i] for i in generator.choice(len(pool), count, replace=False)]
            others = [response for response in drawn if response != responses[row]]
            sampled[row] = [responses[row], *others[: count - 1]]
    return sampled


def _checked_shape(contexts, candidates):
    """(dialogues, candidates)."""
    for argument, given in (("contexts", contexts), ("candidates", candidates)):
        if isinstance(given, (str, bytes)) or not isinstance(given, (collections.abc.Sequence, np.ndarray)):
            raise TypeError(f"{argument} must be a list with an entry per dialogue, got {type(given).__name__}.")
    sizes = sorted({len(own) for own in candidates})
    if len(sizes) != 1 or sizes[0] < 2:
        raise ValueError(f"candidates must hold equally many responses for each dialogue, 2 or more, got {sizes}.")
    if len(contexts) != len(candidates):
        raise ValueError(
            f"contexts and candidates must have an entry per dialogue, got {len(contexts)} and {len(candidates)}."
        )
    return len(candidates), sizes[0]


def _checked_scores(scores, name, shape):
    scores = np.asarray(scores)
    if scores.shape != shape or scores.dtype.kind not in "fiu":
        raise ValueError(
            f"systems[{name!r}] must give scores (dialogues, candidates), {shape}, got {scores.dtype} {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"systems[{name!r}] gave NaN or infinite scores.")
    return scores


def _ranks(scores):
    """The rank of the first candidate of each row, 1 for the best; others with its score are above it."""
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(axis=1)
