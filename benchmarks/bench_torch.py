"""PyTorch with torchdistill beside Keras: a process of its own, which runs an epoch whenever it is its turn."""

import contextlib
import json
import pathlib
import subprocess
import tempfile

import numpy as np
from bench_loops import TEMPERATURE
from reporting import Timing

HERE = pathlib.Path(__file__).parent
PYTHON = HERE.parent / ".venv-torch" / "bin" / "python"
MISSING = f"not measured: {PYTHON} is not there; `make peers` makes it"


class TorchPeer:
    """A worker in the extra environment that holds the models of a task; a context manager, which ends it.

    Raises:
        RuntimeError: The worker failed, or its models give other logits than Keras's for the same weights.
    """

    def __init__(self, task, *, threads=None, python=PYTHON):
        self._task = task
        self._command = [str(python), str(HERE / "peers" / "torch_worker.py")]
        self._command += ["--threads", str(threads)] if threads else []

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            file = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "task.npz"
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
            self._process = stack.enter_context(
                subprocess.Popen(self._command, **pipes)
            )  # ends with its standard input
            self._load(file)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._resources.close()

    def _load(self, file):
        """Hand the models and the data over; find out how far the logits are apart."""
        np.savez(file, x=self._task.x, y=self._task.y, **_weights(self._task))
        sides = dict(zip(("teacher", "student"), self._task.architectures, strict=True))
        self.about = self._ask("load", file=str(file), batch=self._task.batch, temperature=TEMPERATURE, **sides)
        self.difference = self._difference_of_logits(np.load(f"{file}.logits.npz"))

    def epochs(self):
        """What can be timed: functions that have an epoch run and return its `Timing`."""
        return {
            "PyTorch: teacher forward": lambda: self._timing("forward"),
            "PyTorch: plain student": lambda: self._timing("plain"),
            "torchdistill": lambda: self._timing("train"),
        }

    def losses(self):
        """The losses of an epoch of training, batch by batch."""
        return self._ask("train")["losses"]

    def _timing(self, do):
        answer = self._ask(do)
        self.about["peak_memory"] = answer["peak_memory"]
        return Timing(answer["wall"], answer["cpu"])

    def _ask(self, do, **arguments):
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the PyTorch worker ended at {do!r}:\n{self._errors.read()[-2000:]}")
        return json.loads(line)

    def _difference_of_logits(self, theirs):
        """The largest difference between Keras's and PyTorch's logits of the first batch."""
        x, _ = self._task.first_batch()
        models = {"teacher": self._task.teacher, "student": self._task.student}
        ours = {side: model.predict(x, verbose=0) for side, model in models.items()}
        return max(float(np.abs(ours[side] - theirs[side]).max()) for side in models)


def _weights(task):
    models = {"teacher": task.teacher, "student": task.student}
    return {f"{side}_{i}": array for side, model in models.items() for i, array in enumerate(model.get_weights())}
