"""Small substitutes for the d2l corpora, and skips of tests that need the real ones."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

STORY = """The kettle, No. 7

  sang to the cat;
the CAT sang back -- and rabbit heard it.

So the kettle sang again, and the cat slept.
"""

LYRICS = "雨落在屋顶\n我听见雨\r\n雨听见我\n" * 30


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(3)
    torch.manual_seed(3)


@pytest.fixture(autouse=True)
def _pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a backend without a display, and close the figures of the test."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def small_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set RECURRA_DATA to a directory with small texts under the names of the d2l corpora."""
    (tmp_path / "time_machine.txt").write_text(STORY * 20, encoding="utf-8")
    (tmp_path / "jaychou_lyrics.txt").write_bytes(LYRICS.encode())
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    return tmp_path


def _require_file(file_name: str) -> None:
    folder = os.environ.get("RECURRA_DATA")
    if not folder or not (Path(folder) / file_name).is_file():
        pytest.skip(f"RECURRA_DATA does not name a folder with {file_name}")


@pytest.fixture
def time_machine() -> None:
    """Skip the test if the real book is missing."""
    _require_file("time_machine.txt")


@pytest.fixture
def lyrics() -> None:
    """Skip the test if the real lyrics are missing."""
    _require_file("jaychou_lyrics.txt")
