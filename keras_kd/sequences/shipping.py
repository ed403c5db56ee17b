"""Models that generate, shipped: a SavedModel from text to text, and a LiteRT file that decodes step by step."""

import os
import pathlib
import tempfile
import typing

import numpy as np
import tensorflow as tf

from keras_kd._checks import require_choice, require_count, require_flag
from keras_kd._files import bytes_on_disk, written_whole
from keras_kd.deploy.conversion import converted, write_saved_model
from keras_kd.deploy.runtimes import litert_interpreter
from keras_kd.sequences.decoders import StepModel
from keras_kd.sequences.generator import Generator
from keras_kd.sequences.search import Greedy, Sampling
from keras_kd.text.pieces import proto_bytes, sentencepiece_tokenizer

_ENCODE, _STEP = "encode", "decode_step"  # the names of the signatures
_PARTS = "context", "state"


class TranslatorExport(typing.NamedTuple):
    """What was written.

    Attributes:
        path: The folder or file.
        size_bytes: Its size on disk.
        equal: The share of the sequences of `compare_with` that are, token by token, those of the generator.
    """

    path: str
    size_bytes: int
    equal: float


def export_translator(generator, path, *, tokenizer, compare_with, source_name="source_ids", overwrite=False):
    """Write a generator as a SavedModel from text to text, with the tokenizer and the search inside.

    A text becomes the ids of its pieces and the end id. The folder is loaded and run before it is moved into its place.
    A process that loads it must `import tensorflow_text`.

    Args:
        generator: A `Generator` of a model that encodes a source, with a start id, that does not sample.
        path: The folder to write.
        tokenizer: A SentencePiece model whose ids source and target have: its bytes, or the path of its file.
        compare_with: Texts to try, one or more: a list of str.
        source_name: The model's input of the source's ids.
        overwrite: Whether an older file or folder at `path` is replaced.

    Returns:
        A `TranslatorExport`. The SavedModel's signature takes `"text"`, strings `(batch,)`, and returns `"text"`,
        strings `(batch, n_best)`, and `"scores"`, float32 `(batch, n_best)`.

    Raises:
        TypeError: An argument of another type.
        ValueError: A generator that samples or continues prompts; no texts.
        FileExistsError: There is something at `path`, and `overwrite` is False.

    Example:

    >>> import io, sentencepiece
    >>> proto, texts = io.BytesIO(), ["ein Haus", "une maison", "a house"] * 9
    >>> sentencepiece.SentencePieceTrainer.train(
    ...     sentence_iterator=iter(texts), model_writer=proto, vocab_size=99, hard_vocab_limit=False,
    ...     pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    >>> model = keras_kd.sequences.Transformer(99, layers=1, width=8, heads=2, feed_forward=16)
    >>> generator = keras_kd.sequences.Generator(model, max_length=5, start_id=1, end_id=2)
    >>> keras_kd.sequences.export_translator(
    ...     generator, "translator", tokenizer=proto.getvalue(), compare_with=["a house"]).equal
    1.0
    """
    _check_generator(generator)
    _check_target(path, overwrite)
    if not isinstance(compare_with, list | tuple) or not all(isinstance(text, str) for text in compare_with):
        raise TypeError(
            f"compare_with must be a list of str, got {type(compare_with).__name__}: {compare_with!r:.100}."
        )
    if not compare_with:
        raise ValueError("compare_with must hold a text or more, got none.")
    holder = tf.Module()
    holder.model, holder.tokenizer = generator.model, sentencepiece_tokenizer(proto_bytes(tokenizer))
    translate = _translation(generator, holder.tokenizer, source_name)
    expected = translate(tf.constant(compare_with))["text"].numpy()
    with written_whole(path) as partial:
        write_saved_model(holder, {"serve": translate}, partial)
        loaded = tf.saved_model.load(os.fspath(partial)).signatures["serving_default"]
        found = loaded(text=tf.constant(compare_with))["text"].numpy()
    return TranslatorExport(os.fspath(path), bytes_on_disk(path), float((found == expected).mean()))


def _translation(generator, tokenizer, source_name):
    """A traced function from strings, `(batch,)`, to the `"text"` and `"scores"` of their hypotheses."""
    vocabulary_size = int(tokenizer.vocab_size())  # the model's may be rounded up

    def translate(text):
        pieces = tokenizer.tokenize(text)
        end = tf.fill((tf.shape(text)[0], 1), generator.end_id)
        ids = tf.concat([pieces, end], axis=1).to_tensor(generator.pad_id)
        ids, scores, lengths = generator({source_name: ids})
        is_piece = (
            (tf.range(generator.max_length) < lengths[..., None]) & (ids != generator.end_id) & (ids < vocabulary_size)
        )
        rows = [tf.reshape(tensor, (-1, generator.max_length)) for tensor in (ids, is_piece)]
        texts = tokenizer.detokenize(tf.ragged.boolean_mask(*rows))
        return {"text": tf.reshape(texts, tf.shape(scores)), "scores": scores}

    signature = [tf.TensorSpec((None,), tf.string, "text")]
    return tf.function(translate, input_signature=signature, autograph=False)


def export_steps(generator, path, *, source_length, compare_with, quantize=None, overwrite=False):
    """Write a `StepModel` as a LiteRT file with two signatures, from which a loop of a few lines decodes.

    `encode` takes the inputs and returns `context_0`, …, and `state_0`, …; `decode_step` takes these, `ids` and
    `position`, and returns `logits` and the new `state_0`, …, for one example. The weights are in the file once.
    `decode_litert` is the loop of a greedy search, to be written in the language of a phone; the file is run in it
    before it is moved into its place.

    Args:
        generator: A greedy `Generator` of a `StepModel` with a start id, as `Transformer` is.
        path: The file to write, `.tflite`.
        source_length: Ids of a source, padding included: it is fixed in the file.
        compare_with: Source ids to try, padded: int `(examples, length)`.
        quantize: None, "dynamic" (8-bit weights) or "float16".
        overwrite: Whether an older file at `path` is replaced.

    Returns:
        A `TranslatorExport`.

    Raises:
        TypeError: An argument of another type.
        ValueError: Another search, or a model without steps; sources longer than `source_length`; a path that does not
            end in .tflite.
        FileExistsError: There is something at `path`, and `overwrite` is False.
        RuntimeError: LiteRT lacks an operation of the model.

    Example:

    >>> model = keras_kd.sequences.Transformer(20, layers=1, width=8, heads=2, feed_forward=16)
    >>> generator = keras_kd.sequences.Generator(model, max_length=5, start_id=1, end_id=2)
    >>> sources = np.array([[5, 6, 2], [7, 2, 0]])
    >>> keras_kd.sequences.export_steps(generator, "steps.tflite", source_length=8, compare_with=sources).equal
    1.0
    >>> ids = keras_kd.sequences.decode_litert("steps.tflite", [5, 6, 2], max_length=5, start_id=1, end_id=2)
    """
    _check_generator(generator)
    _check_target(path, overwrite)
    if not isinstance(generator.model, StepModel) or not isinstance(generator.search, Greedy):
        raise ValueError(
            "generator must have a greedy search and a model with the methods of keras_kd.sequences.StepModel, got "
            f"{generator.search} and {type(generator.model).__name__}."
        )
    if pathlib.Path(path).suffix != ".tflite":
        raise ValueError(f"path must end in .tflite, got {os.fspath(path)!r}.")
    require_choice(quantize, "quantize", (None, "dynamic", "float16"))
    source_length = require_count(source_length, "source_length", at_least=1)
    sources = np.asarray(compare_with, "int32")
    if sources.ndim != 2 or not len(sources) or sources.shape[1] > source_length:
        raise ValueError(
            f"compare_with must be ids, (examples, length <= source_length = {source_length}), got {sources.shape}."
        )
    holder = tf.Module()
    holder.model = generator.model
    with written_whole(path) as partial:
        with tempfile.TemporaryDirectory() as folder:
            write_saved_model(holder, _steps(generator, source_length), folder)
            partial.write_bytes(converted(folder, quantize, signatures=[_ENCODE, _STEP]))
        options = {name: getattr(generator, name) for name in ("max_length", "start_id", "end_id", "pad_id")}
        found = [decode_litert(partial, source, **options) for source in sources]
    ids, _, lengths = generator({"source_ids": sources})
    expected = [row[0, : length[0]].tolist() for row, length in zip(ids.numpy(), lengths.numpy(), strict=True)]
    equal = [a == b for a, b in zip(found, expected, strict=True)]
    return TranslatorExport(os.fspath(path), bytes_on_disk(path), sum(equal) / len(equal))


def decode_litert(path, source_ids, *, max_length, start_id, end_id, pad_id=0):
    """Decode a source with a file of `export_steps`, greedily: it shows the loop that a phone runs.

    Args:
        path: The file.
        source_ids: The ids of one source, a list or an array of one axis.
        max_length, start_id, end_id, pad_id: As the `Generator` was made with.

    Returns:
        A list of ids, the end id included.

    Raises:
        ValueError: The source is longer than the file's.
    """
    interpreter = litert_interpreter(pathlib.Path(path))
    encode, step = (interpreter.get_signature_runner(name) for name in (_ENCODE, _STEP))
    source_length = encode.get_input_details()["source_ids"]["shape"][1]
    if len(source_ids) > source_length:
        raise ValueError(f"source_ids must be {source_length} ids or fewer, got {len(source_ids)}.")
    source = np.full((1, source_length), pad_id, "int32")
    source[0, : len(source_ids)] = source_ids
    memory = encode(source_ids=source)  # context and state
    ids = [start_id]
    while len(ids) <= max_length and (len(ids) == 1 or ids[-1] != end_id):
        outputs = step(ids=np.array([ids[-1]], "int32"), position=np.array(len(ids) - 1, "int32"), **memory)
        logits = outputs.pop("logits")[0]
        logits[pad_id] = -np.inf if pad_id != end_id else logits[pad_id]
        ids.append(int(logits.argmax()))
        memory.update(outputs)  # the new state
    return ids[1:]


def _steps(generator, source_length):
    """The traced functions `encode` and `decode_step`, for one example."""
    model, positions = generator.model, generator.max_length + 1

    def start(source_ids):
        return model.start_decoding({"source_ids": source_ids}, positions)

    def encode(source_ids):
        return _named(*start(source_ids))

    example = start(tf.zeros((1, source_length), tf.int32))

    def decode_step(inputs):
        context, state = (
            tf.nest.pack_sequence_as(part, [inputs[name] for name in _names(kind, part)])
            for kind, part in zip(_PARTS, example, strict=True)
        )
        logits, state = model.decode_step(inputs["ids"], inputs["position"], context, state)
        return {"logits": tf.cast(logits, tf.float32), **_named((), state)}

    signature = {"ids": tf.TensorSpec((1,), tf.int32, "ids"), "position": tf.TensorSpec((), tf.int32, "position")}
    signature |= {name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in _named(*example).items()}
    source = tf.TensorSpec((1, source_length), tf.int32, "source_ids")
    return {
        _ENCODE: tf.function(encode, input_signature=[source], autograph=False),
        _STEP: tf.function(decode_step, input_signature=[signature], autograph=False),
    }


def _names(kind, tensors):
    return [f"{kind}_{number}" for number in range(len(tf.nest.flatten(tensors)))]


def _named(*parts):
    """Nested context and state as `{name: tensor}`."""
    return {
        name: tensor
        for kind, part in zip(_PARTS, parts, strict=True)
        for name, tensor in zip(_names(kind, part), tf.nest.flatten(part), strict=True)
    }


def _check_generator(generator):
    if not isinstance(generator, Generator):
        raise TypeError(f"generator must be a keras_kd.sequences.Generator, got {type(generator).__name__}.")
    if generator.start_id is None or isinstance(generator.search, Sampling):
        raise ValueError(
            f"generator must have a start_id and a search that does not sample, got start_id={generator.start_id} and "
            f"{generator.search}."
        )


def _check_target(path, overwrite):
    if os.path.exists(path) and not require_flag(overwrite, "overwrite"):
        raise FileExistsError(f"path must not exist yet, got {os.fspath(path)!r}; pass overwrite=True to replace it.")
