"""Untrusted run files raise one RunError and need little time and memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recurra.config import MAX_LAYERS, MAX_UNITS, MAX_VOCABULARY
from recurra.io.json_files import MAX_JSON_BYTES
from recurra.io.tensors import to_bytes
from security.corruption import (
    CONFIG,
    MEGABYTES,
    MODEL,
    SECONDS,
    VOCABULARY,
    Corruption,
    assert_command_fails,
    assert_load_fails,
    edit,
    grow,
    nested,
    word_vocabulary,
    write,
)


def both(*corruptions: Corruption) -> Corruption:
    return lambda run: [corrupt(run) for corrupt in corruptions]


def repeated(item: str, *, size: int = MAX_JSON_BYTES) -> Callable[[], bytes]:
    """Return JSON of a char vocabulary with as many items as fit into `size` bytes."""
    before, after = '{"kind": "char", "tokens": [', '""]}'
    available = size - len((before + after).encode())
    count = available // len(f"{item},".encode())
    return lambda: (before + f"{item}," * count + after).encode()


def long_string(symbol: str, size: int) -> Callable[[], bytes]:
    count = size // len(symbol.encode())
    return lambda: f'{{"kind": "char", "tokens": "{symbol * count}"}}'.encode()


def many_tensors() -> bytes:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = "{" + ",".join(f'"{number}":{entry}' for number in range(1_000_000)) + "}"
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4_000_000)


SHAPES = "weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0", "head_weight", "head_bias"


def weights(value: float, rows: int = 13) -> Callable[[], bytes]:
    shapes = (2, rows), (2,), (2, 2), (2,), (rows, 2), (rows,)
    tensors = {name: torch.zeros(shape) for name, shape in zip(SHAPES, shapes, strict=True)}
    tensors["head_bias"][-1] = value
    return lambda: to_bytes(tensors, {})


SIZE = ("model", "hidden_size")


CORRUPTIONS: dict[str, tuple[Corruption, str]] = {
    "hidden size 1e9": (edit(CONFIG, *SIZE, value=10**9), "hidden_size must be at most 65,536"),
    "hidden size 1e9 as a float": (edit(CONFIG, *SIZE, value=1e9), "hidden_size is 1000000000.0"),
    "hidden size 10**4000": (edit(CONFIG, *SIZE, value=10**4000), "number '1000.* is too large"),
    "largest sizes with all layers": (
        both(
            edit(CONFIG, *SIZE, value=MAX_UNITS),
            edit(CONFIG, "model", "num_layers", value=MAX_LAYERS),
        ),
        f"{MODEL} does not match its config.json: .* missing",
    ),
    "hidden size larger than the weights": (
        edit(CONFIG, *SIZE, value=MAX_UNITS),
        r"shape of tensor 'bias_hh_l0' is \[2\] instead of \[65536\]",
    ),
    "num_layers 257": (
        edit(CONFIG, "model", "num_layers", value=257),
        "num_layers must be at most",
    ),
    "num_layers -1": (edit(CONFIG, "model", "num_layers", value=-1), "num_layers must be at least"),
    "num_layers true": (edit(CONFIG, "model", "num_layers", value=True), "num_layers is True"),
    "embedding_size 1e9": (
        edit(CONFIG, "model", "embedding_size", value=10**9),
        "embedding_size must",
    ),
    "vocab_size 1e9": (edit(CONFIG, "model", "vocab_size", value=10**9), "vocab_size must be at"),
    "batch_size 1e9": (
        edit(CONFIG, "training", "batch_size", value=10**9),
        "batch_size must be at",
    ),
    "lr 1e999": (
        lambda run: replace(run / CONFIG, b"0.004", b"1e999"),
        f"{CONFIG} is damaged: the number '1e999' is too large",
    ),
    "dropout NaN": (
        lambda run: replace(run / CONFIG, b'"dropout": 0.0', b'"dropout": NaN'),
        f"{CONFIG} is damaged: NaN",
    ),
    "forget_bias 10**400": (edit(CONFIG, "model", "forget_bias", value=10**400), "is too large"),
    "duplicate key in the config": (
        lambda run: replace(run / CONFIG, b'"hidden_size": 2', b'"hidden_size": 2,"hidden_size":2'),
        f"{CONFIG} is damaged: the key 'hidden_size' .*repeated",
    ),
    "duplicate key in the vocabulary": (
        write(VOCABULARY, b'{"kind": "char", "kind": "byte"}'),
        f"{VOCABULARY} is damaged: the key 'kind' .*repeated",
    ),
    "duplicate key after many keys": (
        write(VOCABULARY, lambda: many_keys() + b', "1": 0}'),
        f"{VOCABULARY} is damaged: the key '1' .*repeated",
    ),
    "config nested 10,000 deep": (
        write(CONFIG, nested(10_000)),
        f"{CONFIG} is damaged: .* too deeply",
    ),
    "vocabulary nested 10,000 deep": (
        write(VOCABULARY, nested(10_000)),
        f"{VOCABULARY} .* too deeply",
    ),
    "vocabulary nested 5,000,000 deep": (
        write(VOCABULARY, lambda: nested(5_000_000)),
        f"{VOCABULARY} is too large: its values",
    ),
    "config nested 900 deep": (write(CONFIG, nested(900)), f"{CONFIG} is damaged: .* too deeply"),
    "value nested 900 deep": (
        lambda run: replace(run / CONFIG, b'"char"', b"[" * 900 + b"]" * 900),
        f"{CONFIG} is damaged: it is nested too deeply",
    ),
    "config of 1 GiB": (grow(CONFIG, 1 << 30), f"{CONFIG} is too large"),
    "vocabulary of 1 GiB": (grow(VOCABULARY, 1 << 30), f"{VOCABULARY} is too large"),
    "weights of 1 TiB": (grow(MODEL, 1 << 40), f"{MODEL} is damaged: it has 1,099,"),
    "lists only": (write(VOCABULARY, repeated("[]")), "its values would take"),
    "nested lists only": (
        write(VOCABULARY, repeated("[[[[[[[[]]]]]]]]")),
        "its values would take",
    ),
    "objects only": (write(VOCABULARY, repeated("{}")), "its values would take"),
    "keys only": (write(VOCABULARY, repeated('{"a":1,"b":2}')), "its values would take"),
    "numbers only": (write(VOCABULARY, repeated("1")), "its values would take"),
    "lists below the memory limit": (
        write(VOCABULARY, repeated("[]", size=3_000_000)),
        "must begin with",
    ),
    "objects below the memory limit": (
        write(VOCABULARY, repeated("{}", size=3_000_000)),
        "must begin with",
    ),
    "keys below the memory limit": (
        write(VOCABULARY, lambda: many_keys() + b"}"),
        "field 'kind' is",
    ),
    "long string": (write(VOCABULARY, long_string("x", 16_000_000)), "must be a list of"),
    "long string of wide characters": (
        write(VOCABULARY, long_string("🙂", 5_000_000)),
        "must be a list of",
    ),
    "long string with one wide character": (
        write(VOCABULARY, lambda: long_string("x", 16_000_000)().replace(b"x", "🙂".encode(), 1)),
        "must be a list of",
    ),
    "long string with one wide escape": (
        write(
            VOCABULARY, lambda: long_string("x", 16_000_000)().replace(b"x", b"\\ud83d\\ude42", 1)
        ),
        "must be a list of",
    ),
    "long string of wide escapes": (
        write(VOCABULARY, long_string("\\ud83d\\ude42", 8_000_000)),
        "must be a list of",
    ),
    "long kind": (edit(VOCABULARY, "kind", value="x" * 5_000_000), "field 'kind' is 'xxx"),
    "invalid UTF-8": (write(CONFIG, b'{"format": "\xff"}'), f"{CONFIG} is damaged: .*utf-8"),
    "list in place of an object": (
        write(CONFIG, b"[1, 2]"),
        f"{CONFIG} is damaged: .* JSON object",
    ),
    "empty config": (write(CONFIG, b""), f"{CONFIG} is damaged"),
    "vocabulary of 9 tokens": (
        edit(VOCABULARY, "tokens", value=["<unk>", *"abcdefgh"]),
        f"{VOCABULARY} has 9 tokens, but .*{CONFIG} specifies 13",
    ),
    "vocab_size 14": (
        edit(CONFIG, "model", "vocab_size", value=14),
        f"{VOCABULARY} has 13 tokens, but .*{CONFIG} specifies 14",
    ),
    "weights of 14 rows": (
        write(MODEL, weights(0.0, rows=14)),
        r"\[.*14.*\] instead of \[.*13.*\]",
    ),
    "vocabulary of another kind": (
        both(
            write(VOCABULARY, b'{"kind": "byte"}'), edit(CONFIG, "model", "vocab_size", value=256)
        ),
        f"{VOCABULARY} has byte tokens, but .*{CONFIG} specifies char",
    ),
    "too many words": (
        write(VOCABULARY, word_vocabulary(MAX_VOCABULARY)),
        "'tokens' must be a list of 2 to",
    ),
    "many words with a duplicate": (
        write(VOCABULARY, lambda: word_vocabulary(700_000)()[:-2] + b', " 1"]}'),
        "'tokens' has a duplicate",
    ),
    "lone surrogate": (
        edit(VOCABULARY, "tokens", value=["<unk>", "\ud800"]),
        r"'tokens' has '\\ud800', which is not a char",
    ),
    "NaN weights": (
        write(MODEL, weights(float("nan"))),
        "'head_bias' has values that are not finite",
    ),
    "infinite weights": (
        write(MODEL, weights(float("inf"))),
        "'head_bias' has values that are not fin",
    ),
    "header of 2**63 bytes": (
        write(MODEL, (2**63).to_bytes(8, "little")),
        f"{MODEL} is not a safe",
    ),
    "1,000,000 tensors": (write(MODEL, many_tensors), f"{MODEL} is not a safetensors file"),
    "missing vocabulary": (lambda run: (run / VOCABULARY).unlink(), f"{VOCABULARY} is missing"),
    "missing weights": (lambda run: (run / MODEL).unlink(), f"{MODEL} is missing"),
    "missing config": (lambda run: (run / CONFIG).unlink(), "contains no run"),
    "unknown format": (edit(CONFIG, "format", value=99), f"{CONFIG} has format 99"),
}


def many_keys() -> bytes:
    """Return the start of a JSON object with keys just below the memory limit."""
    return b"{" + b",".join(b'"%d": 0' % number for number in range(600_000))


def replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_load_corrupted_run_raises_one_run_error(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt, message = CORRUPTIONS[name]
    corrupt(run)
    text = assert_load_fails(run, message)
    assert str(run) in text
    assert_command_fails(capsys, ["generate", run], text)


MEASURED = """
import json, os, resource, sys, time
import torch, recurra
from recurra.errors import RecurraError

torch.set_num_threads(1)
recurra.load(sys.argv[1])

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

for folder in sys.argv[2:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    before, started, kind = peak(), time.process_time(), "nothing"
    try:
        recurra.load(folder)
    except BaseException as error:
        kind = type(error).__name__
    print(json.dumps([folder, kind, time.process_time() - started, peak() - before]))
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures by Linux's /proc")
def test_load_corrupted_run_needs_little_memory_and_time(intact_run: Path, tmp_path: Path) -> None:
    folders = []
    for number, (corrupt, _) in enumerate(CORRUPTIONS.values()):
        folders.append(str(shutil.copytree(intact_run, tmp_path / str(number))))
        corrupt(tmp_path / str(number))
    command = [sys.executable, "-c", MEASURED, str(intact_run), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [folder for folder, *_ in figures] == folders
    for name, (_, kind, seconds, megabytes) in zip(CORRUPTIONS, figures, strict=True):
        assert kind == "RunError", name
        assert seconds < SECONDS, name
        assert megabytes < MEGABYTES, name


class Payload:
    """Creates a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "plain", "old", "numpy", "safetensors"])
def test_load_never_unpickles(
    run: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import pickle

    payload = pickle.dumps(Payload(tmp_path / "marker"), protocol=0 if form == "old" else 2)
    model = run / MODEL
    if form == "zip":
        with zipfile.ZipFile(model, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        before = {"numpy": b"\x93NUMPY\x01\0v\0", "safetensors": b"\x40\0\0\0\0\0\0\0"}
        model.write_bytes(before.get(form, b"") + payload + bytes(100))
    text = assert_load_fails(run, "pickle" if form in ("zip", "plain") else MODEL)
    assert_command_fails(capsys, ["generate", run], text)
    assert not (tmp_path / "marker").exists()
    pickle.loads(payload)
    assert (tmp_path / "marker").exists()
