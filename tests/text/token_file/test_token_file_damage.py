"""Token files are written atomically, and damage is detected."""

import json
import os

import numpy as np
import pytest

from recurra.config import TextConfig
from recurra.data import token_file
from recurra.data.token_file import build_token_file, load_token_file, load_vocabulary
from recurra.errors import RunError, SourceError
from recurra.text import sources
from text.token_file.files import PUBLISHED, names_in


@pytest.mark.parametrize("kind", ["char", "word", "byte", "bpe"])
def test_build_token_file_bad_source_leaves_no_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"good text " * 9 + b"\xff")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(SourceError):
        build_token_file(
            [tmp_path / "a.txt", tmp_path / "b.txt"], TextConfig(tokens=kind), tmp_path / "out"
        )
    assert names_in(tmp_path) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("has_previous", [False, True])
def test_build_token_file_full_disk_keeps_previous_file(
    text_file, tmp_path, monkeypatch, has_previous
):
    out = tmp_path / "out"
    if has_previous:
        build_token_file([text_file], TextConfig(), out)
    previous = load_token_file(out) if has_previous else None

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build_token_file([text_file], TextConfig(tokens="byte"), out)
    if previous:
        assert names_in(out) == PUBLISHED
        assert load_token_file(out) == previous
    else:
        assert not out.exists()


def test_build_token_file_interrupted_leaves_no_file(text_file, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(token_file, "_publish", interrupt)
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        build_token_file([text_file], TextConfig(), tmp_path / "out")
    assert names_in(tmp_path) == ["out", "text.txt"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out: (out / "tokens.json").unlink(), r"tokens\.json is missing"),
        (lambda out: (out / "tokens.bin").unlink(), " 0 bytes"),
        (lambda out: (out / "tokens.json").write_text("{}"), "format None"),
        (lambda out: edit(out, dtype="object"), "dtype is 'object'"),
        (lambda out: edit(out, num_tokens=-5), "num_tokens is -5"),
        (lambda out: edit(out, num_tokens=True), "num_tokens is True"),
        (lambda out: edit(out, num_train=10**9), "damaged: num_train"),
        (lambda out: edit(out, num_train=0), "damaged: num_train"),
        (lambda out: edit(out, val_chars=10**9), "damaged: val_chars"),
        (lambda out: edit(out, sources="text.txt"), "damaged: sources"),
        (lambda out: edit(out, sha256=3), "damaged: sha256"),
        (lambda out: edit(out, text=None), "damaged: text"),
        (lambda out: (out / "tokens.json").write_text("[]"), "JSON object"),
        (lambda out: (out / "tokens.json").write_text("{"), "is damaged: "),
        (lambda out: (out / "tokens.json").write_text('{"version": 99}'), "format 99"),
        (lambda out: os.truncate(out / "tokens.bin", 3), " 3 bytes"),
    ],
)
def test_load_token_file_damaged_error_names_field(text_file, tmp_path, change, reason):
    build_token_file([text_file], TextConfig(), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(RunError, match=reason):
        load_token_file(tmp_path / "out")


def edit(folder, **fields):
    file = folder / "tokens.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_token_file_verify_and_check_ids_detect_change(text_file, tmp_path):
    tokens, vocabulary = build_token_file([text_file], TextConfig(), tmp_path / "out")
    tokens.verify()
    tokens.check_ids(len(vocabulary))
    data = bytearray(tokens.path.read_bytes())
    data[5] = 255
    tokens.path.write_bytes(data)
    changed = load_token_file(tmp_path / "out")
    with pytest.raises(RunError, match=r"tokens\.bin .*SHA-256"):
        changed.verify()
    with pytest.raises(RunError, match="id 255"):
        changed.check_ids(len(vocabulary))


def test_load_vocabulary_damaged_error_names_field(tmp_path):
    with pytest.raises(RunError, match=r"vocabulary\.json"):
        load_vocabulary(tmp_path)
    (tmp_path / "vocabulary.json").write_text('{"kind": "char", "tokens": []}')
    with pytest.raises(RunError, match=r"vocabulary\.json is damaged: .*'tokens'"):
        load_vocabulary(tmp_path)


def test_build_token_file_tiny_shakespeare_known_sizes(tmp_path, real_data_folder):
    tokens, vocabulary = build_token_file(["tiny-shakespeare"], TextConfig(), tmp_path)
    assert (tokens.num_tokens, tokens.num_train, len(tokens.val)) == (1_115_394, 1_003_854, 111_540)
    assert len(vocabulary) == 66
    assert tokens.dtype == np.uint8
