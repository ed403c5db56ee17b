"""Exported translators: text to text as a SavedModel, and steps as a LiteRT file."""

import io

import keras
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from keras_kd.sequences import (
    BeamSearch,
    Generator,
    Sampling,
    Transformer,
    decode_litert,
    export_steps,
    export_translator,
)

TEXTS = ["ein rotes Haus", "a red house", "das Haus", ""]


@pytest.fixture(scope="module")
def proto():
    model = io.BytesIO()
    options = {"vocab_size": 99, "hard_vocab_limit": False, "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    sentences = iter([*TEXTS[:3], "ein Haus", "the house"] * 9)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, minloglevel=2, **options)
    return model.getvalue()


def translator(pieces, search=None, **options):
    keras.utils.set_random_seed(3)
    model = Transformer(pieces, layers=1, width=16, heads=2, feed_forward=16)
    rng = np.random.default_rng(1)
    model.set_weights([weights + rng.normal(0, 0.3, weights.shape) for weights in model.get_weights()])
    return Generator(model, search, **{"max_length": 7, "start_id": 1, "end_id": 2, **options})


def test_text_to_text(proto, tmp_path):
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=proto)
    generator = translator(tokenizer.get_piece_size(), BeamSearch(beams=3, n_best=2))
    report = export_translator(generator, tmp_path / "translator", tokenizer=proto, compare_with=TEXTS)
    assert report.equal == 1.0 and report.size_bytes > 1000
    outputs = tf.saved_model.load(report.path).signatures["serving_default"](text=tf.constant(TEXTS))
    for row, text in enumerate(TEXTS):
        ids, scores, lengths = generator({"source_ids": np.array([[*tokenizer.encode(text), 2]])})
        expected = [
            tokenizer.decode(best[:length].tolist()) for best, length in zip(ids[0].numpy(), lengths[0], strict=True)
        ]
        assert [text.decode() for text in outputs["text"][row].numpy()] == expected
        np.testing.assert_allclose(outputs["scores"][row], scores[0], rtol=1e-4)
    assert len(set(outputs["text"].numpy().ravel())) > 3


def test_steps_in_litert(tmp_path):
    generator = translator(3000)
    sources = np.array([[5, 6, 7, 2], [9, 2, 0, 0], [20, 11, 2, 0]])
    report = export_steps(generator, tmp_path / "steps.tflite", source_length=6, compare_with=sources)
    assert report.equal == 1.0
    assert report.size_bytes < 1.6 * 4 * generator.model.count_params(), "the weights are there once"
    expected = generator({"source_ids": sources})
    found = decode_litert(report.path, [9, 2], max_length=7, start_id=1, end_id=2)
    assert found == expected.ids[1, 0, : int(expected.lengths[1, 0])].numpy().tolist()
    with pytest.raises(ValueError, match="must be 6 ids or fewer, got 7"):
        decode_litert(report.path, range(7), max_length=7, start_id=1, end_id=2)
    smaller = export_steps(
        generator, tmp_path / "steps.tflite", source_length=6, compare_with=sources, quantize="dynamic", overwrite=True
    )
    assert smaller.size_bytes < report.size_bytes


def test_bad_arguments(proto, tmp_path):
    generator = translator(99)
    path, steps = tmp_path / "translator", tmp_path / "steps.tflite"
    export = {"tokenizer": proto, "compare_with": TEXTS}
    with pytest.raises(TypeError, match="generator must be a"):
        export_translator(generator.model, path, **export)
    with pytest.raises(ValueError, match="a search that does not sample"):
        export_translator(translator(99, Sampling()), path, **export)
    with pytest.raises(ValueError, match="must have a start_id"):
        export_translator(translator(99, start_id=None), path, **export)
    with pytest.raises(TypeError, match="compare_with must be a list of str"):
        export_translator(generator, path, **{**export, "compare_with": "text"})
    with pytest.raises(ValueError, match="compare_with must hold a text or more"):
        export_translator(generator, path, **{**export, "compare_with": []})
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        export_translator(generator, tmp_path, **export)
    with pytest.raises(ValueError, match="must have a greedy search"):
        export_steps(translator(99, BeamSearch()), steps, source_length=4, compare_with=[[5, 2]])
    with pytest.raises(ValueError, match=r"path must end in \.tflite"):
        export_steps(generator, path, source_length=4, compare_with=[[5, 2]])
    with pytest.raises(ValueError, match="compare_with must be ids"):
        export_steps(generator, steps, source_length=1, compare_with=[[5, 2]])
    with pytest.raises(ValueError, match="quantize must be one of"):
        export_steps(generator, steps, source_length=4, compare_with=[[5, 2]], quantize="int8")
    assert not list(tmp_path.iterdir())
