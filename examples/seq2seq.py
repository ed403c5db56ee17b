"""What `translation.py` and `dialogue.py` share: pieces, batches, models, their training, decoding and sizes."""

import argparse
import dataclasses
import io
import pathlib

import keras
import numpy as np
import sentencepiece
import tensorflow as tf

import keras_kd
from keras_kd.sequences import BeamSearch, Generator, Greedy, Transformer, decode_dataset

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SMALL = {
    "pieces": 90,
    "width": 8,
    "layers": 1,
    "feed_forward": 16,
    "student_width": 4,
    "student_layers": 1,
    "student_feed_forward": 8,
    "epochs": 1,
    "student_epochs": 1,
    "max_length": 64,
    "batch_tokens": 512,
}

# Pieces and batches --------------------------------------------------------------------------------------------------


def sentencepiece_of(texts, options):
    """The tokenizer of all languages, trained on the texts; stored in --output."""
    file = options.output / "tokenizer.model"
    if not file.exists():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
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


def encoded(tokenizer, texts):
    """Return lists of ids, each text with its end."""
    return [[*ids, END] for ids in tokenizer.encode(list(texts))]


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


# Models and training -------------------------------------------------------------------------------------------------


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


def distiller(teacher, student, loss, options):
    return keras_kd.Distiller(
        teacher, student, [loss], soft_weight=options.soft_weight, hard_weight=1.0 - options.soft_weight
    )


class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy with labels of which `smoothing` is spread over all tokens: integers, so that no array is made.

    The value of a label below 0 is 0.
    """

    def __init__(self, smoothing, name="smoothed_crossentropy"):
        super().__init__(name=name)
        self.smoothing = smoothing

    def call(self, labels, logits):
        log_probs = keras.ops.log_softmax(keras.ops.cast(logits, "float32"))
        labels = keras.ops.cast(labels, "int32")
        of_labels = keras.ops.take_along_axis(log_probs, keras.ops.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        values = -(1.0 - self.smoothing) * of_labels - self.smoothing * keras.ops.mean(log_probs, axis=-1)
        return keras.ops.where(labels < 0, 0.0, values)


def trained(name, model, train, validation, epochs, options, *, trainer=None, callbacks=()):
    """Train a model, itself or in a distiller, and keep it in --output; one that is there is loaded into it."""
    file = options.output / f"{name}.weights.h5"
    if file.exists():
        model.load_weights(file)
        return model
    trainer = trainer or model
    steps = epochs * sum(1 for _ in train)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=options.learning_rate, warmup_steps=min(options.warmup, steps // 5)
    )
    # The weights are at the end the mean of the last some hundred steps, which is worth a point of BLEU.
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=1e-4, beta_2=0.98, clipnorm=1.0, use_ema=True, ema_momentum=options.ema
    )
    optimizer.build(trainer.trainable_variables)  # else the step is traced twice, the first time to make these
    trainer.compile(optimizer, SmoothedCrossentropy(options.smoothing), jit_compile=False)  # batches of many shapes
    callbacks = [
        keras.callbacks.BackupAndRestore(options.output / f"{name}_backup"),
        keras.callbacks.CSVLogger(options.output / f"{name}.csv", append=True),
        *callbacks,
    ]
    print(f"{name}: {model.count_params():,} parameters, {steps} steps")
    trainer.fit(train, epochs=epochs, validation_data=validation, shuffle=False, verbose=2, callbacks=callbacks)
    model.save_weights(file)
    return model


# Decoding ------------------------------------------------------------------------------------------------------------


def generator_of(model, search, options):
    return Generator(model, search, max_length=options.max_length, start_id=START, end_id=END, pad_id=PAD)


def search_of(name, options):
    return {"greedy": Greedy(), "beams": BeamSearch(beams=options.beams)}[name]


def source_batches(sources, options):
    """Return the rows of the sources in the order of their lengths, and batches of them in this order."""
    order = np.argsort([len(source) for source in sources], kind="stable")
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"source_ids": sources[row]} for row in order),
        output_signature={"source_ids": tf.TensorSpec((None,), tf.int32)},
    )
    return order, dataset.padded_batch(options.decode_batch)


def decoded(generator, sources, options):
    """Return lists of ids, the best sequence for each source."""
    order, dataset = source_batches(sources, options)
    found = []
    for x in dataset:
        ids, _, lengths = generator(x)
        found += [best[:length].tolist() for best, length in zip(ids[:, 0].numpy(), lengths[:, 0].numpy(), strict=True)]
    return [found[place] for place in np.argsort(order)]


def written_by(teacher, sources, options):
    """Return the sources with what the teacher writes for them by beam search, which is stored in --output."""
    _, dataset = source_batches(sources, options)
    search = {"beams": options.beams, "max_length": options.max_length}
    store = decode_dataset(
        generator_of(teacher, BeamSearch(beams=options.beams), options),
        dataset,
        options.output / "decoded",
        teacher=teacher,
        generation=search,
        shard_bytes=2**18,
        verbose=2,
    )
    pairs = store.attach(dataset).dataset.unbatch().as_numpy_iterator()
    pairs = [(x["source_ids"][x["source_ids"] != PAD].tolist(), y[y != PAD].tolist()) for x, y in pairs]
    sources, targets = zip(*pairs, strict=True)
    return sources, [[*ids[:-1], END] for ids in targets]  # those that were cut too


def with_sizes(evaluation, models):
    """The evaluation with the numbers of parameters, and the bytes in float32, of {system: model}."""
    facts = {
        name: dataclasses.replace(
            evaluation.models[name], parameters=model.count_params(), size_bytes=4 * model.count_params()
        )
        for name, model in models.items()
    }
    return dataclasses.replace(evaluation, models=facts)


# Options -------------------------------------------------------------------------------------------------------------


def options_parser(description, *, students, data, output):
    """The options that both examples have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=pathlib.Path, required=True, help=f"the folder that holds {data}")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(output))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--students", nargs="*", choices=students, default=students, help="none: the teacher alone")
    parser.add_argument("--pieces", type=int, default=8000, help="of all languages together")
    parser.add_argument("--max-length", type=int, default=56, help="pieces of a text")
    parser.add_argument("--layers", type=int, default=4, help="of the teacher's encoder, and of its decoder")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--feed-forward", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--student-layers", type=int, default=2, help="of the encoder")
    parser.add_argument("--student-decoder-layers", type=int, default=1)
    parser.add_argument("--student-width", type=int, default=64)
    parser.add_argument("--student-feed-forward", type=int, default=128)
    parser.add_argument("--student-dropout", type=float, default=0.1)
    parser.add_argument("--soft-weight", type=float, default=0.7, help="of the teacher's; the rest is of the labels")
    parser.add_argument("--smoothing", type=float, default=0.1, help="of the labels")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its highest, after the warm-up")
    parser.add_argument("--warmup", type=int, default=800, help="steps, or a fifth of all if that is less")
    parser.add_argument("--ema", type=float, default=0.998, help="momentum of the mean of the weights")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of the longer side, padding included")
    parser.add_argument("--epochs", type=int, default=30, help="of the teacher")
    parser.add_argument("--student-epochs", type=int, default=30)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--decode-batch", type=int, default=128, help="texts that are decoded together")
    return parser
