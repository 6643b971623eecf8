"""`recurra runs`: the list of runs, and rm, mv and prune with their safeguards."""

import io
import json
import shutil
from pathlib import Path

import pytest

import recurra
from recurra.cli.main import main
from recurra.runs.directory import RunDirectory


@pytest.fixture
def train(source, tmp_path, quick):
    """A function that trains a run in `tmp_path` and returns its path."""

    def train(name, *options):
        out = tmp_path / name
        assert main(["train", source, "--out", str(out), "--quiet", *quick, *options]) == 0
        return out

    return train


@pytest.fixture
def answer(monkeypatch):
    """A function that types an answer on the terminal."""

    def type_(text):
        terminal = io.StringIO(text)
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)

    return type_


def listed(folder, capsys):
    capsys.readouterr()
    assert main(["runs", str(folder), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_runs_shows_steps_and_seconds_of_whole_run_beside_best_step(train, tmp_path, capsys):
    # With this learning rate, the loss rises after the first step.
    out = train("run", "--steps", "9", "--report-every", "1", "--lr", "3", "--warmup", "0")
    (row,) = listed(tmp_path, capsys)
    records = RunDirectory(out).read_metrics()
    assert row["steps"] == 9
    assert row["seconds"] == records[-1]["seconds"]
    assert row["best_step"] < 9
    assert row["finished"] is True


def test_runs_shows_interrupted_run_as_unfinished(train, tmp_path, capsys):
    out = train("run")
    shutil.rmtree(next((out / "checkpoints").glob("*-final")))
    (row,) = listed(tmp_path, capsys)
    assert row["finished"] is False
    assert main(["runs", str(tmp_path)]) == 0
    assert "unfinished" in capsys.readouterr().out


def test_runs_rm_confirmed_deletes_runs(train, answer, capsys):
    first, second = train("first"), train("second")
    answer("y\n")
    assert main(["runs", "rm", str(first), str(second)]) == 0
    assert not first.exists()
    assert not second.exists()
    streams = capsys.readouterr()
    assert "delete 2 runs" in streams.err
    assert "deleted 2 runs" in streams.out


@pytest.mark.parametrize("reply", ["n\n", "\n", ""])
def test_runs_rm_not_confirmed_keeps_run(train, answer, reply):
    run = train("run")
    answer(reply)
    assert main(["runs", "rm", str(run)]) == 1
    assert recurra.load(run)


def test_runs_rm_without_terminal_asks_for_yes(train, monkeypatch, fails):
    run = train("run")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    fails(["runs", "rm", run], 2, "--yes")
    assert run.exists()
    assert main(["runs", "rm", str(run), "--yes"]) == 0
    assert not run.exists()


def test_runs_rm_checks_all_runs_before_it_deletes_one(train, tmp_path, fails):
    run = train("run")
    (tmp_path / "other").mkdir()
    fails(["runs", "rm", run, tmp_path / "other", "--yes"], 1, "is not a run directory")
    assert run.exists()


def test_runs_rm_keeps_directory_with_other_files(train, fails):
    run = train("run")
    (run / "notes.txt").write_text("precious")
    fails(["runs", "rm", run, "--yes"], 1, "notes.txt", "not a file of a run")
    assert (run / "notes.txt").exists()


def test_runs_rm_keeps_run_that_trains(train, fails):
    run = train("run")
    with RunDirectory(run).locked():
        fails(["runs", "rm", run, "--yes"], 1, "is in use")
        fails(["runs", "mv", run, run.with_name("new")], 1, "is in use")
    assert run.exists()


def test_runs_rm_and_mv_keep_runs_of_comparison(source, tmp_path, quick, fails, capsys):
    out = tmp_path / "all"
    options = [item for item in quick if item not in ("--steps", "6")]
    main(["compare", source, "--seeds", "1", "--num-tokens", "64", "--out", str(out), *options])
    capsys.readouterr()
    run = next(out.glob("gru-*"))
    fails(["runs", "rm", run, "--yes"], 1, "belongs to the comparison")
    fails(["runs", "mv", run, tmp_path / "gru"], 1, "belongs to the comparison")
    assert main(["runs", "prune", str(out), "--keep", "1", "--yes"]) == 0
    assert run.exists()


def test_runs_mv_moved_run_loads_and_resumes_exactly(train, tmp_path):
    options = ["--schedule", "constant", "--report-every", "3"]
    whole = train("whole", "--steps", "12", *options)
    run, target = train("run", *options), tmp_path / "renamed"
    assert main(["runs", "mv", str(run), str(target)]) == 0
    assert not run.exists()
    assert main(["train", "--resume", str(target), "--steps", "12", "--quiet"]) == 0
    assert RunDirectory(target).model.read_bytes() == RunDirectory(whole).model.read_bytes()


def test_runs_mv_into_existing_directory_keeps_name(train, tmp_path):
    run = train("run")
    (tmp_path / "archive").mkdir()
    assert main(["runs", "mv", str(run), str(tmp_path / "archive")]) == 0
    assert recurra.load(tmp_path / "archive" / "run")


def test_runs_mv_refuses_invalid_targets(train, tmp_path, fails):
    run, other = train("run"), train("other")
    fails(["runs", "mv", run, other], 1, "already exists")
    fails(["runs", "mv", run, tmp_path / "no" / "run"], 1, "is not a directory")
    fails(["runs", "mv", run, run / "inside"], 1, "inside")
    fails(["runs", "mv", run], 2, "recurra runs mv RUN TARGET")
    assert run.exists()


def test_runs_prune_keeps_best_runs_on_each_text(train, tmp_path, source):
    for size in ("2", "8", "16"):
        train(f"a-{size}", "--hidden-size", size, "--lr", "0.05", "--steps", "40")
    Path(source).write_text("a man, a plan, a canal, panama! " * 60)
    train("b")
    assert main(["runs", "prune", str(tmp_path), "--keep", "1", "--yes"]) == 0
    kept = sorted(path.parent.name for path in tmp_path.glob("*/config.json"))
    assert kept in (["a-16", "b"], ["a-8", "b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "prune needs --keep"),
        (["prune", "--keep", "0"], "prune needs --keep"),
        (["prune", "a", "b", "--keep", "1"], "prune takes one directory"),
        (["rm"], "rm needs a run"),
        (["--keep", "3"], "--keep applies only to recurra runs prune"),
        (["delete", "run"], "'delete' is not an action"),
    ],
)
def test_runs_wrong_arguments_are_explained(fails, arguments, message):
    fails(["runs", *arguments], 2, message)


def test_runs_rm_names_run_once_and_refuses_links(train, tmp_path, fails):
    run, link = train("run"), tmp_path / "link"
    link.symlink_to(run)
    fails(["runs", "rm", run, link, "--yes"], 1, "is a symbolic link to")
    fails(["runs", "mv", link, tmp_path / "new"], 1, "is a symbolic link to")
    assert run.exists()
    assert main(["runs", "rm", str(run), f"{run.parent}/./{run.name}", "--yes"]) == 0
    assert not run.exists()


def test_runs_prints_no_control_characters_of_names(train, capsys):
    run = train("a\x1b[31mred")
    capsys.readouterr()
    assert main(["runs", "mv", str(run), str(run.with_name("b\x1b[32m"))]) == 0
    assert main(["runs", "rm", str(run.with_name("b\x1b[32m")), "--yes"]) == 0
    streams = capsys.readouterr()
    assert "\x1b" not in streams.out + streams.err


def test_runs_mv_into_comparison_is_refused(train, tmp_path, fails):
    run = train("run")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "comparison.json").write_text("{}")
    fails(["runs", "mv", run, tmp_path / "all"], 1, "is a comparison; choose another directory")
    fails(["runs", "rm", tmp_path / "all", "--yes"], 1, "it is a comparison")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rm", "x", "--json"], "--json applies only to the list"),
        (["mv", "x", "y", "--yes"], "--yes applies only to recurra runs rm and prune"),
    ],
)
def test_runs_ineffective_options_are_refused(fails, arguments, message):
    fails(["runs", *arguments], 2, message)
