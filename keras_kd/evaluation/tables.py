"""The tables of an `Evaluation`, drawn with rich."""

from keras_kd.evaluation.scores import OVERALL, TEACHER_METRICS, class_metric

_TITLES = {
    "accuracy": "accuracy, %",
    "macro_f1": "macro-F1, %",
    "ece": "ECE, %",
    "agreement": "agreement, %",
    "kl": "KL, nats",
}
_NOTHING = "–"


def metric_title(metric):
    """The heading of a metric, with its unit."""
    return _TITLES.get(metric) or f"F1 of {metric.removeprefix(class_metric(''))}, %"


def in_display_units(metric, value):
    """Shares in percent; the divergence as it is."""
    return value if metric == "kl" else 100 * value


def tells_nothing_of_teacher(metric):
    """Whether the teacher's own score is fixed: it agrees with itself."""
    return metric in TEACHER_METRICS


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
        tables.append(_table_of_rows(evaluation, metric, intervals))
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


def _table_of_rows(evaluation, metric, intervals):
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
    if model == evaluation.teacher and tells_nothing_of_teacher(metric):
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
