"""Greedy search, beam search and sampling against a naive loop in NumPy, which runs the model anew for each prefix."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.sequences import BeamSearch, Generator, Greedy, Sampling, Transformer
from keras_kd.sequences.search import top_k_logits, top_p_logits

PAD, START, END = 0, 1, 2
VOCABULARY, LENGTH = 6, 4
SOURCES = np.array([[3, 4, 5, 2], [5, 2, 0, 0], [4, 4, 2, 0]])


class Table:
    """A `StepModel` whose logits come from a table: a code of source and prefix, its state, is the row."""

    rows = 97

    def __init__(self, vocabulary=VOCABULARY):
        self.logits = np.random.default_rng(4).normal(0, 1.5, (self.rows, vocabulary)).astype("float32")

    def start_decoding(self, inputs, max_length):
        return {}, {"code": tf.reduce_sum(tf.cast(inputs["source_ids"], tf.int32), axis=1) % self.rows}

    def decode_step(self, ids, position, context, state):
        code = (state["code"] * 7 + ids) % self.rows
        return tf.gather(self.logits, code), {"code": code}

    def after(self, source, prefix):
        """The logits after a prefix, in NumPy."""
        code = source.sum() % self.rows
        for token in [START, *prefix]:
            code = (code * 7 + token) % self.rows
        return self.logits[code]


def transformer(**options):
    """A small Transformer with weights that are large enough to prefer some tokens to others."""
    keras.utils.set_random_seed(5)
    model = Transformer(VOCABULARY, **{"layers": 1, "width": 8, "heads": 2, "feed_forward": 16, **options})
    rng = np.random.default_rng(2)
    model.set_weights([weights + rng.normal(0, 0.5, weights.shape) for weights in model.get_weights()])
    return model


def language_model(vocabulary=VOCABULARY):
    """A decoder-only model, causal because a recurrent layer is."""
    inputs = keras.Input((None,), dtype="int32", name="token_ids")
    normal = keras.initializers.RandomNormal(seed=1, stddev=1.5)
    x = keras.layers.Embedding(vocabulary, 4, embeddings_initializer=normal)(inputs)
    x = keras.layers.GRU(5, return_sequences=True, kernel_initializer=normal)(x)
    return keras.Model({"token_ids": inputs}, keras.layers.Dense(vocabulary, kernel_initializer=normal)(x))


def generator(model, search=None, **options):
    return Generator(model, search, **{"max_length": LENGTH, "start_id": START, "end_id": END, **options})


# The naive loops -----------------------------------------------------------------------------------------------------


def normalized(logits):
    """Log-probabilities, −inf for padding."""
    logits = np.asarray(logits, "float64")
    log_probs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    log_probs[PAD] = -np.inf
    return log_probs


def by_source(logits):
    """For each source, a function from a prefix to log-probabilities; each prefix is computed once."""
    known = {}

    def of(source):
        def log_probs(prefix):
            key = (*source, "|", *prefix)
            if key not in known:
                known[key] = normalized(logits(source, prefix))
            return known[key]

        return log_probs

    return [of(source) for source in SOURCES]


def naive_greedy(log_probs):
    prefix, score = [], 0.0
    while len(prefix) < LENGTH and END not in prefix:
        gains = log_probs(prefix)
        prefix.append(int(gains.argmax()))
        score += gains[prefix[-1]]
    return [(score, prefix)]


def naive_beams(log_probs, beams, penalty, early_stopping):
    alive, complete = [(0.0, [])], []
    for length in range(1, LENGTH + 1):
        continued = [(total + gain, [*ids, token]) for total, ids in alive for token, gain in enumerate(log_probs(ids))]
        best = sorted((one for one in continued if one[0] > -np.inf), key=lambda one: -one[0])[: 2 * beams]
        ended = [(total / length**penalty, ids) for total, ids in best if ids[-1] == END or length == LENGTH]
        complete = sorted([*complete, *ended], key=lambda one: -one[0])[:beams]
        alive = [one for one in best if one[1][-1] != END][:beams] if length < LENGTH else []
        reached = alive and alive[0][0] / (length if early_stopping else LENGTH) ** penalty
        if not alive or (len(complete) == beams and complete[-1][0] >= reached):
            return complete
    return complete


def all_sequences(log_probs, penalty):
    """Every complete sequence with its score, the best first."""
    found = []
    tokens = [token for token in range(VOCABULARY) if token not in (PAD, END)]
    for length in range(1, LENGTH + 1):
        for beginning in itertools.product(tokens, repeat=length - 1):
            for last in [END, *(tokens if length == LENGTH else [])]:
                ids = [*beginning, last]
                total = sum(log_probs(ids[:place])[ids[place]] for place in range(length))
                found.append((total / length**penalty, ids))
    return sorted(found, key=lambda one: -one[0])


def assert_equal(hypotheses, expected):
    """Ids, scores and lengths are those of `[[(score, ids), ...] for each example]`."""
    for row, sequences in enumerate(expected):
        for place, (score, ids) in enumerate(sequences[: hypotheses.ids.shape[1]]):
            assert hypotheses.ids[row, place].numpy().tolist() == ids + [PAD] * (LENGTH - len(ids))
            assert int(hypotheses.lengths[row, place]) == len(ids)
            assert float(hypotheses.scores[row, place]) == pytest.approx(score, abs=2e-5)


# Greedy search and beams ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return Table()


@pytest.fixture(scope="module")
def next_tokens(model):
    return by_source(model.after)


@pytest.fixture(scope="module")
def small_transformer():
    return transformer()


@pytest.fixture(scope="module")
def after_transformer(small_transformer):
    def logits(source, prefix):
        return small_transformer({"source_ids": source[None], "target_ids": np.array([[START, *prefix]])})[0, -1]

    return by_source(logits)


def test_greedy_search(model, next_tokens):
    expected = [naive_greedy(log_probs) for log_probs in next_tokens]
    assert len({len(ids) for ((_, ids),) in expected}) > 1, "one that ends early and one that does not"
    assert_equal(generator(model, Greedy())({"source_ids": SOURCES}), expected)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"jit_compile": True}], ids=str)
def test_a_transformer(small_transformer, after_transformer, options):
    expected = [naive_greedy(log_probs) for log_probs in after_transformer]
    assert len({len(ids) for ((_, ids),) in expected}) > 1
    assert_equal(generator(small_transformer, **options)({"source_ids": SOURCES}), expected)
    hypotheses = generator(small_transformer, BeamSearch(beams=3, n_best=2), **options)({"source_ids": SOURCES})
    assert_equal(hypotheses, [naive_beams(log_probs, 3, 1.0, True) for log_probs in after_transformer])


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(("beams", "penalty"), [(1, 0.0), (2, 0.6), (3, 1.0), (9, 2.0)])
def test_beam_search(model, next_tokens, beams, penalty, early_stopping):
    search = BeamSearch(beams=beams, length_penalty=penalty, n_best=beams, early_stopping=early_stopping)
    hypotheses = generator(model, search)({"source_ids": SOURCES})
    assert_equal(hypotheses, [naive_beams(log_probs, beams, penalty, early_stopping) for log_probs in next_tokens])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_that_hold_all_sequences_find_the_best(model, next_tokens, penalty):
    expected = [all_sequences(log_probs, penalty) for log_probs in next_tokens]
    search = BeamSearch(beams=300, length_penalty=penalty, n_best=20, early_stopping=False)
    assert len(expected[0]) < 300 * 2
    assert_equal(generator(model, search)({"source_ids": SOURCES}), [found[:20] for found in expected])


def test_fewer_sequences_than_beams(model):
    search = BeamSearch(beams=40, n_best=40)
    ids, scores, lengths = generator(model, search, max_length=2)({"source_ids": SOURCES})
    real = 1 + 4 * 5  # the end at once, or one of 4 tokens and then any but padding
    assert np.isfinite(scores[:, :real]).all() and (scores[:, real:].numpy() == -np.inf).all()
    assert not lengths[:, real:].numpy().any() and (ids[:, real:].numpy() == PAD).all()


def test_the_other_examples_of_a_batch_change_nothing(model):
    for search in (Greedy(), BeamSearch(beams=2, n_best=2)):
        generate = generator(model, search, max_length=9)
        together = generate({"source_ids": SOURCES})
        for row in range(len(SOURCES)):
            alone = generate({"source_ids": SOURCES[row : row + 1]})
            np.testing.assert_array_equal(alone.ids[0], together.ids[row])
            np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)


class Steps:
    """A `StepModel` of fixed logits, which counts its steps: the end is certain once `ends` steps are done."""

    def __init__(self, ends, vocabulary=5):
        self.count = tf.Variable(0)
        self.ends, self.vocabulary = ends, vocabulary

    def start_decoding(self, inputs, max_length):
        return (), {"position": tf.zeros_like(inputs["source_ids"][:, 0])}

    def decode_step(self, ids, position, context, state):
        self.count.assign_add(1)
        others, end = tf.zeros((tf.shape(ids)[0], self.vocabulary)), tf.one_hot(END, self.vocabulary) * 100.0
        return tf.where(position + 1 >= self.ends, others + end, others), state


@pytest.mark.parametrize("search", [Greedy(), BeamSearch(beams=2), Sampling(seed=1)], ids=repr)
def test_the_loop_stops_once_all_have_ended(search):
    model = Steps(ends=3)
    hypotheses = Generator(model, search, max_length=50, start_id=START, end_id=END)({"source_ids": SOURCES})
    assert int(model.count) <= 4
    assert int(tf.reduce_max(hypotheses.lengths)) <= 4


def test_ties_go_to_the_earlier_beam_and_the_lower_id():
    model, search = Steps(ends=99), BeamSearch(beams=3, n_best=3)
    for jit_compile in (False, True):
        model.count = tf.Variable(0)
        hypotheses = Generator(model, search, max_length=2, start_id=0, end_id=4, jit_compile=jit_compile)(
            {"source_ids": SOURCES[:1]}
        )
        assert hypotheses.ids.numpy().tolist() == [[[4, 0], [1, 1], [1, 2]]]


def test_no_examples_and_empty_sources(model):
    for search in (Greedy(), BeamSearch(beams=2, n_best=2), Sampling(samples=2)):
        hypotheses = generator(model, search)({"source_ids": np.zeros((0, 3), "int32")})
        assert [tuple(tensor.shape) for tensor in hypotheses] == [
            (0, search.n_best, 4),
            (0, search.n_best),
            (0, search.n_best),
        ]
        assert np.isfinite(generator(model, search)({"source_ids": np.zeros((2, 3), "int32")}).scores).all()


def test_dtypes_in_half_precision():
    hypotheses = generator(transformer(dtype="float16"), BeamSearch())({"source_ids": SOURCES.astype("int64")})
    assert [tensor.dtype for tensor in hypotheses] == [tf.int32, tf.float32, tf.int32]


def test_weights_are_those_of_the_call(small_transformer):
    copy = keras.models.clone_model(small_transformer)
    generate = generator(copy)
    generate({"source_ids": SOURCES})
    copy.set_weights(small_transformer.get_weights())
    expected = generator(small_transformer)({"source_ids": SOURCES})
    np.testing.assert_allclose(generate({"source_ids": SOURCES}).scores, expected.scores, rtol=1e-5)


# Prompts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "with_mask"), [(Greedy(), True), (BeamSearch(beams=3, n_best=3), False)], ids=["greedy", "beams"]
)
def test_prompts_of_different_lengths(search, with_mask):
    model = language_model()
    prompts = [[3], [4, 5, 2, 3], [5, 5]]
    padded = keras.utils.pad_sequences(prompts, padding="post")
    inputs = {"token_ids": padded}
    if with_mask:
        inputs["padding_mask"] = padded > 0
    generate = Generator(model, search, max_length=LENGTH, end_id=END)
    together = generate(inputs)
    for row, prompt in enumerate(prompts):
        alone = generate({"token_ids": np.array([prompt])})
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)
    ids, total = list(prompts[1]), 0.0
    for token in together.ids[1, 0].numpy()[: int(together.lengths[1, 0])]:
        total += float(tf.nn.log_softmax(model({"token_ids": np.array([ids])})[0, -1])[token])
        ids.append(int(token))
    power = 1.0 if isinstance(search, BeamSearch) else 0.0
    assert float(together.scores[1, 0]) == pytest.approx(total / int(together.lengths[1, 0]) ** power, abs=1e-5)


def test_a_softmax_is_undone():
    model = language_model()
    softmax = keras.Model(model.input, keras.layers.Softmax()(model.output))
    prompt = {"token_ids": np.array([[3, 4]])}
    expected, found = (Generator(one, BeamSearch(), max_length=4, end_id=END)(prompt) for one in (model, softmax))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_a_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, inputs):
            return self.inner({"token_ids": inputs["token_ids"]})

    model = language_model()
    prompt = {"token_ids": np.array([[3, 4]])}
    expected, found = (Generator(one, max_length=4, end_id=END)(prompt) for one in (model, Subclassed(model)))
    np.testing.assert_array_equal(found.ids, expected.ids)


# Sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "jit_compile"),
    [({}, False), ({"temperature": 0.5}, True), ({"top_k": 2}, False), ({"top_p": 0.6}, True)],
    ids=str,
)
def test_sampled_frequencies(model, next_tokens, options, jit_compile):
    samples = 6000
    search = Sampling(samples=samples, seed=2, **options)
    hypotheses = generator(model, search, max_length=1, jit_compile=jit_compile)({"source_ids": SOURCES[:1]})
    drawn = hypotheses.ids[0, :, 0].numpy()
    expected = np.exp(next_tokens[0]([]) / options.get("temperature", 1.0))
    order = np.argsort(-expected)
    if "top_k" in options:
        expected[order[2:]] = 0.0
    if "top_p" in options:
        probabilities = np.sort(expected)[::-1] / expected.sum()
        expected[order[np.flatnonzero(probabilities.cumsum() >= 0.6)[0] + 1 :]] = 0.0
    expected /= expected.sum()
    frequencies = np.bincount(drawn, minlength=VOCABULARY) / samples
    deviation = np.sqrt(expected * (1 - expected) / samples)
    assert (np.abs(frequencies - expected) <= 4 * deviation).all()
    np.testing.assert_allclose(hypotheses.scores[0], next_tokens[0]([])[drawn], rtol=1e-4)


def test_top_k_and_top_p_keep_the_sets_of_numpy():
    logits = np.random.default_rng(0).normal(0, 2, (50, 11)).astype("float32")
    order = np.argsort(-logits, axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for k, p in [(1, 0.05), (4, 0.5), (11, 0.95)]:
        top_k, top_p = (
            np.isfinite(function(tf.constant(logits), n)) for function, n in ((top_k_logits, k), (top_p_logits, p))
        )
        for row in range(len(logits)):
            cumulative = probabilities[row, order[row]].cumsum()
            assert set(np.flatnonzero(top_k[row])) == set(order[row, :k])
            assert set(np.flatnonzero(top_p[row])) == set(order[row, : np.argmax(cumulative >= p) + 1])


def test_a_seed_determines_call_after_call(model):
    def two_calls(seed):
        generate = generator(model, Sampling(samples=8, seed=seed))
        return [generate({"source_ids": SOURCES}).ids.numpy() for _ in range(2)]

    first, second, other = two_calls(1), two_calls(1), two_calls(2)
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any() and (first[0] != other[0]).any()
    assert (first[0][:, 0] != first[0][:, 1]).any()


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda model: generator(model, max_length=0), ValueError, "max_length must be >= 1"),
        (lambda model: generator(model, "greedy"), TypeError, "search must be Greedy"),
        (lambda model: generator(3), TypeError, "model must be a keras.Model"),
        (
            lambda model: generator(keras.Model(inputs := keras.Input((3,)), inputs)),
            ValueError,
            "an input named one of",
        ),
        (lambda model: generator(model, end_id=-1), ValueError, "end_id must be >= 0"),
        (lambda model: generator(model, jit_compile="auto"), TypeError, "jit_compile must be True or False"),
        (lambda model: BeamSearch(beams=0), ValueError, "beams must be >= 1"),
        (lambda model: BeamSearch(beams=2, n_best=3), ValueError, "n_best must be <= beams"),
        (lambda model: BeamSearch(length_penalty=-1), ValueError, "length_penalty must be >= 0"),
        (lambda model: Sampling(temperature=0), ValueError, "temperature must be > 0"),
        (lambda model: Sampling(top_k=0), ValueError, "top_k must be >= 1"),
        (lambda model: Sampling(top_p=1.5), ValueError, "top_p must be > 0 and <= 1"),
        (lambda model: Sampling(samples=0), ValueError, "samples must be >= 1"),
        (lambda model: Sampling(seed=1.5), TypeError, "seed must be a whole number"),
    ],
)
def test_bad_arguments(model, make, error, message):
    with pytest.raises(error, match=message):
        make(model)


@pytest.mark.parametrize(
    ("options", "inputs", "error", "message"),
    [
        ({"end_id": 6}, {"source_ids": SOURCES}, ValueError, "end_id must be one of the model's 6 tokens, got 6"),
        ({}, SOURCES, TypeError, "inputs must be a dict"),
        ({}, {"source_ids": SOURCES, "target_ids": SOURCES}, ValueError, "must not hold 'target_ids'"),
        ({"start_id": None}, {"source_ids": SOURCES}, ValueError, "must hold a prompt, 'target_ids'"),
        ({"start_id": None}, {"source_ids": SOURCES, "target_ids": SOURCES * 0}, ValueError, "a token or more"),
    ],
)
def test_bad_inputs(model, options, inputs, error, message):
    with pytest.raises(error, match=message):
        generator(model, **options)(inputs)


def test_inputs_that_are_missing(small_transformer):
    with pytest.raises(ValueError, match="inputs must hold 'source_ids', got"):
        generator(small_transformer)({"sources": SOURCES})
    with pytest.raises(ValueError, match="got none for"):
        generator(small_transformer, use_cache=False)({"sources": SOURCES})


def test_a_model_of_fixed_length():
    inputs = keras.Input((8,), dtype="int32", name="token_ids")
    model = keras.Model({"token_ids": inputs}, keras.layers.Embedding(5, 5)(inputs))
    prompt = {"token_ids": np.array([[1, 3]])}
    assert Generator(model, max_length=6, end_id=4)(prompt).ids.shape == (1, 1, 6)
    with pytest.raises(ValueError, match="the model's 8 positions room for the prompt, got 9"):
        Generator(model, max_length=7, end_id=4)(prompt)
