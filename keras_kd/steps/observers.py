"""The metrics of `compile` that ask for more than labels: for the teacher's logits, or for each example's language."""

import keras

from keras_kd._languages import languages_of
from keras_kd.metrics import FidelityMetric, MacroF1ByLanguage


class Observers:
    """Takes such metrics out of `compile`'s lists, and feeds them.

    Args:
        metrics, weighted_metrics: As of `keras.Model.compile`; the weighted ones get the sample weights.

    Attributes:
        metrics, weighted_metrics: What is left, for Keras; None where nothing is.
        given: Both as they were given, for the saved file.
    """

    def __init__(self, metrics=None, weighted_metrics=None):
        self.given = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        self._unweighted, self.metrics = _taken_out(metrics, "metrics")
        self._weighted, self.weighted_metrics = _taken_out(weighted_metrics, "weighted_metrics")

    @property
    def all(self):
        """The metrics, in their order."""
        return [*self._unweighted, *self._weighted]

    @property
    def need_teacher(self):
        """Whether one of them compares with the teacher, which then runs in `evaluate` as well."""
        return bool(self._of(FidelityMetric))

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
        marked = [(metric, False) for metric in self._unweighted] + [(metric, True) for metric in self._weighted]
        return [(metric, is_weighted) for metric, is_weighted in marked if isinstance(metric, kind)]


def _taken_out(metrics, argument):
    """The observing metrics of a list, and the rest of it."""
    present = [metric for metric in keras.tree.flatten(metrics) if isinstance(metric, _OBSERVING)]
    if not present:
        return [], metrics
    listed = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    observing = [metric for metric in listed if isinstance(metric, _OBSERVING)]
    if len(observing) < len(present):
        raise ValueError(
            f"{argument} must name {[metric.name for metric in present]} in a flat list, not by output: they compare "
            "the one output that student and teacher have."
        )
    return observing, [metric for metric in listed if metric not in observing] or None


_OBSERVING = (FidelityMetric, MacroF1ByLanguage)
