"""Signals, closed pipes, terminals and full disks."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from recurra.cli.main import main


def test_train_ctrl_c_saves_checkpoint_and_exits_130(source, tmp_path, quick):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "recurra", "train", source, "--out", str(folder), *quick]
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--report-every", "20"], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").is_file():
        # Another process writes the file, so the test polls for it.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"--resume" in err
    assert any((folder / "checkpoints").glob("step-*/manifest.sha256"))
    assert main(["generate", str(folder), "--max-new-tokens", "3"]) == 0


def test_generate_broken_pipe_exits_zero(run):
    command = f"{sys.executable} -m recurra generate {run} --max-new-tokens 200000 | head -c 20"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full exists on Linux only")
def test_score_full_disk_error_is_one_line(run, fails):
    fails(["score", run, "--html", "/dev/full"], 1, "No space left")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("case", ["generate", "several", "score"])
def test_output_escapes_controls_for_terminal_only(tmp_path, quick, capsys, monkeypatch, case):
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("\x1b[2J\t\n" * 200, "utf-8")
    assert main(["train", str(text), "--out", str(folder), "--quiet", *quick]) == 0
    command = {
        "generate": ["generate", str(folder), "--prompt", "\x1b", "--seed", "1"],
        "several": ["generate", str(folder), "--num-samples", "2", "--seed", "1"],
        "score": ["score", str(folder)],
    }[case]
    capsys.readouterr()
    assert main(command) == 0
    piped = capsys.readouterr().out
    assert "\x1b" in piped
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(command) == 0
    assert sys.stdout.getvalue() == piped.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")


CONTROLS = "\x07\x1b\x7f\x85\x9b\u2028\u202e\u2066"
"""A bell, escape, delete, two C1 controls, a line separator and two marks of direction."""


def test_json_output_escapes_all_controls(tmp_path, quick, capsys):
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(f"{CONTROLS}\n" * 100, "utf-8")
    assert main(["train", str(text), "--out", str(folder), "--quiet", "--json", *quick]) == 0
    for command in (
        ["generate", folder, "--prompt", CONTROLS, "--max-new-tokens", "50", "--json"],
        ["score", folder, text, "--top", "2", "--json", "--chars"],
        ["runs", tmp_path, "--json"],
    ):
        assert main([str(argument) for argument in command]) == 0
    out = capsys.readouterr().out
    assert not set(out) & set(CONTROLS)
    decoded = [json.loads(line) for line in out.split("\n")[:-1]]
    assert CONTROLS in {record.get("text") for record in decoded}
    assert CONTROLS in {record.get("prompt") for record in decoded}


def test_terminal_output_replaces_marks_of_direction(tmp_path, quick, capsys, monkeypatch):
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(f"{CONTROLS}\n" * 100, "utf-8")
    assert main(["train", str(text), "--out", str(folder), "--quiet", *quick]) == 0
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["score", str(folder)]) == 0
    assert not set(sys.stdout.getvalue()) & set(CONTROLS)


def test_error_messages_escape_controls_of_file_names(tmp_path, capsys, quick, text):
    name = "a\x1b[31m\x9b\u202eb"
    (tmp_path / f"{name}.txt").write_bytes(b"\xff")
    assert main(["train", str(tmp_path / f"{name}.txt"), *quick]) == 1
    err = capsys.readouterr().err
    assert "a\\u001b[31m\\u009b\\u202eb" in err
    assert not set(err) & set(CONTROLS)
    folder = tmp_path / name / "run"
    source = tmp_path / "text.txt"
    source.write_text(text, "utf-8")
    assert main(["train", str(source), "--out", str(folder), *quick]) == 0
    (folder / "metrics.jsonl").write_text("{}\n")
    assert main(["runs", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "metrics.jsonl, line 1 is damaged" in err
    assert not set(err) & set(CONTROLS)


def test_commands_with_closed_or_ascii_streams_exit_cleanly(run, source, tmp_path, quick):
    def run_shell(command, **environment):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, timeout=60, env=os.environ | environment
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    recurra = f"{sys.executable} -m recurra"
    assert run_shell(f"{recurra} generate {run} --prompt - <&-").returncode == 1
    assert run_shell(f"{recurra} train - --out {tmp_path}/new <&-").returncode == 1
    assert run_shell(f"{recurra} runs {tmp_path} >&-").returncode == 0
    assert run_shell(f"printf 'a\\xff' | {recurra} generate {run} --prompt -").returncode == 1
    zh = tmp_path / "zh.txt"
    zh.write_text("雨落在屋顶我听见雨" * 60, "utf-8")
    quick = " ".join(quick)
    done = run_shell(
        f"{recurra} train {zh} --out {tmp_path}/zh {quick} && {recurra} generate {tmp_path}/zh",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0
    assert b"\\u" in done.stdout


def test_train_closed_stdout_does_not_stop_training(source, tmp_path, quick):
    folder = tmp_path / "run"
    command = f"{sys.executable} -m recurra train {source} --out {folder} --json {' '.join(quick)}"
    options = "--steps 40 --report-every 2"
    # bash waits for both sides of the pipe, so training has ended when this returns.
    subprocess.run(["bash", "-c", f"{command} {options} 2>&1 | head -n 2"], timeout=60, check=True)
    metrics = (folder / "metrics.jsonl").read_text("utf-8")
    steps = [json.loads(line)["step"] for line in metrics.splitlines()]
    assert steps == list(range(2, 41, 2))
    assert main(["eval", str(folder)]) == 0
