"""The picture of a `Tuning`: each searched value against the goal, one dot a trial."""

import math

from keras_kd.tuning.report import readable

_INK, _PALE_INK, _GRID = "#222222", "#6b6b6b", "#d0d3d8"
# Okabe and Ito's orange-red, which colour-blind readers tell from blue; shapes differ as well.
_BEST, _FAILED = "#D55E00", "#6b6b6b"
_PANELS_A_ROW, _PANEL_INCHES = 4, 2.9
_MARGIN = 0.06  # beside the range, as a share of it


def draw(tuning):
    """Return a `matplotlib.figure.Figure`: a panel for each name that was searched."""
    from matplotlib.figure import Figure

    names = list(tuning.space)
    rows = math.ceil(len(names) / _PANELS_A_ROW)
    columns = math.ceil(len(names) / rows)
    size = (max(4.5, _PANEL_INCHES * columns + 0.6), _PANEL_INCHES * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_panel(panel, tuning, name)
    for panel in panels[len(names) :]:
        panel.remove()
    for row in range(rows):
        panels[row * columns].set_ylabel(tuning.goal, color=_INK)
    best = tuning.ranked[0]
    meaning = f"later ones darker; ringed: trial {best.number}, {tuning.goal} {best.score:.4f}"
    crosses = "; crosses: failed" * any(trial.failed for trial in tuning.trials)
    figure.suptitle(f"{len(tuning.trials)} trials, {meaning}{crosses}", x=0.01, ha="left", color=_INK, fontsize=10)
    return figure


def _draw_panel(axes, tuning, name):
    part = tuning.space[name]
    finished = [trial for trial in tuning.trials if not trial.failed]
    place = part.ticks.index if part.ticks else float  # choices stand side by side, whatever lies between them
    orders = [trial.number / len(tuning.trials) for trial in finished]
    values, scores = [place(trial.values[name]) for trial in finished], [trial.score for trial in finished]
    look = {"cmap": "Blues", "vmin": -0.5, "vmax": 1.1, "edgecolors": "white", "linewidths": 0.5, "zorder": 3}
    axes.scatter(values, scores, c=orders, s=34, **look)
    best = tuning.ranked[0]
    axes.scatter(
        place(best.values[name]), best.score, s=110, facecolors="none", edgecolors=_BEST, linewidths=1.8, zorder=4
    )
    failed = [place(trial.values[name]) for trial in tuning.trials if trial.failed]
    lower_edge = axes.get_xaxis_transform()  # heights from 0, the lower edge, to 1
    axes.scatter(failed, [0.03] * len(failed), marker="x", s=30, color=_FAILED, transform=lower_edge, zorder=3)
    _dress(axes, part, f"{name}: best {readable(best.values[name])}")


def _dress(axes, part, title):
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(title, loc="left", fontsize=9.5, color=_INK)
    if part.log:
        axes.set_xscale("log")
        few_decades = part.high / part.low < 100
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if part.ticks:
        axes.set_xticks(range(len(part.ticks)), [readable(value) for value in part.ticks])
        axes.set_xlim(-0.5, len(part.ticks) - 0.5)
    elif part.log:
        axes.set_xlim(part.low * (part.low / part.high) ** _MARGIN, part.high * (part.high / part.low) ** _MARGIN)
    else:
        axes.set_xlim(part.low - _MARGIN * (part.high - part.low), part.high + _MARGIN * (part.high - part.low))
    axes.tick_params(length=0, which="both", labelcolor=_PALE_INK, labelsize=9)
    axes.grid(color=_GRID, linewidth=0.7, zorder=1)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    axes.spines[:].set_visible(False)
