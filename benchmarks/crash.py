"""Kill training runs at random times, resume them, and compare with an undisturbed run.

    python benchmarks/crash.py [--kills 200] [--steps 600] [--seed 1] [--folder DIR]
                               [--device cpu] [--json FILE]

For each kind of sampling, a small model with dropout is first trained undisturbed. Then the same
command runs again. It is killed with SIGKILL, either at a random time or up to 10 ms after a
checkpoint began to be written, and resumed, until the run finishes. This is repeated until
the requested number of kills is reached. Every file must be byte-identical to that of the
undisturbed run, except for values that depend on the clock: loss.jsonl, two fields of
metrics.jsonl, and in checkpoints session.json and the manifest, which contains its digest.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from recurra.text import catalogue

CLOCK_FIELDS = ("seconds", "tokens_per_second")
IGNORED_FILES = ("session.json", "manifest.sha256", "loss.jsonl", ".lock", ".job")
"""Names of files that differ from run to run: two files of a checkpoint, the points of the loss
curve, which are recorded by the clock, and locks."""
MAX_SECONDS = 60.0
"""A process that runs longer is killed; a whole run takes less."""


def train_command(
    text: Path, out: Path, sampling: str, steps: int, device: str = "cpu"
) -> list[str]:
    return [
        sys.executable, "-m", "recurra", "train", str(text), "--out", str(out),
        "--sampling", sampling, "--steps", str(steps), "--num-layers", "2", "--dropout", "0.3",
        "--hidden-size", "32", "--embedding-size", "16", "--batch-size", "8", "--num-steps", "16",
        "--report-every", "20", "--checkpoint-every", "7", "--sample-length", "20",
        "--threads", "1", "--device", device, "--quiet",
    ]  # fmt: skip


def comparable_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file that must be equal in two runs, without clock readings."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name in IGNORED_FILES:
            continue
        data = file.read_bytes()
        if file.name == "metrics.jsonl":
            data = b"\n".join(map(_without_clock, data.splitlines()))
        if file.name == "config.json":
            data = _without_commands(data)
        found[str(file.relative_to(folder))] = data
    return found


def _without_clock(line: bytes) -> bytes:
    record = json.loads(line)
    return json.dumps({k: v for k, v in record.items() if k not in CLOCK_FIELDS}).encode()


def _without_commands(data: bytes) -> bytes:
    return json.dumps({k: v for k, v in json.loads(data).items() if k != "commands"}).encode()


def differences(whole: Path, parts: Path) -> list[str]:
    """Return the names of the files that differ between two runs."""
    a, b = comparable_files(whole), comparable_files(parts)
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


class Killer:
    """Runs, kills and resumes a training command until enough kills have occurred."""

    def __init__(self, folder: Path, sampling: str, seed: int, steps: int, device: str) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.different: list[str] = []
        self.folder, self.sampling = folder / sampling, sampling
        self._text, self._steps, self._device = folder / "text.txt", steps, device
        self.folder.mkdir()

    def run(self, kills: int) -> None:
        whole = self.folder / "whole"
        started = time.monotonic()
        subprocess.run(self._command(whole), check=True)
        longest = time.monotonic() - started
        while sum(self.counts[how] for how in ("random time", "inside a save")) < kills:
            parts = self.folder / f"parts-{self.counts['finished runs']}"
            while not self._run_once(parts, longest, kills):
                pass
            self.counts["finished runs"] += 1
            self.different += differences(whole, parts)
            strays = [p.name for p in self.folder.iterdir() if p.name.startswith(".")]
            self.different += strays

    def _command(self, out: Path) -> list[str]:
        return train_command(self._text, out, self.sampling, self._steps, self._device)

    def _run_once(self, parts: Path, longest: float, kills: int) -> bool:
        """Start or resume the run, perhaps kill it, and return whether it finished."""
        command = self._command(parts)
        if (parts / "config.json").is_file():
            command = [*command[:4], "--resume", str(parts), "--quiet"]
        process = subprocess.Popen(command)
        enough = sum(self.counts[how] for how in ("random time", "inside a save")) >= kills
        how = "left alone" if enough else self.random.choice(["random time", "inside a save"])
        self._wait(process, parts, how, longest)
        process.kill()
        code = process.wait()
        if code == 0:
            return True
        if code != -9:
            raise SystemExit(f"training failed with exit status {code}")
        self.counts[how] += 1
        return False

    def _wait(
        self, process: subprocess.Popen[bytes], parts: Path, how: str, longest: float
    ) -> None:
        deadline = time.monotonic() + (
            self.random.uniform(0.0, longest) if how == "random time" else MAX_SECONDS
        )
        saves = self.random.randint(1, 30) if how == "inside a save" else -1
        was_saving = False
        while process.poll() is None and time.monotonic() < deadline:
            is_saving = any(parts.glob("checkpoints/.step-*"))
            saves -= is_saving and not was_saving
            was_saving = is_saving
            if saves == 0:
                # Writing and verifying this checkpoint takes about 10 ms.
                time.sleep(self.random.uniform(0.0, 0.01))
                return
            # A save takes milliseconds, so poll often enough to detect it.
            time.sleep(0.0002 if saves > 0 else 0.01)


def crash(
    kills: int, steps: int, seed: int, folder: Path, device: str = "cpu"
) -> dict[str, dict[str, object]]:
    """Kill each kind of sampling `kills` times, both concurrently, and return the counts."""
    text = folder / "text.txt"
    text.write_bytes(catalogue.locate("english-story").read_bytes()[:12_000])
    kinds = ("sequential", "random")
    killers = [Killer(folder, sampling, seed, steps, device) for sampling in kinds]
    threads = [threading.Thread(target=killer.run, args=(kills,)) for killer in killers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {k.sampling: {**k.counts, "different files": k.different} for k in killers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="total for both kinds of sampling")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        kills = (options.kills + 1) // 2
        found = crash(kills, options.steps, options.seed, Path(folder), options.device)
    for sampling, counts in found.items():
        print(sampling, json.dumps(counts))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(counts["different files"] for counts in found.values()))


if __name__ == "__main__":
    main()
