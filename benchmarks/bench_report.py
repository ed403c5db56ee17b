"""What the benchmark found, as Markdown tables."""

from bench_devices import NO_GPU
from bench_steps import BOUND, CACHED, IN_MEMORY, LIVE
from reporting import markdown


def tables(report):
    """All tables of a report, the one of the README first; parts that were not run are left out."""
    parts = {
        "steps": steps_table,
        "growth": growth_table,
        "large_vocabulary": large_vocabulary_table,
        "cache": cache_tables,
    }
    written = [write(report[name]) for name, write in parts.items() if report.get(name)]
    abouts = [f"{name}: {about(of_part)}" for name, of_part in report["about"].items()]
    return "\n\n".join([*written, *abouts, *details(report.get("steps", {}))]) + "\n"


def about(of_part):
    """On what machine, with which versions and how long a part was run."""
    versions = ", ".join(f"{name} {version}" for name, version in of_part["versions"].items())
    return (
        f"{of_part['cpu']}, {of_part['cores']} cores, load {of_part['load'][0]} at the end, GPU: "
        f"{of_part['accelerator'] or NO_GPU}; Python {of_part['python']}, {versions}; commit {of_part['commit']}; "
        f"{of_part['rounds']} rounds, {of_part['seconds']} s."
    )


def steps_table(steps):
    """Each ratio three times: of the least times, the median over rounds, of processor seconds."""
    head = ["", "teacher + plain, ms", *LIVE, "torchdistill"]
    head += ["keras_kd / keras.distillation", "evaluate / plain"]
    head += [f"{name.removeprefix('keras_kd, ')} / plain" for name in (IN_MEMORY, CACHED)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, result in steps.items():
        training, evaluation = result["training"], result["evaluation"]
        cells = [name, f"{training[BOUND]['least ms']:.1f}"]
        cells += [of_row(training.get(side)) for side in (*LIVE, "torchdistill")]
        cells += [three(result["over keras.distillation"]), of_row(evaluation["keras_kd"])]
        cells += [three(result["without teacher"].get(name)) for name in (IN_MEMORY, CACHED)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_row(row):
    return three(row and {kind: row[f"{kind} ratio"] for kind in ("least", "median", "cpu")})


def three(ratios):
    """Of `reporting.ratios`, "1.02 / 1.03 / 1.01"; a dash where there is none."""
    return " / ".join(f"{ratios[kind]:.2f}" for kind in ("least", "median", "cpu")) if ratios else "–"


def growth_table(growth):
    """Ratios of least times to teacher forward + plain student, as classes, length and teachers grow."""
    head = ["", "teacher + plain, ms", "keras_kd", "keras.distillation", "keras_kd, side by side"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, counts in growth.items():
        for count, row in counts.items():
            found = [row["ratios"].get(side) for side in head[2:]]
            cells = [f"{name}: {int(count):,}", f"{row['least ms'][BOUND]:.1f}", *map(three, found)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def large_vocabulary_table(cases):
    """Memory beyond weights and gradient, and processor seconds of a step, of both forms."""
    head = ["vocabulary", "tokens", "dense: GB", "fused", "ratio", "dense: processor s", "fused", "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for case in cases:
        dense, fused = case["dense"], case["fused"]
        cells = [f"{case['vocabulary']:,}", f"{case['tokens']:,}"]
        for key in ("beyond_gb", "min_cpu_s"):
            cells += [f"{form[key]:.2f}" if form else "–" for form in (dense, fused)]
            cells.append(f"{fused[key] / dense[key]:.2f}" if dense else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cache_tables(results):
    return "\n\n".join(markdown(title, rows, digits=4) for title, rows in results.items())


def details(steps):
    """Every figure of every side, a table for each task."""
    for name, result in steps.items():
        for part in ("training", "evaluation"):
            yield markdown(f"{name}: {part}", result[part], digits=3)
