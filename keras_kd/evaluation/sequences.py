"""`evaluate_sequences`: translations and other texts of several systems, scored against references."""

import collections.abc
import functools
import statistics
import time

import numpy as np

from keras_kd._checks import require_choice
from keras_kd.evaluation.examples import language_rows
from keras_kd.evaluation.measure import DEFAULT_TEACHER, checked_groups, checked_teacher, errors_naming
from keras_kd.evaluation.result import Evaluation, ModelFacts
from keras_kd.evaluation.scores import OVERALL, all_once, estimates, resampled_scores, scores_of_sums
from keras_kd.evaluation.text_metrics import TEXT_METRICS, TextScores, distinct_ngrams

_TIMED_ONE_BY_ONE = 20  # texts


def evaluate_sequences(
    systems,
    references,
    *,
    sources=None,
    languages=None,
    groups=None,
    metrics=("bleu", "chrf", "distinct_1", "distinct_2"),
    tokenize="13a",
    teacher=DEFAULT_TEACHER,
    bootstrap=1000,
    seed=0,
    latency=True,
):
    """Measure systems that write texts, such as translations, against the same references.

    Scores, overall and for each language:

    - `bleu`, `chrf`, `chrf++`: the corpus scores of sacreBLEU, 0 to 100, with its settings; its signatures are in
      `Evaluation.signatures`. Each has a 95 % interval: statistics of texts are drawn again with replacement within
      each language, the same texts for every system, so that `Evaluation.difference` is the paired bootstrap.
    - `distinct_1`, `distinct_2`: distinct words, or pairs of words, among all of them, a share. Without an interval:
      a resample repeats texts, and so always has fewer distinct words.

    "mean over languages" averages the languages' scores. "overall" is the score of all texts as one corpus.

    A system that is a function is also timed: the median milliseconds for one text (`ModelFacts.latency_ms`), over the
    first 20, and words of the sources per second where it gets all of them at once (`ModelFacts.words_per_second`),
    after a first call that is not counted. It runs in as many threads as it takes: for one,
    `tf.config.threading.set_intra_op_parallelism_threads(1)`, and the same for `inter_op`, before TensorFlow starts.

    Args:
        systems: {name: texts}, a list of str each, one per reference; or {name: function} from a list of sources to
            such a list, for instance a model with its tokenizer.
        references: A str per text, not empty; or a list of them for several references each.
        sources: A list of str, which functions need; else None.
        languages: One string per text, such as "de" or "en-de"; or None.
        groups: {group name: languages}: adds a row "mean of <group>" each.
        metrics: Which of "bleu", "chrf", "chrf++", "distinct_1", "distinct_2"; the first is the main one.
        tokenize: sacreBLEU's tokenizer for BLEU and for distinct words: "13a", "zh", "ja-mecab", "ko-mecab", "char",
            "flores200" and others; or {language: tokenizer} for all languages.
        teacher: The name of the teacher among `systems`, which figures and limits treat as such; or None.
        bootstrap: How many resamples of the texts; 0 for no intervals.
        seed: Of the resamples.
        latency: Whether functions are timed.

    Returns:
        An `Evaluation`, to print, save and plot; its `difference` compares two systems.

    Raises:
        ImportError: sacreBLEU is not installed: the extra `sequences`.
        TypeError: An argument of the wrong type, or texts that are not str.
        ValueError: Other numbers of texts than references; an empty reference; unknown names; a function without
            `sources`.

    Example:

    >>> evaluation = keras_kd.evaluate_sequences(
    ...     {"teacher": ["A dog runs on the beach."], "student": ["The dog runs on a beach."]},
    ...     ["A dog runs on the beach."], bootstrap=0)
    >>> round(evaluation.score("student", "chrf").value, 1)
    61.8

    Sources: Post 2018, "A Call for Clarity in Reporting BLEU Scores", https://arxiv.org/abs/1804.08771; Koehn 2004,
    "Statistical Significance Tests for Machine Translation Evaluation", https://aclanthology.org/W04-3250, for the
    paired bootstrap; Li et al. 2016, https://arxiv.org/abs/1510.03055, for distinct n-grams.
    """
    teacher = checked_teacher(systems, teacher, argument="systems", bootstrap=bootstrap, seed=seed)
    references = _checked_references(references)
    rows_by_language = language_rows(languages, np.ones(len(references), bool))
    groups = checked_groups(groups, rows_by_language)
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    scorers = _scorers(metrics, tokenize, rows_by_language)
    if sources is not None:
        sources = _checked_texts(sources, "sources", len(references))
    elif any(map(callable, systems.values())):
        raise ValueError(
            "sources must be given where a system is a function: the list of texts that it is called with."
        )
    texts, facts = {}, {}
    for name, system in systems.items():
        with errors_naming(name, "systems"):
            texts[name], facts[name] = _texts_of(system, name, sources, len(references), latency)
    table = np.stack([_statistics(scorers, own, references) for own in texts.values()])  # (systems, sums, texts)
    weigh = functools.partial(scores_of_sums, table, scorers[0][0].scores, rows_by_language)
    numbers = max(len(references), len(texts) * table.shape[1])
    resampled = bootstrap and resampled_scores(weigh, resamples=bootstrap, seed=seed, numbers=numbers)
    points = _with_distinct(weigh(all_once), scorers, list(texts.values()), rows_by_language)
    points = {row: {metric: points[row][metric] for metric in metrics} for row in points}
    scores, differences = estimates(list(texts), points, resampled, rows_by_language, groups, len(references))
    return Evaluation(
        models=facts,
        teacher=teacher,
        metrics=metrics,
        languages=tuple(rows_by_language),
        groups=groups,
        bootstrap=int(bootstrap),
        seed=int(seed),
        scores=scores,
        differences=differences,
        signatures=_signatures(scorers),
    )


# What is checked ---------------------------------------------------------------------------------------------------


def _checked_references(references):
    """A list of str for each text."""
    if isinstance(references, (str, bytes)):
        raise TypeError(f"references must be a list with a str for each text, got the single {references!r:.60}.")
    several = [[one] if isinstance(one, str) else one for one in references]
    if not several:
        raise ValueError("references must hold at least one text, got none.")
    for row, own in enumerate(several):
        if not isinstance(own, (list, tuple)) or not all(isinstance(text, str) for text in own):
            raise TypeError(f"references[{row}] must be a str, or a list of str, got {references[row]!r:.60}.")
        if not own or not all(text.strip() for text in own):
            raise ValueError(f"references[{row}] is empty: leave the text out on all sides, or give it a reference.")
    return several


def _checked_texts(texts, argument, count):
    if isinstance(texts, (str, bytes)) or not isinstance(texts, (collections.abc.Sequence, np.ndarray)):
        raise TypeError(f"{argument} must be a list of str, got {type(texts).__name__}.")
    wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"{argument} must be a list of str, got {type(texts[wrong]).__name__} in row {wrong}.")
    if len(texts) != count:
        raise ValueError(f"{argument} must hold a text for each of the {count} references, got {len(texts)}.")
    return [str(text) for text in texts]  # not numpy.str_


def _scorers(metrics, tokenize, rows_by_language):
    """[(`TextScores`, row numbers or None for all)]: one for each tokenizer."""
    if not metrics or len(set(metrics)) < len(metrics):
        raise ValueError(f"metrics must be different names out of {list(TEXT_METRICS)}, got {metrics}.")
    for metric in metrics:
        require_choice(metric, "metrics", TEXT_METRICS)
    if not isinstance(tokenize, dict):
        return [(TextScores(metrics, tokenize), None)]
    if set(tokenize) != set(rows_by_language):
        raise ValueError(
            f"tokenize must name a tokenizer for each language, {list(rows_by_language)}, got {sorted(tokenize)}."
        )
    return [(TextScores(metrics, tokenize[language]), rows) for language, rows in rows_by_language.items()]


# Systems -----------------------------------------------------------------------------------------------------------


def _texts_of(system, name, sources, count, latency):
    """The texts of a system and its `ModelFacts`."""
    argument = f"systems[{name!r}]"
    if not callable(system):
        return _checked_texts(system, argument, count), ModelFacts(None, None, None, "texts")
    milliseconds = _latency_ms(system, sources) if latency else None
    start = time.perf_counter()
    texts = system(sources)
    seconds = time.perf_counter() - start
    speed = sum(len(source.split()) for source in sources) / seconds if latency else None
    return _checked_texts(texts, argument, count), ModelFacts(None, None, milliseconds, "texts", speed)


def _latency_ms(system, sources):
    """The median milliseconds for one text; the first call, which traces and allocates, does not count."""
    system(sources[:1])
    times = []
    for source in sources[:_TIMED_ONE_BY_ONE]:
        start = time.perf_counter()
        system([source])
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


# Scores ------------------------------------------------------------------------------------------------------------


def _statistics(scorers, texts, references):
    """The statistics of one system's texts, (sums, texts)."""
    table = None
    for scorer, rows in scorers:
        rows = np.arange(len(texts)) if rows is None else rows
        found = scorer.statistics([texts[row] for row in rows], [references[row] for row in rows])
        table = np.zeros((len(texts), found.shape[1]), int) if table is None else table
        table[rows] = found
    return table.T


def _with_distinct(points, scorers, systems, rows_by_language):
    """`points`, {row: {metric: (1, systems)}}, with distinct n-grams, which are no function of sums over texts."""
    tokens = []
    for texts in systems:
        own = [None] * len(texts)
        for scorer, rows in scorers:
            for row in range(len(texts)) if rows is None else rows:
                own[row] = scorer.tokens(texts[row])
        tokens.append(own)
    for name, n in scorers[0][0].distinct.items():
        for row, rows in {**rows_by_language, OVERALL: range(len(tokens[0]))}.items():
            points[row][name] = np.array([[distinct_ngrams([own[i] for i in rows], n) for own in tokens]])
    return points


def _signatures(scorers):
    """{metric: signature}; of several tokenizers, all of their signatures."""
    found = [scorer.signatures() for scorer, _ in scorers]
    return {name: "; ".join(dict.fromkeys(one[name] for one in found)) for name in found[0]}
