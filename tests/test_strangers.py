"""Runs from strangers: whatever their files say, one typed error, soon, and in little memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import recurra
from recurra.cli.main import main
from recurra.config import MAX_LAYERS, MAX_UNITS, MAX_VOCABULARY
from recurra.errors import ConfigError, RecurraError, RunError, SourceError
from recurra.files import MAX_JSON_BYTES, MAX_LINES_BYTES
from recurra.tensor_file import to_bytes
from recurra.text.token_file import build_token_file, load_token_file
from recurra.text.vocabulary import CharVocabulary, Vocabulary, WordVocabulary
from recurra.training.progress import Progress

TEXT = "the cat sat on the mat.\n" * 20
SIZES = {"cell": "rnn", "hidden_size": 2, "embedding_size": 0, "batch_size": 2, "num_steps": 4}
SECONDS, MEGABYTES = 2.0, 200.0
CONFIG, VOCABULARY, MODEL = "config.json", "vocabulary.json", "model.safetensors"
Attack = Callable[[Path], object]


@pytest.fixture(scope="session")
def honest_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    (folder / "text.txt").write_text(TEXT)
    options: dict[str, Any] = {**SIZES, "steps": 2, "sample_length": 4, "device": "cpu"}
    recurra.train(folder / "text.txt", out=folder / "run", progress=Progress(), **options)
    return folder / "run"


@pytest.fixture
def run(honest_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(honest_run, tmp_path / "run")


def edit(name: str, *path: str, value: Any) -> Attack:
    """Set one field of a JSON file."""

    def attack(run: Path) -> None:
        record = json.loads((run / name).read_text("utf-8"))
        place = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (run / name).write_text(json.dumps(record), "utf-8")

    return attack


def write(name: str, data: bytes | Callable[[], bytes]) -> Attack:
    return lambda run: (run / name).write_bytes(data if isinstance(data, bytes) else data())


def grow(name: str, size: int) -> Attack:
    """Make a file huge that takes no place on the disk."""
    return lambda run: os.truncate(run / name, size)


def both(*attacks: Attack) -> Attack:
    return lambda run: [attack(run) for attack in attacks]


def deep(levels: int) -> bytes:
    return b'{"text": ' + b"[" * levels + b"]" * levels + b"}"


def repeated(item: str, *, size: int = MAX_JSON_BYTES) -> Callable[[], bytes]:
    """A list of as many items as fit."""
    before, after = '{"kind": "char", "tokens": [', '""]}'
    room = size - len((before + after).encode())
    count = room // len(f"{item},".encode())
    return lambda: (before + f"{item}," * count + after).encode()


def long_string(symbol: str, size: int) -> Callable[[], bytes]:
    count = size // len(symbol.encode())
    return lambda: f'{{"kind": "char", "tokens": "{symbol * count}"}}'.encode()


def many_tensors() -> bytes:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = "{" + ",".join(f'"{number}":{entry}' for number in range(1_000_000)) + "}"
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4_000_000)


def words(count: int) -> Callable[[], bytes]:
    tokens = ["<unk>", *(f" {number:x}" for number in range(count))]
    return lambda: json.dumps({"kind": "word", "tokens": tokens}).encode()


SHAPES = "weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0", "head_weight", "head_bias"


def weights(value: float, rows: int = 13) -> Callable[[], bytes]:
    shapes = (2, rows), (2,), (2, 2), (2,), (rows, 2), (rows,)
    tensors = {name: torch.zeros(shape) for name, shape in zip(SHAPES, shapes, strict=True)}
    tensors["head_bias"][-1] = value
    return lambda: to_bytes(tensors, {})


SIZE = ("model", "hidden_size")
ATTACKS: dict[str, tuple[Attack, str]] = {
    "hidden size 1e9": (edit(CONFIG, *SIZE, value=10**9), "hidden_size must be at most 65,536"),
    "hidden size 1e9 as a float": (edit(CONFIG, *SIZE, value=1e9), "hidden_size is 1000000000.0"),
    "hidden size 10**4000": (edit(CONFIG, *SIZE, value=10**4000), "number '1000.* is too large"),
    "the largest model of all": (
        both(
            edit(CONFIG, *SIZE, value=MAX_UNITS),
            edit(CONFIG, "model", "num_layers", value=MAX_LAYERS),
        ),
        f"{MODEL} does not fit its config.json: .* missing",
    ),
    "a larger model than its file": (
        edit(CONFIG, *SIZE, value=MAX_UNITS),
        r"shape of tensor 'bias_hh_l0' is \[2\], and should be \[65536\]",
    ),
    "257 layers": (edit(CONFIG, "model", "num_layers", value=257), "num_layers must be at most"),
    "layers of -1": (edit(CONFIG, "model", "num_layers", value=-1), "num_layers must be at least"),
    "layers of true": (edit(CONFIG, "model", "num_layers", value=True), "num_layers is True"),
    "embedding 1e9": (edit(CONFIG, "model", "embedding_size", value=10**9), "embedding_size must"),
    "vocabulary 1e9": (edit(CONFIG, "model", "vocab_size", value=10**9), "vocab_size must be at"),
    "batch 1e9": (edit(CONFIG, "training", "batch_size", value=10**9), "batch_size must be at"),
    "lr of 1e999": (
        lambda run: replace(run / CONFIG, b"0.004", b"1e999"),
        f"{CONFIG} is damaged: the number '1e999' is too large",
    ),
    "dropout of NaN": (
        lambda run: replace(run / CONFIG, b'"dropout": 0.0', b'"dropout": NaN'),
        f"{CONFIG} is damaged: NaN",
    ),
    "forget bias": (edit(CONFIG, "model", "forget_bias", value=10**400), "is too large"),
    "a key twice in the config": (
        lambda run: replace(run / CONFIG, b'"hidden_size": 2', b'"hidden_size": 2,"hidden_size":2'),
        f"{CONFIG} is damaged: the key 'hidden_size' stands twice",
    ),
    "a key twice in the vocabulary": (
        write(VOCABULARY, b'{"kind": "char", "kind": "byte"}'),
        f"{VOCABULARY} is damaged: the key 'kind' stands twice",
    ),
    "the last of many keys twice": (
        write(VOCABULARY, lambda: many_keys() + b', "1": 0}'),
        f"{VOCABULARY} is damaged: the key '1' stands twice",
    ),
    "a config 10,000 deep": (write(CONFIG, deep(10_000)), f"{CONFIG} is damaged: .* too deeply"),
    "a vocabulary 10,000 deep": (write(VOCABULARY, deep(10_000)), f"{VOCABULARY} .* too deeply"),
    "a vocabulary 5 million deep": (
        write(VOCABULARY, lambda: deep(5_000_000)),
        f"{VOCABULARY} is too large: its values",
    ),
    "a config 900 deep": (write(CONFIG, deep(900)), f"{CONFIG} is damaged: .* too deeply"),
    "a value that is deep": (
        lambda run: replace(run / CONFIG, b'"char"', b"[" * 900 + b"]" * 900),
        f"{CONFIG} is damaged: it is nested too deeply",
    ),
    "a gigabyte of config": (grow(CONFIG, 1 << 30), f"{CONFIG} is too large"),
    "a gigabyte of vocabulary": (grow(VOCABULARY, 1 << 30), f"{VOCABULARY} is too large"),
    "a terabyte of weights": (grow(MODEL, 1 << 40), f"{MODEL} is damaged: it has 1,099,"),
    "nothing but lists": (write(VOCABULARY, repeated("[]")), "its values would take"),
    "nothing but nested lists": (
        write(VOCABULARY, repeated("[[[[[[[[]]]]]]]]")),
        "its values would take",
    ),
    "nothing but objects": (write(VOCABULARY, repeated("{}")), "its values would take"),
    "nothing but keys": (write(VOCABULARY, repeated('{"a":1,"b":2}')), "its values would take"),
    "nothing but numbers": (write(VOCABULARY, repeated("1")), "its values would take"),
    "as many lists as may be": (
        write(VOCABULARY, repeated("[]", size=3_000_000)),
        "must begin with",
    ),
    "as many objects as may be": (
        write(VOCABULARY, repeated("{}", size=3_000_000)),
        "must begin with",
    ),
    "as many keys as may be": (write(VOCABULARY, lambda: many_keys() + b"}"), "field 'kind' is"),
    "one long string": (write(VOCABULARY, long_string("x", 16_000_000)), "must be a list of"),
    "one long wide string": (write(VOCABULARY, long_string("🙂", 5_000_000)), "must be a list of"),
    "a string that one character makes wide": (
        write(VOCABULARY, lambda: long_string("x", 16_000_000)().replace(b"x", "🙂".encode(), 1)),
        "must be a list of",
    ),
    "the same by an escape": (
        write(
            VOCABULARY, lambda: long_string("x", 16_000_000)().replace(b"x", b"\\ud83d\\ude42", 1)
        ),
        "must be a list of",
    ),
    "a long escaped string": (
        write(VOCABULARY, long_string("\\ud83d\\ude42", 8_000_000)),
        "must be a list of",
    ),
    "a long kind": (edit(VOCABULARY, "kind", value="x" * 5_000_000), "field 'kind' is 'xxx"),
    "not UTF-8": (write(CONFIG, b'{"format": "\xff"}'), f"{CONFIG} is damaged: .*utf-8"),
    "not an object": (write(CONFIG, b"[1, 2]"), f"{CONFIG} is damaged: it should hold one JSON"),
    "nothing": (write(CONFIG, b""), f"{CONFIG} is damaged"),
    "another row": (
        edit(VOCABULARY, "tokens", value=["<unk>", *"abcdefgh"]),
        f"{VOCABULARY} has 9 tokens, but .*{CONFIG} says 13",
    ),
    "other rows": (
        edit(CONFIG, "model", "vocab_size", value=14),
        f"{VOCABULARY} has 13 tokens, but .*{CONFIG} says 14",
    ),
    "rows of weights": (
        write(MODEL, weights(0.0, rows=14)),
        r"\[.*14.*\], and should be \[.*13.*\]",
    ),
    "another kind": (
        both(
            write(VOCABULARY, b'{"kind": "byte"}'), edit(CONFIG, "model", "vocab_size", value=256)
        ),
        f"{VOCABULARY} has byte tokens, but .*{CONFIG} says char",
    ),
    "too many words": (write(VOCABULARY, words(MAX_VOCABULARY)), "'tokens' must be a list of 2 to"),
    "many words, one of them twice": (
        write(VOCABULARY, lambda: words(700_000)()[:-2] + b', " 1"]}'),
        "'tokens' has one of its tokens twice",
    ),
    "half a character": (
        edit(VOCABULARY, "tokens", value=["<unk>", "\ud800"]),
        r"'tokens' has '\\ud800', which is no char",
    ),
    "NaN": (write(MODEL, weights(float("nan"))), "'head_bias' has numbers that are not finite"),
    "infinity": (write(MODEL, weights(float("inf"))), "'head_bias' has numbers that are not fin"),
    "a header of 2**63 bytes": (write(MODEL, (2**63).to_bytes(8, "little")), f"{MODEL} is no safe"),
    "a million tensors": (write(MODEL, many_tensors), f"{MODEL} is no safetensors file"),
    "a missing vocabulary": (lambda run: (run / VOCABULARY).unlink(), f"{VOCABULARY} is missing"),
    "missing weights": (lambda run: (run / MODEL).unlink(), f"{MODEL} is missing"),
    "a missing config": (lambda run: (run / CONFIG).unlink(), "holds no run"),
    "another format": (edit(CONFIG, "format", value=99), f"{CONFIG}: format 99"),
}


def many_keys() -> bytes:
    """As many keys of one object as are let through."""
    return b"{" + b",".join(b'"%d": 0' % number for number in range(600_000))


def replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))


def refused(run: Path, message: str) -> str:
    started = time.process_time()
    with pytest.raises(RunError, match=message) as caught:
        recurra.load(run)
    assert time.process_time() - started < SECONDS
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str | Path], *words: str) -> None:
    """The command leaves with 1 and one line on stderr that has these words."""
    assert main(list(map(str, arguments))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recurra: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_one_error(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    attack, message = ATTACKS[name]
    attack(run)
    text = refused(run, message)
    assert str(run) in text
    fails(capsys, ["generate", run], text)


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures by Linux's /proc")
def test_no_attack_takes_memory_or_time(honest_run: Path, tmp_path: Path) -> None:
    folders = []
    for number, (attack, _) in enumerate(ATTACKS.values()):
        folders.append(str(shutil.copytree(honest_run, tmp_path / str(number))))
        attack(tmp_path / str(number))
    command = [sys.executable, "-c", MEASURED, str(honest_run), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [folder for folder, *_ in figures] == folders
    for name, (_, kind, seconds, megabytes) in zip(ATTACKS, figures, strict=True):
        assert kind == "RunError", name
        assert seconds < SECONDS, name
        assert megabytes < MEGABYTES, name


# What the folder would run if anything in it were read as a pickle.
class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "plain", "old", "numpy", "safetensors"])
def test_no_pickle_is_read(
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
    text = refused(run, "looks like a pickle" if form in ("zip", "plain") else MODEL)
    fails(capsys, ["generate", run], text)
    assert not (tmp_path / "marker").exists()
    pickle.loads(payload)
    assert (tmp_path / "marker").exists()


FILES = [CONFIG, VOCABULARY, MODEL]


def become(kind: str, file: Path) -> None:
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "socket":
        import socket

        with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    else:
        file.symlink_to({"device": "/dev/zero", "terminal": "/dev/tty", "loop": file.name}[kind])


KINDS = ["fifo", "folder", "socket", "device", "terminal", "loop"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_not_waited_for(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    become(kind, run / name)
    text = refused(run, str(run))
    fails(capsys, ["generate", run], text)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokens.json", "tokens.bin"])
def test_the_text_is_no_file(
    run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    become(kind, run / name)
    fails(capsys, ["eval", run], name)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
def test_refusing_what_is_no_file_leaves_nothing_open(run: Path) -> None:
    become("folder", run / MODEL)
    refused(run, MODEL)
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        refused(run, "is no regular file")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read(run: Path, name: str) -> None:
    (run / name).chmod(0)
    refused(run, f"cannot read .*{name}")


TOKEN_ATTACKS: dict[str, tuple[Attack, str]] = {
    "objects": (edit("tokens.json", "dtype", value="object"), "dtype is 'object'"),
    "signed": (edit("tokens.json", "dtype", value="int8"), "dtype is 'int8'"),
    "no dtype": (edit("tokens.json", "dtype", value=None), "dtype is None"),
    "negative": (edit("tokens.json", "num_tokens", value=-1), "num_tokens is -1"),
    "a float": (edit("tokens.json", "num_tokens", value=480.0), "num_tokens is 480.0"),
    "a text": (edit("tokens.json", "num_tokens", value="480"), "num_tokens is '480'"),
    "2**63": (edit("tokens.json", "num_tokens", value=2**63), "num_tokens is 9223"),
    "more": (edit("tokens.json", "num_tokens", value=481), "has 480 bytes instead of 481"),
    "2**40": (edit("tokens.json", "num_tokens", value=2**40), "has 480 bytes instead of 1099"),
    "more training": (edit("tokens.json", "num_train", value=481), "num_train is 481"),
    "more characters": (edit("tokens.json", "val_chars", value=481), "val_chars is 481"),
    "more characters than bytes": (edit("tokens.json", "num_chars", value=481), "num_chars is 481"),
    "more bytes": (edit("tokens.json", "val_bytes", value=481), "val_bytes is 481"),
    "sources": (edit("tokens.json", "sources", value=[1]), r"sources is \[1\]"),
    "digest": (edit("tokens.json", "sha256", value="00"), "sha256 is '00'"),
    "size": (edit("tokens.json", "source_bytes", value="1"), "source_bytes is '1'"),
    "complete": (edit("tokens.json", "source_complete", value=3), "source_complete is 3"),
    "other ids": (lambda run: (run / "tokens.bin").write_bytes(b"\xff" * 480), "has the id 255"),
    "a cut": (lambda run: os.truncate(run / "tokens.bin", 479), "has 479 bytes instead of 480"),
    "deep": (write("tokens.json", deep(100_000)), "is damaged: it is nested too deeply"),
    "a key twice": (write("tokens.json", b'{"version": 1, "version": 1}'), "stands twice"),
    "a gigabyte": (grow("tokens.json", 1 << 30), "is too large"),
}


@pytest.mark.parametrize("name", TOKEN_ATTACKS)
def test_an_attack_on_the_text_is_one_error(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attack, message = TOKEN_ATTACKS[name]
    attack(run)
    started = time.process_time()
    with pytest.raises(RunError, match=rf"tokens\.(json|bin) .*{message}") as caught:
        recurra.load(run).validate()
    assert time.process_time() - started < SECONDS
    fails(capsys, ["eval", run], str(caught.value))


def test_other_ids_are_noticed_by_their_digest(run: Path) -> None:
    tokens = load_token_file(run)
    tokens.verify()
    data = bytearray((run / "tokens.bin").read_bytes())
    data[100] ^= 1
    (run / "tokens.bin").write_bytes(data)
    with pytest.raises(RunError, match=r"tokens\.bin has changed"):
        tokens.verify()


LINE = {"step": 1, "seconds": 1, "train_nats": 1, "tokens_per_second": 1, "val_nats": 1,
        "bits_per_char": 1, "perplexity": 1}  # fmt: skip
LINES: dict[str, tuple[bytes, str]] = {
    "a key twice": (b'{"step": 1, "step": 2}\n', "the key 'step' stands twice .*line 1"),
    "deep": (b'{"step": ' + b"[" * 9999 + b"]" * 9999 + b"}\n", "too deeply"),
    "a list": (b"[]\n", "one JSON object"),
    "no step": (b"{}\n", "line 1 is damaged: it is no report"),
    "a field": (b'{"step": 1}\n', "seconds is"),
    "NaN": (b'{"step": NaN}\n', "NaN is no number"),
    "not UTF-8": (b"\xff\n", "is damaged"),
    "a long line": (b" " * 5_000_000 + b"\n", "line 1 is too long"),
    "many lines": (
        json.dumps(LINE).encode() + b"\n" + (b'{"step": 1}' + b" " * 900_000 + b"\n") * 80,
        "is too large|is damaged",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_an_attack_on_the_metrics_is_one_error(run: Path, name: str) -> None:
    from recurra.training.run_folder import RunFolder

    data, message = LINES[name]
    (run / "metrics.jsonl").write_bytes(data)
    with pytest.raises(RunError, match=rf"metrics\.jsonl.*{message}"):
        RunFolder(run).read_metrics()


def test_endless_metrics_are_not_read_to_their_end(run: Path) -> None:
    from recurra.files import read_lines

    line = json.dumps({"step": 1, "x": "x" * 1_000_000}).encode() + b"\n"
    with (run / "metrics.jsonl").open("wb") as file:
        for _ in range(MAX_LINES_BYTES // len(line) + 1):
            file.write(line)
    with pytest.raises(RunError, match="is too large"):
        for _ in read_lines(run / "metrics.jsonl"):
            pass


@pytest.mark.parametrize("name", [CONFIG, VOCABULARY, "tokens.json"])
def test_every_truncation_and_many_flips_of_a_json_file(run: Path, name: str) -> None:
    """Either a typed error, or a file that says something else and still is one."""
    file = run / name
    whole = file.read_bytes()
    for position in range(len(whole)):
        for damaged in (whole[:position], *flipped(whole, position)):
            file.write_bytes(damaged)
            with contextlib.suppress(RecurraError):
                read_again(run, name)
                assert len(damaged) >= len(whole) - 1


def flipped(whole: bytes, position: int) -> Iterator[bytes]:
    for mask in (0x01, 0x02, 0x80):
        damaged = bytearray(whole)
        damaged[position] ^= mask
        yield bytes(damaged)


def read_again(run: Path, name: str) -> None:
    from recurra.text.token_file import load_vocabulary
    from recurra.training.run_folder import RunFolder

    if name == CONFIG:
        RunFolder(run).read_config()
    elif name == VOCABULARY:
        load_vocabulary(run)
    else:
        load_token_file(run).check_ids(13)


def test_every_truncation_and_every_flip_of_the_weights(run: Path) -> None:
    from recurra.config import RunConfig
    from recurra.training.weights import load_model

    file = run / MODEL
    config = RunConfig.from_dict(
        {k: v for k, v in json.loads((run / CONFIG).read_text()).items() if isinstance(v, dict)}
    ).model
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position])
        with pytest.raises(RunError, match=MODEL):
            load_model(file, config)
        for damaged in flipped(whole, position):
            file.write_bytes(damaged)
            with contextlib.suppress(RunError):
                model = load_model(file, config)
                assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_text_of_too_many_words_says_what_to_do(tmp_path: Path) -> None:
    from collections import Counter

    counts = Counter({f" {number:x}": 1 for number in range(MAX_VOCABULARY)})
    with pytest.raises(
        SourceError, match=r"1,048,576 different tokens.*--vocab-size or --min-freq"
    ):
        WordVocabulary.from_counts(counts)
    assert len(WordVocabulary.from_counts(counts, vocab_size=100)) == 100


def test_a_vocabulary_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recurra import files
    from recurra.config import TextConfig

    monkeypatch.setattr(files, "MAX_JSON_MEMORY", 1000)
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(SourceError, match=r"too large to be saved: 13 tokens.*--min-freq"):
        build_token_file([tmp_path / "text.txt"], TextConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_the_largest_size_comes_back(tmp_path: Path) -> None:
    from recurra.files import write_json
    from recurra.text.token_file import load_vocabulary

    words = WordVocabulary(f" {number:x}" for number in range(700_000))
    write_json(tmp_path / VOCABULARY, words.to_dict())
    assert len(load_vocabulary(tmp_path)) == len(words)
    characters = CharVocabulary(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    write_json(tmp_path / VOCABULARY, characters.to_dict())
    assert load_vocabulary(tmp_path) == characters


@pytest.mark.parametrize("name", ["batch_size", "num_steps", "sample_length"])
def test_sizes_have_limits(name: str) -> None:
    from recurra.config import RunConfig

    with pytest.raises(ConfigError, match=f"{name} must be at most 16,777,216"):
        RunConfig.from_options(**{name: 2**24 + 1})


def test_no_source_file_reads_pickles() -> None:
    forbidden = re.compile(
        r"^\s*(?:import|from) (?:pickle|shelve|marshal|dill|joblib)\b|torch\.load\b|np\.load\b"
        r"|numpy\.load\b|broadcast_object_list|all_gather_object|allow_pickle",
        re.MULTILINE,
    )
    files = list(Path(recurra.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        found = forbidden.search(file.read_text("utf-8"))
        assert found is None, f"{file}: {found}"


@pytest.fixture(scope="session")
def bpe_values() -> dict[str, Any]:
    pytest.importorskip("tokenizers", reason="the bpe extra is not installed")
    from recurra.text.bpe import BpeVocabulary

    return BpeVocabulary.train(["the cat sat on the mat " * 9], vocab_size=262).to_dict()


def vocab(values: dict[str, Any]) -> dict[str, int]:
    names: dict[str, int] = values["tokenizer"]["model"]["vocab"]
    return names


def merges(values: dict[str, Any]) -> list[Any]:
    pairs: list[Any] = values["tokenizer"]["model"]["merges"]
    return pairs


BPE_ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model": (lambda v: v["tokenizer"].pop("model"), "tokenizer' has no model"),
    "no names": (lambda v: v["tokenizer"]["model"].pop("vocab"), "vocab' must have 256 to"),
    "few names": (
        lambda v: v["tokenizer"]["model"].update(vocab={"a": 0}),
        "vocab' must have 256 to",
    ),
    "another letter": (
        lambda v: vocab(v).update({"中": 262}),
        "byte-level",
    ),
    "no letter": (lambda v: vocab(v).update({"": 262}), "not byte-level"),
    "a byte without a name": (
        lambda v: vocab(v).update(zz=vocab(v).pop("z")),
        "lacks the byte 122",
    ),
    "the same id": (lambda v: vocab(v).update({"at": 3}), "the id 3, and"),
    "an id too large": (
        lambda v: vocab(v).update({"at": 2**40}),
        "'at' the id 1099511627776",
    ),
    "an id of true": (
        lambda v: vocab(v).update({"at": True}),
        "'at' the id True",
    ),
    "a negative id": (lambda v: vocab(v).update({"at": -1}), "the id -1"),
    "no merges": (lambda v: v["tokenizer"]["model"].pop("merges"), "merges' is not a list"),
    "a merge of one": (
        lambda v: merges(v).append(["a"]),
        r"merges' has \['a'\], which is no pair",
    ),
    "a merge of text": (
        lambda v: merges(v).append("a t"),
        "merges' has 'a t', which is no pair",
    ),
    "an unknown merge": (
        lambda v: merges(v).append(["a", "zzz"]),
        "which is no pair",
    ),
    "a merge without a name": (
        lambda v: merges(v).append(["z", "z"]),
        "which makes no token",
    ),
}


@pytest.mark.parametrize("name", BPE_ATTACKS)
def test_an_attack_on_a_bpe_vocabulary_is_one_error(bpe_values: dict[str, Any], name: str) -> None:
    values = json.loads(json.dumps(bpe_values))
    change, message = BPE_ATTACKS[name]
    change(values)
    with pytest.raises(ConfigError, match=f"^vocabulary field '.*{message}"):
        Vocabulary.from_dict(values)


def test_nothing_else_of_a_tokenizer_takes_effect(bpe_values: dict[str, Any]) -> None:
    """Neither its other parts, on some of which the library aborts, nor other fields."""
    honest = Vocabulary.from_dict(bpe_values)
    values = json.loads(json.dumps(bpe_values))
    values["tokenizer"] |= {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"},
        "pre_tokenizer": {"type": "Split"},
        "added_tokens": [{"id": 7, "content": "cat"}],
        "truncation": {"max_length": 1},
    }
    values["tokenizer"]["model"] |= {"dropout": 0.9, "unk_token": "zz", "byte_fallback": True}
    again = Vocabulary.from_dict(values)
    assert again == honest
    assert again.to_dict() == bpe_values
    assert again.encode("the cat sat").tolist() == honest.encode("the cat sat").tolist()
