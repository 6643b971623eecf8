"""warm_up: the kinds of work that it does, and that it leaves no trace."""

import torch

import recurra
from recurra.config import RunOptions
from recurra.engine.compiled import CompiledEngine
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training import warm_up as module
from recurra.training.creation import RunRequest
from recurra.training.run import prepare_run, resume_run
from recurra.training.warm_up import warm_up


def prepared(source, path, **options):
    settings = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "steps": 6, "sample_length": 5}
    request = RunRequest([source], RunOptions.of(**settings | options))
    prepare_run(request, path, Progress(), Clock())
    return RunDirectory(path)


def test_warm_up_trains_evaluates_and_generates(source, tmp_path, monkeypatch):
    run = prepared(source, tmp_path / "run", weight_averaging=0.9, batch_growth=2)
    done = []
    for name in ("evaluate", "generate", "select_engine"):
        original = getattr(module, name)

        def noted(*arguments, _name=name, _original=original, **options):
            done.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(module, name, noted)
    steps = []
    monkeypatch.setattr(CompiledEngine, "step", lambda engine, *batch: steps.append(batch))
    warm_up(run)
    assert done == ["select_engine", "evaluate", "generate"]
    assert len(steps) == module.NUM_STEPS


def test_warm_up_changes_neither_files_nor_results(source, tmp_path):
    plain, warm = prepared(source, tmp_path / "a"), prepared(source, tmp_path / "b")
    before = {path: path.read_bytes() for path in warm.path.rglob("*") if path.is_file()}
    random = torch.get_rng_state()
    warm_up(warm)
    assert torch.equal(torch.get_rng_state(), random)
    assert {p: p.read_bytes() for p in warm.path.rglob("*") if p.is_file()} == before
    for run in (warm, plain):
        resume_run(run.path, Progress(), Clock())
    weights = [recurra.load(run.path).model.state_dict() for run in (plain, warm)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
