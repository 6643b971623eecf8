"""Token files are reused only if the sources and the settings are unchanged."""

import os

import pytest

from recurra.config import TextConfig
from recurra.data.token_file import build_token_file, load_token_file, load_vocabulary
from recurra.text import sources
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.corpus import read_text
from text.token_file.files import TEXT


def inode_of(folder):
    return os.stat(folder / "tokens.bin").st_ino


@pytest.mark.parametrize("limit", [None, 50])
def test_build_token_file_unchanged_source_is_reused(text_file, tmp_path, limit):
    out, config = tmp_path / "out", TextConfig(max_tokens=limit)
    first, vocabulary = build_token_file([text_file], config, out)
    before = inode_of(out)
    assert build_token_file([text_file], config, out) == (first, vocabulary)
    assert inode_of(out) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text_file, out: text_file.write_bytes(TEXT.replace("sat", "ran").encode()),
        lambda text_file, out: text_file.write_bytes(TEXT.encode() + b"."),
        lambda text_file, out: (out / "tokens.bin").write_bytes(b"short"),
        lambda text_file, out: (out / "tokens.bin").unlink(),
        lambda text_file, out: (out / "tokens.json").unlink(),
        lambda text_file, out: (out / "tokens.json").write_text("{}"),
        lambda text_file, out: (out / "tokens.json").write_text("not json"),
        lambda text_file, out: (out / "vocabulary.json").unlink(),
        lambda text_file, out: (out / "vocabulary.json").write_text('{"kind": "byte"}'),
    ],
)
def test_build_token_file_changed_or_damaged_is_rebuilt(text_file, tmp_path, change):
    out = tmp_path / "out"
    config = TextConfig(val_fraction=0.0)
    build_token_file([text_file], config, out)
    change(text_file, out)
    tokens, vocabulary = build_token_file([text_file], config, out)
    assert vocabulary.decode(tokens.ids) == read_text([text_file], config)
    assert load_token_file(out) == tokens
    assert load_vocabulary(out) == vocabulary


def test_build_token_file_other_settings_rebuild(text_file, tmp_path):
    build_token_file([text_file], TextConfig(), tmp_path / "out")
    tokens, vocabulary = build_token_file([text_file], TextConfig(tokens="byte"), tmp_path / "out")
    assert vocabulary == ByteVocabulary()
    assert tokens.ids.tobytes() == TEXT.encode()


def test_build_token_file_ignores_change_after_max_tokens(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 64)
    config = TextConfig(max_tokens=10)
    build_token_file([text_file], config, tmp_path / "out")
    before = inode_of(tmp_path / "out")
    text_file.write_bytes(TEXT.encode() + b"more")
    build_token_file([text_file], config, tmp_path / "out")
    assert inode_of(tmp_path / "out") == before
