"""Truncated and bit-flipped run files, size limits, and the absence of pickle readers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import recurra
from recurra.config import MAX_VOCABULARY
from recurra.data.token_file import build_token_file, load_token_file
from recurra.errors import ConfigError, RecurraError, RunError, SourceError
from recurra.text.vocabulary import CharVocabulary, WordVocabulary
from security.corruption import (
    CONFIG,
    MODEL,
    TEXT,
    VOCABULARY,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [CONFIG, VOCABULARY, "tokens.json"])
def test_load_damaged_json_is_valid_or_raises(run: Path, name: str) -> None:
    """Reading raises a RecurraError, or the damaged file is still a valid one."""
    file = run / name
    intact = file.read_bytes()
    for position in range(len(intact)):
        for damaged in (intact[:position], *flipped(intact, position)):
            file.write_bytes(damaged)
            with contextlib.suppress(RecurraError):
                read(run, name)
                assert len(damaged) >= len(intact) - 1


def flipped(data: bytes, position: int) -> Iterator[bytes]:
    for mask in (0x01, 0x02, 0x80):
        damaged = bytearray(data)
        damaged[position] ^= mask
        yield bytes(damaged)


def read(run: Path, name: str) -> None:
    from recurra.data.token_file import load_vocabulary
    from recurra.runs.directory import RunDirectory

    if name == CONFIG:
        RunDirectory(run).read_config()
    elif name == VOCABULARY:
        load_vocabulary(run)
    else:
        load_token_file(run).check_ids(13)


def test_load_model_damaged_weights_are_finite_or_raise(run: Path) -> None:
    from recurra.config import RunConfig
    from recurra.runs.weights import load_model

    file = run / MODEL
    config = RunConfig.from_dict(
        {k: v for k, v in json.loads((run / CONFIG).read_text()).items() if isinstance(v, dict)}
    ).model
    intact = file.read_bytes()
    for position in range(len(intact)):
        file.write_bytes(intact[:position])
        with pytest.raises(RunError, match=MODEL):
            load_model(file, config)
        for damaged in flipped(intact, position):
            file.write_bytes(damaged)
            with contextlib.suppress(RunError):
                model = load_model(file, config)
                assert all(torch.isfinite(p).all() for p in model.parameters())


def test_word_vocabulary_too_many_tokens_error_names_options(tmp_path: Path) -> None:
    from collections import Counter

    counts = Counter({f" {number:x}": 1 for number in range(MAX_VOCABULARY)})
    with pytest.raises(SourceError, match=r"1,048,576 .*--vocab-size .*--min-freq"):
        WordVocabulary.from_counts(counts)
    assert len(WordVocabulary.from_counts(counts, vocab_size=100)) == 100


def test_build_token_file_too_large_vocabulary_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recurra.config import TextConfig
    from recurra.io import json_files

    monkeypatch.setattr(json_files, "MAX_JSON_MEMORY", 1000)
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(SourceError, match=r"too large.*\b13\b.*--min-freq"):
        build_token_file([tmp_path / "text.txt"], TextConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_load_vocabulary_of_maximum_size_succeeds(tmp_path: Path) -> None:
    from recurra.data.token_file import load_vocabulary
    from recurra.io.json_files import write_json

    words = WordVocabulary(f" {number:x}" for number in range(700_000))
    write_json(tmp_path / VOCABULARY, words.to_dict())
    assert len(load_vocabulary(tmp_path)) == len(words)
    characters = CharVocabulary(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    write_json(tmp_path / VOCABULARY, characters.to_dict())
    assert load_vocabulary(tmp_path) == characters


@pytest.mark.parametrize("name", ["batch_size", "num_steps", "sample_length"])
def test_config_size_above_limit_error_names_field(name: str) -> None:
    from recurra.config import RunConfig

    with pytest.raises(ConfigError, match=f"{name} .*16,777,216"):
        RunConfig.from_options(**{name: 2**24 + 1})


def test_package_source_reads_no_pickles() -> None:
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
