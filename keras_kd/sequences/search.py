"""How the next token is chosen: greedy search, beam search and sampling, each one loop of TensorFlow."""

import typing

import tensorflow as tf

from keras_kd._checks import require_count, require_flag, require_number

_NEVER = float("-inf")  # as a log-probability
_ABOVE_ZERO = 1e-37  # its logarithm is finite


class Hypotheses(typing.NamedTuple):
    """Sequences that a `Generator` returns: `n_best` for each example, the best first.

    Attributes:
        ids: int32 `(batch, n_best, max_length)`: the new tokens, without the start id or the prompt. A sequence that
            ended has the end id as its last token; padding follows.
        scores: float32 `(batch, n_best)`, in nats: the log-probability of these tokens, the end included; of a
            `BeamSearch` divided by a power of the length. −inf where there are fewer than `n_best` sequences.
        lengths: int32 `(batch, n_best)`: tokens, the end included. A sequence that was cut has `max_length`.
    """

    ids: tf.Tensor
    scores: tf.Tensor
    lengths: tf.Tensor


class Prompt(typing.NamedTuple):
    """Where a search begins.

    `ids` `(batch, total)` hold `lengths` `(batch,)` given tokens and room for `max_length` new ones. `first` is the
    position that is predicted first; `end` and `pad` are ids.
    """

    ids: tf.Tensor
    lengths: tf.Tensor
    first: tf.Tensor
    max_length: int
    end: int
    pad: int


class Search:
    """The base of the searches: from the logits of the next token to `Hypotheses`.

    `rows` is the number of rows of each example while it runs, `n_best` the number that is returned of these.
    """

    rows = n_best = 1

    def run(self, next_logits, state, prompt, seed):
        """Return the `Hypotheses`.

        `next_logits(ids, index, state)` returns the logits, `(batch · rows, vocabulary)`, of position `index` after
        `ids[:, :index]`, and the new state: nested tensors `(batch · rows, ...)`. The `state` given has `batch` rows.
        `seed` is a tensor of two integers.
        """
        raise NotImplementedError


class _TokenByToken(Search):
    """Each row takes one token after the other; a subclass chooses it."""

    def choose(self, log_probs, seed):
        """Return ids, `(rows,)` int32, of log_probs `(rows, vocabulary)`."""
        raise NotImplementedError

    def run(self, next_logits, state, prompt, seed):
        ids, given, state = repeated((prompt.ids, prompt.lengths, state), self.rows)

        def unfinished(index, ids, state, done, scores, lengths):
            return (index < ids.shape[1]) & ~tf.reduce_all(done)

        def step(index, ids, state, done, scores, lengths):
            log_probs, state = _next_log_probs(next_logits, ids, index, state, prompt)
            chosen = self.choose(log_probs, tf.random.experimental.stateless_fold_in(seed, index))
            is_new = (index >= given) & ~done
            lengths += tf.cast(is_new, tf.int32)
            scores += tf.where(is_new, tf.gather(log_probs, chosen, batch_dims=1), 0.0)
            token = tf.where(index < given, ids[:, index], tf.where(done, prompt.pad, chosen))
            done |= is_new & ((chosen == prompt.end) | (lengths >= prompt.max_length))
            return index + 1, _with_token(ids, index, token), state, done, scores, lengths

        none = tf.zeros_like(given)
        start = prompt.first, ids, state, tf.cast(none, tf.bool), tf.cast(none, tf.float32), none
        _, ids, _, _, scores, lengths = tf.while_loop(unfinished, step, start)
        return Hypotheses(*_by_example((_new_tokens(ids, given, lengths, prompt), scores, lengths), self.rows))


class Greedy(_TokenByToken):
    """Take the most probable token at each step; of equally probable ones, the one with the lowest id.

    The score is the log-probability of the sequence.

    Example:

    >>> keras_kd.sequences.Greedy()
    Greedy()
    """

    def choose(self, log_probs, seed):
        return tf.argmax(log_probs, axis=-1, output_type=tf.int32)

    def __repr__(self):
        return "Greedy()"


class Sampling(_TokenByToken):
    """Draw each token from the model's distribution, or from the likeliest part of it.

    The logits are divided by the temperature; then `top_k` and, of what remains, `top_p` apply. The score is the
    log-probability of the sequence under the model itself, at temperature 1 and with all tokens.

    Args:
        temperature: > 0. Below 1 the likely tokens become likelier.
        top_k: Draw from the `top_k` likeliest tokens ≥ 1, and those as likely as the last of them. None: from all.
        top_p: Draw from the smallest set of likeliest tokens whose probabilities sum to `top_p` or more, in (0, 1],
            and those as likely as the last of them. None: from all.
        samples: Sequences drawn for each example ≥ 1, in the order they were drawn.
        seed: int ≥ 0. Two generators with one seed return the same sequences, call by call; with XLA they are others.
            None: a random seed, which `keras.utils.set_random_seed` determines.

    Raises:
        TypeError: An argument of another type.
        ValueError: An argument out of its range.

    Example:

    >>> keras_kd.sequences.Sampling(temperature=0.7, top_p=0.9, seed=1)
    Sampling(temperature=0.7, top_k=None, top_p=0.9, samples=1, seed=1)

    Reference:
        [Fan et al., 2018](https://arxiv.org/abs/1805.04833) for top-k;
        [Holtzman et al., 2020](https://arxiv.org/abs/1904.09751) for top-p
    """

    def __init__(self, *, temperature=1.0, top_k=None, top_p=None, samples=1, seed=None):
        self.temperature = require_number(temperature, "temperature", above=0.0)
        self.top_k = None if top_k is None else require_count(top_k, "top_k", at_least=1)
        self.top_p = None if top_p is None else require_number(top_p, "top_p", above=0.0, at_most=1.0)
        self.rows = self.n_best = require_count(samples, "samples", at_least=1)
        self.seed = None if seed is None else require_count(seed, "seed", at_least=0)

    def choose(self, log_probs, seed):
        logits = top_p_logits(top_k_logits(log_probs / self.temperature, self.top_k), self.top_p)
        uniform = tf.random.stateless_uniform(tf.shape(logits), seed, minval=_ABOVE_ZERO)
        # The highest sum of logit and Gumbel noise is a draw from the softmax.
        return tf.argmax(logits - tf.math.log(-tf.math.log(uniform)), axis=-1, output_type=tf.int32)

    def __repr__(self):
        return (
            f"Sampling(temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}, samples={self.rows}, "
            f"seed={self.seed})"
        )


class BeamSearch(Search):
    """Keep the `beams` most probable beginnings at each step, and return the best complete sequences.

    A sequence is complete with its end id, or at `max_length`. Its score is log P(y) / |y|^`length_penalty`, where |y|
    counts tokens, the end included. That is what Marian, fairseq and Hugging Face use; Wu et al. (2016) divide by
    ((5 + |y|) / 6)^α. Complete sequences keep their score and take no beam: of the 2 · `beams` best continuations, the
    complete ones are set aside, and the best others go on. Of equal scores, the earlier beam and the lower id come
    first.

    Args:
        beams: Beginnings kept, and complete sequences set aside, ≥ 1. It may be larger than the vocabulary.
        length_penalty: α ≥ 0; 0 compares log-probabilities, 1 means per token. Larger values prefer longer sequences.
        n_best: Sequences returned for each example, from 1 to `beams`.
        early_stopping: Whether an example is done as soon as `beams` sequences are set aside and no beginning has, at
            its length, a better score than the worst of them. False: as soon as no beginning can reach a better one
            within `max_length`, which with a length penalty is late.

    Raises:
        TypeError: An argument of another type.
        ValueError: An argument out of its range.

    Example:

    >>> keras_kd.sequences.BeamSearch(beams=4, n_best=2)
    BeamSearch(beams=4, length_penalty=1.0, n_best=2, early_stopping=True)

    Reference:
        [Graves, 2012](https://arxiv.org/abs/1211.3711); [Wu et al., 2016](https://arxiv.org/abs/1609.08144)
    """

    def __init__(self, *, beams=4, length_penalty=1.0, n_best=1, early_stopping=True):
        self.rows = require_count(beams, "beams", at_least=1)
        self.length_penalty = require_number(length_penalty, "length_penalty", at_least=0.0)
        self.n_best = require_count(n_best, "n_best", at_least=1)
        self.early_stopping = require_flag(early_stopping, "early_stopping")
        if n_best > beams:
            raise ValueError(f"n_best must be <= beams, got n_best={n_best} and beams={beams}.")

    def run(self, next_logits, state, prompt, seed):
        beams, given = self.rows, prompt.lengths[:, None]
        ids, state = repeated((prompt.ids, state), beams)

        def unfinished(index, ids, state, log_probs, *complete):
            return (index < ids.shape[1]) & tf.reduce_any(log_probs > _NEVER)

        def step(index, ids, state, log_probs, *complete):
            gains, state = _next_log_probs(next_logits, ids, index, state, prompt)
            gains = _given_or(gains, ids, index, given, beams)
            totals, beam, token = _best_continuations(log_probs, gains, beams)
            rows = beam + beams * tf.range(tf.shape(beam)[0])[:, None]
            length = index + 1 - given
            ids = _with_token(tf.gather(ids, rows), index, token)
            is_complete = (length > 0) & ((token == prompt.end) | (length >= prompt.max_length))
            scores = tf.where(is_complete, self._score(totals, length), _NEVER)
            complete = _merged(complete, (scores, ids, tf.broadcast_to(length, tf.shape(token))), beams)
            log_probs, kept = tf.math.top_k(tf.where(is_complete, _NEVER, totals), beams)
            log_probs = tf.where(self._is_done(log_probs, complete[0], length, prompt), _NEVER, log_probs)
            ids, rows = tf.gather(ids, kept, batch_dims=1), tf.gather(rows, kept, batch_dims=1)
            state = _with_shapes(tf.nest.map_structure(lambda x: tf.gather(x, tf.reshape(rows, (-1,))), state), state)
            return index + 1, tf.reshape(ids, (-1, ids.shape[-1])), state, log_probs, *complete

        none = tf.repeat(tf.zeros_like(given), beams, axis=1)
        never = tf.fill(tf.shape(none), _NEVER)
        first_only = tf.where(tf.range(beams) == 0, 0.0, never)
        complete = never, tf.fill((*tf.unstack(tf.shape(none)), prompt.ids.shape[1]), prompt.pad), none
        _, _, _, _, scores, ids, lengths = tf.while_loop(
            unfinished, step, (prompt.first, ids, state, first_only, *complete)
        )
        ids = _new_tokens(ids, given, lengths, prompt)
        return Hypotheses(ids[:, : self.n_best], scores[:, : self.n_best], lengths[:, : self.n_best])

    def _score(self, log_probs, length):
        return log_probs / tf.cast(tf.maximum(length, 1), tf.float32) ** self.length_penalty

    def _is_done(self, log_probs, complete_scores, length, prompt):
        """Whether no beginning is to become one of the complete sequences, `(batch, 1)`."""
        length = length if self.early_stopping else prompt.max_length
        return (complete_scores[:, -1:] > _NEVER) & (complete_scores[:, -1:] >= self._score(log_probs[:, :1], length))

    def __repr__(self):
        return (
            f"BeamSearch(beams={self.rows}, length_penalty={self.length_penalty}, n_best={self.n_best}, "
            f"early_stopping={self.early_stopping})"
        )


# Parts of the loops --------------------------------------------------------------------------------------------------


def repeated(tensors, times):
    """Nested tensors with each row `times` times, one after the other."""
    return tf.nest.map_structure(lambda tensor: tf.repeat(tensor, times, axis=0), tensors)


def top_k_logits(logits, k):
    """Logits, −inf where they are lower than the k-th highest of their row; as they are where k is None."""
    if k is None or k >= logits.shape[-1]:
        return logits
    return tf.where(logits < tf.math.top_k(logits, k).values[:, -1:], _NEVER, logits)


def top_p_logits(logits, p):
    """Logits, −inf outside of the smallest set with a probability of p or more; as they are where p is None or 1."""
    if p is None or p == 1.0:
        return logits
    highest_first = tf.sort(logits, direction="DESCENDING")
    probabilities = tf.nn.softmax(highest_first)
    is_in_set = tf.cumsum(probabilities, axis=-1, exclusive=True) < p
    lowest = tf.reduce_min(tf.where(is_in_set, highest_first, float("inf")), axis=-1, keepdims=True)
    return tf.where(logits < lowest, _NEVER, logits)


def _next_log_probs(next_logits, ids, index, state, prompt):
    """Log-probabilities `(rows, vocabulary)` float32, −inf for padding, which is never generated; the new state."""
    logits, new_state = next_logits(ids, index, state)
    vocabulary = logits.shape[-1]
    if prompt.end >= vocabulary:
        raise ValueError(
            f"end_id must be one of the model's {vocabulary} tokens, got {prompt.end}. Give the id that ended the "
            "sequences it was trained on."
        )
    log_probs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    if prompt.pad != prompt.end:
        log_probs = tf.where(tf.range(vocabulary) == prompt.pad, _NEVER, log_probs)
    return log_probs, _with_shapes(new_state, state)


def _with_shapes(state, like):
    """A state with the static shapes of another one, which a loop asks for."""
    return tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), state, like)


def _with_token(ids, index, token):
    """Ids `(..., total)` with the tokens `(...)` at a position."""
    return tf.where(tf.range(ids.shape[-1]) == index, token[..., None], ids)


def _given_or(gains, ids, index, given, beams):
    """Log-probabilities `(batch, beams, vocabulary)`: those of the model, or 0 for a token that is given."""
    vocabulary = gains.shape[-1]
    token = tf.reshape(ids[:, index], (-1, beams, 1))
    is_token = tf.range(vocabulary) == token
    return tf.where(
        index < given[..., None], tf.where(is_token, 0.0, _NEVER), tf.reshape(gains, (-1, beams, vocabulary))
    )


def _best_continuations(log_probs, gains, beams):
    """Log-probabilities, beams and tokens of the best 2 · beams continuations, each `(batch, 2 · beams)`."""
    vocabulary = gains.shape[-1]
    totals = tf.reshape(log_probs[..., None] + gains, (-1, beams * vocabulary))
    totals, places = tf.math.top_k(totals, min(2, vocabulary) * beams)
    return totals, places // vocabulary, places % vocabulary


def _merged(complete, new, beams):
    """The best `beams` of the sequences set aside and new ones: `(scores, ids, lengths)`."""
    together = [tf.concat(pair, axis=1) for pair in zip(complete, new, strict=True)]
    _, kept = tf.math.top_k(together[0], beams)
    merged = [tf.gather(tensor, kept, batch_dims=1) for tensor in together]
    return _with_shapes(tuple(merged), complete)


def _new_tokens(ids, given, lengths, prompt):
    """Ids `(..., total)` without the given ones: `(..., max_length)`, padded after their lengths."""
    number = tf.range(prompt.max_length)
    places = (given + tf.zeros_like(lengths))[..., None] + number
    new = tf.gather(ids, tf.minimum(places, ids.shape[-1] - 1), batch_dims=len(places.shape) - 1)
    return tf.where(number < lengths[..., None], new, prompt.pad)


def _by_example(tensors, rows):
    """Tensors `(batch · rows, ...)` as `(batch, rows, ...)`."""
    return [tf.reshape(tensor, (-1, rows, *tensor.shape[1:])) for tensor in tensors]
