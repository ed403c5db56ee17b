"""The tables of an `Evaluation`, drawn with rich, and its figure, drawn with Matplotlib."""

import itertools

import rich.filesize
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from keras_kd._extras import needs_extra
from keras_kd.evaluation.scores import (
    LOWER_IS_BETTER,
    MEAN_OVER_LANGUAGES,
    OVERALL,
    TEACHER_METRICS,
    class_metric,
    group_mean,
)

_TITLES = {
    "accuracy": "accuracy, %",
    "macro_f1": "macro-F1, %",
    "ece": "ECE, %",
    "agreement": "agreement, %",
    "kl": "KL, nats",
    "retrieval": "nearest of its own, %",
    "retrieval_teacher": "nearest of the teacher's, %",
    "cosine": "cosine",
    "mse": "MSE",
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "distinct_1": "distinct-1, %",
    "distinct_2": "distinct-2, %",
    "perplexity": "perplexity",
    "recall_at_1": "R@1, %",
    "mrr": "MRR",
}
_AS_IT_IS = {
    "kl": 3,
    "cosine": 3,
    "mse": 4,
    "bleu": 1,
    "chrf": 1,
    "chrf++": 1,
    "perplexity": 2,
    "mrr": 3,
}  # metrics that are no shares: decimal places
_NOTHING = "–"
INK, MUTED, GRID, PAPER = "#24292f", "#69727d", "#e4e6ea", "#ffffff"  # of figures
TEACHER_COLOR = "#444444"
_TEACHER_LOOK = (TEACHER_COLOR, "D")
# Okabe and Ito's colors, which color-blind readers tell apart; shapes differ as well, for print without color.
_LOOKS = list(zip(("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"), "os^vPX", strict=True))
_ROW_INCHES = 0.27


def metric_title(metric):
    """The heading of a metric, with its unit."""
    return _TITLES.get(metric) or f"F1 of {metric.removeprefix(class_metric(''))}, %"


def in_display_units(metric, value):
    """Shares in percent; others as they are."""
    return value if metric in _AS_IT_IS else 100 * value


def shown_metrics(evaluation):
    """The metrics of a table of models: all but the F1 of each class."""
    return [name for name in evaluation.metrics if name in _TITLES]


def class_f1_metrics(evaluation):
    """{class name: metric}, empty where the classes have no names."""
    names = [name for name in evaluation.metrics if name not in _TITLES]
    return {name.removeprefix(class_metric("")): name for name in names}


def looks(evaluation):
    """{model: (color, shape)}: the teacher's own, the others' in order."""
    others = itertools.cycle(_LOOKS)
    return {name: _TEACHER_LOOK if name == evaluation.teacher else next(others) for name in evaluation.models}


def with_own_scores(evaluation, metric):
    """The models without the teacher where its score is fixed, since it agrees with itself."""
    shown = [m for m in evaluation.models if not (m == evaluation.teacher and metric in TEACHER_METRICS)]
    return shown or list(evaluation.models)


def groups_of(evaluation, row):
    """The names of the groups that a language is in."""
    return ", ".join(group for group, members in evaluation.groups.items() if row in members)


def fitting_tables(evaluation, metric, console, options):
    """The tables as rich renderables; one too wide for the console is drawn without intervals and groups."""
    whole, short = (_tables(evaluation, metric, intervals) for intervals in (True, False))
    for full_table, short_table in zip(whole, short, strict=True):
        fits = console.measure(full_table, options=options.update(width=10_000)).maximum <= options.max_width
        yield full_table if fits else short_table


def _tables(evaluation, metric, intervals):
    models, metrics = evaluation.models, shown_metrics(evaluation)

    def cells(row, names, of_metrics):
        return [_cell(evaluation, name, metric, row, intervals) for name in names for metric in of_metrics]

    tables = [
        _table(
            f"{examples(evaluation, OVERALL):,} examples",
            ["model"],
            [metric_title(name).replace(", ", "\n") for name in metrics],
            [[name, *cells(OVERALL, [name], metrics)] for name in models],
            intervals,
            caption=caption(evaluation, intervals),
        ),
    ]
    rows = [[name, *costs(evaluation, name)] for name in models]
    if any(cell != _NOTHING for _, *cells in rows for cell in cells):
        headings = cost_headings(evaluation)
        tables.append(
            _table("size and latency", ["model"], headings, rows, intervals, caption=costs_caption(evaluation))
        )
    if evaluation.languages:
        rows = [[row, f"{examples(evaluation, row):,}", *cells(row, models, [metric])] for row in evaluation.rows]
        left = ["language"]
        if evaluation.groups and intervals:
            left.append("group")
            for row in rows:
                row.insert(1, groups_of(evaluation, row[0]))
        table = _table(f"{metric_title(metric)}, by language", left, ["examples", *models], rows, intervals)
        languages = len(evaluation.languages)
        table.rows[languages - 1].end_section = True
        for row in table.rows[languages:]:
            row.style = "bold"
        tables.append(table)
    class_metrics = class_f1_metrics(evaluation)
    if class_metrics:
        rows = [[name, *cells(OVERALL, models, [metric])] for name, metric in class_metrics.items()]
        tables.append(_table("F1 by class, %", ["class"], models, rows, intervals))
    return tables


def _table(title, left, right, rows, intervals, caption=""):
    """A table of columns aligned to the left and to the right; [brackets] in a cell are text, not markup."""
    padding = (0, 1) if intervals else (0, 0, 0, 1)  # without intervals, room is what is short
    look = {"title_justify": "left", "caption_justify": "left", "title_style": "bold", "caption_style": "dim"}
    table = Table(title=f"\n{title}", caption=Text(caption), box=SIMPLE_HEAD, padding=padding, **look)
    for justify, headings in (("left", left), ("right", right)):
        for heading in headings:
            table.add_column(Text(heading), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def examples(evaluation, row):
    """How many examples a row has."""
    return evaluation.score(next(iter(evaluation.models)), evaluation.metrics[0], language=row).examples


def caption(evaluation, intervals=True):
    """What the numbers of the table of models are, in lines."""
    lines = []
    if evaluation.bootstrap and intervals:
        drawn = "resamples within each language" if evaluation.languages else "resamples of the examples"
        lines.append(f"[low, high]: 95 % bootstrap interval, {evaluation.bootstrap:,} {drawn}.")
    if "ece" in evaluation.metrics:
        corrected = ", and its interval corrects that" if evaluation.bootstrap and intervals else ""
        lines.append(f"ECE: expected calibration error; few examples make it too high{corrected}.")
    if "retrieval" in evaluation.metrics:
        lines.append("nearest: the nearest target, by cosine, is the text's own.")
    if "mse" in evaluation.metrics:
        lines.append(f"cosine and MSE: with the unit vectors of {evaluation.teacher!r}.")
    if "distinct_1" in evaluation.metrics or "distinct_2" in evaluation.metrics:
        lines.append("distinct: distinct n-grams among all n-grams; a resample repeats texts, so without interval.")
    if "perplexity" in evaluation.metrics:
        lines.append("perplexity: exp of the mean negative log-likelihood per token, lower is better.")
    if "mrr" in evaluation.metrics:
        lines.append("R@1 and MRR: the rank of the true response among the candidates; ties count against it.")
    lines += [f"{metric_title(metric)}: {signature}" for metric, signature in evaluation.signatures.items()]
    if "kl" in evaluation.metrics:
        lines.append(f"agreement and KL(teacher || model): with {evaluation.teacher!r}.")
    return "\n".join(lines)


def cost_headings(evaluation):
    """What `costs` are."""
    optional = ["words/s"] * _any_has(evaluation, "words_per_second")
    return ["params", "size", "latency", *optional, *["memory"] * _any_has(evaluation, "peak_memory_bytes")]


def costs_caption(evaluation):
    """What these are, in lines."""
    lines = ["size: on disk, or of the weights.", "latency: median for one example."]
    if _any_has(evaluation, "peak_memory_bytes"):
        lines.append("memory: by how much a fresh process grows at most, to load the file and run one example.")
    return "\n".join(lines)


def costs(evaluation, model):
    """The costs of a model in words, under `cost_headings`."""
    facts = evaluation.models[model]
    parameters = _NOTHING if facts.parameters is None else f"{facts.parameters:,}"
    size, memory = map(_decimal_bytes, (facts.size_bytes, facts.peak_memory_bytes))
    milliseconds = _NOTHING if facts.latency_ms is None else f"{facts.latency_ms:.3g} ms"
    speed = _NOTHING if facts.words_per_second is None else f"{facts.words_per_second:,.0f}"
    optional = [speed] * _any_has(evaluation, "words_per_second")
    return [parameters, size, milliseconds, *optional, *[memory] * _any_has(evaluation, "peak_memory_bytes")]


def _decimal_bytes(number):
    return _NOTHING if number is None else rich.filesize.decimal(number)


def _any_has(evaluation, fact):
    return any(getattr(facts, fact) is not None for facts in evaluation.models.values())


def _cell(evaluation, model, metric, row, intervals):
    value, interval = score_text(evaluation, model, metric, row)
    return f"{value} [{interval}]" if intervals and interval else value


def score_text(evaluation, model, metric, row):
    """A score as it is shown, and "low, high", empty without bootstrap; for a fixed score, a dash."""
    if model == evaluation.teacher and metric in TEACHER_METRICS and metric != "retrieval_teacher":
        return _NOTHING, ""
    score = evaluation.score(model, metric, language=row)
    digits = _AS_IT_IS.get(metric, 1)
    shown = score[:1] if score.low is None else score[:3]
    value, *bounds = (f"{in_display_units(metric, number):.{digits}f}" for number in shown)
    return value, ", ".join(bounds)


def draw(evaluation, metric):
    """Return a `matplotlib.figure.Figure`: rows are languages (in sections by group), dots are models."""
    with needs_extra("plot"):
        from matplotlib.figure import Figure

    shown, styles = with_own_scores(evaluation, metric), looks(evaluation)
    rows, places, headings, height = [], [], [], 0
    for heading, names in _sections(evaluation, metric, shown):
        if heading:
            headings.append((heading, height))
            height += 1
        rows += names
        places += range(height, height + len(names))
        height += len(names)
    # Rows grow with the number of models, so that their dots do not cover each other.
    row_inches = _ROW_INCHES + 0.035 * max(0, len(shown) - 3)
    figure = Figure(figsize=(8.5, height * row_inches + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for index, model in enumerate(shown):
        color, shape = styles[model]
        offset = 0.54 * (index / (len(shown) - 1) - 0.5) if len(shown) > 1 else 0.0
        heights = [place + offset for place in places]
        scores = [evaluation.score(model, metric, language=row) for row in rows]
        if scores[0].low is not None:
            low, high = ([in_display_units(metric, getattr(score, end)) for score in scores] for end in ("low", "high"))
            axes.hlines(heights, low, high, color=color, linewidth=1.4, alpha=0.55)
        values = [in_display_units(metric, score.value) for score in scores]
        axes.scatter(values, heights, label=model, marker=shape, s=26, color=color, edgecolors=PAPER, linewidths=0.5)
    for heading, place in headings:
        axes.text(0.01, place, heading, transform=axes.get_yaxis_transform(), va="center", weight="bold", color=INK)
    axes.set_yticks(places, rows)
    for label in axes.get_yticklabels():
        label.set_weight("normal" if label.get_text() in evaluation.languages else "bold")
    axes.set_ylim(height - 0.4, -0.6)
    has_intervals = evaluation.score(shown[0], metric).low is not None
    lines = " (lines: 95 % bootstrap intervals)" if has_intervals else ""
    axes.set_xlabel(metric_title(metric) + lines, color=INK)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, labelcolor=INK)
    return figure


def _sections(evaluation, metric, shown):
    """[(heading, rows)]: each group with its mean, languages of no group, the summary rows."""
    reference = evaluation.teacher if evaluation.teacher in shown else shown[0]
    best_first = sorted(
        evaluation.languages,
        key=lambda language: evaluation.score(reference, metric, language=language).value,
        reverse=metric not in LOWER_IS_BETTER,
    )
    grouped = set().union(*evaluation.groups.values())
    others = [language for language in best_first if language not in grouped]
    summary = [MEAN_OVER_LANGUAGES] * bool(evaluation.languages) + [OVERALL]
    if not evaluation.groups:
        return [("", [*others, *summary])]
    sections = [
        (group, [*(row for row in best_first if row in members), group_mean(group)])
        for group, members in evaluation.groups.items()
    ]
    return [*sections, *[("other languages", others)] * bool(others), ("all languages", summary)]
