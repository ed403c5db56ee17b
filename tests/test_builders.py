"""The builders of keras_kd.datasets: the same examples from a folder and from a (local) server, and named errors."""

import collections
import configparser
import gzip
import http.server
import json
import pathlib
import pickle
import socket
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo, compute_url_info

import keras_kd
from keras_kd.datasets import Multi30k, Sib200, Umsab, Xpersona, builders, from_tfds

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
BUILDERS = [Sib200, Umsab, Multi30k, Xpersona]
# Characters that str.splitlines splits on, quotes, and spaces at the end: they are text like any other.
ODD = 'a\u2028b\x85c\x1cd "quoted, ""twice""" ...  '


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """No test connects to another host."""
    connect = socket.socket.connect

    def checked(self, address):
        assert address[0] in ("127.0.0.1", "::1"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    monkeypatch.setattr(builders, "_GITHUB", "http://127.0.0.1:1")  # where nothing listens


def write(folder, files):
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        target.write_bytes(gzip.compress(content, mtime=0) if path.endswith(".gz") else content)


def sib200_files(language):
    rows = f"7\ttravel\t{ODD}{language}\n12\tscience/technology\tzwölf {language}"  # without a newline at the end
    return {f"sib200/{language}/{split}.tsv": f"index_id\tcategory\ttext\n{rows}" for split in ("train", "dev", "test")}


def umsab_files(language):
    texts = {f"umsab/{language}/{split}_text.txt": f"gut\n{ODD}\nna ja {split}" for split in ("train", "val", "test")}
    labels = {"train": "2\n0\n1", "val": "2\n0\n1\n", "test": "2\n0\n2"}  # files alike have one name in TFDS's cache
    return texts | {f"umsab/{language}/{split}_labels.txt": text for split, text in labels.items()}


def multi30k_files(language):
    splits = ("train", "val", "test_2016_flickr")
    return {f"multi30k/{split}.{language}.gz": f"{split} {language}\n{ODD}\n" for split in splits}


def xpersona_files(name):
    dialogue = {"persona": ["i surf .", ODD], "dialogue": [["__SILENCE__", "hey"], ["wie geht's", f"gut {name}"]]}
    return {f"xpersona/{name.replace('#', split)}.json": json.dumps([dialogue] * 2) for split in ("valid", "test")}


@pytest.fixture
def folder(tmp_path):
    """A folder with a little of each data set, laid out as the publishers' repositories."""
    for language in ("eng_Latn", "zul_Latn"):
        write(tmp_path / "data", sib200_files(language))
    for language in ("english", "hindi"):
        write(tmp_path / "data", umsab_files(language))
    for language in ("en", "de", "fr", "cs"):
        write(tmp_path / "data", multi30k_files(language))
    for name in ("En_persona_#", "Jp_persona_split_#_human_annotated"):
        write(tmp_path / "data", xpersona_files(name))
    return tmp_path / "data"


LANGUAGES = {
    "sib200": ["eng_Latn", "zul_Latn"],
    "umsab": ["english", "hindi"],
    "multi30k": ["en", "de", "fr", "cs"],
    "xpersona": ["en", "ja"],
}


def load(name, tmp_path, **builder_kwargs):
    return tfds.load(name, data_dir=tmp_path / "tfds", builder_kwargs=builder_kwargs)


def plain(value):
    """NumPy's arrays and bytes as lists and strings."""
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, list):
        return [plain(member) for member in value]
    return value.decode() if isinstance(value, bytes) else value


def in_order(example):
    return json.dumps(example, sort_keys=True)


def examples(dataset):
    """The examples in an order that does not depend on how TFDS shuffled them."""
    return sorted((plain(example) for example in dataset.as_numpy_iterator()), key=in_order)


def all_examples(datasets):
    return {split: examples(dataset) for split, dataset in datasets.items()}


# What they hold -----------------------------------------------------------------------------------------------------


def test_sib200(folder, tmp_path):
    datasets = load("sib200", tmp_path, source=folder)
    expected = [
        {"text": text.format(language), "label": label, "language": language, "index_id": index}
        for language in ("eng_Latn", "zul_Latn")
        for text, label, index in ((ODD + "{}", 1, 7), ("zwölf {}", 0, 12))
    ]
    assert all_examples(datasets) == {
        split: sorted(expected, key=in_order) for split in ("train", "validation", "test")
    }


def test_umsab(folder, tmp_path):
    datasets = load("umsab", tmp_path, source=folder / "umsab")
    assert list(datasets) == ["train", "validation", "test"]
    for split, published in (("train", "train"), ("validation", "val"), ("test", "test")):
        expected = [
            {"text": text, "label": label, "language": language}
            for language in ("english", "hindi")
            for text, label in (("gut", 2), (ODD, 0), (f"na ja {published}", 2 if split == "test" else 1))
        ]
        assert examples(datasets[split]) == sorted(expected, key=in_order)


def test_multi30k(folder, tmp_path):
    datasets = load("multi30k", tmp_path, source=folder)
    assert list(datasets) == ["train", "validation", "test"]
    published = {language: f"test_2016_flickr {language}" for language in LANGUAGES["multi30k"]}
    assert examples(datasets["test"]) == sorted([published, dict.fromkeys(published, ODD)], key=in_order)


def test_xpersona(folder, tmp_path):
    datasets = load("xpersona", tmp_path, source=folder)
    assert list(datasets) == ["validation", "test"]
    names = {"en": "En_persona_#", "ja": "Jp_persona_split_#_human_annotated"}
    for language, name in names.items():
        turns = {"user": ["__SILENCE__", "wie geht's"], "system": ["hey", f"gut {name}"]}
        found = [e for e in examples(datasets["test"]) if e["language"] == language]
        assert sorted(e.pop("number") for e in found) == [1, 2]
        assert found == [{"persona": ["i surf .", ODD], "turns": turns, "language": language}] * 2


def test_xpersona_without_a_test_split(folder, tmp_path):
    for path in folder.glob("xpersona/*_test*"):
        path.unlink()
    assert list(load("xpersona", tmp_path, source=folder)) == ["validation"]


@pytest.mark.parametrize("builder", BUILDERS)
def test_each_says_where_it_comes_from(builder, tmp_path):
    made = tfds.builder(builder.name, data_dir=tmp_path)
    info = made.info
    assert (
        info.citation.startswith("@")
        and info.as_proto.redistribution_info.license
        and info.description
        and info.homepage.endswith(made.REPOSITORY)
    )
    assert f"manual_dir/{made.name}" in made.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert str(made.version) in made.RELEASE_NOTES
    assert made.paths(made.LANGUAGES[1 if made.name == "sib200" else 0], "train")
    assert builder.__name__ in keras_kd.datasets.__all__


@pytest.mark.parametrize("name", LANGUAGES)
def test_windows_line_ends_change_nothing(name, folder, tmp_path):
    expected = all_examples(load(name, tmp_path, source=folder))
    for path in folder.rglob("*"):
        if path.suffix in (".tsv", ".txt"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert all_examples(load(name, tmp_path, source=folder)) == expected


# Where it comes from ------------------------------------------------------------------------------------------------


@pytest.fixture
def publisher(folder, monkeypatch):
    """A server on this machine with what the publishers have; yields the paths asked for."""
    yield from serve(folder, monkeypatch)


def serve(folder, monkeypatch):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            asked.append(self.path)
            for builder in BUILDERS:
                prefix = f"/{builder.REPOSITORY}/{builder.REVISION}/{builder.FOLDER}/"
                path = folder / builder.name / self.path.removeprefix(prefix)
                if self.path.startswith(prefix) and path.is_file():
                    self.send_response(200)
                    self.end_headers()
                    return self.wfile.write(path.read_bytes() if with_body else b"")
            self.send_error(429 if "busy" in asked else 404)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(builders, "_GITHUB", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_download_a_source_and_manual_dir_give_the_same(name, folder, publisher, tmp_path):
    expected = all_examples(load(name, tmp_path / "source", source=folder))
    assert not publisher
    languages = LANGUAGES[name]
    assert all_examples(load(name, tmp_path / "download", languages=languages)) == expected
    assert publisher
    publisher.clear()
    config = tfds.download.DownloadConfig(manual_dir=folder)
    options = {"data_dir": tmp_path / "manual", "download_and_prepare_kwargs": {"download_config": config}}
    assert all_examples(tfds.load(name, **options)) == expected
    assert not publisher


def url_infos(builder, folder, wrong=None):
    made = builder(languages=LANGUAGES[builder.name], data_dir=folder)
    base = f"{builders._GITHUB}/{made.REPOSITORY}/{made.REVISION}/{made.FOLDER}"
    files = sorted(path for path in (folder / made.name).rglob("*") if path.is_file())
    infos = {f"{base}/{path.relative_to(folder / made.name)}": compute_url_info(path) for path in files}
    if wrong:
        infos[f"{base}/{wrong}"] = UrlInfo(size=1, checksum="0" * 64, filename=None)
    return infos


def test_right_checksums_pass(folder, publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(Umsab, "url_infos", url_infos(Umsab, folder))
    assert len(load("umsab", tmp_path, languages=LANGUAGES["umsab"])["test"]) == 6


def test_a_wrong_checksum_names_the_file_and_the_way_out(folder, publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(Umsab, "url_infos", url_infos(Umsab, folder, wrong="hindi/val_text.txt"))
    with pytest.raises(tfds.download.download_manager.NonMatchingChecksumError, match=r"hindi/val_text\.txt") as caught:
        load("umsab", tmp_path, languages=LANGUAGES["umsab"])
    assert str(tmp_path / "tfds" / "downloads" / "manual" / "umsab") in "".join(caught.value.__notes__)


@pytest.mark.parametrize("name", LANGUAGES)
def test_without_a_network_the_error_comes_at_once_and_names_the_folder_to_fill(name, folder, tmp_path):
    start = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        load(name, tmp_path)
    assert time.monotonic() - start < 5
    to_fill = tmp_path / "tfds" / "downloads" / "manual" / name
    assert f"fill {to_fill}" in str(caught.value) and "source" in str(caught.value)
    to_fill.parent.mkdir(parents=True, exist_ok=True)
    (folder / name).rename(to_fill)
    assert load(name, tmp_path)["validation"]


@pytest.mark.parametrize("answer", ["busy", "gone"])
def test_a_publisher_that_refuses_is_named(answer, publisher, tmp_path):
    publisher.append(answer)
    with pytest.raises(ConnectionError, match=f"{'429' if answer == 'busy' else '404'}.*fill "):
        load("sib200", tmp_path)


def test_a_file_that_the_publisher_lacks_names_the_way_out(folder, publisher, tmp_path):
    (folder / "umsab/hindi/val_text.txt").unlink()
    with pytest.raises(Exception, match=r"hindi/val_text\.txt") as caught:
        load("umsab", tmp_path, languages=LANGUAGES["umsab"])
    assert "fill " in "".join(caught.value.__notes__)


def test_a_folder_that_changes_is_read_anew(folder, tmp_path):
    before = examples(load("umsab", tmp_path, source=folder)["train"])
    path = folder / "umsab/hindi/train_text.txt"
    path.write_text(path.read_text().replace("gut", "besser"))
    after = examples(load("umsab", tmp_path, source=folder)["train"])
    assert before != after and "besser" in {example["text"] for example in after}


def test_languages_choose(folder, tmp_path):
    datasets = load("sib200", tmp_path, source=folder, languages=["zul_Latn"])
    assert {example["language"] for example in examples(datasets["train"])} == {"zul_Latn"}
    pairs = load("multi30k", tmp_path, source=folder, languages=["de", "en"])
    assert set(next(iter(pairs["train"]))) == {"en", "de"}


@pytest.mark.parametrize(
    ("languages", "error"), [(["xx"], ValueError), ([], ValueError), ("eng_Latn", TypeError), ([3], ValueError)]
)
def test_unknown_languages_are_refused(languages, error, tmp_path):
    with pytest.raises(error, match="languages must be"):
        Sib200(languages=languages, data_dir=tmp_path)


def test_config_is_refused_beside_a_source(folder, tmp_path):
    with pytest.raises(ValueError, match="config cannot go with source"):
        Sib200(source=folder, config="x", data_dir=tmp_path)


def test_a_folder_that_lacks_files_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no file of sib200\. .*data/annotated"):
        Sib200(source=tmp_path / "nowhere", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks 3 file\(s\).*deu_Latn/train\.tsv"):
        Sib200(source=folder, languages=["deu_Latn", "eng_Latn"], data_dir=tmp_path)
    (folder / "sib200/zul_Latn/dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 file\(s\).*zul_Latn/dev\.tsv"):
        Sib200(source=folder, data_dir=tmp_path)


def test_manual_dir_must_have_all_languages_of_parallel_texts(folder, tmp_path):
    manual = tmp_path / "tfds" / "downloads" / "manual" / "multi30k"
    manual.parent.mkdir(parents=True)
    (folder / "multi30k").rename(manual)
    for path in manual.glob("*.cs.gz"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 3 file\(s\).*train\.cs\.gz"):
        load("multi30k", tmp_path)
    assert set(next(iter(load("multi30k", tmp_path, languages=["en", "de", "fr"])["train"]))) == {"en", "de", "fr"}


def test_a_builder_is_pickled_with_its_choice(folder, tmp_path):
    builder = Sib200(source=folder, data_dir=tmp_path / "tfds")
    copy = pickle.loads(pickle.dumps(builder))
    assert copy.data_dir == builder.data_dir and copy.languages == ("eng_Latn", "zul_Latn")


# Broken rows --------------------------------------------------------------------------------------------------------

HEADER = "index_id\tcategory\ttext\n"
BROKEN = {
    "no header": ("sib200/zul_Latn/train.tsv", "7\ttravel\tt\n", ":1: the columns must be"),
    "empty": ("sib200/zul_Latn/train.tsv", "", ":1: the columns must be"),
    "two fields": ("sib200/zul_Latn/train.tsv", f"{HEADER}7\ttravel\ta\n8\ttravel\n", ":3: 2 fields"),
    "four fields": ("sib200/zul_Latn/train.tsv", f"{HEADER}7\ttravel\ta\tb\n", ":2: 4 fields"),
    "unknown topic": ("sib200/zul_Latn/dev.tsv", f"{HEADER}7\tweather\ta\n", ":2: category must be.*'weather'"),
    "no number": ("sib200/zul_Latn/dev.tsv", f"{HEADER}x\ttravel\ta\n", ":2: index_id must be.*'x'"),
    "twice": ("sib200/zul_Latn/dev.tsv", f"{HEADER}7\ttravel\ta\n7\ttravel\tb\n", ":3: index_id.*no other row"),
    "no text": ("sib200/zul_Latn/dev.tsv", f"{HEADER}7\ttravel\t \n", ":2: the text is empty"),
    "latin-1": ("sib200/zul_Latn/dev.tsv", f"{HEADER}7\ttravel\té\n".encode("latin-1"), ":2: not UTF-8.*0xe9"),
    "a label fewer": ("umsab/hindi/val_labels.txt", "2\n0\n", ":2: 2 labels for 3 texts"),
    "a label more": ("umsab/hindi/val_labels.txt", "2\n0\n1\n1\n", ":4: 4 labels for 3 texts"),
    "unknown label": ("umsab/hindi/val_labels.txt", "2\n3\n1\n", ":2: a label must be 0, 1 or 2, got '3'"),
    "no tweet": ("umsab/hindi/test_text.txt", "a\n\nb", ":2: the text is empty"),
    "a line fewer": ("multi30k/val.de.gz", "eins\n", r":1: 1 lines, but .*val\.en\.gz has 2"),
    "an empty line": ("multi30k/val.de.gz", "eins\n\n", ":2: the text is empty"),
    "no JSON": ("xpersona/En_persona_valid.json", "[\n{]", ":2: no JSON"),
    "no list": ("xpersona/En_persona_valid.json", "{}", ":1: expected a list"),
    "three in a turn": (
        "xpersona/En_persona_valid.json",
        '[{"persona": ["a"], "dialogue": [["b", "c"]]}, {"persona": ["a"], "dialogue": [["b", "c", "d"]]}]',
        ":dialogue 2: expected",
    ),
    "no persona": ("xpersona/En_persona_valid.json", '[{"dialogue": [["b", "c"]]}]', ":dialogue 1: expected"),
    "numbers": ("xpersona/En_persona_valid.json", '[{"persona": [1], "dialogue": [["b", "c"]]}]', ":dialogue 1: "),
    "no turns": ("xpersona/En_persona_valid.json", '[{"persona": ["a"], "dialogue": []}]', ":dialogue 1: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_by_file_and_line(case, folder, tmp_path):
    path, content, message = BROKEN[case]
    write(folder, {path: content})
    with pytest.raises(ValueError, match=f"{path}{message}"):
        load(path.partition("/")[0], tmp_path, source=folder)


def test_a_packed_file_that_is_cut_off_is_named(folder, tmp_path):
    path = folder / "multi30k/val.de.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"val\.de\.gz:1: no whole gzip file"):
        load("multi30k", tmp_path, source=folder)


def test_a_broken_download_is_named_by_its_address(folder, publisher, tmp_path):
    write(folder, {"umsab/hindi/val_labels.txt": "2\n3\n1"})
    with pytest.raises(ValueError, match=r"xlm-t/main/data/sentiment/hindi/val_labels\.txt:2: a label"):
        load("umsab", tmp_path, languages=["hindi"])


# The real files -----------------------------------------------------------------------------------------------------

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not in ../shared/data")
COUNTS = {
    "sib200": {"train": 46 * 701, "validation": 46 * 99, "test": 46 * 204},
    "umsab": {"train": 8 * 1839, "validation": 8 * 324, "test": 8 * 870},
    "multi30k": {"train": 29000, "validation": 1014, "test": 1000},
    "xpersona": {"validation": 1000 + 248 + 484 + 140 + 275 + 299 + 222},
}


@needs_shared
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_real_files(name, tmp_path):
    builder = tfds.builder(name, data_dir=tmp_path, source=SHARED)
    builder.download_and_prepare()
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == COUNTS[name]


@needs_shared
def test_real_sentences_are_parallel_and_as_in_the_files(tmp_path):
    dataset = load("sib200", tmp_path, source=SHARED, languages=["eng_Latn", "yor_Latn"])["test"]
    by_index = collections.defaultdict(dict)
    for example in examples(dataset):
        by_index[example["index_id"]][example["language"]] = example
    assert len(by_index) == 204
    assert all(pair["eng_Latn"]["label"] == pair["yor_Latn"]["label"] for pair in by_index.values())
    lines = (SHARED / "sib200/eng_Latn/test.tsv").read_bytes().decode().rstrip("\n").split("\n")[1:]
    assert {line.split("\t")[2] for line in lines} == {pair["eng_Latn"]["text"] for pair in by_index.values()}


@needs_shared
def test_a_download_of_the_real_files_passes_the_checksums(tmp_path, monkeypatch):
    """Label files of several languages are alike, which TFDS's cache has to bear."""
    server = serve(SHARED, monkeypatch)
    next(server)
    original = "https://raw.githubusercontent.com"
    infos = {url.replace(original, builders._GITHUB): info for url, info in Umsab.url_infos.items()}
    monkeypatch.setattr(Umsab, "url_infos", infos)
    languages = ["arabic", "english", "hindi"]
    downloaded = load("umsab", tmp_path / "download", languages=languages)
    read = load("umsab", tmp_path / "source", source=SHARED, languages=languages)
    assert examples(downloaded["test"]) == examples(read["test"])
    server.close()


@needs_shared
@pytest.mark.parametrize("builder", BUILDERS)
def test_checksums_are_those_of_the_real_files(builder):
    base = f"https://raw.githubusercontent.com/{builder.REPOSITORY}/{builder.REVISION}/{builder.FOLDER}"
    known = {url.removeprefix(f"{base}/"): info for url, info in builder.url_infos.items() if url.startswith(base)}
    files = {path: compute_url_info(SHARED / builder.name / path) for path in known}
    assert files == known
    assert len(known) == {"sib200": 46 * 3, "umsab": 48, "multi30k": 12, "xpersona": 7}[builder.name]


def test_every_checksum_belongs_to_a_file_that_is_downloaded_and_is_shipped(tmp_path, monkeypatch):
    monkeypatch.undo()
    urls = set()
    for builder in BUILDERS:
        made = builder(data_dir=tmp_path)
        folder = f"https://raw.githubusercontent.com/{made.REPOSITORY}/{made.REVISION}/{made.FOLDER}"
        urls |= {p for split in made._paths(made.LANGUAGES, folder).values() for ps in split.values() for p in ps}
    assert Sib200.url_infos and set(Sib200.url_infos) <= urls
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    assert options["options.package_data"]["keras_kd.datasets"] == "checksums.tsv"


# As training takes them ---------------------------------------------------------------------------------------------


def test_from_tfds_of_an_own_data_set(folder, tmp_path):
    data = from_tfds("umsab", source=folder, data_dir=tmp_path)
    assert data.class_names == ("negative", "neutral", "positive") and list(data) == ["train", "validation", "test"]
    x, y = next(iter(data["test"].batch(6)))
    assert sorted(x) == ["language", "text"] and y.dtype == "int32" and sorted(y.numpy().tolist()) == [0, 0, 2, 2, 2, 2]
    assert sorted(data.languages("test")) == ["english"] * 3 + ["hindi"] * 3


def test_it_flows_into_sampling_fit_and_evaluate(folder, tmp_path):
    data = from_tfds("umsab", source=folder, data_dir=tmp_path)
    parts = data.by_language("train")
    assert {language: len(part) for language, part in parts.items()} == {"english": 3, "hindi": 3}
    drawn = keras_kd.datasets.sample_by_language(parts, seed=0).take(64).batch(8)

    vectorize = keras.layers.TextVectorization(output_mode="multi_hot", max_tokens=20)
    vectorize.adapt(data["train"].map(lambda x, y: x["text"]).batch(8))

    def model():
        text = keras.Input((), dtype="string", name="text")
        return keras.Model({"text": text}, keras.layers.Dense(3)(vectorize(text)))

    distiller = keras_kd.Distiller(model(), model(), keras_kd.losses.SoftLabels(2.0))
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(drawn, validation_data=data["validation"].batch(8), verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    evaluation = keras_kd.evaluate(
        {"student": distiller.student}, data["test"].batch(8), languages=data.languages("test"), bootstrap=0
    )
    assert set(evaluation.languages) == {"english", "hindi"}


def test_from_tfds_of_several_texts_and_a_language_for_all(tmp_path):
    with tfds.testing.mock_data(num_examples=5):
        options = {"language": "de", "split": "train", "data_dir": tmp_path}
        pairs = from_tfds("paws_x_wiki/de", text=["sentence1", "sentence2"], **options)
        (x, y) = next(iter(pairs.batch(5)))
        assert sorted(x) == ["language", "sentence1", "sentence2"]
        assert set(x["language"].numpy()) == {b"de"} and set(y.numpy()) <= {0, 1}
        unlabelled = from_tfds("paws_x_wiki/de", text="sentence1", label=None, **options)
        (x, y) = next(iter(unlabelled.batch(5)))
        assert sorted(x) == ["language", "text"] and y.numpy().tolist() == [-1] * 5 and y.dtype == "int32"


def test_from_tfds_of_nested_features(tmp_path):
    with tfds.testing.mock_data(num_examples=5):
        reviews = from_tfds(
            "amazon_us_reviews",
            text="data/review_body",
            label="data/verified_purchase",
            language="data/marketplace",
            split="train",
            data_dir=tmp_path,
        )
        x, y = next(iter(reviews.batch(5)))
        assert x["language"].dtype == x["text"].dtype == "string" and set(y.numpy()) <= {0, 1}


def xnli_example(self, *args, **kwargs):
    """One pair; its hypothesis has two translations into German and none into Greek."""
    premise = {language: f"p {language}" for language in self.info.features["premise"].languages}
    hypothesis = {"language": ["ar", "de", "de", "en"], "translation": ["h ar", "h de", "other", "h en"]}
    example = {"premise": premise, "hypothesis": hypothesis, "label": tf.constant(2, "int64")}
    return tf.data.Dataset.from_tensors(example)


def test_translations_give_an_example_per_language(tmp_path):
    with tfds.testing.mock_data(as_dataset_fn=xnli_example):
        options = {"text": ["premise", "hypothesis"], "split": "test", "data_dir": tmp_path}
        read = plain([x | {"label": y} for x, y in from_tfds("xnli", **options).as_numpy_iterator()])
        expected = [
            {"premise": f"p {language}", "hypothesis": f"h {language}", "language": language, "label": 2}
            for language in ("ar", "de", "en")
        ]
        assert read == expected
        german = from_tfds("xnli", language="de", **options).as_numpy_iterator()
        assert plain([x | {"label": y} for x, y in german]) == expected[1:2]
        with pytest.raises(ValueError, match=r"language must be one of the translations'.*'xx'"):
            from_tfds("xnli", language="xx", **options)


def test_from_tfds_of_parallel_texts(folder, tmp_path):
    options = {"text": ["en", "de"], "label": None, "language": "de", "source": folder, "data_dir": tmp_path}
    x, _ = next(iter(from_tfds("multi30k", **options)["test"]))
    assert sorted(x) == ["de", "en", "language"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "sentence"}, "text must name a feature, .*'sentence1'.*got 'sentence'"),
        ({"text": "sentence1/x"}, "text must name a feature.*got 'sentence1/x'"),
        ({"text": "sentence1", "label": "lable"}, "label must name a feature.*got 'lable'"),
        ({"text": "sentence1"}, "no column 'language'.*sentence1.*\"de\""),
        ({"text": ["sentence1", "sentence1"], "language": "de"}, "text must name features whose last parts differ"),
        ({"text": "sentence1", "language": "langauge"}, "neither a column nor a language code: 'langauge'"),
    ],
)
def test_features_that_are_not_there_are_named(options, message, tmp_path):
    with tfds.testing.mock_data(), pytest.raises(ValueError, match=message):
        from_tfds("paws_x_wiki/de", split="train", data_dir=tmp_path, **options)
