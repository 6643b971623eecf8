"""Measure the private memory of training on a large text, without mapped files.

    python benchmarks/large_file.py [--gigabytes 2] [--folder DIR]

Repeats the bundled story up to the requested size and trains a small model on it for 20 updates
with each kind of sampling. Prints the peak anonymous resident memory (RssAnon) of each run, and
that of a process that only imports the library. Requires Linux, and disk space for twice the text.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recurra.text import catalogue

POLL_SECONDS = 0.05
"""Short enough to detect a peak, long enough not to disturb the measurement."""


def write_text(file: Path, num_bytes: int) -> None:
    story = catalogue.locate("english-story").read_bytes()
    with file.open("wb") as stream:
        for _ in range(num_bytes // len(story) + 1):
            stream.write(story)


def peak_megabytes(command: list[str]) -> tuple[float, float]:
    """Run a command and return its peak RssAnon in MB and its duration in seconds."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+)", status)
        peak = max(peak, int(found[1]) if found else 0)
        # The kernel records no peak of RssAnon, so the current value is sampled until the end.
        time.sleep(POLL_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return peak / 1024, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        text = folder / "large.txt"
        write_text(text, int(options.gigabytes * 1e9))
        alone, _ = peak_megabytes([sys.executable, "-c", "import recurra.api"])
        print(f"importing the library: {alone:.0f} MB")
        for sampling in ("sequential", "random"):
            train = [
                sys.executable,
                "-m",
                "recurra",
                "train",
                str(text),
                "--quiet",
                "--steps",
                "20",
            ]
            out = ["--out", str(folder / sampling), "--sampling", sampling, "--hidden-size", "64"]
            megabytes, seconds = peak_megabytes([*train, *out])
            print(f"{sampling}: {megabytes:.0f} MB, {seconds:.0f} s")
            shutil.rmtree(folder / sampling)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
