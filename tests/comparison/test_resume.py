"""Resuming an interrupted comparison, and directories that are rejected."""

import json
import signal
from pathlib import Path

import pytest

import recurra
from comparison.settings import SMALL
from recurra.errors import ConfigError, RunError, SourceError, TrainingInterrupted
from recurra.experiments import runs
from recurra.experiments.folder import STAGING
from recurra.report.progress import Progress
from recurra.training import loop
from recurra.training import run as run_module


def test_compare_resumed_keeps_finished_runs(compare, tmp_path, monkeypatch):
    started = []

    def count_runs(request, out, *args):
        started.append(Path(out).name)
        if len(started) == 3:
            raise TrainingInterrupted(signal.SIGINT)
        return run_module.prepare_run(request, out, *args)

    monkeypatch.setattr(runs, "prepare_run", count_runs)
    with pytest.raises(TrainingInterrupted):
        compare()
    assert started == ["gru-1", "wide-rnn-1", "gru-2"]
    first = (tmp_path / "all" / "gru-1" / "metrics.jsonl").read_bytes()
    whole = compare()
    assert started[3:] == ["gru-2", "wide-rnn-2"]
    assert (tmp_path / "all" / "gru-1" / "metrics.jsonl").read_bytes() == first
    again = compare(threads=1)
    assert started[5:] == []
    assert [row.scores for row in again.rows] == [row.scores for row in whole.rows]


def test_compare_interrupted_run_resumes_exactly(compare, tmp_path, listener):
    uninterrupted = compare(out=tmp_path / "uninterrupted")
    with pytest.raises(TrainingInterrupted):
        compare(progress=listener(stop_at=7))
    resumed = compare()
    assert [row.scores for row in resumed.rows] == [row.scores for row in uninterrupted.rows]


def test_compare_interrupted_error_names_directory(compare, tmp_path, listener):
    with pytest.raises(TrainingInterrupted, match="comparison") as stop:
        compare(progress=listener(stop_at=1))
    assert stop.value.signum == signal.SIGINT
    assert str(tmp_path / "all") in str(stop.value)


def test_compare_signal_at_end_of_run_stops(compare, tmp_path, monkeypatch):
    def interrupt(records):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "describe_overfitting", interrupt)
        with pytest.raises(TrainingInterrupted, match="comparison"):
            compare()
    trained = [file.parent.name for file in (tmp_path / "all").glob("*/metrics.jsonl")]
    assert trained == ["gru-1"]
    assert len(compare().rows) == 2


def test_compare_directory_in_use_is_rejected(compare):
    class SecondComparison(Progress):
        def step(self, metrics):
            with pytest.raises(RunError, match="in use"):
                compare()
            refused.append(metrics.step)

    refused = []
    compare(progress=SecondComparison())
    assert refused


def test_compare_removes_staging_of_killed_process(compare, tmp_path):
    (tmp_path / "all" / STAGING / "gru-1").mkdir(parents=True)
    (tmp_path / "all" / ".comparison.json.77.tmp").touch()
    assert len(compare(seeds=1).rows) == 2
    assert not list((tmp_path / "all").glob(".*.tmp"))


def test_compare_resumed_with_other_text_is_rejected(source, compare):
    compare(seeds=1)
    source.write_text("another text altogether. " * 60, "utf-8")
    with pytest.raises(RunError, match="text"):
        compare(seeds=1)


def test_compare_directory_inside_source_resumes(source):
    folder = source.parent / "texts"
    folder.mkdir()
    (folder / "text.txt").write_bytes(source.read_bytes())
    settings = SMALL | {"num_tokens": 640, "seeds": 2, "progress": Progress()}
    for _ in range(2):
        rows = recurra.compare(folder, ["gru", "rnn"], out=folder / "runs" / "all", **settings).rows
        assert len(rows) == 2


def test_compare_invalid_variant_fails_before_training(compare, tmp_path):
    with pytest.raises(SourceError, match="batch"):
        compare({"fits": {}, "does not": {"batch_size": 10_000}})
    assert not (tmp_path / "all").exists()
    with pytest.raises(ConfigError, match="validat"):
        compare(val_fraction=1e-4)
    assert not (tmp_path / "all").exists()


def test_compare_empty_text_leaves_no_files(source, compare, tmp_path):
    text = source.read_bytes()
    source.write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        compare()
    assert not (tmp_path / "all").exists()
    source.write_bytes(text)
    assert len(compare(seeds=1).rows) == 2


def test_compare_resumes_version_0_1_comparison(compare, tmp_path):
    before = compare(seeds=1)
    file = tmp_path / "all" / "comparison.json"
    description = json.loads(file.read_text("utf-8"))
    description["contenders"] = description.pop("variants")
    file.write_text(json.dumps(description), "utf-8")
    assert compare(seeds=1).records() == before.records()


def test_compare_more_seeds_extend_a_comparison(compare, tmp_path):
    two = compare(seeds=2)
    three = compare(seeds=3)
    after_by_name = {row.variant.name: row for row in three.rows}
    for before in two.rows:
        after = after_by_name[before.variant.name]
        assert after.scores[:2] == before.scores
        assert len(after.scores) == 3
    assert json.loads((tmp_path / "all" / "comparison.json").read_text("utf-8"))["seeds"] == 3
    assert compare(seeds=3).records() == three.records()


def test_compare_description_without_equal_parameters_is_that_of_earlier_versions(
    compare, tmp_path
):
    compare(seeds=1)
    description = json.loads((tmp_path / "all" / "comparison.json").read_text("utf-8"))
    assert set(description) == {"sources", "seeds", "variants"}


def test_compare_repeated_does_not_suggest_to_train_finished_runs_longer(compare, listener):
    compare(seeds=1)
    progress = listener()
    compare(seeds=1, progress=progress)
    assert not any("already finished" in text for text in (*progress.messages, *progress.plans))
