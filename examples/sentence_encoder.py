"""Sentences of 46 languages as vectors, translations side by side: a small student of multilingual-e5-small.

    python examples/sentence_encoder.py --data FOLDER

FOLDER holds `sib200/` and `multi30k/`, laid out as `data/annotated` of the repository dadelani/sib-200 and as
`data/task1/raw` of multi30k/dataset. The student learns the teacher's vectors of the sentences of both, without labels
(Reimers and Gurevych 2020, https://arxiv.org/abs/2004.09813). It is measured by the translations that it finds: among
the captions of each of four languages, and among the English sentences from each other language; by vectors of its own,
and by its vectors of the queries in an index of the teacher's. The teacher's vectors are computed once and stored, and
a run that was stopped resumes.
"""

import dataclasses
import typing

import keras
import numpy as np
import rich.box
import rich.console
import rich.table
from e5_students import (
    batches,
    begin,
    costs_of,
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
from multilingual_e5 import WIDTH

import keras_kd
from keras_kd import losses

ENGLISH = "eng_Latn"
CAPTIONS = ["cs", "de", "en", "fr"]
RELATIONS = ["RelationalKD", "SimilarityPreserving", "CorrelationCongruence", "ContrastiveKD"]
SMALL = {
    "languages": ["eng_Latn", "deu_Latn"],
    "sentences": 32,
    "captions": 16,
    "test_sentences": 12,
    "family": "ngrams",
    "size_mb": 0.5,
    "batch": 16,
}


def main(options):
    begin(options)
    train, test = (read_parallel(split, options) for split in ("train", "test"))
    for name, split in {"train": train, "test": test}.items():
        split["vector"] = teacher_vectors(split["text"], vectors_folder(name, options), options.engine)
    keras.config.set_dtype_policy(options.precision)
    encoder, tokenizer = make_student(train, options)
    if options.recombined:
        train = with_recombined(train, options)
    distil(encoder, tokenizer, train, options)
    report(encoder, tokenizer, test, options)


def read_parallel(split, options):
    """Return {"text", "language", "set", "number"}, arrays over the texts of a split; translations share a number."""
    sentences, captions = (
        (options.sentences, options.captions) if split == "train" else (options.test_sentences, options.test_sentences)
    )
    rows = read("sib200", split, options, languages=options.languages, label="index_id")
    kept = np.isin(rows["label"], np.unique(rows["label"])[:sentences])
    translations = read_captions(split, captions, options)
    numbers = [np.arange(len(texts)) for texts in translations.values()]
    return {
        "text": np.concatenate([rows["text"][kept], *translations.values()]),
        "language": np.concatenate([rows["language"][kept], np.repeat(CAPTIONS, len(numbers[0]))]),
        "set": np.repeat(["sib200", "multi30k"], [kept.sum(), len(CAPTIONS) * len(numbers[0])]),
        "number": np.concatenate([rows["label"][kept], *numbers]),
    }


def read_captions(split, count, options):
    """Return {language: texts}, translations in the same place."""
    splits = keras_kd.datasets.from_tfds(
        "multi30k",
        text=CAPTIONS,
        label=None,
        language="en",  # of the example, which holds all four
        source=options.data,
        data_dir=options.output / "tensorflow_datasets",
    )
    rows = [x for x, _ in splits[split].take(-1 if count is None else count).as_numpy_iterator()]
    return {language: np.array([x[language].decode() for x in rows], dtype=object) for language in CAPTIONS}


def distil(encoder, tokenizer, train, options):
    """Train the encoder on the teacher's vectors, and on how they lie to each other in a batch."""
    distillation_losses = [losses.CosineFeatures(weight=options.vector_weight)]
    if options.relation:
        distillation_losses.append(getattr(losses, options.relation)(weight=options.relation_weight))
    dataset = batches(tokenizer(train["text"]), train["vector"], options)
    dataset = dataset.map(lambda x, vector: (keras_kd.PrecomputedBatch(x, vector, {}),))
    fit(keras_kd.Distiller(None, encoder, distillation_losses), dataset, options)


class Case(typing.NamedTuple):
    """Texts and the targets among which their translations are to be found, both as rows of the test texts."""

    name: str
    texts: np.ndarray
    targets: np.ndarray
    matches: np.ndarray  # of each text, the place of its translation among the targets
    directions: list  # of each text


def case_into(language, test):
    """The `Case` of all texts of a language's data set that are in other languages."""
    own = test["language"] == language
    (name,) = set(test["set"][own])
    texts, targets = np.flatnonzero((test["set"] == name) & ~own), np.flatnonzero(own)
    place = {number: position for position, number in enumerate(test["number"][targets])}
    matches = np.array([place[number] for number in test["number"][texts]])
    directions = [f"{other} to {language}" for other in test["language"][texts]]
    return Case(f"{name}_to_{language}", texts, targets, matches, directions)


def report(encoder, tokenizer, test, options):
    """Export the student, and print and store how often teacher, student and file find the translation of a text."""
    x = encoded(tokenizer, test["text"])
    mixed = {name: rows[:: len(rows) // 256 + 1] for name, rows in x.items()}
    file = export_and_save(encoder, tokenizer, mixed, options)
    runtimes = {"student": keras_kd.deploy.open_runtime(encoder), "file": keras_kd.deploy.open_runtime(file)}
    vectors = {"teacher": test["vector"]} | {name: runtime.predict(x) for name, runtime in runtimes.items()}
    costs = costs_of({"student": encoder, "file": file}, {name: rows[:1] for name, rows in x.items()})
    summary = {}
    for case in [case_into(language, test) for language in [*CAPTIONS, ENGLISH]]:
        for dimensions in [WIDTH, *options.dimensions]:
            result = measured(case, vectors, dimensions, costs)
            result.to_json(options.output / f"{case.name}_{dimensions}.json")
            summary[case.name, dimensions] = result
            if dimensions == WIDTH:
                print(f"\n{case.name}: the nearest of {len(case.targets):,}")
                result.print()
    print_summary(summary)


def measured(case, vectors, dimensions, costs):
    """The `Evaluation` of a case by the first numbers of the vectors."""
    result = keras_kd.evaluate_embeddings(
        {name: given(name, rows) for name, rows in vectors.items()},
        {name: rows[case.texts] for name, rows in vectors.items()},
        {name: rows[case.targets] for name, rows in vectors.items()},
        case.matches,
        languages=case.directions,
        dimensions=dimensions,
        latency=False,
    )
    result = dataclasses.replace(result, models={**result.models, **costs})
    return with_sizes(result, {"teacher": teacher_bytes()})


def print_summary(results):
    """One row for each case and number of dimensions: the mean over its languages, in percent."""
    table = rich.table.Table(
        title="nearest translation, %, mean over languages", box=rich.box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    columns = {
        "teacher": ("teacher", "retrieval"),
        "student": ("student", "retrieval"),
        "student,\nteacher's\nindex": ("student", "retrieval_teacher"),
        "file": ("file", "retrieval"),
        "file,\nteacher's\nindex": ("file", "retrieval_teacher"),
    }
    for heading in ["case", "dimensions", *columns]:
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=heading == "case")
    for (case, dimensions), result in results.items():
        scores = [result.score(*column, language="mean over languages").value for column in columns.values()]
        table.add_row(case, str(dimensions), *(f"{100 * score:.1f}" for score in scores))
    rich.console.Console().print(table)


def arguments():
    parser = options_parser(__doc__.splitlines()[0], data="sib200/ and multi30k/", output="runs/sentences")
    parser.add_argument("--languages", nargs="+", help="of sib200, eng_Latn among them; all that are there")
    parser.add_argument("--sentences", type=int, help="of sib200 to train on, per language; all")
    parser.add_argument("--captions", type=int, default=10_000, help="of multi30k to train on, per language, of 29,000")
    parser.add_argument("--test-sentences", type=int, help="per language; all")
    parser.add_argument("--dimensions", type=int, nargs="*", default=[128, 64], help="of shortened vectors")
    parser.add_argument("--vector-weight", type=float, default=10.0)
    parser.add_argument("--relation", choices=RELATIONS, help="a further loss, over how the texts of a batch relate")
    parser.add_argument("--relation-weight", type=float, default=1.0)
    options = parsed(parser, SMALL)
    if options.languages and ENGLISH not in options.languages:
        parser.error(f"--languages must hold {ENGLISH}, whose sentences are to be found, got {options.languages}")
    return options


if __name__ == "__main__":
    main(arguments())
