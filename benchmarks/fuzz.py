"""Read damaged versions of every file of a run, and expect a RecurraError or a valid result.

    python benchmarks/fuzz.py --minutes 10

With atheris installed (`pip install atheris`), the search is guided by coverage. Without it, or
with --plain, it is random. Both mutate files by the same rules, which know JSON and the header of a
tensor file. A file that is read is also used: the model generates two tokens, the vocabulary
encodes and decodes a text. Any outcome other than success or a RecurraError with a short message of
one line, within two seconds, is a finding. Its input is written to the directory --keep, and
--replay FILE reads it again. Prints the number of inputs and of occurrences of each error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["recurra"]) if atheris else nullcontext():
    import recurra.api
    from recurra.config import TrainingConfig
    from recurra.data.token_file import load_token_file, load_vocabulary
    from recurra.engine.autograd import AutogradEngine
    from recurra.engine.generators import OPTIONAL
    from recurra.errors import ConfigError, RecurraError, RunError
    from recurra.io.tensors import read_tensor_file
    from recurra.model.recurrent_lm import RecurrentLM, parameter_specs
    from recurra.report.progress import Progress
    from recurra.runs.checkpoint import SESSION, STATE, TRAINING, CheckpointRecord
    from recurra.runs.directory import RunDirectory
    from recurra.text.bpe import BpeVocabulary
    from recurra.text.vocabulary import WordVocabulary

TEXT = "the cat sat on the mat, the dog on the log.\n" * 12
MAX_SECONDS = 2.0
MAX_MESSAGE_LENGTH = 600
MAX_INPUT_BYTES = 1 << 16
ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**63, 2**64, 10**30, 0.0, -0.5, 1.5,
    1e308, "", "a", "<unk>", "\0", "\ud800", "🙂", "x" * 3000, "char", "word", "byte", "bpe",
    "F32", "F16", "I64", "lstm", "gru", "none", "object", "uint8", "uint32", "../..", "/dev/zero",
    [], {}, [[]], [0], [1, 2], [2.0, True], {"a": 1}, [[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]],
]  # fmt: skip
ODD_TOKENS = [
    b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"[" * 3000, b'{"a":' * 1200, b"\\ud800", b"\xff",
    b"\xf0\x9f\x99\x82", b"PK\x03\x04", b"\x80\x02", b"\0" * 8, b"\xff" * 8, b"null", b"{}", b",",
    b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff",
]  # fmt: skip


class Target(NamedTuple):
    """A file of the run, its valid contents, and the function that reads it."""

    file: Path
    valid: bytes
    read: Callable[[], object]


def make_targets(folder: Path) -> dict[str, Target]:
    """Train a small run in a directory and return its files with their readers."""
    run, others = folder / "run", folder / "others"
    (folder / "text.txt").write_text(TEXT)
    options: dict[str, Any] = {"cell": "gru", "hidden_size": 3, "embedding_size": 2, "steps": 2}
    options |= {"batch_size": 2, "num_steps": 4, "sample_length": 4, "device": "cpu", "threads": 1}
    lm = recurra.train(folder / "text.txt", out=run, progress=Progress(), **options)
    checkpoint = min((run / "checkpoints").iterdir())
    readers: list[tuple[str, Path, Callable[[], object]]] = [
        ("config", run / "config.json", lambda: use_model(run)),
        ("vocabulary", run / "vocabulary.json", lambda: use_model(run)),
        ("weights", run / "model.safetensors", lambda: use_model(run)),
        ("tensors", run / "model.safetensors", lambda: read_tensor_file(
            run / "model.safetensors", parameter_specs(lm.config.model))),
        ("text record", run / "tokens.json", lambda: use_text(run)),
        ("text", run / "tokens.bin", lambda: use_text(run)),
        ("metrics", run / "metrics.jsonl", lambda: RunDirectory(run).best_metrics()),
        ("counters", checkpoint / TRAINING, lambda: CheckpointRecord.read(checkpoint)),
        ("clock", checkpoint / SESSION, lambda: CheckpointRecord.read(checkpoint)),
        ("state", checkpoint / STATE, lambda: use_state(lm.model, checkpoint / STATE)),
    ]  # fmt: skip
    for kind, vocabulary in (
        ("bpe", BpeVocabulary.train([TEXT], vocab_size=262)),
        ("word", WordVocabulary.from_text(TEXT)),
    ):
        place = others / kind
        place.mkdir(parents=True)
        (place / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
        readers.append((kind, place / "vocabulary.json", lambda place=place: use_words(place)))  # type: ignore[misc]
    return {name: Target(file, file.read_bytes(), read) for name, file, read in readers}


def use_model(run: Path) -> None:
    recurra.load(run).generate(max_new_tokens=2, seed=1)


def use_state(model: RecurrentLM, file: Path) -> None:
    engine = AutogradEngine(model, TrainingConfig())
    tensors, _ = read_tensor_file(file, engine.state_specs(2), optional=OPTIONAL)
    try:
        engine.load_state_dict(tensors, 1)
    except ConfigError as error:
        raise RunError(f"{file} is damaged: {error}") from error


def use_text(run: Path) -> None:
    tokens = load_token_file(run)
    tokens.check_ids(20)
    tokens.verify()


def use_words(folder: Path) -> None:
    vocabulary = load_vocabulary(folder)
    ids = vocabulary.encode("the cat 猫", "replace")
    vocabulary.decode(ids)
    assert len(vocabulary.label(int(ids[-1]))) > 0


class Report:
    """Counts of inputs, errors and findings."""

    def __init__(self, targets: dict[str, Target], keep: Path, seconds: float) -> None:
        self.targets, self.names, self.keep = targets, list(targets), keep
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.inputs: Counter[str] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.findings: Counter[str] = Counter()

    def feed(self, data: bytes) -> bool:
        """Read an input, whose first byte selects the target; return whether the outcome is new."""
        name = self.names[data[0] % len(self.names)] if data else self.names[0]
        target = self.targets[name]
        target.file.write_bytes(data[1:])
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            target.read()
        except KeyboardInterrupt:
            raise
        # Panics of a library written in Rust do not derive from Exception.
        except BaseException as caught:
            error = caught
        self.inputs[name] += 1
        problem = describe_problem(error, time.perf_counter() - started)
        target.file.write_bytes(target.valid)
        if problem:
            self._record_finding(f"{name}: {problem}", data, error)
        kind = (name, shape_of(error))
        self.errors[kind] += 1
        return self.errors[kind] == 1

    def _record_finding(self, what: str, data: bytes, error: BaseException | None) -> None:
        self.findings[what] += 1
        if self.findings[what] == 1:
            self.keep.mkdir(parents=True, exist_ok=True)
            place = self.keep / hashlib.sha256(data).hexdigest()[:16]
            place.write_bytes(data)
            print(f"FINDING {what}, kept in {place}")
            if error is not None:
                traceback.print_exception(error, file=sys.stdout)

    def show(self) -> None:
        seconds = time.monotonic() - self.started
        total = self.inputs.total()
        print(f"\n{total:,} inputs in {seconds:.0f} s, {total / seconds:.0f} a second")
        for name in self.names:
            kinds = [(n, text) for (where, text), n in self.errors.items() if where == name]
            print(f"\n{name}: {self.inputs[name]:,} inputs, {len(kinds)} kinds of outcome")
            for count, text in sorted(kinds, reverse=True)[:12]:
                print(f"  {count:9,}  {text[:110]}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\n{len(self.errors)} kinds of outcome in all; peak of memory {peak:.0f} MB")
        print(f"{len(self.findings)} kinds of finding, {self.findings.total()} in all")
        for what, count in self.findings.most_common():
            print(f"  {count:6,}  {what}")
        sys.stdout.flush()


def describe_problem(error: BaseException | None, seconds: float) -> str:
    """Describe what is wrong with an outcome; return an empty string for a valid one."""
    if error is not None and not isinstance(error, RecurraError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
    if "\n" in str(error):
        return f"{type(error).__name__} of several lines"
    if len(str(error)) > MAX_MESSAGE_LENGTH:
        return f"{type(error).__name__} of more than {MAX_MESSAGE_LENGTH} characters"
    return f"slow: {type(error).__name__}" if seconds > MAX_SECONDS else ""


def shape_of(error: BaseException | None) -> str:
    """Return the text of an error without paths, names and numbers."""
    text = re.sub(r"/\S*/", "", str(error))
    text = re.sub(r"0x[0-9a-f]{2}|[0-9a-f]{64}", "#", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    text = re.sub(r"\[.*\]|\(.*\)|\{.*\}", "[…]", text)
    return f"{type(error).__name__}: {re.sub(r'-?[0-9][0-9.,e+]*', '#', text)}"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the data with one to four mutations of its structure or its bytes."""
    ways: list[Callable[[bytes, random.Random], bytes]]
    ways = rng.choice(([change_structure], [change_structure, change_text], [change_bytes]))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(ways)(data, rng)
    return data[:MAX_INPUT_BYTES]


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:position]
    if kind == 1:
        return data[:position] + rng.choice(ODD_TOKENS) + data[position:]
    if kind == 2:
        return data[:position] + data[position + rng.randrange(1, 9) :]
    if kind == 3:
        odd = rng.choice(ODD_TOKENS)
        return data[:position] + odd + data[position + len(odd) :]
    flipped = bytearray(data or b"\0")
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Replace a random word of the data by another of its words or by an odd value."""
    words = list(re.finditer(rb'"[^"]*"|-?[0-9][0-9.e]*|true|false|null', data))
    if not words:
        return change_bytes(data, rng)
    old, new = rng.choice(words), rng.choice(words)[0]
    if rng.random() < 0.3:
        new = json.dumps(rng.choice(ODD_VALUES)).encode()
    return data[: old.start()] + new + data[old.end() :]


def change_structure(data: bytes, rng: random.Random) -> bytes:
    return change_json(data, rng) if data.startswith(b"{") else change_header(data, rng)


def change_json(data: bytes, rng: random.Random) -> bytes:
    try:
        record = json.loads(data)
        change_value(record, rng)
        return json.dumps(record).encode()
    except (ValueError, RecursionError):
        return change_text(data, rng)


def change_value(record: Any, rng: random.Random) -> None:
    """Change one random value of a record."""
    keys: list[Any] = list(record) if isinstance(record, dict) else []
    if isinstance(record, list):
        keys = list(range(len(record)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(record[key], (dict, list)) and record[key] and rng.random() < 0.8:
        change_value(record[key], rng)
        return
    kind = rng.randrange(4)
    if kind == 0:
        del record[key]
    elif kind == 1 and isinstance(record[key], int):
        record[key] += rng.choice((-1, 1, 1000))
    elif kind == 2:
        record[key] = record[rng.choice(keys)]
    else:
        record[key] = rng.choice(ODD_VALUES)


def change_header(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a tensor file; its length stays consistent in most cases."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        return change_bytes(data, rng)
    header, body = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.2:
        return data[: 8 + length] + change_bytes(body, rng)
    header = change_json(header, rng)
    if rng.random() < 0.9:
        length = len(header)
    return length.to_bytes(8, "little") + header + body


def fuzz_randomly(report: Report, seeds: list[bytes], seed: int) -> None:
    """Mutate inputs at random, and mutate inputs with a new outcome further."""
    rng = random.Random(seed)
    corpus = list(seeds)
    while time.monotonic() < report.deadline:
        parent = rng.choice(corpus)
        data = parent[:1] + mutated(parent[1:], rng)
        if report.feed(data):
            corpus.append(data)


def fuzz_guided(report: Report, seeds: list[bytes], seed: int, folder: Path) -> None:
    """Run atheris, guided by coverage; does not return."""
    corpus = folder / "corpus"
    corpus.mkdir()
    report.keep.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)

    def feed(data: bytes) -> None:
        if data:
            report.feed(data)
        if time.monotonic() > report.deadline:
            report.show()
            shutil.rmtree(folder, ignore_errors=True)
            # libFuzzer, on which atheris is based, does not return.
            os._exit(1 if report.findings else 0)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        if rng.random() < 0.4:
            # atheris prefers the shortest inputs, so choose any file from time to time.
            data = rng.choice(seeds)
        return (data[:1] + mutated(data[1:], rng))[:max_size]

    options = [f"-seed={seed}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=4096", "-timeout=60"]
    options += ["-verbosity=0", "-reload=0", f"-artifact_prefix={report.keep}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], feed, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="do not use atheris")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="read one kept input")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        targets = make_targets(folder)
        report = Report(targets, arguments.keep, 60 * arguments.minutes)
        if arguments.replay:
            report.feed(arguments.replay.read_bytes())
            report.show()
            return 1 if report.findings else 0
        seeds = [bytes([n]) + target.valid for n, target in enumerate(targets.values())]
        for data in seeds:
            report.feed(data)
        if atheris and not arguments.plain:
            fuzz_guided(report, seeds, arguments.seed, folder)
        fuzz_randomly(report, seeds, arguments.seed)
        report.show()
        return 1 if report.findings else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
