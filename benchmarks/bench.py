"""keras_kd against everyone: a plain student, a loop by hand, keras.distillation, and PyTorch with torchdistill.

    python benchmarks/bench.py [--quick] [--parts steps growth large_vocabulary cache] [--output runs/bench]

What is compared runs in turn, `--rounds` times, in one process (PyTorch in one of its own, which has its turn as well),
from the same weights on the same data, once all have been seen to compute the same loss for the first batch. Each ratio
stands there three times: of the least times, the median over rounds, and of processor seconds over all cores; on a
machine that others use as well, go by the last. Parts that are not run again stay in the output folder as they are.
With KERAS_BACKEND=jax the steps run on JAX. On a GPU, --peak-tflops gives the share of its peak that is reached.
"""

import argparse
import contextlib
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import bench_growth
import bench_others
import bench_report
import bench_steps
import keras
import numpy as np
import tensorflow as tf
from bench_devices import accelerator
from bench_models import tasks
from bench_torch import MISSING, PYTHON, TorchPeer
from reporting import machine

import keras_kd

PARTS = ("steps", "growth", "large_vocabulary", "cache")


def steps(options):
    """`{task: what bench_steps.measured gives}`; tasks with logits only beside PyTorch, where it is there."""
    found = {}
    for task in tasks(options.quick):
        beside = TorchPeer(task, threads=options.threads) if PYTHON.exists() and not task.layers else None
        with beside or contextlib.nullcontext() as peer:
            flops = options.peak_tflops and 1e12 * options.peak_tflops
            found[task.name] = bench_steps.measured(task, options.rounds, peer, flops)
        print(bench_report.steps_table({task.name: found[task.name]}), flush=True)
    if not PYTHON.exists():
        print(f"torchdistill: {MISSING}.")
    return found


def growth(options):
    return bench_growth.measured(options.rounds, options.quick)


def large_vocabulary(options):
    return bench_others.large_vocabulary(options.quick)


def cache(options):
    return bench_others.cache(options.quick)


def parsed(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: only to see that it runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, help="5; 1 with --quick")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each operation, on both sides")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share that is reached")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/bench"))
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def main(arguments=None):
    from bench_figure import draw

    options = parsed(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    report = there(options.output)
    for name, part in zip(PARTS, (steps, growth, large_vocabulary, cache), strict=True):
        if name not in options.parts:
            continue
        start = time.monotonic()
        report[name] = part(options)
        report["about"][name] = {
            "seconds": round(time.monotonic() - start),
            "rounds": options.rounds,
            "quick": options.quick,
            "backend": keras.config.backend(),
            "accelerator": accelerator(),
            **machine(keras_kd, keras, tf, np),
        }
        write(report, options.output)  # what is there stays, should a later part fail
        print(f"{name}: {report['about'][name]['seconds']} s", flush=True)
    draw(report, options.output / "bench.png")
    print((options.output / "tables.md").read_text() + f"\n{options.output}/tables.md, report.json, bench.png")


def there(folder):
    """What earlier runs left in the folder: parts that are not run again stay."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.json"
    return json.loads(report.read_text()) if report.exists() else {"about": {}}


def write(report, folder):
    (folder / "report.json").write_text(json.dumps(report, indent=1, default=float))
    (folder / "tables.md").write_text(bench_report.tables(report))


if __name__ == "__main__":
    main()
