"""Run an exported file in a process of its own, without keras_kd: whether it runs there, and what memory it takes."""

import json
import os
import pathlib
import pickle
import subprocess
import sys

import tensorflow as tf

from keras_kd.deploy.run_lines import run_lines

# On Linux, the peak of resident memory is VmHWM, which starts anew with each program and can be reset. What getrusage
# tells there includes the peak of the process that started this one, which may hold a large teacher.
_BEFORE = """
import contextlib, gc, json, pickle, re, sys

sys.modules.update({"keras_kd": None, "openvino_telemetry": None})
sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {' '.join(str(error).split())}")
example = pickle.load(sys.stdin.buffer)


def peak():
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


"""
_BEFORE_LOADING = """
gc.collect()
with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = peak()
"""
_AFTER = """
print(json.dumps(before and peak() - before))
"""


def peak_memory(path, inputs):
    """Return by how many bytes the resident memory of a fresh process grows at most, to load a file and run it once.

    Counted from where the packages are imported: the weights as they are loaded, arrays that come and go, and what the
    runtime sets up when it is first used; not Python and the packages themselves. On the CPU (a SavedModel that runs on
    the GPU alone, there), in as many threads as the runtime takes by itself.

    Args:
        path: A file or folder that `keras_kd.export` wrote, or another of these formats.
        inputs: {input name: array}, one batch.

    Returns:
        The bytes, an int; None where the system does not tell (Windows).

    Raises:
        RuntimeError: The file does not run in a fresh process.
    """
    takes_strings = any(array.dtype == object for array in inputs.values())
    examples = {name: f"example[{name!r}]" for name in inputs}
    imports, lines = run_lines(pathlib.Path(path).absolute(), examples, takes_strings)
    code = "\n".join([_BEFORE, *imports, _BEFORE_LOADING, *lines, _AFTER])
    for devices in _devices():
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **devices}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=pickle.dumps(inputs), capture_output=True, env=environment)
        told = (done.stdout.decode(errors="replace").splitlines() or [f"exit status {done.returncode}"])[-1]
        if done.returncode == 0:
            return json.loads(told)
    raise RuntimeError(f"in a fresh process, {told[:500]}")


def _devices():
    """Environments: the CPU; where the file does not run there, the GPU that it may have been traced for, if any."""
    yield {"CUDA_VISIBLE_DEVICES": ""}
    if tf.config.list_physical_devices("GPU"):
        yield {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # this process may have taken most of its memory
