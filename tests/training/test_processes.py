"""Data-parallel training: equal to one process, after restarts, and by another number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import BatchStream
from recurra.errors import ConfigError, RunError
from recurra.model import RecurrentLM
from recurra.recurrence.layer import Rows
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import Processes
from recurra.training import run as run_module

pytestmark = [
    pytest.mark.torchrun,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]

# Nine rows, so that the two processes have four and five.
OPTIONS = [
    "--steps", "40", "--num-layers", "2", "--dropout", "0.2", "--hidden-size", "32",
    "--batch-size", "9", "--num-steps", "16", "--report-every", "10", "--checkpoint-every", "8",
    "--sample-length", "10", "--threads", "1", "--device", "cpu",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TOLERANCE = 1e-5


def one_process(source, folder, *options):
    command = [sys.executable, "-m", "recurra", "train", str(source), "--out", str(folder)]
    subprocess.run([*command, *OPTIONS, "--quiet", *options], check=True, timeout=120)


def start(*arguments, restarts=0):
    command = [*TORCHRUN, "--max-restarts", str(restarts), "-m", "recurra", *map(str, arguments)]
    # A separate session, so that `finish` can kill all of its processes.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(process, seconds=120):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out.decode(), err.decode()


def two_processes(*arguments):
    code, out, err = finish(start(*arguments))
    assert code == 0, err
    return out, err


def final_state(folder):
    return load_file(sorted(folder.glob("checkpoints/*-final/state.safetensors"))[-1])


def relative_error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


def assert_equal_within_rounding(folder, other):
    a, b = final_state(folder), final_state(other)
    assert a.keys() == b.keys()
    assert torch.equal(a.pop("random.cpu"), b.pop("random.cpu"))
    for name in a:
        assert relative_error(a[name], b[name]) < TOLERANCE, name
    for line, expected in zip(metrics(folder), metrics(other), strict=True):
        for name in ("train_nats", "val_nats", "grad_norm"):
            assert line[name] == pytest.approx(expected[name], rel=TOLERANCE)
        assert line["tokens"] == expected["tokens"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_train_two_processes_equal_one_process(source, tmp_path, sampling):
    one_process(source, tmp_path / "one", "--sampling", sampling)
    options = [*OPTIONS, "--sampling", sampling, "--json", "--quiet"]
    out, _ = two_processes("train", source, "--out", tmp_path / "two", *options)
    assert_equal_within_rounding(tmp_path / "two", tmp_path / "one")
    # Only rank 0 prints.
    assert len(out.splitlines()) == 4 + 1
    assert json.loads(out.splitlines()[-1])["run"] == str(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_killed_process_restarts_to_same_result(source, tmp_path, crash, victim):
    two_processes("train", source, "--out", tmp_path / "uninterrupted", *OPTIONS, "--steps", "160")
    job = start(
        "train", source, "--out", tmp_path / "parts", *OPTIONS, "--steps", "160", restarts=2
    )
    wait_for(tmp_path / "parts" / "checkpoints" / "step-00000040")
    os.kill(process_of_rank(victim, tmp_path / "parts"), signal.SIGKILL)
    code, _, err = finish(job)
    assert code == 0, err
    assert "another process" in err
    assert "continues from step" in err
    assert crash.differences(tmp_path / "uninterrupted", tmp_path / "parts") == []


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        # Another process creates the file, so the test polls.
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_of_rank(rank, folder):
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (
                (entry / "cmdline").read_bytes(),
                (entry / "environ").read_bytes(),
            )
        except OSError:
            continue  # the process has ended
        if str(folder).encode() in command and f"RANK={rank}".encode() in environment.split(b"\0"):
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_resume_other_process_count_uses_same_data(source, tmp_path, run, listener):
    one_process(source, tmp_path / "one")
    job = start("train", source, "--out", tmp_path / "parts", *OPTIONS, "--steps", "40")
    wait_for(tmp_path / "parts" / "checkpoints" / "step-00000016")
    job.send_signal(signal.SIGTERM)
    finish(job)
    progress = listener()
    run_module.resume_run(tmp_path / "parts", progress, Clock())
    if not any("already finished" in line for line in progress.plans):
        assert any("processes is 1" in m for m in progress.messages)
    assert_equal_within_rounding(tmp_path / "parts", tmp_path / "one")


def test_torchrun_missing_source_is_reported_once(tmp_path):
    code, _, err = finish(start("train", tmp_path / "no.txt", "--out", tmp_path / "runs" / "new"))
    assert code == 1
    assert err.count("recurra: ") == 1
    assert "no.txt" in err
    assert not (tmp_path / "runs").exists()


def test_train_restarted_job_resumes_only_its_own_run(source, tmp_path, run, monkeypatch):
    run(tmp_path / "keep", steps=2)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RunError, match="--force"):
        run(tmp_path / "keep", steps=2)
    run(tmp_path / "own", steps=2)
    run(tmp_path / "own", steps=2)
    monkeypatch.setenv("MASTER_PORT", "12345")
    with pytest.raises(RunError, match="--force"):
        run(tmp_path / "own", steps=2)


def test_train_restartable_job_requires_out(monkeypatch, run):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigError, match="--out"):
        run(None)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE.*two"):
        run("runs/x", steps=1)


@pytest.mark.parametrize(("total", "count"), [(9, 2), (8, 3), (5, 5), (2, 4)])
def test_processes_share_assigns_each_row_once(total, count):
    rows = list(range(total))
    shares = [rows[Processes(rank, count).share(total)] for rank in range(count)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_batch_stream_shares_join_to_whole_batch():
    ids = torch.arange(500).numpy()
    for sampling in ("sequential", "random"):
        config = TrainingConfig(batch_size=5, num_steps=7, sampling=sampling)
        batches = list(BatchStream(ids, config).epoch(1))
        parts = [list(BatchStream(ids, config, Processes(r, 2)).epoch(1)) for r in (0, 1)]
        for batch, *shared in zip(batches, *parts, strict=True):
            assert [*shared[0].ids.tolist(), *shared[1].ids.tolist()] == batch.ids.tolist()
            assert shared[0].num_tokens == batch.num_tokens
    with pytest.raises(ConfigError, match=r"batch_size 5\b.*\b6\b"):
        BatchStream(ids, config, Processes(0, 6))


def test_model_hidden_rows_use_dropout_of_whole_batch():
    model = RecurrentLM(ModelConfig(hidden_size=8, vocab_size=5, num_layers=3, dropout=0.5))
    ids = torch.randint(0, 5, (5, 6))
    torch.manual_seed(3)
    whole, _ = model.hidden(ids)
    for rows in (slice(0, 2), slice(2, 5)):
        torch.manual_seed(3)
        part, _ = model.hidden(ids[rows], rows=Rows(rows, 5))
        torch.testing.assert_close(part, whole[:, rows])


def test_processes_single_process_returns_input():
    processes = Processes()
    assert processes.sum([1.0, 2.0]) == [1.0, 2.0]
    assert processes.run_on_first(lambda: "done") == "done"
