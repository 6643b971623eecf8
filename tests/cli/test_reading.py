"""Progress of long readings, and remarks about a large share of unknown tokens."""

import io
import json
import sys

import pytest

import recurra
from recurra.cli import reading
from recurra.cli.main import main
from recurra.inference.evaluate import Evaluation


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def partly_unknown(run, tmp_path):
    """A text in which one character in four is not in the vocabulary of the run."""
    file = tmp_path / "unknown.txt"
    file.write_text("the \u732b\u732b\u732b " * 20, "utf-8")
    return str(file)


def test_progress_calls_end_with_total(run, text):
    lm = recurra.load(run)
    for read, total in (
        (lm.score, len(text)),
        (lm.evaluate, len(text) - 1),
        (lm.evaluate_dynamically, len(text) - 1),
    ):
        calls = []
        read(text, progress=lambda *call, calls=calls: calls.append(call))
        assert calls[-1] == (total, total)
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    calls = []
    lm.evaluate(text, window=7, progress=lambda *call: calls.append(call))
    assert calls[-1] == (len(text) - 1, len(text) - 1)


@pytest.mark.parametrize("command", ["score", "eval", "dynamic"])
def test_reading_progress_is_shown_after_some_seconds(run, source, capsys, monkeypatch, command):
    monkeypatch.setattr(reading, "FIRST_LINE_SECONDS", 0.0)
    arguments = (
        ["eval", run, source, "--dynamic"] if command == "dynamic" else [command, run, source]
    )
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "recurra: read " in err
    assert "of 2.0k tokens" in err
    assert "read " not in out
    monkeypatch.setattr(reading, "FIRST_LINE_SECONDS", 10.0)
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""


def test_reading_progress_on_terminal_is_removed(run, source, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert main(["score", run, source]) == 0
    shown = sys.stderr.getvalue()
    assert "2.0k tokens  100%" in shown
    assert shown.endswith("\x1b[2K")  # The last sequence erases the line of the bar.


def test_eval_and_score_state_share_of_unknown_tokens(run, partly_unknown, capsys):
    remark = "% of the {} are <unk>, which makes perplexity and bits too optimistic"
    assert main(["eval", run, partly_unknown]) == 0
    out, _ = capsys.readouterr()
    assert "60 of them unknown" in out
    assert f"note: 37.7{remark.format('predicted tokens')}" in out
    assert main(["eval", run, partly_unknown, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unknown_share"] == 60 / 159
    assert main(["score", run, partly_unknown]) == 0
    assert f"note: 37.5{remark.format('tokens')}" in capsys.readouterr().err
    assert main(["score", run, partly_unknown, "--json"]) == 0
    total = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (total["num_tokens"], total["num_unknown"], total["unknown_share"]) == (160, 60, 0.375)


def test_evaluation_negligible_share_has_no_remark():
    assert "note" not in str(Evaluation(total_nats=1.0, num_tokens=1000, num_unknown=1))
    assert "note: 0.2%" in str(Evaluation(total_nats=1.0, num_tokens=1000, num_unknown=2))


def test_train_states_share_of_unknown_validation_tokens(tmp_path, capsys, quick):
    file = tmp_path / "text.txt"
    words = ["alpha", "beta", "gamma", "delta"]
    file.write_text(" ".join(words[n % 4] if n % 5 else f"rare{n}" for n in range(900)), "utf-8")
    arguments = ["train", str(file), "--tokens", "word", "--min-freq", "3", *quick]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert "unknown   20.0% of the validation tokens are <unk>" in err
    assert main([*arguments, "--out", str(tmp_path / "all"), "--val-fraction", "0"]) == 0
    assert "unknown   20.0% of the training tokens are <unk>" in capsys.readouterr().err
    file.write_text(" ".join(words * 200), "utf-8")
    assert main([*arguments, "--out", str(tmp_path / "known")]) == 0
    assert "<unk>" not in capsys.readouterr().err
