"""Resuming an interrupted comparison, and the directories that are rejected."""

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


def test_what_was_done_stays(compare, tmp_path, monkeypatch):
    started = []

    def counted(sources, config, out, *rest, **more):
        started.append(Path(out).name)
        if len(started) == 3:
            raise TrainingInterrupted(signal.SIGINT)
        return run_module.prepare_run(sources, config, out, *rest, **more)

    monkeypatch.setattr(runs, "prepare_run", counted)
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


def test_an_interrupted_run_goes_on(compare, tmp_path, listener):
    whole = compare(out=tmp_path / "whole")

    with pytest.raises(TrainingInterrupted):
        compare(progress=listener(stop_at=7))
    parts = compare()
    assert [row.scores for row in parts.rows] == [row.scores for row in whole.rows]


def test_an_interruption_says_how_the_comparison_goes_on(compare, tmp_path, listener):
    with pytest.raises(TrainingInterrupted, match="to resume") as stop:
        compare(progress=listener(stop_at=1))
    assert stop.value.signum == signal.SIGINT
    assert str(tmp_path / "all") in str(stop.value)


def test_a_signal_while_a_run_finishes_ends_the_comparison(compare, tmp_path, monkeypatch):
    def asked_to_stop(records):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "describe_overfitting", asked_to_stop)
        with pytest.raises(TrainingInterrupted, match="to resume"):
            compare()
    trained = [file.parent.name for file in (tmp_path / "all").glob("*/metrics.jsonl")]
    assert trained == ["gru-1"]
    assert len(compare().rows) == 2


def test_one_process_at_a_time(compare):
    class ComparesToo(Progress):
        def moment(self, moment):
            with pytest.raises(RunError, match="in use by another process"):
                compare()
            refused.append(moment.step)

    refused = []
    compare(progress=ComparesToo())
    assert refused


def test_what_a_killed_process_had_prepared_is_no_hindrance(compare, tmp_path):
    (tmp_path / "all" / STAGING / "gru-1").mkdir(parents=True)
    (tmp_path / "all" / ".comparison.json.77.tmp").touch()
    assert len(compare(seeds=1).rows) == 2
    assert not list((tmp_path / "all").glob(".*.tmp"))


def test_another_text_is_refused_when_it_goes_on(source, compare):
    compare(seeds=1)
    source.write_text("another text altogether. " * 60, "utf-8")
    with pytest.raises(RunError, match="continues with its original text"):
        compare(seeds=1)


def test_a_folder_of_texts_may_hold_its_own_comparison(source):
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
    with pytest.raises(ConfigError, match="for validation"):
        compare(val_fraction=1e-4)
    assert not (tmp_path / "all").exists()


def test_a_text_that_will_not_do_leaves_nothing(source, compare, tmp_path):
    text = source.read_bytes()
    source.write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        compare()
    assert not (tmp_path / "all").exists()
    source.write_bytes(text)
    assert len(compare(seeds=1).rows) == 2


def test_compare_resumes_a_comparison_of_version_0_1(compare, tmp_path):
    before = compare(seeds=1)
    file = tmp_path / "all" / "comparison.json"
    description = json.loads(file.read_text("utf-8"))
    description["contenders"] = description.pop("variants")
    file.write_text(json.dumps(description), "utf-8")
    assert compare(seeds=1).records() == before.records()
