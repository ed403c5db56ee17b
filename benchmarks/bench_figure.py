"""What the benchmark found, as one picture: of times, the processor's, which other programs disturb the least."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from bench_steps import BOUND, LIVE

COLOURS = {
    "keras_kd": "#1b6ca8",
    "by hand": "#8a8a8a",
    "keras.distillation": "#d95f02",
    "torchdistill": "#7b3294",
    "keras_kd, side by side": "#66a5d3",
}


def draw(report, path):
    """Write the picture: a panel for each part that was run, two in a row."""
    parts = {
        "steps": [draw_steps],
        "growth": [draw_growth],
        "large_vocabulary": [draw_memory],
        "cache": [draw_cache],
    }
    panels = [(panel, report[name]) for name, of_part in parts.items() if report.get(name) for panel in of_part]
    if not panels:
        return
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        rows, min(2, len(panels)), figsize=(13, 4.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (panel, results) in zip(axes.flat, panels, strict=False):
        panel(axis, results)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_steps(axis, steps):
    trained = [result["training"] for result in steps.values()]
    sides = [side for side in COLOURS if any(side in rows for rows in trained)]
    width = 0.8 / len(sides)
    # what stands far out would flatten the rest: it is cut off, its number stays
    top = 1.25 * max(rows[side]["cpu ratio"] for rows in trained for side in LIVE)
    for i, side in enumerate(sides):
        heights = {j: rows[side]["cpu ratio"] for j, rows in enumerate(trained) if side in rows}
        places = [j + (i - (len(sides) - 1) / 2) * width for j in heights]
        axis.bar(places, [min(height, top) for height in heights.values()], width, color=COLOURS[side], label=side)
        for place, height in zip(places, heights.values(), strict=True):
            axis.text(
                place, min(height, top) + 0.01 * top, f"{height:.2f}", ha="center", va="bottom", fontsize=7, rotation=90
            )
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.set_ylim(0, 1.3 * top)
    axis.set_xticks(range(len(steps)), [name.replace(", ", "\n") for name in steps])
    axis.set_title(f"A step, live teacher: processor time over\n{BOUND}")
    axis.legend(fontsize=8, ncols=4, loc="upper left")


def draw_growth(axis, growth):
    markers = dict(zip(growth, "osD^", strict=False))
    for name, counts in growth.items():
        for side in ("keras_kd", "keras.distillation"):
            values = [row["ratios"][side]["cpu"] for row in counts.values()]
            axis.plot(
                [int(count) for count in counts],
                values,
                marker=markers[name],
                color=COLOURS[side],
                linestyle="-" if side == "keras_kd" else "--",
                label=f"{name}: {side}",
            )
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.set_xscale("log")
    axis.set_ylim(0, 1.6 * axis.get_ylim()[1])
    axis.set_xlabel("number of classes, tokens, teachers")
    axis.set_title(f"As work grows: processor time over\n{BOUND}")
    axis.legend(fontsize=8, ncols=2, loc="upper left")


def draw_memory(axis, cases):
    vocabularies = sorted({case["vocabulary"] for case in cases})
    for vocabulary, colour in zip(vocabularies, plt.cm.viridis(np.linspace(0.1, 0.8, len(vocabularies))), strict=True):
        for form, style in (("dense", "--"), ("fused", "-")):
            points = [(c["tokens"], c[form]["beyond_gb"]) for c in cases if c["vocabulary"] == vocabulary and c[form]]
            if points:
                axis.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=f"{form}, {vocabulary:,}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.set_xlabel("tokens")
    axis.set_ylabel("GB beyond weights and gradient")
    axis.set_title("Large vocabularies: memory of a step,\nfused and dense form")
    axis.legend(fontsize=8)


def draw_cache(axis, results):
    rows = {
        f"{title.split(':')[0]}: {name}": row["ratio of processor time"]
        for title, of_title in results.items()
        if title.endswith("an epoch")
        for name, row in of_title.items()
    }
    colours = [COLOURS["by hand"] if "cached" not in name else COLOURS["keras_kd"] for name in rows]
    bars = axis.barh(list(rows), list(rows.values()), color=colours)
    axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axis.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.invert_yaxis()
    axis.set_title("An epoch without the teacher: processor time over\nthe plain student's epoch")
