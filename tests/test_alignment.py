"""Tokens of two tokenizers aligned by bytes, and the loss over their groups: against loops in float64 NumPy."""

import itertools

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.losses import ApproximateLikelihoodMatching, align_tokens, alignment_entries, byte_offsets


def spans(*pieces):
    """The `(start, end)` in bytes of pieces of a text that follow each other."""
    ends = np.cumsum([len(piece if isinstance(piece, bytes) else piece.encode()) for piece in pieces])
    return [
        (int(end) - len(p if isinstance(p, bytes) else p.encode()), int(end))
        for end, p in zip(ends, pieces, strict=True)
    ]


def by_brute_force(teacher, student):
    """Groups by walking along the bytes: a group is closed where both sides have an end."""
    ends = [{end for start, end in side if end > start} for side in (teacher, student)]
    shared = sorted(ends[0] & ends[1])
    return tuple(
        [next((i for i, close in enumerate(shared) if end <= close), -1) if end > start else -1 for start, end in side]
        for side in (teacher, student)
    )


TEXTS = {
    "subwords": (spans("di", "stil", "l", "ation"), spans("dis", "ti", "ll", "ation")),
    "bytes of a character": (spans("f", "ü".encode()[:1], "ü".encode()[1:], "r"), spans("fü", "r")),
    "one side has a start token": ([(0, 0), *spans("a", "b", "c")], spans("a", "bc")),
    "an end token on both sides": ([*spans("ab", "c"), (3, 4)], [*spans("a", "bc"), (3, 4)]),
    "an end token on one side": ([*spans("ab", "c"), (3, 4)], spans("a", "bc")),
    "spaces in one side's offsets alone": ([(0, 3), (3, 7)], [(0, 3), (4, 7)]),
    "a cut text": (spans("ab", "cd", "ef"), spans("abc", "d", "e")),
    "no end in common": (spans("ab"), spans("a")),
    "empty": ([], []),
    "all tokens of a character have its offsets": ([(0, 3), (0, 3), (0, 3), (3, 4)], [(0, 3), (3, 4)]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_groups_end_where_both_sides_end(name):
    found = align_tokens(*TEXTS[name])
    assert [own.tolist() for own in found] == [list(own) for own in by_brute_force(*TEXTS[name])]
    assert [own.dtype for own in found] == [np.int32] * 2
    assert [own.tolist() for own in align_tokens(*TEXTS[name][::-1])] == [own.tolist() for own in found[::-1]]


def test_groups_of_random_cuts_have_the_same_bytes_on_both_sides():
    rng = np.random.default_rng(0)
    text = "Zwölf Boxkämpfer – 一只狗 в красном, naïve café 😀!".encode()
    for _ in range(50):
        cuts = [[0, *sorted(rng.choice(np.arange(1, len(text)), 9, replace=False)), len(text)] for _ in range(2)]
        sides = [[(int(a), int(b)) for a, b in itertools.pairwise(cut)] for cut in cuts]
        groups = align_tokens(*sides)
        parts = [
            [
                b"".join(text[a:b] for (a, b), g in zip(side, own, strict=True) if g == group)
                for group in range(max(own) + 1)
            ]
            for side, own in zip(sides, groups, strict=True)
        ]
        assert parts[0] == parts[1] and b"".join(parts[0]) == text


def test_offsets_in_characters_become_bytes():
    text = "fü一😀a"
    offsets = [(0, 2), (2, 3), (3, 4), (4, 5)]
    expected = [(len(text[:start].encode()), len(text[:end].encode())) for start, end in offsets]
    np.testing.assert_array_equal(byte_offsets(text, offsets), expected)
    with pytest.raises(ValueError, match="0 to 5, got 6"):
        byte_offsets(text, [(0, 6)])
    with pytest.raises(TypeError, match="text must be a str"):
        byte_offsets(b"a", [(0, 1)])


# The loss -----------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
TOKENS = (
    [(RNG.integers(7, size=len(own)), own) for own in (TEXTS[name][0] for name in list(TEXTS)[:4])],
    [(RNG.integers(5, size=len(own)), own) for own in (TEXTS[name][1] for name in list(TEXTS)[:4])],
)
ENTRIES = alignment_entries(*TOKENS, teacher_length=5, student_length=4)
TARGETS = ENTRIES["teacher_targets"], ENTRIES["student_targets"]
GROUPS = ENTRIES["teacher_groups"], ENTRIES["student_groups"]
TEACHER, STUDENT = 2 * RNG.normal(size=(4, 5, 7)), 2 * RNG.normal(size=(4, 4, 5))


def expected(teacher=TEACHER, student=STUDENT, targets=TARGETS, temperature=100.0):
    return formulas.approximate_likelihood_matching(teacher, student, targets, GROUPS, temperature)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0])
def test_the_value_is_the_formula_group_by_group(temperature):
    loss = ApproximateLikelihoodMatching(temperature, dtype="float64", reduction=None)
    np.testing.assert_allclose(loss(TEACHER, STUDENT, **ENTRIES), expected(temperature=temperature), rtol=1e-4)
    value = float(ApproximateLikelihoodMatching(temperature)(TEACHER, STUDENT, **ENTRIES))
    assert value == pytest.approx(expected(temperature=temperature).mean(), rel=1e-3)


def test_at_high_temperature_it_is_the_limit_that_the_authors_code_has():
    """tokenkit, `binary_kl_temp_limit`: (log p − log q) + log p log(−log q) − log p log(−log p)."""
    log_p, log_q = np.log(0.2), np.log(0.8)
    limit = (log_p - log_q) + log_p * np.log(-log_q) - log_p * np.log(-log_p)
    entries = alignment_entries([([0, 1], spans("di", "stil"))], [([2], spans("distil"))])
    loss = ApproximateLikelihoodMatching(1000.0, dtype="float64")
    value = loss(np.log([[[0.5, 0.5], [0.6, 0.4]]]), np.log([[[0.1, 0.1, 0.8]]]), **entries)
    assert float(value) == pytest.approx(limit, rel=5e-3)


def test_a_shift_by_one_token_is_another_value():
    """The token that a position predicts, not the one that it reads."""
    loss = ApproximateLikelihoodMatching(reduction=None)
    right = loss(TEACHER, STUDENT, **ENTRIES).numpy()
    for side in (0, 1):
        shifted = [np.roll(own, 1, axis=1) if i == side else own for i, own in enumerate(TARGETS)]
        entries = {**ENTRIES, "teacher_targets": shifted[0], "student_targets": shifted[1]}
        wrong = loss(TEACHER, STUDENT, **entries).numpy()
        assert (np.abs(wrong - right) > 0.01).all()
        np.testing.assert_allclose(wrong, expected(targets=shifted), rtol=1e-3)
    logits = np.roll(TEACHER, 1, axis=1)
    assert (np.abs(loss(logits, STUDENT, **ENTRIES).numpy() - right) > 0.01).all()


def test_models_that_give_each_text_the_same_likelihood_have_no_loss_and_no_gradient():
    """The student's one token is as likely as the teacher's two, one after the other."""
    p = np.array([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]])
    entries = alignment_entries([([1, 2], spans("a", "b"))], [([0], spans("ab"))])
    student = tf.constant(np.log([[[0.3 * 0.3, 1 - 0.09]]]))
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = ApproximateLikelihoodMatching(dtype="float64")(np.log(p), student, **entries)
    assert float(value) == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(tape.gradient(value, student), 0.0, atol=1e-6)


def test_the_gradient_is_the_numeric_one_and_the_same_under_xla():
    loss = ApproximateLikelihoodMatching(dtype="float64")
    gradients = []
    for jit_compile in (False, True):

        @tf.function(jit_compile=jit_compile)
        def gradient(student):
            with tf.GradientTape() as tape:
                tape.watch(student)
                value = loss(tf.constant(TEACHER), student, **ENTRIES)
            return tape.gradient(value, student)

        gradients.append(gradient(tf.constant(STUDENT)).numpy())
    np.testing.assert_allclose(*gradients, rtol=1e-6, atol=1e-12)
    for index in [(0, 0, 1), (1, 1, 2), (2, 0, 0), (3, 2, 4)]:
        step = np.zeros_like(STUDENT)
        step[index] = 1e-5
        numeric = (expected(student=STUDENT + step).mean() - expected(student=STUDENT - step).mean()) / 2e-5
        assert gradients[0][index] == pytest.approx(numeric, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_finite_far_out_with_a_gradient_where_the_student_is_wrong(scale, sign):
    entries = alignment_entries([([0], spans("a"))], [([0], spans("a"))])
    student = tf.constant([[[sign * scale, 0.0]]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = ApproximateLikelihoodMatching()(np.array([[[-sign * scale, 0.0]]]), student, **entries)
    gradient = tape.gradient(value, student).numpy()
    assert np.isfinite(value) and float(value) > 1.0 and np.isfinite(gradient).all()
    if sign < 0:
        assert np.abs(gradient).max() > 0.1


def test_a_weight_for_each_language_multiplies_the_value_of_its_examples():
    inner = ApproximateLikelihoodMatching(reduction=None)
    loss = keras_kd.losses.ByLanguage(inner, weights={"de": 2.0, "fi": 0.5})
    found = loss(TEACHER, STUDENT, languages=np.array(["de", "fi", "fi", "de"]), **ENTRIES)
    np.testing.assert_allclose(found, expected() * [2.0, 0.5, 0.5, 2.0], rtol=1e-3)


def test_examples_without_groups_and_tokens_without_one_do_not_count():
    entries = {**ENTRIES, "student_groups": ENTRIES["student_groups"].copy()}
    entries["student_groups"][0] = -1
    loss = ApproximateLikelihoodMatching(reduction=None)
    found = loss(TEACHER, STUDENT, **entries).numpy()
    assert found[0] == 0.0
    np.testing.assert_allclose(found[1:], expected()[1:], rtol=1e-3)
    teacher, student = TEACHER.copy(), STUDENT.copy()
    teacher[GROUPS[0] < 0], student[GROUPS[1] < 0] = 50.0, -50.0
    np.testing.assert_allclose(loss(teacher, student, **ENTRIES), expected(), rtol=1e-3)


def test_a_group_that_is_cut_at_the_length_of_one_side_is_left_out():
    """Otherwise the likelihoods of other bytes would be compared."""
    tokens = [([1, 2, 3], spans("a", "b", "c"))], [([4, 5], spans("a", "bc"))]
    whole, cut = alignment_entries(*tokens), alignment_entries(*tokens, teacher_length=2)
    assert whole["student_groups"].tolist() == [[0, 1]] and cut["student_groups"].tolist() == [[0, -1]]
    assert cut["teacher_targets"].tolist() == [[1, 2]] and cut["teacher_groups"].tolist() == [[0, -1]]


# In a distiller -------------------------------------------------------------------------------------------------------


def decoder(length, classes, name):
    inputs = keras.Input((length,), dtype="int32", name=name)
    hidden = keras.layers.Conv1D(32, 3, padding="causal", activation="relu")(keras.layers.Embedding(8, 16)(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes)(hidden))


@pytest.fixture
def models_and_data():
    keras.utils.set_random_seed(0)
    x = {"teacher_ids": RNG.integers(8, size=(4, 5)), "student_ids": RNG.integers(8, size=(4, 4)), **ENTRIES}
    return decoder(5, 7, "teacher_ids"), decoder(4, 5, "student_ids"), x


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_student_of_another_tokenizer_learns_the_likelihoods_of_the_text(models_and_data, jit_compile):
    teacher, student, x = models_and_data
    values = expected(teacher(x["teacher_ids"]).numpy(), student(x["student_ids"]).numpy())
    distiller = keras_kd.Distiller(teacher, student, ApproximateLikelihoodMatching())
    distiller.compile(keras.optimizers.Adam(0.05), None, jit_compile=jit_compile)
    history = distiller.fit(x, batch_size=4, epochs=30, verbose=0).history["approximate_likelihood_matching"]
    assert history[0] == pytest.approx(values.mean(), rel=1e-3)
    assert history[-1] < 0.1 * history[0]


def test_it_works_with_a_stored_teacher_and_beside_other_losses_and_is_loaded_again(models_and_data, tmp_path):
    teacher, student, x = models_and_data
    data = tf.data.Dataset.from_tensor_slices((x, ENTRIES["student_targets"])).batch(4)
    losses = [ApproximateLikelihoodMatching(weight=0.5), keras_kd.losses.UniversalLogitDistillation()]
    live = keras_kd.Distiller(teacher, student, losses)
    live.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    live.save(tmp_path / "distiller.keras")
    first = live.fit(data, verbose=0).history
    stored = keras_kd.load_distiller(tmp_path / "distiller.keras", None)
    cached = keras_kd.cache_teacher_outputs(
        teacher, data, tmp_path / "outputs", dtype="float32", padding=None, verbose=0
    )
    for name, value in stored.fit(cached, verbose=0).history.items():
        assert value == pytest.approx(first[name], rel=1e-4), name


def test_models_that_end_in_softmax_give_the_same_value(models_and_data):
    teacher, student, x = models_and_data
    values = []
    for ends_in_softmax in (False, True):
        models = [
            keras.Model(m.input, keras.layers.Softmax()(m.output)) if ends_in_softmax else m for m in (teacher, student)
        ]
        distiller = keras_kd.Distiller(*models, ApproximateLikelihoodMatching())
        distiller.compile(keras.optimizers.SGD(0.0), None)
        values.append(distiller.fit(x, verbose=0).history["approximate_likelihood_matching"][0])
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_bad_input_is_named(models_and_data):
    teacher, student, x = models_and_data
    x = dict(x)
    del x["teacher_groups"]
    distiller = keras_kd.Distiller(teacher, student, ApproximateLikelihoodMatching())
    distiller.compile("sgd", None)
    with pytest.raises(ValueError, match="needs teacher_groups: x must be a dict with the entry 'teacher_groups'"):
        distiller.fit(x, verbose=0)
    loss = ApproximateLikelihoodMatching()
    with pytest.raises(TypeError, match=r"needs the arguments \['student_groups', .*, got \[\]"):
        loss(TEACHER, STUDENT)
    with pytest.raises(TypeError, match="needs the arguments \\[\\] beside teacher and student, got \\['labls'\\]"):
        keras_kd.losses.SoftLabels()(TEACHER, TEACHER, labls=[1])
    with pytest.raises(ValueError, match=r"\(batch, length, classes\) of equal batch"):
        loss(TEACHER[0], STUDENT[0], **ENTRIES)
    with pytest.raises(ValueError, match="targets and groups must have the batch and length"):
        loss(TEACHER[:, :4], STUDENT, **ENTRIES)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        ApproximateLikelihoodMatching(0.0)
    for wrong in ([(0, 2), (0, 1)], [(2, 1)], [(-1, 1)]):
        with pytest.raises(ValueError, match="teacher_offsets must go along the text"):
            align_tokens(wrong, [])
    with pytest.raises(ValueError, match=r"student_offsets must be a \(start, end\) for each token"):
        align_tokens([], [(1, 2, 3)])
    with pytest.raises(TypeError, match="whole numbers"):
        align_tokens([(0.5, 1.0)], [])
    with pytest.raises(ValueError, match="of the same texts, got 1 and 0"):
        alignment_entries([([1], [(0, 1)])], [])
    with pytest.raises(ValueError, match=r"student_tokens\[0\] must have an offset for each id"):
        alignment_entries([([1], [(0, 1)])], [([1, 2], [(0, 1)])])
