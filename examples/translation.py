"""English captions into German: a translator, and students of it by labels, by soft labels and by its own translations.

    python examples/translation.py --data FOLDER

FOLDER holds `multi30k/`, laid out as `data/task1/raw` of the repository multi30k/dataset. The teacher has the sizes of
Transformer-Tiny (Wu et al. 2021, "Good for Misconceived Reasons", ACL) and learns from the translations of people, with
label smoothing. Each student has fewer and thinner layers and learns from

- `labels`: the translations of people,
- `word`: the same and, token by token, the teacher's soft labels,
- `sequence`: the teacher's translations, found by beam search (Kim and Rush 2016, https://arxiv.org/abs/1606.07947),
- `both`: the teacher's translations and its soft labels of these.

All are measured on test_2016_flickr by BLEU and chrF, with greedy and with beam search. Every stage is kept in
--output, and a run that was stopped resumes. `--students` without a name trains the teacher alone; the same options and
names of students go on from there.
"""

from e5_students import begin, parsed
from seq2seq import (
    SMALL,
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

STUDENTS = ["labels", "word", "sequence", "both"]
SEARCHES = ["greedy", "beams"]


def main(options):
    begin(options)
    pairs = {split: read_pairs(split, options) for split in ("train", "validation", "test")}
    tokenizer = sentencepiece_of([*pairs["train"][0], *pairs["train"][1]], options)
    data = {split: [encoded(tokenizer, texts) for texts in pairs[split]] for split in ("train", "validation")}
    train = batches(*data["train"], options, shuffle=True)
    validation = batches(*data["validation"], options, shuffle=False)
    teacher = trained("teacher", teacher_of(tokenizer, options), train, validation, options.epochs, options)
    systems = {"teacher": teacher}
    translated = (
        batches(*written_by(teacher, data["train"][0], options), options, shuffle=True) if options.students else None
    )
    for name in options.students:
        student = student_of(tokenizer, options)
        soft_labels = name in ("word", "both")
        systems[name] = trained(
            name,
            student,
            translated if name in ("sequence", "both") else train,
            validation,
            options.student_epochs,
            options,
            trainer=distiller(teacher, student, losses.SoftLabels(temperature=1.0), options) if soft_labels else None,
        )
    report(systems, tokenizer, pairs["test"], options)


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


def report(systems, tokenizer, pairs, options):
    """Measure the systems on the test sentences: a table, `report.json` and the translations."""
    sources, references = encoded(tokenizer, pairs[0]), pairs[1]
    texts, models = {}, {}
    for name, model in systems.items():
        for search in options.searches:
            label = f"{name}, {search}"
            generator = generator_of(model, search_of(search, options), options)
            texts[label], models[label] = tokenizer.decode(decoded(generator, sources, options)), model
            file = options.output / f"{name}_{search}.txt"
            file.write_text("".join(f"{text}\n" for text in texts[label]), encoding="utf-8")
    best = f"teacher, {options.searches[-1]}"
    evaluation = keras_kd.evaluate_sequences(texts, references, metrics=("bleu", "chrf"), teacher=best)
    evaluation = with_sizes(evaluation, models)
    evaluation.print()
    evaluation.to_json(options.output / "report.json")


def arguments():
    parser = options_parser(__doc__.split("\n")[0], students=STUDENTS, data="multi30k/", output="runs/translation")
    parser.add_argument("--source", default="en", help="a language of multi30k: en, de, fr or cs")
    parser.add_argument("--target", default="de")
    parser.add_argument("--sentences", type=int, help="of the 29,000 to train on")
    parser.add_argument("--test-sentences", type=int, help="of the 1,014 and 1,000 to measure on")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=SEARCHES, help="to measure with")
    return parsed(parser, SMALL | {"sentences": 96, "test_sentences": 8})


if __name__ == "__main__":
    main(arguments())
