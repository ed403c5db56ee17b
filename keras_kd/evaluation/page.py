"""An `Evaluation` as one HTML page: tables and figures, for phones too, light and dark, and no other file."""

import html
import io
import re
import string

from keras_kd._extras import needs_extra
from keras_kd._version import __version__
from keras_kd.evaluation.display import (
    GRID,
    INK,
    MUTED,
    PAPER,
    TEACHER_COLOR,
    caption,
    class_f1_metrics,
    cost_headings,
    costs,
    costs_caption,
    draw,
    examples,
    groups_of,
    metric_title,
    score_text,
    shown_metrics,
)
from keras_kd.evaluation.scores import OVERALL
from keras_kd.evaluation.tradeoff import draw_tradeoff

# Colors of the figures that follow the page, light or dark.
_OF_PAGE = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--page)"}
_OF_PAGE |= {TEACHER_COLOR: "var(--teacher)"}

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --page: #ffffff; --ink: #24292f; --muted: #626b76; --line: #e1e4e8; --teacher: #444444; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --ink: #e4e7eb; --muted: #98a1ac; --line: #2f353d; --teacher: #b4bac2; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.3; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.125rem; }
p { margin: .5rem 0; }
.note { color: var(--muted); font-size: .8125rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
th:first-child { position: sticky; left: 0; background: var(--page); padding-left: 0; text-align: left; }
tbody th { min-width: 5rem; max-width: 12rem; overflow-wrap: break-word; }
td.text { text-align: left; }
td small { display: block; color: var(--muted); font-size: .75rem; white-space: nowrap; }
tr.summary td { font-weight: 600; }
tr.summary td small { font-weight: 400; }
svg { display: block; margin-top: 1rem; width: 100%; min-width: 30rem; max-width: 45rem; height: auto; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def html_page(evaluation):
    """The page as a str."""
    metric = evaluation.main_metric
    summary = [f"{examples(evaluation, OVERALL):,} examples"]
    if evaluation.languages:
        summary.append(f"{len(evaluation.languages)} languages")
    if evaluation.teacher is not None:
        summary.append(f"teacher: {evaluation.teacher}")
    parts = [f"<h1>Evaluation</h1>\n<p>{_text(' · '.join(summary))}</p>"]
    parts += ["<h2>Models</h2>", _models_table(evaluation)]
    parts += [_note(caption(evaluation)), _note(costs_caption(evaluation))]
    title = metric_title(metric)
    if all(facts.latency_ms is not None for facts in evaluation.models.values()):
        heading = f"{title}, against latency"
        parts += [
            f"<h2>{_text(heading)}</h2>",
            _figure("tradeoff", draw_tradeoff(evaluation, metric, OVERALL), heading),
        ]
    if evaluation.languages:
        heading = f"{title}, by language"
        parts += [f"<h2>{_text(heading)}</h2>", _languages_table(evaluation, metric)]
        parts.append(_figure("languages", draw(evaluation, metric), heading))
    classes = class_f1_metrics(evaluation)
    if classes:
        rows = [
            (name, [_score(evaluation, model, of_class, OVERALL) for model in evaluation.models])
            for name, of_class in classes.items()
        ]
        parts += ["<h2>F1 by class, %</h2>", _table("class", evaluation.models, rows)]
    parts.append(_note(f"Written by keras_kd {__version__}."))
    return _PAGE.substitute(title="Evaluation: " + _text(", ".join(evaluation.models)), body="\n".join(parts))


def _models_table(evaluation):
    metrics = shown_metrics(evaluation)
    rows = [
        (
            model,
            [
                *(_score(evaluation, model, metric, OVERALL) for metric in metrics),
                *(f"<td>{_text(cost)}</td>" for cost in costs(evaluation, model)),
            ],
        )
        for model in evaluation.models
    ]
    return _table("model", [*map(metric_title, metrics), *cost_headings(evaluation)], rows)


def _languages_table(evaluation, metric):
    headings = [*["group"] * bool(evaluation.groups), "examples", *evaluation.models]
    rows = []
    for row in evaluation.rows:
        cells = [f"<td>{examples(evaluation, row):,}</td>"]
        cells += [_score(evaluation, model, metric, row) for model in evaluation.models]
        if evaluation.groups:
            cells.insert(0, f'<td class="text">{_text(groups_of(evaluation, row))}</td>')
        rows.append((row, cells))
    return _table("language", headings, rows, plain=evaluation.languages)


def _table(corner, headings, rows, plain=None):
    """A table that scrolls sideways under its first column.

    Args:
        corner: the heading of the first column.
        headings: of the others.
        rows: (name, cells) of each row; cells are HTML.
        plain: names of rows that are no summary; None for all.
    """
    lines = ['<div class="scroll"><table>', "<thead><tr>"]
    lines += [f'<th scope="col">{_text(heading)}</th>' for heading in (corner, *headings)]
    lines.append("</tr></thead>\n<tbody>")
    for name, cells in rows:
        style = "" if plain is None or name in plain else ' class="summary"'
        lines.append(f'<tr{style}><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _score(evaluation, model, metric, row):
    value, interval = score_text(evaluation, model, metric, row)
    return f"<td>{value}<small>[{interval}]</small></td>" if interval else f"<td>{value}</td>"


def _figure(name, figure, title):
    """A figure as an element of the page: its text as shapes, its colors those of the page where they have to be."""
    with needs_extra("plot"):
        import matplotlib

    page, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(
        {"svg.hashsalt": name, "svg.fonttype": "path"}
    ):  # with a salt, ids are the same each time
        figure.savefig(page, format="svg", transparent=True, metadata=nothing)
    drawing = page.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for color, of_page in _OF_PAGE.items():
        drawing = re.sub(color, of_page, drawing, flags=re.IGNORECASE)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)  # ids are unique in the page
    head, _, rest = drawing.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'<div class="scroll">{head} role="img" aria-label="{_text(title)}">{rest}</div>'


def _note(text):
    return f'<p class="note">{"<br>".join(map(_text, text.splitlines()))}</p>'


def _text(text):
    return html.escape(str(text))
