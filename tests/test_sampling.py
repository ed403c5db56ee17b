"""Sampling and weighing by language: probabilities by hand, draws by the law of large numbers, weights row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model

import keras_kd
from keras_kd.datasets import sample_by_language, sampling_probabilities, weigh_by_language


def named(**sizes):
    """A dataset a language: its elements are (language, number of the example)."""
    slices = tf.data.Dataset.from_tensor_slices
    return {language: slices(([language] * n, list(range(n)))) for language, n in sizes.items()}


def drawn(dataset, count):
    return [(language.decode(), int(number)) for language, number in dataset.take(count).as_numpy_iterator()]


# Probabilities ----------------------------------------------------------------------------------------------------


def test_probabilities_at_temperature_1_are_the_shares_of_the_sizes():
    assert sampling_probabilities({"en": 30, "sw": 10}, 1.0) == pytest.approx({"en": 0.75, "sw": 0.25})


def test_probabilities_at_temperature_5_are_those_of_the_fifth_roots():
    """32 and 243 are 2⁵ and 3⁵."""
    assert sampling_probabilities({"en": 243, "sw": 32}) == pytest.approx({"en": 0.6, "sw": 0.4})


def test_probabilities_at_a_high_temperature_are_uniform():
    assert sampling_probabilities({"en": 10**9, "sw": 1, "el": 50}, 1e9) == pytest.approx(
        {"en": 1 / 3, "sw": 1 / 3, "el": 1 / 3}, abs=1e-6
    )


def test_probabilities_at_a_low_temperature_do_not_overflow():
    assert sampling_probabilities({"en": 10**9, "sw": 10}, 0.01) == pytest.approx({"en": 1.0, "sw": 0.0})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({"en": 5}, 0.0), ValueError, r"temperature must be > 0, got 0.0. 1 draws by size, 5 is usual"),
        (({"en": 5, "sw": 0}, 1.0), ValueError, r"counts\['sw'\] must be > 0, got 0"),
        (({"en": "many"}, 1.0), TypeError, r"counts\['en'\] must be > 0 \(a number\), got 'many'"),
        (({}, 1.0), ValueError, "counts must hold at least one language, got none"),
    ],
)
def test_probabilities_of_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        sampling_probabilities(*arguments)


# Sampling ---------------------------------------------------------------------------------------------------------


def test_languages_are_drawn_with_their_probabilities():
    """2,000 draws at p = 0.6: the standard deviation of the share is 0.011."""
    languages = [language for language, _ in drawn(sample_by_language(named(en=243, sw=32), seed=3), 2000)]
    assert languages.count("en") / 2000 == pytest.approx(0.6, abs=0.045)


def test_each_language_is_repeated_in_its_own_order():
    dataset = sample_by_language(named(en=4, sw=2), 1e9, seed=0)
    assert int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY
    swahili = [number for language, number in drawn(dataset, 60) if language == "sw"]
    assert len(swahili) > 10
    assert swahili == [i % 2 for i in range(len(swahili))]


def test_the_seed_decides_what_is_drawn():
    datasets = named(en=20, sw=5)
    first = sample_by_language(datasets, seed=1)
    assert drawn(first, 50) == drawn(first, 50) == drawn(sample_by_language(datasets, seed=1), 50)
    assert drawn(first, 50) != drawn(sample_by_language(datasets, seed=2), 50)


def test_counts_replace_an_unknown_cardinality():
    datasets = named(en=243, sw=64)
    datasets["sw"] = datasets["sw"].filter(lambda language, number: number < 32)
    with pytest.raises(ValueError, match=r"datasets\['sw'\] holds an unknown number of examples. Pass counts=\{'sw'"):
        sample_by_language(datasets, seed=0)
    languages = [language for language, _ in drawn(sample_by_language(datasets, seed=3, counts={"sw": 32}), 2000)]
    assert languages.count("en") / 2000 == pytest.approx(0.6, abs=0.045)


def test_a_student_trains_on_what_is_drawn(data):
    x, y = data
    slices = tf.data.Dataset.from_tensor_slices
    datasets = {"en": slices((x[:30], y[:30])).shuffle(30, seed=0), "sw": slices((x[30:], y[30:]))}
    distiller = keras_kd.Distiller(dense_model(16, 3), dense_model(6, 3))
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(sample_by_language(datasets, seed=0).batch(8), steps_per_epoch=3, epochs=2, verbose=0)
    assert int(distiller.optimizer.iterations) == 6


@pytest.mark.parametrize(
    ("datasets", "options", "error", "message"),
    [
        ({}, {}, ValueError, r"datasets must be a dict \{language: tf.data.Dataset\} with at least one"),
        ([1], {}, ValueError, r"datasets must be a dict .*got \[1\]"),
        ({"en": [1, 2]}, {}, TypeError, r"datasets\['en'\] must be a tf.data.Dataset, got list"),
        (named(en=3), {"counts": {"de": 3}}, ValueError, r"counts holds \['de'\], but datasets has \['en'\]"),
        (named(en=3), {"counts": {"en": 0}}, ValueError, r"examples of 'en' must be >= 1, got 0"),
        (named(en=3), {"seed": "a"}, TypeError, "seed must be a whole number >= 0, got 'a'"),
        (named(en=3), {"temperature": -1.0}, ValueError, "temperature must be > 0, got -1"),
        ({"en": named(en=3)["en"].repeat()}, {}, ValueError, "holds an infinite number of examples"),
        ({"en": named(en=3)["en"].take(0)}, {}, ValueError, "examples of 'en' must be >= 1, got 0"),
        (named(en=3) | {"sw": tf.data.Dataset.range(3)}, {}, TypeError, "compatible element specs"),
    ],
)
def test_datasets_that_cannot_be_sampled_are_refused(datasets, options, error, message):
    with pytest.raises(error, match=message):
        sample_by_language(datasets, **{"seed": 0, **options})


# Weighing ---------------------------------------------------------------------------------------------------------

LANGUAGES = np.array(["en", "sw", "sw", "el"])
WEIGHTS = {"en": 0.5, "sw": 2.0, "el": 0.0}
ROWS = [0.5, 2.0, 2.0, 0.0]  # the weights of LANGUAGES, by hand


def labelled(*sample_weight, languages=LANGUAGES, language_key="language"):
    x = {"text": np.arange(4.0, dtype="float32"), language_key: languages}
    return tf.data.Dataset.from_tensor_slices((x, [0, 1, 2, 3], *sample_weight))


def weights_of(dataset):
    return np.concatenate([np.atleast_1d(weights) for _, _, weights in dataset.as_numpy_iterator()]).tolist()


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_each_example_gets_the_weight_of_its_language(batch_size):
    dataset = labelled() if batch_size is None else labelled().batch(batch_size)
    assert weights_of(weigh_by_language(dataset, WEIGHTS)) == ROWS


def test_x_and_y_pass_as_they_are():
    (x, y, _) = next(weigh_by_language(labelled().batch(4), WEIGHTS).as_numpy_iterator())
    assert x["text"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert x["language"].tolist() == [b"en", b"sw", b"sw", b"el"]
    assert y.tolist() == [0, 1, 2, 3]


def test_sample_weights_of_the_dataset_are_multiplied():
    dataset = labelled(np.array([1.0, 2.0, 3.0, 4.0], "float32")).batch(4)
    assert weights_of(weigh_by_language(dataset, WEIGHTS)) == [0.5, 4.0, 6.0, 0.0]


@pytest.mark.parametrize("batched", [False, True])
def test_weights_of_tokens_and_of_several_outputs_are_multiplied(batched):
    sample_weight = {"tokens": np.ones((4, 3)), "sentence": np.array([1.0, 2.0, 3.0, 4.0])}
    dataset = labelled(sample_weight).batch(2) if batched else labelled(sample_weight)
    weighed = list(weigh_by_language(dataset, WEIGHTS).map(lambda x, y, w: w).as_numpy_iterator())
    tokens, sentence = (np.stack([w[name] for w in weighed]) for name in ("tokens", "sentence"))
    np.testing.assert_array_equal(tokens.reshape(4, 3), np.array(ROWS)[:, None] * np.ones((4, 3)))
    assert sentence.ravel().tolist() == [0.5, 4.0, 6.0, 0.0]


def test_a_language_without_a_weight_is_named():
    dataset = weigh_by_language(labelled().batch(2), {"en": 1.0, "sw": 2.0})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"weights must have an entry.*it has en, sw, not\] \[el"):
        list(dataset)
    dataset = weigh_by_language(labelled(), {"en": 1.0, "el": 2.0})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"it has el, en, not\] \[sw"):
        list(dataset)


def test_the_default_weighs_languages_without_a_weight():
    assert weights_of(weigh_by_language(labelled().batch(4), {"sw": 2.0}, default=0.25)) == [0.25, 2.0, 2.0, 0.25]


def test_languages_may_be_integers_under_another_name():
    dataset = labelled(languages=np.array([7, 3, 3, 9]), language_key="locale").batch(4)
    assert weights_of(weigh_by_language(dataset, {3: 2.0, 7: 0.5, 9: 0.0}, language_key="locale")) == ROWS


def test_a_student_learns_with_the_weights(data):
    """One step of plain gradient descent: a weight of 0 leaves its language out, also of the soft loss."""
    x, _ = data
    x, languages = x[:16], np.array(["en", "sw"] * 8)
    weights = []
    for arrays, table in [
        ({"features": x, "language": languages}, {"en": 2.0, "sw": 0.0}),
        ({"features": x[::2], "language": languages[::2]}, {"en": 1.0}),
    ]:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8,), name="features")
        teacher, student = (keras.Model(inputs, keras.layers.Dense(3)(inputs)) for _ in range(2))
        distiller = keras_kd.Distiller(teacher, student)
        distiller.compile(keras.optimizers.SGD(0.1), None)
        unlabelled = tf.data.Dataset.from_tensor_slices(arrays).batch(16).map(lambda x: (x, None))
        distiller.fit(weigh_by_language(unlabelled, table), verbose=0)
        weights.append(student.get_weights()[0])
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-6)


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        ([1], {}, TypeError, "dataset must be a tf.data.Dataset, got list"),
        (labelled().map(lambda x, y: x), {}, ValueError, r"dataset must give \(x, y\) or \(x, y, sample_weight\)"),
        (
            labelled(),
            {"language_key": "locale"},
            ValueError,
            r"the entry 'locale'.*got the entries \['language', 'text'\]",
        ),
        (labelled().map(lambda x, y: (x["text"], y)), {}, ValueError, "x must be a dict with the entry 'language'"),
        (labelled().batch(2).batch(2), {}, ValueError, r"x\['language'\] must be of shape \(\) or \(batch,\), got"),
        (labelled(), {"weights": {}}, ValueError, "weights must hold different languages, at least one"),
        (labelled(), {"weights": {"en": -1.0}}, ValueError, r"weights\['en'\] must be >= 0, got -1"),
        (labelled(), {"default": -1.0}, ValueError, r"default must be >= 0, got -1"),
        (
            labelled(),
            {"weights": {1: 1.0}},
            TypeError,
            r"weights holds the languages \[1\], but those of the batch are string",
        ),
        (
            labelled(),
            {"weights": {1: 1.0, "en": 1.0}},
            TypeError,
            "weights must hold languages that are all str or all",
        ),
    ],
)
def test_datasets_that_cannot_be_weighed_are_refused(dataset, options, error, message):
    with pytest.raises(error, match=message):
        weigh_by_language(dataset, **{"weights": WEIGHTS, **options})
