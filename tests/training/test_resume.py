"""Resuming: exact, refused where the result would differ, from the newest whole checkpoint."""

import errno
import itertools
import json
import os
import signal
import stat
import subprocess
import sys

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
def test_every_file_of_a_resumed_run_is_that_of_an_undisturbed_one(
    run, tmp_path, listener, crash, sampling, optimizer, step
):
    options = {"sampling": sampling, "optimizer": optimizer, "momentum": 0.5}
    run(tmp_path / "whole", **OPTIONS | options)
    stop(run, listener, tmp_path / "parts", step, **options)
    api.load(tmp_path / "parts")
    resume(tmp_path / "parts")
    assert crash.differences(tmp_path / "whole", tmp_path / "parts") == []


def test_two_runs_of_one_seed_have_the_same_files(run, tmp_path, crash):
    run(tmp_path / "a", **OPTIONS)
    run(tmp_path / "b", **OPTIONS)
    assert crash.differences(tmp_path / "a", tmp_path / "b") == []
    run(tmp_path / "c", **OPTIONS, seed=2)
    assert "model.safetensors" in crash.differences(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("training", "lr", 0.5), ("training", "seed", 9), ("training", "steps", 31),
     ("model", "hidden_size", 25), ("text", "min_freq", 2), ("training", "lr_milestones", [0.1])],
)  # fmt: skip
def test_other_settings_are_refused_by_name(run, tmp_path, listener, section, name, value):
    stop(run, listener, tmp_path / "run", 9)
    config = tmp_path / "run" / "config.json"
    was = json.loads(config.read_text("utf-8"))[section][name]
    edit(config, lambda record: record[section].update({name: value}))
    expected = f"{section}.{name} is {value!r}, and was {was!r}"
    with pytest.raises(RunError) as refused:
        resume(tmp_path / "run")
    assert expected in str(refused.value)


def test_settings_that_change_no_result_may_change(run, tmp_path, listener, crash):
    run(tmp_path / "whole", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 9)
    free = {"on_nan": "rollback", "device": "cpu", "plot": True}
    resume(tmp_path / "parts", options=RunOptions.of(**free))
    found = crash.differences(tmp_path / "whole", tmp_path / "parts")
    # A rollback would go to the last report's checkpoint, so that one is kept as well.
    assert found == ["loss.svg"]
    with pytest.raises(ConfigError, match=r"training\.lr is 0\.25, and was 0\.01"):
        resume(tmp_path / "parts", options=RunOptions.of(**free, lr=0.25))


def test_another_text_or_vocabulary_is_refused(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    tokens, vocabulary = tmp_path / "run" / "tokens.bin", tmp_path / "run" / "vocabulary.json"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[::-1])
    with pytest.raises(RunError, match=r"tokens\.bin has changed: its SHA-256 is"):
        resume(tmp_path / "run")
    tokens.write_bytes(whole)
    symbols = json.loads(vocabulary.read_text("utf-8"))
    symbols["tokens"][1:3] = symbols["tokens"][2:0:-1]
    vocabulary.write_text(json.dumps(symbols), "utf-8")
    with pytest.raises(RunError, match=r"vocabulary\.json is not the vocabulary"):
        resume(tmp_path / "run")


def test_another_text_with_a_record_to_match_is_refused_by_the_checkpoint(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    (tmp_path / "text.txt").write_text(
        "the dog sat on the mat and the cat sat on the log. " * 39, "utf-8"
    )
    run(tmp_path / "other", steps=1)
    for name in ("tokens.bin", "tokens.json", "vocabulary.json"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(RunError, match=r"belongs to another .*tokens\.sha256 is"):
        resume(tmp_path / "run")


def test_another_machine_is_told_and_not_refused(run, tmp_path, listener, monkeypatch):
    stop(run, listener, tmp_path / "run", 9)
    monkeypatch.setattr(compatibility, "processor_name", lambda: "Z80")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    torch.set_num_threads(2)
    told = listener()
    resume(tmp_path / "run", told)
    warnings = " ".join(m for m in told.messages if m.startswith("warning"))
    for words in ("processor is 'Z80', and was", "torch is '9.9.9'", "threads is 2, and was 1"):
        assert words in warnings
    assert "last bits" in warnings


def test_without_changes_nothing_is_told(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    told = listener()
    resume(tmp_path / "run", told)
    assert [m for m in told.messages if "warning" in m or "damaged" in m or "note" in m] == []


@pytest.mark.parametrize("file", ["state.safetensors", "training.json", "best.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    run, tmp_path, listener, crash, file, damage
):
    run(tmp_path / "whole", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 14)
    newest = tmp_path / "parts" / "checkpoints" / "step-00000014"
    data = bytearray((newest / file).read_bytes())
    data[len(data) // 2] ^= 4
    contents = {"flip": bytes(data), "cut": bytes(data[:-1])}
    (newest / file).unlink()
    if damage in contents:
        (newest / file).write_bytes(contents[damage])
    told = listener()
    resume(tmp_path / "parts", told)
    assert any("step-00000014" in m and "resuming from" in m for m in told.messages)
    assert crash.differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.slow
def test_every_byte_of_a_checkpoint_flipped_or_cut_off_is_noticed(run, tmp_path, listener):
    """Each file of the newest checkpoint, at every offset; the run resumes from the one before."""
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
        told = listener()
        file.write_bytes(data[:-1])
        saver_takes = _taken(tmp_path / "run", told)
        assert saver_takes == previous
        assert any("damaged" in m for m in told.messages)
        file.write_bytes(data)
    assert _taken(tmp_path / "run", Progress()) == newest


def _taken(folder, progress):
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


def test_when_all_are_damaged_it_is_one_error(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 14)
    for file in (tmp_path / "run" / "checkpoints").glob("*/state.safetensors"):
        os.truncate(file, 10)
    with pytest.raises(RunError, match=r"no checkpoint of .* is intact: .*damaged"):
        resume(tmp_path / "run")


def test_best_weights_and_histories_come_back_with_the_checkpoint(
    run, tmp_path, listener, crash, lines
):
    run(tmp_path / "whole", **OPTIONS)
    stop(run, listener, tmp_path / "parts", 14)
    (tmp_path / "parts" / "model.safetensors").write_bytes(b"gone")
    (tmp_path / "parts" / "metrics.jsonl").unlink()
    with (tmp_path / "parts" / "samples.jsonl").open("a") as file:
        file.write('{"step": 99, "te')
    resume(tmp_path / "parts")
    assert crash.differences(tmp_path / "whole", tmp_path / "parts") == []


def test_damaged_weights_of_a_finished_run_come_back_from_its_checkpoint(run, tmp_path):
    run(tmp_path / "run", steps=6)
    model = tmp_path / "run" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors is damaged: .*--resume .* restores"):
        api.load(tmp_path / "run")
    resume(tmp_path / "run")
    assert model.read_bytes() == whole


def test_only_one_trains_in_a_folder(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    with RunDirectory(tmp_path / "run").locked():
        with pytest.raises(RunError, match="in use: another process trains in it"):
            resume(tmp_path / "run")
        with pytest.raises(RunError, match="in use: another process trains in it"):
            run(tmp_path / "run", force=True, steps=1)
    resume(tmp_path / "run")


def test_a_dead_process_holds_no_lock(run, tmp_path, listener):
    stop(run, listener, tmp_path / "run", 9)
    program = (
        "import sys, time; from recurra.runs.directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).locked():\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RunError, match="in use"):
            resume(tmp_path / "run")
        holder.kill()
    resume(tmp_path / "run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_modes_follow_the_umask(run, tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        run(tmp_path / "run", steps=4, report_every=2)
    finally:
        os.umask(before)
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        wanted = folder if path.is_dir() else file
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_what_a_killed_start_left_beside_the_run_goes_at_the_next(run, tmp_path):
    abandoned, busy = tmp_path / ".run-abcdefgh.tmp", tmp_path / ".run-a_345678.tmp"
    # Another run's, which was moved aside when its process was killed.
    other = tmp_path / ".run-2.old.tmp"
    for folder in (abandoned, busy, other):
        folder.mkdir()
        (folder / ".lock").touch()
    (tmp_path / ".run-mine").mkdir()
    with RunDirectory(busy).locked():
        run(tmp_path / "run", steps=1)
    assert not abandoned.exists()
    assert busy.exists()
    assert other.exists()
    assert (tmp_path / ".run-mine").exists()


def test_a_run_that_was_moved_aside_when_the_process_died_comes_back(run, tmp_path):
    run(tmp_path / "run", steps=1)
    (tmp_path / "run").rename(tmp_path / ".run.old.tmp")
    with pytest.raises(RunError, match="exists already"):
        run(tmp_path / "run", steps=2)
    assert not (tmp_path / ".run.old.tmp").exists()
    api.load(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "code"),
    [(["write"], errno.ENOSPC), (["fsync"], errno.EIO), (["rename", "replace"], errno.EIO)],
    ids=["write", "fsync", "rename"],
)
def test_whatever_call_fails_the_last_checkpoint_stays_and_the_run_goes_on(
    run, tmp_path, crash, monkeypatch, fail_at, names, code
):
    """For every k: the k-th call of a training fails, until none does; then it is resumed."""
    options = {"steps": 3, "report_every": 2, "checkpoint_every": 1, "hidden_size": 4}
    run(tmp_path / "whole", **options)
    for k in itertools.count(1):
        folder = tmp_path / f"run-{k}"
        kept = {}
        with monkeypatch.context() as patch:
            fault = fail_at(patch, names, k, code)
            patch.setattr(
                "recurra.training.callbacks.checkpointing.Checkpointing.save",
                _remembering(kept, folder / "checkpoints"),
            )
            failed = None
            try:
                run(folder, **options)
            except OSError as error:
                failed = error
        assert fault.failed == (failed is not None and failed.errno == code)
        if failed is None:
            break
        if not folder.exists():
            continue  # the run itself was not made, and nothing else is left
        for name, files in kept.items():
            place = folder / "checkpoints" / name
            assert {p.name: p.read_bytes() for p in place.iterdir()} == files
            CheckpointStore(folder / "checkpoints").verify(name)
        resume(folder)
        assert crash.differences(tmp_path / "whole", folder) == []
        assert not [p for p in folder.rglob(".*") if p.name != ".lock"]
    assert k > 5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def _remembering(kept, folder):
    """`Checkpointing.save` that first remembers the newest checkpoint on disk."""
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


def test_checkpoints_come_when_asked_for_and_cost_is_told(run, tmp_path, listener):
    told = listener()
    run(tmp_path / "run", told, steps=30, report_every=10)
    assert any(m.startswith("saving") and "MB in" in m for m in told.messages)
    assert any(m.startswith("saved") and "% of the training" in m for m in told.messages)


def test_the_clock_goes_on_where_it_stopped(run, tmp_path, listener, lines):
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


def test_signals_have_their_exit_codes_in_the_error(run, tmp_path, listener):
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(TrainingInterrupted) as stopped:
            run(tmp_path / f"run-{signum}", listener(stop_at=3, signum=signum), steps=9)
        assert stopped.value.signum == signum
        assert "saved in" in str(stopped.value)
        assert signal.getsignal(signum) != signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
