"""Time and memory of `fused_loss` beside the dense form, both with the gradients of hidden states, kernel and bias.

    python benchmarks/large_vocabulary.py [--quick] [--out runs/large_vocabulary]

Each case runs in a process of its own, the two forms in turn. Memory is the peak of the process (VmHWM) beyond what it
held before the first step (VmRSS) and one gradient of the kernel, so Linux only; XLA is started before, since what it
takes, some 0.1 GB, it takes once a process. Processor time, summed over the cores, is what to go by on a machine that
others use as well. The dense form is left out where it would not fit.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from reporting import machine

WIDTH = 384  # of both sides
FORMS = ("dense", "fused")
DENSE_ARRAYS = 13  # (tokens, vocabulary) in float32, the most that the dense form was seen to hold at once


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_000, 250_002])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=3, help="processes a case and form")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a process")
    parser.add_argument("--most-dense-gb", type=float, default=12.0, help="leave the dense form out beyond this")
    parser.add_argument("--quick", action="store_true", help="one small case in a minute")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/large_vocabulary"))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        form, *sizes = arguments.worker
        print(json.dumps(measured(form, *map(int, sizes))))
        return
    if arguments.quick:
        arguments.vocabularies, arguments.tokens, arguments.rounds = [32_000], [512], 1
    cases = [
        case(vocabulary, tokens, arguments) for vocabulary in arguments.vocabularies for tokens in arguments.tokens
    ]
    write(cases, arguments.out)


def case(vocabulary, tokens, arguments):
    """`{"vocabulary", "tokens", "dense": {...} or None, "fused": {...}}` with times in seconds, memory in GB."""
    dense_gb = DENSE_ARRAYS * 4 * tokens * vocabulary / 1e9
    forms = [form for form in FORMS if form == "fused" or dense_gb <= arguments.most_dense_gb]
    runs = {form: [] for form in forms}
    for _ in range(arguments.rounds):
        for form in forms:
            runs[form].append(worker(form, vocabulary, tokens, arguments.steps))
    result = {"vocabulary": vocabulary, "tokens": tokens, **dict.fromkeys(FORMS)}
    for form, of_form in runs.items():
        seconds, cpu_seconds = ([s for run in of_form for s in run[key]] for key in ("seconds", "cpu_seconds"))
        result[form] = {
            "min_s": min(seconds),
            "median_s": statistics.median(seconds),
            "min_cpu_s": min(cpu_seconds),
            "beyond_gb": max(run["beyond_gb"] for run in of_form),
            "runs": of_form,
        }
    print(row(result), flush=True)
    return result


def worker(*case):
    command = [sys.executable, __file__, "--worker", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(form, vocabulary, tokens, steps):
    """Peak memory in GB, and the seconds of each step after the first; run in a process of its own."""
    import tensorflow as tf

    import keras_kd
    from keras_kd.large_vocabulary import Head, fused_loss

    tf.random.set_seed(0)
    # In one piece, so that no other array of this size has raised the peak before the first step: kernels assigned to
    # by rows would from then on be copied by every step that reads them.
    shape = (WIDTH, vocabulary)
    kernels = [tf.Variable(tf.raw_ops.RandomStandardNormal(shape=shape, dtype="float32", seed=i)) for i in (1, 2)]
    bias = tf.Variable(tf.zeros((vocabulary,)))
    hidden = [tf.random.normal((tokens, WIDTH), stddev=0.05) for _ in range(2)]
    labels = tf.random.uniform((tokens,), maxval=vocabulary, dtype="int32")
    loss = keras_kd.losses.SoftLabels(temperature=2.0)

    def dense(student):
        teacher, logits = tf.matmul(hidden[0], kernels[0]), tf.matmul(student, kernels[1]) + bias
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_sum(loss.call(teacher, logits) + hard)

    def fused(student):
        return fused_loss(loss, Head(hidden[0], kernels[0]), Head(student, kernels[1], bias), labels).total

    @tf.function
    def step(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            total = {"dense": dense, "fused": fused}[form](student) / tokens
        return total, tape.gradient(total, [student, kernels[1], bias])

    tf.function(tf.exp, jit_compile=True)(tf.zeros(2))
    held_gb = memory_gb("VmRSS") + 4 * WIDTH * vocabulary / 1e9
    seconds, cpu_seconds = [], []
    for _ in range(steps + 1):
        gradients = None  # those of the step before
        start, start_cpu = time.perf_counter(), time.process_time()
        total, gradients = step(hidden[1])
        total = float(total)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
    beyond_gb = memory_gb("VmHWM") - held_gb
    norms = [float(tf.norm(gradient)) for gradient in gradients]
    return {
        "beyond_gb": beyond_gb,
        "seconds": seconds[1:],
        "cpu_seconds": cpu_seconds[1:],
        "total": total,
        "gradient_norms": norms,
    }


def memory_gb(field):
    """What this process holds (VmRSS), or the most that it has held (VmHWM), in 10^9 bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(field))


HEADER = (
    "| vocabulary | tokens | dense: min, median s | fused | ratio | dense: min processor s | fused | ratio "
    "| dense: GB | fused | ratio |"
)


def row(result):
    dense, fused = result["dense"], result["fused"]
    cells = [f"{result['vocabulary']:,}", f"{result['tokens']:,}"]
    for first, *more in (("min_s", "median_s"), ("min_cpu_s",), ("beyond_gb",)):
        cells += [", ".join(f"{form[key]:.2f}" for key in (first, *more)) if form else "–" for form in (dense, fused)]
        cells.append(f"{fused[first] / dense[first]:.2f}" if dense else "–")
    return "| " + " | ".join(cells) + " |"


def write(cases, folder):
    """The figures as results.json and as table.md, with machine and versions."""
    import keras
    import tensorflow as tf

    measured_on = machine(keras, tf)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"machine": measured_on, "width": WIDTH, "cases": cases}, indent=1))
    about = f"Width {WIDTH}, float32; {json.dumps(measured_on)}"
    lines = [HEADER, "|---" * HEADER.count(" |") + "|", *map(row, cases), "", about]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    print(f"{folder / 'table.md'}, {folder / 'results.json'}")


if __name__ == "__main__":
    main()
