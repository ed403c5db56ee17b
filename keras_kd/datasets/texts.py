"""Texts, labels and languages as training takes them: from TensorFlow Datasets, or from files of one's own."""

import collections
import os
import pathlib
import re
import typing

import tensorflow as tf
import tensorflow_datasets as tfds

from keras_kd.datasets.cldr import UNLABELLED
from keras_kd.datasets.rows import File, broken, read_table

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")  # "de", "zh-Hant", "deu_Latn"


class TextDatasets(dict):
    """Splits by name: each a `tf.data.Dataset` of single examples, `({"text": ..., "language": ...}, label)`.

    `fit` takes them shuffled and batched; "language" is the entry that every `language_key` names by default. Labels
    are int32, -1 where there is none.

    Attributes:
        class_names: The name of each label; empty where the data do not say.
    """

    def __init__(self, splits, class_names=()):
        super().__init__(splits)
        self.class_names = tuple(class_names)

    def languages(self, split):
        """The language of each example of a split, in order: what `evaluate` takes."""
        return [x["language"].decode() for x, _ in self[split].as_numpy_iterator()]

    def by_language(self, split):
        """`{language: dataset}` of a split, read into memory: what `sample_by_language` takes."""
        examples = collections.defaultdict(list)
        for x, label in self[split].as_numpy_iterator():
            examples[x["language"].decode()].append((x, label))
        return {
            language: tf.data.Dataset.from_tensor_slices(
                tf.nest.map_structure(lambda *values: tf.constant(values), *members)
            )
            for language, members in examples.items()
        }


def from_tfds(name, *, text="text", label="label", language=None, split=None, **options):
    """Texts, labels and languages of any data set of TensorFlow Datasets, as `fit` takes them.

    A feature that holds translations (`tfds.features.Translation`, or with variable languages, as in "xnli") gives an
    example per language, or only the one that `language` names; of several translations into a language, the first.

    Args:
        name: As in `tfds.load`: "sib200", "xnli", "paws_x_wiki/de", ...
        text: The feature with the text, which becomes `x["text"]`; or several, which keep their names. "data/title" is
            the feature "title" within "data".
        label: The feature with the label; None for unlabelled: every label is -1.
        language: The feature with the language; or, for data in one language, its code, such as "de". By default the
            feature "language".
        split: As in `tfds.load`: None for all.
        **options: Of `tfds.builder`: `data_dir`, and `source` or `languages` of the data sets of keras_kd.

    Returns:
        A `TextDatasets` of all splits; or, where `split` is given, a `tf.data.Dataset`.

    Raises:
        ValueError: The data set has no such feature; it says which there are. No language was found or given. Several
            texts of one name.

    Example:

    >>> options = {"text": ["sentence1", "sentence2"], "language": "de", "split": "train"}
    >>> with tfds.testing.mock_data(num_examples=2):
    ...     train = keras_kd.datasets.from_tfds("paws_x_wiki/de", **options)
    >>> x, label = next(iter(train.batch(2)))
    >>> sorted(x), x["language"].numpy().tolist()
    (['language', 'sentence1', 'sentence2'], [b'de', b'de'])
    """
    builder = tfds.builder(name, **options)
    features = builder.info.features
    paths = {"text": text} if isinstance(text, str) else {path.rpartition("/")[2]: path for path in text}
    if not isinstance(text, str) and len({*paths, "language"}) < len(text) + 1:
        raise ValueError(f"text must name features whose last parts differ, none of them 'language', got {text}.")
    text_features = {entry: _feature(features, path, "text") for entry, path in paths.items()}
    label_feature = None if label is None else _feature(features, label, "label")
    translations = [feature for feature in text_features.values() if _is_translation(feature)]
    languages = _languages_in(translations, language) if translations else None
    known = list(_paths(features))
    language = None if translations else _column_or_code(language, known, name)

    def label_of(example):
        if label is None:
            return tf.constant(UNLABELLED, "int32")
        value = _at(example, label)
        return tf.cast(value, "int32") if value.dtype.is_integer else value

    def language_of(example):
        if language not in known:
            return tf.constant(language)
        value = _at(example, language)
        return value if value.dtype == tf.string else tf.gather(_feature(features, language, "language").names, value)

    def in_one_language(example):
        x = {entry: _at(example, path) for entry, path in paths.items()}
        return {**x, "language": language_of(example)}, label_of(example)

    def in_each_language(example):
        x = {
            entry: tf.stack([_translation(_at(example, path), code) for code in languages])
            for entry, path in paths.items()
        }
        found = tf.reduce_all([tf.strings.length(texts) > 0 for texts in x.values()], axis=0)
        x = {entry: tf.boolean_mask(values, found) for entry, values in {**x, "language": languages}.items()}
        return tf.data.Dataset.from_tensor_slices((x, tf.fill([tf.size(x["language"])], label_of(example))))

    builder.download_and_prepare()
    datasets = builder.as_dataset(split=split)
    datasets = tf.nest.map_structure(
        lambda dataset: dataset.flat_map(in_each_language) if translations else dataset.map(in_one_language), datasets
    )
    return TextDatasets(datasets, getattr(label_feature, "names", ())) if isinstance(datasets, dict) else datasets


def from_files(files, *, text="text", label="label", language=None, class_names=None):
    """Texts, labels and languages of CSV, TSV or JSONL files, all read and checked at once.

    CSV is quoted as in RFC 4180, TSV not at all; both begin with a line of column names. A line of JSONL is an object.
    Files are UTF-8; .gz is unpacked. An empty label, or one below 0, is none: the example is unlabelled, -1.

    Args:
        files: A path, or several by split, such as `{"train": "train.csv", "test": "test.jsonl"}`. A single path is
            the split "train".
        text: The column with the text, which becomes `x["text"]`.
        label: The column with the label, a class's name or index; None for unlabelled.
        language: The column with the language; or, for files in one language, its code, such as "de". By default the
            column "language".
        class_names: The classes, in order. By default those in the first split: if all are whole numbers, they are the
            indices, else the names are sorted.

    Returns:
        A `TextDatasets`.

    Raises:
        ValueError: A broken row, named by file and line: not UTF-8, quotes that do not close, too many or few fields,
            no JSON object, an empty text or language, a value of the wrong type, a label that is no class. Columns
            that are missing or named twice, files without rows.

    Example:

    >>> lines = ["text,label,language", '"Good, thanks",fine,en', "Schlecht,bad,de", "Na ja,,de"]
    >>> _ = pathlib.Path("mails.csv").write_text("\\n".join(lines))
    >>> mails = keras_kd.datasets.from_files("mails.csv")
    >>> mails.class_names, [int(label) for _, label in mails["train"]]
    (('bad', 'fine'), [1, 0, -1])
    """
    if not isinstance(files, dict):
        files = {"train": files}
    if not files:
        raise ValueError("files must hold at least one path, got none.")
    splits = {split: _read_examples(path, text, label, language) for split, path in files.items()}
    if class_names is None:
        class_names = _class_names(next(iter(splits.values())))
    datasets = {}
    for split, examples in splits.items():
        x = {"text": [example.text for example in examples], "language": [example.language for example in examples]}
        labels = [_class_index(example, class_names) for example in examples]
        datasets[split] = tf.data.Dataset.from_tensor_slices((x, tf.constant(labels, "int32")))
    return TextDatasets(datasets, class_names)


# TensorFlow Datasets -------------------------------------------------------------------------------------------------


def _feature(features, path, argument):
    known = list(_paths(features))
    if path not in known:
        raise ValueError(f"{argument} must name a feature, one of {known}, got {path!r}.")
    return _at(features, path)


def _paths(features, prefix=""):
    """The names of all features, those within others as "outer/inner"."""
    for key, feature in features.items():
        yield prefix + key
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _paths(feature, f"{prefix}{key}/")


def _at(example, path):
    for key in path.split("/"):
        example = example[key]
    return example


def _is_translation(feature):
    return isinstance(feature, (tfds.features.Translation, tfds.features.TranslationVariableLanguages))


def _languages_in(translations, language):
    """The languages that all features hold, or the one that is asked for."""
    known = [set(feature.languages or ()) for feature in translations]
    common = sorted(set.intersection(*known))
    if language is not None and language not in common and all(known):
        raise ValueError(f"language must be one of the translations' {common}, got {language!r}.")
    if not common and language is None:
        raise ValueError("the translations do not say in which languages they are: pass language=, one of them.")
    return common if language is None else [language]


def _translation(value, language):
    """The first translation into a language, "" where there is none; a text that is no translation is as it is."""
    if not isinstance(value, dict):
        return value
    if set(value) != {"language", "translation"}:
        return value[language]
    return tf.concat([tf.boolean_mask(value["translation"], value["language"] == language), [""]], axis=0)[0]


# Files ---------------------------------------------------------------------------------------------------------------


class _Example(typing.NamedTuple):
    file: File
    line: int
    text: str
    language: str
    label: str  # "" where there is none


def _read_examples(path, text, label, language):
    file = File(pathlib.Path(path), os.fspath(path))
    table = read_table(file)
    if not table.rows:
        raise broken(file, 1, "the file holds no rows.")
    for argument, column in (("text", text), ("label", label)):
        if column is not None and column not in table.columns:
            hint = " For unlabelled texts, pass label=None." if argument == "label" else ""
            raise broken(file, 1, f"no column {column!r} ({argument}=), there are {list(table.columns)}.{hint}")
    language = _column_or_code(language, table.columns, file.name)
    return [
        _Example(
            file,
            line,
            _filled(file, line, row, text),
            _filled(file, line, row, language) if language in table.columns else language,
            _label(file, line, None if label is None else row.get(label)),
        )
        for line, row in table.rows
    ]


def _filled(file, line, row, column):
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise broken(file, line, f"{column!r} must be a text that is not empty, got {value!r}.")
    return value


def _label(file, line, value):
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise broken(file, line, f"the label must be a name, a whole number, or empty, got {value!r}.")
    return "" if value is None else str(value).strip()


def _class_names(examples):
    """The classes that the labels name or count."""
    labels = {example.label: example for example in examples if example.label}
    names = sorted(label for label in labels if not _is_index(label))
    if len(names) == len(labels):
        return tuple(names)
    if names:
        odd = labels[names[0]]
        raise broken(odd.file, odd.line, f"the label {odd.label!r} is a name, others are numbers. Pass class_names.")
    return tuple(str(index) for index in range(1 + max(map(int, labels))))


def _class_index(example, class_names):
    if not example.label:
        return UNLABELLED
    if example.label in class_names:
        return list(class_names).index(example.label)
    if _is_index(example.label) and int(example.label) < len(class_names):
        return max(int(example.label), UNLABELLED)
    raise broken(example.file, example.line, f"the label {example.label!r} is no class of {list(class_names)}.")


def _is_index(label):
    return re.fullmatch(r"-?[0-9]{1,9}", label) is not None


def _column_or_code(language, columns, where):
    """The name of the column with the language, or the language of all."""
    if language is None and "language" in columns:
        return "language"
    if language is not None and (language in columns or _LANGUAGE_CODE.fullmatch(language)):
        return language
    given = "no column 'language'" if language is None else f"neither a column nor a language code: {language!r}"
    raise ValueError(
        f'{where}: {given}. Pass language=, one of the columns {list(columns)}, or one code for all, such as "de".'
    )
