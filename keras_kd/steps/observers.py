"""The metrics of `compile` that ask for more than labels: for the teacher's logits, or for each example's language."""

import keras

from keras_kd._languages import languages_of
from keras_kd.metrics import FidelityMetric, MacroF1ByLanguage

_OBSERVING = (FidelityMetric, MacroF1ByLanguage)


class Observers:
    """Takes such metrics out of `compile`'s lists, and feeds them.

    `all` are the metrics taken out; `metrics` and `weighted_metrics` what is left, for Keras, None where nothing is;
    `given` both as they were given, for the saved file.
    """

    def __init__(self, metrics=None, weighted_metrics=None):
        self.given = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        unweighted, self.metrics = _taken_out(metrics, "metrics")
        weighted, self.weighted_metrics = _taken_out(weighted_metrics, "weighted_metrics")
        self.all = [*unweighted, *weighted]
        self._is_weighted = [False] * len(unweighted) + [True] * len(weighted)

    @property
    def need_teacher(self):
        """Whether one of them compares with the teacher, which then runs in `evaluate` as well."""
        return any(isinstance(metric, FidelityMetric) for metric in self.all)

    def compare(self, teacher_logits, student_logits, sample_weight):
        """Update those that compare with the teacher, of `(batch, ..., classes)` logits."""
        for metric, is_weighted in self._of(FidelityMetric):
            metric.update_state(teacher_logits, student_logits, sample_weight if is_weighted else None)

    def score(self, x, y, prediction, sample_weight):
        """Update those that go by language."""
        for metric, is_weighted in self._of(MacroF1ByLanguage):
            languages = languages_of(x, metric.language_key, metric.name)
            metric.update_state(y, prediction, sample_weight if is_weighted else None, languages=languages)

    def score_names(self):
        """The logs of those that go by language, and so need labels."""
        return {name for metric, _ in self._of(MacroF1ByLanguage) for name in metric.result()}

    def _of(self, kind):
        """`(metric, whether it gets the sample weights)` of the metrics of a class."""
        return [pair for pair in zip(self.all, self._is_weighted, strict=True) if isinstance(pair[0], kind)]


def _taken_out(metrics, argument):
    """The observing metrics of a list, and the rest of it."""
    listed = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    observing = [metric for metric in listed if isinstance(metric, _OBSERVING)]
    nested = [one.name for one in keras.tree.flatten(metrics) if isinstance(one, _OBSERVING) and one not in observing]
    if nested:
        raise ValueError(f"{argument} must name {nested} in a flat list, not by output: they are for models with one.")
    if not observing:
        return [], metrics
    return observing, [metric for metric in listed if metric not in observing] or None
