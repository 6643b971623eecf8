"""The ids on disk are whole or absent, and damage is noticed."""

import json
import os

import numpy as np
import pytest

from recurra.config import TextConfig
from recurra.data import token_file
from recurra.data.token_file import build_token_file, load_token_file, load_vocabulary
from recurra.errors import RunError, SourceError
from recurra.text import sources
from text.token_file.files import PUBLISHED, inside


@pytest.mark.parametrize("kind", ["char", "word", "byte", "bpe"])
def test_an_undecodable_or_unreadable_source_leaves_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"good text " * 9 + b"\xff")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(SourceError):
        build_token_file(
            [tmp_path / "a.txt", tmp_path / "b.txt"], TextConfig(tokens=kind), tmp_path / "out"
        )
    assert inside(tmp_path) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_full_disk_leaves_what_was_there(book, tmp_path, monkeypatch, there_before):
    out = tmp_path / "out"
    if there_before:
        build_token_file([book], TextConfig(), out)
    earlier = load_token_file(out) if there_before else None

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build_token_file([book], TextConfig(tokens="byte"), out)
    if earlier:
        assert inside(out) == PUBLISHED
        assert load_token_file(out) == earlier
    else:
        assert not out.exists()


def test_an_interruption_leaves_nothing(book, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(token_file, "_publish", interrupt)
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        build_token_file([book], TextConfig(), tmp_path / "out")
    assert inside(tmp_path) == ["book.txt", "out"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out: (out / "tokens.json").unlink(), "tokens.json is missing"),
        (lambda out: (out / "tokens.bin").unlink(), "has 0 bytes instead of"),
        (lambda out: (out / "tokens.json").write_text("{}"), "has format None"),
        (lambda out: edit(out, dtype="object"), "damaged: dtype is 'object'"),
        (lambda out: edit(out, num_tokens=-5), "damaged: num_tokens is -5"),
        (lambda out: edit(out, num_tokens=True), "damaged: num_tokens is True"),
        (lambda out: edit(out, num_train=10**9), "damaged: num_train"),
        (lambda out: edit(out, num_train=0), "damaged: num_train"),
        (lambda out: edit(out, val_chars=10**9), "damaged: val_chars"),
        (lambda out: edit(out, sources="book.txt"), "damaged: sources"),
        (lambda out: edit(out, sha256=3), "damaged: sha256"),
        (lambda out: edit(out, text=None), "damaged: text"),
        (lambda out: (out / "tokens.json").write_text("[]"), "not contain a JSON object"),
        (lambda out: (out / "tokens.json").write_text("{"), "is damaged: "),
        (lambda out: (out / "tokens.json").write_text('{"version": 99}'), "has format 99"),
        (lambda out: os.truncate(out / "tokens.bin", 3), "has 3 bytes instead of"),
    ],
)
def test_loading_says_what_is_damaged(book, tmp_path, change, reason):
    build_token_file([book], TextConfig(), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(RunError, match=reason):
        load_token_file(tmp_path / "out")


def edit(folder, **fields):
    file = folder / "tokens.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_other_ids_than_were_written_are_noticed(book, tmp_path):
    tokens, vocabulary = build_token_file([book], TextConfig(), tmp_path / "out")
    tokens.verify()
    tokens.check_ids(len(vocabulary))
    data = bytearray(tokens.path.read_bytes())
    data[5] = 255
    tokens.path.write_bytes(data)
    changed = load_token_file(tmp_path / "out")
    with pytest.raises(RunError, match=r"tokens\.bin has changed: its SHA-256 is"):
        changed.verify()
    with pytest.raises(RunError, match="it has the id 255, but"):
        changed.check_ids(len(vocabulary))


def test_loading_a_damaged_vocabulary(tmp_path):
    with pytest.raises(RunError, match=r"vocabulary\.json"):
        load_vocabulary(tmp_path)
    (tmp_path / "vocabulary.json").write_text('{"kind": "char", "tokens": []}')
    with pytest.raises(RunError, match=r"vocabulary\.json is damaged: .*'tokens'"):
        load_vocabulary(tmp_path)


def test_tiny_shakespeare_has_the_known_split(tmp_path, real_data_folder):
    tokens, vocabulary = build_token_file(["tiny-shakespeare"], TextConfig(), tmp_path)
    assert (tokens.num_tokens, tokens.num_train, len(tokens.val)) == (1_115_394, 1_003_854, 111_540)
    assert len(vocabulary) == 66
    assert tokens.dtype == np.uint8
