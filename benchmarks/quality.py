"""Measure the validation loss that `recurra train TEXT --minutes M` reaches.

    python benchmarks/quality.py [--minutes 1 3 15] [--seeds 3] [--first-seed 1]
                                 [--texts tiny-shakespeare] [--options "--hidden-size 448"]
                                 [--against-book] [--json FILE]

Requires the named corpora (from RECURRA_DATA or the network). Run nothing else meanwhile. The text
`source` is the source code of this project, and `20k` the first 20,480 bytes of the bundled English
story. --options are passed to recurra train. With --against-book, a one-layer LSTM with the book's
settings (d2l 0.17 section 9.2) trains for the same minutes, interleaved.

Prints a Markdown table: nats per character on the whole validation part, with the state carried
from end to end, and in windows of 64 characters from the zero state. Whole commands are timed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recurra import api
from recurra.config import TextConfig
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.text.corpus import read_text

ROOT = Path(__file__).parents[1]
BOOK = {
    "cell": "lstm", "hidden-size": "256", "embedding-size": "0", "batch-size": "32",
    "num-steps": "35", "optimizer": "sgd", "lr": "1", "schedule": "constant", "warmup": "0",
    "clip-norm": "1", "init": "uniform", "forget-bias": "0", "output-dropout": "0",
    "weight-dropout": "0", "precision": "fp32",
}  # fmt: skip
WINDOW = 64


@dataclass(frozen=True)
class Outcome:
    """The wall time of one command, and the results of its model."""

    text: str
    settings: str
    minutes: float
    seed: int
    seconds: float
    units: int
    parameters: int
    tokens: int
    carried: float
    windows: float
    told: str


def sources_of(text: str, folder: Path) -> list[str]:
    """Return the arguments of the command line for the name of a text."""
    if text == "source":
        files = sorted((ROOT / "src").rglob("*"))
        return [str(file) for file in files if file.suffix in (".py", ".cpp", ".h")]
    if text == "20k":
        whole = read_text([DEFAULT_CORPUS], TextConfig()).encode("utf-8")
        file = folder / "20k.txt"
        file.write_bytes(whole[:20_480])
        return [str(file)]
    return [text]


def run(text: str, settings: str, minutes: float, seed: int) -> Outcome:
    """Train with the command in a separate process and evaluate the model."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        options = [part for name, value in BOOK.items() for part in (f"--{name}", value)]
        if settings != "book":
            options = shlex.split(settings.removeprefix("chosen"))
        command = [
            sys.executable, "-m", "recurra", "train", *sources_of(text, Path(folder)),
            "--minutes", str(minutes), "--seed", str(seed), "--out", str(place), *options,
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        lm = api.load(place)
        lines = (place / "metrics.jsonl").read_text("utf-8").splitlines()
        told = [line for line in done.stderr.splitlines() if line.startswith("overfit")]
        return Outcome(
            text=text,
            settings=settings,
            minutes=minutes,
            seed=seed,
            seconds=round(seconds, 1),
            units=lm.config.model.hidden_size,
            parameters=lm.model.num_parameters,
            tokens=json.loads(lines[-1])["tokens"],
            carried=lm.validate().nats_per_token,
            windows=lm.validate(window=WINDOW).nats_per_token,
            told=" ".join(told),
        )


def outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """Yield all runs. Seeds are the outermost loop, so that a slower machine affects every row."""
    chosen = f"chosen {options.options}".strip()
    kinds = (chosen, "book") if options.against_book else (chosen,)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for text in options.texts:
            for minutes in options.minutes:
                for settings in kinds:
                    print(text, settings, minutes, seed, file=sys.stderr, flush=True)
                    yield run(text, settings, minutes, seed)


def table(found: Sequence[Outcome]) -> str:
    """Return a Markdown table with a row for each text, budget and kind of settings."""
    head = "text | minutes | settings | units | parameters | tokens | wall seconds, at most"
    lines = [f"| {head} | carried | each seed | windows of {WINDOW} |", "|---" * 10 + "|"]
    rows: dict[tuple[str, float, str], list[Outcome]] = {}
    for outcome in found:
        rows.setdefault((outcome.text, outcome.minutes, outcome.settings), []).append(outcome)
    for (text, minutes, settings), row in rows.items():
        carried = [outcome.carried for outcome in row]
        units = sorted({outcome.units for outcome in row})
        lines.append(
            f"| {text} | {minutes:g} | {settings} | {', '.join(map(str, units))}"
            f" | {max(outcome.parameters for outcome in row):,}"
            f" | {statistics.fmean(outcome.tokens for outcome in row) / 1e6:.1f} M"
            f" | {max(outcome.seconds for outcome in row):.1f}"
            f" | {_mean_and_spread(carried)} | {', '.join(f'{nats:.4f}' for nats in carried)}"
            f" | {_mean_and_spread([outcome.windows for outcome in row])} |"
        )
    told = [f"- {o.text}, {o.settings}, seed {o.seed}: {o.told}" for o in found if o.told]
    return "\n".join([*lines, *(["", *told] if told else [])])


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 3.0, 15.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--options", default="", help="options of recurra train, in quotes")
    parser.add_argument("--texts", nargs="+", default=["tiny-shakespeare"])
    parser.add_argument("--against-book", action="store_true")
    parser.add_argument("--json", type=Path, help="append each run to this file when it ends")
    options = parser.parse_args()
    found = []
    for outcome in outcomes(options):
        found.append(outcome)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
