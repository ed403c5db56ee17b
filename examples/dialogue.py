"""Dialogues in seven languages: models that choose the response, and models that write it, and students of both.

    python examples/dialogue.py --data FOLDER

FOLDER holds `xpersona/`, laid out as `dataset` of the repository HLTCHKUST/Xpersona. What is answered, the context, is
the last turn, the one before it and the persona of the one who answers. Except in English, the files are translations
of the same dialogues in the same order: the first dialogues of each are the test, the next validation, so that a
dialogue and its translations are in the same part.

1. The response is chosen among 20, by the cosine of two vectors of a bi-encoder over hashed n-grams of bytes
   (Henderson et al. 2017, https://arxiv.org/abs/1705.00652): each context of a batch learns which of the batch's
   responses is its own. The small one learns this from labels only, and from the large one's soft labels over the
   responses of a batch. R@1 and MRR by language, size and latency: `selection.json`.
2. The response is written by a `keras_kd.sequences.Transformer`. Students learn from
    - `labels`: the responses of people,
    - `word`: the same and, token by token, the teacher's soft labels,
    - `sequence`: what the teacher writes (Kim and Rush 2016, https://arxiv.org/abs/1606.07947),
    - `on-policy`: as `labels`, then by the teacher's probabilities of what people and they themselves write (Agarwal et
      al. 2024, https://arxiv.org/abs/2306.13649).

   chrF and distinct n-grams by language: `generation.json`; perplexity: `perplexity.json`.

Every stage is kept in --output, and a run that was stopped resumes.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from e5_students import begin, costs_of, parsed
from seq2seq import (
    PAD,
    SMALL,
    START,
    batches,
    decoded,
    distiller,
    encoded,
    generator_of,
    options_parser,
    search_of,
    sentencepiece_of,
    student_of,
    teacher_of,
    trained,
    with_sizes,
    written_by,
)

import keras_kd
from keras_kd import losses
from keras_kd.sequences import OnPolicy, Sampling

STUDENTS = ["labels", "word", "sequence", "on-policy"]
SPLITS = ["train", "validation", "test"]
SILENCE = "__SILENCE__"  # of the one who begins


def main(options):
    begin(options)
    pairs = read_pairs(options)
    select(pairs, options)
    generate(pairs, options)


def read_pairs(options):
    """Return {split: {"context", "response", "language"}}, lists with an entry per response of each dialogue."""
    builder = keras_kd.datasets.Xpersona(
        source=options.data,
        data_dir=options.output / "tensorflow_datasets",
        **({"languages": options.languages} if options.languages else {}),
    )
    builder.download_and_prepare()
    rows = [keras.tree.map_structure(plain, row) for row in tfds.as_numpy(builder.as_dataset(split="validation"))]
    rows.sort(key=lambda row: (row["language"], row["number"]))
    pairs = {split: {"context": [], "response": [], "language": []} for split in SPLITS}
    for row in rows:
        for context, response in turns_of(row) if row["number"] <= options.dialogues else []:
            part = pairs[split_of(row["number"], options)]
            for name, value in (("context", context), ("response", response), ("language", row["language"])):
                part[name].append(value)
    return pairs


def plain(value):
    """What TensorFlow Datasets reads, as Python's own types."""
    if isinstance(value, np.ndarray):
        return [text.decode() for text in value]
    return value.decode() if isinstance(value, bytes) else int(value)


def turns_of(dialogue):
    """Yield `(context, response)`: the latest turn is first, so that what is cut off is the persona's end."""
    before = []
    for user, response in zip(dialogue["turns"]["user"], dialogue["turns"]["system"], strict=True):
        yield "\n".join([*([] if user == SILENCE else [user]), *before, *dialogue["persona"]]), response
        before = [response]


def split_of(number, options):
    """The part of a dialogue by its place in the file, from 1."""
    if number <= options.test_dialogues:
        return "test"
    return "validation" if number <= options.test_dialogues + options.validation_dialogues else "train"


# The response is chosen ----------------------------------------------------------------------------------------------


def select(pairs, options):
    """Train the bi-encoders, and measure how often they choose the true response."""
    keras.utils.set_random_seed(options.seed)
    read = keras_kd.text.ByteEncoder(options.bytes)
    teacher = fitted("selection_teacher", bi_encoder(options.size_mb, options), pairs, read, options)
    models = {"teacher": teacher}
    for name in ("labels only", "distilled"):
        keras.utils.set_random_seed(options.seed)
        student = models[name] = bi_encoder(options.student_size_mb, options)
        soft_labels = losses.SoftLabels(temperature=1.0)
        trainer = distiller(teacher, student, soft_labels, options) if name == "distilled" else student
        fitted(f"selection_{name.replace(' ', '_')}", student, pairs, read, options, trainer)

    test = pairs["test"]
    candidates = keras_kd.evaluation.sample_candidates(test["response"], languages=test["language"], seed=options.seed)
    texts, places = np.unique(np.array(candidates, dtype=object).astype(str), return_inverse=True)
    places = places.reshape(len(candidates), -1)
    context_bytes, response_bytes = read(test["context"]), read(texts.tolist())
    scores, encoders = {}, {}
    for name, model in models.items():
        contexts, responses = vectors_of(model, "context"), vectors_of(model, "response")
        encoders[name] = contexts
        own = contexts.predict(context_bytes, verbose=0), responses.predict(response_bytes, verbose=0)[places]
        scores[name] = np.einsum("cd,crd->cr", *own)
    evaluation = keras_kd.evaluate_response_selection(
        scores, test["context"], candidates, languages=test["language"], bootstrap=options.bootstrap
    )
    evaluation = dataclasses.replace(evaluation, models=costs_of(encoders, context_bytes[:1]))
    evaluation.print()
    evaluation.to_json(options.output / "selection.json")


def bi_encoder(size_mb, options):
    """A model from a batch of contexts and responses, as bytes, to how well they fit: logits (batch, batch).

    One encoder reads both; a layer above it turns the vector of a context into that of a response.
    """
    encoder = keras_kd.students.student_for(
        size_mb, options.vector, family=options.family, bits=32, length=options.bytes, name="encoder"
    )
    inputs = {name: keras.Input((options.bytes,), dtype="uint8", name=name) for name in ("context", "response")}
    vectors = [
        keras.layers.UnitNormalization(name="context_vector")(
            keras.layers.Dense(options.vector, name="answer")(encoder(inputs["context"]))
        ),
        keras.layers.UnitNormalization(name="response_vector")(encoder(inputs["response"])),
    ]
    return keras.Model(inputs, BatchSimilarities(options.batch, options.scale, name="similarities")(*vectors))


def vectors_of(model, text):
    """The encoder of the contexts, or of the responses, of a bi-encoder."""
    return keras.Model(model.get_layer(text).output, model.get_layer(f"{text}_vector").output, name=text)


class BatchSimilarities(keras.layers.Layer):
    """Cosines of each context with all responses of a batch of a fixed size, times `scale`: logits (batch, batch)."""

    def __init__(self, batch, scale, **kwargs):
        super().__init__(**kwargs)
        self.batch, self.scale = batch, scale

    def call(self, contexts, responses):
        cosines = keras.ops.matmul(contexts, keras.ops.transpose(responses))
        return self.scale * keras.ops.reshape(cosines, (-1, self.batch))


def fitted(name, model, pairs, read, options, trainer=None):
    """Train a bi-encoder, itself or in a distiller, and keep it in --output; one that is there is loaded into it."""
    file = options.output / f"{name}.weights.h5"
    if file.exists():
        model.load_weights(file)
        return model
    trainer = trainer or model
    train = batches_of_bytes(pairs["train"], read, options).shuffle(8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.AdamW(options.selection_learning_rate), loss, metrics=["accuracy"])
    resume = keras.callbacks.BackupAndRestore(options.output / f"{name}_backup")
    print(f"{name}: {model.count_params():,} parameters, {options.selection_epochs} epochs")
    trainer.fit(train, epochs=options.selection_epochs, shuffle=False, verbose=2, callbacks=[resume])
    model.save_weights(file)
    return model


def batches_of_bytes(part, read, options):
    """Batches `(x, labels)`: the response of row i is the i-th of the batch."""
    x = {"context": read(part["context"]), "response": read(part["response"])}
    dataset = tf.data.Dataset.from_tensor_slices(x).shuffle(len(part["context"]), seed=options.seed)
    labels = tf.range(options.batch)
    return dataset.batch(options.batch, drop_remainder=True).map(lambda x: (x, labels))


# The response is written ---------------------------------------------------------------------------------------------


def generate(pairs, options):
    """Train the teacher and the students that write, and measure what they write."""
    tokenizer = sentencepiece_of([*pairs["train"]["context"], *pairs["train"]["response"]], options)
    data = {split: ids_of(part, tokenizer, options) for split, part in pairs.items()}
    train, validation = (batches(*data[split], options, shuffle=split == "train") for split in ("train", "validation"))
    teacher = trained("teacher", teacher_of(tokenizer, options), train, validation, options.epochs, options)
    models = {"teacher": teacher}
    for name in options.students:
        models[name] = student = student_of(tokenizer, options)
        dataset, loss, callbacks = train, None, []
        if name == "word":
            loss = losses.SoftLabels(temperature=1.0)
        elif name == "sequence":
            dataset = batches(*written_by(teacher, data["train"][0], options), options, shuffle=True)
        elif name == "on-policy":
            student.load_weights(options.output / "labels.weights.h5")
            writes = generator_of(student, Sampling(seed=options.seed), options)
            callbacks = [OnPolicy(writes, train, start_id=START, share=options.share, seed=options.seed)]
            dataset, loss = callbacks[0].dataset, losses.JensenShannon(0.5)
        trainer = distiller(teacher, student, loss, options) if loss else None
        epochs = options.student_epochs
        trained(name, student, dataset, validation, epochs, options, trainer=trainer, callbacks=callbacks)
    report(models, tokenizer, data["test"], pairs["test"], options)


def ids_of(part, tokenizer, options):
    """Contexts and responses as lists of ids, none longer than --max-length."""
    return [[ids[: options.max_length] for ids in encoded(tokenizer, part[name])] for name in ("context", "response")]


def report(models, tokenizer, ids, test, options):
    """Measure what the models write and how well they foretell the true responses: tables and two files."""
    languages = test["language"]
    search = search_of(options.search, options)
    texts = {
        name: tokenizer.decode(decoded(generator_of(model, search, options), ids[0], options))
        for name, model in models.items()
    }
    evaluation = keras_kd.evaluate_sequences(
        texts,
        test["response"],
        languages=languages,
        metrics=("chrf", "distinct_1", "distinct_2"),
        tokenize={name: {"ja": "char", "zh": "zh"}.get(name, "13a") for name in set(languages)},
        bootstrap=options.bootstrap,
    )
    evaluation = with_sizes(evaluation, models)
    evaluation.print()
    evaluation.to_json(options.output / "generation.json")

    source_ids, targets = (keras.utils.pad_sequences(rows, padding="post", value=PAD) for rows in ids)
    target_ids = np.insert(targets[:, :-1], 0, START, axis=1)
    x = {"source_ids": source_ids, "target_ids": np.where(targets == PAD, PAD, target_ids)}
    evaluation = keras_kd.evaluate_perplexity(
        models, x, targets, padding_id=PAD, languages=languages, bootstrap=options.bootstrap
    )
    evaluation.print()
    evaluation.to_json(options.output / "perplexity.json")


def arguments():
    parser = options_parser(__doc__.split("\n")[0], students=STUDENTS, data="xpersona/", output="runs/dialogue")
    parser.add_argument("--languages", nargs="+", help="of en, fr, id, it, ja, ko, zh; all")
    parser.add_argument("--dialogues", type=int, default=1000, help="per language, at most")
    parser.add_argument("--test-dialogues", type=int, default=35, help="per language, the first")
    parser.add_argument("--validation-dialogues", type=int, default=15, help="per language, after those of the test")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals")
    parser.add_argument("--family", choices=["ngrams", "cnn"], default="ngrams", help="of the bi-encoders")
    parser.add_argument("--size-mb", type=float, default=50.0, help="of the bi-encoder that teaches, in float32")
    parser.add_argument("--student-size-mb", type=float, default=2.0)
    parser.add_argument("--vector", type=int, default=64, help="numbers per text")
    parser.add_argument("--scale", type=float, default=20.0, help="of the cosines")
    parser.add_argument("--bytes", type=int, default=384, help="of a context or response")
    parser.add_argument("--batch", type=int, default=128, help="pairs among which the response is to be found")
    parser.add_argument("--selection-epochs", type=int, default=10)
    parser.add_argument("--selection-learning-rate", type=float, default=1e-3)
    parser.add_argument("--search", choices=["greedy", "beams"], default="greedy")
    parser.add_argument("--share", type=float, default=0.5, help="of the student's own texts, on-policy")
    selection = {"size_mb": 0.5, "student_size_mb": 0.2, "bytes": 128, "batch": 8, "vector": 8, "selection_epochs": 1}
    parts = {"pieces": 600, "dialogues": 12, "test_dialogues": 5, "validation_dialogues": 2, "bootstrap": 20}
    options = parsed(parser, SMALL | selection | parts)
    if "on-policy" in options.students and "labels" not in options.students:
        parser.error("--students must hold labels where it holds on-policy, which goes on from there")
    return options


if __name__ == "__main__":
    main(arguments())
