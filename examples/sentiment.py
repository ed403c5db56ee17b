"""The sentiment of a tweet in 8 languages, all or few of them labelled: a small student of multilingual-e5-small.

    python examples/sentiment.py --data FOLDER --labels 0.05

FOLDER holds `umsab/`, laid out as `data/sentiment` of the repository cardiffnlp/xlm-t. Five models are compared: the
teacher, which is the frozen encoder with a logistic regression; a logistic regression on character n-grams; the student
on the labels alone; the student that learns from the teacher and the labels; and the LiteRT file of the latter.
The teacher's vectors are computed once and stored, and a run that was stopped resumes.
"""

import argparse
import pickle

import keras
import numpy as np
from e5_students import (
    batches,
    begin,
    encoded,
    export_and_save,
    fit,
    given,
    make_student,
    options_parser,
    parsed,
    read,
    teacher_bytes,
    teacher_vectors,
    vectors_folder,
    with_recombined,
    with_sizes,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import keras_kd
from keras_kd import losses
from keras_kd.datasets import UNLABELLED

SMALL = {"languages": ["english", "german"], "sentences": 48, "family": "ngrams", "size_mb": 0.5, "batch": 16}


def main(options):
    begin(options)
    chosen = {"languages": options.languages, "sentences": options.sentences}
    train, test = (read("umsab", split, options, **chosen) for split in ("train", "test"))
    for name, split in {"train": train, "test": test}.items():
        split["vector"] = teacher_vectors(split["text"], vectors_folder(name, options), options.engine)
    labels = few_labels(train, options.labels, options.seed)
    of_teacher = {"all": train["label"], "few": labels}[options.teacher_labels]
    head = keras_kd.teachers.logistic_head(train["vector"], of_teacher, name="sentiment")
    test["teacher"] = head(test["vector"]).numpy()
    n_grams = n_gram_regression(train["text"][labels != UNLABELLED], labels[labels != UNLABELLED])
    keras.config.set_dtype_policy(options.precision)
    encoder, tokenizer = make_student(train, options)
    beginning = encoder.get_weights()
    train_on_labels(encoder, tokenizer, train["text"], labels, options)
    encoder.set_weights(beginning)
    if options.recombined:
        train = with_recombined(train, options)
        labels = np.pad(labels, (0, len(train["text"]) - len(labels)), constant_values=UNLABELLED)
    student = distil(encoder, head, tokenizer, train, labels, options)
    report(student, n_grams, tokenizer, test, options)


def few_labels(train, share, seed):
    """Return the labels of a share of each language's tweets of each class, one or more, and -1 for all others."""
    rng = np.random.default_rng(seed)
    labels = np.full_like(train["label"], UNLABELLED)
    for language in np.unique(train["language"]):
        for label in np.unique(train["label"]):
            rows = rng.permutation(np.flatnonzero((train["language"] == language) & (train["label"] == label)))
            labels[rows[: max(1, round(share * len(rows)))]] = label
    return labels


def n_gram_regression(texts, labels):
    """Return a logistic regression on TF-IDF of character n-grams, what one would do without a teacher."""
    n_grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    return make_pipeline(n_grams, LogisticRegression(max_iter=1000)).fit(texts, labels)


def train_on_labels(encoder, tokenizer, texts, labels, options):
    """Store the student of the labels alone; its steps are as many as those of the one that learns from the teacher."""
    labelled = np.flatnonzero(labels != UNLABELLED)
    vectors = encoder.predict(encoded(tokenizer, texts[labelled]), verbose=0)
    head = keras_kd.teachers.logistic_head(vectors, labels[labelled], name="sentiment")
    student = keras.Model(encoder.inputs, head(encoder.outputs[0]))
    rows = np.resize(labelled, len(labels))  # again and again
    dataset = batches(tokenizer(texts[rows]), labels[rows], options)
    fit(student, dataset, options, loss=cross_entropy(), backup="backup_labels_only")
    student.save(options.output / "labels_only.keras")


def distil(encoder, head, tokenizer, train, labels, options):
    """Return the student, trained on the teacher's vectors and soft labels of all tweets and on the labels of some."""
    (vector,) = encoder.outputs
    outputs = {"vector": train["vector"], "sentiment": head(train["vector"]).numpy()}
    student = keras.Model(encoder.inputs, {"vector": vector, "sentiment": head(vector)})
    distillation_losses = [
        losses.CosineFeatures(output="vector", teacher_output="vector", weight=options.vector_weight),
        losses.SoftLabels(options.temperature, output="sentiment", teacher_output="sentiment"),
    ]

    def precomputed(x, targets):
        outputs, label = targets
        return keras_kd.PrecomputedBatch(x, outputs, {}), {"sentiment": label}

    dataset = batches(tokenizer(train["text"]), (outputs, labels), options).map(precomputed)
    weights = {"soft_weight": options.soft_weight, "hard_weight": options.hard_weight}
    distiller = keras_kd.Distiller(None, student, distillation_losses, **weights)
    fit(distiller, dataset, options, loss={"sentiment": cross_entropy()})
    return keras.Model(student.inputs, student.output["sentiment"])


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=UNLABELLED)


def report(student, n_grams, tokenizer, test, options):
    """Export the student, and print and store macro-F1 by language of the five models."""
    x = encoded(tokenizer, test["text"])
    file = export_and_save(student, tokenizer, x, options)
    computed = {"teacher": test["teacher"], "TF-IDF": n_grams.predict_log_proba(test["text"]).astype("float32")}
    models = {name: given(name, logits) for name, logits in computed.items()} | {
        "labels only": options.output / "labels_only.keras",
        "student": student,
        "file": file,
    }
    result = keras_kd.evaluate(
        models,
        ({**x, **computed}, test["label"]),
        languages=test["language"],
        class_names=["negative", "neutral", "positive"],
    )
    result = with_sizes(result, {"teacher": teacher_bytes(), "TF-IDF": len(pickle.dumps(n_grams))})
    result.print()
    result.to_json(options.output / "report.json")


def share(text):
    """A number above 0, up to 1."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0, and 1 for all, got {text}")
    return float(text)


def arguments():
    parser = options_parser(__doc__.splitlines()[0], data="umsab/", output="runs/sentiment")
    parser.add_argument("--languages", nargs="+", help="such as english german; all that are there")
    parser.add_argument("--sentences", type=int, default=-1, help="tweets per language and split; all")
    parser.add_argument("--labels", type=share, default=1.0, help="share that has labels, of each language and class")
    parser.add_argument("--teacher-labels", choices=["all", "few"], default="all", help="few: those of the student")
    parser.add_argument("--vector-weight", type=float, default=10.0)
    parser.add_argument("--soft-weight", type=float, default=1.0, help="λ, of all that the teacher says")
    parser.add_argument("--hard-weight", type=float, default=1.0, help="of the labels")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the soft labels")
    return parsed(parser, SMALL)


if __name__ == "__main__":
    main(arguments())
