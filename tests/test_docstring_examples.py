"""Every public class and function has examples in its docstring, and they run as they are read."""

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import recurra
from recurra.config.cells import CELL_TRAITS, CellTraits
from recurra.config.optimizers import OPTIMIZERS
from recurra.experiments import Comparison
from recurra.inference.dynamic import DynamicConfig
from recurra.inference.evaluate import Evaluation
from recurra.inference.generate import GenerationConfig
from recurra.inference.score import Score
from recurra.io.files import cache_folder
from recurra.recurrence.backends.linear_scan import linear_scan
from recurra.recurrence.cells import CELLS
from recurra.report.progress import Progress
from recurra.text import catalogue

MODULES = (recurra, recurra.config, recurra.d2l, recurra.model, recurra.nn)

OTHERS = (
    recurra.errors.RecurraError, CellTraits, linear_scan,
    Comparison, DynamicConfig, Evaluation, GenerationConfig, Progress, Score,
)  # fmt: skip
"""Public objects that are in the `__all__` of none of these modules."""

CORPORA = {
    "recurra.d2l.download": "time-machine",
    "recurra.d2l.read_time_machine": "time-machine",
    "recurra.d2l.load_corpus_time_machine": "time-machine",
    "recurra.d2l.load_data_time_machine": "time-machine",
    "recurra.d2l.SeqDataLoader": "time-machine",
    "recurra.d2l.load_data_jay_lyrics": "jaychou-lyrics",
}
"""The corpora that examples read; tests do not download them."""

PLOTS = ("Animator", "plot", "set_axes", "set_figsize")


def is_documented(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def public_objects() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)
    for name in vars(recurra.LanguageModel):
        if not name.startswith("_"):
            yield f"recurra.LanguageModel.{name}", getattr(recurra.LanguageModel, name)
    for value in OTHERS:
        yield f"{value.__module__}.{value.__name__}", value


OBJECTS = {name: value for name, value in public_objects() if is_documented(value)}


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory; cells and optimizers are registered for one test only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with (
        mock.patch.dict(CELL_TRAITS),
        mock.patch.dict(CELLS),
        mock.patch.dict(OPTIMIZERS),
    ):
        yield


def skip_without(corpus: str) -> None:
    """Skip the test if a corpus is absent: it may not be committed, and tests do not download."""
    file_name = catalogue.describe(corpus).file_name
    folders = (catalogue.data_folder(), cache_folder())
    if not any(folder and (folder / file_name).is_file() for folder in folders):
        pytest.skip(f"{file_name} is not on this machine; set RECURRA_DATA to its directory")


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.usefixtures("surroundings")
def test_docstring_example(name):
    # Without globals, an example must import everything that it uses.
    finder = doctest.DocTestFinder(recurse=False, exclude_empty=False)
    (test,) = finder.find(OBJECTS[name], name, globs={})
    assert test.examples, f"{name} has no example in its docstring"
    assert "Examples:\n" in test.docstring, f"the examples of {name} have no section"
    if name in CORPORA:
        skip_without(CORPORA[name])
    if name.rpartition(".")[2] in PLOTS:
        pytest.importorskip("matplotlib")
    report = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    failed, _ = runner.run(test, out=report.append)
    assert not failed, "".join(report)
