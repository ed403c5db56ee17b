"""Limits that scores must keep: `Evaluation.check`, and the exit status of `keras-kd compare`."""

import dataclasses
import typing

from keras_kd._checks import require_number
from keras_kd.evaluation.scores import LOWER_IS_BETTER, OVERALL, class_metric, result_rows

_ROUNDING = 1e-9  # 0.93 - 0.06 is a little more than 0.87


class Failure(typing.NamedTuple):
    """A score that misses its limit, in the units of `Evaluation.score`.

    `str` says by how much: "student, de: macro_f1 is 0.5800, 0.0200 below the limit of 0.6000".
    """

    model: str
    language: str  # the row: a language, "overall", "mean over languages" or "mean of <group>"
    metric: str
    value: float
    limit: float  # the least that was allowed; where lower is better, the most
    earlier: float | None  # the earlier score from which the limit was counted; None where the limit was given itself

    def __str__(self):
        missing = f"{abs(self.value - self.limit):.4f} {'above' if self.metric in LOWER_IS_BETTER else 'below'}"
        earlier = "" if self.earlier is None else f", {self.earlier:.4f} before"
        where = f"{self.model}, {self.language}: {self.metric}"
        return f"{where} is {self.value:.4f}, {missing} the limit of {self.limit:.4f}{earlier}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an `Evaluation` holds, as far as it is known before any model runs."""

    models: tuple[str, ...]
    teacher: str | None
    metrics: tuple[str, ...]
    languages: tuple[str, ...]
    examples: dict[str, int]  # of each row

    @classmethod
    def of_data(cls, models, teacher, metrics, rows_by_language, examples):
        """Of models that are not yet measured; `rows_by_language` is {language: row numbers}."""
        counts = {language: len(rows) for language, rows in rows_by_language.items()}
        rows = result_rows(rows_by_language, ())
        return cls(tuple(models), teacher, metrics, tuple(counts), {row: counts.get(row, examples) for row in rows})

    @classmethod
    def of_evaluation(cls, evaluation):
        (first, *_) = evaluation.models
        examples = {row: evaluation.scores[first, row, evaluation.metrics[0]].examples for row in evaluation.rows}
        return cls(tuple(evaluation.models), evaluation.teacher, evaluation.metrics, evaluation.languages, examples)


@dataclasses.dataclass(frozen=True)
class Gate:
    """The arguments of `Evaluation.check`, which can be checked before there is an evaluation."""

    fail_under: dict[str, float] = dataclasses.field(default_factory=dict)
    fail_over: dict[str, float] = dataclasses.field(default_factory=dict)
    max_drop: dict[str, float] = dataclasses.field(default_factory=dict)
    against: object = None  # an `Evaluation`

    def __post_init__(self):
        for argument in ("fail_under", "fail_over", "max_drop"):
            limits = getattr(self, argument)
            if not isinstance(limits, dict):
                raise TypeError(f"{argument} must be a dict of metric to number, got {type(limits).__name__}.")
            for key, limit in limits.items():
                require_number(limit, f"{argument}[{key!r}]", at_least=0 if argument == "max_drop" else None)
        if (self.against is None) != (not self.max_drop):
            raise ValueError("against and max_drop must come together: an earlier evaluation, and what may be lost.")

    def __bool__(self):
        return bool(self.fail_under or self.fail_over or self.max_drop)

    def limits(self, plan):
        """`[(model, row, metric, limit, earlier score or None)]`.

        Raises:
            ValueError: a metric or language that the `Plan` does not have; a score that `against` does not have, or has
                of another number of examples.
        """
        given = {**_located(self.fail_under, "fail_under", plan), **_located(self.fail_over, "fail_over", plan)}
        drops = _located(self.max_drop, "max_drop", plan)
        limits = []
        for model in [model for model in plan.models if model != plan.teacher] or plan.models:
            limits += [(model, *where, limit, None) for where, limit in given.items()]
            for (row, metric), drop in drops.items():
                earlier = self._earlier(model, row, metric, plan.examples[row])
                limits.append((model, row, metric, earlier + (drop if metric in LOWER_IS_BETTER else -drop), earlier))
        return limits

    def failures(self, evaluation):
        """The scores that miss their limit, a tuple of `Failure`, in the order of the models."""
        found = []
        for model, row, metric, limit, earlier in self.limits(Plan.of_evaluation(evaluation)):
            value = evaluation.scores[model, row, metric].value
            missing = value - limit if metric in LOWER_IS_BETTER else limit - value
            if missing > _ROUNDING:
                found.append(Failure(model, row, metric, value, limit, earlier))
        return tuple(found)

    def _earlier(self, model, row, metric, examples):
        """The score that `against` has, of as many examples."""
        anew = "Measure it anew on these examples, or name the models as they are called there."
        score = self.against.scores.get((model, row, metric))
        if score is None:
            names = list(self.against.models)
            known = f"its rows are {self.against.rows}" if model in names else f"its models are {names}"
            raise ValueError(f"against must hold {metric!r} of {model!r} for {row!r}, but {known}. {anew}")
        if score.examples != examples:
            raise ValueError(
                f"against must be measured on the same examples, but has {score.examples:,} for {row!r}, where there "
                f"are {examples:,} now. {anew}"
            )
        return score.value


def _located(limits, argument, plan):
    """`{(row, metric): number}` of limits by "metric" or "language:metric"; the latter replaces the former."""
    located = {}
    for key in sorted(limits, key=lambda key: key not in plan.metrics):
        row, metric = _row_and_metric(key, argument, plan)
        if argument != "max_drop":
            _require_direction(key, argument, metric)
        everywhere = [OVERALL] if _is_of_class(metric) else [*plan.languages, OVERALL]
        rows = [row] if row else everywhere if argument == "max_drop" else [OVERALL]
        located.update(((each, metric), limits[key]) for each in rows)
    return located


def _row_and_metric(key, argument, plan):
    """The row, None where none is named, and the metric."""
    if key in plan.metrics:
        return None, key
    by_language = [metric for metric in plan.metrics if not _is_of_class(metric)]
    for row in plan.examples:
        for metric in by_language:
            if key == f"{row}:{metric}":
                return row, metric
    rows = list(plan.examples)
    raise ValueError(
        f"{argument} must name a metric, one of {list(plan.metrics)}, or a language and one of {by_language}, as in "
        f"{f'{rows[0]}:{by_language[0]}'!r}, where the language is one of {rows}; got {key!r}."
    )


def _require_direction(key, argument, metric):
    if (metric in LOWER_IS_BETTER) != (argument == "fail_over"):
        other, better = ("fail_over", "lower") if argument == "fail_under" else ("fail_under", "higher")
        raise ValueError(f"{argument} must not hold {key!r}, which is better the {better} it is: give it to {other}.")


def _is_of_class(metric):
    return metric.startswith(class_metric(""))
