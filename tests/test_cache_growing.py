"""A cache that grows while it is read: live in the first pass, the same numbers from disk in later ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense_model
from test_cache import batches_of, content_of, logits_by_example, stored
from test_cache_lengths import padded, tagger, texts  # noqa: F401, a fixture

import keras_kd
from keras_kd.cache.growing import attach_growing
from keras_kd.cache.sources import TeacherSource


@pytest.fixture
def runs(monkeypatch):
    """How many examples each batch had that a teacher ran on."""
    runs, encoded = [], TeacherSource.encoded

    def counted(source, x):
        runs.append(len(next(iter(tf.nest.flatten(x)))))
        return encoded(source, x)

    monkeypatch.setattr(TeacherSource, "encoded", counted)
    return runs


def grown(teacher, dataset, folder, **options):
    return attach_growing(teacher, dataset, folder, **{"shard_bytes": 150, **options})


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"top_k": 2}])
def test_the_first_pass_gives_what_later_ones_read(data, tmp_path, runs, options):
    x, y = data
    teacher = dense_model(16, 3)
    flat = tf.data.Dataset.from_tensor_slices((x, y))
    precomputed = grown(teacher, flat.shuffle(37, seed=1).batch(8), tmp_path / "grown", **options)
    assert int(precomputed.cardinality()) == 5
    passes = [in_full(precomputed), in_full(precomputed)]
    assert runs == [8, 8, 8, 8, 5]
    passes.append(in_full(grown(teacher, flat.batch(6), tmp_path / "grown", **options)))
    cache = keras_kd.open_teacher_cache(tmp_path / "grown", teacher=teacher)
    passes.append(in_full(cache.attach(flat.batch(37))))
    assert (len(runs), cache.examples) == (5, 37)
    for later in passes[1:]:
        assert later == passes[0]
    built = in_full(stored(teacher, flat.batch(8), tmp_path / "built", **options))
    for example, output in built.items():
        np.testing.assert_allclose(np.frombuffer(passes[0][example], "float32"), np.frombuffer(output, "float32"), 2e-3)


def in_full(dataset):
    """`{bytes of an example: bytes of its logits}` of a pass."""
    found = {}
    for precomputed, *_ in dataset:
        outputs = precomputed.outputs().prediction.numpy()
        found |= {x.tobytes(): output.tobytes() for x, output in zip(precomputed.x.numpy(), outputs, strict=True)}
    return found


def test_a_killed_run_goes_on_with_its_finished_shards_in_any_order(data, tmp_path, runs):
    x, _ = data
    teacher = dense_model(16, 3)
    list(grown(teacher, batches_of(x, batch=4), tmp_path / "cache").take(5))  # what is in the open shard is lost
    assert "building.json" in content_of(tmp_path / "cache")
    runs.clear()
    again = grown(teacher, batches_of(x[::-1], batch=5), tmp_path / "cache")
    assert len(logits_by_example(again)) == 37
    assert 0 < len(runs) < 8
    assert keras_kd.open_teacher_cache(tmp_path / "cache").examples == 37
    with pytest.raises(ValueError, match="another teacher or of other settings"):
        grown(dense_model(16, 3), batches_of(x), tmp_path / "cache")


def test_fewer_steps_than_batches_and_equal_examples(data, tmp_path, runs):
    x, _ = data
    twice = np.concatenate([x, x[:9]])
    precomputed = grown(dense_model(16, 3), batches_of(twice, batch=4), tmp_path / "cache")
    for _ in range(2):
        list(precomputed.take(2))
    assert runs[:2] == [4, 4]
    assert len(runs) < 9  # some were read ahead
    assert len(logits_by_example(precomputed)) == 37
    assert keras_kd.open_teacher_cache(tmp_path / "cache").examples == 37
    endless = grown(dense_model(16, 3), batches_of(x).repeat(), tmp_path / "endless")
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert len(logits_by_example(endless.take(12))) == 37


def test_tokens_grow_as_well(texts, tmp_path):  # noqa: F811
    teacher, outputs = tagger(), [None, "attention:query"]
    order = np.random.default_rng(0).permutation(40)
    dataset = padded(texts, 7, order=order)
    precomputed = grown(teacher, dataset, tmp_path / "grown", outputs=outputs, dtype="float32")
    passes = [list(precomputed), list(precomputed)]
    passes.append(list(keras_kd.open_teacher_cache(tmp_path / "grown").attach(dataset)))
    for batches in passes[1:]:
        for one, other in zip(tf.nest.flatten(passes[0]), tf.nest.flatten(batches), strict=True):
            np.testing.assert_array_equal(one, other)
    stored(teacher, dataset, tmp_path / "built", outputs=outputs, dtype="float32", shard_bytes=150)
    assert content_of(tmp_path / "grown") == content_of(tmp_path / "built")


def test_ids_that_stand_for_two_examples_are_refused_and_augmented_ones_are_not(data, tmp_path, runs):
    pixels = keras.Input((8,), name="pixels")
    teacher = keras.Model(pixels, keras.layers.Dense(3)(pixels))
    dataset = batches_of({"pixels": data[0], "id": np.arange(37) % 30})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"two different examples have the key.*0\. Number"):
        list(grown(teacher, dataset, tmp_path / "twice", key="id"))
    dataset = batches_of({"pixels": data[0], "id": np.array([f"name {i}" for i in range(37)])})
    noisy = dataset.map(lambda x: {**x, "pixels": x["pixels"] + tf.random.normal(tf.shape(x["pixels"]))})
    precomputed = grown(teacher, noisy, tmp_path / "once", key="id")
    passes = [np.concatenate([batch.prediction.numpy() for (batch,) in precomputed]) for _ in range(2)]
    np.testing.assert_array_equal(*passes)


def test_an_example_that_a_finished_pass_did_not_have_is_named(data, tmp_path):
    x, _ = data
    seen = tf.Variable(0)
    dataset = batches_of(x).map(lambda x: x + tf.cast(seen, x.dtype))
    precomputed = grown(dense_model(3), dataset, tmp_path / "cache")
    list(precomputed)
    seen.assign(1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"holds no outputs of the example.*8 of 8 are missing"):
        list(precomputed)
    with pytest.raises(TypeError, match=r"dataset must be a batched tf.data.Dataset"):
        attach_growing(dense_model(3), x, tmp_path / "other")
