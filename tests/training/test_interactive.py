"""The display of a notebook, and interrupted training in scripts and interactive sessions."""

import signal
import sys
from types import SimpleNamespace

import pytest

import recurra
from recurra.errors import TrainingInterrupted
from recurra.report.notebook import NotebookProgress, default_progress
from recurra.report.progress import ConsoleProgress, StepMetrics
from recurra.runtime.interactive import is_interactive

QUICK = {"hidden_size": 8, "batch_size": 4, "num_steps": 8, "steps": 9, "report_every": 4}


class Display:
    """Stands for IPython.display, and records the calls."""

    def __init__(self):
        self.calls = []

    def display(self, data, **options):
        self.calls.append((data, options))


def test_notebook_progress_updates_one_display_at_most_twice_a_second():
    display = Display()
    progress = NotebookProgress(display)
    with progress:
        progress.plan(["text      <script> \x1b"])
        for step in range(10_000):
            progress.step(StepMetrics(step / 10_000, step, 1.0, 1e3, 60.0))
        progress.sample("a", "<b>\nc")
        progress.message("saved in <b>")
        progress.finished([])
    assert len(display.calls) < 100
    assert [options["update"] for _, options in display.calls] == [False] + [True] * (
        len(display.calls) - 1
    )
    assert len({options["display_id"] for _, options in display.calls}) == 1
    data, _ = display.calls[-1]
    page = data["text/html"]
    for text in ("&lt;script&gt; ␛", "a&lt;b&gt;⏎c", "saved in &lt;b&gt;"):
        assert text in page
    assert "<script>" not in page
    assert "saved in <b>" in data["text/plain"]


@pytest.mark.parametrize(("shell", "kind"), [
    (None, ConsoleProgress), (SimpleNamespace(), ConsoleProgress),
    (SimpleNamespace(kernel=1), NotebookProgress),
])  # fmt: skip
def test_default_progress_is_that_of_a_notebook_only_with_a_kernel(monkeypatch, shell, kind):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", Display())
    assert type(default_progress()) is kind
    assert is_interactive() is (shell is not None)


def test_train_interrupted_in_interactive_session_returns_model(
    source, tmp_path, monkeypatch, listener
):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    progress = listener(stop_at=5)
    lm = recurra.train(source, out=tmp_path / "run", progress=progress, **QUICK)
    assert lm.path == tmp_path / "run"
    assert isinstance(lm.generate("the", max_new_tokens=3), str)
    assert "continues from step 5; the result is the model so far" in progress.messages[-1]
    # Before the first report there is no best model, so the current weights are saved.
    lm = recurra.train(source, out=tmp_path / "early", progress=listener(stop_at=2), **QUICK)
    assert lm.validate().num_tokens > 0


@pytest.mark.parametrize("case", ["script", "SIGTERM"])
def test_train_interrupted_in_script_or_by_sigterm_raises(
    source, tmp_path, monkeypatch, listener, case
):
    signum = signal.SIGINT
    if case == "SIGTERM":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        signum = signal.SIGTERM
    with pytest.raises(TrainingInterrupted, match="saved in") as caught:
        recurra.train(source, out=tmp_path / "run", progress=listener(5, signum), **QUICK)
    assert caught.value.run == tmp_path / "run"


def test_train_interrupted_before_training_raises(source, tmp_path, monkeypatch, listener):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("recurra.training.creation.build_token_file", interrupted)
    with pytest.raises(TrainingInterrupted) as caught:
        recurra.train(source, out=tmp_path / "run", progress=listener(), **QUICK)
    assert caught.value.run is None
    assert not (tmp_path / "run").exists()
