"""Signals, pipes, terminals and disks that end early."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from recurra.cli.main import main


def test_ctrl_c_saves_and_leaves_with_130(source, tmp_path, quick):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "recurra", "train", source, "--out", str(folder), *quick]
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--report-every", "20"], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").is_file():
        # Another process writes the file; there is nothing to wait on but the clock.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"--resume" in err
    assert any((folder / "checkpoints").glob("step-*/manifest.sha256"))
    assert main(["generate", str(folder), "--max-new-tokens", "3"]) == 0


def test_a_reader_that_leaves_early_is_no_failure(run):
    command = f"{sys.executable} -m recurra generate {run} --max-new-tokens 200000 | head -c 20"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_one_line(run, fails):
    fails(["score", run, "--html", "/dev/full"], 1, "No space left")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("verb", ["generate", "several", "score"])
def test_a_terminal_gets_no_controls_and_a_pipe_gets_all(
    tmp_path, quick, capsys, monkeypatch, verb
):
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("\x1b[2J\t\n" * 200, "utf-8")
    assert main(["train", str(text), "--out", str(folder), "--quiet", *quick]) == 0
    command = {
        "generate": ["generate", str(folder), "--prompt", "\x1b", "--seed", "1"],
        "several": ["generate", str(folder), "--num-samples", "2", "--seed", "1"],
        "score": ["score", str(folder)],
    }[verb]
    capsys.readouterr()
    assert main(command) == 0
    piped = capsys.readouterr().out
    assert "\x1b" in piped
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(command) == 0
    assert sys.stdout.getvalue() == piped.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")


def test_closed_and_narrow_streams(run, source, tmp_path, quick):
    def shell(command, **environment):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, timeout=60, env=os.environ | environment
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    recurra = f"{sys.executable} -m recurra"
    assert shell(f"{recurra} generate {run} --prompt - <&-").returncode == 1
    assert shell(f"{recurra} train - --out {tmp_path}/new <&-").returncode == 1
    assert shell(f"{recurra} runs {tmp_path} >&-").returncode == 0
    assert shell(f"printf 'a\\xff' | {recurra} generate {run} --prompt -").returncode == 1
    zh = tmp_path / "zh.txt"
    zh.write_text("雨落在屋顶我听见雨" * 60, "utf-8")
    quick = " ".join(quick)
    done = shell(
        f"{recurra} train {zh} --out {tmp_path}/zh {quick} && {recurra} generate {tmp_path}/zh",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0
    assert b"\\u" in done.stdout


def test_training_goes_on_when_nobody_reads(source, tmp_path, quick):
    folder = tmp_path / "run"
    command = f"{sys.executable} -m recurra train {source} --out {folder} --json {' '.join(quick)}"
    options = "--steps 40 --report-every 2"
    # bash waits for both sides of the pipe, so the training has ended when this returns.
    subprocess.run(["bash", "-c", f"{command} {options} 2>&1 | head -n 2"], timeout=60, check=True)
    metrics = (folder / "metrics.jsonl").read_text("utf-8")
    steps = [json.loads(line)["step"] for line in metrics.splitlines()]
    assert steps == list(range(2, 41, 2))
    assert main(["eval", str(folder)]) == 0
