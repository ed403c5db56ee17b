"""PyTorch's side of the benchmark, with torchdistill's KDLoss: one command a line, in JSON, one answer a line.

    {"do": "load", "file": "task.npz", "teacher": [kind, options], "student": …, "batch": 32, "temperature": 4.0}
    {"do": "forward"} {"do": "plain"} {"do": "train"}

`load` answers with what there is, and writes the logits of the first batch beside the file. The others run an epoch and
answer with the seconds it took, of the clock and of the processor, and with the losses.
"""

import argparse
import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from torch_models import build
from torchdistill.losses.mid_level import KDLoss


class Side:
    """Teacher and students on the same data, all weights as in Keras."""

    def __init__(self, *, file, teacher, student, batch, temperature):
        arrays = np.load(file)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as TensorFlow does
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
        x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x
        self._batches = [(x[i : i + batch], y[i : i + batch]) for i in range(0, len(x), batch)]
        weights = {
            side: [arrays[f"{side}_{i}"] for i in range(_count(arrays, side))] for side in ("teacher", "student")
        }
        self._teacher = build(*teacher, weights["teacher"]).to(self._device).eval()
        self._students = {use: build(*student, weights["student"]).to(self._device) for use in ("plain", "train")}
        self._optimizers = {
            use: torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7) for use, model in self._students.items()
        }
        # alpha and beta of 1: L = cross-entropy + T² KL, as everyone else's
        self._soft_and_hard = KDLoss("logits", "output", "logits", "output", temperature, alpha=1.0, beta=1.0)
        self._hard = torch.nn.CrossEntropyLoss()
        self._write_logits(file)

    def _write_logits(self, file):
        x = self._batches[0][0].to(self._device)
        with torch.no_grad():
            logits = [model(x).cpu().numpy() for model in (self._teacher, self._students["train"].eval())]
        np.savez(f"{file}.logits.npz", teacher=logits[0], student=logits[1])
        self._students["train"].train()

    def forward(self):
        """Run the teacher on every batch."""
        with torch.no_grad():
            for x, _ in self._on_device():
                logits = self._teacher(x)
        logits.sum().item()
        return []

    def plain(self):
        """Train a student on the labels alone."""
        return self._epoch("plain", lambda x, logits, y: self._hard(logits, y))

    def train(self):
        """Train a student on labels and teacher."""

        def loss_of(x, logits, y):
            with torch.no_grad():
                answers = self._teacher(x)
            return self._soft_and_hard({"logits": {"output": logits}}, {"logits": {"output": answers}}, y)

        return self._epoch("train", loss_of)

    def _epoch(self, use, loss_of):
        student, optimizer, losses = self._students[use].train(), self._optimizers[use], []
        for x, y in self._on_device():
            loss = loss_of(x, student(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [loss.item() for loss in losses]

    def _on_device(self):
        for x, y in self._batches:
            yield x.to(self._device), y.to(self._device)


def _count(arrays, side):
    return sum(name.startswith(f"{side}_") for name in arrays.files)


def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    losses = function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "losses": losses}


def peak_memory():
    """Bytes on the GPU, at most, since the models were loaded; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="intra-op threads, as many as the other side has")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    side = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        if do == "load":
            side = Side(**command)
            answer = {
                "torch": torch.__version__,
                "torchdistill": version("torchdistill"),
                "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            }
        else:
            answer = {**timed({"forward": side.forward, "plain": side.plain, "train": side.train}[do])}
        print(json.dumps({**answer, "peak_memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
