"""The device `auto`: a GPU is used only if its measured steps are faster than those of the CPU."""

import json
import shutil

import pytest
import torch

import recurra
from recurra.config import RunOptions
from recurra.errors import ConfigError
from recurra.report.progress import Progress
from recurra.runtime import devices, distributed
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import Processes
from recurra.runtime.signals import StopSignals
from recurra.training import device_choice
from recurra.training.context import RunContext, open_context
from recurra.training.trials import TrialError
from support.simulated_device import simulate_gpu

CPU, GPU, MPS = (torch.device(name) for name in ("cpu", "cuda:0", "mps"))
TEXT = 1_000_000


def settle(speeds, listener, gpu=GPU, **options):
    """Return the configuration and the lines of output for speeds, or errors, of the devices."""
    progress, measured = listener(), []

    def trial_on(device):
        def trial(config):
            measured.append(device)
            result = speeds[device.type]
            if isinstance(result, Exception):
                raise result
            return result(config) if callable(result) else result

        return trial

    context = RunContext(progress, Clock(), Processes(device=gpu), StopSignals())
    given = RunOptions.of(**options).with_vocab_size(65)
    config = device_choice.settle(given, TEXT, trial_on, context)
    return config, progress.plans, measured


@pytest.mark.parametrize("budget", [{"steps": 100}, {"minutes": 1.0}])
def test_settle_faster_gpu_is_chosen(listener, budget):
    config, lines, _ = settle({"cpu": 1e11, "cuda": 5e12}, listener, **budget)
    assert config.training.device == "cuda"
    assert lines[0].startswith("device    cuda: ")
    assert "; cpu is not faster: " in lines[0]
    assert lines[0].count("tokens/s") == 2


@pytest.mark.parametrize("budget", [{"steps": 100}, {"minutes": 1.0}])
@pytest.mark.parametrize("speed", [9e10, 1e11])
def test_settle_gpu_that_is_not_faster_is_not_chosen(listener, budget, speed):
    speeds = {"cpu": 1e11, "cuda": speed}
    config, lines, _ = settle(speeds, listener, hidden_size=64, batch_size=16, **budget)
    assert config.training.device == "cpu"
    assert lines[0].startswith("device    cpu: ")
    assert "; cuda is not faster: " in lines[0]


def test_settle_compares_recipes_by_useful_work(listener):
    """The recipe of each device is measured, with its own size and batch."""
    speeds = {"cpu": 1e11, "cuda": lambda config: 4e10 * config.training.batch_size / 16}
    config, lines, _ = settle(speeds, listener, minutes=1.0)
    assert config.training.device == "cuda"
    assert config.training.batch_size > 16
    assert lines[0].count(" units") == 2
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            "CUDA out of memory",
        ),
        (
            NotImplementedError("aten::_foo is not implemented for MPS.\nSet ..."),
            "aten::_foo is not",
        ),
        (ConfigError("bf16 is not supported"), "bf16 is not supported"),
    ],
)
@pytest.mark.parametrize("budget", [{"steps": 100}, {"minutes": 1.0}])
def test_settle_gpu_that_cannot_train_is_not_chosen(listener, error, reason, budget):
    config, lines, _ = settle({"cpu": 1e11, "mps": error}, listener, MPS, **budget)
    assert config.training.device == "cpu"
    assert lines[0].startswith(f"device    cpu; mps is not used: {reason}")
    assert "\n" not in lines[0]


def test_settle_large_model_is_measured_with_one_row_on_cpu(listener):
    large = {"hidden_size": 2048, "num_layers": 2, "batch_size": 64, "steps": 10}
    rows = []

    def on_cpu(config):
        rows.append(config.training.batch_size)
        return 1e11

    for speed, measured in ((1e14, [1]), (3e12, [1, 64])):
        config, lines, _ = settle({"cpu": on_cpu, "cuda": speed}, listener, **large)
        assert config.training.device == "cuda"
        assert rows == measured
        assert ("a single row" in lines[0]) == (measured == [1])
        rows.clear()
    settle({"cpu": on_cpu, "cuda": 1e14}, listener, steps=10)
    assert rows == [32]


def test_settle_precision_without_cpu_support_chooses_gpu(listener):
    error = ConfigError("fp16 is not supported on a CPU")
    config, lines, _ = settle({"cpu": error, "cuda": 1e9}, listener, steps=10)
    assert config.training.device == "cuda"
    assert lines == ["device    cuda; cpu is not used: fp16 is not supported on a CPU"]
    with pytest.raises(TrialError, match=r"cuda: .*; cpu: "):
        settle({"cpu": error, "cuda": error}, listener, steps=10)


@pytest.mark.parametrize(("device", "gpu"), [("cpu", CPU), ("cuda", GPU), ("mps", MPS)])
def test_settle_explicit_device_is_not_compared(listener, device, gpu):
    config, lines, measured = settle({}, listener, gpu, device=device, steps=10)
    assert (config.training.device, lines, measured) == (device, [], [])
    config, lines, measured = settle({device: 1e12}, listener, gpu, device=device, minutes=1.0)
    assert config.training.device == device
    assert {found.type for found in measured} == {device}
    assert not any(line.startswith("device") for line in lines)


def test_settle_machine_without_gpu_keeps_auto(listener):
    config, lines, measured = settle({}, listener, CPU, steps=10)
    assert (config.training.device, lines, measured) == ("auto", [], [])


def device_of(folder):
    return json.loads((folder / "config.json").read_text())["training"]["device"]


def test_train_stores_device_and_resume_keeps_it(monkeypatch, run, tmp_path, listener):
    speeds = {"cpu": 2e9, "mps": 1e9}
    simulate_gpu(monkeypatch, speeds)
    progress = listener()
    run(tmp_path / "run", progress, steps=2)
    assert device_of(tmp_path / "run") == "cpu"
    assert sum(line.startswith("device    cpu: ") for line in progress.plans) == 1
    # The GPU is faster now, but the run stays on the CPU.
    speeds["mps"] = 1e10
    progress = listener()
    lm = recurra.resume(tmp_path / "run", steps=4, progress=progress)
    assert lm.model.device == CPU
    assert not any(line.startswith("device") for line in progress.plans)


def test_resume_auto_stays_on_device_of_checkpoint(monkeypatch, run, tmp_path, listener):
    run(tmp_path / "run", steps=2)
    assert device_of(tmp_path / "run") == "auto"
    simulate_gpu(monkeypatch, {"cpu": 1e9, "mps": 1e10})
    progress = listener()
    for options in ({}, {"device": "auto"}):
        lm = recurra.resume(tmp_path / "run", steps=4, progress=progress, **options)
        assert lm.model.device == CPU
    assert any("stays there; --device mps moves it" in line for line in progress.messages)


def test_resume_run_without_checkpoint_chooses_faster_device(monkeypatch, run, tmp_path, listener):
    run(tmp_path / "run", steps=2)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    simulate_gpu(monkeypatch, {"cpu": 2e9, "mps": 1e9})
    progress = listener()
    recurra.resume(tmp_path / "run", progress=progress)
    assert any(line.startswith("device    cpu: ") for line in progress.plans)


def test_open_context_auto_without_gpu_support_of_backend_is_cpu(monkeypatch):
    simulate_gpu(monkeypatch, {})
    for backend, device in (("native", "cpu"), ("reference", "mps"), ("auto", "mps")):
        config = RunOptions.of(backend=backend).config
        with open_context(config, Progress(), Clock()) as context:
            assert context.processes.device.type == device


def test_choose_device_auto_needs_a_gpu_for_every_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert devices.choose_device("auto", 1, 2) == torch.device("cuda:1")
    assert devices.choose_device("auto", 1, 3) == CPU


def test_load_auto_is_cpu(monkeypatch, run, tmp_path):
    run(tmp_path / "run", steps=2, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert recurra.load(tmp_path / "run", "auto").model.device == CPU


class SecondOfTwo(Processes):
    """The second of two processes, whose first one has chosen the CPU."""

    def run_on_first(self, work):
        return "cpu"


def test_settle_resumed_other_processes_follow_first(listener):
    processes = SecondOfTwo(rank=1, count=2, device=GPU)
    context = RunContext(listener(), Clock(), processes, StopSignals())
    moved = device_choice.settle_resumed(None, RunOptions.of().config, context)
    assert moved.processes == SecondOfTwo(rank=1, count=2, device=CPU)


def test_joined_processes_on_mps_are_rejected(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="cannot train on mps"),
        distributed.joined_processes(MPS),
    ):
        pass


@pytest.mark.parametrize("name", ["gpu", "xpu", "cuda:", "cuda:x", "CUDA", "cpu:0", ""])
def test_choose_device_unknown_name_lists_the_names(name):
    with pytest.raises(ConfigError, match="must be one of auto, cpu, cuda, cuda:N, mps"):
        devices.choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("version", "reason"), [(None, ": this build of torch"), ("13.0", "; use")]
)
def test_choose_device_missing_gpu_says_whether_torch_supports_it(monkeypatch, version, reason):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ConfigError, match=f"'cuda' is not available on this machine{reason}"):
        devices.choose_device("cuda")
