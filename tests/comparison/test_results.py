"""The statistics of a comparison and their presentation."""

import json
import statistics
from pathlib import Path

import pytest

import recurra
from recurra.cli.main import main
from recurra.config import RunOptions
from recurra.experiments import Comparison, Result, Row, Variant


def row(name, *scores):
    results = [Result(i, Path(), 1, s, s, 0.0, 1, 1.0, 1.0, []) for i, s in enumerate(scores)]
    return Row(Variant(name, RunOptions.of()), results)


def test_mean_and_spread_are_those_of_the_seeds(compare):
    for row in compare(seeds=3).rows:
        scores = [r.bits_per_char for r in row.results]
        assert row.mean == pytest.approx(statistics.fmean(scores))
        assert row.spread == pytest.approx(statistics.stdev(scores))
    assert compare(seeds=1, force=True).rows[0].spread is None


def test_as_good_as_the_best_returns_rows_within_noise():
    best, near, far = row("a", 1.0, 1.2), row("b", 1.1, 1.3), row("c", 2.0, 2.1)
    alone = row("d", 1.1)
    told = Comparison(Path(), [best, near, alone, far]).as_good_as_the_best()
    assert [r.variant.name for r in told] == ["b"]


def test_what_is_too_close_follows_from_the_number_of_seeds():
    # Both means differ by 3.5 standard errors: with two seeds chance does that, with six it does
    # not.
    few = [row("a", 0.0, 1.0), row("b", 2.475, 3.475)]
    many = [row("a", *[0.0, 1.0] * 3), row("b", *[1.108, 2.108] * 3)]
    assert len(Comparison(Path(), few).as_good_as_the_best()) == 1
    assert Comparison(Path(), many).as_good_as_the_best() == []


def test_unknown_tokens_are_told(source, compare):
    source.write_text(" ".join(f"w{i % 97} v{i}" for i in range(1500)), "utf-8")
    told = str(compare({"words": {"tokens": "word"}, "letters": {}}, seeds=1))
    assert "words: " in told
    assert "of the predicted tokens are <unk>" in told
    assert "letters: " not in told


def test_the_figures_stay_beside_the_runs(compare, tmp_path):
    result = compare()
    stored = json.loads((tmp_path / "all" / "results.json").read_text("utf-8"))["runs"]
    assert [run["bits_per_char"] for run in stored] == [
        score for row in result.rows for score in row.scores
    ]


def test_printed_it_is_a_table(compare):
    lines = str(compare(seeds=1)).splitlines()
    assert lines[0].startswith("| variant")
    assert "one seed each" in lines[-2]


def test_the_command_prints_a_table_and_draws(source, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    small = ["--batch-size", "4", "--num-steps", "16", "--sample-length", "5", "--num-tokens=640"]
    variants = ["--variant", "gru", "--variant", "--cell rnn --hidden-size 9"]
    command = [
        "compare", str(source), *variants, *small, "--hidden-size", "8", "--seeds", "2", "--out",
        str(tmp_path / "all"), "--quiet",
    ]  # fmt: skip
    assert main([*command, "--plot"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split("|")[1].strip() == "variant"
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
def test_compare_malformed_variant_is_refused_by_name(source, capsys, name):
    assert main(["compare", str(source), "--variant", name, "--num-tokens", "640"]) == 2
    assert "variant" in capsys.readouterr().err
