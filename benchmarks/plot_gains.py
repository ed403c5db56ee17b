"""Draw what distillation gains, from the five-seed table: one dot per seed and model, and their mean.

    python benchmarks/plot_gains.py [--table README.md] [--output docs/images/gains.png]

The table is the first one with a column `seed 0` in a Markdown file: of the README, or of `runs/seeds/table.md`, which
`make seeds` writes.
"""

import argparse
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
COLORS = {"teacher": "#555555", "labels only": "#c44e52"}
DISTILLED = "#3f51b5"


def rows_of(markdown):
    """`{row: [value per seed]}` of the first table with a column `seed 0`."""
    rows, inside = {}, False
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            if inside:
                break
        elif "seed 0" in cells:
            inside = True
        elif inside and not line.startswith("|---"):
            rows[cells[0]] = [float(cell) for cell in cells[1:-1]]
    if not rows:
        raise ValueError("The file holds no table with a column 'seed 0'.")
    return rows


def draw(rows, path):
    """Draw the rows that are no differences, best mean first, with the gain over the labels alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = {name: scores for name, scores in rows.items() if " − " not in name}
    models = sorted(models.items(), key=lambda item: sum(item[1]))
    baseline = next(sum(scores) / len(scores) for name, scores in models if name.startswith("labels only"))
    figure, axes = plt.subplots(figsize=(7.2, 2.5), layout="constrained")
    for height, (name, scores) in enumerate(models):
        kind, mean = re.split(r"[:(]", name)[0].strip(), sum(scores) / len(scores)
        color = COLORS.get(kind, DISTILLED)
        axes.plot([baseline, mean], [height, height], color=color, alpha=0.25, linewidth=7, solid_capstyle="butt")
        axes.plot(scores, [height] * len(scores), "o", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        axes.plot([mean, mean], [height - 0.28, height + 0.28], color=color, linewidth=2)
        gain = f"{mean:.1f}" if kind in COLORS else f"{mean:.1f} (+{mean - baseline:.1f})"
        axes.annotate(gain, (max(scores), height), (8, 0), textcoords="offset points", va="center", color=color)
    axes.set_yticks(range(len(models)), [label_of(name) for name, _ in models])
    axes.set_xlabel("macro-F1 on unseen names, mean over 40 languages, points")
    axes.set_xlim(right=axes.get_xlim()[1] + 3)
    axes.spines[["top", "right"]].set_visible(False)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def label_of(row):
    """A short label with the size of the model: "teacher, 0.89 MB"."""
    size = re.search(r"[\d.]+ [kM]B", row)
    return re.split(r"[:(]", row)[0].strip() + (f", {size[0]}" if size else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=pathlib.Path, default=ROOT / "README.md")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "images" / "gains.png")
    options = parser.parse_args()
    draw(rows_of(options.table.read_text(encoding="utf-8")), options.output)
    print(options.output)


if __name__ == "__main__":
    main()
