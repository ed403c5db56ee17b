"""`evaluate_perplexity`: models that give logits for the next token, on the same sequences of token ids."""

import numpy as np

from keras_kd._checks import require_tensorflow
from keras_kd.evaluation.examples import input_rows, language_rows
from keras_kd.evaluation.measure import (
    DEFAULT_TEACHER,
    checked_groups,
    checked_teacher,
    errors_naming,
    example_rows,
    model_facts,
    open_runtimes,
    own_inputs,
)
from keras_kd.evaluation.predictions import are_probabilities, log_prob_blocks
from keras_kd.evaluation.result import Evaluation
from keras_kd.evaluation.scores import estimates_of_sums


def evaluate_perplexity(
    models,
    x,
    targets,
    *,
    mask=None,
    padding_id=0,
    languages=None,
    groups=None,
    teacher=DEFAULT_TEACHER,
    bootstrap=1000,
    seed=0,
    batch_size=32,
    latency=True,
):
    """Measure how well models foretell token ids: `perplexity = exp(Σ −log p(target) / tokens)`, lower is better.

    The sums are over all tokens of a row of the table that are no padding, so that each token counts the same. It has a
    95 % interval over sequences as in `evaluate`. Perplexities are comparable between models of one vocabulary only.

    Args:
        models: {name: model} as in `evaluate`, with one output (batch, length, vocabulary): logits, or probabilities.
        x: The inputs, an array or a dict of arrays, of which each model reads those named after its inputs. For an
            encoder-decoder the decoder's ids, which begin with the start id, are among them.
        targets: Integers (sequences, length): the token that each position of the output is to foretell.
        mask: Bool (sequences, length), False for targets that do not count. None: `padding_id`.
        padding_id: The target that does not count; None: all count.
        languages, groups, teacher, bootstrap, seed: As in `evaluate`, of sequences.
        batch_size: Sequences per prediction: only the logits of one batch are held.
        latency: Whether to time each model on the first sequence.

    Returns:
        An `Evaluation`.

    Raises:
        RuntimeError: Keras runs on another backend than tensorflow.
        TypeError: An argument of the wrong type.
        ValueError: Lengths that differ, targets out of range, a sequence without a token that counts, outputs that are
            not (batch, length, vocabulary) or not finite, unknown names.

    Example: Logits that are all the same foretell nothing: the perplexity is the number of tokens.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(5, 4, "zeros"), keras.layers.Dense(5)])
    >>> ids = np.array([[1, 2, 0], [3, 4, 1]])
    >>> evaluation = keras_kd.evaluate_perplexity({"model": model}, ids, ids, bootstrap=0, latency=False)
    >>> round(evaluation.score("model").value, 4)
    5.0
    """
    require_tensorflow("evaluate_perplexity")
    teacher = checked_teacher(models, teacher, bootstrap=bootstrap, seed=seed, batch_size=batch_size)
    runtimes = open_runtimes(models)
    x, sequences = input_rows(x, "x")
    targets, counted = _checked_targets(targets, mask, padding_id, sequences)
    rows_by_language = language_rows(languages, np.ones(sequences, bool))
    groups = checked_groups(groups, rows_by_language)
    kinds, sums = {}, []
    for name, runtime in runtimes.items():
        with errors_naming(name):
            losses, kinds[name] = _log_losses(runtime, name, x, targets, counted, batch_size)
        sums.append([losses, counted.sum(axis=1)])
    scores, differences = estimates_of_sums(
        np.array(sums), _perplexity, list(models), rows_by_language, groups, bootstrap=bootstrap, seed=seed
    )
    return Evaluation(
        models={name: model_facts(runtime, x, kinds[name], latency) for name, runtime in runtimes.items()},
        teacher=teacher,
        metrics=("perplexity",),
        languages=tuple(rows_by_language),
        groups=groups,
        bootstrap=int(bootstrap),
        seed=int(seed),
        scores=scores,
        differences=differences,
    )


def _perplexity(sums, examples):
    """{metric: (resamples, models)} from sums (resamples, models, 2) of nats and of tokens."""
    return {"perplexity": np.exp(sums[..., 0] / sums[..., 1])}


def _checked_targets(targets, mask, padding_id, sequences):
    """Integers and bool, (sequences, length) each."""
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu" or targets.ndim != 2 or len(targets) != sequences:
        raise ValueError(
            f"targets must be integers ({sequences}, length), a row for each row of x, got {targets.dtype} of the "
            f"shape {targets.shape}."
        )
    if mask is None:
        counted = np.ones(targets.shape, bool) if padding_id is None else targets != padding_id
    else:
        counted = np.asarray(mask)
    if counted.shape != targets.shape or counted.dtype != bool:
        raise ValueError(f"mask must be bool of the shape {targets.shape}, got {counted.dtype} {counted.shape}.")
    empty = np.flatnonzero(~counted.any(axis=1))
    if empty.size:
        raise ValueError(f"targets[{empty[0]}] holds no token that counts: leave it out, or see padding_id and mask.")
    if targets[counted].min() < 0:
        raise ValueError(f"targets must be token ids >= 0, got {targets[counted].min()}; mask= leaves tokens out.")
    return targets, counted


def _log_losses(runtime, name, x, targets, counted, batch_size):
    """Σ −log p(target) of each sequence, (sequences,) nats, and the kind of the outputs."""
    inputs, losses, kind = own_inputs(runtime, x), np.zeros(len(targets)), None
    for start in range(0, len(targets), batch_size):
        rows = slice(start, start + batch_size)
        outputs = runtime.predict(example_rows(inputs, rows), batch_size=batch_size)
        tokens = _checked_tokens(outputs, name, targets[rows], counted[rows])
        kind = kind or ("probabilities" if are_probabilities(tokens) else "logits")
        sequence = start + np.nonzero(counted[rows])[0]
        losses += np.bincount(sequence, _nats(tokens, targets[rows][counted[rows]]), len(targets))
    return losses, kind


def _nats(outputs, targets):
    """−log p(target) of each token, from outputs (tokens, vocabulary)."""
    found, start = [], 0
    for block in log_prob_blocks(outputs):
        own = targets[start : start + len(block)]
        found.append(-block[np.arange(len(block)), own])
        start += len(block)
    return np.concatenate(found)


def _checked_tokens(outputs, name, targets, counted):
    """The outputs of the tokens of a batch that count, (tokens, vocabulary)."""
    shape = getattr(outputs, "shape", type(outputs).__name__)
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 3 or shape[:2] != targets.shape:
        raise ValueError(
            f"models[{name!r}] must give logits {(*targets.shape, 'vocabulary')}, one row for each target, got {shape}."
        )
    largest = targets[counted].max()
    if largest >= shape[2]:
        raise ValueError(f"targets holds the id {largest}, but models[{name!r}] gives {shape[2]} logits per token.")
    if not np.isfinite(outputs[counted]).all():
        raise ValueError(f"models[{name!r}] gave NaN or infinite outputs.")
    return outputs[counted]
