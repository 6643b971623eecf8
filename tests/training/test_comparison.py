"""Several settings on one text: the runs, the figures, and going on after an interruption."""

import dataclasses
import json
import signal
import statistics
from pathlib import Path

import pytest

import recurra
from recurra import launch
from recurra.cli.main import main
from recurra.comparison import Comparison, Contender, Result, Row, runs
from recurra.comparison.folder import STAGING
from recurra.config import RunConfig
from recurra.errors import ConfigError, RunError, SourceError, TrainingInterrupted
from recurra.training import recipe, trainer
from recurra.training.progress import Progress
from recurra.training.run_folder import RunFolder

SMALL = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "lr": 1e-2, "sample_length": 5}
CONTENDERS = {"gru": {"cell": "gru"}, "wide rnn": {"cell": "rnn", "hidden_size": 16}}


@pytest.fixture
def compare(source, tmp_path):
    def call(contenders=CONTENDERS, **options):
        settings = {"num_tokens": 640, "seeds": 2, "out": tmp_path / "all", "progress": Progress()}
        return recurra.compare(source, contenders, **SMALL | settings | options)

    return call


def test_every_contender_has_each_seed_and_reads_as_many_tokens(compare, tmp_path):
    result = compare(seed=5)
    assert {row.contender.name for row in result.rows} == set(CONTENDERS)
    assert [row.mean for row in result.rows] == sorted(row.mean for row in result.rows)
    for row in result.rows:
        assert [r.seed for r in row.results] == [5, 6]
        assert {r.tokens for r in row.results} == {640}
        for r in row.results:
            lm = recurra.load(r.folder)
            assert lm.config.training.seed == r.seed
            assert lm.validate().bits_per_char == pytest.approx(r.bits_per_char)
            assert lm.model.num_parameters == r.parameters
    assert (tmp_path / "all" / "wide-rnn-6" / "model.safetensors").is_file()


def test_equal_tokens_whatever_the_batch(compare):
    wide = {"narrow": {"batch_size": 2}, "wide": {"batch_size": 8}}
    for row in compare(wide, seeds=1).rows:
        assert {r.tokens for r in row.results} == {640}


def test_equal_tokens_where_batches_or_windows_grow(compare):
    growing = {"rows": {"batch_growth": 4}, "steps": {"window_growth": 2}, "neither": {}}
    for row in compare(growing, seeds=1, num_tokens=64 * 84).rows:
        assert row.mean_of("tokens") == pytest.approx(64 * 84, rel=0.02)


def test_mean_and_spread_are_those_of_the_seeds(compare):
    for row in compare(seeds=3).rows:
        scores = [r.bits_per_char for r in row.results]
        assert row.mean == pytest.approx(statistics.fmean(scores))
        assert row.spread == pytest.approx(statistics.stdev(scores))
    assert compare(seeds=1, force=True).rows[0].spread is None


def test_what_was_done_stays(compare, tmp_path, monkeypatch):
    started = []

    def counted(sources, config, out, *rest, **more):
        started.append(Path(out).name)
        if len(started) == 3:
            raise TrainingInterrupted(signal.SIGINT)
        return launch.prepare_run(sources, config, out, *rest, **more)

    monkeypatch.setattr(runs, "prepare_run", counted)
    with pytest.raises(TrainingInterrupted):
        compare()
    assert started == ["gru-1", "wide-rnn-1", "gru-2"]
    first = (tmp_path / "all" / "gru-1" / "metrics.jsonl").read_bytes()
    whole = compare()
    assert started[3:] == ["gru-2", "wide-rnn-2"]
    assert (tmp_path / "all" / "gru-1" / "metrics.jsonl").read_bytes() == first
    again = compare(threads=1)
    assert started[5:] == []
    assert [row.scores for row in again.rows] == [row.scores for row in whole.rows]


def test_an_interrupted_run_goes_on(compare, tmp_path):
    whole = compare(out=tmp_path / "whole")

    class Stops(Progress):
        def moment(self, moment):
            if moment.step == 7:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        compare(progress=Stops())
    parts = compare()
    assert [row.scores for row in parts.rows] == [row.scores for row in whole.rows]


def test_a_folder_of_something_else_is_left_alone(compare, tmp_path):
    compare(seeds=1)
    with pytest.raises(RunError, match="other settings"):
        compare(seeds=2)
    with pytest.raises(RunError, match="other settings"):
        compare(seeds=1, lr=2e-2)
    assert len(compare(seeds=2, force=True).rows[0].results) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for force in (False, True):
        with pytest.raises(RunError, match="holds no comparison"):
            compare(out=tmp_path / "mine", force=force)


def test_force_removes_no_run_that_is_not_of_the_comparison(source, compare, tmp_path):
    compare(seeds=1)
    for name in ("all/other-1", "all/gru-notes"):
        recurra.train(source, out=tmp_path / name, steps=1, progress=Progress(), **SMALL)
    compare(seeds=1, lr=2e-2, force=True)
    for name in ("all/other-1", "all/gru-notes"):
        assert recurra.load(tmp_path / name).config.training.lr == SMALL["lr"]


def test_force_leaves_no_run_of_the_older_comparison(compare, tmp_path):
    class Stops(Progress):
        def moment(self, moment):
            signal.raise_signal(signal.SIGINT)

    compare()
    with pytest.raises(TrainingInterrupted):
        compare(lr=2e-2, force=True, progress=Stops())
    for row in compare(lr=2e-2).rows:
        for result in row.results:
            assert recurra.load(result.folder).config.training.lr == 2e-2


@pytest.mark.parametrize("fault", ["text", "setting"])
def test_force_removes_nothing_before_the_new_comparison_is_ready(source, compare, tmp_path, fault):
    before = compare()
    if fault == "text":
        source.unlink()
    wrong = {"fits": {}, "does not": {"batch_size": 10_000 if fault == "setting" else 2}}
    with pytest.raises(SourceError):
        compare(wrong, force=True)
    assert {path.name for path in (tmp_path / "all").iterdir()} >= {"results.json", "gru-2"}
    assert not list((tmp_path / "all").glob(".*.tmp"))
    for row in before.rows:
        for result in row.results:
            found = recurra.load(result.folder).validate().bits_per_char
            assert found == pytest.approx(result.bits_per_char)


def test_force_writes_over_nothing_that_is_not_of_the_comparison(source, compare, tmp_path):
    compare({"gru": {"cell": "gru"}}, seeds=1)
    own = tmp_path / "all" / "rnn-1"
    recurra.train(source, out=own, steps=1, progress=Progress(), **SMALL | {"lr": 3e-3})
    with pytest.raises(RunError, match="in the way"):
        compare({"rnn": {"cell": "rnn"}}, seeds=1, force=True)
    assert recurra.load(own).config.training.lr == 3e-3
    assert recurra.load(tmp_path / "all" / "gru-1").config.model.cell == "gru"


def test_force_removes_nothing_when_one_of_the_runs_cannot_go(compare, tmp_path):
    compare()
    letter = tmp_path / "all" / "wide-rnn-2" / "letter.txt"
    letter.touch()
    before = sorted((tmp_path / "all").rglob("*"))
    with pytest.raises(RunError, match=r"letter\.txt"):
        compare(lr=2e-2, force=True)
    assert sorted((tmp_path / "all").rglob("*")) == before
    letter.unlink()
    with RunFolder(letter.parent).locked(), pytest.raises(RunError, match="in use"):
        compare(lr=2e-2, force=True)
    assert len(compare().rows) == 2


@pytest.mark.parametrize("killed_at", range(1, 9))
def test_killed_while_runs_are_exchanged_it_is_the_old_comparison_or_the_new_one(
    compare, tmp_path, monkeypatch, killed_at
):
    """From the chosen renaming on nothing works any more, as for a process that was killed."""
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


def test_one_process_at_a_time(compare):
    class ComparesToo(Progress):
        def moment(self, moment):
            with pytest.raises(RunError, match="another process compares in it"):
                compare()
            refused.append(moment.step)

    refused = []
    compare(progress=ComparesToo())
    assert refused


def test_what_a_killed_process_had_prepared_is_no_hindrance(compare, tmp_path):
    (tmp_path / "all" / STAGING / "gru-1").mkdir(parents=True)
    (tmp_path / "all" / ".comparison.json.77.tmp").touch()
    assert len(compare(seeds=1).rows) == 2
    assert not list((tmp_path / "all").glob(".*.tmp"))


def test_another_text_is_refused_when_it_goes_on(source, compare):
    compare(seeds=1)
    source.write_text("another text altogether. " * 60, "utf-8")
    with pytest.raises(RunError, match="goes on with its own text"):
        compare(seeds=1)


def test_a_contender_that_will_not_do_shows_before_any_of_them_learns(compare, tmp_path):
    with pytest.raises(SourceError, match="batch"):
        compare({"fits": {}, "does not": {"batch_size": 10_000}})
    assert not (tmp_path / "all").exists()
    with pytest.raises(ConfigError, match="validate on"):
        compare(val_fraction=1e-4)
    assert not (tmp_path / "all").exists()


def test_a_signal_while_a_run_finishes_ends_the_comparison(compare, tmp_path, monkeypatch):
    def asked_to_stop(records):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "describe_overfitting", asked_to_stop)
        with pytest.raises(TrainingInterrupted, match="same comparison goes on"):
            compare()
    trained = [file.parent.name for file in (tmp_path / "all").glob("*/metrics.jsonl")]
    assert trained == ["gru-1"]
    assert len(compare().rows) == 2


def test_what_a_run_says_is_told_with_its_name(compare, listener):
    progress = listener()
    contenders = {"deep": {"dropout": 0.5}}
    compare(contenders, seeds=1, progress=progress)
    compare(contenders, seeds=1, progress=progress)
    assert any(line.startswith("deep: note: dropout") for line in progress.messages)
    assert "deep, seed 1: this run had finished already" in progress.messages
    assert not any("saving" in line for line in progress.messages)


def test_a_long_name_has_a_short_folder(compare):
    names = ["long " * 60 + "1", "long " * 60 + "2", "\U00020000" * 60]
    rows = compare({name: {} for name in names}, seeds=1).rows
    folders = {result.folder.name for row in rows for result in row.results}
    assert len(folders) == 3
    assert all(len(folder.encode()) < 80 for folder in folders)


def test_unknown_tokens_are_told(source, compare):
    source.write_text(" ".join(f"w{i % 97} v{i}" for i in range(1500)), "utf-8")
    told = str(compare({"words": {"tokens": "word"}, "letters": {}}, seeds=1))
    assert "of what words predicts is <unk>" in told
    assert "of what letters" not in told


def test_a_folder_of_texts_may_hold_its_own_comparison(source):
    folder = source.parent / "texts"
    folder.mkdir()
    (folder / "text.txt").write_bytes(source.read_bytes())
    settings = SMALL | {"num_tokens": 640, "seeds": 2, "progress": Progress()}
    for _ in range(2):
        rows = recurra.compare(folder, ["gru", "rnn"], out=folder / "runs" / "all", **settings).rows
        assert len(rows) == 2


def test_a_text_that_will_not_do_leaves_nothing(source, compare, tmp_path):
    text = source.read_bytes()
    source.write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        compare()
    assert not (tmp_path / "all").exists()
    source.write_bytes(text)
    assert len(compare(seeds=1).rows) == 2


def test_an_interruption_says_how_the_comparison_goes_on(compare, tmp_path):
    class Stops(Progress):
        def moment(self, moment):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match="same comparison goes on") as stop:
        compare(progress=Stops())
    assert stop.value.signum == signal.SIGINT
    assert str(tmp_path / "all") in str(stop.value)


@pytest.mark.parametrize(
    ("contenders", "options", "words"),
    [
        ({"a": {"steps": 3}, "b": {"steps": 4}}, {"num_tokens": None}, "differ in steps"),
        ({"a": {}, "b": {"seed": 4}}, {}, "differ in seed"),
        (["gru", "gru "], {}, "unknown|cell"),
        ({"gru 1": {}, "Gru-1": {}}, {}, "share a folder"),
        ([], {}, "nothing to compare"),
        (["gru"], {"seeds": 0}, "seeds must be"),
        (["gru"], {"num_tokens": 0}, "num_tokens must be"),
        (["gru"], {"num_tokens": 1.5}, "num_tokens must be"),
        (["gru"], {"seeds": 2.5}, "seeds must be"),
        (["gru"], {"seed": 2**63 - 1}, "last seed"),
        (["gru"], {"minutes": 1}, "one budget"),
        (["gru"], {"bptt": "full"}, "whole epoch"),
        ({"a": {}, "b": {"min_freq": 9}}, {}, "differ in min_freq"),
        ({"a": {}, "b": {"max_tokens": 900}}, {}, "differ in max_tokens"),
        ({"a": {}, "b": {"letters_only": True}}, {}, "differ in letters_only"),
        ({"a": {}, "b": {"vocab_size": 9}}, {}, "differ in vocab_size"),
        ("gru", {}, "names of cells"),
        ({"gru": "gru"}, {}, "no mapping"),
        ({1: {}}, {}, "is a text"),
        (["gru", "gru"], {}, "there twice"),
        (["gru"], {"val_fraction": 0.0}, "validate"),
        (["gru"], {"hiden_size": 3}, "hidden_size"),
    ],
)
def test_what_is_no_comparison_is_refused_before_anything_is_written(
    compare, tmp_path, contenders, options, words
):
    with pytest.raises(ConfigError, match=words):
        compare(contenders, **options)
    assert not (tmp_path / "all").exists()


def test_a_failed_run_is_counted_and_the_others_go_on(compare):
    wild = {"cell": "rnn-relu", "lr": 1e9, "clip_norm": None, "optimizer": "sgd", "warmup": 0.0}
    good, bad = compare({"wild": wild, "gru": {"cell": "gru"}}, num_tokens=6400).rows
    assert good.contender.name == "gru"
    assert len(good.scores) == 2
    assert bad.scores == []
    assert [r.nats_per_token for r in bad.results] == [None, None]


def row(name, *scores):
    results = [Result(i, Path(), 1, s, s, 0.0, 1, 1.0, 1.0, []) for i, s in enumerate(scores)]
    return Row(Contender(name, RunConfig(), frozenset()), results)


def test_standard_input_is_refused_since_it_can_be_read_once(compare):
    with pytest.raises(ConfigError, match="into a file"):
        recurra.compare("-", ["gru"], **SMALL)


def test_several_processes_are_refused(compare, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        compare()


def test_who_is_too_close_to_tell():
    best, near, far = row("a", 1.0, 1.2), row("b", 1.1, 1.3), row("c", 2.0, 2.1)
    alone = row("d", 1.1)
    told = Comparison(Path(), [best, near, alone, far]).as_good_as_the_best()
    assert [r.contender.name for r in told] == ["b"]


def test_what_is_too_close_follows_from_the_number_of_seeds():
    # Both means differ by 3.5 standard errors: with two seeds chance does that, with six it does
    # not.
    few = [row("a", 0.0, 1.0), row("b", 2.475, 3.475)]
    many = [row("a", *[0.0, 1.0] * 3), row("b", *[1.108, 2.108] * 3)]
    assert len(Comparison(Path(), few).as_good_as_the_best()) == 1
    assert Comparison(Path(), many).as_good_as_the_best() == []


def test_with_minutes_what_was_not_given_is_chosen_for_each(compare):
    options = {"num_tokens": None, "minutes": 0.05, "seeds": 1, "hidden_size": 8}
    result = compare({"lstm": {}, "gru": {"cell": "gru"}}, **options)
    for r in (row.results[0] for row in result.rows):
        training = recurra.load(r.folder).config.training
        assert training.final_lr == 0.0  # as training/recipe.py has it
        assert training.lr == SMALL["lr"]


def test_what_is_chosen_is_chosen_once_for_all_seeds(compare, monkeypatch):
    speeds = iter([1e6, 1e6, 1e12, 1e12])
    monkeypatch.setattr(recipe, "_measure_speed", lambda *_: next(speeds))
    options = {"num_tokens": None, "minutes": 0.03, "seeds": 2, "max_epochs": 1e9}
    (row,) = compare({"lstm": {}}, **options).rows
    first, second = (recurra.load(r.folder).config for r in row.results)
    assert first.model == second.model
    assert dataclasses.replace(second.training, seed=1) == first.training


def test_the_figures_stay_beside_the_runs(compare, tmp_path):
    result = compare()
    stored = json.loads((tmp_path / "all" / "results.json").read_text("utf-8"))["runs"]
    assert [run["bits_per_char"] for run in stored] == [
        score for row in result.rows for score in row.scores
    ]


def test_printed_it_is_a_table(compare):
    lines = str(compare(seeds=1)).splitlines()
    assert lines[0].startswith("| contender")
    assert "one seed each" in lines[-2]


def test_the_command_prints_a_table_and_draws(source, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    small = ["--batch-size", "4", "--num-steps", "16", "--sample-length", "5", "--num-tokens=640"]
    contenders = ["--contender", "gru", "--contender", "--cell rnn --hidden-size 9"]
    command = [
        "compare", str(source), *contenders, *small, "--hidden-size", "8", "--seeds", "2", "--out",
        str(tmp_path / "all"), "--quiet",
    ]  # fmt: skip
    assert main([*command, "--plot"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split("|")[1].strip() == "contender"
    assert {line.split("|")[1].strip() for line in out[2:4]} == {
        "gru", "--cell rnn --hidden-size 9",
    }  # fmt: skip
    picture = (tmp_path / "all" / "comparison.svg").read_text("utf-8")
    assert "--cell rnn --hidden-size 9" in picture
    assert "tokens" in picture
    assert main([*command, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 4
    assert {record["parameters"] for record in records} == {
        recurra.load(record["folder"]).model.num_parameters for record in records
    }


@pytest.mark.parametrize("name", ["lstn", "--cell lstn", '--cell "lstm', "--cel gru", "", "gru 5"])
def test_a_contender_that_is_none_is_named(source, capsys, name):
    assert main(["compare", str(source), "--contender", name, "--num-tokens", "640"]) == 2
    assert "contender" in capsys.readouterr().err
