"""The statistics of a comparison, its table, its plot and the command."""

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


def test_compare_mean_and_spread_equal_statistics(compare):
    for row in compare(seeds=3).rows:
        scores = [r.bits_per_char for r in row.results]
        assert row.mean == pytest.approx(statistics.fmean(scores))
        assert row.spread == pytest.approx(statistics.stdev(scores))
    assert compare(seeds=1, force=True).rows[0].spread is None


def test_as_good_as_the_best_returns_rows_within_noise():
    best, near, far = row("a", 1.0, 1.2), row("b", 1.1, 1.3), row("c", 4.0, 4.1)
    alone = row("d", 1.1)
    rows = Comparison(Path(), [best, near, alone, far]).not_significantly_worse()
    assert [r.variant.name for r in rows] == ["b"]


def test_as_good_as_the_best_depends_on_seed_count():
    # Both pairs of means differ by 3.5 standard errors, which is significant with six seeds but
    # not with two.
    few = [row("a", 0.0, 1.0), row("b", 2.475, 3.475)]
    many = [row("a", *[0.0, 1.0] * 3), row("b", *[1.108, 2.108] * 3)]
    assert len(Comparison(Path(), few).not_significantly_worse()) == 1
    assert Comparison(Path(), many).not_significantly_worse() == []


def test_compare_unknown_tokens_are_reported(source, compare):
    source.write_text(" ".join(f"w{i % 97} v{i}" for i in range(1500)), "utf-8")
    table = str(compare({"words": {"tokens": "word"}, "letters": {}}, seeds=1))
    (note,) = [line for line in table.splitlines() if "<unk>" in line]
    assert "words" in note
    assert "letters" not in note


def test_compare_results_file_equals_result(compare, tmp_path):
    result = compare()
    stored = json.loads((tmp_path / "all" / "results.json").read_text("utf-8"))["runs"]
    assert [run["bits_per_char"] for run in stored] == [
        score for row in result.rows for score in row.scores
    ]


def test_comparison_str_is_markdown_table(compare):
    lines = str(compare(seeds=1)).splitlines()
    assert lines[0].startswith("| variant")
    assert any("more --seeds" in line for line in lines)


def test_comparison_names_test_level_and_seeds_that_would_decide():
    # Means and standard deviations are 2.712 +- 0.027 and 2.821 +- 0.033.
    close = [row("gru", 2.693, 2.731), row("rnn", 2.798, 2.844)]
    comparison = Comparison(Path(), close)
    (test,) = comparison.tests
    assert (test.better, test.worse, test.is_decided, test.seeds_needed) == ("gru", "rnn", False, 3)
    assert test.difference == pytest.approx(0.109)
    text = str(comparison)
    assert "Welch's t-test of bits/char (two-sided, level 5%, Holm's correction for a pair)" in text
    assert "rnn  +0.1090  p = 0.07" in text
    assert "no significant difference; about 3 seeds needed" in text
    assert "power of 80%" in text
    stored = comparison.to_dict()["test"]
    assert stored["name"].startswith("Welch's t-test")
    assert (stored["level"], stored["unit"]) == (0.05, "bits/char")
    assert stored["pairs"] == [
        {
            "better": "gru", "worse": "rnn", "difference": test.difference,
            "p_value": test.p_value, "seeds_needed": 3, "is_decided": False,
        }
    ]  # fmt: skip


def test_comparison_decided_difference_has_no_number_of_seeds():
    decided = [row("gru", 2.693, 2.731, 2.712), row("rnn", 2.798, 2.844, 2.821)]
    (test,) = Comparison(Path(), decided).tests
    assert test.is_decided
    assert test.seeds_needed is None
    assert "different" in str(Comparison(Path(), decided))
    assert "power" not in str(Comparison(Path(), decided))


def test_comparison_corrects_for_every_pair_of_variants():
    means = {"a": 1.0, "b": 1.04, "c": 2.0}
    rows = [row(name, mean, mean + 0.02, mean + 0.03) for name, mean in means.items()]
    pair, *_ = Comparison(Path(), rows[:2]).tests
    among_three, *_ = Comparison(Path(), rows).tests
    assert pair.is_decided
    assert among_three.p_value == pytest.approx(pair.p_value)  # the largest of three
    more = [*rows, row("d", 1.04, 1.06, 1.07)]
    assert Comparison(Path(), more).tests[0].p_value > 2 * pair.p_value
    assert Comparison(Path(), more).tests[0].seeds_needed > 3


def test_comparison_equal_means_show_no_difference():
    (test,) = Comparison(Path(), [row("a", 1.0, 1.2), row("b", 1.0, 1.2)]).tests
    assert test.p_value == 1.0
    assert test.seeds_needed is None
    assert test.conclusion == "no difference"


def test_comparison_nearly_equal_means_need_more_seeds_than_the_limit():
    (test,) = Comparison(Path(), [row("a", 1.0, 1.2), row("b", 1.001, 1.2)]).tests
    assert test.seeds_needed is None
    assert "about more than" not in test.conclusion
    assert "more than 1,000 seeds needed" in test.conclusion


def test_comparison_reports_models_of_different_size(compare):
    table = str(compare({"lstm": {}, "rnn": {"cell": "rnn"}}, seeds=1, hidden_size=32))
    (note,) = [line for line in table.splitlines() if "differ in size" in line]
    assert "--equal-parameters" in note
    assert "differ in size" not in str(compare({"lstm": {}}, seeds=1, force=True))


def test_compare_command_prints_table_and_writes_plot(source, tmp_path, capsys):
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
def test_compare_malformed_variant_error_names_option(source, capsys, name):
    assert main(["compare", str(source), "--variant", name, "--num-tokens", "640"]) == 2
    assert "variant" in capsys.readouterr().err
