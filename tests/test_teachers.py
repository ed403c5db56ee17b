"""Teachers made of other things: several models, a SavedModel, a function, a copy in half precision."""

import random
import re
import warnings
import zipfile

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy, dense_model, strategy_of

import keras_kd
from keras_kd import teachers
from keras_kd.outputs.reader import output_activations

TEMPERATURE = 3.0


def soft_logs(teacher, x, distillation_losses=None, student=None, **compiled):
    """The logs of one epoch of a real distiller, without learning, and the student."""
    student = student or dense_model(6, 3, name="student")
    distiller = keras_kd.Distiller(teacher, student, distillation_losses or keras_kd.losses.SoftLabels(TEMPERATURE))
    distiller.compile(keras.optimizers.SGD(0.0), loss=None, **compiled)
    history = distiller.fit(x, verbose=0, batch_size=64, shuffle=False).history
    return {name: values[0] for name, values in history.items()}, student


def soft_labels(teacher_logits, student_logits):
    teacher_logits, student_logits = (np.asarray(logits, "float64") for logits in (teacher_logits, student_logits))
    return formulas.soft_labels(teacher_logits, student_logits, TEMPERATURE).mean()


def logits_of(model, x):
    return np.asarray(model(x), "float64")


def log_mean(logits, weights=None):
    """Log of the weighted mean of the distributions, in float64."""
    return np.log(np.average([formulas.softmax(z) for z in logits], axis=0, weights=weights))


class Subclassed(keras.Model):
    def __init__(self, units, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)


def subclassed(x, units=3):
    model = Subclassed(units)
    model(x)
    return model


def text_model(words=20, width=4, classes=3, name="text", last=None):
    """Token ids, `(batch, 5)`, to classes."""
    ids = keras.Input((5,), dtype="int32", name=name)
    hidden = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(words, width)(ids))
    return keras.Model(ids, keras.layers.Dense(classes, last)(hidden))


def snapshot(model):
    return [w.copy() for w in model.get_weights()], [(layer.name, layer.trainable) for layer in model.layers]


def assert_as_before(model, before):
    for now, then in zip(model.get_weights(), before[0], strict=True):
        np.testing.assert_array_equal(now, then)
    assert [(layer.name, layer.trainable) for layer in model.layers] == before[1]


# ensemble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "jit_compile"), [(None, True), ([1.0, 2.0, 5.0], False)])
def test_soft_labels_of_an_ensemble_equal_the_formula(data, weights, jit_compile):
    x, _ = data
    members = [dense_model(16, 3, name="teacher") for _ in range(3)]  # of one name, as seeds of one script are
    teacher = teachers.ensemble(members, weights=weights)
    logs, student = soft_logs(teacher, x, jit_compile=jit_compile)
    expected = soft_labels(log_mean([logits_of(m, x) for m in members], weights), logits_of(student, x))
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-5)


def test_the_mean_of_logits(data):
    x, _ = data
    members = [dense_model(16, 3), dense_model(4, 3)]
    teacher = teachers.ensemble(members, weights=[1.0, 3.0], mean_of="logits")
    expected = 0.25 * logits_of(members[0], x) + 0.75 * logits_of(members[1], x)
    np.testing.assert_allclose(teacher(x), expected, atol=1e-6)


def test_members_that_end_in_softmax_and_those_of_unknown_ending_are_averaged_as_probabilities(data):
    x, _ = data
    inputs = keras.Input((8,))
    soft, linear, free = (
        dense_model(16, 3, last="softmax"),
        dense_model(16, 3),
        keras.Model(inputs, Subclassed(3)(inputs)),
    )
    teacher = teachers.ensemble([free, soft, linear])
    logits = [logits_of(free, x), np.log(logits_of(soft, x)), logits_of(linear, x)]
    np.testing.assert_allclose(teacher(x), log_mean(logits), atol=1e-5)
    assert output_activations(teacher) == ["unknown"]  # and so taken for logits


def test_an_ensemble_of_one_gives_the_logits_of_its_member(data):
    x, _ = data
    member = dense_model(16, 3)
    np.testing.assert_allclose(teachers.ensemble([member])(x), formulas.log_softmax(logits_of(member, x)), atol=1e-5)


def constant(values, last=None, units_of="logits"):
    bias = keras.initializers.Constant(np.asarray(values, "float32"))
    layer = keras.layers.Dense(len(values), last, kernel_initializer="zeros", bias_initializer=bias, name=units_of)
    return keras.Sequential([keras.Input((1,)), layer])


def test_the_mean_is_taken_in_log_space():
    """Both members all but exclude the third class; their mean's log is still the larger of the two."""
    teacher = teachers.ensemble([constant([0.0, 1e4, -1e4]), constant([1e4, 0.0, -2e4])])
    np.testing.assert_allclose(teacher(np.zeros((1, 1)))[0], [-np.log(2), -np.log(2), -2e4 - np.log(2)], rtol=1e-6)


def test_units_that_end_in_sigmoid_are_averaged_unit_by_unit():
    teacher = teachers.ensemble([constant([2.0, -1.0], "sigmoid"), constant([-1.0, 0.5], "sigmoid")], weights=[3, 1])
    first, second = (1 / (1 + np.exp(-np.array(z))) for z in ([2.0, -1.0], [-1.0, 0.5]))
    np.testing.assert_allclose(teacher(np.zeros((1, 1)))[0], 0.75 * first + 0.25 * second, atol=1e-6)
    assert output_activations(teacher) == ["sigmoid"]
    keras_kd.Distiller(teacher, constant([0.0, 0.0]), keras_kd.losses.BinarySoftLabels())
    with pytest.raises(ValueError, match="the teacher ends in sigmoid"):
        keras_kd.Distiller(teacher, constant([0.0, 0.0]), keras_kd.losses.SoftLabels())


def test_the_mean_of_the_log_odds_of_units():
    teacher = teachers.ensemble([constant([2.0], "sigmoid"), constant([-1.0], "sigmoid")], mean_of="logits")
    np.testing.assert_allclose(teacher(np.zeros((1, 1))), [[1 / (1 + np.exp(-0.5))]], atol=1e-6)


def two_headed(width, outputs):
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(width, "relu")(inputs)
    topic, tone = keras.layers.Dense(3, name="topic")(hidden), keras.layers.Dense(2, "softmax", name="tone")(hidden)
    return keras.Model(inputs, outputs(topic, tone))


@pytest.mark.parametrize("outputs", [lambda a, b: [a, b], lambda a, b: {"tone": b, "topic": a}], ids=["list", "dict"])
def test_several_outputs_are_averaged_each_with_its_counterparts(data, outputs):
    x, _ = data
    members = [two_headed(5, outputs), two_headed(7, outputs)]
    teacher = teachers.ensemble(members)
    answers = [dict(zip(["tone", "topic"], keras.tree.flatten(m(x)), strict=True)) for m in members]
    answers = (
        answers if isinstance(teacher.output, dict) else [{"topic": a["tone"], "tone": a["topic"]} for a in answers]
    )
    logs, student = soft_logs(
        teacher, x, keras_kd.losses.SoftLabels(TEMPERATURE, output="topic"), two_headed(4, outputs)
    )
    student_logits = student(x)["topic"] if isinstance(teacher.output, dict) else student(x)[0]
    expected = soft_labels(log_mean([np.asarray(a["topic"], "float64") for a in answers]), student_logits)
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-5)
    tone = teacher(x)["tone"] if isinstance(teacher.output, dict) else teacher(x)[1]
    np.testing.assert_allclose(np.exp(tone), np.mean([a["tone"] for a in answers], axis=0), atol=1e-6)


def mixed_batch():
    rng = np.random.default_rng(0)
    return {
        "english": rng.integers(0, 20, (9, 5)),
        "german": rng.integers(0, 30, (9, 5)),
        "features": rng.normal(size=(9, 8)).astype("float32"),
        "unread": np.zeros((9, 2)),
    }


def features_model(*units):
    features = keras.Input((8,), name="features")
    hidden = features
    for width in units[:-1]:
        hidden = keras.layers.Dense(width, "relu")(hidden)
    return keras.Model(features, keras.layers.Dense(units[-1])(hidden))


def test_each_member_reads_the_entries_named_after_its_inputs():
    x = mixed_batch()
    english, german, features = text_model(name="english"), text_model(30, name="german"), features_model(5, 3)
    second = text_model(name="english")
    teacher = teachers.ensemble([english, german, features, second])
    assert sorted(teacher.input) == ["english", "features", "german"]
    logs, student = soft_logs(teacher, x, student=features_model(3))
    logits = [english(x["english"]), german(x["german"]), features(x["features"]), second(x["english"])]
    expected = soft_labels(log_mean([np.asarray(z, "float64") for z in logits]), student(x["features"]))
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-5)


def test_inputs_of_one_name_are_merged_and_take_the_size_that_is_unknown_to_one_member():
    def pooled(length, dtype):
        ids = keras.Input((length,), dtype=dtype, name="text")
        return keras.Model(
            ids, keras.layers.Dense(2)(keras.layers.GlobalMaxPooling1D()(keras.layers.Embedding(9, 3)(ids)))
        )

    teacher = teachers.ensemble([pooled(None, "int32"), pooled(6, "int64")])
    assert teacher.input.shape == (None, 6) and teacher.input.dtype == "int64"
    assert teacher(np.ones((2, 6), "int64")).shape == (2, 2)


def test_teachers_are_not_changed_and_not_saved_with_the_distiller(data, tmp_path):
    x, y = data
    members = [
        keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(300), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
        )
        for _ in range(2)
    ]
    members[0].trainable = False
    members[1].layers[0].trainable = False
    before = [snapshot(member) for member in members]
    teacher = teachers.ensemble([*members, members[0]])
    distiller = keras_kd.Distiller(teacher, dense_model(4, 3))
    distiller.compile("adam", crossentropy())
    distiller.fit(x, y, epochs=2, verbose=0)
    for member, state in zip(members, before, strict=True):
        assert_as_before(member, state)
    assert len(distiller.trainable_variables) == 4
    distiller.save(tmp_path / "distiller.keras")
    with zipfile.ZipFile(tmp_path / "distiller.keras") as archive:
        size = archive.getinfo("model.weights.h5").file_size
        assert b"member_0" not in archive.read("config.json")
    with_a_small_teacher = keras_kd.Distiller(dense_model(3), distiller.student)
    with_a_small_teacher.compile(distiller.optimizer, crossentropy())
    with_a_small_teacher.save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        assert archive.getinfo("model.weights.h5").file_size == size
    loaded = keras_kd.load_distiller(tmp_path / "distiller.keras", teacher)
    loaded.fit(x, y, verbose=0)


def test_a_layer_inside_a_member_can_be_hooked(data):
    x, _ = data
    members = [dense_model(5, 3, name="small"), dense_model(7, 3, name="large")]
    hint = keras_kd.losses.Hint("large/hidden_0", "hidden_0", name="hint")
    logs, student = soft_logs(teachers.ensemble(members), x, [hint], dense_model(7, 3))
    expected = np.mean((members[1].layers[0](x).numpy() - student.layers[0](x).numpy()) ** 2)
    assert logs["hint"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("combine", ["ensemble", "multi_output", "route_by_language"])
def test_a_teacher_made_of_teachers_can_be_saved_and_loaded(combine, tmp_path):
    members = [text_model(name="english", last="softmax"), text_model(name="german")]
    x = {name: values[:, :5] for name, values in mixed_batch().items() if name in ("english", "german")}
    x = {name: tf.constant(np.minimum(values, 19)) for name, values in x.items()}
    if combine == "ensemble":
        teacher = teachers.ensemble(members, weights=[1, 2])
    elif combine == "multi_output":
        teacher = teachers.multi_output({"a": members[0], "b": members[1]})
    else:
        teacher = teachers.route_by_language({"en": members[0], "de": members[1]})
        x["language"] = tf.constant(["en", "de", "de"] * 3)
    teacher.save(tmp_path / "teacher.keras")
    loaded = keras.saving.load_model(tmp_path / "teacher.keras")
    for first, second in zip(keras.tree.flatten(teacher(x)), keras.tree.flatten(loaded(x)), strict=True):
        np.testing.assert_array_equal(first, second)


def image(axis):
    softmax = keras.layers.Softmax(axis=axis)
    return keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(3), softmax])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: teachers.ensemble([]), ValueError, "one teacher or more"),
        (lambda: teachers.ensemble(dense_model(3)), TypeError, "list of keras.Models"),
        (lambda: teachers.ensemble([dense_model(3), "bert"]), TypeError, r"teachers\[1\] must be a keras.Model"),
        (lambda: teachers.ensemble([keras.Sequential([keras.layers.Dense(3)])]), ValueError, r"teachers\[0\].*built"),
        (lambda: teachers.ensemble([dense_model(3)], mean_of="votes"), ValueError, "mean_of must be one of"),
        (lambda: teachers.ensemble([dense_model(3)], weights=[1.0, 2.0]), ValueError, "one number for each of 1"),
        (lambda: teachers.ensemble([dense_model(3)], weights=[0.0]), ValueError, r"weights\[0\] must be > 0"),
        (lambda: teachers.ensemble([dense_model(3), dense_model(4)]), ValueError, r"shape of output 0.*\(None, 4\)"),
        (
            lambda: teachers.ensemble([dense_model(3), subclassed(np.zeros((1, 8)))]),
            ValueError,
            r"teachers\[1\] must be functional or sequential.*got a Subclassed",
        ),
        (lambda: teachers.ensemble([image(1)]), ValueError, "softmax over axis 1"),
        (
            lambda: teachers.ensemble([dense_model(3, last="sigmoid"), dense_model(3)]),
            ValueError,
            r"all end in sigmoid or none.*\['sigmoid', 'linear'\]",
        ),
        (
            lambda: teachers.ensemble([two_headed(3, lambda a, b: [a, b]), dense_model(3)]),
            ValueError,
            r"same number of outputs, got \[2, 1\]",
        ),
        (
            lambda: teachers.ensemble([dense_model(3), dense_model(3, inputs=9)]),
            ValueError,
            r"input 'inputs' must be the same.*\(None, 8\).*\(None, 9\)",
        ),
        (lambda: teachers.multi_output([dense_model(3)]), TypeError, "dict of keras.Models by str"),
        (lambda: teachers.multi_output({}), ValueError, "one teacher or more"),
        (lambda: teachers.route_by_language({}), ValueError, "different languages, at least one"),
        (
            lambda: teachers.route_by_language({"en": dense_model(3), 1: dense_model(3)}),
            TypeError,
            "all str or all int",
        ),
        (lambda: teachers.route_by_language([dense_model(3)]), TypeError, "dict of keras.Models by language"),
        (lambda: teachers.route_by_language({"en": None}), TypeError, r"teachers\['en'\] must be a keras.Model"),
        (
            lambda: teachers.route_by_language({"en": dense_model(3)}, default="en"),
            TypeError,
            "default must be a keras.Model",
        ),
        (
            lambda: teachers.route_by_language({"en": dense_model(3)}, language_key=3),
            TypeError,
            "language_key must be a str",
        ),
        (
            lambda: teachers.route_by_language({"en": text_model()}, language_key="text"),
            ValueError,
            "a teacher reads it as int32",
        ),
    ],
)
def test_teachers_that_cannot_be_combined_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# multi_output ------------------------------------------------------------------------------------------------------


def test_each_loss_may_use_another_teacher_of_a_multi_output_one(data):
    x, _ = data
    bert, cnn = dense_model(16, 3, last="softmax"), dense_model(7, 3)
    teacher = teachers.multi_output({"bert": bert, "cnn": cnn})
    distillation_losses = [
        keras_kd.losses.SoftLabels(TEMPERATURE, output=0, teacher_output="bert", name="bert"),
        keras_kd.losses.SoftLabels(TEMPERATURE, output=0, teacher_output="cnn", name="cnn"),
    ]
    logs, student = soft_logs(teacher, x, distillation_losses)
    assert logs["bert"] == pytest.approx(soft_labels(np.log(logits_of(bert, x)), logits_of(student, x)), rel=1e-4)
    assert logs["cnn"] == pytest.approx(soft_labels(logits_of(cnn, x), logits_of(student, x)), rel=1e-5)


def test_sigmoid_endings_stay_known_in_multi_output():
    teacher = teachers.multi_output({"units": constant([2.0, -1.0], "sigmoid"), "classes": constant([1.0], "softmax")})
    assert dict(zip(sorted(teacher.output), output_activations(teacher), strict=True)) == {
        "classes": "unknown",
        "units": "sigmoid",
    }
    np.testing.assert_allclose(teacher(np.zeros((1, 1)))["units"], 1 / (1 + np.exp([[-2.0, 1.0]])), atol=1e-6)


def test_several_outputs_of_a_teacher_are_named_by_teacher_and_output(data):
    x, _ = data
    wide, listed = two_headed(5, lambda a, b: {"topic": a, "tone": b}), two_headed(5, lambda a, b: [a, b])
    answers = teachers.multi_output({"wide": wide, "listed": listed, "text": dense_model(3)})(x)
    assert sorted(answers) == ["listed/tone", "listed/topic", "text", "wide/tone", "wide/topic"]
    np.testing.assert_allclose(np.exp(answers["wide/tone"]), wide(x)["tone"], atol=1e-6)
    np.testing.assert_allclose(answers["listed/topic"], listed(x)[0], atol=1e-6)


# route_by_language ---------------------------------------------------------------------------------------------------

LANGUAGES = np.array(["en", "de", "fr", "de", "en", "sw", "de", "en", "fr"] * 5)[:37].astype(object)


def expected_by_language(models, x, languages, default):
    """Row by row in NumPy; languages may be bytes."""
    answers = {id(model): logits_of(model, x) for model in [*models.values(), default]}
    languages = [name.decode() if isinstance(name, bytes) else name for name in languages]
    return np.stack([answers[id(models.get(name, default))][row] for row, name in enumerate(languages)])


@pytest.mark.parametrize(("integers", "shape"), [(False, (37,)), (False, (37, 1)), (True, (37, 1))])
def test_every_example_gets_the_logits_of_the_teacher_of_its_language(data, integers, shape):
    names = sorted(set(LANGUAGES))
    languages = np.array([names.index(name) for name in LANGUAGES], "int32") if integers else LANGUAGES
    keys = list(range(len(names))) if integers else names
    # Keras takes arrays of strings in one dimension only.
    languages = languages.reshape(shape) if integers or len(shape) == 1 else tf.constant(languages.reshape(shape))
    features = data[0]
    shared = features_model(6, 3)
    models = dict(zip(keys, [features_model(5, 3), shared, shared], strict=False))
    fallback = features_model(4, 3)
    teacher = teachers.route_by_language(models, default=fallback)
    logs, student = soft_logs(teacher, {"features": features, "language": languages}, student=features_model(3))
    expected = expected_by_language(models, features, np.ravel(languages), fallback)
    assert logs["soft_labels"] == pytest.approx(soft_labels(expected, logits_of(student, features)), rel=1e-5)


def counting(calls, number):
    """A teacher that records each of its runs, also without examples, and gives `number` times 0, 1, 2."""

    class Counting(keras.layers.Layer):
        def call(self, x):
            def answer(x):
                calls.append((number, len(x)))
                return np.full((len(x), 3), np.float32(number)) * np.arange(3, dtype="float32")

            return tf.ensure_shape(tf.numpy_function(answer, [x], tf.float32), (None, 3))

        def compute_output_spec(self, x):
            return keras.KerasTensor((None, 3))

    features = keras.Input((8,), name="features")
    return keras.Model(features, Counting()(features))


def test_a_teacher_gets_only_its_examples_and_does_not_run_without_any(data):
    calls = []
    teacher = teachers.route_by_language({"en": counting(calls, 1), "de": counting(calls, 2)})
    languages = np.array(["en"] * 10 + ["de"] * 3 + ["en"] * 24, dtype=object)
    x = {"features": data[0], "language": languages}
    answers = teacher.predict(x, batch_size=10, verbose=0)
    np.testing.assert_array_equal(answers[:, 1], np.where(languages == "en", 1.0, 2.0))
    assert sorted(calls) == [(1, 7), (1, 7), (1, 10), (1, 10), (2, 3)]


def test_several_languages_of_one_teacher_are_one_call(data):
    calls = []
    shared = counting(calls, 1)
    teacher = teachers.route_by_language({"en": shared, "fr": shared}, default=shared)
    teacher({"features": tf.constant(data[0]), "language": tf.constant(LANGUAGES)})
    assert calls == [(1, 37)]


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_language_without_a_teacher_is_named_before_its_batch_is_trained_on(data, run_eagerly):
    teacher = teachers.route_by_language({"en": features_model(3), "de": features_model(3)}, language_key="tongue")
    student = features_model(3)
    before = student.get_weights()
    distiller = keras_kd.Distiller(teacher, student)
    distiller.compile(keras.optimizers.SGD(1.0), loss=None, run_eagerly=run_eagerly)
    with pytest.raises(ValueError) as caught:
        distiller.fit({"features": data[0], "tongue": LANGUAGES}, batch_size=37, verbose=0)
    assert re.search(r"teachers must have an entry for each language.* it has de, en, not\W+fr", str(caught.value))
    for now, then in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_batch_without_its_language_is_refused(data):
    teacher = teachers.route_by_language({"en": features_model(3)})
    with pytest.raises(ValueError, match="language"):
        soft_logs(teacher, {"features": data[0]}, student=features_model(3))


def test_xla_is_turned_off_with_a_warning(data):
    teacher = teachers.route_by_language({"en": features_model(3)})
    x = {"features": data[0], "language": np.array(["en"] * 37, dtype=object)}
    with pytest.warns(UserWarning, match="jit_compile is turned off"):
        soft_logs(teacher, x, student=features_model(3), jit_compile=True)


def test_teachers_by_language_may_read_different_entries():
    x = mixed_batch()
    english, german = text_model(name="english", last="softmax"), text_model(30, name="german")
    teacher = teachers.route_by_language({"en": english, "de": german})
    languages = np.array(["en", "de", "de"] * 3, dtype=object)
    logs, student = soft_logs(teacher, {**x, "language": languages}, student=features_model(3))
    logits = np.where((languages == "en")[:, None], np.log(english(x["english"])), german(x["german"]))
    assert logs["soft_labels"] == pytest.approx(soft_labels(logits, student(x["features"])), rel=1e-5)


def tagger(width):
    ids = keras.Input((None,), dtype="int32", name="ids")
    return keras.Model(ids, keras.layers.Dense(4)(keras.layers.Embedding(9, width, mask_zero=True)(ids)))


@pytest.mark.parametrize("names", [["en", "de", "en"], ["de", "de", "de"]])
def test_sequences_of_unknown_length_are_routed(names):
    english, german = tagger(3), tagger(5)
    ids = tf.constant([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 1]])
    teacher = teachers.route_by_language({"en": english, "de": german})
    assert teacher.output.shape == (None, None, 4)
    function = tf.function(lambda x: teacher(x, training=False))
    answers = function({"ids": ids, "language": tf.constant(names)})
    for row, name in enumerate(names):
        np.testing.assert_allclose(answers[row], {"en": english, "de": german}[name](ids)[row], atol=1e-6)


def test_a_teacher_may_read_the_language_itself():
    language = keras.Input((1,), dtype="int32", name="language")
    reader = keras.Model(
        language, keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Embedding(5, 3)(language)))
    )
    teacher = teachers.route_by_language({0: reader, 1: reader})
    languages = np.array([[0], [1], [0]])
    np.testing.assert_allclose(teacher(languages), reader(languages), atol=1e-6)


def test_two_replicas_route_as_one(data):
    def trained(replicas):
        keras.utils.set_random_seed(3)
        teacher = teachers.route_by_language(
            {"en": features_model(5, 3), "de": features_model(5, 3)}, default=features_model(3)
        )
        with strategy_of(replicas).scope():
            distiller = keras_kd.Distiller(teacher, features_model(4, 3))
            distiller.compile(keras.optimizers.SGD(0.2), crossentropy())
        x = {"features": data[0], "language": LANGUAGES.astype(str)}
        dataset = tf.data.Dataset.from_tensor_slices((x, data[1])).batch(12)  # 12, 12, 12 and 1: a replica gets none
        history = distiller.fit(dataset, epochs=2, verbose=0).history
        return distiller.student.get_weights(), history["soft_labels"]

    (one, logs), (two, mirrored_logs) = trained(1), trained(2)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
    assert mirrored_logs == pytest.approx(logs, abs=1e-6)


# from_saved_model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "last", "gives", "jit_compile"),
    [
        (lambda model, path: model.export(path, verbose=False), None, "logits", False),
        (keras_kd.export, None, "logits", True),
        (keras_kd.export, "softmax", "probabilities", False),
    ],
)
def test_a_saved_model_teaches_as_the_model_that_was_saved(data, tmp_path, writer, last, gives, jit_compile):
    x, _ = data
    model = dense_model(16, 3, last=last)
    writer(model, tmp_path / "teacher")
    teacher = teachers.from_saved_model(tmp_path / "teacher", gives=gives)
    logs, student = soft_logs(teacher, x, jit_compile=jit_compile)
    logits = np.log(logits_of(model, x)) if last else logits_of(model, x)
    assert logs["soft_labels"] == pytest.approx(soft_labels(logits, logits_of(student, x)), rel=1e-4)


def test_a_saved_model_reads_the_entries_named_after_its_inputs(tmp_path):
    x = mixed_batch()
    english, features = keras.Input((5,), dtype="int32", name="english"), keras.Input((8,), name="features")
    hidden = [keras.layers.Flatten()(keras.layers.Embedding(20, 2)(english)), features]
    model = keras.Model([english, features], keras.layers.Dense(3)(keras.layers.Concatenate()(hidden)))
    keras_kd.export(model, tmp_path / "teacher")
    teacher = teachers.from_saved_model(tmp_path / "teacher")
    logs, student = soft_logs(teacher, x, student=features_model(3))
    expected = soft_labels(model([x["english"], x["features"]]), student(x["features"]))
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-5)


def test_a_saved_model_of_strings_teaches_without_xla(tmp_path):
    text = keras.Input((), dtype="string", name="text")
    ids = keras_kd.text.CharacterEncoder("abc", length=5)(text)
    model = keras.Model(text, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Embedding(6, 2)(ids))))
    model.export(tmp_path / "teacher", verbose=False)
    teacher = teachers.from_saved_model(tmp_path / "teacher")
    x = {"text": np.array(["abc", "b", "ca?"] * 3, dtype=object), "features": mixed_batch()["features"]}
    with pytest.warns(UserWarning, match="jit_compile is turned off"):
        logs, student = soft_logs(teacher, x, student=features_model(3), jit_compile=True)
    expected = soft_labels(model(tf.constant(x["text"].astype(str))), student(x["features"]))
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-5)


def test_a_saved_model_with_several_outputs_needs_a_name(data, tmp_path):
    model = two_headed(5, lambda a, b: {"topic": a, "tone": b})
    model.export(tmp_path / "teacher", verbose=False)
    with pytest.raises(ValueError, match=r"output must name one of.*\['tone', 'topic'\]"):
        teachers.from_saved_model(tmp_path / "teacher")
    with pytest.raises(ValueError, match="output must be one of"):
        teachers.from_saved_model(tmp_path / "teacher", output="tune")
    teacher = teachers.from_saved_model(tmp_path / "teacher", output="tone", gives="probabilities")
    np.testing.assert_allclose(np.exp(teacher(data[0])), model(data[0])["tone"], atol=1e-6)


def saved(folder, function, *specs):
    module = tf.Module()
    module.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


def test_saved_models_that_cannot_teach_are_refused(tmp_path):
    floats = tf.TensorSpec((None, 4), tf.float32, name="x")
    classes = saved(tmp_path / "classes", lambda x: {"y": tf.argmax(x, axis=-1)}, floats)
    bound = saved(tmp_path / "bound", lambda x: {"y": 2 * x}, tf.TensorSpec((2, 4), tf.float32, name="x"))
    open_rank = saved(tmp_path / "rank", lambda x: {"y": 2 * x}, tf.TensorSpec(None, tf.float32, name="x"))
    (tmp_path / "empty").mkdir()
    dense_model(3).save(tmp_path / "model.keras")
    for path, message in [
        (classes, "must hold logits or probabilities, got int64"),
        (bound, "any number of examples, got one for 2 a call"),
        (open_rank, r"have a known rank.*\['x', 'y'\]"),
        (tmp_path / "empty", "a folder without saved_model.pb"),
        (tmp_path / "model.keras", "must be a SavedModel folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            teachers.from_saved_model(path)
    with pytest.raises(FileNotFoundError):
        teachers.from_saved_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="gives must be one of"):
        teachers.from_saved_model(classes, gives="classes")


# from_function -----------------------------------------------------------------------------------------------------


def test_scikit_learn_teaches(data):
    from sklearn.linear_model import LogisticRegression

    x, y = data
    regression = LogisticRegression().fit(x, y)
    teacher = teachers.from_function(regression.predict_proba, inputs=keras.Input((8,)), classes=3)
    with pytest.warns(UserWarning, match="jit_compile is turned off"):
        logs, student = soft_logs(teacher, x, jit_compile=True)
    expected = soft_labels(np.log(regression.predict_proba(x)), logits_of(student, x))
    assert logs["soft_labels"] == pytest.approx(expected, rel=1e-4)
    assert teacher.output.shape == (None, 3)


def test_a_function_gets_its_inputs_as_they_were_declared():
    seen = {}

    def answer(batch):
        seen.update(batch)
        return np.zeros((len(batch["text"]), 3))

    inputs = {"text": keras.Input((), dtype="string"), "features": keras.Input((8,), dtype="float64")}
    teacher = teachers.from_function(answer, inputs=inputs, classes=3, gives="logits")
    x = {"text": np.array(["naïve", "b"], dtype=object), "features": np.ones((2, 8)), "small": np.ones((2, 8))}
    small = keras.Input((8,), name="small")
    soft_logs(teacher, x, student=keras.Model(small, keras.layers.Dense(3)(small)))
    assert seen["text"].tolist() == ["naïve", "b"]
    assert seen["features"].dtype == np.float64 and seen["features"].shape == (2, 8)


def test_one_distribution_per_token():
    teacher = teachers.from_function(
        lambda ids: np.eye(4)[ids], inputs=keras.Input((None,), dtype="int32"), classes=(None, 4), gives="logits"
    )
    assert teacher.output.shape == (None, None, 4)
    np.testing.assert_array_equal(teacher(np.array([[1, 2, 3]])), np.eye(4)[[[1, 2, 3]]])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: np.ones((len(x), 4)) / 4,
            r"numbers of shape \(37, 3\) for 37 examples, got float64 of shape \(37, 4\)",
        ),
        (lambda x: np.ones((1, 3)) / 3, r"got float64 of shape \(1, 3\)"),
        (lambda x: [["a", "b", "c"]] * len(x), "an array of numbers"),
        (
            lambda x: np.tile([2.0, -1.0, 0.0], (len(x), 1)),
            "from -1 to 2 that add up to 1 to 1. For logits, pass gives=",
        ),
        (lambda x: np.tile([0.9, 0.8, 0.7], (len(x), 1)), "add up to 2.4 to 2.4"),
        (lambda x: np.full((len(x), 3), 0.1), "add up to 0.3 to 0.3"),
        (lambda x: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_wrong_results_of_a_function_are_refused(data, answer, message):
    teacher = teachers.from_function(answer, inputs=keras.Input((8,)), classes=3)
    with pytest.raises(tf.errors.OpError, match=message):
        soft_logs(teacher, data[0])


def test_nan_of_a_function_is_found_by_the_distiller(data):
    teacher = teachers.from_function(lambda x: np.full((len(x), 3), np.nan), inputs=keras.Input((8,)), classes=3)
    with pytest.raises(ValueError, match="NaN or infinite values in training batch 0"):
        soft_logs(teacher, data[0])


def test_a_probability_of_zero_is_finite(data):
    teacher = teachers.from_function(lambda x: np.eye(3)[np.zeros(len(x), int)], inputs=keras.Input((8,)), classes=3)
    logs, student = soft_logs(teacher, data[0])
    q = formulas.log_softmax(logits_of(student, data[0]) / TEMPERATURE)
    assert logs["soft_labels"] == pytest.approx(-(TEMPERATURE**2) * q[:, 0].mean(), rel=1e-4)


def test_a_function_under_two_replicas_of_which_one_is_empty(data):
    calls = []

    def answer(x):
        calls.append(len(x))
        return np.ones((len(x), 3)) / 3

    teacher = teachers.from_function(answer, inputs=keras.Input((8,), name="features"), classes=3)
    with strategy_of(2).scope():
        distiller = keras_kd.Distiller(teacher, features_model(3))
        distiller.compile("sgd", loss=None)
    dataset = tf.data.Dataset.from_tensor_slices({"features": data[0]}).batch(12)
    distiller.fit(dataset, verbose=0)
    assert sorted(calls) == [1, 6, 6, 6, 6, 6, 6]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"function": 3}, TypeError, "function must be callable"),
        ({"inputs": (None, 8)}, TypeError, "inputs must be a keras.Input"),
        ({"classes": 2.0}, TypeError, "classes must be a whole number"),
        ({"classes": 0}, ValueError, "classes must be >= 1"),
        ({"classes": (None, None)}, TypeError, "classes must be a whole number"),
        ({"gives": "classes"}, ValueError, "gives must be one of"),
    ],
)
def test_functions_that_cannot_teach_are_refused(options, error, message):
    arguments = {"function": np.ones_like, "inputs": keras.Input((8,)), "classes": 3, **options}
    with pytest.raises(error, match=message):
        teachers.from_function(arguments.pop("function"), **arguments)


# cast ----------------------------------------------------------------------------------------------------------


def transformer():
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = keras.layers.Embedding(30, 16)(ids)
    attended = keras.layers.MultiHeadAttention(2, 8)(x, x)
    x = keras.layers.LayerNormalization()(x + attended)
    return keras.Model(ids, keras.layers.Dense(3, name="logits")(keras.layers.GlobalAveragePooling1D()(x)))


def nested():
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.BatchNormalization()])
    inputs = keras.Input((8,))
    return keras.Model(inputs, keras.layers.Dense(3, "softmax")(inner(inputs)))


@keras.saving.register_keras_serializable(package="test_teachers")
class Configured(keras.Model):
    """A subclassed model whose layers take the global policy."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units
        self.hidden, self.norm, self.dense = (
            keras.layers.Dense(16, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(units),
        )

    def call(self, inputs, training=None):
        return self.dense(self.norm(self.hidden(inputs), training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def configured():
    model = Configured(3)
    model(np.zeros((1, 8)))
    return model


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (transformer, "float16"),
        (nested, "bfloat16"),
        (configured, "bfloat16"),
        (lambda: dense_model(16, 3), "bfloat16"),
        (lambda: dense_model(16, 3), "float16"),
    ],
)
def test_a_copy_in_half_precision_gives_nearly_the_same(data, make, dtype):
    teacher = make()
    rng = np.random.default_rng(0)
    for weight in teacher.weights:  # trained statistics, not the initial ones
        weight.assign(np.abs(weight.numpy()) + rng.uniform(0.1, 0.2, weight.shape))
    x = rng.integers(0, 30, (20, 6)) if make is transformer else data[0]
    weights, flags = snapshot(teacher)
    before = teacher(x).numpy()
    state = random.getstate()
    copy = teachers.cast(teacher, dtype)
    assert random.getstate() == state and keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in copy.weights} == {dtype} and not copy.trainable_weights
    assert {weight.dtype for weight in teacher.weights} == {"float32"}
    assert_as_before(teacher, (weights, flags))
    np.testing.assert_array_equal(teacher(x), before)
    answer = copy(x, training=False)
    assert answer.dtype == (dtype if make is configured else "float32")
    answer = tf.cast(answer, "float32")
    spread = 2.0**-6 if dtype == "bfloat16" else 2.0**-9  # a few roundings of 2⁻⁹ and 2⁻¹²
    np.testing.assert_allclose(answer, before, rtol=spread, atol=spread * np.abs(before).max())
    assert np.abs(answer - before).max() > 0  # it did compute in low precision
    assert output_activations(copy) == output_activations(teacher)


def test_a_copy_in_half_precision_teaches_with_its_layers_and_output_names(data):
    x, _ = data
    teacher = teachers.cast(dense_model(16, 3), "bfloat16")
    distillation_losses = [
        keras_kd.losses.SoftLabels(TEMPERATURE, output="logits"),
        keras_kd.losses.Hint("hidden_0", "hidden_0", name="hint"),
    ]
    logs, student = soft_logs(teacher, x, distillation_losses, dense_model(16, 3))
    assert logs["soft_labels"] == pytest.approx(soft_labels(logits_of(teacher, x), logits_of(student, x)), rel=1e-5)
    assert 0 < logs["hint"] < np.inf
    assert keras_kd.outputs.output_names(teacher) == ["logits"]


def test_adapted_statistics_are_in_the_copy_and_raw_numbers_are_not_rounded():
    years = np.random.default_rng(0).integers(1990, 2020, (50, 2)).astype("float32")
    normalization = keras.layers.Normalization()
    normalization.adapt(years)
    words = keras.layers.StringLookup()
    words.adapt(["a", "b", "c"])
    numbers, text = keras.Input((2,), name="numbers"), keras.Input((3,), dtype="string", name="text")
    hidden = [normalization(numbers), keras.layers.Flatten()(keras.layers.Embedding(4, 2)(words(text)))]
    teacher = keras.Model([numbers, text], keras.layers.Dense(3)(keras.layers.Concatenate()(hidden)))
    copy = teachers.cast(teacher, "bfloat16")
    x = [tf.constant(years[:4]), tf.constant([["a", "b", "c"], ["c", "c", "?"], ["b", "a", "a"], ["?", "?", "a"]])]
    np.testing.assert_allclose(copy(x), teacher(x), atol=0.03)


def test_cast_names_what_it_cannot_copy(data):
    with pytest.raises(ValueError, match="dtype must be one of"):
        teachers.cast(dense_model(3), "int8")
    with pytest.raises(TypeError, match=r"teacher must be a keras\.Model"):
        teachers.cast("teacher", "bfloat16")
    with pytest.raises(ValueError, match="is not built, so it holds no trained weights"):
        teachers.cast(Configured(3), "bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="get_config, and register them"):
            teachers.cast(subclassed(data[0]), "bfloat16")
    assert keras.config.dtype_policy().name == "float32"


# One vector per text ------------------------------------------------------------------------------------------------


def backbone(kind, **options):
    import keras_hub

    sizes = {"vocabulary_size": 50, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    return getattr(keras_hub.models, kind)(**sizes, **options)


@pytest.mark.parametrize(
    ("kind", "pooling", "normalize"),
    [("BertBackbone", "mean", False), ("BertBackbone", "first", True), ("XLMRobertaBackbone", "mean", True)],
)
def test_the_vector_of_a_text(kind, pooling, normalize):
    model = backbone(kind, dropout=0.0)
    encoder = keras_kd.teachers.sentence_encoder(model, pooling=pooling, normalize=normalize)
    ids, mask = np.array([[2, 7, 9, 3], [2, 8, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    x = {"token_ids": ids, "padding_mask": mask, "segment_ids": 0 * ids}
    x = {name: x[name] for name in model.input}
    outputs = model.predict(x, verbose=0)
    tokens = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
    expected = np.stack([tokens[0].mean(axis=0), tokens[1, :2].mean(axis=0)]) if pooling == "mean" else tokens[:, 0]
    if normalize:
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(encoder.predict(x, verbose=0), expected, atol=1e-6)


def test_vectors_of_a_backbone_in_half_precision_are_float32():
    encoder = keras_kd.teachers.sentence_encoder(backbone("BertBackbone", dtype="mixed_bfloat16"))
    assert encoder.output.dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda: {"backbone": "e5"}, TypeError, "backbone must be a keras.Model"),
        (lambda: {"backbone": dense_model(3)}, ValueError, "functional encoder with the input 'padding_mask'"),
        (lambda: {"backbone": keras.Model()}, ValueError, "functional encoder"),
        (lambda: {"backbone": backbone("BertBackbone"), "pooling": "max"}, ValueError, "pooling"),
    ],
)
def test_what_gives_no_vector_of_a_text_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_kd.teachers.sentence_encoder(**arguments())
