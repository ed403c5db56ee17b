"""decode_dataset: a teacher's hypotheses on disk, resumed and checked, and as the targets of a student."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sacrebleu.metrics import CHRF

from keras_kd.sequences import decode_dataset, open_decoded_dataset

SOURCES = np.array([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9], [2, 0, 0, 0], [3, 3, 3, 3], [8, 1, 0, 0]])
TEACHER = {"teacher": "reverse", "verbose": 0}


def reverse(row):
    return row[row > 0][::-1]


class Reverse:
    """Gives each source's ids in reverse, then without the last; `calls` are the batches that it got."""

    def __init__(self, fails_at=None, pad_id=0):
        self.calls, self.fails_at, self.pad_id = [], fails_at, pad_id

    def __call__(self, x):
        if len(self.calls) == self.fails_at:
            raise RuntimeError("stopped")
        self.calls.append(x.numpy())
        ids = np.full((len(x), 2, 6), self.pad_id)
        lengths, scores = np.zeros((len(x), 2), int), np.zeros((len(x), 2))
        for row, source in enumerate(x.numpy()):
            for i in range(2):
                own = reverse(source)[: None if i == 0 else -1]
                ids[row, i, : len(own)], lengths[row, i], scores[row, i] = own, len(own), -len(own) * (i + 1.0)
        scores[lengths == 0] = -np.inf
        return ids, scores, lengths


def batches(rows=SOURCES, size=2):
    return tf.data.Dataset.from_tensor_slices(rows).batch(size)


def decoded(path, decode=None, rows=SOURCES, **options):
    return decode_dataset(decode or Reverse(), batches(rows), path, **{**TEACHER, "n_best": 2, **options})


def targets_of(dataset):
    """`[(source, target)]` of ids, without padding."""
    return [
        (source[source > 0].tolist(), target[target > 0].tolist())
        for x, y, *_ in dataset
        for source, target in zip(x.numpy(), y.numpy(), strict=True)
    ]


EXPECTED = [(row[row > 0].tolist(), reverse(row).tolist()) for row in SOURCES]


def test_the_first_hypothesis_is_the_target_of_its_source_in_any_order(tmp_path):
    store = decoded(tmp_path / "store")
    assert (store.examples, store.n_best, store.output, store.teacher) == (6, 2, "ids", "reverse")
    found = store.attach(batches())
    assert targets_of(found.dataset) == EXPECTED and found.kept == 6
    assert found.dropped == {"empty": 0, "score": 0, "length_ratio": 0}
    order = [5, 0, 3, 2]
    again = open_decoded_dataset(tmp_path / "store").attach(batches(SOURCES[order], size=3))
    assert targets_of(again.dataset) == [EXPECTED[row] for row in order]
    (x, y), *_ = again.dataset
    assert (x.dtype, y.dtype, y.shape) == (tf.int64, tf.int32, (3, 3))  # as long as the longest of the batch


def test_hypotheses_as_long_as_a_batch_of_sources_may_be_longer_than_another(tmp_path):
    """The store must not take the length of the sources for that of the hypotheses."""

    def as_long(x):
        return np.ones((len(x), 1, 4), int), np.zeros((len(x), 1)), np.full((len(x), 1), 4)

    store = decode_dataset(as_long, batches(), tmp_path / "store", **TEACHER)
    x, y = next(iter(store.attach(batches(SOURCES[1:2, :2])).dataset))
    assert x.shape == (1, 2) and y.numpy().tolist() == [[1, 1, 1, 1]]


def test_a_stopped_build_decodes_only_what_is_missing_and_ends_with_the_same_bytes(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        decoded(tmp_path / "resumed", Reverse(fails_at=2), shard_bytes=1)
    with pytest.raises(ValueError, match="only half built"):
        open_decoded_dataset(tmp_path / "resumed")
    rest = Reverse()
    decoded(tmp_path / "resumed", rest, shard_bytes=1)
    np.testing.assert_array_equal(np.concatenate(rest.calls)[-2:], SOURCES[4:])
    assert len(rest.calls) <= 2  # the batch in the writer's hands when it stopped may be lost
    decoded(tmp_path / "whole", shard_bytes=1)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes()
    done = Reverse()
    decoded(tmp_path / "resumed", done)
    assert done.calls == []


def test_another_teacher_search_tokenizer_or_form_is_refused_and_so_is_a_flipped_bit(tmp_path):
    settings = {"generation": {"beam_size": 2}, "preprocessing": "tokenizer 1"}
    decoded(tmp_path / "store", **settings)
    others = {
        "teacher": "another",
        "generation": {"beam_size": 4},
        "preprocessing": "tokenizer 2",
        "n_best": 1,
        "output": "text",
        "key": "id",
    }
    for name, value in others.items():
        with pytest.raises(ValueError, match="holds outputs of another teacher or of other settings"):
            if name == "key":
                rows = tf.data.Dataset.from_tensor_slices({"ids": SOURCES, "id": np.arange(6)}).batch(2)
                decode_dataset(Reverse(), rows, tmp_path / "store", n_best=2, key="id", **TEACHER, **settings)
            else:
                decoded(tmp_path / "store", **{**settings, name: value})
    content = bytearray((tmp_path / "store" / "output_0.bin").read_bytes())
    content[3] ^= 1
    (tmp_path / "store" / "output_0.bin").write_bytes(content)
    with pytest.raises(ValueError, match="is not as it was written"):
        open_decoded_dataset(tmp_path / "store")


def test_a_model_as_the_teacher_is_known_by_its_weights(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    decoded(tmp_path / "store", teacher=model)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    with pytest.raises(ValueError, match="another teacher"):
        decoded(tmp_path / "store", teacher=model)


def test_all_hypotheses_are_examples_of_their_own_and_missing_ones_are_left_out(tmp_path):
    found = decoded(tmp_path / "store").attach(batches(), select="all")
    expected = []
    for source, target in EXPECTED:
        expected += [(source, target)] + [(source, target[:-1])] * (len(target) > 1)
    assert targets_of(found.dataset) == expected and found.kept == len(expected) == 11


def test_limits_drop_hypotheses_and_count_them(tmp_path):
    store = decoded(tmp_path / "store")
    found = store.attach(batches(), select="all", min_score=-3.0)  # -1 and -2 for each token
    kept = [(source, own) for source, target in EXPECTED for i, own in enumerate((target, target[:-1]), start=1)
            if own and i * len(own) <= 3]  # fmt: skip
    assert targets_of(found.dataset) == kept and found.dropped == {
        "empty": 0,
        "score": 11 - len(kept),
        "length_ratio": 0,
    }
    found = store.attach(batches(), select="all", max_length_ratio=1.4)
    kept = [pair for pair in targets_of(store.attach(batches(), select="all").dataset)]
    kept = [(source, target) for source, target in kept if len(source) <= 1.4 * len(target)]
    assert targets_of(found.dataset) == kept and found.dropped["length_ratio"] == 11 - len(kept)
    assert all(y.shape[0] > 0 for _, y in found.dataset)
    with pytest.raises(ValueError, match="every source is dropped"):
        store.attach(batches(), min_score=0.0)


def test_padding_is_as_asked_for_and_weights_stay_beside_their_sources(tmp_path):
    store = decoded(tmp_path / "store", Reverse(pad_id=7))
    data = tf.data.Dataset.from_tensor_slices((SOURCES, np.zeros(6), np.arange(6.0))).batch(6)
    ((_, y, weight),) = store.attach(data, select="all", pad_id=-1).dataset
    np.testing.assert_array_equal(y[1], [3, 2, -1, -1])
    np.testing.assert_array_equal(weight, [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5])


TEXTS = ["ein Hund läuft", "zwei Katzen schlafen", "一只狗"]
HYPOTHESES = [["a dog runs", "the dog is running"], ["two cats sleep", "cats"], ["a dog", "one dog there"]]
REFERENCES = ["the dog is now running", "two cats are sleeping", "a dog"]


def translate(x):
    rows = [TEXTS.index(text.decode()) for text in x.numpy()]
    return [HYPOTHESES[row] for row in rows], np.tile([-3.0, -40.0], (len(rows), 1))


def of_texts(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(2)


def test_text_is_stored_and_the_hypothesis_nearest_to_the_reference_is_chosen(tmp_path):
    store = decode_dataset(translate, of_texts(TEXTS), tmp_path / "s", n_best=2, output="text", **TEACHER)
    found = store.attach(of_texts(TEXTS, REFERENCES), select="interpolation")
    nearest = [
        max(own, key=lambda text, reference=reference: CHRF().sentence_score(text, [reference]).score)
        for own, reference in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    assert nearest == ["the dog is running", "two cats sleep", "a dog"]
    assert [text.decode() for _, y in found.dataset for text in y.numpy()] == nearest
    best = store.attach(of_texts(TEXTS), max_length_ratio=1.6)  # 14, 20 and 3 characters against 10, 14 and 5
    assert [text.decode() for _, y in best.dataset for text in y.numpy()] == ["a dog runs", "two cats sleep"]
    assert best.dropped["length_ratio"] == 1


def test_ids_are_compared_with_the_reference_as_text(tmp_path):
    store = decoded(tmp_path / "store")
    spelled = lambda lists: ["".join("abcdefghij"[i] for i in own) for own in lists]  # noqa: E731
    references = np.array([[3, 2, 0], [5, 0, 0], [9, 8, 7], [2, 0, 0], [3, 3, 3], [1, 8, 0]])
    data = tf.data.Dataset.from_tensor_slices((SOURCES, references)).batch(4)
    found = store.attach(data, select="interpolation", detokenize=spelled)
    cut = {0, 1, 2, 4}  # where the shorter hypothesis is the reference
    assert targets_of(found.dataset) == [
        (source, target[:-1] if row in cut else target) for row, (source, target) in enumerate(EXPECTED)
    ]


def test_equal_sources_are_counted_each_and_batches_are_known_where_none_is_empty(tmp_path):
    store = decoded(tmp_path / "store")
    found = store.attach(batches(SOURCES[[0, 0, 3, 0]]), select="all")
    assert found.kept == 7 and len(targets_of(found.dataset)) == 7
    assert found.dataset.cardinality() == 2
    limited = store.attach(batches(), select="all", min_score=-1.0)
    assert limited.dropped["score"] == 10 and limited.kept == 1 == len(targets_of(limited.dataset))


def test_a_student_learns_from_the_targets_in_fit(tmp_path):
    store = decoded(tmp_path / "store", rows=SOURCES[[0, 2, 4]])
    found = store.attach(batches(SOURCES[[0, 2, 4]], 3)).dataset.map(lambda x, y: (x[:, :3], y[:, :3]))
    student = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(10, 4), keras.layers.Dense(10)])
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(student.fit(found, epochs=2, verbose=0).history["loss"]).all()


def test_bad_input_is_named(tmp_path):
    store = decoded(tmp_path / "store")

    def refused(error, message, decode=Reverse(), rows=SOURCES, **options):  # noqa: B008
        with pytest.raises(error, match=message):
            decoded(tmp_path / options.get("output", "ids"), decode, rows, **options)

    def returns(*values):
        return lambda x: values

    zeros = np.zeros((2, 2))
    refused(TypeError, "decode must be a function", decode="beam")
    refused(ValueError, "n_best must be >= 1", n_best=0)
    refused(ValueError, "output must be one of", output="words")
    refused(TypeError, r"must return \(ids, scores, lengths\)", decode=lambda x: zeros)
    refused(ValueError, r"ids \(2, 2, length\), scores", decode=returns(zeros, zeros, zeros))
    refused(ValueError, "whole numbers as ids", decode=returns(np.zeros((2, 2, 3)), zeros, zeros.astype(int)))
    refused(ValueError, "NaN", decode=returns(np.ones((2, 2, 3), int), zeros + np.nan, np.ones((2, 2), int)))
    refused(TypeError, r"must return \(texts, scores\)", decode=lambda x: "text", output="text")
    refused(ValueError, "2 str for each of 2 sources", decode=returns([["a"], ["b"]], zeros), output="text")
    with pytest.raises(ValueError, match="select must be one of"):
        store.attach(batches(), select="worst")
    with pytest.raises(ValueError, match="y holds the references"):
        store.attach(batches(), select="interpolation")
    pairs = tf.data.Dataset.from_tensor_slices((SOURCES, SOURCES)).batch(2)
    with pytest.raises(ValueError, match="detokenize must be given"):
        store.attach(pairs, select="interpolation")
    with pytest.raises(ValueError, match="detokenize must return a str for each"):
        store.attach(pairs, select="interpolation", detokenize=lambda lists: ["a"])
    with pytest.raises(TypeError, match="min_score must be a finite number"):
        store.attach(batches(), min_score="-1")
    with pytest.raises(ValueError, match="max_length_ratio must be >= 1"):
        store.attach(batches(), max_length_ratio=0.5)
    with pytest.raises(ValueError, match="holds no outputs of the example"):
        store.attach(batches(SOURCES + 1))
    with pytest.raises(FileNotFoundError):
        open_decoded_dataset(tmp_path / "nothing")


def test_a_cache_of_other_outputs_is_refused(tmp_path):
    import keras_kd

    scores = [(SOURCES, np.eye(6, dtype="float32"))]
    keras_kd.cache_teacher_outputs("a rule", scores, tmp_path / "outputs", verbose=0)
    with pytest.raises(ValueError, match="holds no hypotheses of decode_dataset"):
        open_decoded_dataset(tmp_path / "outputs")
