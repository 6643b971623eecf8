"""The commands of the command line, called as a user calls them."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recurra.cli import benchmark_rows
from recurra.cli.benchmark_rows import TrainingRow
from recurra.cli.main import COMMANDS, main
from recurra.recurrence.backends import triton_scan


def test_train_prints_plan_progress_and_next_command(source, tmp_path, capsys, quick):
    folder = tmp_path / "run"
    assert main(["train", source, "--out", str(folder), "--prompt", "the ", *quick]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "lstm, 1 layer of 12 units" in err
    assert "parameters" in err
    assert "MB" in err
    assert "perplexity" in err
    assert f"recurra generate {folder}" in err
    assert "\x1b[" not in err


def test_train_json_last_record_is_result(source, tmp_path, capsys, quick):
    folder = tmp_path / "run"
    assert main(["train", source, "--out", str(folder), "--json", "--quiet", *quick]) == 0
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert records[-1]["run"] == str(folder)
    assert records[-1]["val_nats"] == min(r["val_nats"] for r in records)


def test_train_reads_standard_input(tmp_path, quick, text):
    folder = str(tmp_path / "run")
    command = [sys.executable, "-m", "recurra", "train", "-", "--out", folder, "--quiet", *quick]
    subprocess.run(command, input=text.encode(), check=True, timeout=120)
    assert main(["eval", folder]) == 0


def test_generate_same_seed_gives_same_sample(run, capsys):
    arguments = ["generate", run, "--prompt", "the ", "--max-new-tokens", "30", "--seed", "1"]
    assert main(arguments) == 0
    first, err = capsys.readouterr()
    assert err == ""
    assert first.startswith("the ")
    assert len(first) == 4 + 30 + 1
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--no-prompt"]) == 0
    assert capsys.readouterr().out == first.removeprefix("the ")
    assert main([*arguments, "--json", "--num-samples", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [len(s) for s in record["samples"]] == [30, 30]


def test_generate_empty_prompt_ends_at_stop_string(run, capsys, text):
    assert main(["generate", run, "--max-new-tokens", "40", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert len(text) == 41
    stop = text[10:12]
    assert main(["generate", run, "--max-new-tokens", "40", "--seed", "3", "--stop", stop]) == 0
    assert capsys.readouterr().out == text[: text.index(stop)] + "\n"


def test_eval_and_score_give_equal_bits_per_char(run, source, capsys, text):
    assert main(["eval", run, source, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["num_tokens"] == len(text) - 1
    assert main(["score", run, source, "--json", "--chars"]) == 0
    *lines, total = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    surprisal = [bits for line in lines for bits in line["surprisal"]]
    assert len(surprisal) == len(text) == total["num_chars"]
    rest = sum(surprisal[1:]) / (len(text) - 1)
    assert rest == pytest.approx(figures["bits_per_char"], rel=1e-6)


def test_eval_dynamic_adds_separate_figures(run, capsys, fails):
    assert main(["eval", run, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["eval", run, "--dynamic", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    dynamic = both.pop("dynamic")
    assert both == plain
    assert dynamic["num_tokens"] == plain["num_tokens"]
    assert dynamic["total_nats"] < plain["total_nats"]
    assert main(["eval", run, "--dynamic", "--dynamic-lr", "0.0001"]) == 0
    assert "dynamic evaluation" in capsys.readouterr().out
    fails(["eval", run, "--dynamic", "--window", "5"], 2, "--window")
    fails(["eval", run, "--dynamic-lr", "1"], 2, "--dynamic")
    fails(["eval", run, "--dynamic", "--dynamic-lr", "-1"], 2, "lr")


def test_score_top_and_html_write_ranking_and_page(run, source, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["score", run, source, "--top", "3", "--html", str(page)]) == 0
    rows = capsys.readouterr().out.splitlines()
    bits = [float(row.split()[0]) for row in rows]
    assert len(rows) == 3
    assert bits == sorted(bits, reverse=True)
    shown = page.read_text("utf-8")
    on_page = [float(value) for value in re.findall(r"<tr.*?<td>\d+<td>([\d.]+)", shown)]
    assert on_page == pytest.approx(bits, abs=0.006)
    assert f"<title>{Path(source).name}</title>" in shown
    assert f"scored by {Path(run).name}" in shown


def test_score_html_title_names_the_text(run, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = []
    for name in ("a", "b", "c", "d", "e"):
        names.append(f"{name}.txt")
        Path(names[-1]).write_text("abc", "utf-8")

    def title(*sources):
        assert main(["score", run, *sources, "--html", "page.html"]) == 0
        found = re.search("<title>(.*)</title>", Path("page.html").read_text("utf-8"))
        return found and found[1]

    assert title() == f"validation split of {Path(run).name}"
    assert title(names[0]) == "a.txt"
    assert title(*names) == "a.txt, b.txt, c.txt and 2 more"
    assert title(".") == tmp_path.name
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert title("-") == "standard input"


def test_runs_lists_best_run_first(source, tmp_path, capsys, quick):
    for name, size in (("small", "4"), ("large", "24")):
        arguments = [*quick, "--hidden-size", size, "--steps", "60", "--lr", "0.02"]
        assert main(["train", source, "--out", str(tmp_path / name), "--quiet", *arguments]) == 0
    assert main(["runs", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["hidden_size"] for row in rows} == {4, 24}
    assert rows[0]["val_nats"] < rows[1]["val_nats"]
    assert main(["runs", str(tmp_path)]) == 0
    assert "lstm 1 x 24" in capsys.readouterr().out


def test_data_list_get_and_where(capsys, monkeypatch, tmp_path, fails):
    assert main(["data", "list"]) == 0
    assert "time-machine" in capsys.readouterr().out
    assert main(["data", "get", "english-story"]) == 0
    path = capsys.readouterr().out.strip()
    assert os.path.getsize(path) > 20_000
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    assert main(["data", "where", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["RECURRA_DATA"] == str(tmp_path)
    fails(["data", "get"], 2, "name")


def test_data_list_shows_path_and_size_of_local_corpora(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "time_machine.txt"
    file.write_text("another edition", "utf-8")
    assert main(["data", "list", "--json"]) == 0
    out, err = capsys.readouterr()
    listed = {record["name"]: record for record in map(json.loads, out.splitlines())}
    assert (listed["time-machine"]["path"], listed["time-machine"]["num_bytes"]) == (str(file), 15)
    assert os.path.isfile(listed["english-story"]["path"])
    assert listed["tiny-shakespeare"]["path"] is None
    assert listed["tiny-shakespeare"]["num_bytes"] == 1_115_394
    assert "differs from the published time-machine" in err
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"15 bytes  {file}" in lines[5]
    assert "1,115,394 bytes  not on this machine" in lines[9]


def test_doctor_json_reports_libraries_and_backends(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert "torch" in findings["libraries"]
    assert "bptt" in findings["backends"]
    assert findings["kernels"]


@pytest.mark.parametrize("reason", [None, "Triton cannot be used: ImportError: none"])
def test_doctor_beside_gpu_states_whether_triton_is_used(reason, capsys, monkeypatch):
    gpu = torch.device("cuda", 0)
    for name, value in {
        "is_available": True, "device_count": 1, "get_device_name": "a GPU", "current_device": 0,
        "is_current_stream_capturing": False,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(triton_scan, "_reasons", {gpu: reason})
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.7.1"))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["triton"]
    expected = f"not used for linear scans: {reason}" if reason else "3.7.1; used for linear scans"
    assert found == expected


def test_bench_prints_records_and_rejects_bad_options(capsys, fails, monkeypatch):
    # The sizes are reduced because bf16 products are slow on some processors.
    monkeypatch.setattr("recurra.cli.benchmark.PRODUCT_SIZE", 32)
    small = [
        dataclasses.replace(row, batch_size=2) if isinstance(row, TrainingRow) else row
        for row in benchmark_rows.ROWS
    ]
    monkeypatch.setattr(benchmark_rows, "ROWS", small)
    assert main(["bench", "rnn", "256", "28", "--rounds", "1", "--json"]) == 0
    machine, *records = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["product_gflops"]["fp32"] > 0
    assert records[0]["name"] == "torch.nn, one-hot"
    assert records[0]["times_faster"] == 1
    assert all(record["milliseconds"] > 0 for record in records)
    assert main(["bench", "generation", "256", "--rounds", "1"]) == 0
    assert "| loop over torch.nn.LSTM " in capsys.readouterr().out
    fails(["bench", "nothing"], 2, "no row", "gru 256")
    fails(["bench", "--rounds", "0"], 2, "rounds")
    fails(["bench", "--threads", "0"], 2, "threads")


def test_help_does_not_import_torch():
    program = (
        "import sys; from recurra.cli.main import main; code = main(['--help']);"
        "assert 'torch' not in sys.modules and 'tyro' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=30)
    for command in COMMANDS:
        program = f"""
import sys
from recurra.cli.main import COMMANDS, main
try:
    main([{command!r}, '--help'])
except SystemExit as error:
    assert error.code == 0
assert 'torch' not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert b"usage: recurra " + command.encode() in done.stdout


def test_train_folder_source_skips_run_directories(tmp_path, monkeypatch, quick, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(text, "utf-8")
    for number in (1, 2):
        assert main(["train", ".", "--out", f"runs/{number}", "--quiet", *quick]) == 0
    record = json.loads((tmp_path / "runs" / "2" / "tokens.json").read_text("utf-8"))
    assert record["num_chars"] == len(text)
