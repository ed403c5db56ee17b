"""What each coding keeps of an output, in how many bytes, and what it loses."""

import json
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model
from formulas import log_softmax

import keras_kd
from keras_kd.cache import TopLogProbs
from keras_kd.cache.codings import Full, Int8, Sampled, TopK, coding_from, config_of, systematic_draws
from keras_kd.outputs.top_classes import TopClasses

REFERENCE = pathlib.Path(__file__).parents[2] / "shared" / "reference" / "losses.json"
VOCABULARY = 250_002


# The likeliest classes ---------------------------------------------------------------------------------------------


def record_bytes(coding):
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in coding.fields().values())


def test_a_token_takes_as_many_bytes_as_the_docstrings_say():
    """127 is DistillKit's figure for 50 of 250,002."""
    codings = [TopK((VOCABULARY,), 50, "float16"), TopK((2**16,), 50, "float16")]
    codings += [Sampled((VOCABULARY,), 12), Sampled((2**16,), 12)]
    assert list(map(record_bytes, codings)) == [304, 204, 48, 24]


def test_padding_of_zeros_decodes_to_finite_numbers():
    for coding in (TopK((5,), 2, "float16"), Sampled((5,), 2)):
        zeros = {name: tf.zeros((3, *shape), np.dtype(dtype)) for name, (dtype, shape) in coding.fields().items()}
        assert np.isfinite(coding.decode(zeros).dense()).all()


def test_top_classes_are_never_spread_over_the_vocabulary():
    output = np.random.default_rng(0).normal(size=(2, 3, VOCABULARY)).astype("float32")
    for coding in (TopK((3, VOCABULARY), 50, "float16"), Sampled((3, VOCABULARY), 50)):
        decoded = stored(coding, output)
        assert isinstance(decoded, TopClasses)
        assert decoded.classes.shape == decoded.log_p.shape == (2, 3, 50)
        assert (decoded.log_each.shape, decoded.count) == ((2, 3), VOCABULARY)


def stored(coding, output, keys=None):
    """What comes back of an output after it lay in a record."""
    keys = tf.range(len(output), dtype=tf.int64) if keys is None else keys
    records = {}
    for name, tensor in coding.encode(tf.constant(output), keys).items():
        dtype, shape = coding.fields()[name]
        assert (tensor.dtype, tensor.shape) == (np.dtype(dtype), (len(output), *shape))
        records[name] = tensor.numpy().astype(dtype)
    assert set(records) == set(coding.fields())
    return coding.decode({name: tf.constant(array) for name, array in records.items()})


def through(coding, output, keys=None):
    """What comes back, of all classes, in NumPy."""
    decoded = stored(coding, output, keys)
    return (decoded.dense() if isinstance(decoded, TopClasses) else decoded).numpy()


@pytest.mark.parametrize("shape", [(6, 9), (6, 4, 9)])
def test_top_k_keeps_the_likeliest_and_spreads_the_rest(shape):
    logits = np.random.default_rng(0).normal(scale=4.0, size=shape).astype("float32")
    log_p = log_softmax(logits.astype("float64"))
    order = np.argsort(-log_p, axis=-1)
    rest = np.exp(np.take_along_axis(log_p, order[..., 3:], -1)).sum(axis=-1, keepdims=True)
    expected = np.broadcast_to(np.log(rest / 6), shape).copy()
    np.put_along_axis(expected, order[..., :3], np.take_along_axis(log_p, order[..., :3], -1), -1)
    np.testing.assert_allclose(through(TopK(shape[1:], 3, "float32"), logits), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(through(TopK(shape[1:], 3, "float16"), logits), expected, rtol=1e-3, atol=1e-4)


def test_top_k_of_extreme_logits_is_finite():
    logits = np.array([[1e4, 0.0, -1e4, -1e4], [0.0, 0.0, 0.0, 0.0]], "float32")
    decoded = through(TopK((4,), 2, "float32"), logits)
    np.testing.assert_allclose(decoded, [[0.0, -1e4, -2e4, -2e4], np.full(4, -np.log(4.0))], rtol=1e-5)


def test_top_k_of_more_classes_than_16_bits_count():
    logits = np.zeros((1, 70_000), "float32")
    logits[0, 69_999] = 20.0
    assert through(TopK((70_000,), 2, "float16"), logits).argmax() == 69_999


@pytest.mark.skipif(not REFERENCE.exists(), reason="needs the reference values of shared/")
def test_kl_from_the_top_two_is_that_of_distillkit_where_the_student_spreads_its_rest_as_well():
    grid = 5 * np.arange(4)[:, None] + np.arange(5)
    student, teacher = 2 * np.sin(1.0 + grid), 3 * np.cos(2.0 + grid)
    named = {value["name"]: value for value in json.loads(REFERENCE.read_text())["values"]}
    published = named["sparse top-2 teacher KL, summed over the 4 rows, T=1"]
    distillation_loss, coding = keras_kd.losses.SoftLabels(1.0), TopK((5,), 2, "float32")
    fields = coding.encode(tf.constant(teacher, tf.float32))
    log_q = np.take_along_axis(log_softmax(student), fields[".classes"].numpy().astype(int), -1)
    log_rest = np.log(1.0 - np.exp(log_q).sum(axis=-1))
    spread = coding.decode({**fields, ".log_p": tf.constant(log_q), ".log_rest": tf.constant(log_rest, tf.float32)})
    top_two = coding.decode(fields)
    top_two, spread = top_two.dense(), spread.dense()
    assert 4 * float(distillation_loss(top_two, spread)) == pytest.approx(
        published["missing_mass_uniform_tail"], rel=1e-5
    )
    assert 4 * float(distillation_loss(top_two, student)) == pytest.approx(11.8472534776, rel=1e-5)  # float64 NumPy
    full = through(Full((5,), "float16"), teacher.astype("float32"))
    assert 4 * float(distillation_loss(full, student)) == pytest.approx(published["full"], rel=1e-3)


def test_int8_is_off_by_half_a_step_at_most():
    rng = np.random.default_rng(0)
    hidden = (rng.normal(size=(50, 4, 16)) * np.exp(rng.normal(scale=4.0, size=(50, 4, 1)))).astype("float32")
    hidden[3, 2] = 0.0
    error = np.abs(through(Int8((4, 16)), hidden) - hidden)
    bound = np.abs(hidden).max(axis=-1, keepdims=True) / 254
    assert (error <= bound * (1 + 1e-4)).all()
    assert error.max() > 0.5 * bound[error.max(axis=-1) == error.max()].max()  # the bound is near


def test_the_likeliest_of_an_api_are_kept_in_whatever_order_it_gives_them():
    coding = TopK((10**6,), 2, "float16")
    answers = TopLogProbs(tf.constant([[900_001, 900_002]]), tf.constant(np.log([[0.2, 0.7]]), tf.float32), of=10**6)
    decoded = coding.decode(coding.encode(answers))
    np.testing.assert_array_equal(decoded.classes, [[900_002, 900_001]])
    np.testing.assert_allclose(np.exp(decoded.log_p), [[0.7, 0.2]], rtol=1e-3)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_classes_out_of_range_are_refused(tmp_path, wrong):
    answers = TopLogProbs(np.array([[7, wrong]]), np.log(np.array([[0.6, 0.3]])), of=10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="classes must be >= 0 and below of=10"):
        keras_kd.cache_teacher_outputs("api", [(np.arange(1), answers)], tmp_path, key="id", verbose=0)


def answers(*ks, of=9):
    """A batch of `TopLogProbs` whose rows have so many classes: arrays, or lists where the rows differ."""
    classes, log_p = [list(range(k)) for k in ks], [[-2.5] * k for k in ks]
    return TopLogProbs(*(map(np.array, (classes, log_p)) if len({*ks}) == 1 else (classes, log_p)), of=of)


@pytest.mark.parametrize(
    "batches",
    [
        [answers(2, 2), answers(3, 3)],
        [answers(3, 3), answers(2, 2)],
        [answers(2, 3)],
        [answers(2, 2), answers(2, 1)],
        [TopLogProbs(*map(tf.ragged.constant, answers(2, 3)[:2]), of=9)],
        [answers(2, 2)._replace(log_p=np.full((2, 3), -2.5))],
        [np.zeros((2, 9)), answers(3, 3)],
        [{"a": np.zeros((2, 9)), "b": answers(3, 3)}, {"a": answers(3, 3), "b": answers(3, 3)}],
        [{"a": np.zeros((2, 9)), "b": answers(3, 3)}, {"a": np.zeros((2, 9)), "b": answers(4, 4)}],
    ],
)
def test_answers_of_several_k_are_refused(tmp_path, batches):
    numbered = [(np.arange(2) + 2 * i, batch) for i, batch in enumerate(batches)]
    with pytest.raises(ValueError, match=r"TopLogProbs must have the same k in all rows.* got .*'output\b.*Cut"):
        keras_kd.cache_teacher_outputs("api", numbered, tmp_path / "cache", key="id", verbose=0)


def test_top_k_is_not_given_with_answers_of_another_k(tmp_path):
    with pytest.raises(ValueError, match="top_k=2 is for logits, but 'output' is a TopLogProbs of k = 3"):
        keras_kd.cache_teacher_outputs("api", [(np.arange(2), answers(3, 3))], tmp_path, key="id", top_k=2, verbose=0)


def test_rows_of_several_lengths_are_refused_or_ragged(tmp_path):
    uneven = [[0.0, 1.0], [0.0]]
    for outputs in ([np.array(uneven, dtype=object)], [np.zeros((2, 3)), {"block": uneven}]):
        with pytest.raises(ValueError, match=r"rows of one length, .*tf\.RaggedTensor"):
            keras_kd.cache_teacher_outputs("arrays", [([1, 2], *outputs)], tmp_path, key="id", verbose=0)


# Samples -----------------------------------------------------------------------------------------------------------


def draws_of(coding, logits, seeds):
    """Estimates p̂ of one distribution, (seeds, classes), each of another example."""
    many = np.broadcast_to(logits, (seeds, *logits.shape)).astype("float32")
    return np.exp(through(coding, many).astype("float64"))


def some_logits(classes=40):
    return np.random.default_rng(3).normal(size=classes)


def test_a_sample_is_unbiased_where_top_k_is_not():
    """Means over 4,000 seeds lie within their standard errors of float64: z of 40 classes, Bonferroni at 1e-4: 4.7."""
    logits, seeds = some_logits(), 4000
    p = np.exp(log_softmax(logits))
    drawn = draws_of(Sampled((40,), 5), logits, seeds)
    error = drawn.std(axis=0) / math.sqrt(seeds)
    assert np.abs((drawn.mean(axis=0) - p) / error).max() < 4.7
    top = draws_of(TopK((40,), 5, "float32"), logits, 1)[0]
    assert (np.abs(top - p) / error).max() > 30


def test_the_gradient_of_a_sample_is_that_of_all_logits_on_average():
    logits, seeds = some_logits(), 2000
    student = np.random.default_rng(4).normal(size=40)
    distillation_loss = keras_kd.losses.SoftLabels(temperature=1.0, reduction="sum")

    def gradient(teacher):
        rows = tf.Variable(np.broadcast_to(student, teacher.shape), dtype="float32")
        with tf.GradientTape() as tape:
            loss = distillation_loss(tf.constant(teacher, tf.float32), rows)
        return tape.gradient(loss, rows).numpy().astype("float64")

    exact = np.exp(log_softmax(student)) - np.exp(log_softmax(logits))  # softmax(s) − p, float64
    np.testing.assert_allclose(gradient(logits[None])[0], exact, atol=1e-6)
    many = np.broadcast_to(logits, (seeds, 40)).astype("float32")
    off = {}
    for name, coding in {"sampled": Sampled((40,), 8), "top": TopK((40,), 8, "float32")}.items():
        gradients = gradient(through(coding, many))
        off[name] = np.linalg.norm(gradients.mean(axis=0) - exact)
        if name == "sampled":
            spread = math.sqrt(gradients.var(axis=0).sum() / seeds)  # the norm that chance alone gives
    assert off["sampled"] < 2 * spread
    assert off["top"] > 5 * spread


def test_systematic_draws_by_hand():
    """Cumulative 0.5, 0.5, 0.9, 1.0; places (i + 0.4) / 4 = 0.1, 0.35, 0.6, 0.85 and (i + 0.9) / 4 = 0.225 … 0.975."""
    p = np.array([[5.0, 0.0, 4.0, 1.0]] * 2)
    drawn = systematic_draws(p, np.array([0.4, 0.9]), 4)
    assert drawn.tolist() == [[0, 0, 2, 2], [0, 0, 2, 3]]
    on_the_edge = systematic_draws(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), np.array([0.5, 0.0]), 1)
    assert on_the_edge.tolist() == [[2], [1]]  # a place belongs to what begins there, if it has a probability


def test_a_class_is_drawn_as_often_as_it_should_be_rounded_up_or_down():
    """So the variance of its share, f (1 − f) / N², is at most that of independent draws, p (1 − p) / N."""
    logits = some_logits()
    p = np.exp(log_softmax(logits))
    drawn = draws_of(Sampled((40,), 12), logits, 3000)
    times = np.where(drawn > 1e-9, np.rint(12 * drawn), 0)
    assert np.all((times == np.floor(12 * p)) | (times == np.ceil(12 * p)))
    np.testing.assert_array_equal(times.sum(axis=1), 12)
    fraction = 12 * p - np.floor(12 * p)
    np.testing.assert_allclose(times.var(axis=0), fraction * (1 - fraction), atol=0.02)
    assert drawn.var(axis=0).sum() < 0.5 * (p * (1 - p) / 12).sum()


def test_what_is_drawn_depends_on_the_key_and_the_place_alone():
    rng = np.random.default_rng(0)
    logits = np.broadcast_to(rng.normal(size=30), (6, 4, 30)).astype("float32")
    coding, keys = Sampled((4, 30), 7), tf.constant([5, -3, 2**62, 8, 9, 5], tf.int64)
    whole = through(coding, logits, keys)
    assert len(np.unique(whole[:5].reshape(20, 30), axis=0)) > 10
    np.testing.assert_array_equal(whole[0], whole[5])
    np.testing.assert_array_equal(through(coding, logits[::-1], keys[::-1])[::-1], whole)
    np.testing.assert_array_equal(through(coding, logits[3:4], keys[3:4])[0], whole[3])
    shorter = Sampled((2, 30), 7)
    np.testing.assert_array_equal(through(shorter, logits[:, :2], keys), whole[:, :2])


def test_many_classes_are_drawn_in_parts(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(9, 50)).astype("float32")
    whole = through(Sampled((50,), 6), logits)
    monkeypatch.setattr("keras_kd.cache.codings._NUMBERS_AT_ONCE", 100)
    np.testing.assert_array_equal(through(Sampled((50,), 6), logits), whole)


def test_masked_classes_are_never_drawn_and_nan_is_refused():
    logits = np.full((500, 6), -np.inf, "float32")
    logits[:, [1, 4]] = 0.0
    drawn = stored(Sampled((6,), 3), logits).classes.numpy()
    assert set(drawn.reshape(-1)) == {1, 4}
    logits[7, 2] = np.nan
    encode = tf.function(Sampled((6,), 3).encode)  # as a cache is built
    with pytest.raises(tf.errors.InvalidArgumentError, match="example with the key 107 holds NaN"):
        encode(tf.constant(logits), tf.range(100, 600, dtype=tf.int64))


# All the way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"top_k": 2}, {"sampled": 9}])
def test_a_student_learns_from_it_and_building_again_gives_the_same_bytes(data, tmp_path, options):
    teacher, student = dense_model(16, 3), dense_model(3)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    contents = []
    for name in ("one", "two"):
        precomputed = keras_kd.cache_teacher_outputs(teacher, dataset, tmp_path / name, verbose=0, **options)
        contents.append({file.name: file.read_bytes() for file in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1]
    distiller = keras_kd.Distiller(None, student, keras_kd.losses.SoftLabels(1.0))
    distiller.compile("adam", crossentropy())
    history = distiller.fit(precomputed, epochs=3, shuffle=False, verbose=0).history["soft_labels"]
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    "coding",
    [
        Full((3,), "float16"),
        Int8((3,)),
        TopK((9,), 2, "float32"),
        TopK((4, 9), 2, "float16"),
        Sampled((9,), 5),
    ],
)
def test_the_manifest_names_the_coding(coding):
    assert coding_from(json.loads(json.dumps(config_of(coding)))) == coding


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top_k": 2, "sampled": 3}, ValueError, "top_k and sampled are two ways to store a part, got 2 and 3"),
        ({"sampled": 0}, ValueError, "sampled must be >= 1"),
        ({"sampled": 2.5}, TypeError, "sampled must be a whole number"),
    ],
)
def test_bad_arguments_are_named(data, tmp_path, options, error, message):
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    with pytest.raises(error, match=message):
        keras_kd.cache_teacher_outputs(dense_model(3), dataset, tmp_path / "cache", verbose=0, **options)
    assert not (tmp_path / "cache").exists()


def test_sampling_needs_distributions(tmp_path):
    one, two = np.zeros((2, 1), "float32"), TopLogProbs(np.array([[0]]), np.array([[-1.0]]), of=3)
    with pytest.raises(ValueError, match=r"sampled needs distributions over at least 2 classes, got 'output' of shape"):
        keras_kd.cache_teacher_outputs("a rule", [(np.arange(2), one)], tmp_path, key="id", sampled=3, verbose=0)
    with pytest.raises(ValueError, match=r"top_k must be less than the number of classes, got 1 for 'output' of shape"):
        keras_kd.cache_teacher_outputs("a rule", [(np.arange(1), two._replace(of=1))], tmp_path, key="id", verbose=0)
    with pytest.raises(ValueError, match="sampled needs all logits, but 'output' is a TopLogProbs"):
        keras_kd.cache_teacher_outputs("a rule", [(np.arange(1), two)], tmp_path, key="id", sampled=3, verbose=0)


def test_a_sample_is_refused_to_losses_that_would_soften_it(data, tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    options = {"sampled": 3, "verbose": 0}
    with pytest.raises(ValueError, match=r"sampled is for losses of temperature 1, got 4\.0 of soft_labels"):
        keras_kd.cache_teacher_outputs(
            dense_model(3), dataset, tmp_path, outputs=[keras_kd.losses.SoftLabels(4.0)], **options
        )
    keras_kd.cache_teacher_outputs(
        dense_model(3), dataset, tmp_path, outputs=keras_kd.losses.SoftLabels(1.0), **options
    )
