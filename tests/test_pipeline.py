"""keras-kd distil: from files of texts and a teacher to an exported student, resumable, refusing before it trains."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import re
import shutil
import types

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd import cli
from keras_kd.pipeline import run as run_module
from keras_kd.pipeline.settings import Settings, Teacher, entries, read_settings, write_example
from keras_kd.pipeline.teaching import check_order, open_teacher

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
WORDS = {"en": (["good", "great"], ["bad", "awful"]), "de": (["gut", "prima"], ["schlecht", "mies"])}
CLASSES = ["no", "yes"]


def rows(count, seed):
    """Texts in two languages with one word that tells the class; every third label is withheld."""
    random = np.random.default_rng(seed)
    for number in range(count):
        language = ["en", "de"][number % 2]
        label = int(random.integers(2))
        word = random.choice(WORDS[language][1 - label])
        filler = " ".join(random.choice(["the", "das", "is", "ist", "food", "Essen", "very", "so"], 3))
        yield f"{filler} {word} {number}", CLASSES[label], language


def write_texts(path, count, seed, withhold=3):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "language"])
        for number, (text, label, language) in enumerate(rows(count, seed)):
            writer.writerow([text, "" if withhold and number % withhold == 0 else label, language])


def word_teacher(classes=2):
    """A teacher that knows the words: strings to logits, by hand."""
    words = [word for good, bad in WORDS.values() for word in (*bad, *good)]
    vectorize = keras.layers.TextVectorization(output_mode="multi_hot", vocabulary=words)
    text = keras.Input((1,), dtype="string", name="sentence")
    counts = vectorize(text)
    dense = keras.layers.Dense(classes, use_bias=False)
    model = keras.Model(text, dense(counts), name="word_teacher")
    kernel = np.zeros((len(words) + 1, classes))
    for good, bad in WORDS.values():
        for word in good:
            kernel[1 + words.index(word), 1] = 3.0
        for word in bad:
            kernel[1 + words.index(word), 0] = 3.0
    dense.set_weights([kernel])
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_texts(folder / "train.csv", 120, seed=0)
    write_texts(folder / "test.csv", 80, seed=1, withhold=0)
    with (folder / "test.csv").open("a", encoding="utf-8") as file:
        file.write("chakula ist prima,yes,sw\n")
    word_teacher().save(folder / "teacher.keras")
    word_teacher(classes=3).save(folder / "three.keras")
    word_teacher().export(folder / "saved", verbose=False)
    text = keras.Input((1,), dtype="string", name="text")
    softmax = keras.Model(text, keras.layers.Softmax()(word_teacher()(text)))
    softmax.export(folder / "softmax", verbose=False)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(folder / "numbers.keras")
    logits = word_teacher()(tf.constant([[text] for text, *_ in all_texts(folder)])).numpy()
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *CLASSES])
        writer.writerows([text, *map(float, row)] for (text, *_), row in zip(all_texts(folder), logits, strict=True))
    encoder_preset(folder / "encoder")
    return folder


def encoder_preset(folder):
    """A folder of KerasHub with an encoder of these words, as `from_preset` reads it."""
    keras.utils.set_random_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["the", "das", "is", "ist", "food", "Essen", "very", "so"]]
    words += [word for pair in WORDS.values() for side in pair for word in side]
    words += [f"##{digit}" for digit in range(10)] + list("0123456789") + [f"unused{number}" for number in range(300)]
    backbone = keras_hub.models.BertBackbone(len(words), 2, 2, 32, 32, dropout=0.0, max_sequence_length=512)
    backbone.token_embedding.set_weights([np.random.default_rng(0).normal(size=(len(words), 32))])
    backbone.save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(words).save_to_preset(str(folder))


def all_texts(folder):
    return [row for name in ("train.csv", "test.csv") for row in list(csv.reader((folder / name).open()))[1:]]


def command(files, output, *more, teacher="teacher.keras", train="train.csv", test="test.csv"):
    """`keras-kd distil` with a small student; more flags win."""
    given = {"train": files / train, "test": files / test, "model": files / teacher, "output": output}
    small = {"size-mb": 0.1, "length": 64, "epochs": 3, "batch-size": 20, "min-agreement": 0.5}
    flags = [part for name, value in (given | small).items() for part in (f"--{name}", str(value))]
    return cli.main(["distil", *flags, *map(str, more)])


def student_weights(output):
    return keras.saving.load_model(output / "student.keras").get_weights()


@pytest.fixture(scope="module")
def resumed(files, tmp_path_factory):
    """The same command three times: stopped in its second epoch, stopped while it exports, and to its end.

    Its folder, and of each time the exit code, the epochs that began, the student's weights and what was printed.
    """
    output = tmp_path_factory.mktemp("runs") / "first"
    runs = types.SimpleNamespace(folder=output, codes=[], epochs=[], weights=[], printed=[])

    def epoch_begins(epoch, logs):
        if len(runs.codes) == 0 and epoch == 1:
            raise KeyboardInterrupt
        runs.epochs[-1].append(epoch)

    def stopped_export(student, path, **options):
        path.write_bytes(b"another file, which is replaced")
        raise KeyboardInterrupt

    for export in (stopped_export, stopped_export, run_module.export):
        runs.epochs.append([])
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            watching = keras.callbacks.LambdaCallback(on_epoch_begin=epoch_begins)
            patch.setattr(run_module, "_tensorboard", lambda folder, watching=watching: [watching])
            patch.setattr(run_module, "export", export)
            with contextlib.redirect_stderr(printed):
                runs.codes.append(command(files, output))
        runs.weights.append(student_weights(output) if (output / "student.keras").exists() else None)
        runs.printed.append(printed.getvalue())
    return runs


@pytest.fixture(scope="module")
def finished(resumed):
    """The folder of a run that came to its end."""
    return resumed.folder


def test_everything_is_in_the_folder(finished, resumed):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "student.tflite",
        "student.tflite.card.md",
        "student.tflite.metadata.json",
        "student",
        "student.card.md",
        "student.keras",
        "evaluation.json",
        "scores.csv",
        "languages.png",
        "settings.json",
        "teacher_outputs",
    }
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["teacher", "student", "student.tflite"]
    assert evaluation["languages"] == ["de", "en", "sw"]
    assert evaluation["models"]["teacher"]["parameters"] == word_teacher().count_params()
    assert evaluation["models"]["teacher"]["latency_ms"] is None  # its outputs were read from the store
    assert "sw: only 1 labelled test texts" in resumed.printed[-1] and "Try it" in resumed.printed[-1]
    facts = json.loads((finished / "student.tflite.metadata.json").read_text())
    assert facts["labels"] == CLASSES and facts["details"]["seed"] == 0
    assert facts["training"]["losses"] == ["SoftLabels"]
    assert facts["training"]["hyperparameters"]["soft_labels_temperature"] == 2.0
    assert facts["training"]["steps"] == 3 * (120 // 20)
    assert {row["language"] for row in facts["scores"]["rows"]} >= {"de", "en", "overall"}


def test_a_string_goes_in(finished):
    model = tf.saved_model.load(str(finished / "student"))
    answer = model.serve(tf.constant(["das Essen ist gut"]))
    assert answer["label"].numpy()[0].decode() in CLASSES


@pytest.mark.parametrize("model", ["teacher.keras", "saved", "softmax", "scores.csv"])
def test_every_kind_of_teacher_gives_its_logits(model, files, tmp_path):
    """Those of a softmax are log-probabilities: the logits less a constant for each text."""
    texts = np.array([text for text, *_ in all_texts(files)] * 2, dtype=object)
    expected = word_teacher()(tf.constant(texts[:, None])).numpy()
    gives = "probabilities" if model == "softmax" else "logits"
    teacher = open_teacher(Teacher(str(files / model), gives), CLASSES)
    given = teacher.outputs(texts, tmp_path / "outputs")["logits"]
    if model == "softmax":
        expected = tf.nn.log_softmax(expected).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-4)
    np.testing.assert_array_equal(teacher.outputs(texts, tmp_path / "outputs")["logits"], given)


NAMES = "token_ids", "padding_mask", "segment_ids"
ENCODER = ["--family", "layers", "--layers", 1, "--codes", 4, "--length", 16, "--epochs", 10]


@pytest.fixture(scope="module")
def of_layers(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("layers") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert (
            command(files, output, *ENCODER, "--prefix", "so ", "--learning-rate", 0.005, teacher="encoder") == 2
        )  # WordPiece
        assert command(files, output, *ENCODER, "--learning-rate", 0.005, teacher="encoder") == 0
    assert "import tensorflow as tf, tensorflow_text; model" in printed.getvalue()
    return output


def test_an_encoder_teaches_a_student_of_its_layers(of_layers):
    """Its head is a logistic regression on the labelled texts; the student has a layer of two, and string in."""
    evaluation = keras_kd.evaluation.Evaluation.from_json(of_layers / "evaluation.json")
    assert evaluation.score("teacher", "accuracy").value > 0.85
    assert evaluation.score("student", "accuracy").value > 0.85
    assert evaluation.score("student.tflite", "accuracy").value > 0.85
    student = keras.saving.load_model(of_layers / "student.keras")
    assert [layer.name for layer in student.layers if "transformer" in layer.name] == ["transformer_layer_0"]
    model = tf.saved_model.load(str(of_layers / "student"))
    answer = model.serve(tf.constant(["das Essen ist gut"]))
    assert answer["label"].numpy()[0].decode() == "yes"
    facts = json.loads((of_layers / "student.tflite.metadata.json").read_text())
    assert facts["training"]["losses"] == ["CosineFeatures", "SoftLabels"]


@pytest.mark.parametrize(("quantize", "teacher"), [("int8", "encoder"), ("int4", "scores.csv")])
def test_the_student_is_trained_for_the_integers_of_its_file(files, tmp_path, quantize, teacher):
    """A student of bytes, of every kind of teacher: an encoder with a head, and a file of scores."""
    options = ["--family", "cnn", "--size-mb", 0.05, "--quantize", quantize, "--quantize-epochs", 2, "--epochs", 20]
    assert command(files, tmp_path / "a", *options, "--learning-rate", 0.005, teacher=teacher) == 0
    student = keras.saving.load_model(tmp_path / "a" / "student.keras")
    dense = next(layer for layer in student.layers if isinstance(layer, keras.layers.Dense))
    assert dense.quantization["weights"] == quantize
    evaluation = keras_kd.evaluation.Evaluation.from_json(tmp_path / "a" / "evaluation.json")
    assert evaluation.score("student", "accuracy").value > 0.9
    assert evaluation.score("student.tflite", "agreement").value > 0.9
    assert (evaluation.models["teacher"].parameters is None) == (teacher == "scores.csv")


def test_a_long_text_is_read_by_the_encoder_as_by_keras_hub(files, tmp_path):
    teacher = open_teacher(Teacher(str(files / "encoder")), CLASSES)
    texts = np.array(["good food", "so very good " * 300, "schlecht"], dtype=object)
    tokens = [[2, *teacher.tokenizer(text).tolist()[:510], 3] for text in texts]
    expected = [
        teacher.encoder.predict(
            {name: np.array([row]) for name, row in zip(NAMES, (ids, [1] * len(ids), [0] * len(ids)), strict=True)},
            verbose=0,
        )[0]
        for ids in tokens
    ]
    teacher.learn(texts, np.array([1, 0, -1]), tmp_path / "outputs")
    np.testing.assert_allclose(teacher.outputs(texts, tmp_path / "outputs")["vector"], expected, atol=1e-5)


def test_the_same_command_again_trains_nothing(resumed):
    assert resumed.codes[-1] == 0 and resumed.epochs[-1] == []
    for weight, other in zip(resumed.weights[-1], resumed.weights[-2], strict=True):
        np.testing.assert_array_equal(weight, other)
    assert "Try it" in resumed.printed[-1]


def test_what_was_stopped_goes_on_where_it_was(resumed):
    assert resumed.codes[:2] == [130, 130] and resumed.weights[0] is None
    assert all("the same command goes on" in printed.lower() for printed in resumed.printed[:2])
    assert resumed.epochs[:2] == [[0], [1, 2]]
    facts = json.loads((resumed.folder / "student.tflite.metadata.json").read_text())
    assert facts["training"]["steps"] == 3 * (120 // 20)


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_init_writes_the_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    settings = read_settings(pathlib.Path("run.toml"))
    assert settings == Settings()
    text = (tmp_path / "run.toml").read_text()
    assert all(f"{field.name} = " in text and field.metadata["help"] in text for _, field, _ in entries())
    assert cli.main(["init"]) == 2
    assert (tmp_path / "run.toml").read_text() == text
    assert "run.toml is there already" in capsys.readouterr().err


def test_paths_of_a_file_are_relative_to_it_and_flags_win(tmp_path):
    (tmp_path / "run.toml").write_text('[data]\ntrain = "a.csv"\n[student]\nsize_mb = 1\n[training]\nepochs = 7\n')
    settings = read_settings(tmp_path / "run.toml", epochs=9, test="b.csv")
    assert settings.data.train == str(tmp_path / "a.csv") and settings.data.test == "b.csv"
    assert (settings.student.size_mb, settings.training.epochs) == (1.0, 9)


def test_every_entry_is_a_flag_and_names_differ():
    names = [field.name for _, field, _ in entries()]
    assert len(set(names)) == len(names) == sum(len(dataclasses.fields(s.type)) for s in dataclasses.fields(Settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data\n", "no TOML"),
        ("[dat]\n", r"section must be one of .*got 'dat'. Did you mean 'data'\?"),
        ("[student]\nsize = 3\n", r"entry of \[student\] must be one of .*got 'size'. Did you mean 'size_mb'\?"),
        ("training = 3\n", "must be a section"),
        ("[training]\nepochs = 2.5\n", "training.epochs must be a whole number"),
        ("[training]\nepochs = 0\n", "training.epochs must be >= 1"),
        ("[training]\nlearning_rate = -1\n", "training.learning_rate must be >= 0"),
        ("[export]\nmin_agreement = 1.5\n", "export.min_agreement must be >= 0 and <= 1"),
        ('[student]\nfamily = "bert"\n', "student.family must be one of"),
        ("[data]\ntext = 3\n", "data.text must be a string"),
    ],
)
def test_settings_that_are_none(text, message, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises((ValueError, TypeError), match=message):
        read_settings(tmp_path / "run.toml")


def test_the_example_file_is_the_example(tmp_path):
    write_example(tmp_path / "a.toml")
    assert read_settings(tmp_path / "a.toml").export.output == str(tmp_path / "runs/distil")


# --- Refused before any training --------------------------------------------------------------------------------------


def edited(files, folder, name, line, text):
    """A copy of a file with one line changed."""
    lines = (files / name).read_text("utf-8").splitlines()
    lines[line - 1] = text
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder / name


BAD = {
    "no such file": ({"train": "nothing.csv"}, [], "nothing.csv"),
    "no such teacher": ({"teacher": "nothing.keras"}, [], "nothing is at"),
    "a broken row": ({"train": ("train.csv", 7, "only one field")}, [], r"train.csv:7: 1 fields"),
    "another label in the test": ({"test": ("test.csv", 5, "a,maybe,en")}, [], r"test.csv:5: the label 'maybe'"),
    "a teacher of other classes": ({"teacher": "three.keras"}, [], r"each of the 2 classes.*\['no', 'yes'\]"),
    "a teacher of numbers": ({"teacher": "numbers.keras"}, [], "one input of strings"),
    "scores of other texts": ({"teacher": "scores.csv", "train": ("train.csv", 3, "new text,yes,en")}, [], "missing"),
    "scores that are none": ({"teacher": ("scores.csv", 4, "a,b,c")}, [], r"scores.csv:4: the scores must be numbers"),
    "logits as probabilities": ({"teacher": "scores.csv"}, ["--gives", "probabilities"], "sum to 1"),
    "no such size": ({}, ["--size-mb", "0.0001"], "size_mb must be from"),
    "passes for integers that the file lacks": (
        {},
        ["--quantize-epochs", "2", "--quantize", "float16"],
        "training.quantize_epochs must be 0 with export.quantize='float16', got 2",
    ),
    "layers of no encoder": ({}, ["--family", "layers"], "family must be ngrams or cnn with the teacher"),
    "no such preset": ({"teacher": "bert_giant"}, [], "no preset of that name"),
    "a size without pieces": ({"teacher": "encoder"}, [*ENCODER, "--size-mb", "0.01"], "size_mb must be >"),
    "a prefix of word pieces": ({"teacher": "encoder"}, ["--prefix", "query: "], "prefix must be empty"),
    "no such column": ({}, ["--label", "mood"], "no column 'mood'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_training(case, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "_tensorboard", lambda folder: pytest.fail("it trains"))
    changed, more, message = BAD[case]
    changed = {k: edited(files, tmp_path, *v) if isinstance(v, tuple) else v for k, v in changed.items()}
    assert command(files, tmp_path / "a", *more, **changed) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-kd distil: ")
    assert re.search(message, error), error


def test_a_teacher_whose_classes_have_another_order(files, tmp_path, capsys, monkeypatch):
    """Its outputs would teach the wrong classes: it is refused.

    With the order that is named, and without any label, the student learns what it knows.
    """
    text = keras.Input((1,), dtype="string", name="text")
    keras.Model(text, word_teacher()(text)[..., ::-1]).save(tmp_path / "reversed.keras")
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "_tensorboard", lambda folder: pytest.fail("it trains"))
        assert command(files, tmp_path / "a", teacher=tmp_path / "reversed.keras") == 2
    error = capsys.readouterr().err
    assert "agrees with 0% of the labels, and would with 100%" in error and error.strip().endswith("--labels yes,no")
    shutil.rmtree(tmp_path / "a")
    options = ["--epochs", 30, "--hard-weight", 0, "--learning-rate", 0.02, "--labels", "yes,no"]
    assert command(files, tmp_path / "a", *options, teacher=tmp_path / "reversed.keras") == 0
    evaluation = keras_kd.evaluation.Evaluation.from_json(tmp_path / "a" / "evaluation.json")
    assert evaluation.score("teacher", "accuracy").value == 1.0
    assert evaluation.score("student", "accuracy").value > 0.9
    assert json.loads((tmp_path / "a" / "student.metadata.json").read_text())["labels"] == ["yes", "no"]


def test_the_order_is_only_doubted_where_another_is_far_better():
    labels = np.repeat([0, 1, 2], 20)
    check_order(labels, labels, "abc")
    check_order(np.zeros(60, int), labels, "abc")  # one class for all: no order would be better
    check_order(np.concatenate([labels[:30], np.roll(labels, 20)[30:]]), labels, "abc")
    with pytest.raises(ValueError, match=r"the order c,a,b in place of a,b,c"):
        check_order((labels + 1) % 3, labels, "abc")


def test_texts_without_labels_to_test_on(files, tmp_path, capsys):
    write_texts(tmp_path / "test.csv", 10, seed=1, withhold=1)
    assert command(files, tmp_path / "a", test=tmp_path / "test.csv") == 2
    assert "must hold labels" in capsys.readouterr().err


def test_a_folder_of_another_run_or_of_other_things(files, finished, tmp_path, capsys):
    before = student_weights(finished)
    assert command(files, finished, "--epochs", 4) == 2
    assert "epochs: there it is 3, here 4" in capsys.readouterr().err
    (tmp_path / "photo.jpg").write_bytes(b"1")
    assert command(files, tmp_path) == 2
    assert "must be empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    for weight, other in zip(student_weights(finished), before, strict=True):
        np.testing.assert_array_equal(weight, other)
