"""Trainings reproduce the losses, weights and text that version 0.1 recorded.

On the machine class of the records all bits must be equal. On others the losses must agree to 1e-6
(bf16: 1e-3, because instruction sets round its products differently).
"""

import json

import pytest

import recurra
from golden import scenarios

RECORD = json.loads(scenarios.RECORDS.read_text("utf-8"))
IS_SAME_MACHINE = scenarios.machine() == RECORD["machine"]


def assert_matches(folder, expected, *, tolerance=1e-6):
    assert scenarios.losses(folder) == pytest.approx(expected["losses"], rel=tolerance)
    if IS_SAME_MACHINE:
        assert scenarios.describe(folder) == expected


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_train_matches_recorded_losses_weights_and_text(name, tmp_path):
    scenarios.train(name, tmp_path / "run")
    tolerance = 1e-3 if name.endswith("bf16") else 1e-6
    assert_matches(tmp_path / "run", RECORD["scenarios"][name], tolerance=tolerance)


def test_resume_matches_record_of_uninterrupted_run(tmp_path):
    scenarios.train(scenarios.RESUMED, tmp_path / "run", stop_after=11)
    assert len(scenarios.losses(tmp_path / "run")) < scenarios.STEPS
    scenarios.resume(tmp_path / "run")
    assert_matches(tmp_path / "run", RECORD["scenarios"][scenarios.RESUMED])


@pytest.mark.torchrun
def test_train_in_two_processes_matches_record(tmp_path):
    scenarios.train_in_two_processes(scenarios.RESUMED, tmp_path / "run")
    assert_matches(tmp_path / "run", RECORD["two_processes"])


def test_load_run_of_0_1_generates_recorded_text(tmp_path):
    run = scenarios.copy_run("complete", tmp_path)
    expected = RECORD["scenarios"][scenarios.RESUMED]
    assert scenarios.losses(run) == pytest.approx(expected["losses"], rel=1e-6)
    assert scenarios.weights_hash(run) == expected["weights"]
    assert recurra.load(run).generate("The ", max_new_tokens=200, seed=5) == expected["text"]


def test_resume_run_of_0_1_matches_record(tmp_path):
    run = scenarios.copy_run("interrupted", tmp_path)
    scenarios.resume(run)
    assert_matches(run, RECORD["scenarios"][scenarios.RESUMED])
