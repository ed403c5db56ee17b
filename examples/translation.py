"""English captions into German: a translator, and students of it by labels, by soft labels and by its own translations.

    python examples/translation.py --data FOLDER

FOLDER holds `multi30k/`, laid out as `data/task1/raw` of the repository multi30k/dataset. The teacher has the sizes of
Transformer-Tiny (Wu et al. 2021, "Good for Misconceived Reasons", ACL) and learns from the translations of people, with
label smoothing. Each student has fewer and thinner layers and learns from

- `labels`: the translations of people,
- `word`: the same and, token by token, the teacher's soft labels,
- `sequence`: the teacher's translations, found by beam search (Kim and Rush 2016, https://arxiv.org/abs/1606.07947),
- `both`: the teacher's translations and its soft labels of these.

All are measured on test_2016_flickr by BLEU and chrF of sacrebleu, with greedy and with beam search. Every stage is
kept in --output, and a run that was stopped resumes. `--students` without a name trains the teacher alone; the same
options and names of students go on from there.
"""

import argparse
import io
import json
import pathlib

import keras
import numpy as np
import sentencepiece
import tensorflow as tf
from e5_students import begin, parsed

import keras_kd
from keras_kd import losses
from keras_kd.sequences import BeamSearch, Generator, Greedy, Transformer

PAD, START, END, UNKNOWN = 0, 1, 2, 3
STUDENTS = ["labels", "word", "sequence", "both"]
PART = 2048  # sentences whose translations are stored together
SMALL = {
    "sentences": 96,
    "test_sentences": 8,
    "pieces": 120,
    "width": 16,
    "layers": 1,
    "feed_forward": 32,
    "student_width": 8,
    "student_layers": 1,
    "student_feed_forward": 16,
    "epochs": 1,
    "student_epochs": 1,
    "max_length": 48,
    "batch_tokens": 512,
}


def main(options):
    begin(options)
    pairs = {split: read_pairs(split, options) for split in ("train", "validation", "test")}
    tokenizer = sentencepiece_of(pairs["train"], options)
    ids = {split: encoded(tokenizer, *pairs[split]) for split in ("train", "validation")}
    teacher = trained(
        "teacher", teacher_of(tokenizer, options), ids["train"], ids["validation"], options.epochs, options
    )
    systems = {"teacher": teacher}
    if options.students:
        sources, _ = ids["train"]
        ids["translated"] = sources, translations(teacher, sources, options)
    for name in options.students:
        data = ids["translated" if name in ("sequence", "both") else "train"]
        student = student_of(tokenizer, options)
        model = distiller(teacher, student, options) if name in ("word", "both") else student
        trained(name, student, data, ids["validation"], options.student_epochs, options, model)
        systems[name] = student
    report(systems, tokenizer, pairs["test"], options)


# Sentences -----------------------------------------------------------------------------------------------------------


def read_pairs(split, options):
    """Return the sentences of a split in the two languages, translations in the same place."""
    languages = [options.source, options.target]
    dataset = keras_kd.datasets.from_tfds(
        "multi30k",
        text=languages,
        label=None,
        language=options.source,
        source=options.data,
        data_dir=options.output / "tensorflow_datasets",
    )[split]
    count = options.sentences if split == "train" else options.test_sentences
    rows = [x for x, _ in dataset.take(-1 if count is None else count).as_numpy_iterator()]
    return tuple([x[language].decode() for x in rows] for language in languages)


def sentencepiece_of(pairs, options):
    """The tokenizer of both languages, trained on the sentences; stored in --output."""
    file = options.output / "tokenizer.model"
    if not file.exists():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*pairs[0], *pairs[1]]),
            model_writer=model,
            vocab_size=options.pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD,
            bos_id=START,
            eos_id=END,
            unk_id=UNKNOWN,
            minloglevel=2,
        )
        file.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())


def encoded(tokenizer, sources, targets):
    """Return lists of ids, each sentence with its end."""
    return tuple([[*ids, END] for ids in tokenizer.encode(list(texts))] for texts in (sources, targets))


def batches(sources, targets, options, *, shuffle):
    """Return batches `(x, labels)` of sentences of about one length, as many as make `--batch-tokens` tokens."""
    kept = [
        (source, target)
        for source, target in zip(sources, targets, strict=True)
        if max(len(source), len(target)) <= options.max_length
    ]

    def rows():
        for source, target in kept:
            yield {"source_ids": source, "target_ids": [START, *target[:-1]]}, target

    ids = tf.TensorSpec((None,), tf.int32)
    dataset = tf.data.Dataset.from_generator(
        rows, output_signature=({"source_ids": ids, "target_ids": ids}, ids)
    ).cache()
    if shuffle:
        dataset = dataset.shuffle(len(kept), seed=options.seed)
    bounds = [bound for bound in (8, 10, 12, 14, 16, 20, 24, 32, 48) if bound < options.max_length]
    sizes = [max(1, options.batch_tokens // bound) for bound in (*bounds, options.max_length)]
    dataset = dataset.bucket_by_sequence_length(
        lambda x, labels: tf.maximum(tf.size(x["source_ids"]), tf.size(labels)), [bound + 1 for bound in bounds], sizes
    )
    return (dataset.shuffle(64, seed=options.seed) if shuffle else dataset).prefetch(2)


# Models --------------------------------------------------------------------------------------------------------------


def teacher_of(tokenizer, options):
    return Transformer(
        tokenizer.get_piece_size(),
        layers=options.layers,
        width=options.width,
        feed_forward=options.feed_forward,
        dropout=options.dropout,
        name="teacher",
    )


def student_of(tokenizer, options):
    keras.utils.set_random_seed(options.seed)
    return Transformer(
        tokenizer.get_piece_size(),
        layers=options.student_layers,
        decoder_layers=options.student_decoder_layers,
        width=options.student_width,
        feed_forward=options.student_feed_forward,
        dropout=options.student_dropout,
        name="student",
    )


def distiller(teacher, student, options):
    return keras_kd.Distiller(
        teacher,
        student,
        [losses.SoftLabels(temperature=1.0)],
        soft_weight=options.soft_weight,
        hard_weight=1.0 - options.soft_weight,
    )


class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy with labels of which `smoothing` is spread over all tokens: integers, so that no array is made."""

    def __init__(self, smoothing, name="smoothed_crossentropy"):
        super().__init__(name=name)
        self.smoothing = smoothing

    def call(self, labels, logits):
        log_probs = keras.ops.log_softmax(keras.ops.cast(logits, "float32"))
        of_labels = keras.ops.take_along_axis(log_probs, keras.ops.cast(labels, "int32")[..., None], axis=-1)[..., 0]
        return -(1.0 - self.smoothing) * of_labels - self.smoothing * keras.ops.mean(log_probs, axis=-1)


def trained(name, model, data, validation, epochs, options, trainer=None):
    """Train a model, itself or in a distiller, and keep it in --output; one that is there is loaded into it."""
    file = options.output / f"{name}.weights.h5"
    if file.exists():
        model.load_weights(file)
        return model
    trainer = trainer or model
    train = batches(*data, options, shuffle=True)
    steps = epochs * sum(1 for _ in train)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=options.learning_rate, warmup_steps=min(options.warmup, steps // 5)
    )
    # The weights are at the end the mean of the last some hundred steps, which is worth a point of BLEU.
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=1e-4, beta_2=0.98, clipnorm=1.0, use_ema=True, ema_momentum=options.ema
    )
    trainer.compile(optimizer, SmoothedCrossentropy(options.smoothing))
    resume = keras.callbacks.BackupAndRestore(options.output / f"{name}_backup")
    history = keras.callbacks.CSVLogger(options.output / f"{name}.csv", append=True)
    validation = batches(*validation, options, shuffle=False)
    print(f"{name}: {model.count_params():,} parameters, {steps} steps")
    trainer.fit(train, epochs=epochs, validation_data=validation, shuffle=False, verbose=2, callbacks=[resume, history])
    model.save_weights(file)
    return model


# Translations --------------------------------------------------------------------------------------------------------


def generator_of(model, search, options):
    return Generator(model, search, max_length=options.max_length, start_id=START, end_id=END, pad_id=PAD)


def decoded(generator, sources, options):
    """Return lists of ids, the best translation of each source: those of about one length run together."""
    order = np.argsort([len(source) for source in sources], kind="stable")
    found = [None] * len(sources)
    for rows in np.split(order, range(options.decode_batch, len(order), options.decode_batch)):
        padded = keras.utils.pad_sequences([sources[row] for row in rows], padding="post", value=PAD)
        ids, _, lengths = generator({"source_ids": padded})
        for row, best, length in zip(rows, ids[:, 0].numpy(), lengths[:, 0].numpy(), strict=True):
            found[row] = best[:length].tolist()
    return found


def translations(teacher, sources, options):
    """The teacher's translations of the training sentences, which end with the end id; stored part by part."""
    generator = generator_of(teacher, BeamSearch(beams=options.beams), options)
    found = []
    for first in range(0, len(sources), PART):
        file = options.output / "translations" / f"{first:06}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            part = decoded(generator, sources[first : first + PART], options)
            file.with_suffix(".part").write_text(json.dumps(part))
            file.with_suffix(".part").rename(file)
            print(f"translated {first + len(part)} of {len(sources)} sentences", flush=True)
        found += json.loads(file.read_text())
    return [[*ids[:-1], END] for ids in found]


def report(systems, tokenizer, pairs, options):
    """Measure the systems on the test sentences; print a table, and write `report.json` and the translations."""
    import sacrebleu

    sources, references = pairs
    sources, _ = encoded(tokenizer, sources, references)
    scores = {}
    for name, model in systems.items():
        for search in (Greedy(), BeamSearch(beams=options.beams)):
            label = f"{name}, {'greedy' if isinstance(search, Greedy) else 'beams'}"
            texts = tokenizer.decode(decoded(generator_of(model, search, options), sources, options))
            bleu, chrf = sacrebleu.corpus_bleu(texts, [references]), sacrebleu.corpus_chrf(texts, [references])
            scores[label] = {"BLEU": bleu.score, "chrF": chrf.score, "parameters": model.count_params()}
            (options.output / f"{label.replace(', ', '_')}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
            print(f"{label:18} BLEU {bleu.score:5.2f}  chrF {chrf.score:5.2f}  {model.count_params():>11,} parameters")
    (options.output / "report.json").write_text(json.dumps(scores, indent=1))


# Options -------------------------------------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="the folder that holds multi30k")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/translation"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--students", nargs="*", choices=STUDENTS, default=STUDENTS, help="none: the teacher alone")
    parser.add_argument("--source", default="en", help="a language of multi30k: en, de, fr or cs")
    parser.add_argument("--target", default="de")
    parser.add_argument("--sentences", type=int, help="of the 29,000 to train on")
    parser.add_argument("--test-sentences", type=int, help="of the 1,014 and 1,000 to measure on")
    parser.add_argument("--pieces", type=int, default=8000, help="of both languages together")
    parser.add_argument("--max-length", type=int, default=56, help="pieces of a sentence; longer ones are left out")
    parser.add_argument("--layers", type=int, default=4, help="of the teacher's encoder, and of its decoder")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--feed-forward", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--student-layers", type=int, default=2, help="of the encoder")
    parser.add_argument("--student-decoder-layers", type=int, default=1)
    parser.add_argument("--student-width", type=int, default=64)
    parser.add_argument("--student-feed-forward", type=int, default=128)
    parser.add_argument("--student-dropout", type=float, default=0.1)
    parser.add_argument("--soft-weight", type=float, default=0.7, help="of the soft labels; the rest is of the labels")
    parser.add_argument("--smoothing", type=float, default=0.1, help="of the labels")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its highest, after the warm-up")
    parser.add_argument("--warmup", type=int, default=800, help="steps, or a fifth of all if that is less")
    parser.add_argument("--ema", type=float, default=0.998, help="momentum of the mean of the weights")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of the longer side, padding included")
    parser.add_argument("--epochs", type=int, default=30, help="of the teacher")
    parser.add_argument("--student-epochs", type=int, default=30)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--decode-batch", type=int, default=128, help="sentences that are translated together")
    return parsed(parser, SMALL)


if __name__ == "__main__":
    main(arguments())
