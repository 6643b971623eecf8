"""A small trained run, and a copy of it whose files a test may corrupt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import recurra
from recurra.report.progress import Progress
from security.corruption import TEXT

SIZES = {"cell": "rnn", "hidden_size": 2, "embedding_size": 0, "batch_size": 2, "num_steps": 4}


@pytest.fixture(scope="session")
def intact_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    (folder / "text.txt").write_text(TEXT)
    options: dict[str, Any] = {**SIZES, "steps": 2, "sample_length": 4, "device": "cpu"}
    recurra.train(folder / "text.txt", out=folder / "run", progress=Progress(), **options)
    return folder / "run"


@pytest.fixture
def run(intact_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(intact_run, tmp_path / "run")
