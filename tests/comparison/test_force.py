"""`force` replaces an older comparison as a whole, and only when the new one is prepared."""

from pathlib import Path

import pytest

import recurra
from comparison.settings import SMALL
from recurra.errors import RunError, SourceError, TrainingInterrupted
from recurra.experiments.folder import STAGING
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory


def test_compare_other_directory_is_left_unchanged(compare, tmp_path):
    compare(seeds=2)
    with pytest.raises(RunError, match=r"2 seeds.*--force"):
        compare(seeds=1)
    with pytest.raises(RunError, match=r"settings.*--force"):
        compare(seeds=2, lr=2e-2)
    with pytest.raises(RunError, match=r"settings.*--force"):
        compare(["gru"], seeds=2, equal_parameters=True)
    assert len(compare(seeds=1, force=True).rows[0].results) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    for force in (False, True):
        with pytest.raises(RunError, match=r"\bno.* comparison"):
            compare(out=tmp_path / "other", force=force)


def test_compare_force_leaves_no_older_run(compare, listener):
    compare()
    with pytest.raises(TrainingInterrupted):
        compare(lr=2e-2, force=True, progress=listener(stop_at=1))
    for row in compare(lr=2e-2).rows:
        for result in row.results:
            assert recurra.load(result.folder).config.training.lr == 2e-2


def test_compare_force_keeps_unrelated_runs(source, compare, tmp_path):
    compare(seeds=1)
    for name in ("all/other-1", "all/gru-notes"):
        recurra.train(source, out=tmp_path / name, steps=1, progress=Progress(), **SMALL)
    compare(seeds=1, lr=2e-2, force=True)
    for name in ("all/other-1", "all/gru-notes"):
        assert recurra.load(tmp_path / name).config.training.lr == SMALL["lr"]


def test_compare_force_does_not_overwrite_unrelated_run(source, compare, tmp_path):
    compare({"gru": {"cell": "gru"}}, seeds=1)
    unrelated = tmp_path / "all" / "rnn-1"
    recurra.train(source, out=unrelated, steps=1, progress=Progress(), **SMALL | {"lr": 3e-3})
    with pytest.raises(RunError, match="rnn-1"):
        compare({"rnn": {"cell": "rnn"}}, seeds=1, force=True)
    assert recurra.load(unrelated).config.training.lr == 3e-3
    assert recurra.load(tmp_path / "all" / "gru-1").config.model.cell == "gru"


@pytest.mark.parametrize("fault", ["text", "setting"])
def test_compare_force_invalid_variant_removes_nothing(source, compare, tmp_path, fault):
    before = compare()
    if fault == "text":
        source.unlink()
    variants = {"fits": {}, "does not": {"batch_size": 10_000 if fault == "setting" else 2}}
    with pytest.raises(SourceError):
        compare(variants, force=True)
    assert {path.name for path in (tmp_path / "all").iterdir()} >= {"results.json", "gru-2"}
    assert not list((tmp_path / "all").glob(".*.tmp"))
    for row in before.rows:
        for result in row.results:
            found = recurra.load(result.folder).validate().bits_per_char
            assert found == pytest.approx(result.bits_per_char)


def test_compare_force_unremovable_run_removes_nothing(compare, tmp_path):
    compare()
    foreign = tmp_path / "all" / "wide-rnn-2" / "letter.txt"
    foreign.touch()
    before = sorted((tmp_path / "all").rglob("*"))
    with pytest.raises(RunError, match=r"letter\.txt"):
        compare(lr=2e-2, force=True)
    assert sorted((tmp_path / "all").rglob("*")) == before
    foreign.unlink()
    with RunDirectory(foreign.parent).locked(), pytest.raises(RunError, match="in use"):
        compare(lr=2e-2, force=True)
    assert len(compare().rows) == 2


@pytest.mark.parametrize("killed_at", range(1, 9))
def test_compare_force_killed_during_swap_is_consistent(compare, tmp_path, monkeypatch, killed_at):
    """From the chosen rename on, every rename fails, as if the process had been killed."""
    compare(seeds=1)
    rename, count = Path.rename, 0

    def renamed(path, target):
        nonlocal count
        count += path.parent.name != STAGING
        if count >= killed_at:
            raise SystemExit
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", renamed)
        with pytest.raises(SystemExit):
            compare(seeds=1, lr=2e-2, force=True)
    description = tmp_path / "all" / "comparison.json"
    is_new = description.exists() and '"lr": 0.02' in description.read_text("utf-8")
    lr = 2e-2 if is_new else SMALL["lr"]
    for row in compare(seeds=1, lr=lr).rows:
        assert recurra.load(row.results[0].folder).config.training.lr == lr
    assert not list((tmp_path / "all").glob(".*.tmp"))
