"""Outputs of sequences of any length on disk: without their padding, known by what is not padding."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import crossentropy
from formulas import log_softmax
from test_cache import SMALL, content_of, stored

import keras_kd
from keras_kd._keras_private import get_mask
from keras_kd.cache import TopLogProbs
from keras_kd.cache.keys import fingerprint

WORDS, CLASSES = 50, 5


@pytest.fixture
def texts():
    """40 texts of 1 to 20 words, numbered from 1; a fifth of the words within are 0, which hides them."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, WORDS, rng.integers(1, 21)) for _ in range(40)]
    for text in texts:
        text[:-1][rng.random(len(text) - 1) < 0.2] = 0
    return texts


def padded(texts, batch, *, length=None, order=None, padding=0):
    """Batches of texts, each padded to its longest or to `length`."""
    texts = texts if order is None else [texts[i] for i in order]
    dataset = tf.data.Dataset.from_generator(lambda: iter(texts), output_signature=tf.TensorSpec((None,), tf.int32))
    return dataset.padded_batch(batch, padded_shapes=(length,), padding_values=tf.constant(padding, tf.int32))


def tagger(*, mask_zero=True, length=None, width=8):
    """A model that gives logits of each token and looks at the others, but not at masked ones."""
    ids = keras.Input((length,), dtype="int32", name="ids")
    hidden = keras.layers.Embedding(WORDS, width, mask_zero=mask_zero)(ids)
    hidden = keras.layers.MultiHeadAttention(2, 4, name="attention")(hidden, hidden)
    return keras.Model(ids, keras.layers.Dense(CLASSES, name="logits")(hidden))


def of_tokens(output, mask):
    """An output's rows of the tokens that are not masked."""
    return np.asarray(output)[np.asarray(mask)]


@pytest.mark.parametrize("length", [None, 24])
def test_tokens_come_back_with_their_masks_however_batches_are_padded(texts, tmp_path, length):
    teacher = tagger(length=length)
    outputs = [None, "attention:query"]
    stored(teacher, padded(texts, 8, length=length), tmp_path / "cache", outputs=outputs, dtype="float32")
    cache = keras_kd.open_teacher_cache(tmp_path / "cache", teacher=teacher)
    order = np.random.default_rng(1).permutation(40)
    for dataset in (padded(texts, 7, order=order), padded(texts, 40, length=30), padded(texts, 1).take(5)):
        for (precomputed,) in cache.attach(dataset):
            mask = precomputed.x.numpy() != 0
            live = tagger_outputs(teacher, precomputed.x)
            assert precomputed.prediction.shape == (*mask.shape, CLASSES)
            np.testing.assert_allclose(
                of_tokens(precomputed.prediction, mask), of_tokens(live, mask), rtol=1e-4, atol=1e-5
            )
            after = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 0
            assert not of_tokens(precomputed.prediction, after).any()
            np.testing.assert_array_equal(precomputed.masks["output"], mask)
            np.testing.assert_array_equal(precomputed.masks["layer attention:query"], mask)
    words = sum(len(text) for text in texts)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "cache").iterdir()}
    assert sizes["output_0.bin"] == 4 * CLASSES * words  # nothing of the padding
    assert sizes["output_0.mask.bin"] == words


def tagger_outputs(teacher, x):
    """The teacher's logits of texts that are longer or shorter than its input."""
    free = tagger()
    free.set_weights(teacher.get_weights())
    return free(x)


def test_losses_see_the_masks_of_the_teacher(texts, tmp_path):
    attached = stored(tagger(), padded(texts, 8), tmp_path / "cache", outputs=[None, "attention:query"])
    (precomputed,) = next(iter(attached))
    outputs = precomputed.teacher_outputs()
    for output in (outputs.prediction, *outputs.layers.values()):
        np.testing.assert_array_equal(get_mask(output), precomputed.x.numpy() != 0)


def test_the_student_learns_what_it_learns_from_the_live_teacher(texts, tmp_path):
    distillation_losses = [
        keras_kd.losses.SoftLabels(2.0),
        keras_kd.losses.SelfAttentionRelations("attention", "attention", heads=2),
        keras_kd.losses.UniversalLogitDistillation(),
    ]
    teacher, live = tagger(), tagger(width=4)
    cached = keras.models.clone_model(live)
    cached.set_weights(live.get_weights())
    labelled = padded(texts, 8).map(lambda x: (x, tf.cast(x % CLASSES, tf.int32)))
    precomputed = stored(teacher, padded(texts, 5), tmp_path / "cache", outputs=distillation_losses, dtype="float32")
    precomputed = keras_kd.open_teacher_cache(tmp_path / "cache").attach(labelled)
    for model, student, dataset in ((teacher, live, labelled), (None, cached, precomputed)):
        distiller = keras_kd.Distiller(model, student, distillation_losses)
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
        distiller.fit(dataset, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(live.get_weights(), cached.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"sampled": 4}, {"dtype": "int8"}])
def test_each_coding_holds_tokens(texts, tmp_path, options):
    teacher = tagger()
    teacher.set_weights([5 * weight for weight in teacher.get_weights()])  # no classes that are nearly alike
    outputs = [None, "attention:value"]
    whole = stored(teacher, padded(texts, 40, length=20), tmp_path / "whole", outputs=outputs, **options)
    stored(teacher, padded(texts, 8), tmp_path / "parts", outputs=outputs, **options)
    parts = keras_kd.open_teacher_cache(tmp_path / "parts").attach(padded(texts, 40, length=20))
    ((one,),), ((other,),) = list(whole), list(parts)
    mask = one.x.numpy() != 0  # what attention gives of masked tokens depends on how many there are
    for left, right in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        if left.shape[:2] == mask.shape:
            left, right = of_tokens(left, mask), of_tokens(right, mask)
        np.testing.assert_allclose(left, right, rtol=2e-2, atol=1e-3)


def test_without_a_mask_padding_says_how_long_an_example_is(texts, tmp_path):
    teacher = tagger(mask_zero=False)
    longest = [max(len(text) for text in texts[i : i + 8]) for i in range(0, 40, 8)]
    for padding, tokens in ((0, sum(len(text) for text in texts)), (None, 8 * sum(longest))):
        stored(teacher, padded(texts, 8), tmp_path / str(padding), padding=padding)
        assert (tmp_path / str(padding) / "output_0.bin").stat().st_size == 2 * CLASSES * tokens
    (precomputed,) = next(iter(keras_kd.open_teacher_cache(tmp_path / "0").attach(padded(texts, 40))))
    assert precomputed.masks == {}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"holds no outputs of the example.*see `padding`"):
        list(keras_kd.open_teacher_cache(tmp_path / "None").attach(padded(texts, 40)))


def test_tokens_that_would_be_lost_are_refused(tmp_path):
    ids, outputs = np.arange(3), np.ones((3, 6, CLASSES), "float32")
    ragged = tf.RaggedTensor.from_tensor(outputs, lengths=[6, 2, 4])
    cache = keras_kd.cache_teacher_outputs("arrays", [(ids, ragged)], tmp_path / "cache", key="id", verbose=0)
    batch = {"id": ids, "tokens": np.ones((3, 8), "int32")}
    (precomputed,) = next(iter(cache.attach(tf.data.Dataset.from_tensors((batch,)))))
    expected = np.arange(8) < np.array([[6], [2], [4]])
    np.testing.assert_array_equal(precomputed.prediction, np.broadcast_to(expected[..., None], (3, 8, CLASSES)))
    cut = cache.attach(tf.data.Dataset.from_tensors(({**batch, "tokens": np.ones((3, 5), "int32")},)))
    message = r"holds 6 tokens of the output 'output', but the batch is only 5 long, of the example\] \[id 0"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(cut)
    (precomputed,) = next(iter(cache.attach(tf.data.Dataset.from_tensors(({"id": ids[1:]},)))))
    assert precomputed.prediction.shape == (2, 4, CLASSES)  # as long as the longest


def test_losses_do_not_count_what_a_ragged_output_lacks(tmp_path):
    outputs = np.random.default_rng(0).normal(size=(2, 4, CLASSES)).astype("float32")
    ragged = tf.RaggedTensor.from_tensor(outputs, lengths=[4, 1])
    whole = TopLogProbs(*(tf.RaggedTensor.from_tensor(one, lengths=[2, 3]) for one in top_two(outputs)), of=CLASSES)
    batches = [(np.arange(2), {"a": ragged, "b": whole}), (np.arange(2, 4), {"a": outputs, "b": whole})]
    cache = keras_kd.cache_teacher_outputs("arrays", batches, tmp_path / "cache", key="id", verbose=0)
    batch = {"id": np.arange(4), "tokens": np.ones((4, 6), "int32")}
    (precomputed,) = next(iter(cache.attach(tf.data.Dataset.from_tensors((batch,)))))
    for name, lengths in {"output a": [4, 1, 4, 4], "output b": [2, 3, 2, 3]}.items():
        np.testing.assert_array_equal(precomputed.masks[name], np.arange(6) < np.array(lengths)[:, None])


def top_two(outputs):
    """The two likeliest classes of logits, and their log-probabilities."""
    classes = np.argsort(-outputs, axis=-1)[..., :2].astype("int32")
    return classes, np.take_along_axis(log_softmax(outputs), classes, axis=-1)


def test_outputs_go_by_the_entry_that_they_were_as_long_as(tmp_path):
    """A teacher of English, a student of a translation that has other lengths."""
    english, other = keras.Input((None,), name="english"), keras.Input((None,), name="other")
    logits = keras.layers.Dense(3)(keras.layers.Reshape((-1, 1))(english))
    teacher = keras.Model({"english": english, "other": other}, logits)
    rng = np.random.default_rng(0)
    batches = [{"english": rng.random((4, n)), "other": rng.random((4, m))} for n, m in ((5, 5), (6, 3), (2, 7))]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature={name: tf.TensorSpec((None, None)) for name in batches[0]}
    )
    for precomputed, *_ in stored(teacher, dataset, tmp_path / "cache"):
        assert precomputed.prediction.shape[:2] == precomputed.x["english"].shape


# Keys --------------------------------------------------------------------------------------------------------------


def test_a_fingerprint_of_tokens_is_the_documented_sum():
    tokens = np.array([[3, 0, 5, *[0] * 18, 7, 0, 0]], "int32")
    blocks = np.pad(tokens.astype("<i8"), [[0, 0], [0, 24]]).reshape(3, 16)
    hashed = [int(fingerprint(tf.constant([block.tobytes()]))[0]) for block in blocks]  # of bytes: plain FarmHash64
    padding = int(fingerprint(tf.constant([np.zeros(16, "<i8").tobytes()]))[0])
    expected = sum((2 * i + 1) * (one - padding) for i, one in enumerate(hashed)) % 2**64
    assert int(fingerprint(tf.constant(tokens), padding=0)[0]) % 2**64 == expected


@pytest.mark.parametrize(("kind", "padding"), [("int32", 0), ("int64", 7), ("uint8", 7), ("bool", 7)])
def test_only_padding_at_the_end_does_not_count(kind, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2 if kind == "bool" else 9, (20, 21)).astype(kind)
    x[:, -1] = 1
    fill = 0 if kind == "bool" else padding
    keys = fingerprint(tf.constant(x), padding).numpy()
    for more in (1, 11, 12, 40):
        longer = np.concatenate([x, np.full((20, more), fill, kind)], axis=1)
        np.testing.assert_array_equal(fingerprint(tf.constant(longer), padding), keys)
        moved = np.concatenate([np.full((20, more), fill, kind), x], axis=1)
        inside = np.concatenate([x[:, :7], np.full((20, more), fill, kind), x[:, 7:]], axis=1)
        for other in (moved, inside):
            assert not np.isin(fingerprint(tf.constant(other), padding), keys).any()
    assert len(set(keys)) == 20
    assert fingerprint(tf.zeros((2, 0), tf.int32), padding).numpy().tolist() == [0, 0]


def test_entries_may_be_padded_with_other_numbers(texts, tmp_path):
    def batches(size):
        return padded(texts, size, padding=1).map(lambda ids: {"ids": ids, "segments": tf.zeros_like(ids)})

    teacher = tagger(mask_zero=False)
    stored(teacher, batches(8), tmp_path / "cache", padding={"ids": 1, "segments": 0})
    attached = keras_kd.open_teacher_cache(tmp_path / "cache").attach(batches(40))
    assert len(list(attached)) == 1
    with pytest.raises(TypeError, match="padding must be an integer, a dict of one for each entry of x, or None"):
        stored(teacher, batches(8), tmp_path / "other", padding="zero")


# What is refused ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_or_a_cut_is_noticed_in_every_file(texts, tmp_path):
    stored(tagger(), padded(texts, 8), tmp_path / "cache", outputs=[None, "attention:key"])
    whole = content_of(tmp_path / "cache")
    assert {"output_0.end.bin", "output_0.mask.bin", "output_1.bin"} <= set(whole)
    for name, content in whole.items():
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[place] ^= 4
            (tmp_path / "cache" / name).write_bytes(flipped)
            with pytest.raises(ValueError, match=f"not as it was written, .*{name}"):
                keras_kd.open_teacher_cache(tmp_path / "cache")
        (tmp_path / "cache" / name).write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"not as it was written, .*{name}"):
            keras_kd.open_teacher_cache(tmp_path / "cache", verify=False)
        (tmp_path / "cache" / name).write_bytes(content)


def test_a_build_that_stopped_goes_on_to_the_same_bytes(texts, tmp_path):
    teacher, options = tagger(), {**SMALL, "outputs": [None, "attention:key"]}

    def fail(number, x):
        tf.debugging.assert_less(number, tf.constant(3, tf.int64))
        return x

    with pytest.raises(tf.errors.InvalidArgumentError):
        keras_kd.cache_teacher_outputs(teacher, padded(texts, 8).enumerate().map(fail), tmp_path / "cache", **options)
    with (tmp_path / "cache" / "output_0.mask.bin").open("ab") as file:
        file.write(b"half")
    for name in ("cache", "whole"):
        keras_kd.cache_teacher_outputs(teacher, padded(texts, 8), tmp_path / name, **options)
    assert content_of(tmp_path / "cache") == content_of(tmp_path / "whole")


def test_only_the_axis_of_tokens_may_vary(texts, tmp_path):
    with pytest.raises(ValueError, match=r"vary in the axis after the batch alone.*'layer attention:scores'"):
        stored(tagger(), padded(texts, 8), tmp_path / "cache", outputs="attention:scores")
