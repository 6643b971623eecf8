"""Run the parts of scripts/gpu and scripts/machine with time limits, and collect the results.

This module needs only the standard library, because torch may be installed for another interpreter.
A part that fails or exceeds its limit does not stop the others. The output of each part is written
to a file. `results.json` is written again after each part, so that it has the results of all
finished parts if the machine is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, LEFT_OUT = "results.json", "left out"
TAIL, DESCRIBE_LIMIT = 25, 60
DESCRIBE = """
import json, os, platform, torch
found = {"system": platform.platform(), "python": platform.python_version(),
         "torch": torch.__version__, "cpus": os.cpu_count()}
from recurra.runtime.devices import processor_name
found["processor"] = processor_name()
if torch.cuda.is_available():
    about = torch.cuda.get_device_properties(0)
    found |= {"device": "cuda", "name": about.name, "memory": about.total_memory,
              "count": torch.cuda.device_count(), "cuda": torch.version.cuda,
              "hip": torch.version.hip, "cudnn": torch.backends.cudnn.version()}
elif torch.backends.mps.is_available():
    found |= {"device": "mps", "name": "mps", "count": 1}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Part:
    """A command with a time limit.

    Attributes:
        name: the name on the command line, and that of the output file.
        arguments: arguments of the interpreter; the arguments DEVICE and JSON are replaced by the
            device and by the file for the results of the part.
        limit: maximum time in seconds.
        devices: the part needs a GPU of one of these types; without types, it needs no GPU.
        together: whether the part may run at the same time as adjacent parts with this attribute,
            because it measures no times.
    """

    name: str
    arguments: tuple[str, ...]
    limit: float
    devices: tuple[str, ...] = ()
    together: bool = False


class UsageError(Exception):
    """The arguments are wrong; the message is for the user."""


def main(program: str, parts: tuple[Part, ...], arguments: list[str], description: str) -> int:
    """Run the parts that the arguments name, and return the exit status.

    Args:
        program: name of the script.
        parts: all parts, in their order.
        arguments: the directory for the results, and names of parts; without names, all parts run.
        description: the text that `--help` prints.

    Returns:
        0 if all parts passed or were left out, 1 if a part failed, 2 if the arguments are wrong.
    """
    if arguments[:1] in (["--help"], ["-h"]):
        print(description.strip())
        return 0
    try:
        out, chosen = _parse(program, parts, arguments)
        runner = Runner(_interpreter(), out)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return runner.run(chosen)


class Runner:
    """Runs parts and writes their results.

    Args:
        python: the interpreter that has torch.
        out: the directory of the results.
    """

    def __init__(self, python: str, out: Path) -> None:
        self._python, self._out = python, out
        self._environment = dict(os.environ)
        before = os.environ.get("PYTHONPATH")
        self._environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT / "src"), *([before] if before else [])]
        )
        out.mkdir(parents=True, exist_ok=True)
        self._machine = self._describe()
        self._found: dict[str, Any] = {}
        self._started = time.time()

    def run(self, parts: list[Part]) -> int:
        """Run the parts, and return 1 if one failed or exceeded its limit, else 0."""
        self._save()
        for group in _groups(parts):
            with ThreadPoolExecutor(len(group)) as pool:
                for part, found in zip(group, pool.map(self._run_part, group), strict=True):
                    self._found[part.name] = found
                    self._save()
                    self._show(part, found)
        bad = [name for name, found in self._found.items() if found["status"] in _BAD]
        return int(bool(bad))

    def _run_part(self, part: Part) -> dict[str, Any]:
        device = self._machine.get("device")
        if part.devices and device not in part.devices:
            return {"status": LEFT_OUT, "reason": self._reason(part)}
        file = self._out / f"{part.name}.json"
        file.unlink(missing_ok=True)
        values = {"DEVICE": device or "cpu", "JSON": str(file)}
        command = [self._python, *(values.get(a, a) for a in part.arguments)]
        started = time.monotonic()
        status = self._execute(command, self._out / f"{part.name}.txt", part.limit)
        return {
            "status": {None: "stopped", 0: "passed"}.get(status, "failed"),
            "exit status": status,
            "seconds": round(time.monotonic() - started, 2),
            "limit": part.limit,
            "command": command,
            "results": _read_results(file, self._out / f"{part.name}.txt"),
        }

    def _execute(self, command: list[str], output: Path, limit: float) -> int | None:
        """Return the exit status, or None if the command was stopped at its limit."""
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # In a new session, so that the children of the process can be stopped too.
                start_new_session=True,
            )
            try:
                return process.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def _describe(self) -> dict[str, Any]:
        """Return names and versions of the machine; without torch, the reason."""
        try:
            done = subprocess.run(
                [self._python, "-c", DESCRIBE],
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=DESCRIBE_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"{self._python} did not name the devices in {DESCRIBE_LIMIT} s"}
        try:
            machine: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
            return {"error": f"{self._python} cannot import recurra and torch: {lines[-1]}"}
        for name, command in _TOOLS.items():
            machine[name] = _first_line(command)
        return machine

    def _reason(self, part: Part) -> str:
        if "error" in self._machine:
            return str(self._machine["error"])
        if "device" not in self._machine:
            return "torch found no GPU"
        needed = " or ".join(part.devices)
        return f"it needs a device of type {needed}, not {self._machine['device']}"

    def _show(self, part: Part, found: dict[str, Any]) -> None:
        if found["status"] == LEFT_OUT:
            print(f"== {part.name}: left out: {found['reason']}", flush=True)
            return
        print(f"== {part.name}: {found['status']} after {found['seconds']:.0f} s", flush=True)
        text = (self._out / f"{part.name}.txt").read_text("utf-8", "replace")
        print("\n".join(text.splitlines()[-TAIL:]), flush=True)
        if found["status"] == "stopped":
            print(f"{part.name} was stopped after {part.limit:g} s", file=sys.stderr)
        elif found["status"] == "failed":
            print(f"{part.name} failed with exit status {found['exit status']}", file=sys.stderr)

    def _save(self) -> None:
        results = {
            "machine": self._machine,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "seconds": round(time.time() - self._started, 2),
            "parts": self._found,
        }
        file = self._out / RESULTS
        new = file.with_suffix(".new")
        new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        new.replace(file)


_BAD = ("failed", "stopped")
_TOOLS = {
    "commit": ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
    "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
    "rocm driver": ["rocm-smi", "--showdriverversion", "--csv"],
}


def _first_line(command: list[str]) -> str | None:
    """Return the first line that a program prints, or None if it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def _read_results(file: Path, output: Path) -> Any:
    """Return the JSON that a part wrote to its file, or the last line that is a JSON object."""
    lines = output.read_text("utf-8", "replace").splitlines()
    candidates = [file.read_text("utf-8")] if file.is_file() else reversed(lines)
    for text in candidates:
        if text.startswith("{"):
            with suppress(ValueError):  # The part may have been stopped while it wrote the line.
                return json.loads(text)
    return None


def _groups(parts: list[Part]) -> list[list[Part]]:
    """Return the parts in groups that run at the same time."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups and part.together and groups[-1][-1].together:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _parse(program: str, parts: tuple[Part, ...], arguments: list[str]) -> tuple[Path, list[Part]]:
    names = " ".join(part.name for part in parts)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"usage: {program} DIR [PART ...]\nparts: {names}")
    unknown = [name for name in arguments[1:] if name not in names.split()]
    if unknown:
        raise UsageError(f"unknown part {unknown[0]}; the parts are {names}")
    out = Path(arguments[0]).absolute()
    if any(parent.exists() and not parent.is_dir() for parent in (out, *out.parents)):
        raise UsageError(f"{out} is not a directory and cannot be created")
    wanted = arguments[1:] or names.split()
    return out, [part for part in parts if part.name in wanted]


def _interpreter() -> str:
    name = os.environ.get("PYTHON", "python3")
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} was not found; set PYTHON to an interpreter that has torch")
    # The path is not resolved, because the link in a virtual environment selects its packages.
    return str(Path(found).absolute())
