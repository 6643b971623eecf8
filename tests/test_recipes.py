"""Recipes of docs/architecture.md: a new part is one file and one row of a table."""

import json
import logging
import sys
import types
from unittest import mock

import pytest
import torch

import recurra
from conformance import checks
from recurra import api
from recurra.cli import main as command_line
from recurra.config.backends import BACKEND_MODULES
from recurra.config.optimizers import OPTIMIZERS, OptimizerSpec
from recurra.engine import select
from recurra.errors import ConfigError, RunError, TrainingInterrupted
from recurra.recurrence.cells import CELLS
from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.training import run as run_module
from support.recorded import RecordedEngine
from support.toy_optimizer import SignMomentum

SMALL = {"hidden_size": 12, "batch_size": 4, "num_steps": 16, "sample_length": 20, "threads": 1}


@pytest.fixture(autouse=True)
def _reset_logged_reasons(monkeypatch):
    monkeypatch.setattr(select, "_logged", set())


@pytest.fixture
def toy_optimizer(monkeypatch):
    row = OptimizerSpec("support.toy_optimizer:SignMomentum", ("momentum",), slots=("mean",))
    monkeypatch.setitem(OPTIMIZERS, "sign-momentum", row)
    return {"optimizer": "sign-momentum", "momentum": 0.9, "lr": 2e-3, **SMALL}


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["train_nats"] for line in lines]


def test_backend_added_as_one_file_and_row_trains(source, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKEND_MODULES, "toy", "support.toy_backend")
    assert checks.check_backend("toy", CELLS) == ["rnn"]
    options = {"steps": 8, "report_every": 4, "cell": "rnn", **SMALL}
    api.train(source, out=tmp_path / "toy", backend="toy", **options)
    api.train(source, out=tmp_path / "reference", backend="reference", **options)
    assert losses(tmp_path / "toy") == pytest.approx(losses(tmp_path / "reference"), rel=1e-4)
    assert api.load(tmp_path / "toy").generate("the", max_new_tokens=5, seed=0)
    with pytest.raises(ConfigError, match="no gru cell; use auto, reference"):
        api.train(source, out=tmp_path / "gru", backend="toy", **options | {"cell": "gru"})


def test_optimizer_added_as_one_file_and_row_trains(source, tmp_path, toy_optimizer, caplog):
    caplog.set_level(logging.INFO, logger="recurra")
    checks.check_optimizer("sign-momentum", momentum=0.9, lr=2e-3)
    api.train(source, out=tmp_path / "run", steps=60, report_every=20, **toy_optimizer)
    first, *_, last = losses(tmp_path / "run")
    assert last < first - 0.1
    assert "the compiled kernels have no update for sign-momentum" in caplog.text


def test_optimizer_added_as_one_file_and_row_resumes(source, tmp_path, toy_optimizer, listener):
    options = {"steps": 12, "report_every": 3, **toy_optimizer}
    api.train(source, out=tmp_path / "whole", **options)
    with pytest.raises(TrainingInterrupted):
        api.train(source, out=tmp_path / "parts", progress=listener(stop_at=7), **options)
    run_module.resume_run(tmp_path / "parts", Progress(), Clock())
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_registered_optimizer_trains_and_resumes_exactly(source, tmp_path, listener):
    with mock.patch.dict(OPTIMIZERS):
        recurra.register_optimizer(
            SignMomentum, name="my-optimizer", options=("momentum",), slots=("mean",)
        )
        options = {"steps": 12, "report_every": 3, "momentum": 0.9, "lr": 2e-3, **SMALL}
        options["optimizer"] = "my-optimizer"
        api.train(source, out=tmp_path / "whole", **options)
        with pytest.raises(TrainingInterrupted):
            api.train(source, out=tmp_path / "parts", progress=listener(stop_at=7), **options)
        recurra.resume(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    with pytest.raises(RunError, match=r"optimizer is 'my-optimizer'.*recurra.register_optimizer"):
        recurra.resume(tmp_path / "parts", steps=20)


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (
            SignMomentum,
            {"options": ("momentum",)},
            "state of the optimizer new has mean",
        ),
        (SignMomentum, {"name": "adam"}, "recurra itself has the optimizer adam"),
        (SignMomentum, {"name": "a b"}, "must start with a letter"),
        (SignMomentum, {"slot": "mean"}, "cannot be registered.*slot"),
        (SignMomentum, {"options": ("beta",)}, "a step of the optimizer new failed.*beta"),
        (torch.nn.Linear, {}, "not a subclass of torch.optim.Optimizer"),
    ],
)
def test_register_optimizer_invalid_raises(optimizer, options, message):
    with pytest.raises(ConfigError, match=message):
        recurra.register_optimizer(optimizer, **{"name": "new"} | options)
    assert "new" not in OPTIMIZERS


def test_train_unknown_optimizer_error_lists_names():
    with pytest.raises(ConfigError, match="sgd, adam, adamw"):
        api.train("x", steps=1, optimizer="sign-momentum")


def test_engine_added_as_one_file_and_row_is_selected(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(select, "ENGINES", (RecordedEngine, *select.ENGINES))
    caplog.set_level(logging.INFO, logger="recurra")
    api.train(source, out=tmp_path / "a", steps=8, report_every=4, backend="bptt", **SMALL)
    assert "RecordedEngine" not in caplog.text
    api.train(source, out=tmp_path / "b", steps=8, report_every=4, backend="reference", **SMALL)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-4)


def test_command_added_as_one_module_and_row_runs(monkeypatch, capsys):
    module = types.ModuleType("recurra.cli.hello")
    module.run = lambda arguments: print("hello", *arguments) or 0
    monkeypatch.setitem(sys.modules, "recurra.cli.hello", module)
    monkeypatch.setitem(command_line.COMMANDS, "hello", "say hello")
    assert command_line.main(["hello", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    command_line.main(["--help"])
    assert "hello      say hello" in capsys.readouterr().out
