"""Trainings whose results the golden records contain. They use only the public interface."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import recurra
from recurra.errors import TrainingInterrupted
from recurra.report.progress import Progress

RUNS = Path(__file__).parent / "runs"
RECORDS = Path(__file__).parent / "records.json"
STEPS = 20
OPTIONS: dict[str, Any] = {
    "steps": STEPS, "max_tokens": 6000, "hidden_size": 24, "embedding_size": 16, "batch_size": 4,
    "num_steps": 16, "lr": 0.01, "output_dropout": 0.1, "weight_averaging": 0.9,
    "report_every": 1, "sample_every": 10, "sample_length": 20, "threads": 1, "device": "cpu",
    "seed": 3,
}  # fmt: skip

SCENARIOS: dict[str, dict[str, Any]] = {
    f"{cell}-{backend}-{precision}": {
        "cell": cell,
        "backend": backend,
        "precision": precision,
        **({} if cell == "mingru" else {"weight_dropout": 0.1}),
    }
    for cell in ("rnn", "gru", "lstm", "mingru")
    for backend in ("reference", "native")
    for precision in ("fp32", "bf16")
}
"""Options of each training. With `native`, rnn, gru and lstm use the compiled training step."""

RESUMED = "lstm-native-fp32"
"""Scenario of the interrupted and resumed training, and of the training with two processes."""


def machine() -> dict[str, str]:
    """Return processor, instruction set and torch version, which affect the last bits."""
    described = Path("/proc/cpuinfo")
    text = described.read_text("utf-8") if described.is_file() else ""
    found = [re.search(rf"^{name}\s*: (.*)$", text, re.M) for name in ("model name", "model")]
    return {
        "processor": " / ".join(match[1] for match in found if match),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
    }


class _StopAfter(Progress):
    """Sends SIGINT to this process after a step."""

    def __init__(self, step: int | None) -> None:
        self._stop_after = step

    def step(self, metrics: Any) -> None:
        if metrics.step == self._stop_after:
            os.kill(os.getpid(), signal.SIGINT)


def train(name: str, folder: Path, *, stop_after: int | None = None) -> None:
    """Train a scenario in a new run directory; stop early with a checkpoint if requested."""
    options = OPTIONS | SCENARIOS[name]
    try:
        recurra.train("english-story", out=folder, progress=_StopAfter(stop_after), **options)
    except TrainingInterrupted:
        assert stop_after is not None


def resume(folder: Path) -> None:
    """Resume a run with the command line."""
    _run([sys.executable, "-m", "recurra", "train", "--resume", str(folder), "--quiet"])


def train_in_two_processes(name: str, folder: Path) -> None:
    """Train a scenario under torchrun with two processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    options: list[str] = []
    for key, value in (OPTIONS | SCENARIOS[name]).items():
        options += [f"--{key.replace('_', '-')}", str(value)]
    command = [sys.executable, *launcher, "-m", "recurra", "train", "english-story", *options]
    _run([*command, "--out", str(folder), "--quiet"])


def describe(folder: Path) -> dict[str, Any]:
    """Return the losses of every step, a hash of the weights and 200 generated characters."""
    return {
        "losses": losses(folder),
        "weights": weights_hash(folder),
        "text": recurra.load(folder).generate("The ", max_new_tokens=200, seed=5),
    }


def losses(folder: Path) -> list[float]:
    """Return the training loss of each step in nats per token."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["train_nats"] for line in lines]


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of all weights of a run, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def copy_run(name: str, folder: Path) -> Path:
    """Copy a committed run directory of version 0.1, so that a test can change it."""
    return Path(shutil.copytree(RUNS / name, folder / name))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stderr.decode("utf-8", "replace"))
