"""The training loss between evaluations: loss.jsonl and the plot of a run."""

import json
import math
from itertools import pairwise

import pytest

import recurra
from recurra.config import RunOptions
from recurra.engine.compiled import CompiledEngine
from recurra.errors import TrainingInterrupted
from recurra.report import curve
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training.callbacks.loss_curve import MAX_POINTS, interval, merged_in_pairs
from recurra.training.creation import RunRequest
from recurra.training.run import resume_run, start_run

SMALL = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "lr": 1e-2, "sample_length": 5}


class SlowClock:
    """A time that advances by a tenth of a second whenever it is read."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        self.time += 0.1
        return self.time


def train(source, path, *, progress=None, **options):
    given = RunOptions.of(**{**SMALL, "steps": 60, "report_every": 30, **options})
    clock = Clock(source=SlowClock())
    start_run(RunRequest([source], given), path, progress or Progress(), clock)
    return RunDirectory(path)


def steps(points):
    return [point["step"] for point in points]


def test_train_records_the_loss_between_evaluations(source, tmp_path):
    run = train(source, tmp_path / "run")
    points, reports = run.read_losses(), run.read_metrics()
    assert len(points) > 5 * len(reports)
    assert steps(points) == sorted(set(steps(points)))
    assert (points[-1]["step"], points[-1]["tokens"]) == (60, 60 * 64)
    assert points[0]["train_nats"] > points[-1]["train_nats"]
    seconds = [point["seconds"] for point in points]
    # The last point is recorded at the end.
    assert all(later - earlier > 0.4 for earlier, later in pairwise(seconds[:-1]))


def test_loss_points_average_to_the_reported_training_loss(source, tmp_path):
    run = train(source, tmp_path / "run", steps=30)
    points, (report,) = run.read_losses(), run.read_metrics()
    before, nats = 0, 0.0
    for point in points:
        nats += point["train_nats"] * (point["tokens"] - before)
        before = point["tokens"]
    assert nats / before == pytest.approx(report["train_nats"], rel=1e-5)


def test_resumed_run_keeps_the_points_up_to_its_checkpoint(source, tmp_path, listener):
    with pytest.raises(TrainingInterrupted):
        train(source, tmp_path / "run", progress=listener(stop_at=40))
    run = RunDirectory(tmp_path / "run")
    before = run.read_losses()
    assert before[-1]["step"] > 30
    later = {**before[-1], "step": 55}
    run.write_losses([*before, later])
    resume_run(run.path, Progress(), Clock(source=SlowClock()))
    after = run.read_losses()
    assert after[: len(before)] == before
    assert steps(after) == sorted(set(steps(after)))
    assert 55 not in steps(after)[: len(before) + 1]
    assert after[-1]["step"] == 60


def test_rollback_discards_the_points_after_its_checkpoint(
    source, tmp_path, monkeypatch, without_trial
):
    counts, gradients = [], CompiledEngine.gradients

    def poisoned(self, batch, state):
        result = gradients(self, batch, state)
        counts.append(1)
        if len(counts) == 45:
            self.model.head_weight.grad.add_(math.inf)
        return result

    monkeypatch.setattr(CompiledEngine, "gradients", poisoned)
    run = train(source, tmp_path / "run", on_nan="rollback")
    assert len(counts) == 45 + 30  # 14 updates after the report at 30 are repeated.
    points = run.read_losses()
    assert steps(points) == sorted(set(steps(points)))
    assert points[-1]["step"] == 60


def test_training_again_begins_a_new_curve(source, tmp_path):
    run = train(source, tmp_path / "run")
    recurra.train(source, out=run.path, force=True, steps=2, progress=Progress(), **SMALL)
    assert steps(run.read_losses()) == [2]


def test_damaged_loss_file_does_not_prevent_resuming(source, tmp_path, listener):
    with pytest.raises(TrainingInterrupted):
        train(source, tmp_path / "run", progress=listener(stop_at=40))
    run = RunDirectory(tmp_path / "run")
    run.losses.write_text('{"step": 3}\n', "utf-8")
    shown = listener()
    resume_run(run.path, shown, Clock(source=SlowClock()))
    assert any("loss.jsonl is damaged" in message for message in shown.messages)
    assert min(steps(run.read_losses())) > 40


def test_run_of_an_earlier_version_resumes_without_a_loss_file(source, tmp_path, listener):
    with pytest.raises(TrainingInterrupted):
        train(source, tmp_path / "run", progress=listener(stop_at=40))
    run = RunDirectory(tmp_path / "run")
    run.losses.unlink()
    resume_run(run.path, Progress(), Clock(source=SlowClock()))
    assert min(steps(run.read_losses())) > 40


def test_merged_in_pairs_keeps_the_mean_and_the_last_point():
    points = [{"step": i, "tokens": 10 * i * i, "train_nats": 1.0 / i} for i in range(1, 8)]
    merged = merged_in_pairs(points)
    assert steps(merged) == [2, 4, 6, 7]

    def mean(lines):
        before, total = 0, 0.0
        for line in lines:
            total += line["train_nats"] * (line["tokens"] - before)
            before = line["tokens"]
        return total / before

    assert mean(merged) == pytest.approx(mean(points), abs=1e-5)


@pytest.mark.parametrize("hours", [0.01, 1.0, 10.0, 1000.0])
def test_interval_limits_the_number_of_points(hours):
    time, count = 0.0, 0
    while time < hours * 3600:
        time += interval(time)
        count += 1
        if count > MAX_POINTS:
            count //= 2
    assert count <= MAX_POINTS
    assert count >= min(hours * 3600, MAX_POINTS / 3)


def test_write_svg_draws_the_points_between_evaluations(tmp_path):
    pytest.importorskip("matplotlib")
    report = {"step": 9, "tokens": 90, "train_nats": 1.0, "val_nats": 1.0}
    points = [{"step": i, "tokens": 10 * i, "train_nats": 1.0 / i} for i in range(1, 10)]

    def line_points(losses):
        curve.write_svg([report, {**report, "tokens": 99}], tmp_path / "a.svg", "t", losses)
        picture = (tmp_path / "a.svg").read_text("utf-8")
        return picture.count("\nL ")

    assert line_points(points) > line_points([]) + 5


def test_loss_file_has_one_line_per_point(source, tmp_path):
    run = train(source, tmp_path / "run")
    lines = run.losses.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == run.read_losses()
    assert max(map(len, lines)) < 100


def test_loss_curve_full_disk_is_a_warning(run, tmp_path, monkeypatch, listener):
    def fail(directory, points):
        raise OSError(28, "No space left on device", "loss.jsonl")

    monkeypatch.setattr(RunDirectory, "write_losses", fail)
    progress = listener()
    run(tmp_path / "run", progress, steps=6)
    warnings = [m for m in progress.messages if "loss curve is not recorded" in m]
    assert len(warnings) == 1
    assert "No space left on device (loss.jsonl)" in warnings[0]


def test_plot_with_damaged_losses_is_drawn_with_warning(run, tmp_path, listener):
    pytest.importorskip("matplotlib")
    run(tmp_path / "run", steps=6)
    (tmp_path / "run" / "loss.jsonl").write_bytes(b"\xff\n")
    progress = listener()
    recurra.resume(tmp_path / "run", plot=True, progress=progress)
    assert (tmp_path / "run" / "loss.svg").is_file()
    assert any("the plot lacks the training loss" in m for m in progress.messages)
