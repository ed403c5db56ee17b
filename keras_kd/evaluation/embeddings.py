"""`evaluate_embeddings`: sentence encoders on the same texts, by the translations that they find."""

import numpy as np

from keras_kd._checks import require_count, require_tensorflow
from keras_kd.evaluation.examples import input_rows, language_rows
from keras_kd.evaluation.measure import (
    checked_groups,
    checked_teacher,
    errors_naming,
    model_facts,
    open_runtimes,
    own_inputs,
)
from keras_kd.evaluation.result import Evaluation
from keras_kd.evaluation.scores import EMBEDDING_METRICS, estimates_of_sums, means

_SIMILARITIES_AT_A_TIME = 4_000_000


def evaluate_embeddings(
    models,
    x,
    targets,
    matches,
    *,
    languages=None,
    groups=None,
    teacher="teacher",
    dimensions=None,
    bootstrap=1000,
    seed=0,
    batch_size=256,
    latency=True,
):
    """Measure models that give a vector per text on the same texts: teacher, students, exported files.

    Scores, overall and for each language, each with a 95 % interval as in `evaluate`:

    - `retrieval`: the share of texts whose nearest target, by the cosine, is their own: texts and targets by the model.
    - `retrieval_teacher`: the same with the teacher's vectors of the targets: the student's queries in an index that
      the teacher has filled.
    - `cosine`: the mean cosine to the teacher's vector of the same text.
    - `mse`: the mean over texts of the mean squared difference from it, per dimension, of unit vectors.

    Vectors are scaled to unit length. The last three compare vectors of one space, so that the models need the width of
    the teacher.

    Args:
        models: {name: model}; a model is a `keras.Model` or the path of a SavedModel folder, a .tflite or a .keras
            file, with one output, (batch, width).
        x: the texts as the models take them: an array or a dict of arrays, of which each model reads those named after
            its inputs. Of an array of strings, models that take bytes get them as in `evaluate`.
        targets: the texts to find, such as sentences in English, in the same form.
        matches: integers, (texts,): the row of `targets` that is each text's own, such as its translation.
        languages: one string per text; or None.
        groups: {group name: languages}: adds a row "mean of <group>" each.
        teacher: the name of the teacher among `models`. None, or no model called "teacher": `retrieval` alone.
        dimensions: how many of the first numbers of each vector are used ≥ 1, before they are scaled; None is all.
        bootstrap: how many resamples of the texts; 0 for no intervals.
        seed: of the resamples.
        batch_size: texts per prediction.
        latency: whether to time each model on the first text (median milliseconds).

    Returns:
        An `Evaluation`, to print, save and plot; its `difference` compares two models.

    Raises:
        RuntimeError: Keras runs on another backend than tensorflow.
        TypeError: An argument of the wrong type.
        ValueError: Lengths that differ, matches out of range, outputs that are not (batch, width), not finite or zero,
            models of another width than the teacher, no texts, unknown names.

    Example:

    >>> words = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    >>> texts = np.eye(4, dtype="float32")
    >>> evaluation = keras_kd.evaluate_embeddings({"teacher": words, "student": words}, texts, texts, range(4),
    ...     latency=False)
    >>> round(evaluation.score("student", "cosine").value, 6)
    1.0

    Source: Reimers and Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
    Distillation", https://arxiv.org/abs/2004.09813.
    """
    require_tensorflow("evaluate_embeddings")
    teacher = checked_teacher(models, teacher, bootstrap=bootstrap, seed=seed, batch_size=batch_size)
    if dimensions is not None:
        require_count(dimensions, "dimensions", at_least=1)
    runtimes = open_runtimes(models)
    x, texts = input_rows(x, "x")
    targets, target_count = input_rows(targets, "targets")
    matches = _checked_matches(matches, texts, target_count)
    rows_by_language = language_rows(languages, np.ones(texts, bool))
    groups = checked_groups(groups, rows_by_language)
    vectors = {}
    for name, runtime in runtimes.items():
        with errors_naming(name):
            vectors[name] = [
                _unit_vectors(runtime.predict(own_inputs(runtime, part), batch_size=batch_size), name, size, dimensions)
                for part, size in ((x, texts), (targets, target_count))
            ]
    _check_widths(vectors, teacher)
    values = [_values(*vectors[name], vectors.get(teacher), matches) for name in models]
    metrics = [metric for metric in EMBEDDING_METRICS if metric in values[0]]
    table = np.array([[of_model[metric] for metric in metrics] for of_model in values])  # (models, metrics, texts)
    scores, differences = estimates_of_sums(
        table, means(metrics), list(models), rows_by_language, groups, bootstrap=bootstrap, seed=seed
    )
    return Evaluation(
        models={name: model_facts(runtime, x, "vectors", latency) for name, runtime in runtimes.items()},
        teacher=teacher,
        metrics=tuple(metrics),
        languages=tuple(rows_by_language),
        groups=groups,
        bootstrap=int(bootstrap),
        seed=int(seed),
        scores=scores,
        differences=differences,
    )


def _checked_matches(matches, texts, targets):
    matches = np.asarray(matches)
    if matches.dtype.kind not in "iu" or matches.shape != (texts,):
        raise ValueError(
            f"matches must be one integer for each of the {texts} texts, a row of targets, got {matches.dtype} of the "
            f"shape {matches.shape}."
        )
    if matches.min() < 0 or matches.max() >= targets:
        raise ValueError(
            f"matches must be rows of the {targets} targets, 0 to {targets - 1}, got {matches.min()} to "
            f"{matches.max()}."
        )
    return matches


def _unit_vectors(outputs, name, texts, dimensions):
    shape = getattr(outputs, "shape", type(outputs).__name__)
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or len(outputs) != texts:
        raise ValueError(f"models[{name!r}] must give one vector per text, ({texts}, width), got {shape}.")
    if dimensions is not None and dimensions > outputs.shape[1]:
        raise ValueError(f"dimensions must be <= {outputs.shape[1]}, the width of models[{name!r}], got {dimensions}.")
    vectors = outputs[:, :dimensions].astype("float64")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    spoilt = int((~np.isfinite(lengths) | (lengths == 0)).sum())
    if spoilt:
        raise ValueError(f"models[{name!r}] gave vectors of zeros, NaN or infinity for {spoilt} of {texts} texts.")
    return vectors / lengths


def _check_widths(vectors, teacher):
    for name, (of_texts, _) in vectors.items() if teacher is not None else ():
        widths = of_texts.shape[1], vectors[teacher][0].shape[1]
        if widths[0] != widths[1]:
            raise ValueError(
                f"models[{name!r}] gives vectors of {widths[0]} numbers, the teacher of {widths[1]}: they have no "
                "space in common. Evaluate with teacher=None, or with dimensions= that both have."
            )


def _values(texts, targets, teacher, matches):
    """{metric: (texts,)} of a model; `teacher` is its vectors of the texts and of the targets, or None."""
    values = {"retrieval": _finds(texts, targets, matches)}
    if teacher is not None:
        values["retrieval_teacher"] = _finds(texts, teacher[1], matches)
        values["cosine"] = (texts * teacher[0]).sum(axis=1)
        values["mse"] = np.square(texts - teacher[0]).mean(axis=1)
    return values


def _finds(texts, targets, matches):
    """Whether the target nearest to each text is its own."""
    rows = max(1, _SIMILARITIES_AT_A_TIME // len(targets))
    nearest = [(texts[start : start + rows] @ targets.T).argmax(axis=1) for start in range(0, len(texts), rows)]
    return np.concatenate(nearest) == matches
