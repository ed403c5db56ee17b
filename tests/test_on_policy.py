"""OnPolicy: the student's own samples in a share of each batch, anew from its present weights."""

import formulas
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.sequences import OnPolicy

START, END, TOKENS = 1, 2, 9
RNG = np.random.default_rng(0)
SOURCES = RNG.integers(3, TOKENS, (12, 4)).astype("int32")
TARGETS = SOURCES[:, ::-1]
X = {"source_ids": SOURCES, "target_ids": np.concatenate([np.full((12, 1), START), TARGETS], axis=1).astype("int32")}
Y = np.concatenate([TARGETS, np.full((12, 1), END)], axis=1).astype("int32")


def data(size=4):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


class Writes:
    """A student's search: the source, one higher, and the end; every second of its rows has one token less."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        assert set(x) == {"source_ids"}
        ids = np.concatenate([x["source_ids"].numpy() + 1, np.full((len(x["source_ids"]), 1), END)], axis=1)
        lengths = 5 - np.arange(len(ids)) % 2
        return np.where(np.arange(5) < lengths[:, None], ids, 0)[:, None], np.zeros((len(ids), 1)), lengths[:, None]


@pytest.mark.parametrize(("share", "samples"), [(0.25, 1), (0.5, 2), (1.0, 4)])
def test_the_share_of_each_batch_is_samples_behind_the_start_token_and_without_labels(share, samples):
    on_policy = OnPolicy(Writes(), data(), start_id=START, share=share)
    for x, y in on_policy.dataset:
        assert x["target_ids"].shape == y.shape == (4, 5)
        np.testing.assert_array_equal((y.numpy() == -1).all(axis=1), np.arange(4) >= 4 - samples)
        for source, target, label in zip(x["source_ids"].numpy(), x["target_ids"].numpy(), y.numpy(), strict=True):
            if label[0] == -1:  # the source that it was written for; cut before its last token, which is only predicted
                assert target[0] == START and target.tolist() in ([1, *(source + 1)], [1, *(source[:3] + 1), 0])
            else:
                assert target.tolist() == [1, *source[::-1]] and label.tolist() == [*source[::-1], END]


def test_samples_longer_than_the_data_are_padded_for_both():
    def long(x):
        size = len(x["source_ids"])
        return np.full((size, 1, 8), 7), np.zeros((size, 1)), np.full((size, 1), 8)

    x, y = next(iter(OnPolicy(long, data(), start_id=START).dataset))
    np.testing.assert_array_equal(x["target_ids"][:2, 5:], np.zeros((2, 3)))
    np.testing.assert_array_equal(y[:2, 5:], np.full((2, 3), -1))
    np.testing.assert_array_equal(x["target_ids"][2], [1, *[7] * 7])


def test_hypotheses_that_do_not_exist_are_no_samples_and_the_oldest_leave_the_buffer():
    def some(x):
        size = len(x["source_ids"])
        some.calls += 1
        scores = np.where(np.arange(size)[:, None] == [[0, 1]], 0.0, -np.inf)
        return np.full((size, 2, 2), 2 + some.calls), scores, np.full((size, 2), 2)

    some.calls = 0
    on_policy = OnPolicy(some, data(), start_id=START, share=1.0, batches=2, buffer_size=5)
    seen = []
    for _ in range(3):
        on_policy.refresh()
        seen.append({int(token) for x, _ in on_policy.dataset for token in x["target_ids"][:, 1].numpy()})
    assert seen == [{3, 4}, {4, 5, 6}, {6, 7, 8}]  # two samples of each batch, five kept


def decoder(seed, width):
    keras.utils.set_random_seed(seed)
    source = keras.Input((None,), dtype="int32", name="source_ids")
    target = keras.Input((None,), dtype="int32", name="target_ids")
    encoded = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(TOKENS + 1, width)(source))
    hidden = keras.layers.Embedding(TOKENS + 1, width, mask_zero=True)(target)
    hidden = keras.layers.GRU(width, return_sequences=True)(hidden, initial_state=encoded)
    return keras.Model([source, target], keras.layers.Dense(TOKENS)(hidden))


class Samples:
    """Greedy search of three tokens; `first` are the first tokens of each call."""

    def __init__(self, model):
        self.model, self.first = model, []

    def __call__(self, x):
        size = len(x["source_ids"])
        ids = np.full((size, 1), START, "int32")
        for _ in range(3):
            logits = self.model({**x, "target_ids": tf.constant(ids)}).numpy()[:, -1]
            ids = np.concatenate([ids, 3 + logits[:, 3:].argmax(axis=-1)[:, None]], axis=1).astype("int32")
        self.first.append(ids[:, 1:].tolist())
        return ids[:, None, 1:], np.zeros((size, 1)), np.full((size, 1), 3)


@pytest.mark.parametrize(
    "loss", [keras_kd.losses.ReverseKL(), keras_kd.losses.JensenShannon(0.5)], ids=lambda one: one.name
)
def test_a_student_learns_on_its_own_samples_in_fit(loss):
    teacher, student = decoder(1, 32), decoder(2, 8)
    samples = Samples(student)
    on_policy = OnPolicy(samples, data(), start_id=START, share=1.0, every=3, batches=1)
    distiller = keras_kd.Distiller(teacher, student, loss)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    distiller.compile(keras.optimizers.Adam(0.05), crossentropy)
    history = distiller.fit(on_policy.dataset, epochs=6, callbacks=[on_policy], verbose=0).history
    assert history[loss.name][-1] < 0.5 * history[loss.name][0]
    assert len(samples.first) in (
        7,
        8,
    )  # at the beginning (before it, where fit looks at a batch) and after 3, 6, … of 18
    assert samples.first[-1] != samples.first[0]  # of the weights that it has by then


def test_the_value_is_that_of_the_teacher_and_the_student_on_the_sample():
    """The logits of each position of the student's own text, up to its end, and no label."""
    teacher, student = decoder(1, 32), decoder(2, 8)
    on_policy = OnPolicy(Writes(), data(), start_id=START, share=1.0, seed=3)
    (x, y), *_ = on_policy.dataset
    distiller = keras_kd.Distiller(teacher, student, keras_kd.losses.ReverseKL())
    distiller.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    )
    logs = distiller.fit(x, y, batch_size=4, verbose=0).history
    logits = [model(x).numpy() for model in (student, teacher)]
    counted = x["target_ids"].numpy() != 0
    expected = formulas.soft_labels(*logits, temperature=1.0)[counted].mean()
    assert logs["reverse_kl"][0] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"][0] == pytest.approx(expected * float(distiller.soft_weight), rel=1e-4)


def test_bad_input_is_named():
    def refused(error, message, generate=Writes(), dataset=None, **options):  # noqa: B008
        with pytest.raises(error, match=message):
            OnPolicy(generate, data() if dataset is None else dataset, **{"start_id": START, **options})

    refused(TypeError, "generate must be a function", generate="student")
    refused(TypeError, "dataset must be a batched tf.data.Dataset", dataset=[X])
    refused(ValueError, "a dict x that holds 'target_ids'", dataset=data().map(lambda x, y: (x["source_ids"], y)))
    refused(ValueError, "a dict x that holds 'other'", target_key="other")
    refused(ValueError, "integers", dataset=data().map(lambda x, y: (x, tf.cast(y, tf.float32))))
    refused(ValueError, "share must be > 0 and <= 1", share=0.0)
    refused(ValueError, "every must be >= 1", every=0)
    with pytest.raises(TypeError, match=r"generate must return \(ids, scores, lengths\)"):
        OnPolicy(lambda x: x, data(), start_id=START).refresh()
    with pytest.raises(ValueError, match="for the 4 rows of the batch"):
        OnPolicy(lambda x: (np.ones((2, 1, 3)), np.ones((2, 1)), np.ones((2, 1))), data(), start_id=START).refresh()
