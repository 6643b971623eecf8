"""CheckpointStore: atomic writes, verification, recovery and deletion."""

import errno
import hashlib
import itertools
import os
import subprocess

import pytest

from recurra.errors import RunError
from recurra.io.files import replace_bytes
from recurra.runs.checkpoint_store import MANIFEST, CheckpointStore, name_of, step_of

FILES = {"state.safetensors": bytes(range(256)), "training.json": b"{}\n", "empty": b""}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_checkpoint_store_write_makes_valid_sha256_manifest(store):
    cost = store.write(name_of(7), FILES)
    path = store.folder / "step-00000007"
    assert cost.num_bytes == sum(map(len, FILES.values()))
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.name != MANIFEST} == FILES
    lines = (path / MANIFEST).read_text().splitlines()
    assert lines == [f"{hashlib.sha256(FILES[n]).hexdigest()}  {n}" for n in sorted(FILES)]
    subprocess.run(["sha256sum", "--check", "--strict", MANIFEST], cwd=path, check=True)


def test_checkpoint_store_names_are_sorted_by_step(store):
    for name in (name_of(100_000_000), name_of(20, final=True), name_of(3), name_of(20)):
        store.write(name, FILES)
    (store.folder / "step-x").mkdir()
    (store.folder / "step-00000001").touch()
    assert store.names() == [
        "step-00000003", "step-00000020", "step-00000020-final", "step-100000000",
    ]  # fmt: skip
    assert [step_of(name) for name in store.names()] == [3, 20, 20, 100_000_000]


def test_checkpoint_store_verify_detects_every_corruption(store):
    name = name_of(1)
    store.write(name, FILES)
    path = store.folder / name
    for file in [*FILES, MANIFEST]:
        intact = (path / file).read_bytes()
        for position in range(len(intact)):
            for bit in (0x01, 0x80):
                damaged = bytearray(intact)
                damaged[position] ^= bit
                (path / file).write_bytes(damaged)
                with pytest.raises(RunError, match="damaged"):
                    store.verify(name)
            (path / file).write_bytes(intact[:position])
            with pytest.raises(RunError, match="damaged"):
                store.verify(name)
        (path / file).write_bytes(intact + b"\n")
        with pytest.raises(RunError, match="damaged"):
            store.verify(name)
        (path / file).unlink()
        with pytest.raises(RunError):
            store.verify(name)
        (path / file).write_bytes(intact)
    store.verify(name)
    (path / "more").touch()
    with pytest.raises(RunError, match="damaged"):
        store.verify(name)


def test_checkpoint_store_verify_rejects_fifo_without_blocking(store):
    store.write(name_of(1), FILES)
    path = store.folder / name_of(1)
    (path / "empty").unlink()
    os.mkfifo(path / "empty")
    with pytest.raises(RunError, match="empty"):
        store.verify(name_of(1))


CALLS = {
    "write": (["write"], errno.ENOSPC),
    "fsync": (["fsync"], errno.EIO),
    "rename": (["rename", "replace"], errno.EIO),
    "mkdir": (["mkdir"], errno.ENOSPC),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "same step"])
def test_checkpoint_store_failed_write_keeps_older_checkpoint(
    store, monkeypatch, fail_at, call, replaces
):
    """The k-th call of a write fails, for k = 1, 2, ... until a write needs fewer calls."""
    store.write(name_of(1), FILES)
    if replaces:
        store.write(name_of(2), FILES)
    before = contents(store.folder)
    new = {**FILES, "training.json": b"[]\n"}
    for k in itertools.count(1):
        names, code = CALLS[call]
        with monkeypatch.context() as patch:
            fault = fail_at(patch, names, k, code)
            failure = None
            try:
                store.write(name_of(2), new)
            except OSError as error:
                failure = error.errno
        assert fault.failed == (failure == code)
        if failure is None:
            break
        assert contents(store.folder) == before
        store.verify(name_of(1))
        store.remove_unfinished()
        assert {p.name for p in store.folder.iterdir()} == set(store.names())
    assert k > 1
    assert not fault.failed
    store.verify(name_of(2))
    assert (store.folder / name_of(2) / "training.json").read_bytes() == b"[]\n"


def test_checkpoint_store_write_detects_changed_file(store, monkeypatch):
    store.write(name_of(1), FILES)
    original = os.rename

    def rename(source, target):
        original(source, target)
        if ".new" in str(source):
            (target / "training.json").write_bytes(b"{]\n")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(RunError, match="damaged"):
        store.write(name_of(2), FILES)
    assert store.names() == [name_of(1)]


def test_checkpoint_store_remove_unfinished_recovers_after_kill(store):
    store.write(name_of(1), FILES)
    store.write(name_of(2), FILES)
    (store.folder / name_of(2)).rename(store.folder / f".{name_of(2)}.old.tmp")
    unfinished = store.folder / f".{name_of(3)}.new.tmp"
    unfinished.mkdir()
    (unfinished / "state.safetensors").write_bytes(b"half")
    store.remove_unfinished()
    assert {p.name for p in store.folder.iterdir()} == {name_of(1), name_of(2)}
    store.verify(name_of(2))


def test_checkpoint_store_keep_only_deletes_other_names(store):
    for step in (1, 2, 3):
        store.write(name_of(step), FILES)
    store.keep_only({name_of(1), name_of(3)})
    assert store.names() == [name_of(1), name_of(3)]


def test_replaced_full_disk_error_names_final_file(tmp_path, monkeypatch):
    def write(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space") as error:
        replace_bytes(tmp_path / "metrics.jsonl", b"x")
    assert error.value.filename == str(tmp_path / "metrics.jsonl")
    named = repr(str(tmp_path / "metrics.jsonl"))
    assert str(error.value) == f"[Errno {errno.ENOSPC}] No space left on device: {named}"
    with pytest.raises(OSError, match="No space") as error:
        CheckpointStore(tmp_path / "checkpoints").write("step-00000001", {"a": b"x"})
    assert error.value.filename == str(tmp_path / "checkpoints" / "step-00000001" / "a")
