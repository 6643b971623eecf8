"""The ids on disk are used again only when nothing changed."""

import os

import pytest

from recurra.config import TextConfig
from recurra.data.token_file import build_token_file, load_token_file, load_vocabulary
from recurra.text import sources
from recurra.text.corpus import read_text
from recurra.text.vocabulary import ByteVocabulary
from text.token_file.files import TEXT


def stamp(folder):
    return os.stat(folder / "tokens.bin").st_ino


@pytest.mark.parametrize("limit", [None, 50])
def test_an_unchanged_source_is_not_read_in_again(book, tmp_path, limit):
    out, config = tmp_path / "out", TextConfig(max_tokens=limit)
    first, vocabulary = build_token_file([book], config, out)
    before = stamp(out)
    assert build_token_file([book], config, out) == (first, vocabulary)
    assert stamp(out) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda book, out: book.write_bytes(TEXT.replace("sat", "ran").encode()),
        lambda book, out: book.write_bytes(TEXT.encode() + b"."),
        lambda book, out: (out / "tokens.bin").write_bytes(b"short"),
        lambda book, out: (out / "tokens.bin").unlink(),
        lambda book, out: (out / "tokens.json").unlink(),
        lambda book, out: (out / "tokens.json").write_text("{}"),
        lambda book, out: (out / "tokens.json").write_text("not json"),
        lambda book, out: (out / "vocabulary.json").unlink(),
        lambda book, out: (out / "vocabulary.json").write_text('{"kind": "byte"}'),
    ],
)
def test_a_change_or_damage_builds_anew(book, tmp_path, change):
    out = tmp_path / "out"
    config = TextConfig(val_fraction=0.0)
    build_token_file([book], config, out)
    change(book, out)
    tokens, vocabulary = build_token_file([book], config, out)
    assert vocabulary.decode(tokens.ids) == read_text([book], config)
    assert load_token_file(out) == tokens
    assert load_vocabulary(out) == vocabulary


def test_other_settings_build_anew(book, tmp_path):
    build_token_file([book], TextConfig(), tmp_path / "out")
    tokens, vocabulary = build_token_file([book], TextConfig(tokens="byte"), tmp_path / "out")
    assert vocabulary == ByteVocabulary()
    assert tokens.ids.tobytes() == TEXT.encode()


def test_text_after_the_cut_may_change(book, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 64)
    config = TextConfig(max_tokens=10)
    build_token_file([book], config, tmp_path / "out")
    before = stamp(tmp_path / "out")
    book.write_bytes(TEXT.encode() + b"more")
    build_token_file([book], config, tmp_path / "out")
    assert stamp(tmp_path / "out") == before
