"""Compare training in bf16 with training in fp32, for the same seeds and batches.

    python benchmarks/precision.py [--steps 1500] [--seeds 3] [--cells lstm] [--json FILE]

Requires the compiled kernels and the corpora time-machine and tiny-shakespeare (from RECURRA_DATA
or the network). Prints a Markdown table with the validation loss in nats per token during training,
the final loss of the validation part read as one sequence, and the difference of bf16 from fp32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from recurra import api
from recurra.kernels import library
from recurra.report.progress import Progress

CORPORA = ("time-machine", "tiny-shakespeare")
REPORTS = 5


@dataclass(frozen=True)
class Pair:
    """One seed in both precisions: the validation curves and the final nats per token."""

    corpus: str
    cell: str
    seed: int
    curves: dict[str, list[float]]
    final: dict[str, float]

    @property
    def difference(self) -> float:
        """The final loss in bf16 minus that in fp32, in nats."""
        return self.final["bf16"] - self.final["fp32"]


def train(
    corpus: str, cell: str, seed: int, steps: int, precision: str
) -> tuple[list[float], float]:
    """Train a model; return its validation curve and the final loss of the validation part."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        lm = api.train(
            corpus,
            out=run,
            progress=Progress(),
            cell=cell,
            seed=seed,
            steps=steps,
            report_every=max(1, steps // REPORTS),
            precision=precision,
            backend="native",
            sample_every=10 * steps,
        )
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["val_nats"] for line in lines], lm.validate().nats_per_token


def compare(corpus: str, cell: str, seed: int, steps: int) -> Pair:
    """Train one seed in both precisions."""
    curves, final = {}, {}
    for precision in ("fp32", "bf16"):
        curves[precision], final[precision] = train(corpus, cell, seed, steps, precision)
    pair = Pair(corpus, cell, seed, curves, final)
    print(f"{corpus} {cell} seed {seed}: {pair.difference:+.4f}", file=sys.stderr, flush=True)
    return pair


def table(pairs: list[Pair]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| text | cell | seed | precision | validation nats along the way | final | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        for precision, curve in pair.curves.items():
            shown = ", ".join(f"{nats:.3f}" for nats in curve)
            difference = f"{pair.difference:+.4f}" if precision == "bf16" else ""
            lines.append(
                f"| {pair.corpus} | {pair.cell} | {pair.seed} | {precision} | {shown}"
                f" | {pair.final[precision]:.4f} | {difference} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", nargs="*", default=["lstm"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    library.load()
    pairs = [
        compare(corpus, cell, seed, options.steps)
        for corpus in CORPORA
        for cell in options.cells
        for seed in range(options.seeds)
    ]
    print(table(pairs))
    if options.json:
        text = json.dumps([asdict(pair) for pair in pairs], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(abs(pair.difference) >= 0.01 for pair in pairs) else 0


if __name__ == "__main__":
    sys.exit(main())
