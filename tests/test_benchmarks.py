"""The parts of `benchmarks/transformer_losses.py` that its figures rest on; `make transformers` runs the whole."""

import importlib.util
import pathlib
import zlib

import numpy as np
import pytest

import keras_kd

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # it imports losses.py, which lies beside it
    specification = importlib.util.spec_from_file_location("transformer_losses", FOLDER / "transformer_losses.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def task(benchmark):
    """24 random texts, every second one labelled."""
    rng = np.random.default_rng(0)
    split = benchmark.Split(rng.integers(1, 50, (24, 6)).astype("int32"), np.arange(24) % 3, np.zeros(24))
    few = np.where(np.arange(24) % 2, split.y, benchmark.UNLABELLED)
    return benchmark.Task(split, few, split, split, teacher_width=64, student_width=32, steps=2)


def test_words_become_ids_of_their_pieces_and_padding(benchmark):
    """Pieces of 4 characters by hand, case folded; a piece inside a word differs from the same one at its start."""
    pieces = ["good", "##ness", "!!", "ness"]
    ids = benchmark.word_pieces("Goodness !! ness")
    assert ids[:4] == [1 + zlib.crc32(piece.encode()) % 8191 for piece in pieces]
    assert ids[4:] == [0] * 36
    assert len(benchmark.word_pieces("word " * 100)) == 40


def test_the_table_shows_gains_seed_by_seed(benchmark):
    """Gains 6 and 10 over labels only, mean 8, sd 2.83; 1 and 3 over the soft labels, mean 2, sd 1.41."""
    row = f"{benchmark.SOFT} + HiddenStates"
    scores = {benchmark.LABELS_ONLY: [30.0, 40.0], benchmark.SOFT: [35.0, 47.0], row: [36.0, 50.0]}
    table = benchmark.markdown(scores, {benchmark.SOFT: 10.0, row: 0.1}).splitlines()
    assert table[2] == "| labels only | 35.0 ± 7.1 | – | – | – | – |"
    assert table[4] == f"| {row} | 43.0 ± 9.9 | 8.0 ± 2.8 | 2.0 ± 1.4 | 10 | 0.1 |"


def test_every_loss_finds_its_layers_in_both_models(benchmark, task):
    """Two steps with all of them at once: each has a loss, and the student moves, the teacher not."""
    teacher, student = benchmark.transformer(task, 64, blocks=2), benchmark.untrained(task, seed=0)
    before = {model: model.get_weights() for model in (teacher, student)}
    distillation_losses = [loss() for loss in benchmark.LOSSES.values()]
    distiller = keras_kd.Distiller(teacher, student, distillation_losses)
    benchmark.fit(distiller, task.train.x, task.few_labels, task.steps)
    moved = {model: not all(map(np.array_equal, old, model.get_weights())) for model, old in before.items()}
    assert moved == {teacher: False, student: True}
    values = [distiller.history.history[loss.name][0] for loss in distillation_losses]
    assert np.isfinite(values).all()
    assert np.all(np.array(values) > 0.0)
