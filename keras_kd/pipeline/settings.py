"""The settings of `keras-kd distil`: a TOML file, of which every entry is also a flag."""

import dataclasses
import difflib
import os
import pathlib
import tomllib
import typing

from keras_kd._checks import require_choice, require_count, require_number
from keras_kd._files import written_whole

LAYERS = "layers"  # the family of students that are made of the teacher
AWARE = {  # kinds of file whose weights can be trained as they are rounded: the arguments of quantize_aware
    "dynamic": {},
    "int8": {"activations": "int8"},
    "int4": {"weights": "int4"},
}


def _entry(default, help, **limits):
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclasses.dataclass(frozen=True)
class Data:
    """The files of texts."""

    train: str = _entry("train.csv", "CSV, TSV or JSONL with the columns below; a text without label is unlabelled")
    test: str = _entry("test.csv", "the same columns; what the scores are measured on")
    text: str = _entry("text", "the column with the text")
    label: str = _entry("label", "the column with the label, a name or a number")
    language: str = _entry("language", "the column with the language; or one code for all texts, such as en")
    labels: str = _entry("", "the labels in the order of the teacher's outputs: a,b,c; if empty, they are sorted")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What teaches: a model that takes strings, a file of scores, or a KerasHub encoder with a head on its vectors."""

    model: str = _entry(
        "teacher.keras", "a .keras file, SavedModel, file of scores, or a KerasHub preset or its folder"
    )
    gives: str = _entry("logits", "what the teacher gives", choices=("logits", "probabilities"))
    pooling: str = _entry("mean", "of a KerasHub encoder: its vector of a text", choices=("mean", "first"))
    prefix: str = _entry("", "of a KerasHub encoder: put before each text; the E5 models want 'query: '")


@dataclasses.dataclass(frozen=True)
class Student:
    """The student: of bytes, for any phone; or made of layers of a KerasHub encoder that teaches."""

    family: str = _entry(
        "ngrams",
        "ngrams: the fastest; cnn: sees the order of words; layers: some of the teacher's",
        choices=("ngrams", "cnn", LAYERS),
    )
    size_mb: float = _entry(3.0, "megabytes of its weights in 8 bits", above=0.0)
    length: int = _entry(
        0, "bytes per text, of layers tokens; longer texts are cut; 0: 256 bytes, 64 tokens", at_least=0
    )
    layers: int = _entry(3, "how many of the teacher's", at_least=1)
    codes: int = _entry(32, "of layers: bytes per piece of the vocabulary", at_least=1)


@dataclasses.dataclass(frozen=True)
class Training:
    """How it is taught: L = hard_weight * L_labels + soft_weight * L_teacher."""

    epochs: int = _entry(20, "passes over the texts", at_least=1)
    batch_size: int = _entry(64, "texts per step", at_least=1)
    learning_rate: float = _entry(
        0.0, "the highest; it rises, then falls along a cosine; 0: 0.002, of layers 0.0005", at_least=0.0
    )
    temperature: float = _entry(2.0, "of teacher and student", above=0.0)
    soft_weight: float = _entry(1.0, "of the teacher's part, lambda", at_least=0.0)
    hard_weight: float = _entry(1.0, "of the labels' part", at_least=0.0)
    quantize_epochs: int = _entry(
        0, "more passes, with the weights as the file rounds them: for dynamic, int8 and int4", at_least=0
    )
    vector_weight: float = _entry(10.0, "of layers: of the distance to the teacher's vectors", at_least=0.0)
    seed: int = _entry(0, "the same seed gives the same student", at_least=0)


@dataclasses.dataclass(frozen=True)
class Export:
    """What leaves."""

    quantize: str = _entry("dynamic", "of the LiteRT file", choices=("none", "float16", *AWARE))
    min_agreement: float = _entry(
        0.9, "the least share of test texts on which file and student agree", at_least=0.0, at_most=1.0
    )
    output: str = _entry("runs/distil", "the folder for everything; a run that was stopped resumes there")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings, by section."""

    data: Data = Data()
    teacher: Teacher = Teacher()
    student: Student = Student()
    training: Training = Training()
    export: Export = Export()

    def __post_init__(self):
        if self.training.quantize_epochs and self.export.quantize not in AWARE:
            raise ValueError(
                f"training.quantize_epochs must be 0 with export.quantize={self.export.quantize!r}, got "
                f"{self.training.quantize_epochs}: it is for {list(AWARE)}."
            )


def entries():
    """`(section, field, type)` of every setting; the names of the fields differ, so that each can be a flag."""
    for section in dataclasses.fields(Settings):
        types = typing.get_type_hints(section.type)
        for field in dataclasses.fields(section.type):
            yield section.name, field, types[field.name]


def read_settings(path=None, **flags):
    """Return the `Settings` of a TOML file, with flags over its entries; what neither names has its default.

    Args:
        path: The file, as `write_example` writes it; None for flags alone. Paths in it are relative to its folder.
        **flags: {name of an entry: value}; paths are relative to the working directory. None is not given.

    Raises:
        ValueError: No TOML, an unknown section or entry, or a value out of its range; it names file and entry.
        TypeError: A value of the wrong type.
    """
    given = {} if path is None else _read(pathlib.Path(path))
    for section, field, kind in entries():
        value, where = given.get(section, {}).get(field.name), f"{path}: {section}.{field.name}"
        if value is not None:
            value = _checked(value, kind, _limits(field), where)
            if field.name in ("train", "test", "model", "output"):
                value = _beside(path, value, is_path=field.name != "model")
        if flags.get(field.name) is not None:
            value = _checked(flags[field.name], kind, _limits(field), f"--{field.name.replace('_', '-')}")
        if value is not None:
            given.setdefault(section, {})[field.name] = value
    return Settings(**{part.name: part.type(**given.get(part.name, {})) for part in dataclasses.fields(Settings)})


def write_example(path):
    """Write a settings file with every entry, its default and what it means."""
    lines = ["# keras-kd distil reads this file; every entry is also a flag: --size-mb 2"]
    sections = {section.name: section.type.__doc__ for section in dataclasses.fields(Settings)}
    shown = None
    for section, field, _ in entries():
        if section != shown:
            lines += ["", f"# {sections[section]}", f"[{section}]"]
            shown = section
        choices = f" ({', '.join(field.metadata['choices'])})" if "choices" in field.metadata else ""
        value = f'"{field.default}"' if isinstance(field.default, str) else f"{field.default}"
        lines.append(f"{field.name} = {value}  # {field.metadata['help']}{choices}")
    with written_whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path):
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no TOML: {error}. `keras-kd init` writes an example.") from error
    known = {}
    for section, field, _ in entries():
        known.setdefault(section, []).append(field.name)
    _check_names(given, known, f"{path}: section")
    for section, values in given.items():
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {section} must be a section, [{section}], got {values!r}.")
        _check_names(values, known[section], f"{path}: entry of [{section}]")
    return {section: dict(values) for section, values in given.items()}


def _beside(path, value, is_path):
    """A path relative to the settings file; what may also be a preset's name is one if nothing is there."""
    beside = pathlib.Path(path).parent / value
    return os.fspath(beside) if is_path or beside.exists() else value


def _limits(field):
    return {name: limit for name, limit in field.metadata.items() if name != "help"}


def _check_names(given, known, what):
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} must be one of {list(known)}, got {name!r}.{hint}")


def _checked(value, kind, limits, where):
    if kind is float:
        return require_number(value, where, **limits)
    if kind is int:
        return require_count(value, where, **limits)
    if not isinstance(value, str):
        raise TypeError(f"{where} must be a string, got {value!r}.")
    return require_choice(value, where, limits["choices"]) if limits else value
