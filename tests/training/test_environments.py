"""Training and generation in another thread, without a home directory, and in read-only trees."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import recurra
from recurra.cli.main import main
from recurra.errors import RunError
from recurra.io import files

PACKAGE = Path(recurra.__file__).parent
OPTIONS = {"hidden_size": 8, "batch_size": 4, "num_steps": 8, "steps": 6, "seed": 3}
QUICK = [
    "--steps", "3", "--hidden-size", "4", "--batch-size", "4", "--num-steps", "8",
    "--device", "cpu", "--threads", "1",
]  # fmt: skip


def in_thread(function):
    """Return the result of a function that another thread calls."""
    results, errors = [], []

    def work():
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert errors == []
    return results[0]


def test_train_in_other_thread_gives_same_model(source, tmp_path, listener):
    def train(name):
        return recurra.train(source, out=tmp_path / name, progress=listener(), **OPTIONS)

    here, there = train("here"), in_thread(lambda: train("there"))
    for name, expected in here.model.state_dict().items():
        assert torch.equal(there.model.state_dict()[name], expected), name
    settings = {"max_new_tokens": 30, "seed": 1}
    expected = here.generate("the", **settings)
    assert in_thread(lambda: there.generate("the", **settings)) == expected
    assert in_thread(lambda: "".join(there.stream("the", **settings))) == expected


def test_train_in_two_threads_at_once_finishes_both_runs(source, tmp_path, listener):
    # Threads share torch's random generator, so that the weights are not those of one thread.
    def train(name):
        return recurra.train(source, out=tmp_path / name, progress=listener(), **OPTIONS)

    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(train, "ab"))
    for lm in models:
        assert lm.validate().perplexity < 2 * len(lm.vocabulary)


def test_train_without_home_directory_works(source, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "RECURRA_CACHE")}
    # A user without an entry in the user database has no home directory either.
    program = """
import pwd, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from recurra.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=environment | variables, capture_output=True, text=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip

    done = run("train", source, "--out", "run", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("continuing without compiled kernels") == 1
    assert "the home directory is unknown; set RECURRA_CACHE" in done.stderr
    assert run("generate", "run", "--max-new-tokens", "3").returncode == 0
    done = run("data", "get", "time-machine", RECURRA_DATA="")
    assert done.returncode == 1
    assert done.stderr.startswith("recurra: time-machine is not on this machine, and the home")
    done = run("data", "list", RECURRA_DATA="")
    assert done.returncode == 0
    assert "english.txt" in done.stdout
    assert run("doctor").returncode == 0


DENIED = PermissionError(errno.EACCES, "Permission denied")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
FULL = OSError(errno.ENOSPC, "No space left")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (DENIED, RunError, "cannot write to .*runs: Permission denied; .* --out"),
        (READ_ONLY, RunError, "cannot write to .*runs: Read-only file system; .* --out"),
        (FULL, OSError, "No space left"),
    ],
    ids=["denied", "read-only", "full"],
)
def test_train_unwritable_directory_error_names_out(
    source, tmp_path, monkeypatch, listener, error, expected, message
):
    def refuse(path):
        raise error

    monkeypatch.setattr(files, "make_folders", refuse)
    with pytest.raises(expected, match=message):
        recurra.train(source, out=tmp_path / "runs" / "new", progress=listener(), **OPTIONS)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a directory")
def test_commands_in_read_only_trees_work_or_name_remedy(source, tmp_path):
    package, here = tmp_path / "package", tmp_path / "here"
    shutil.copytree(PACKAGE, package / "recurra", ignore=shutil.ignore_patterns("__pycache__"))
    here.mkdir()
    shutil.copy(source, here / "text.txt")
    out = tmp_path / "out"
    recurra = f"{sys.executable} -m recurra"
    quick = " ".join(QUICK)
    script = f"""
for folder in {package} {here}; do
  mount --bind $folder $folder && mount -o remount,bind,ro $folder || exit 99
done
cd {here}
{recurra} train text.txt --out {out} {quick} --quiet || exit 1
{recurra} generate {out} --max-new-tokens 3 || exit 2
for command in \\
  "train text.txt {quick}" "compare text.txt --seeds 1 --variant gru {quick}" \\
  "score {out} --html page.html"; do
  {recurra} $command && exit 3
done
true
"""
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(package)},
    )  # fmt: skip
    # Only mounting may be forbidden here: messages of recurra itself are failures.
    if re.search("^(unshare|mount): .*(denied|permitted|superuser)", done.stderr, re.MULTILINE):
        pytest.skip("the process has no permission to mount a directory")
    assert done.returncode == 0, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("recurra: ")]
    remedy = "Read-only file system; choose another directory with --out (from Python: out=...)"
    assert messages == [
        f"recurra: cannot write to {here}/runs: {remedy}",
        f"recurra: cannot write to runs/text-comparison: {remedy}",
        "recurra: Read-only file system (page.html)",
    ]


def test_resume_read_only_run_error_names_remedy(source, tmp_path, monkeypatch, listener, capsys):
    path = tmp_path / "run"
    recurra.train(source, out=path, progress=listener(), **OPTIONS)

    def refuse(*_, **__):
        raise READ_ONLY

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert recurra.load(path).generate("the", max_new_tokens=2)
    assert main(["train", "--resume", str(path)]) == 1
    expected = f"cannot write to {path}: Read-only file system; copy the run to a directory"
    assert capsys.readouterr().err.startswith(f"recurra: {expected}")
