"""from_files: CSV, TSV and JSONL as training takes them; what is wrong in them is named by file and line."""

import gzip
import json

import pytest

from keras_kd.datasets import from_files


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(data, split="train"):
    return [(x["text"].decode(), int(label), x["language"].decode()) for x, label in data[split].as_numpy_iterator()]


ROWS = [("gut, danke", 1, "de"), ('say "hi"', 0, "en"), ("a\u2028b\x85c", -1, "en")]
CSV = 'text,label,language\n"gut, danke",yes,de\n"say ""hi""",no,en\na\u2028b\x85c,,en'
FILES = {
    "a.csv": CSV,
    "b.csv": "\ufeff" + CSV.replace("\n", "\r\n") + "\r\n\r\n",
    "c.tsv": 'text\tlabel\tlanguage\ngut, danke\tyes\tde\nsay "hi"\tno\ten\na\u2028b\x85c\t\ten\n',
    "d.jsonl": "\n".join(
        json.dumps({"text": text, "language": language, **({} if label < 0 else {"label": ["no", "yes"][label]})})
        for text, label, language in ROWS
    ),
    "e.csv.gz": gzip.compress(CSV.encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_gives_the_same(name, tmp_path):
    data = from_files(write(tmp_path / name, FILES[name]))
    assert read(data) == ROWS
    assert data.class_names == ("no", "yes")
    assert len(data["train"]) == 3 and data.languages("train") == ["de", "en", "en"]


def test_a_quoted_field_may_hold_line_ends(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",0\nx,2,y\n')
    with pytest.raises(ValueError, match=r"a\.csv:4: 3 fields"):
        from_files(path, language="en")
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",0\n')
    assert read(from_files(path, language="en")) == [("two\nlines", 0, "en")]


def test_other_columns_and_a_language_for_all(tmp_path):
    path = write(tmp_path / "a.tsv", "id\treview\tstars\tlocale\n1\tfein\t0\tde\n2\tbien\t2\tfr\n")
    data = from_files(path, text="review", label="stars", language="locale")
    assert read(data) == [("fein", 0, "de"), ("bien", 2, "fr")] and data.class_names == ("0", "1", "2")
    assert read(from_files(path, text="review", label=None, language="de")) == [("fein", -1, "de"), ("bien", -1, "de")]


def test_class_names_are_those_of_the_first_split_or_those_given(tmp_path):
    files = {
        "train": write(tmp_path / "a.csv", "text,label\na,b\nc,a\n"),
        "test": write(tmp_path / "b.jsonl", '{"text": "d", "label": "b"}'),
    }
    data = from_files(files, language="en")
    assert data.class_names == ("a", "b") and read(data, "test") == [("d", 1, "en")]
    assert read(from_files(files, language="en", class_names=["b", "a"]), "test") == [("d", 0, "en")]


def test_numbers_are_indices_and_below_zero_there_is_no_label(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"text": "a", "label": 2}\n{"text": "b", "label": -1}\n{"text": "c", "label": "0"}'
    )
    names = ("negative", "neutral", "positive")
    for class_names in (None, names):
        data = from_files(path, language="en", class_names=class_names)
        assert [label for _, label, _ in read(data)] == [2, -1, 0]
    assert data.class_names == names
    stars = write(tmp_path / "b.csv", "text,label\na,5\nb,1\n")
    assert [label for _, label, _ in read(from_files(stars, language="en", class_names=list("12345")))] == [4, 0]


def test_nothing_labelled(tmp_path):
    data = from_files(write(tmp_path / "a.csv", "text,label,language\na,,en\n"))
    assert read(data) == [("a", -1, "en")] and data.class_names == ()


BROKEN = {
    "latin-1": ("a.csv", "text,label\na,0\né,1\n".encode("latin-1"), ":3: not UTF-8.*0xe9"),
    "no text column": ("a.csv", "txt,label\na,0\n", ":1: no column 'text'.*'txt'"),
    "no label column": ("a.tsv", "text\na\n", ":1: no column 'label'.*label=None"),
    "no label in any object": ("a.jsonl", '{"text": "a", "lable": 1}', ":1: no column 'label'.*'lable'"),
    "header twice": (
        "a.csv",
        "text,label,text\na,0,b\n",
        r":1: the header names the columns \['text'\] more than once",
    ),
    "no rows": ("a.csv", "text,label\n", ":1: the file holds no rows"),
    "nothing": ("a.csv", "", ":1: the file holds no rows"),
    "nothing in JSONL": ("a.jsonl", "\n", ":1: the file holds no rows"),
    "too few fields": ("a.csv", "text,label\na,0\nb\n", ":3: 1 fields, but the header names 2"),
    "too many fields": ("a.tsv", "text\tlabel\na\t0\t\n", ":2: 3 fields"),
    "open quote": ("a.csv", 'text,label\na,0\n"b,1\nc,0\n', ":3: no CSV"),
    "text after a quote": ("a.csv", 'text,label\na,0\n"b"c,1\n', ":3: no CSV"),
    "empty text": ("a.csv", "text,label\na,0\n ,1\n", ":3: 'text' must be a text that is not empty"),
    "text that is a number": ("a.jsonl", '{"text": "a", "label": 0}\n{"text": 3, "label": 0}', ":2: 'text' must be.*3"),
    "no text": ("a.jsonl", '{"text": "a", "label": 0}\n{"label": 0}', ":2: 'text' must be.*None"),
    "no JSON": ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text": }', ":3: no JSON"),
    "no object": ("a.jsonl", '{"text": "a", "label": 0}\n["b", 0]', ":2: each line must be a JSON object"),
    "key twice": ("a.jsonl", '{"text": "a", "label": 0, "label": 1}', ":1: no JSON: a key occurs twice"),
    "label of another type": ("a.jsonl", '{"text": "a", "label": 0.5}', ":1: the label must be.*0.5"),
    "label that is a bool": ("a.jsonl", '{"text": "a", "label": true}', ":1: the label must be.*True"),
    "names and numbers": ("a.csv", "text,label\na,0\nb,x\n", ":3: the label 'x' is a name, others are numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named_by_file_and_line(case, tmp_path):
    name, content, message = BROKEN[case]
    with pytest.raises(ValueError, match=f"{tmp_path / name}{message}"):
        from_files(write(tmp_path / name, content), language="en")


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_language_is_named(value, tmp_path):
    path = write(tmp_path / "a.csv", f"text,label,language\na,0,de\nb,0,{value}\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: 'language' must be a text that is not empty"):
        from_files(path)


def test_a_missing_language_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,0\n")
    with pytest.raises(ValueError, match=r"a\.csv: no column 'language'\. Pass language=.*\['text', 'label'\].*\"de\""):
        from_files(path)
    with pytest.raises(ValueError, match=r"neither a column nor a language code: 'locale'"):
        from_files(path, language="locale")


@pytest.mark.parametrize(("label", "class_names"), [("c", None), ("c", ["a", "b"]), ("2", ["a", "b"])])
def test_a_label_that_only_another_split_has_is_named(label, class_names, tmp_path):
    files = {
        "train": write(tmp_path / "a.csv", "text,label\na,a\nb,b\n"),
        "test": write(tmp_path / "b.csv", f"text,label\na,a\nb,{label}\n"),
    }
    with pytest.raises(ValueError, match=rf"b\.csv:3: the label '{label}' is no class of \['a', 'b'\]"):
        from_files(files, language="en", class_names=class_names)


def test_other_endings_and_no_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt must be called \.csv, \.tsv or \.jsonl"):
        from_files(write(tmp_path / "a.txt", "text\n"))
    with pytest.raises(ValueError, match="files must hold at least one path"):
        from_files({})
    with pytest.raises(FileNotFoundError):
        from_files(tmp_path / "missing.csv")
