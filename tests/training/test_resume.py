"""Resuming from the newest intact checkpoint: exactness, rejected changes and recovery."""

import errno
import itertools
import json
import os
import re
import signal

import pytest
import torch

from recurra import api
from recurra.config import RunOptions
from recurra.errors import ConfigError, RunError, TrainingInterrupted
from recurra.report.progress import Progress
from recurra.runs import compatibility
from recurra.runs.checkpoint_store import CheckpointStore
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training import run as run_module

OPTIONS = {
    "steps": 30, "num_layers": 2, "dropout": 0.3, "report_every": 6, "checkpoint_every": 4,
}  # fmt: skip


def resume(folder, progress=None, **arguments):
    return run_module.resume_run(folder, progress or Progress(), Clock(), **arguments)


def stop(run, listener, folder, step, **options):
    with pytest.raises(TrainingInterrupted):
        run(folder, listener(stop_at=step), **OPTIONS | options)


def edit(file, change):
    record = json.loads(file.read_text("utf-8"))
    change(record)
    file.write_text(json.dumps(record), "utf-8")


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("step", [1, 6, 17])
def test_resume_interrupted_run_has_identical_files(
    run, tmp_path, listener, crash, sampling, optimizer, step
):
    options = {"sampling": sampling, "optimizer": optimizer, "momentum": 0.5}
    run(tmp_path / "uninterrupted", **OPTIONS | options)
    stop(run, listener, tmp_path / "parts", step, **options)
    api.load(tmp_path / "parts")
    resume(tmp_path / "parts")
    assert crash.differences(tmp_path / "uninterrupted", tmp_path / "parts") == []


def test_train_equal_seeds_give_equal_files(run, tmp_path, crash):
    run(tmp_path / "a", **OPTIONS)
    run(tmp_path / "b", **OPTIONS)
    assert crash.differences(tmp_path / "a", tmp_path / "b") == []
    run(tmp_path / "c", **OPTIONS, seed=2)
    assert "model.safetensors" in crash.differences(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("training", "lr", 0.5), ("training", "seed", 9),
     ("model", "hidden_size", 25), ("text", "min_freq", 2), ("training", "lr_milestones", [0.1])],
)  # fmt: skip
def test_resume_changed_setting_error_names_field(run, tmp_path, listener, section, name, value):
    stop(run, listener, tmp_path / "run", 9)
    config = tmp_path / "run" / "config.json"
    was = json.loads(config.read_text("utf-8"))[section][name]
    edit(config, lambda record: record[section].update({name: value}))
    with pytest.raises(RunError) as error:
        resume(tmp_path / "run")
    assert re.search(
        rf"{section}\.{name} .*{re.escape(repr(value))}.*{re.escape(repr(was))}", str(error.value)
    )


def test_resume_accepts_settings_without_effect_on_result(run, tmp_path, listener, crash):
    run(tmp_path / "uninterrupted", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 9)
    changed = {"on_nan": "rollback", "device": "cpu", "plot": True}
    resume(tmp_path / "parts", options=RunOptions.of(**changed))
    found = crash.differences(tmp_path / "uninterrupted", tmp_path / "parts")
    # `plot` adds the plot; the other settings change no file.
    assert found == ["loss.svg"]
    with pytest.raises(ConfigError, match=r"training\.lr .*0\.25.*0\.01"):
        resume(tmp_path / "parts", options=RunOptions.of(**changed, lr=0.25))


def test_resume_changed_text_or_vocabulary_is_rejected(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    tokens, vocabulary = tmp_path / "run" / "tokens.bin", tmp_path / "run" / "vocabulary.json"
    intact = tokens.read_bytes()
    tokens.write_bytes(intact[::-1])
    with pytest.raises(RunError, match=r"tokens\.bin .*SHA-256"):
        resume(tmp_path / "run")
    tokens.write_bytes(intact)
    symbols = json.loads(vocabulary.read_text("utf-8"))
    symbols["tokens"][1:3] = symbols["tokens"][2:0:-1]
    vocabulary.write_text(json.dumps(symbols), "utf-8")
    with pytest.raises(RunError, match=r"vocabulary\.json"):
        resume(tmp_path / "run")


def test_resume_checkpoint_of_other_text_is_rejected(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    (tmp_path / "text.txt").write_text(
        "the dog sat on the mat and the cat sat on the log. " * 39, "utf-8"
    )
    run(tmp_path / "other", steps=1)
    for name in ("tokens.bin", "tokens.json", "vocabulary.json"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(RunError, match=r"tokens\.sha256"):
        resume(tmp_path / "run")


def test_resume_on_other_machine_warns(run, tmp_path, listener, monkeypatch):
    stop(run, listener, tmp_path / "run", 9)
    monkeypatch.setattr(compatibility, "processor_name", lambda: "Z80")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    torch.set_num_threads(2)
    progress = listener()
    resume(tmp_path / "run", progress)
    warnings = " ".join(m for m in progress.messages if m.startswith("warning"))
    for change in ("processor is 'Z80'", "torch is '9.9.9'", "threads is 2"):
        assert change in warnings
    assert "last bits" in warnings


def test_resume_same_machine_does_not_warn(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    progress = listener()
    resume(tmp_path / "run", progress)
    assert [m for m in progress.messages if "warning" in m or "damaged" in m or "note" in m] == []


@pytest.mark.parametrize("file", ["state.safetensors", "training.json", "best.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_resume_damaged_checkpoint_uses_previous_one(run, tmp_path, listener, crash, file, damage):
    run(tmp_path / "uninterrupted", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 14)
    newest = tmp_path / "parts" / "checkpoints" / "step-00000014"
    data = bytearray((newest / file).read_bytes())
    data[len(data) // 2] ^= 4
    contents = {"flip": bytes(data), "cut": bytes(data[:-1])}
    (newest / file).unlink()
    if damage in contents:
        (newest / file).write_bytes(contents[damage])
    progress = listener()
    resume(tmp_path / "parts", progress)
    assert any("step-00000014" in m and "resuming from" in m for m in progress.messages)
    assert crash.differences(tmp_path / "uninterrupted", tmp_path / "parts") == []


@pytest.mark.slow
def test_resume_detects_every_damaged_byte(run, tmp_path, listener):
    """Flip or cut every byte of the newest checkpoint; resuming uses the previous one."""
    tiny = {"hidden_size": 2, "embedding_size": 2, "batch_size": 1, "num_layers": 1, "dropout": 0.0}
    stop(run, listener, tmp_path / "run", 10, **tiny)
    checkpoints = CheckpointStore(tmp_path / "run" / "checkpoints")
    previous, newest = checkpoints.names()
    for file in (checkpoints.folder / newest).iterdir():
        data = file.read_bytes()
        with file.open("r+b") as stream:
            for position in range(len(data)):
                stream.seek(position)
                stream.write(bytes([data[position] ^ 1]))
                stream.flush()
                with pytest.raises(RunError, match="damaged"):
                    checkpoints.verify(newest)
                stream.seek(position)
                stream.write(data[position : position + 1])
            for length in reversed(range(len(data))):
                stream.truncate(length)
                with pytest.raises(RunError, match="damaged"):
                    checkpoints.verify(newest)
        progress = listener()
        file.write_bytes(data[:-1])
        chosen = _checkpoint_to_resume(tmp_path / "run", progress)
        assert chosen == previous
        assert any("damaged" in m for m in progress.messages)
        file.write_bytes(data)
    assert _checkpoint_to_resume(tmp_path / "run", Progress()) == newest


def _checkpoint_to_resume(folder, progress):
    """Return the checkpoint that a resumed run would load."""
    from recurra.data.token_file import load_token_file
    from recurra.runtime.clock import Clock
    from recurra.runtime.distributed import SINGLE_PROCESS
    from recurra.runtime.signals import StopSignals
    from recurra.training.callbacks.checkpointing import Checkpointing
    from recurra.training.context import RunContext

    run_folder = RunDirectory(folder)
    config = run_folder.read_config()
    belongs = compatibility.identity(config, load_token_file(folder))
    context = RunContext(progress, Clock(), SINGLE_PROCESS, StopSignals())
    checkpointing = Checkpointing(run_folder, config.training, belongs, context)
    return checkpointing._newest_intact(checkpointing.checkpoints.names())


def test_resume_all_checkpoints_damaged_raises(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 14)
    for file in (tmp_path / "run" / "checkpoints").glob("*/state.safetensors"):
        os.truncate(file, 10)
    with pytest.raises(RunError, match=r"no checkpoint of .* is intact: .*damaged"):
        resume(tmp_path / "run")


def test_resume_restores_best_weights_and_cuts_later_records(run, tmp_path, listener, crash):
    run(tmp_path / "uninterrupted", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 14)
    (tmp_path / "parts" / "model.safetensors").write_bytes(b"gone")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99}\n')
    with (tmp_path / "parts" / "samples.jsonl").open("a") as file:
        file.write('{"step": 99, "te')
    resume(tmp_path / "parts")
    assert crash.differences(tmp_path / "uninterrupted", tmp_path / "parts") == []


@pytest.mark.parametrize("damage", ["delete", "shorten", "change", "first line", "fields"])
def test_resume_with_damaged_metrics_keeps_intact_lines_and_trains_to_same_weights(
    run, tmp_path, listener, lines, damage
):
    run(tmp_path / "uninterrupted", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 14)
    metrics = tmp_path / "parts" / "metrics.jsonl"
    data, num_lines = metrics.read_bytes(), len(lines(tmp_path / "parts"))
    if damage == "delete":
        metrics.unlink()
    else:
        changed = {
            "shorten": data[:-5],
            "change": data.replace(b'"step"', b'"stop"'),
            "first line": data[:20] + b"#" * 10 + data[30:],
            "fields": b'{"step": 1}\n' + data.partition(b"\n")[2],
        }
        metrics.write_bytes(changed[damage])
    progress = listener()
    resume(tmp_path / "parts", progress)
    kept = {"delete": 0, "change": 0}.get(damage, num_lines - 1)
    unit = "line" if kept == 1 else "lines"
    assert f"{metrics} is damaged; {kept} {unit} of it were kept" in progress.messages
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("uninterrupted", "parts")
    ]
    assert weights[0] == weights[1]


def test_checkpoint_size_does_not_depend_on_number_of_evaluations(run, tmp_path):
    sizes = []
    for name, report_every in (("few", 50), ("many", 1)):
        run(tmp_path / name, steps=50, report_every=report_every, sample_length=1)
        last = sorted((tmp_path / name / "checkpoints").iterdir())[-1]
        sizes.append(sum(file.stat().st_size for file in last.iterdir()))
    assert abs(sizes[0] - sizes[1]) < 200


def test_resume_restores_damaged_weights_of_finished_run(run, tmp_path):
    run(tmp_path / "run", steps=6)
    model = tmp_path / "run" / "model.safetensors"
    intact = model.read_bytes()
    model.write_bytes(intact[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors is damaged: .*--resume"):
        api.load(tmp_path / "run")
    resume(tmp_path / "run")
    assert model.read_bytes() == intact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "code"),
    [(["write"], errno.ENOSPC), (["fsync"], errno.EIO), (["rename", "replace"], errno.EIO)],
    ids=["write", "fsync", "rename"],
)
def test_resume_after_any_failed_call_is_exact(
    run, tmp_path, crash, monkeypatch, fail_at, listener, names, code
):
    """The k-th call fails, for k = 1, 2, ... until training needs fewer; each run is resumed."""
    options = {"steps": 3, "report_every": 2, "checkpoint_every": 1, "hidden_size": 4}
    run(tmp_path / "uninterrupted", **options)
    for k in itertools.count(1):
        folder = tmp_path / f"run-{k}"
        kept, progress = {}, listener()
        with monkeypatch.context() as patch:
            fault = fail_at(patch, names, k, code)
            patch.setattr(
                "recurra.training.callbacks.checkpointing.Checkpointing.save",
                _save_with_copy(kept, folder / "checkpoints"),
            )
            failed = None
            try:
                run(folder, progress, **options)
            except OSError as error:
                failed = error
        # Training continues without the curve of the loss.
        is_curve = any("loss curve is not recorded" in m for m in progress.messages)
        assert fault.failed == (is_curve or (failed is not None and failed.errno == code))
        if not fault.failed:
            break
        if not folder.exists():
            continue  # the failure came before the run directory was created
        for name, files in kept.items():
            path = folder / "checkpoints" / name
            assert {p.name: p.read_bytes() for p in path.iterdir()} == files
            CheckpointStore(folder / "checkpoints").verify(name)
        resume(folder)
        assert crash.differences(tmp_path / "uninterrupted", folder) == []
        assert not [p for p in folder.rglob(".*") if p.name != ".lock"]
    assert k > 5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def _save_with_copy(kept, folder):
    """Return a `Checkpointing.save` that first stores the newest checkpoint in `kept`."""
    from recurra.training.callbacks.checkpointing import Checkpointing

    original = Checkpointing.save

    def save(self, *args):
        newest = CheckpointStore(folder).names()[-1:]
        kept.clear()
        for name in newest:
            kept[name] = {p.name: p.read_bytes() for p in (folder / name).iterdir()}
        original(self, *args)
        kept.clear()

    return save


def test_train_reports_checkpoint_size_and_cost(run, tmp_path, listener):
    progress = listener()
    run(tmp_path / "run", progress, steps=30, report_every=10)
    assert any(m.startswith("checkpoint:") and "MB" in m for m in progress.messages)
    assert any(m.startswith("checkpoints:") and "%" in m for m in progress.messages)


def test_resume_continues_elapsed_time(run, tmp_path, listener, lines):
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "run", listener(stop_at=9), minutes=0.05)
    *_, newest = CheckpointStore(tmp_path / "run" / "checkpoints").names()
    session = tmp_path / "run" / "checkpoints" / newest / "session.json"
    before = json.loads(session.read_text("utf-8"))["timing"]["seconds"]
    clock = Clock()
    run_module.resume_run(tmp_path / "run", Progress(), clock)
    assert clock.seconds() >= before
    seconds = [m["seconds"] for m in lines(tmp_path / "run")]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 6.0


def test_training_interrupted_has_signal_number(run, tmp_path, listener):
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(TrainingInterrupted) as stopped:
            run(tmp_path / f"run-{signum}", listener(stop_at=3, signum=signum), steps=9)
        assert stopped.value.signum == signum
        assert "saved in" in str(stopped.value)
        assert signal.getsignal(signum) != signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
