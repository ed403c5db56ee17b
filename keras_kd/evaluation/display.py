"""The tables of an `Evaluation`, drawn with rich, and its figure, drawn with Matplotlib."""

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
}
_NOTHING = "–"
_TEACHER_COLOUR = "#444444"
# Okabe and Ito's colours, which colour-blind readers tell apart; shapes differ as well, for print without colour.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_SHAPES = ("o", "s", "^", "v", "P", "X")
_INK, _PALE_INK, _BAND = "#222222", "#6b6b6b", "#f3f4f6"
_ROW_INCHES, _GAP_ROWS = 0.27, 1.1


def metric_title(metric):
    """The heading of a metric, with its unit."""
    return _TITLES.get(metric) or f"F1 of {metric.removeprefix(class_metric(''))}, %"


def in_display_units(metric, value):
    """Shares in percent; the divergence as it is."""
    return value if metric == "kl" else 100 * value


class Report:
    """The tables as one rich renderable. A table too wide for the console is drawn without intervals and groups."""

    def __init__(self, evaluation, metric="macro_f1"):
        self.evaluation = evaluation
        self.metric = metric

    def __rich_console__(self, console, options):
        whole, short = (_tables(self.evaluation, self.metric, intervals) for intervals in (True, False))
        for full_table, short_table in zip(whole, short, strict=True):
            fits = console.measure(full_table, options=options.update(width=10_000)).maximum <= options.max_width
            yield full_table if fits else short_table


def _tables(evaluation, metric, intervals):
    tables = [_score_table(evaluation, intervals), _cost_table(evaluation, intervals)]
    if evaluation.languages:
        tables.append(_language_table(evaluation, metric, intervals))
    class_metrics = [name for name in evaluation.metrics if name not in _TITLES]
    if class_metrics:
        tables.append(_class_table(evaluation, class_metrics, intervals))
    return tables


def _new_table(title, intervals, caption=None):
    from rich import box
    from rich.table import Table

    padding = (0, 1) if intervals else (0, 0, 0, 1)  # without intervals, room is what is short
    look = {"title_justify": "left", "caption_justify": "left", "title_style": "bold", "caption_style": "dim"}
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=padding, **look)


def _score_table(evaluation, intervals):
    metrics = [metric for metric in evaluation.metrics if metric in _TITLES]
    examples = evaluation.score(next(iter(evaluation.models)), "accuracy").examples
    table = _new_table(f"\n{examples:,} examples", intervals, _caption(evaluation, intervals))
    table.add_column("model", overflow="fold")
    for metric in metrics:
        table.add_column(metric_title(metric).replace(", ", "\n"), justify="right")
    for name in evaluation.models:
        table.add_row(_plain(name), *(_cell(evaluation, name, metric, OVERALL, intervals) for metric in metrics))
    return table


def _cost_table(evaluation, intervals):
    caption = "size: on disk; in memory, of the weights."
    if any(facts.latency_ms is not None for facts in evaluation.models.values()):
        caption += "\nlatency: median for one example."
    table = _new_table("\nsize and latency", intervals, _plain(caption))
    table.add_column("model", overflow="fold")
    for heading in ("params", "size", "latency"):
        table.add_column(heading, justify="right")
    for name, facts in evaluation.models.items():
        milliseconds = _NOTHING if facts.latency_ms is None else f"{facts.latency_ms:.3g} ms"
        parameters = _NOTHING if facts.parameters is None else f"{facts.parameters:,}"
        table.add_row(_plain(name), parameters, readable_size(facts.size_bytes), milliseconds)
    return table


def _language_table(evaluation, metric, intervals):
    table = _new_table(f"\n{metric_title(metric)}, by language", intervals)
    table.add_column("language", overflow="fold")
    show_groups = bool(evaluation.groups) and intervals
    if show_groups:
        table.add_column("group", overflow="fold")
    table.add_column("examples", justify="right")
    for name in evaluation.models:
        table.add_column(_plain(name), justify="right", overflow="fold")
    for row in evaluation.rows:
        groups = ", ".join(group for group, members in evaluation.groups.items() if row in members)
        examples = evaluation.score(next(iter(evaluation.models)), metric, language=row).examples
        cells = [_cell(evaluation, name, metric, row, intervals) for name in evaluation.models]
        is_last_language = row == evaluation.languages[-1]
        style = None if row in evaluation.languages else "bold"
        marks = [_plain(groups)] if show_groups else []
        table.add_row(_plain(row), *marks, f"{examples:,}", *cells, style=style, end_section=is_last_language)
    return table


def _class_table(evaluation, metrics, intervals):
    table = _new_table("\nF1 by class, %", intervals)
    table.add_column("class", overflow="fold")
    for name in evaluation.models:
        table.add_column(_plain(name), justify="right", overflow="fold")
    for metric in metrics:
        cells = [_cell(evaluation, name, metric, OVERALL, intervals) for name in evaluation.models]
        table.add_row(_plain(metric.removeprefix(class_metric(""))), *cells)
    return table


def _caption(evaluation, intervals):
    lines = []
    if evaluation.bootstrap and intervals:
        drawn = "resamples within each language" if evaluation.languages else "resamples of the examples"
        lines.append(f"[low, high]: 95 % bootstrap interval, {evaluation.bootstrap:,} {drawn}.")
    if "ece" in evaluation.metrics:
        corrected = ", and its interval corrects that" if evaluation.bootstrap and intervals else ""
        lines.append(f"ECE: expected calibration error; few examples make it too high{corrected}.")
    if evaluation.teacher is not None:
        lines.append(f"agreement and KL(teacher || model): with {evaluation.teacher!r}.")
    return _plain("\n".join(lines))


def _cell(evaluation, model, metric, row, intervals):
    if model == evaluation.teacher and metric in TEACHER_METRICS:
        return _plain(_NOTHING)
    score = evaluation.score(model, metric, language=row)
    digits = 3 if metric == "kl" else 1
    shown = score[:3] if intervals and evaluation.bootstrap else score[:1]
    value, *bounds = (f"{in_display_units(metric, number):.{digits}f}" for number in shown)
    return _plain(f"{value} [{', '.join(bounds)}]" if bounds else value)


def _plain(text):
    """Text that rich prints as it is, without reading [brackets] as markup."""
    from rich.text import Text

    return Text(text)


def readable_size(size_bytes):
    """Bytes in kB or MB (powers of 1000)."""
    return f"{size_bytes / 1e3:,.1f} kB" if size_bytes < 1e5 else f"{size_bytes / 1e6:,.2f} MB"


def draw(evaluation, metric):
    """Return a `matplotlib.figure.Figure`: rows are languages (in sections by group), dots are models."""
    with needs_extra("plot"):
        from matplotlib.figure import Figure
        from matplotlib.transforms import ScaledTranslation

    sections = _sections(evaluation, metric)
    places, headings, height = _places(sections)
    # The teacher agrees with itself: its score is fixed.
    shown = [m for m in evaluation.models if not (m == evaluation.teacher and metric in TEACHER_METRICS)]
    shown = shown or list(evaluation.models)
    # Rows grow with the number of models, so that their dots do not cover each other.
    row_inches = _ROW_INCHES + 0.035 * max(0, len(shown) - 3)
    figure = Figure(figsize=(8.5, height * row_inches + 1.3), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.add_subplot()
    for model in shown:
        _draw_model(axes, evaluation, model, shown.index(model), len(shown), metric, places)
    _dress(axes, places, headings, height, set(evaluation.languages))
    meaning = " (lines: 95 % bootstrap intervals)" * (evaluation.bootstrap > 0)
    axes.set_xlabel(metric_title(metric) + meaning, color=_INK)
    above_tick_labels = axes.transAxes + ScaledTranslation(0, 0.32, figure.dpi_scale_trans)  # 0.32 inches up
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "bbox_transform": above_tick_labels, "borderaxespad": 0}
    spacing = {"borderpad": 0, "handletextpad": 0.3, "columnspacing": 1.6}
    axes.legend(**place, **spacing, ncols=4, frameon=False, labelcolor=_INK)
    return figure


def _sections(evaluation, metric):
    """[(heading, rows)]: each group with its mean, languages of no group, the summary rows."""
    reference = evaluation.teacher
    if reference is None or metric in TEACHER_METRICS:
        reference = next((m for m in evaluation.models if m != evaluation.teacher), next(iter(evaluation.models)))
    best_first = sorted(
        evaluation.languages,
        key=lambda language: evaluation.score(reference, metric, language=language).value,
        reverse=metric not in LOWER_IS_BETTER,
    )
    sections, placed = [], set()
    for group, members in evaluation.groups.items():
        sections.append((group, [row for row in best_first if row in members] + [group_mean(group)]))
        placed.update(members)
    others = [language for language in best_first if language not in placed]
    if others:
        sections.append(("other languages" if evaluation.groups else "", others))
    summary = [MEAN_OVER_LANGUAGES] * bool(evaluation.languages) + [OVERALL]
    return [*sections, ("all languages" if evaluation.groups else "", summary)]


def _places(sections):
    """[(row name, height on the page)], [(heading, height)] and the height of all, in rows."""
    places, headings, at = [], [], 0.0
    for index, (heading, rows) in enumerate(sections):
        if heading:
            at += 0.3 * (index > 0)
            headings.append((heading, at))
            at += 1
        elif index:
            at += _GAP_ROWS / 2
        for row in rows:
            places.append((row, at))
            at += 1
    return places, headings, at


def _draw_model(axes, evaluation, model, index, models, metric, places):
    is_teacher = model == evaluation.teacher
    students = [name for name in evaluation.models if name != evaluation.teacher]
    style = 0 if is_teacher else students.index(model)
    colour = _TEACHER_COLOUR if is_teacher else _COLOURS[style % len(_COLOURS)]
    shape = "D" if is_teacher else _SHAPES[style % len(_SHAPES)]
    offset = 0.0 if models == 1 else 0.54 * (index / (models - 1) - 0.5)
    heights = [at + offset for _, at in places]
    scores = [evaluation.score(model, metric, language=row) for row, _ in places]
    if evaluation.bootstrap:
        low, high = ([in_display_units(metric, getattr(score, end)) for score in scores] for end in ("low", "high"))
        axes.hlines(heights, low, high, color=colour, linewidth=1.4, alpha=0.55, zorder=2)
    values = [in_display_units(metric, score.value) for score in scores]
    size = 22 if shape == "D" else 26
    look = {"marker": shape, "s": size, "color": colour, "edgecolors": "white", "linewidths": 0.5, "zorder": 3}
    axes.scatter(values, heights, label=model, **look)


def _dress(axes, places, headings, height, languages):
    """Rows named and banded, sections headed, the frame left away."""
    for number, (_, at) in enumerate(places):
        if number % 2 == 0:
            axes.axhspan(at - 0.5, at + 0.5, color=_BAND, linewidth=0, zorder=0)
    for heading, at in headings:
        axes.annotate(
            heading, (0, at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", weight="bold", color=_INK, fontsize=10,
        )  # fmt: skip
    axes.set_yticks([at for _, at in places], [row for row, _ in places], fontsize=9)
    for label, (row, _) in zip(axes.get_yticklabels(), places, strict=True):
        label.set(color=_INK, weight="normal" if row in languages else "bold")
    axes.set_ylim(height - 0.4, -0.6)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.tick_params(axis="x", labeltop=True, labelcolor=_PALE_INK, labelsize=9)
    axes.grid(axis="x", color="#d0d3d8", linewidth=0.7, zorder=1)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
