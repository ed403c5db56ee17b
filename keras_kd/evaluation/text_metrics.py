"""Scores of texts against references, BLEU and chrF by sacreBLEU, and how varied texts are."""

import collections
import functools

import numpy as np

from keras_kd._checks import require_choice
from keras_kd._extras import needs_extra
from keras_kd._keras_private import sacrebleu_score, sacrebleu_statistics

TEXT_METRICS = ("bleu", "chrf", "chrf++", "distinct_1", "distinct_2")
_DISTINCT = {"distinct_1": 1, "distinct_2": 2}  # words in an n-gram


def sacrebleu_metric(name, tokenize="13a"):
    """sacreBLEU's "bleu", "chrf" or "chrf++"; ImportError that names the extra `sequences` if it is not installed."""
    with needs_extra("sequences"):
        from sacrebleu.metrics import BLEU, CHRF
    if name == "bleu":
        require_choice(tokenize, "tokenize", sorted(BLEU.TOKENIZERS))
        return BLEU(tokenize=tokenize, force=True)
    return CHRF(word_order=2 if name == "chrf++" else 0)


def segment_statistics(metric, texts, references):
    """What each text adds to a sacreBLEU metric's sums, int (texts, sums); `references` is a list of str per text.

    These statistics and `corpus_score` are what sacreBLEU's own paired tests are made of.
    """
    longest = max(map(len, references))
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(longest)]
    return np.array(sacrebleu_statistics(metric, list(texts), streams))


def corpus_score(metric, sums):
    """A sacreBLEU metric's score, 0 to 100, of summed statistics."""
    return sacrebleu_score(metric, [int(number) for number in sums])


def sentence_scores(texts, references, similarity):
    """The sentence score, 0 to 100, of each text with its reference: "chrf", "chrf++" or "bleu", floats (texts,).

    BLEU counts only the n-gram lengths that a text has (effective order), as sacreBLEU advises for sentences.
    """
    metric = sacrebleu_metric(similarity)
    metric.effective_order = True
    pairs = zip(texts, references, strict=True)
    return np.array([metric.sentence_score(text, [reference]).score for text, reference in pairs])


def distinct_ngrams(tokens, n):
    """Distinct n-grams among all n-grams of lists of tokens; 0 where there is none."""
    counts = collections.Counter(
        gram for one in tokens for gram in zip(*(one[start:] for start in range(n)), strict=False)
    )
    return len(counts) / max(1, counts.total())


class TextScores:
    """The scores of one kind of text: texts in languages that are cut into words alike.

    Args:
        metrics: Names out of `TEXT_METRICS`.
        tokenize: sacreBLEU's name of the tokenizer.

    Attributes:
        corpus_metrics: {name: sacreBLEU metric}.
        distinct: {name: words in an n-gram}.
    """

    def __init__(self, metrics, tokenize):
        self.corpus_metrics = {name: sacrebleu_metric(name, tokenize) for name in metrics if name not in _DISTINCT}
        self._sizes = [segment_statistics(one, ["a"], [["a"]]).shape[1] for one in self.corpus_metrics.values()]
        self.distinct = {name: _DISTINCT[name] for name in metrics if name in _DISTINCT}
        self._words = sacrebleu_metric("bleu", tokenize).tokenizer

    def statistics(self, texts, references):
        """The statistics of all corpus metrics side by side, int (texts, sums)."""
        found = [segment_statistics(metric, texts, references) for metric in self.corpus_metrics.values()]
        return np.concatenate(found, axis=1) if found else np.zeros((len(texts), 0), int)

    def scores(self, sums, examples=None):
        """{metric: (...)} of the sums of `statistics`, (..., sums)."""
        parts = np.split(sums, np.cumsum(self._sizes)[:-1], axis=-1)
        return {
            name: np.apply_along_axis(functools.partial(corpus_score, metric), -1, part)
            for (name, metric), part in zip(self.corpus_metrics.items(), parts, strict=False)
        }

    def signatures(self):
        """{metric: signature}, after `statistics`."""
        return {name: metric.get_signature().format() for name, metric in self.corpus_metrics.items()}

    def tokens(self, text):
        """The words of a text, as BLEU counts them."""
        return self._words(text).split()
