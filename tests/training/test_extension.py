"""A run trains longer: with a greater budget it continues exactly from its end."""

import dataclasses

import pytest

from recurra.config import RunOptions
from recurra.errors import ConfigError, TrainingInterrupted
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training.run import resume_run

OPTIONS = {"hidden_size": 16, "report_every": 5, "schedule": "constant", "warmup": 0.0}


def extend(folder, progress=None, **options):
    return resume_run(folder, progress or Progress(), Clock(), options=RunOptions.of(**options))


def losses(lines, folder):
    return [(m["step"], m["train_nats"], m["val_nats"], m["lr"]) for m in lines(folder)]


@pytest.mark.parametrize("options", [{}, {"cell": "lstm", "dropout": 0.2, "sampling": "random"}])
def test_finished_run_extended_in_steps_equals_uninterrupted_run(run, lines, tmp_path, options):
    run(tmp_path / "whole", steps=30, **OPTIONS, **options)
    run(tmp_path / "parts", steps=15, **OPTIONS, **options)
    lm = extend(tmp_path / "parts", steps=30)
    assert losses(lines, tmp_path / "parts") == losses(lines, tmp_path / "whole")
    assert lm.config.training.steps == 30
    assert RunDirectory(tmp_path / "parts").read_config().training.steps == 30
    whole = RunDirectory(tmp_path / "whole").model.read_bytes()
    assert RunDirectory(tmp_path / "parts").model.read_bytes() == whole


def test_extended_run_interrupted_and_resumed_equals_uninterrupted_run(
    run, lines, tmp_path, listener
):
    run(tmp_path / "whole", steps=30, **OPTIONS)
    run(tmp_path / "parts", steps=10, **OPTIONS)
    with pytest.raises(TrainingInterrupted):
        extend(tmp_path / "parts", listener(stop_at=20), steps=30)
    resume_run(tmp_path / "parts", Progress(), Clock())
    assert losses(lines, tmp_path / "parts") == losses(lines, tmp_path / "whole")


def test_interrupted_run_with_other_budget_trains_to_new_end(run, lines, tmp_path, listener):
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "run", listener(stop_at=7), steps=10, **OPTIONS)
    extend(tmp_path / "run", steps=20)
    assert [step for step, *_ in losses(lines, tmp_path / "run")] == [5, 10, 15, 20]


def test_schedule_of_extended_run_continues_at_fraction_of_new_budget(
    run, lines, tmp_path, listener
):
    options = OPTIONS | {"schedule": "linear", "final_lr": 0.0, "lr": 0.1}
    run(tmp_path / "run", steps=10, **options)
    progress = listener()
    extend(tmp_path / "run", progress, steps=20)
    rates = {step: rate for step, *_, rate in losses(lines, tmp_path / "run")}
    assert rates[10] < 0.02
    assert rates[15] == pytest.approx(0.1 * (1 - 14 / 20))
    shown = " ".join(progress.messages)
    assert "20 steps, counted from the start of the run; 50% of it is spent" in shown
    assert "linear schedule" in shown
    assert "is 0.05, and was 0" in shown


def test_budget_in_other_unit_replaces_old_one(run, lines, tmp_path):
    run(tmp_path / "run", steps=10, **OPTIONS)
    lm = extend(tmp_path / "run", minutes=0.1)
    training = lm.config.training
    assert (training.steps, training.minutes) == (None, 0.1)
    assert losses(lines, tmp_path / "run")[-1][0] > 10


def test_reports_of_extended_run_are_spread_over_new_part(run, lines, tmp_path):
    options = OPTIONS | {"report_every": None}
    run(tmp_path / "run", steps=20, **options)
    extend(tmp_path / "run", steps=60)
    steps = [step for step, *_ in losses(lines, tmp_path / "run")]
    assert len([step for step in steps if 20 < step < 60]) > 8


@pytest.mark.parametrize("steps", [9, 7])
def test_budget_that_is_spent_raises_config_error_and_keeps_config(run, tmp_path, steps):
    run(tmp_path / "run", steps=10, **OPTIONS)
    with pytest.raises(ConfigError, match=r"10 steps, .* --steps greater than 10"):
        extend(tmp_path / "run", steps=steps)
    assert RunDirectory(tmp_path / "run").read_config().training.steps == 10


def test_run_extended_and_killed_before_first_checkpoint_continues(run, lines, tmp_path):
    run(tmp_path / "run", steps=10, **OPTIONS)
    directory = RunDirectory(tmp_path / "run")
    config = directory.read_config()
    # The state that is left if the process is killed after it has written config.json.
    training = dataclasses.replace(config.training, steps=20)
    provenance = directory.read_provenance()
    directory.write_config(dataclasses.replace(config, training=training), provenance)
    resume_run(tmp_path / "run", Progress(), Clock())
    assert losses(lines, tmp_path / "run")[-1][0] == 20


def test_greater_budget_in_minutes_replaces_max_epochs(run, lines, tmp_path):
    run(tmp_path / "run", minutes=1.0, max_epochs=0.5, **OPTIONS)
    reached = losses(lines, tmp_path / "run")[-1][0]
    with pytest.raises(ConfigError, match=r"--max-epochs greater than 0\.4"):
        extend(tmp_path / "run", max_epochs=0.4)
    lm = extend(tmp_path / "run", steps=reached + 5)
    assert lm.config.training.max_epochs is None
    assert losses(lines, tmp_path / "run")[-1][0] == reached + 5


def test_extension_does_not_store_free_settings(run, tmp_path):
    run(tmp_path / "run", steps=10, **OPTIONS)
    before = RunDirectory(tmp_path / "run").read_config().training
    extend(tmp_path / "run", steps=20, threads=1, checkpoint_every=3)
    after = RunDirectory(tmp_path / "run").read_config().training
    assert after == dataclasses.replace(before, steps=20)


def test_run_stopped_by_patience_continues_with_greater_budget(run, lines, tmp_path):
    run(tmp_path / "run", steps=100, **OPTIONS | {"lr": 1e-12, "patience": 2, "report_every": 2})
    stopped = losses(lines, tmp_path / "run")[-1][0]
    assert stopped < 100
    extend(tmp_path / "run", steps=101)
    assert losses(lines, tmp_path / "run")[-1][0] > stopped


def test_several_budgets_raise_config_error(run, tmp_path):
    run(tmp_path / "run", steps=10, **OPTIONS)
    with pytest.raises(ConfigError, match="only one budget"):
        extend(tmp_path / "run", steps=20, minutes=1.0)


def test_finished_run_resumed_without_budget_names_what_to_do(run, tmp_path, listener):
    run(tmp_path / "run", steps=10, **OPTIONS)
    progress = listener()
    resume_run(tmp_path / "run", progress, Clock())
    assert any("greater budget" in line for line in progress.plans)
