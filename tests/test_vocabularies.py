"""Losses across vocabularies: the published value, gathering against indexing, ids, lengths and masks."""

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model
from loss_table import LABELS, STUDENT

import keras_kd
from keras_kd._keras_private import set_mask

ROWS = np.arange(4)[:, None]
TEACHER_7_CLASSES = 3 * np.cos(2 + 7 * ROWS + np.arange(7))
IDS = [6, 0, 3, 1, 4]  # of the student's 5 tokens, among the teacher's 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def loss_and_gradient(distillation_loss, teacher, student, jit_compile=False, **labels):
    @tf.function(jit_compile=jit_compile)
    def run(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = distillation_loss(tf.constant(teacher), student, **labels)
        return loss, tape.gradient(loss, student)

    loss, gradient = run(tf.constant(student))
    return float(loss), gradient.numpy()


# UniversalLogitDistillation ----------------------------------------------------------------------------------------


def test_universal_logit_distillation_equals_the_authors_code():
    """llm-recipes `DistillationLoss`, 7 classes against 5: summed over ranks, averaged over rows."""
    teacher, student = TEACHER_7_CLASSES.astype("float32"), STUDENT.astype("float32")
    assert float(keras_kd.losses.UniversalLogitDistillation()(teacher, student)) == pytest.approx(
        0.2506798923, rel=1e-6
    )


@pytest.mark.parametrize(("teacher", "student"), [(TEACHER_7_CLASSES, STUDENT), (STUDENT, TEACHER_7_CLASSES)])
def test_universal_logit_distillation_of_different_numbers_of_classes_equals_the_formula(teacher, student):
    values = keras_kd.losses.UniversalLogitDistillation(2.0, dtype="float64", reduction=None)(teacher, student)
    np.testing.assert_allclose(values, formulas.universal_logit_distillation(teacher, student, 2.0), rtol=1e-12)


def test_universal_logit_distillation_does_not_depend_on_the_order_of_classes(rng):
    teacher, student = TEACHER_7_CLASSES[:, rng.permutation(7)], STUDENT[:, rng.permutation(5)]
    expected = float(keras_kd.losses.UniversalLogitDistillation()(TEACHER_7_CLASSES, STUDENT))
    assert float(keras_kd.losses.UniversalLogitDistillation()(teacher, student)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("top_k", [1, 3, 6, 99])
def test_top_k_compares_the_first_ranks_of_the_full_distributions(top_k):
    p, q = (-np.sort(-formulas.softmax(logits), axis=-1) for logits in (TEACHER_7_CLASSES, STUDENT))
    expected = np.abs(p - np.pad(q, ((0, 0), (0, 2))))[:, :top_k].sum(-1).mean()
    distillation_loss = keras_kd.losses.UniversalLogitDistillation(top_k=top_k)
    loss, gradient = loss_and_gradient(distillation_loss, TEACHER_7_CLASSES, STUDENT)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert np.abs(gradient).max() > 0
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(distillation_loss))
    assert float(restored(TEACHER_7_CLASSES, STUDENT)) == loss


@pytest.mark.parametrize(("teacher_length", "student_length"), [(2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("known", [True, False], ids=["known lengths", "unknown lengths"])
def test_sequences_are_aligned_from_the_start(rng, teacher_length, student_length, known):
    """The mean is over the tokens that both sides have."""
    teacher, student = rng.normal(size=(2, teacher_length, 7)), rng.normal(size=(2, student_length, 5))
    shared = min(teacher_length, student_length)
    expected = formulas.universal_logit_distillation(teacher[:, :shared], student[:, :shared], 1.0).sum()
    distillation_loss = keras_kd.losses.UniversalLogitDistillation(dtype="float64")
    signature = [tf.TensorSpec((None, None, classes), tf.float64) for classes in (7, 5)]
    loss = (distillation_loss if known else tf.function(distillation_loss, input_signature=signature))(teacher, student)
    assert float(loss) == pytest.approx(expected / (2 * shared), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_padding_of_either_side_is_left_out(rng, dtype):
    """Tokens that either side masks are left out of the mean, and so is what lies beyond the teacher's end."""
    teacher, student = rng.normal(size=(2, 3, 7)).astype(dtype), rng.normal(size=(2, 4, 5)).astype(dtype)
    teacher_mask = np.array([[True, True, False], [True, False, False]])
    student_mask = np.array([[True, True, True, False], [True, True, False, False]])
    values = formulas.universal_logit_distillation(teacher.astype("float64"), student[:, :3].astype("float64"), 1.0)
    expected = values[teacher_mask & student_mask[:, :3]].mean()
    masked = (set_mask(tf.constant(x), tf.constant(m)) for x, m in ((teacher, teacher_mask), (student, student_mask)))
    assert float(keras_kd.losses.UniversalLogitDistillation()(*masked)) == pytest.approx(expected, rel=1e-5)


def sequence_model(classes, tokens=9, name=None):
    """Logits of `classes` tokens at each position; the id 0 is padding."""
    inputs = keras.Input((None,), dtype="int32", name=name)
    embedding = keras.layers.Embedding(tokens, 4, keras.initializers.RandomNormal(stddev=2.0), mask_zero=True)
    return keras.Model(inputs, keras.layers.Dense(classes)(embedding(inputs)))


def learn_from_another_tokenizer(rng, teacher_padding, jit_compile):
    """The values that `fit` logs, and the first one by the formula on the models' logits."""
    teacher, student = sequence_model(7, name="teacher_ids"), sequence_model(5, name="student_ids")
    x = {"teacher_ids": rng.integers(1, 9, (6, 5)), "student_ids": rng.integers(1, 9, (6, 4))}
    x["student_ids"][:3, 2:] = 0
    x["teacher_ids"][2:, 5 - teacher_padding :] = 0
    logits = [model(x[f"{role}_ids"]).numpy() for model, role in ((teacher, "teacher"), (student, "student"))]
    values = formulas.universal_logit_distillation(logits[0][:, :4], logits[1], 1.0)
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.UniversalLogitDistillation())
    distiller.compile("adam", None, jit_compile=jit_compile)
    history = distiller.fit(x, batch_size=6, epochs=10, verbose=0).history["universal_logit_distillation"]
    return history, values[(x["student_ids"] > 0) & (x["teacher_ids"][:, :4] > 0)].mean()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_models_of_two_tokenizers_learn_from_each_other(rng, jit_compile):
    """Each reads its own ids, of its own length."""
    history, expected = learn_from_another_tokenizer(rng, teacher_padding=0, jit_compile=jit_compile)
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]


def test_the_teachers_padding_is_left_out_inside_a_distiller(rng):
    history, expected = learn_from_another_tokenizer(rng, teacher_padding=3, jit_compile=False)
    assert history[0] == pytest.approx(expected, rel=1e-4)


def test_there_is_no_gradient_where_the_student_gives_more_to_each_of_its_ranks():
    """Both flat: Σ |1/7 − 1/5| over 5 ranks, and 2/7 beyond: whatever the student takes from one rank, another gets."""
    loss, gradient = loss_and_gradient(keras_kd.losses.UniversalLogitDistillation(), np.zeros((1, 7)), np.zeros((1, 5)))
    assert loss == pytest.approx(4 / 7, rel=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_universal_logit_distillation_refuses_a_top_k_out_of_range():
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        keras_kd.losses.UniversalLogitDistillation(top_k=0)
    with pytest.raises(TypeError, match=r"top_k must be a whole number >= 1, got 2.5"):
        keras_kd.losses.UniversalLogitDistillation(top_k=2.5)


# VocabularyMap ----------------------------------------------------------------------------------------------------

INNER = {
    "soft_labels": lambda **o: keras_kd.losses.SoftLabels(2.0, **o),
    "reverse_kl": lambda **o: keras_kd.losses.ReverseKL(2.0, **o),
    "dist": lambda **o: keras_kd.losses.DIST(**o),
    "logits_mse": lambda **o: keras_kd.losses.LogitsMSE(**o),
    "binary_soft_labels": lambda **o: keras_kd.losses.BinarySoftLabels(2.0, **o),
    "decoupled_kd": lambda **o: keras_kd.losses.DecoupledKD(**o),
    "universal_logit_distillation": lambda **o: keras_kd.losses.UniversalLogitDistillation(**o),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", INNER)
def test_a_mapped_loss_is_the_loss_on_the_teachers_logits_of_these_ids(name, jit_compile):
    labels = {"labels": LABELS} if name == "decoupled_kd" else {}
    teacher, student = TEACHER_7_CLASSES.astype("float32"), STUDENT.astype("float32")
    mapped = keras_kd.losses.VocabularyMap(INNER[name](), IDS)
    loss, gradient = loss_and_gradient(mapped, teacher, student, jit_compile, **labels)
    expected, expected_gradient = loss_and_gradient(INNER[name](), teacher[:, IDS], student, jit_compile, **labels)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_the_teachers_distribution_is_renormalised_over_the_students_vocabulary():
    """By hand: 0.5, 0.1, 0.1, 0.3, of which the student has the first and the last: 5/8 and 3/8."""
    probabilities = np.array([[0.5, 0.1, 0.1, 0.3]])
    mapped = keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(1.0), [0, 3])
    assert float(mapped(np.log(probabilities), np.log([[5 / 8, 3 / 8]]))) == pytest.approx(0.0, abs=1e-7)
    expected = 5 / 8 * np.log(5 / 4) + 3 / 8 * np.log(3 / 4)
    assert float(mapped(np.log(probabilities), np.zeros((1, 2)))) == pytest.approx(expected, rel=1e-5)


def test_tokens_that_the_teacher_lacks_are_left_out_of_both_sides():
    """The student's 5 tokens are the teacher's 6, none, 3, 1 and none."""
    mapped = keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(2.0), [6, -1, 3, 1, -1])
    loss, gradient = loss_and_gradient(mapped, TEACHER_7_CLASSES, STUDENT)
    expected = formulas.soft_labels(TEACHER_7_CLASSES[:, [6, 3, 1]], STUDENT[:, [0, 2, 3]], 2.0).mean()
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(gradient[:, [1, 4]], 0.0)
    assert np.abs(gradient[:, [0, 2, 3]]).min() > 0


@pytest.mark.parametrize("ids", [IDS, [6, -1, 3, 1, -1]])
def test_masked_tokens_are_left_out_through_a_map(rng, ids):
    teacher, student = rng.normal(size=(2, 3, 7)), rng.normal(size=(2, 3, 5))
    mask = np.array([[True, True, False], [True, False, False]])
    kept = [i for i, other in enumerate(ids) if other >= 0]
    values = formulas.soft_labels(teacher[..., [i for i in ids if i >= 0]], student[..., kept], 2.0)
    masked = set_mask(tf.constant(student), tf.constant(mask))
    loss = keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(2.0), ids)(teacher, masked)
    assert float(loss) == pytest.approx(values[mask].mean(), rel=1e-6)


def test_the_teachers_mask_passes_through_a_map(rng):
    mask = np.array([[True, False], [True, True]])
    teacher, student = rng.normal(size=(2, 2, 7)), rng.normal(size=(2, 2, 5))
    masked = set_mask(tf.constant(teacher), tf.constant(mask))
    loss = keras_kd.losses.VocabularyMap(keras_kd.losses.UniversalLogitDistillation(), IDS)(masked, student)
    values = formulas.universal_logit_distillation(teacher[..., IDS], student, 1.0)
    assert float(loss) == pytest.approx(values[mask].mean(), rel=1e-6)


def test_the_options_of_the_wrapped_loss_hold():
    inner = keras_kd.losses.SoftLabels(2.0, weight=0.5, name="words", reduction="sum")
    mapped = keras_kd.losses.VocabularyMap(inner, IDS)
    assert mapped.name == "words" and mapped.weight is inner.weight
    assert mapped.hyperparameters() == inner.hyperparameters()
    expected = formulas.soft_labels(TEACHER_7_CLASSES[:, IDS], STUDENT, 2.0).sum()
    assert float(mapped(TEACHER_7_CLASSES, STUDENT)) == pytest.approx(expected, rel=1e-6)


def test_a_map_survives_serialization_with_its_ids_and_the_current_hyperparameters():
    mapped = keras_kd.losses.VocabularyMap(keras_kd.losses.SoftLabels(2.0), np.array([6, -1, 3, 1, 0]))
    mapped.hyperparameters()["temperature"].assign(3.0)
    config = keras.saving.serialize_keras_object(mapped)
    assert config["config"]["teacher_ids"] == [6, -1, 3, 1, 0]
    restored = keras.saving.deserialize_keras_object(config)
    assert float(restored(TEACHER_7_CLASSES, STUDENT)) == float(mapped(TEACHER_7_CLASSES, STUDENT))
    assert float(restored.hyperparameters()["temperature"]) == 3.0


def make_distiller(distillation_loss, ids=IDS, teacher_classes=7):
    return keras_kd.Distiller(
        dense_model(16, teacher_classes), dense_model(6, 5), keras_kd.losses.VocabularyMap(distillation_loss, ids)
    )


def test_a_callback_assigns_the_temperature_of_a_mapped_loss(data, tmp_path):
    x, _ = data
    distiller = make_distiller(keras_kd.losses.SoftLabels(2.0))
    teacher, student = (model.predict(x, verbose=0) for model in (distiller.teacher, distiller.student))
    distiller.compile(keras.optimizers.SGD(0.0), None)
    ramp = keras_kd.LambdaRamp(1.0, 3.0, ramp_epochs=2, temperature_of="soft_labels")
    logs = distiller.fit(x, batch_size=37, epochs=3, verbose=0, callbacks=[ramp]).history
    assert logs["soft_labels_temperature"] == [1.0, 2.0, 3.0]
    expected = [formulas.soft_labels(teacher[:, IDS], student, t).mean() for t in (1.0, 2.0, 3.0)]
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-4)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", distiller.teacher)
    assert loaded.fit(x, batch_size=37, verbose=0).history["soft_labels"] == pytest.approx(expected[-1:], rel=1e-4)


def test_a_loss_with_labels_learns_through_a_map(data):
    distiller = make_distiller(keras_kd.losses.DecoupledKD())
    distiller.compile("adam", crossentropy())
    logs = distiller.fit(*data, batch_size=37, epochs=10, verbose=0).history["decoupled_kd"]
    assert logs[-1] < logs[0]


def test_languages_pass_through_a_map():
    inner = keras_kd.losses.ByLanguage(keras_kd.losses.SoftLabels(2.0), weights={"en": 1.0, "sw": 3.0})
    mapped = keras_kd.losses.VocabularyMap(inner, IDS)
    assert mapped.language_key == "language"
    values = formulas.soft_labels(TEACHER_7_CLASSES[:, IDS], STUDENT, 2.0)
    loss = mapped(TEACHER_7_CLASSES, STUDENT, languages=np.array(["en", "sw", "en", "sw"]))
    assert float(loss) == pytest.approx(np.mean(values * [1.0, 3.0, 1.0, 3.0]), rel=1e-6)


@pytest.mark.parametrize(
    ("distillation_loss", "ids", "error", "message"),
    [
        ("soft_labels", [0, 1], TypeError, "loss must be a keras_kd.losses.DistillationLoss, got str: 'soft_labels'"),
        (keras_kd.losses.Hint("a", "b"), [0, 1], ValueError, "hint compares outputs as they are"),
        (keras_kd.losses.SoftLabels(), [0, 1.0], TypeError, "teacher_ids must be whole numbers.*got 1.0"),
        (keras_kd.losses.SoftLabels(), [0, True], TypeError, "teacher_ids must be whole numbers.*got True"),
        (keras_kd.losses.SoftLabels(), [0, 1, -2], ValueError, "teacher_ids must be >= 0, or -1 .*got -2"),
        (keras_kd.losses.SoftLabels(), [0, -1], ValueError, "at least 2 tokens with the student, got 1 ids >= 0"),
        (keras_kd.losses.SoftLabels(), [], ValueError, "at least 2 tokens with the student, got 0 ids >= 0"),
        (keras_kd.losses.SoftLabels(), [3, 0, 1, 3], ValueError, r"teacher_ids holds 3 more than once, at \[0, 3\]"),
        (
            keras_kd.losses.DecoupledKD(),
            [3, 0, -1],
            ValueError,
            "needs labels, and 1 of the student's 3 tokens have the id -1",
        ),
    ],
)
def test_bad_ids_are_refused(distillation_loss, ids, error, message):
    with pytest.raises(error, match=message):
        keras_kd.losses.VocabularyMap(distillation_loss, ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 7, 2, 3], r"teacher_ids holds 7, but the teacher gives \(None, 7\).*ids go from 0 to 6"),
        ([0, 1, 2, 3], r"teacher_ids has 4 entries, one for each token.*student \(None, 5\): 5 classes"),
    ],
)
def test_ids_that_do_not_fit_the_models_are_refused_when_the_distiller_is_made(ids, message):
    with pytest.raises(ValueError, match=message):
        make_distiller(keras_kd.losses.SoftLabels(), ids)


# match_vocabularies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [["the", "a", "cat", "dog"], {"the": 0, "dog": 3, "cat": 2, "a": 1}])
@pytest.mark.parametrize("student", [["cat", "the"], {"the": 1, "cat": 0}, np.array(["cat", "the"])])
def test_vocabularies_are_matched_token_by_token(student, teacher):
    assert keras_kd.losses.match_vocabularies(student, teacher) == [2, 0]


def test_the_teachers_ids_may_have_gaps():
    assert keras_kd.losses.match_vocabularies(["cat", "the"], {"the": 100, "cat": 7}) == [7, 100]


def test_missing_tokens_are_listed_or_get_minus_one():
    student = ["a", *(f"piece{i}" for i in range(7)), "b"]
    with pytest.raises(ValueError, match=r"lacks 7 of the student's 9 tokens: 'piece0', .*'piece4', ….*allow_missing"):
        keras_kd.losses.match_vocabularies(student, ["b", "a"])
    assert keras_kd.losses.match_vocabularies(student, ["b", "a"], allow_missing=True) == [1, *[-1] * 7, 0]


@pytest.mark.parametrize(
    ("student", "teacher", "error", "message"),
    [
        (["a", "b", "a"], ["a", "b"], ValueError, "student_vocabulary holds 'a' more than once"),
        (["a"], ["a", "b", "b"], ValueError, "teacher_vocabulary holds 'b' more than once"),
        ({"a": 0, "b": 2}, ["a", "b"], ValueError, "student_vocabulary must have the ids 0 to 1.*ids from 0 to 2"),
        ("ab", ["a", "b"], TypeError, "student_vocabulary must hold the tokens in the order of their ids.*got str"),
        (["a"], 3, TypeError, "teacher_vocabulary must hold the tokens.*got int"),
        ([], ["a"], ValueError, "student_vocabulary holds no token"),
    ],
)
def test_vocabularies_that_cannot_be_matched_are_refused(student, teacher, error, message):
    with pytest.raises(error, match=message):
        keras_kd.losses.match_vocabularies(student, teacher)
