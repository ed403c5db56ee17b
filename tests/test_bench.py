"""The parts of `make bench` at tiny sizes: what is compared is the same, and each measure measures."""

import importlib
import json
import pathlib
import sys

import keras
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))  # its modules import each other by name
bench, bench_figure, bench_growth, bench_models, bench_others, bench_report, bench_sides = map(
    importlib.import_module,
    ("bench", "bench_figure", "bench_growth", "bench_models", "bench_others", "bench_report", "bench_sides"),
)
bench_steps, bench_torch, reporting = map(importlib.import_module, ("bench_steps", "bench_torch", "reporting"))
Timing = reporting.Timing

with_torch = pytest.mark.skipif(not bench_torch.PYTHON.exists(), reason="no .venv-torch; `make peers` makes it")
THRICE = {"least": 1.5, "median": 1.25, "cpu": 1.0}


@pytest.fixture(scope="module")
def measured():
    """The MLP with the features of two layers, one round."""
    task = bench_models.mlp_task(features=True, tiny=True)
    return task, bench_steps.measured(task, rounds=1, peak_flops=1e9)


# Timing --------------------------------------------------------------------------------------------------------------


def test_functions_have_their_turn_in_every_round_and_the_first_round_is_not_counted():
    order = []
    taken = reporting.timings({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert order == ["a", "b"] * 3
    assert {name: len(of_one) for name, of_one in taken.items()} == {"a": 2, "b": 2}
    assert all(timing.wall >= 0.0 for of_one in taken.values() for timing in of_one)


def test_what_another_process_took_stands_for_the_call():
    assert reporting.timings({"there": lambda: Timing(7.0, 8.0)}, rounds=1) == {"there": [Timing(7.0, 8.0)]}


def test_ratios_are_of_least_times_of_rounds_and_of_processor_seconds():
    """By hand: 3 / 2; median of 3/2, 6/6, 4/4 = 1; 4 / 1."""
    one = [Timing(3.0, 5.0), Timing(6.0, 4.0), Timing(4.0, 9.0)]
    other = [Timing(2.0, 1.0), Timing(6.0, 2.0), Timing(4.0, 3.0)]
    assert reporting.ratios(one, other) == {"least": 1.5, "median": 1.0, "cpu": 4.0}


def test_a_sum_goes_round_by_round():
    parts = [[Timing(1.0, 2.0), Timing(3.0, 4.0)], [Timing(10.0, 20.0), Timing(30.0, 40.0)]]
    assert reporting.summed(*parts) == [Timing(11.0, 22.0), Timing(33.0, 44.0)]


def test_the_machine_is_told_by_processor_commit_and_versions():
    about = reporting.machine(keras, np)
    assert about["versions"] == {"keras": keras.__version__, "numpy": np.__version__}
    assert about["cpu"]
    assert {"cores", "load", "python", "commit"} <= set(about)


# The models ----------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_matrix_products():
    """By hand, 2 for a multiply and add: dense 2(3·4 + 4·5); convolutions 2·9·(3·2·16 + 2·4·4) + head 2·4·5; attention
    of 6 tokens, 8 wide: projections 2·6·4·64, scores and sums 2·2·36·8, dense 2·6·2·8·32, head 2·8·5."""
    sizes = {
        "mlp": ({"inputs": 3, "widths": [4], "classes": 5}, 64),
        "cnn": ({"size": 4, "channels": [2, 4], "depth": 1, "classes": 5}, 2 * 9 * (3 * 2 * 16 + 2 * 4 * 4) + 40),
        "text": ({"length": 6, "words": 9, "width": 8, "blocks": 1, "classes": 5}, 3072 + 1152 + 6144 + 80),
    }
    for kind, (options, expected) in sizes.items():
        assert bench_models.forward_flops(bench_models.Architecture(kind, options).build()) == expected


@pytest.mark.parametrize("make", [bench_models.mlp_task, bench_models.cnn_task, bench_models.text_task])
@pytest.mark.parametrize("features", [False, True], ids=["logits", "two layers"])
def test_pairs_of_layers_have_one_width_which_keras_distillation_asks_for(make, features):
    task = make(features, tiny=True)
    assert len(task.layers) == (2 if features else 0)
    for pair in task.layers:
        of_teacher, of_student = (
            model.get_layer(name).output.shape for model, name in zip((task.teacher, task.student), pair, strict=True)
        )
        assert of_teacher == of_student
    assert bench_models.forward_flops(task.student) < bench_models.forward_flops(task.teacher)


# Steps ---------------------------------------------------------------------------------------------------------------


def test_everyone_computes_the_loss_of_the_formula(measured):
    _, result = measured
    found = result["agreement"]
    assert found["loss"] > 1.0
    assert found["keras_kd"] <= 1e-5
    assert found["keras.distillation"] <= 1e-5
    assert found["by hand"] <= 1e-5


def test_sides_that_compute_another_loss_are_refused():
    task = bench_models.mlp_task(features=False, tiny=True)
    sides = bench_sides.entrants(task)
    kernel = sides["keras_kd"].student.get_layer("logits").kernel
    kernel.assign(1.01 * kernel)
    with pytest.raises(RuntimeError, match="MLP, logits: what is compared is not the same"):
        bench_steps.agreed(task, sides)


def test_every_side_is_timed_and_has_its_ratios(measured):
    task, result = measured
    assert set(result["training"]) == {
        *bench_steps.KERAS_SIDES, "by hand", "teacher forward", bench_steps.BOUND
    }  # fmt: skip
    assert set(result["evaluation"]) == set(bench_steps.KERAS_SIDES)
    bound = result["training"][bench_steps.BOUND]
    assert bound["least ratio"] == bound["median ratio"] == bound["cpu ratio"] == 1.0
    row = result["training"]["keras_kd"]
    assert row["examples/s"] == pytest.approx(task.batch / (1e-3 * row["least ms"]))
    needed = task.batch * (bench_models.forward_flops(task.teacher) + 3 * bench_models.forward_flops(task.student))
    assert row["share of peak"] == pytest.approx(needed / (1e-3 * row["least ms"]) / 1e9)


def test_growth_is_measured_for_several_teachers_too():
    row = bench_growth.row(bench_growth.teachers_task(2, tiny=True), rounds=1)
    assert set(row["ratios"]) == {"keras_kd", "keras.distillation", "keras_kd, side by side"}


def test_long_epochs_without_a_teacher_are_the_students_in_memory_and_from_the_cache(tmp_path):
    task = bench_models.mlp_task(features=False, tiny=True)
    functions = bench_steps.epochs_without_teacher(task, tmp_path / "outputs")
    assert list(functions) == ["plain student", bench_steps.IN_MEMORY, bench_steps.CACHED]
    for function in functions.values():
        function()
        assert int(function.args[0].optimizer.iterations) == bench_steps.PASSES * task.steps
    precomputed = [next(iter(functions[name].args[1]))[0] for name in (bench_steps.IN_MEMORY, bench_steps.CACHED)]
    in_memory, cached = (one.teacher_outputs().prediction for one in precomputed)
    np.testing.assert_allclose(in_memory, cached, rtol=1e-3, atol=1e-3)


# PyTorch -------------------------------------------------------------------------------------------------------------


@with_torch
@pytest.mark.parametrize("make", [bench_models.mlp_task, bench_models.cnn_task, bench_models.text_task])
def test_pytorch_has_the_same_models_and_torchdistill_the_same_loss(make):
    task = make(features=False, tiny=True)
    with bench_torch.TorchPeer(task, threads=1) as peer:
        assert peer.difference <= 1e-4
        assert peer.losses()[0] == pytest.approx(bench_sides.reference_loss(task), rel=1e-5)
        assert all(isinstance(epoch(), Timing) for epoch in peer.epochs().values())


@with_torch
def test_a_worker_that_fails_says_why():
    task = bench_models.mlp_task(features=False, tiny=True)
    broken = task._replace(student=bench_models.mlp(inputs=12, widths=[3], classes=10))
    with (
        pytest.raises(RuntimeError, match=r"the PyTorch worker ended at 'load'(.|\n)*shape"),
        bench_torch.TorchPeer(broken, threads=1),
    ):
        pass


# The report ----------------------------------------------------------------------------------------------------------


def made_report(measured):
    _, result = measured
    row = {"ratios": {"keras_kd": THRICE, "keras.distillation": THRICE}, "least ms": {bench_steps.BOUND: 4.0}}
    form = {"beyond_gb": 2.0, "min_cpu_s": 3.0}
    return {
        "about": {"steps": {"seconds": 9, "rounds": 1, "accelerator": None, **reporting.machine(keras, np)}},
        "steps": {"MLP, two layers": result},
        "growth": {"classes": {"10": row, "1000": row}},
        "large_vocabulary": [{"vocabulary": 32_000, "tokens": 512, "dense": None, "fused": form}],
        "cache": {
            "MLP: an epoch": {
                "plain student": {"ratio of processor time": 1.0},
                "cached": {"ratio of processor time": 1.2},
            }
        },
    }


def test_the_tables_show_every_part_and_say_that_there_was_no_gpu(measured):
    tables = bench_report.tables(made_report(measured))
    assert "| classes: 1,000 | 4.0 | 1.50 / 1.25 / 1.00 | 1.50 / 1.25 / 1.00 | – |" in tables
    assert "| 32,000 | 512 | – | 2.00 | – | – | 3.00 | – |" in tables
    assert "GPU: not yet measured: no GPU was at hand" in tables
    assert "| cached | 1.2 |" in tables
    assert "MLP, two layers: training" in tables


def test_the_picture_has_a_panel_for_every_part(measured, tmp_path):
    bench_figure.draw(made_report(measured), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_one_part_writes_figures_machine_and_tables_and_keeps_other_parts(measured, monkeypatch, tmp_path):
    _, result = measured
    monkeypatch.setattr(bench.tf.config.threading, "set_intra_op_parallelism_threads", lambda count: None)
    monkeypatch.setattr(bench, "steps", lambda options: {"MLP, two layers": result})
    monkeypatch.setattr(bench, "growth", lambda options: made_report(measured)["growth"])
    for part in ("steps", "growth"):
        bench.main(["--quick", "--parts", part, "--output", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["about"]) == {"steps", "growth"}
    about = report["about"]["steps"]
    assert about["rounds"] == 1 and about["cpu"] and about["versions"]["keras"] == keras.__version__
    assert report["steps"]["MLP, two layers"]["training"]["keras_kd"]["least ms"] > 0.0
    tables = (tmp_path / "tables.md").read_text()
    assert "| classes: 1,000 |" in tables and "| MLP, two layers |" in tables
    assert (tmp_path / "bench.png").exists()


def test_a_program_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"five_seeds\.py --nonsense ended with 2:(.|\n)*unrecognized arguments"):
        bench_others.report_of("five_seeds.py", "report.json", "--nonsense")
