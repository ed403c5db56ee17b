"""What each coding keeps of an output, in how many bytes, and what it loses."""

import itertools
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
from keras_kd.cache.coding import Full, GradedTopK, Int8, PackedTopK, Sampled, TopK, coding_of, config_of
from keras_kd.cache.packing import Ascending, Fixed, Graded
from keras_kd.cache.sampled import systematic_draws
from keras_kd.outputs.top_classes import TopClasses

REFERENCE = pathlib.Path(__file__).parents[2] / "shared" / "reference" / "losses.json"
VOCABULARY = 250_002


# Numbers in few bytes ----------------------------------------------------------------------------------------------


def test_numbers_of_fixed_width_lie_one_behind_the_other():
    """By hand: 1, 5, 7, 2 with 3 bits each are 001 101 111 010, lowest bits first, so 0b11_101_001 and 0b0000_010_1."""
    coded = Fixed(4, 3).encode(tf.constant([[1, 5, 7, 2]]))
    assert coded.numpy().tolist() == [[0b11_101_001, 0b0000_010_1]]


def test_ascending_numbers_are_coded_as_elias_and_fano_have_it():
    """By hand: 3, 4, 13, 15 below 16, two low bits (11, 00, 01, 11); high parts 0, 1, 3, 3, so ones at 0, 2, 5, 6."""
    code = Ascending(4, 16)
    assert code.encode(tf.constant([[3, 4, 13, 15]])).numpy().tolist() == [[0b01100101, 0b11_01_00_11]]
    assert code.bytes == 2


@pytest.mark.parametrize("width", [1, 3, 5, 8, 13, 17, 24])
def test_numbers_of_any_width_come_back(width):
    numbers = np.random.default_rng(width).integers(0, 2**width, (2, 3, 11)).astype("int32")
    numbers[0, 0] = 2**width - 1
    code = Fixed(11, width)
    coded = code.encode(tf.constant(numbers))
    assert coded.shape == (2, 3, code.bytes) == (2, 3, math.ceil(11 * width / 8))
    np.testing.assert_array_equal(code.decode(coded), numbers)


@pytest.mark.parametrize(("count", "limit"), [(50, VOCABULARY), (12, VOCABULARY), (8, 100), (1, 2), (9, 3), (50, 51)])
def test_ascending_numbers_come_back(count, limit):
    rng = np.random.default_rng(count)
    numbers = np.sort(rng.integers(0, limit, (4, 5, count)), axis=-1).astype("int32")
    numbers[0, 0], numbers[0, 1] = 0, limit - 1  # equal ones, as far as they go
    code = Ascending(count, limit)
    coded = code.encode(tf.constant(numbers))
    assert coded.shape == (4, 5, code.bytes)
    np.testing.assert_array_equal(code.decode(coded), numbers)
    decode = tf.function(code.decode, input_signature=[tf.TensorSpec((None, None, code.bytes), tf.uint8)])
    np.testing.assert_array_equal(decode(coded), numbers)


def test_fifty_of_250002_take_three_bytes_more_than_any_code_must():
    """log2 of the number of sets of 50 out of 250,002: 686 bits, 86 bytes."""
    sets = (math.lgamma(VOCABULARY + 1) - math.lgamma(51) - math.lgamma(VOCABULARY - 49)) / math.log(2.0)
    assert (Ascending(50, VOCABULARY).bytes, math.ceil(sets / 8)) == (89, 86)


def test_graded_numbers_are_coded_in_buckets_that_widen():
    """By hand: buckets at 0, 1, … 7 (w = 0), 8, 10, 12, 14 (w = 1), so ones at 2 + 0, 8 + 1, 11 + 2; then 1, 1."""
    code = Graded(3, 16, 3)  # 3 + 12 bits, two bytes, and the low bits
    coded = code.encode(tf.constant([[2, 9, 15]]), tf.constant([3]))
    assert coded.numpy().tolist() == [[0b0000_0100, 0b0010_0010, 0b11]]
    np.testing.assert_array_equal(code.decode(coded)[0], [[2, 9, 15]])


@pytest.mark.parametrize(
    ("count", "limit", "size"), [(50, VOCABULARY, 75), (50, VOCABULARY, 28), (9, 40, 9), (2, 2, 1)]
)
def test_of_graded_numbers_the_first_come_back_that_fit(count, limit, size):
    rng = np.random.default_rng(0)
    likeliest_first = [rng.permutation(min(limit, 10 ** rng.integers(2, 7)))[-count:] for _ in range(60)]
    likeliest_first += [np.arange(limit)[-count:], np.arange(count)]
    numbers = np.array(likeliest_first, "int32").reshape(2, 31, count)
    code = Graded(count, limit, size)
    fitting = code.fitting(tf.constant(numbers)).numpy()
    assert fitting.min() >= 1
    assert fitting[-1, -1] == count
    if count == 50:  # by hand: 119 bits in 15 bytes, and what the numbers take, log2(number / 4) rounded down
        widths = np.maximum(np.floor(np.log2(np.maximum(numbers, 1) / 4)), 0)
        by_hand = (np.cumsum(widths, axis=-1) <= 8 * (size - 15)).sum(axis=-1)
        assert np.abs(fitting - by_hand).max() <= 1  # buckets begin a little behind powers of two
        assert fitting.min() < 50
    kept = np.arange(count) < fitting[..., None]
    ascending = np.sort(np.where(kept, numbers, limit), axis=-1)
    coded = code.encode(tf.constant(ascending.astype("int32")), tf.constant(fitting))
    assert coded.shape == (2, 31, size)
    decoded, found = (tensor.numpy() for tensor in code.decode(coded))
    np.testing.assert_array_equal(found, fitting)
    np.testing.assert_array_equal(decoded[kept], ascending[kept])
    last = np.take_along_axis(ascending, fitting[..., None] - 1, -1)
    np.testing.assert_array_equal(decoded, np.where(kept, ascending, last))


def test_bytes_that_were_never_encoded_stay_in_range():
    """Padding of examples of other lengths is zeros."""
    for code, byte in itertools.product((Ascending(50, VOCABULARY), Graded(50, VOCABULARY, 75)), (0, 255)):
        decoded = code.decode(tf.fill((3, code.bytes), tf.constant(byte, tf.uint8)))
        numbers = (decoded[0] if isinstance(code, Graded) else decoded).numpy()
        assert numbers.min() >= 0
        assert numbers.max() < VOCABULARY
    graded = GradedTopK((5,), 2, token_bytes=9)
    for coding in (TopK((5,), 2, "float16"), PackedTopK((5,), 2), graded, Sampled((5,), 2)):
        zeros = {name: tf.zeros((3, *shape), np.dtype(dtype)) for name, (dtype, shape) in coding.fields().items()}
        assert np.isfinite(coding.decode(zeros).dense()).all()


# The likeliest classes ---------------------------------------------------------------------------------------------


def record_bytes(coding):
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in coding.fields().values())


def test_a_token_takes_as_many_bytes_as_the_docstrings_say():
    """127 is DistillKit's figure for 50 of 250,002."""
    codings = [TopK((VOCABULARY,), 50, "float16"), TopK((2**16,), 50, "float16"), PackedTopK((VOCABULARY,), 50)]
    codings += [GradedTopK((VOCABULARY,), 50, token_bytes=96), Sampled((VOCABULARY,), 50), Sampled((VOCABULARY,), 12)]
    assert list(map(record_bytes, codings)) == [304, 204, 125, 96, 89, 25]


def test_top_classes_are_never_spread_over_the_vocabulary():
    output = np.random.default_rng(0).normal(size=(2, 3, VOCABULARY)).astype("float32")
    for coding in (TopK((3, VOCABULARY), 50, "float16"), PackedTopK((3, VOCABULARY), 50), Sampled((3, VOCABULARY), 50)):
        decoded = stored(coding, output)
        assert isinstance(decoded, TopClasses)
        assert decoded.classes.shape == decoded.log_p.shape == (2, 3, 50)
        assert (decoded.log_each.shape, decoded.count) == ((2, 3), VOCABULARY)


@pytest.mark.parametrize("shape", [(40, 300), (8, 5, 300)])
def test_packed_classes_are_those_of_top_k_and_their_logs_are_off_by_half_a_step(shape):
    logits = np.random.default_rng(0).normal(scale=3.0, size=shape).astype("float32")
    exact = log_softmax(logits.astype("float64"))
    order = np.argsort(-exact, axis=-1)[..., :20]
    kept = np.take_along_axis(exact, order, -1)
    rest = np.log1p(-np.exp(kept).sum(axis=-1))
    decoded = stored(PackedTopK(shape[1:], 20), logits)
    np.testing.assert_array_equal(decoded.classes, np.sort(order, axis=-1))
    packed = np.take_along_axis(decoded.dense().numpy(), order, -1)
    differences = (packed - packed[..., :1]) - (kept - kept[..., :1])  # to the likeliest, which step 0 stands for
    half_a_step = (kept[..., :1] - kept[..., -1:]) / 31 / 2
    assert np.all(np.abs(differences) <= half_a_step * 1.02)  # float16 of the depth
    assert np.abs(differences / half_a_step).max() > 0.9
    off = packed[..., 0] - (np.asarray(decoded.log_each) + np.log(280.0)) - (kept[..., 0] - rest)
    assert np.abs(off).max() < 5e-3
    np.testing.assert_allclose(np.exp(decoded.dense().numpy().astype("float64")).sum(axis=-1), 1.0, rtol=1e-5)


def test_what_does_not_fit_into_the_bytes_goes_to_the_others():
    """Ids of even frequency: few of 20 fit. What is left is the top-k of as many."""
    logits = np.random.default_rng(0).normal(scale=3.0, size=(8, 3, 3000)).astype("float32")
    coding = GradedTopK((3, 3000), 20, token_bytes=32)
    decoded = stored(coding, logits)
    kept = [[len(np.unique(classes)) for classes in row] for row in decoded.classes.numpy()]
    assert 5 < np.min(kept) < np.max(kept) < 20
    log_p = decoded.dense().numpy().astype("float64")
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-5)
    for row, place in np.ndindex(8, 3):
        exact = through(TopK((3000,), kept[row][place], "float32"), logits[row, place][None])[0]
        half_a_step = (exact.max() - np.sort(exact)[-20]) / 31 / 2
        assert np.abs(log_p[row, place] - exact).max() < half_a_step * 1.05 + 1e-2


def test_where_all_fit_it_is_what_packing_gives():
    logits = (np.random.default_rng(0).normal(size=(40, 3000)) - 2 * np.log(np.arange(1, 3001))).astype("float32")
    packed, graded = (stored(kind, logits) for kind in (PackedTopK((3000,), 20), GradedTopK((3000,), 20, 5, 60)))
    np.testing.assert_array_equal(graded.classes, packed.classes)
    np.testing.assert_allclose(graded.dense(), packed.dense(), atol=2e-2)  # the rest is rounded to float16 again


def test_packing_loses_little_beside_what_top_k_leaves_out():
    """Zipf's law over 5,000 words, each logit moved by a normal number of standard deviation 2."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(scale=2.0, size=(200, 5000)) - np.log(np.arange(1, 5001))).astype("float32")
    log_p = log_softmax(logits.astype("float64"))
    top, packed = (
        (np.exp(log_p) * (log_p - through(coding, logits))).sum(axis=-1).mean()
        for coding in (TopK((5000,), 50, "float32"), PackedTopK((5000,), 50))
    )
    assert 0.1 < top < 2.0
    assert 0.0 < packed - top < 2e-3


def test_packing_takes_extreme_and_masked_logits():
    logits = np.zeros((4, 8), "float32")
    logits[0, :3] = [1e4, 0.0, -1e4]
    logits[1, 2:] = -np.inf  # two classes are left
    logits[2, 3:] = -1e9
    decoded = np.exp(through(PackedTopK((8,), 4), logits))
    np.testing.assert_allclose(decoded[0], np.eye(8)[0], atol=1e-6)
    np.testing.assert_allclose(decoded[1], [0.5] * 2 + [0.0] * 6, atol=1e-6)
    np.testing.assert_allclose(decoded[2], [1 / 3] * 3 + [0.0] * 5, atol=1e-6)
    np.testing.assert_allclose(decoded[3], np.full(8, 0.125), rtol=1e-3)


def test_classes_an_api_returned_can_be_packed(tmp_path):
    log_p = np.log(np.array([[0.6, 0.3], [0.5, 0.25]], "float32"))
    answers = TopLogProbs(np.array([[7, 2], [0, 9]]), log_p, of=10)
    cache = keras_kd.cache_teacher_outputs("api", [(np.arange(2), answers)], tmp_path, key="id", packed=True, verbose=0)
    (precomputed,) = next(iter(cache.attach(tf.data.Dataset.from_tensor_slices({"id": np.arange(2)}).batch(2))))
    expected = np.full((2, 10), [[0.1 / 8], [0.25 / 8]])
    expected[0, [7, 2]], expected[1, [0, 9]] = [0.6, 0.3], [0.5, 0.25]
    np.testing.assert_allclose(np.exp(precomputed.prediction.dense()), expected, rtol=2e-3)


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
    least = GradedTopK((10**6,), 2).least_bytes
    coding = GradedTopK((10**6,), 2, token_bytes=least)  # room for one of ids as high as these
    answers = TopLogProbs(tf.constant([[900_001, 900_002]]), tf.constant(np.log([[0.2, 0.7]]), tf.float32), of=10**6)
    decoded = coding.decode(coding.encode(answers))
    np.testing.assert_array_equal(decoded.classes, [[900_002, 900_002]])
    np.testing.assert_allclose(np.exp(decoded.log_p), [[0.7, 0.7]], rtol=1e-3)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_classes_that_there_are_not_are_refused(tmp_path, wrong):
    answers = TopLogProbs(np.array([[7, wrong]]), np.log(np.array([[0.6, 0.3]])), of=10)
    for packed in (False, True):
        with pytest.raises(tf.errors.InvalidArgumentError, match="classes must be >= 0 and below of=10"):
            folder = tmp_path / str(packed)
            keras_kd.cache_teacher_outputs("api", [(np.arange(1), answers)], folder, key="id", packed=packed, verbose=0)


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
    monkeypatch.setattr("keras_kd.cache.sampled._NUMBERS_AT_ONCE", 100)
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


@pytest.mark.parametrize(
    "options", [{"top_k": 2}, {"top_k": 2, "packed": True}, {"top_k": 2, "packed": 7}, {"sampled": 9}]
)
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
        PackedTopK((4, 9), 2),
        Sampled((9,), 5),
        GradedTopK((9,), 2, 5, 12),
    ],
)
def test_the_manifest_names_the_coding(coding):
    assert coding_of(json.loads(json.dumps(config_of(coding)))) == coding


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top_k": 2, "sampled": 3}, ValueError, "top_k and sampled are two ways to store a part, got 2 and 3"),
        ({"packed": True}, ValueError, "packed=True packs the likeliest classes, but all of 'output' are stored"),
        ({"sampled": 3, "packed": True}, ValueError, "packed=True packs the likeliest classes"),
        ({"top_k": 2, "packed": "yes"}, TypeError, "packed must be a whole number >= 1, got 'yes'"),
        ({"top_k": 2, "packed": 6}, ValueError, "packed must be >= 7 bytes for top_k=2 of 'output', got 6"),
        ({"sampled": 0}, ValueError, "sampled must be >= 1"),
        ({"sampled": 2.5}, TypeError, "sampled must be a whole number"),
        ({"top_k": 3, "packed": True}, ValueError, "top_k must be less than the number of classes, got 3"),
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
