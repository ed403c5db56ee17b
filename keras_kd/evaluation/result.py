"""What `evaluate` found: look scores up, compare models, check limits, save, load, print, draw."""

import csv
import dataclasses
import json
import pathlib

import rich.console

from keras_kd._files import written_whole
from keras_kd._tables import plain_text
from keras_kd.evaluation.display import draw, fitting_tables
from keras_kd.evaluation.gate import Gate
from keras_kd.evaluation.page import html_page
from keras_kd.evaluation.scores import OVERALL, TEACHER_METRICS, Estimate, result_rows
from keras_kd.evaluation.tradeoff import draw_tradeoff

_FORMAT = "keras_kd.evaluation.Evaluation/2"
_KEYS = {"scores": ["model", "language", "metric"], "differences": ["model", "other", "language", "metric"]}


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Size, latency and memory of a model, and the kind of its outputs."""

    parameters: int | None  # the number of weights; None where the file does not hold it
    size_bytes: int | None  # on disk; of the weights, for a live `keras.Model`; None where it is not known
    latency_ms: float | None  # median for one example; None if not timed
    outputs: str  # "logits", "probabilities", "vectors", "texts" or "scores"
    words_per_second: float | None = None  # of the sources, all in one call; None if not timed
    # By how much a fresh process grows to load the file and run one example; None if not measured, or a Keras model.
    peak_memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of several models on the same examples, made by `keras_kd.evaluate` and its relatives.

    `print(evaluation)` shows the tables.

    Rows (the argument `language` below) are "overall", each language, "mean over languages" and "mean of <group>".
    """

    models: dict[str, ModelFacts]  # in the order given
    teacher: str | None  # its name among the models
    metrics: tuple[
        str, ...
    ]  # "kl" in nats; "bleu" and "chrf" from 0 to 100; "cosine", "mse", "perplexity"; else shares
    languages: tuple[str, ...]  # sorted; () if none were given
    groups: dict[str, tuple[str, ...]]  # languages by group
    bootstrap: int  # resamples
    seed: int  # of the intervals
    scores: dict[tuple[str, str, str], Estimate]  # by model, row, metric
    differences: dict[tuple[str, str, str, str], Estimate]  # by model, other model, row, metric
    signatures: dict[str, str] = dataclasses.field(default_factory=dict)  # sacreBLEU's, by metric

    @property
    def rows(self):
        """The rows that have scores, "overall" last."""
        return result_rows(self.languages, self.groups)

    @property
    def main_metric(self):
        """The metric that is shown where none is named: "macro_f1", or the first of `metrics`."""
        return "macro_f1" if "macro_f1" in self.metrics else self.metrics[0]

    def score(self, model, metric=None, *, language=OVERALL):
        """Return a model's `Estimate`; `metric` is `main_metric` if it is None, here and below.

        Example:
            >>> evaluation.score("distilled", "accuracy", language="de").value
        """
        metric = self._checked_metric(metric, language, model=model)
        return self.scores[model, language, metric]

    def difference(self, model, other, metric=None, *, language=OVERALL):
        """Return score(model) - score(other) with the 95 % interval of the paired bootstrap.

        Both models are scored on the same resamples, so what makes examples hard for both cancels out. The interval is
        therefore narrower than the two models' own intervals suggest: judge a difference by it, not by their overlap.
        An interval without 0 is a difference that this test set can show.

        Raises:
            ValueError: an unknown model, metric or language.

        Example:
            >>> print(evaluation.difference("distilled", "student alone"))
            0.0820 [0.0713, 0.0931]
        """
        metric = self._checked_metric(metric, language, model=model, other=other)
        return self.differences[model, other, language, metric]

    def check(self, *, fail_under=None, fail_over=None, against=None, max_drop=None):
        """Return the scores that miss a limit: a gate for continuous integration.

        Every model but the teacher is checked; a model without a teacher beside it too.

        Args:
            fail_under: {metric: the least that is allowed}, in the units of `score`. The metric is that of all
                examples, "macro_f1", or of a language (or another of `rows`), "de:macro_f1".
            fail_over: the same for metrics of which less is better, "ece", "kl", "mse": the most that is allowed.
            against: an earlier `Evaluation` of models of the same names on the same examples, such as
                `Evaluation.from_json` reads.
            max_drop: {metric: how much worse than in `against` a score may be}, at least 0, overall and in every
                language. "de:macro_f1" is for one language, in place of what is given for all.

        Returns:
            A tuple of `Failure`, empty where every limit is kept.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an unknown metric or language; a metric in `fail_under` of which less is better, or one in
                `fail_over` of which more is; `against` without `max_drop` or the other way round; a model, language or
                metric that `against` does not have, or has of another number of examples.

        Example:
            >>> for failure in evaluation.check(fail_under={"macro_f1": 0.7, "de:macro_f1": 0.6}):
            ...     print(failure)
            student, de: macro_f1 is 0.5800, 0.0200 below the limit of 0.6000
        """
        if not isinstance(against, (Evaluation, type(None))):
            raise TypeError(
                f"against must be an Evaluation, got {type(against).__name__}. Evaluation.from_json reads one."
            )
        limits = {"fail_under": fail_under, "fail_over": fail_over, "max_drop": max_drop}
        given = {argument: limit for argument, limit in limits.items() if limit is not None}
        return Gate(**given, against=against).failures(self)

    def _checked_metric(self, metric, language, **models):
        metric = self.main_metric if metric is None else metric
        for argument, model in models.items():
            if model not in self.models:
                raise ValueError(f"{argument} must be one of {list(self.models)}, got {model!r}.")
        if language not in self.rows:
            raise ValueError(f"language must be one of {self.rows}, got {language!r}.")
        known = [m for name, row, m in self.scores if name == next(iter(self.models)) and row == language]
        if metric not in known:
            why = " There was no teacher to compare with: give teacher=." if metric in TEACHER_METRICS else ""
            raise ValueError(f"metric must be one of {known}, got {metric!r}.{why}")
        return metric

    def __repr__(self):
        examples = self.score(next(iter(self.models))).examples
        return f"Evaluation(models={list(self.models)}, languages={len(self.languages)}, examples={examples})"

    def __str__(self):
        return plain_text(self)

    def __rich_console__(self, console, options):
        yield from fitting_tables(self, self.main_metric, console, options)

    def print(self, metric=None, *, console=None):
        """Print the tables; the one by language shows `metric`.

        On a narrow console the intervals are left out; `str(evaluation)` always has them.

        Args:
            metric: one of `metrics` that every language has: not the F1 of a class.
            console: a `rich.console.Console`; None for standard output.
        """
        metric = self._checked_metric(metric, self.rows[0])
        console = console or rich.console.Console()
        for table in fitting_tables(self, metric, console, console.options):
            console.print(table)

    def plot(self, path=None, *, metric=None):
        """Draw `metric` by language, one dot per model with its interval; return the `matplotlib.figure.Figure`.

        Languages are sorted by the teacher's score (by the first other model's where the teacher's is fixed, as in
        agreement). With `path` (.png, .svg, .pdf) the figure is also written there.
        """
        metric = self._checked_metric(metric, self.rows[0])
        return _written(draw(self, metric), path)

    def plot_tradeoff(self, path=None, *, metric=None, language=OVERALL):
        """Draw `metric` against the latency of one example, one dot per model; return the `matplotlib.figure.Figure`.

        The area of a dot is the model's size. The dashed line joins the models that no other beats in both: none is as
        fast and as good, and in one of the two better. Up is always better, left is faster.

        Args:
            path: where to write the figure (.png, .svg, .pdf); None: nowhere.
            metric: one of `metrics`. The teacher is left out where its score is fixed, as in agreement.
            language: one of `rows`.

        Raises:
            ImportError: Matplotlib is not installed: the extra `plot`.
            ValueError: an unknown metric or language; a model that was not timed.

        Example:
            >>> evaluation.plot_tradeoff("tradeoff.svg", language="mean over languages")
        """
        figure = draw_tradeoff(self, self._checked_metric(metric, language), language)
        return _written(figure, path)

    def to_html(self, path):
        """Write the tables and figures as one page that needs no other file: for a browser, on a phone, light or dark.

        Raises:
            ImportError: Matplotlib is not installed: the extra `plot`.

        Example:
            >>> evaluation.to_html("report.html")
        """
        page = html_page(self)
        with written_whole(path) as partial:
            partial.write_text(page, encoding="utf-8")

    def to_csv(self, path):
        """Write one line per score: model, language, metric, value, low, high, examples (UTF-8)."""
        with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "language", "metric", *Estimate._fields])
            writer.writerows([*key, *estimate] for key, estimate in self.scores.items())

    def to_json(self, path):
        """Write everything as JSON; `Evaluation.from_json` reads it back, equal to this one."""
        content = {"format": _FORMAT, **vars(self)}
        content["models"] = {name: dataclasses.asdict(facts) for name, facts in self.models.items()}
        for name, keys in _KEYS.items():
            content[name] = _records(content[name], keys)
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def from_json(cls, path):
        """Read what `to_json` wrote. Raises ValueError for any other file."""
        expected = f"{path} must be a file written by Evaluation.to_json ({_FORMAT})"
        try:
            content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # also of bytes that are no UTF-8
            raise ValueError(f"{expected}, but is no JSON: {error}.") from error
        found = content.pop("format", None) if isinstance(content, dict) else None
        if found != _FORMAT:
            raise ValueError(f"{expected}, got format {found!r}.")
        content["models"] = {name: ModelFacts(**facts) for name, facts in content["models"].items()}
        content["metrics"], content["languages"] = tuple(content["metrics"]), tuple(content["languages"])
        content["groups"] = {group: tuple(members) for group, members in content["groups"].items()}
        for name, keys in _KEYS.items():
            content[name] = _estimates(content[name], keys)
        return cls(**content)


def _written(figure, path):
    """The figure, which is also written to `path` where that is not None."""
    if path is not None:
        with written_whole(path) as partial:
            figure.savefig(partial, dpi=160)
    return figure


def _records(estimates, names):
    return [{**dict(zip(names, key, strict=True)), **e._asdict()} for key, e in estimates.items()]


def _estimates(records, names):
    return {tuple(r.pop(name) for name in names): Estimate(**r) for r in records}
