"""The figure of quality against latency: the frontier of models that no other beats in both."""

import itertools
import math
import textwrap
import typing

import rich.filesize

from keras_kd._extras import needs_extra
from keras_kd.evaluation.display import GRID, INK, MUTED, PAPER, in_display_units, looks, metric_title, with_own_scores
from keras_kd.evaluation.label_places import distance, place_labels
from keras_kd.evaluation.scores import LOWER_IS_BETTER, OVERALL

_LARGEST, _SMALLEST = 1500, 30  # areas of dots, square points; the smallest can still be seen
_NAME_WIDTH = 26  # characters in a line
_FAR = 12  # points from dot to label, from which a line joins them


class Point(typing.NamedTuple):
    """A model in the figure; scores in the units that are shown, intervals None without bootstrap."""

    model: str
    latency_ms: float
    value: float
    low: float | None
    high: float | None
    size_bytes: int | None
    on_frontier: bool


def tradeoff_points(evaluation, metric, language):
    """The `Point` of each model that has a score of its own, in the order of the models."""
    models = with_own_scores(evaluation, metric)
    untimed = [model for model in models if evaluation.models[model].latency_ms is None]
    if untimed:
        raise ValueError(
            f"plot_tradeoff needs the latency of every model, but {untimed} were not timed; measure with latency=True."
        )
    scores = [evaluation.score(model, metric, language=language) for model in models]
    facts = [evaluation.models[model] for model in models]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = frontier([each.latency_ms for each in facts], [sign * score.value for score in scores])
    return [
        Point(
            model,
            fact.latency_ms,
            *(None if number is None else in_display_units(metric, number) for number in score[:3]),
            fact.size_bytes,
            on_frontier,
        )
        for model, fact, score, on_frontier in zip(models, facts, scores, best, strict=True)
    ]


def frontier(costs, qualities):
    """Whether each point is on the Pareto frontier: no other is as cheap and as good, and in one of the two better."""
    points = list(zip(costs, qualities, strict=True))
    return [
        not any(cost <= own_cost and quality >= own and (cost, quality) != (own_cost, own) for cost, quality in points)
        for own_cost, own in points
    ]


def draw_tradeoff(evaluation, metric, language):
    """Return a `matplotlib.figure.Figure`: a dot per model, its area the size, and the frontier as a line."""
    points = tradeoff_points(evaluation, metric, language)
    with needs_extra("plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    _set_scales(axes, points, metric)
    _draw_frontier(axes, points)
    areas, styles = _areas(points), looks(evaluation)
    for point in sorted(points, key=lambda point: -(point.size_bytes or 0)):  # small dots on large ones
        color, _ = styles[point.model]
        if point.low is not None:
            axes.vlines(point.latency_ms, point.low, point.high, color=color, linewidth=1.2, alpha=0.5, zorder=1)
        look = {"facecolors": color, "edgecolors": PAPER, "linewidths": 0.8}
        if not point.on_frontier:
            look = {"facecolors": PAPER, "edgecolors": color, "linewidths": 1.8}
        axes.scatter(point.latency_ms, point.value, s=areas[point.model], label=point.model, zorder=2, **look)
    where = "" if language == OVERALL else f", {language}"
    lower = ", lower is better" if metric in LOWER_IS_BETTER else ""
    axes.set_ylabel(metric_title(metric) + where + lower, color=INK)
    axes.set_xlabel("latency of one example, ms", color=INK)
    _draw_labels(figure, axes, points, areas)
    return figure


def _areas(points):
    """{model: area}, in proportion to the sizes; the least for those that are unknown or would be too small to see."""
    largest = max(point.size_bytes or 1 for point in points)
    return {point.model: max(_SMALLEST, _LARGEST * (point.size_bytes or 0) / largest) for point in points}


def _set_scales(axes, points, metric):
    with needs_extra("plot"):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    logs = [math.log10(point.latency_ms) for point in points]
    width = max(logs) - min(logs)
    axes.set_xlim(10 ** (min(logs) - 0.14 * width - 0.12), 10 ** (max(logs) + 0.14 * width + 0.12))
    ticks = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if width < 0.6 else (1, 2, 5) if width < 3.5 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    ends = [number for point in points for number in point[2:5] if number is not None]
    height = max(ends) - min(ends)
    margin = 0.14 * height if height else abs(ends[0]) / 10 or 1
    low, high = min(ends) - margin, max(ends) + margin
    axes.set_ylim(*((high, low) if metric in LOWER_IS_BETTER else (low, high)))
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)


def _draw_frontier(axes, points):
    """Steps through the points of the frontier, and on to the right, and a line that says what dots and line mean."""
    best = sorted({point[1:3] for point in points if point.on_frontier})
    latencies, values = zip(*best, (axes.get_xlim()[1], best[-1][1]), strict=True)
    axes.step(latencies, values, where="post", color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    meaning = "Area: size. Full dots, dashed line: no other model is both faster and better."
    meaning += " Bars: 95 % intervals." if points[0].low is not None else ""
    axes.set_title(meaning, loc="left", fontsize=9, color=MUTED)


def _draw_labels(figure, axes, points, areas):
    """A label beside each dot, joined to it by a line where it is far away."""
    with needs_extra("plot"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # which lays out the axes
    unit = figure.dpi / 72  # pixels in a point
    labels, dots, sizes = [], [], []
    for point in points:
        name = textwrap.fill(point.model, _NAME_WIDTH)
        at = (point.latency_ms, point.value)
        options = {"textcoords": "offset points", "fontsize": 9, "color": INK, "linespacing": 1.15, "in_layout": False}
        text = name if point.size_bytes is None else f"{name}\n{rich.filesize.decimal(point.size_bytes)}"
        label = axes.annotate(text, at, (0, 0), ha="left", va="bottom", **options)
        extent = label.get_window_extent(renderer)
        labels.append(label)
        sizes.append((extent.width / unit, extent.height / unit))
        dots.append((*(axes.transData.transform(at) / unit), math.sqrt(areas[point.model] / math.pi)))
    corners = place_labels(dots, sizes, axes.bbox.extents / unit, list(_drawn_lines(axes, points, unit)))
    for label, dot, size, corner in zip(labels, dots, sizes, corners, strict=True):
        label.set_position((corner[0] - dot[0], corner[1] - dot[1]))
        if distance(dot, (*corner, corner[0] + size[0], corner[1] + size[1])) > _FAR:
            _join(axes, label.xy, dot, corner, size)


def _drawn_lines(axes, points, unit):
    """The intervals and the steps of the frontier, as boxes (left, bottom, right, top) in points."""
    ends = [((p.latency_ms, p.low), (p.latency_ms, p.high)) for p in points if p.low is not None]
    steps = [(x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)]
    for (x, y), (next_x, next_y) in itertools.pairwise(steps):
        ends += [((x, y), (next_x, y)), ((next_x, y), (next_x, next_y))]
    for pair in ends:
        (left, right), (bottom, top) = (
            sorted(axis) for axis in zip(*axes.transData.transform(pair) / unit, strict=True)
        )
        yield left, bottom, right, top


def _join(axes, at, dot, corner, size):
    """A thin line from the rim of a dot to the nearest point of its label."""
    end = [min(max(place, low), low + length) - place for place, low, length in zip(dot, corner, size, strict=False)]
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 1, "shrinkB": dot[2]}
    axes.annotate("", at, end, textcoords="offset points", arrowprops=line, in_layout=False)
