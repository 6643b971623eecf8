"""Two small stand-ins for the book's corpora, written for these tests, and the real ones."""

import os
import random
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
def _repeatable() -> None:
    random.seed(3)
    torch.manual_seed(3)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with small texts under the names of the book's corpora."""
    (tmp_path / "time_machine.txt").write_text(STORY * 20, encoding="utf-8")
    (tmp_path / "jaychou_lyrics.txt").write_bytes(LYRICS.encode())
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    return tmp_path


def _needs(file_name: str) -> None:
    folder = os.environ.get("RECURRA_DATA")
    if not folder or not (Path(folder) / file_name).is_file():
        pytest.skip(f"RECURRA_DATA does not name a folder with {file_name}")


@pytest.fixture
def time_machine() -> None:
    """Skips where the real book is not at hand."""
    _needs("time_machine.txt")


@pytest.fixture
def lyrics() -> None:
    """Skips where the real lyrics are not at hand."""
    _needs("jaychou_lyrics.txt")
