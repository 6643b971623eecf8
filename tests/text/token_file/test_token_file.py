"""Token files: the stored ids equal the ids of the text."""

import hashlib
import io
import json
import logging
import os
import sys
import threading
from collections import Counter

import numpy as np
import pytest

from recurra.config import TextConfig
from recurra.data import provisional
from recurra.data.indexing import training_share
from recurra.data.provisional import smallest_dtype
from recurra.data.token_file import build_token_file, load_token_file, load_vocabulary
from recurra.errors import ConfigError, SourceError
from recurra.text import sources
from recurra.text.corpus import read_text
from recurra.text.vocabulary import CharVocabulary, WordVocabulary
from text.token_file.files import PUBLISHED, TEXT, names_in

UNIFIED = TEXT.replace("\r\n", "\n")


@pytest.fixture(params=[7, 1 << 20])
def small_chunks(request, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", request.param)
    monkeypatch.setattr(provisional, "CHUNK_IDS", request.param)


@pytest.mark.parametrize("kind", ["char", "word", "bpe", "byte"])
def test_build_token_file_ids_equal_vocabulary_ids(text_file, tmp_path, small_chunks, kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="the bpe extra is not installed")
    config = TextConfig(tokens=kind, val_fraction=0.25)
    tokens, vocabulary = build_token_file([text_file], config, tmp_path / "out")
    text = TEXT if kind == "byte" else UNIFIED
    assert names_in(tmp_path / "out") == PUBLISHED
    assert vocabulary.kind == kind
    assert tokens.dtype == smallest_dtype(len(vocabulary))
    assert tokens.ids.dtype == tokens.dtype
    assert len(tokens.ids) == tokens.num_tokens
    assert len(tokens.train) == tokens.num_train
    assert np.array_equal(np.concatenate([tokens.train, tokens.val]), tokens.ids)

    train = vocabulary.decode(tokens.train)
    if kind in ("byte", "bpe"):
        assert vocabulary.decode(tokens.ids) == text
    else:
        units = text if kind == "char" else WordVocabulary.split(text)
        train_text = "".join(units[: tokens.num_train])
        assert vocabulary == type(vocabulary).from_text(train_text)
        assert train == train_text
        assert tokens.ids.tolist() == vocabulary.encode(text, unknown="replace").tolist()
        assert tokens.num_train == training_share(len(units), 0.25)
    assert (tokens.num_chars, tokens.num_bytes) == (len(text), len(text.encode()))
    val = text.encode()[tokens.num_bytes - tokens.val_bytes :].decode()
    assert len(val) == tokens.val_chars
    assert vocabulary.encode(val, unknown="replace").tolist() == tokens.val.tolist()
    assert tokens.sources == (str(text_file),)
    assert tokens.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()


def test_load_token_file_equals_built_token_file(text_file, tmp_path):
    built, vocabulary = build_token_file([text_file], TextConfig(), tmp_path / "out")
    assert load_token_file(tmp_path / "out") == built
    assert load_vocabulary(tmp_path / "out") == vocabulary
    assert built.vocabulary_fingerprint == vocabulary.fingerprint


def test_token_file_ids_are_read_only(text_file, tmp_path):
    tokens, _ = build_token_file([text_file], TextConfig(), tmp_path)
    assert isinstance(tokens.ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens.train[0] = 1


def test_build_token_file_vocabulary_from_training_part_only(tmp_path):
    (tmp_path / "a.txt").write_text("aabab" * 2 + "zb")
    tokens, vocabulary = build_token_file(
        [tmp_path / "a.txt"], TextConfig(val_fraction=2 / 12), tmp_path / "out"
    )
    assert vocabulary.tokens == ("<unk>", "a", "b")
    assert tokens.val.tolist() == [0, 2]
    assert (tokens.val_chars, tokens.val_bytes) == (2, 2)


def test_build_token_file_bpe_trains_on_training_part_only(tmp_path):
    pytest.importorskip("tokenizers", reason="the bpe extra is not installed")
    (tmp_path / "a.txt").write_text("abab " * 50 + "xyxy " * 50)
    tokens, vocabulary = build_token_file(
        [tmp_path / "a.txt"], TextConfig(tokens="bpe", val_fraction=0.5), tmp_path / "out"
    )
    labels = {vocabulary.label(i) for i in range(len(vocabulary))}
    assert "abab" in labels
    assert "xy" not in labels
    assert vocabulary.decode(tokens.train) == "abab " * 50
    assert tokens.val_chars == 250


@pytest.mark.parametrize("kind", ["char", "word"])
def test_build_token_file_applies_min_freq_and_vocab_size(text_file, tmp_path, kind):
    config = TextConfig(tokens=kind, min_freq=10, vocab_size=6)
    tokens, vocabulary = build_token_file([text_file], config, tmp_path / "out")
    assert len(vocabulary) == 6
    counts = Counter(
        CharVocabulary.split(UNIFIED) if kind == "char" else WordVocabulary.split(UNIFIED)
    )
    assert all(counts[token] >= 10 for token in vocabulary.tokens[1:])
    # The lengths count all characters, including the many that are stored as <unk>.
    assert (tokens.ids == 0).mean() > 0.3
    assert (tokens.num_chars, tokens.num_bytes) == (len(UNIFIED), len(UNIFIED.encode()))


def test_build_token_file_min_freq_above_all_counts_raises(text_file, tmp_path):
    with pytest.raises(ConfigError, match="min_freq 1000 "):
        build_token_file([text_file], TextConfig(min_freq=1000), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("distinct", "dtype"), [(255, "uint8"), (256, "uint16"), (66_000, "uint32")]
)
@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_build_token_file_dtype_grows_with_vocabulary(
    tmp_path, monkeypatch, distinct, dtype, chunk
):
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk if distinct < 1000 else 1 << 15)
    symbols = [chr(i) for i in range(0x100, 0x20000) if not 0xD800 <= i < 0xE000][:distinct]
    text = "".join(symbols + symbols[::-1])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    tokens, vocabulary = build_token_file(
        [tmp_path / "a.txt"], TextConfig(val_fraction=0.0), tmp_path / "out"
    )
    assert tokens.dtype == np.dtype(dtype)
    assert len(vocabulary) == distinct + 1
    assert vocabulary.decode(tokens.ids) == text
    assert len(tokens.val) == 0


@pytest.mark.parametrize(
    ("total", "fraction", "train"),
    [
        (1_115_394, 0.1, 1_003_854),
        (30, 0.1, 27),
        (10, 0.9, 1),
        (10, 0.7, 3),
        (10, 0.0, 10),
        (3, 1e-9, 2),
    ],
)
def test_training_share_known_values(total, fraction, train):
    assert training_share(total, fraction) == train


@pytest.mark.parametrize(
    ("kind", "limit", "text"),
    [
        ("char", 9, UNIFIED[:9]),
        ("word", 3, "The cat —"),
        ("byte", 9, "The cat \u2014".encode()[:9].decode(errors="ignore")),
        ("bpe", 9, UNIFIED[:9]),
    ],
)
def test_build_token_file_max_tokens_stops_reading(tmp_path, monkeypatch, kind, limit, text):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="the bpe extra is not installed")
    monkeypatch.setattr(sources, "CHUNK_BYTES", 64)
    (tmp_path / "a.txt").write_bytes(TEXT.encode()[:256] + b"\xff")
    config = TextConfig(tokens=kind, max_tokens=limit, val_fraction=0.0)
    tokens, vocabulary = build_token_file([tmp_path / "a.txt"], config, tmp_path / "out")
    assert vocabulary.decode(tokens.ids) == text
    record = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert record["source_bytes"] == 64
    assert record["source_complete"] is False


def test_build_token_file_reads_standard_input_once(tmp_path, monkeypatch):
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(TEXT.encode()))

    monkeypatch.setattr(sys, "stdin", Stdin)
    tokens, vocabulary = build_token_file(["-"], TextConfig(val_fraction=0.0), tmp_path)
    assert vocabulary.decode(tokens.ids) == UNIFIED
    assert tokens.sources == ("-",)
    with pytest.raises(SourceError, match="standard input is empty"):
        build_token_file(["-"], TextConfig(val_fraction=0.0), tmp_path)


def test_build_token_file_max_tokens_does_not_wait_for_pipe(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.write(write, b"abcdef")
    waiting = threading.Timer(5.0, os.close, [write])
    waiting.start()
    with open(read, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": pipe}))
        tokens, vocabulary = build_token_file(["-"], TextConfig(max_tokens=4), tmp_path)
    assert waiting.is_alive()
    waiting.cancel()
    os.close(write)
    assert vocabulary.decode(tokens.train) == "abc"


def test_build_token_file_byte_tokens_warn_about_vocab_size(text_file, tmp_path, caplog):
    config = TextConfig(tokens="byte", vocab_size=100)
    with caplog.at_level(logging.WARNING, logger="recurra"):
        _, vocabulary = build_token_file([text_file], config, tmp_path / "out")
    assert len(vocabulary) == 256
    assert "vocab_size" in caplog.text


def test_build_token_file_no_source_gives_bundled_story(tmp_path):
    tokens, vocabulary = build_token_file([], TextConfig(val_fraction=0.0), tmp_path)
    assert vocabulary.decode(tokens.ids) == read_text(["english-story"], TextConfig())
    assert tokens.sources == ("english-story",)


@pytest.mark.parametrize("text", ["a", "ab"])
def test_build_token_file_too_short_text_raises(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(SourceError, match=r"training part .*[01] tokens"):
        build_token_file([tmp_path / "a.txt"], TextConfig(), tmp_path / "out")


def test_build_token_file_accepts_one_repeated_character(tmp_path):
    (tmp_path / "a.txt").write_text("aaaa")
    tokens, vocabulary = build_token_file([tmp_path / "a.txt"], TextConfig(), tmp_path / "out")
    assert (len(vocabulary), tokens.num_train, tokens.ids.tolist()) == (2, 3, [1, 1, 1, 1])
