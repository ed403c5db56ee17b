"""The documentation: its Python blocks run, its links lead somewhere, its tables agree with the code and the tests."""

import importlib.util
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_table import PUBLISHED

import keras_kd
from keras_kd import losses

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}


def script(path):
    """A script of the repository as a module."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# Code ---------------------------------------------------------------------------------------------------------------


def python_blocks(page):
    return [
        inspect.cleandoc(block)
        for _, block in re.findall(r"^( *)```python\n(.*?)^\1```", page, flags=re.DOTALL | re.MULTILINE)
    ]


def what_guides_assume():
    """The names that the guides use as in get-started.md, with little data."""
    from sklearn.datasets import load_digits

    def classifier(width):
        layers = [keras.layers.Dense(width, "relu", name="hidden"), keras.layers.Dense(10, name="logits")]
        return keras.Sequential([keras.Input((64,)), *layers])

    x, y = (array[:256] for array in load_digits(return_X_y=True))
    x = x.astype("float32") / 16
    return {
        "keras": keras,
        "keras_kd": keras_kd,
        "losses": losses,
        "np": np,
        "tf": tf,
        "x": x,
        "y": y,
        "train": tf.data.Dataset.from_tensor_slices((x, y)).batch(64),
        "val": tf.data.Dataset.from_tensor_slices((x[:64], y[:64])).batch(64),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
        "teacher": classifier(256),
        "other_teacher": classifier(256),
        "student": classifier(16),
    }


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if python_blocks(text)])
def test_the_blocks_of_a_page_run_in_turn(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {} if page == "get-started.md" else what_guides_assume()
    for block in python_blocks(PAGES[page]):
        exec(compile(block.replace("epochs=30", "epochs=2"), page, "exec"), names)


# Links --------------------------------------------------------------------------------------------------------------


def anchors(text):
    """The anchors of a page's headings, as Python-Markdown makes them."""
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        given = re.search(r"\{#([\w-]+)\}", heading)
        yield given[1] if given else re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((DOCS / page).parent / path).resolve() if path else DOCS / page
        assert target.exists(), f"{page} links to {link}"
        if anchor and "api" not in path:
            assert anchor in set(anchors(target.read_text(encoding="utf-8"))), f"{page} links to {link}"


def test_code_fits_the_column_of_a_page():
    lines = [
        (name, line) for name, text in PAGES.items() for block in python_blocks(text) for line in block.split("\n")
    ]
    assert lines and not [(name, line) for name, line in lines if len(line) > 92]


def test_the_navigation_names_every_page_once():
    navigation = re.findall(r": ([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(navigation) == sorted([*PAGES, "notebook.ipynb", "ship-to-mobile.ipynb"])


# Tables and pictures ------------------------------------------------------------------------------------------------


def rows(page):
    """The cells of each row of a page's tables; bars in code are written as \\|."""
    for line in PAGES[page].splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def loss_rows():
    return {cells[0]: cells for cells in rows("losses.md") if "[keras_kd.losses." in cells[0]}


def test_every_loss_has_a_row():
    bases = {"DistillationLoss", "LabelledDistillationLoss", "Divergence"}
    public = {name for name in losses.__all__ if inspect.isclass(getattr(losses, name))} - bases
    assert {re.search(r"`(\w+)`", name)[1] for name in loss_rows()} == public


def test_papers_are_those_of_the_docstrings():
    for name, cells in loss_rows().items():
        for paper in re.findall(r"arxiv\.org/abs/[\d.]+", cells[2]):
            loss = getattr(losses, re.search(r"`(\w+)`", name)[1])
            docstring = inspect.getdoc(loss)
            if "as `SkewKL`" in docstring:
                docstring = inspect.getdoc(losses.SkewKL)
            assert paper in docstring, f"{name}: {paper}"


def test_published_values_are_those_that_are_tested():
    own = {"UniversalLogitDistillation", "SelfAttentionRelations"}  # in files of their own
    published = {f"{value:.5f}" for _, value in PUBLISHED.values()}
    shown = {
        number
        for cells in rows("losses.md")
        if len(cells) == 5 and not any(name in cells[0] for name in own)
        for number in re.findall(r"\d+\.\d{5}", cells[3])
    }
    assert shown and shown <= published


def test_the_tree_of_the_design_page_is_that_of_the_package():
    page = PAGES["design.md"]
    tree = page.split("<!-- tree")[1].split("<!-- end of tree")[0]
    modules = {path.name for path in (ROOT / "keras_kd").rglob("*.py")} - {"__init__.py"}
    missing = sorted(modules - set(re.findall(r"[\w]+\.py", tree)))
    assert not missing, f"not in the tree: {missing}; run python docs/design_tree.py"
    assert script(DOCS / "design_tree.py").page_with_tree(page) == page, "run python docs/design_tree.py"


def test_the_picture_of_gains_is_drawn_from_the_table(tmp_path):
    plot_gains = script(ROOT / "benchmarks" / "plot_gains.py")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert plot_gains.rows_of(readme) == plot_gains.rows_of(PAGES["results.md"])
    printed = {cells[0]: cells[-1] for cells in rows("results.md") if len(cells) == 7}
    for name, scores in plot_gains.rows_of(readme).items():
        mean, spread = (float(number) for number in re.findall(r"[\d.]+", printed[name]))
        assert np.mean(scores) == pytest.approx(mean, abs=0.11), name
        assert np.std(scores, ddof=1) == pytest.approx(spread, abs=0.11), name
    plot_gains.draw(plot_gains.rows_of(readme), tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 5000
    assert (DOCS / "images" / "gains.png").stat().st_size < 100_000


def test_figures_name_the_command_that_made_them():
    """Every section of the results has its command; every target that is named exists."""
    sections = PAGES["results.md"].split("\n## ")[1:]
    assert sections and all("**Command** `" in section for section in sections)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name, page in PAGES.items():
        for target in re.findall(r"`make ([a-z-]+)", page):
            assert target in targets, f"{name}: make {target}"
        for path in re.findall(r"python (\w+/\w+\.py)", page):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_logged_metrics_explains_every_key(tmp_path):
    """What fit logs with a ramp, a balance and every metric has a row."""
    names = what_guides_assume()
    distiller = keras_kd.Distiller(
        names["teacher"], names["student"], losses.SoftLabels(4.0), balance=keras_kd.UncertaintyBalance()
    )
    metrics = keras_kd.metrics
    distiller.compile(
        "adam",
        names["loss"],
        metrics=[metrics.Agreement(), metrics.MeanKL(), metrics.ExpectedCalibrationError(), metrics.MacroF1(10)],
    )
    ramps = [keras_kd.LambdaRamp(2.0, 4.0, ramp_epochs=2, temperature_of="soft_labels")]
    history = distiller.fit(names["train"], validation_data=names["val"], verbose=0, callbacks=ramps).history
    keys = {key.replace("soft_labels_", "<loss>_") for key in history}
    explained = {key for cells in rows("logged-metrics.md") for key in re.findall(r"`([^`]+)`", cells[0])}
    assert {key.removeprefix("val_") for key in keys} <= explained | {"soft_labels"}


# Where strings are names of the past they are not in the documentation.
OLD_WORDS = r"objectives?\b|\bknobs?\b|\btaps?\b|\btaught\b|brought along|SortedProbabilities|in_dtype|side_by_side"


def test_the_words_are_the_fields():
    for name, page in PAGES.items():
        assert not re.findall(OLD_WORDS, page, flags=re.IGNORECASE), name
