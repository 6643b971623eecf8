"""Training in bf16 beside training in fp32: the same seeds and batches, both validation curves.

    python benchmarks/precision.py [--steps 1500] [--seeds 3] [--cells lstm] [--json FILE]

Needs the corpora time-machine and tiny-shakespeare (RECURRA_DATA or a network) and the compiled
kernels. Prints Markdown: validation nats per token along the way, and by how much bf16 differs at
the end, read as one stream from end to end.
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
    """One seed in both precisions: the curves, and the final nats per token."""

    corpus: str
    cell: str
    seed: int
    curves: dict[str, list[float]]
    final: dict[str, float]

    @property
    def difference(self) -> float:
        """bf16 above fp32 at the end, in nats."""
        return self.final["bf16"] - self.final["fp32"]


def train(
    corpus: str, cell: str, seed: int, steps: int, precision: str
) -> tuple[list[float], float]:
    """The validation curve, and the figure of the whole validation part at the end."""
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
    """Train both."""
    curves, final = {}, {}
    for precision in ("fp32", "bf16"):
        curves[precision], final[precision] = train(corpus, cell, seed, steps, precision)
    pair = Pair(corpus, cell, seed, curves, final)
    print(f"{corpus} {cell} seed {seed}: {pair.difference:+.4f}", file=sys.stderr, flush=True)
    return pair


def table(pairs: list[Pair]) -> str:
    """The results in Markdown."""
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
    parser.add_argument("--json", type=Path, help="write the figures here too")
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
