"""Evaluations made by hand, through the file that `Evaluation.to_json` writes: no model runs."""

import json

from keras_kd.evaluation import Evaluation

FORMAT = "keras_kd.evaluation.Evaluation/2"


def evaluation_of(scores, path, *, teacher=None, groups=None, examples=100, half_width=None, facts=None):
    """The `Evaluation` of {model: {row: {metric: value}}}.

    Args:
        path: where the JSON goes.
        examples: of each row, or {row: number}.
        half_width: of the intervals; None for none.
        facts: {model: entries of its `ModelFacts`} that differ from 1,000 bytes and 1 ms.
    """
    first = next(iter(scores.values()))
    metrics = list(dict.fromkeys(metric for of_row in first.values() for metric in of_row))
    facts = facts or {}
    content = {
        "format": FORMAT,
        "models": {
            name: {"parameters": 250, "size_bytes": 1000, "latency_ms": 1.0, "outputs": "logits", **facts.get(name, {})}
            for name in scores
        },
        "teacher": teacher,
        "metrics": metrics,
        "languages": [row for row in first if not row.startswith(("overall", "mean "))],
        "groups": groups or {},
        "bootstrap": 0 if half_width is None else 100,
        "seed": 0,
        "scores": [
            {
                "model": model,
                "language": row,
                "metric": metric,
                "value": value,
                "low": None if half_width is None else value - half_width,
                "high": None if half_width is None else value + half_width,
                "examples": examples if isinstance(examples, int) else examples[row],
            }
            for model, rows in scores.items()
            for row, of_row in rows.items()
            for metric, value in of_row.items()
        ],
        "differences": [],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return Evaluation.from_json(path)


def with_mean(rows):
    """{row: {metric: value}} of languages and "overall", with the row "mean over languages" that goes with them."""
    languages = {row: values for row, values in rows.items() if row != "overall"}
    metrics = next(iter(languages.values()))
    mean = {metric: sum(values[metric] for values in languages.values()) / len(languages) for metric in metrics}
    return {**languages, "mean over languages": mean, "overall": rows["overall"]}
