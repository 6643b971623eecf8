"""Measure fine-tuning with several learning rates, and training from random weights.

    python benchmarks/fine_tuning.py --out /tmp/fine-tuning

trains a base model on tiny-shakespeare and fine-tunes it on the time machine and on the bundled
story. The rows are factors of the learning rate of the base; the last one starts from random
weights with the learning rate of the base.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import recurra
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory

FACTORS = (0.1, 0.25, 0.5, 1.0)
BASE_STEPS, LR = 2000, 0.01
TEXTS = {"time-machine": 800, "english-story": 300}
"""Number of updates on each text."""
SETTINGS = {
    "hidden_size": 256,
    "batch_size": 16,
    "schedule": "linear",
    "final_lr": 0.0,
    "warmup": 0.1,
    "clip_norm": 0.25,
}
QUIET = Progress()


def best(source: str, out: Path, **options: Any) -> float:
    """Train a model and return its lowest validation loss in nats per character."""
    lm = recurra.train(source, out=out, force=True, progress=QUIET, **options)
    return float(RunDirectory(lm.path or out).best_metrics()["val_nats"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    base = out / "base"
    loss = best("tiny-shakespeare", base, steps=BASE_STEPS, lr=LR, **SETTINGS)
    print(f"base: {loss:.3f}\n\n| text | learning rate | validation loss |\n|---|---|---|")
    for text, steps in TEXTS.items():
        options = {"steps": steps, "report_every": steps // 10}
        for name, own in [
            *((f"{factor} x base", {"base": base, "lr": factor * LR}) for factor in FACTORS),
            ("random weights", {"lr": LR, **SETTINGS}),
        ]:
            losses = [
                best(text, out / "run", seed=seed, **options, **own)
                for seed in range(1, arguments.seeds + 1)
            ]
            print(f"| {text} | {name} | {statistics.mean(losses):.3f} |", flush=True)


if __name__ == "__main__":
    main()
