"""The command line from outside: what it prints where, exit codes, nothing half-done left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recurra.cli.main import VERBS, main

TEXT = "the cat sat on the mat and the dog sat on the log.\n" * 40
QUICK = [
    "--steps", "6", "--hidden-size", "12", "--batch-size", "2", "--num-steps", "8",
    "--sample-length", "10", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


@pytest.fixture
def run(source, tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", source, "--out", folder, "--quiet", *QUICK]) == 0
    capsys.readouterr()
    return folder


def fails(capsys, arguments, code, *words):
    """The command leaves with `code` and one line on stderr that has these words."""
    assert main([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recurra: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert str(word) in err


def test_train_tells_its_plan_progress_and_what_to_do_next(source, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", source, "--out", str(folder), "--prompt", "the ", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "lstm, 1 layer of 12 units" in err
    assert "parameters" in err
    assert "MB" in err
    assert "perplexity" in err
    assert f"recurra generate {folder}" in err
    assert "\x1b[" not in err


def test_train_json_ends_with_the_result(source, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", source, "--out", str(folder), "--json", "--quiet", *QUICK]) == 0
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert records[-1]["run"] == str(folder)
    assert records[-1]["val_nats"] == min(r["val_nats"] for r in records)


def test_train_reads_standard_input(tmp_path):
    folder = str(tmp_path / "run")
    command = [sys.executable, "-m", "recurra", "train", "-", "--out", folder, "--quiet", *QUICK]
    subprocess.run(command, input=TEXT.encode(), check=True, timeout=120)
    assert main(["eval", folder]) == 0


def test_generate(run, capsys):
    arguments = ["generate", run, "--prompt", "the ", "--max-new-tokens", "30", "--seed", "1"]
    assert main(arguments) == 0
    first, err = capsys.readouterr()
    assert err == ""
    assert first.startswith("the ")
    assert len(first) == 4 + 30 + 1
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--only-new"]) == 0
    assert capsys.readouterr().out == first.removeprefix("the ")
    assert main([*arguments, "--json", "--num-samples", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [len(s) for s in record["samples"]] == [30, 30]


def test_generate_from_an_empty_prompt_and_with_stop(run, capsys):
    assert main(["generate", run, "--max-new-tokens", "40", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert len(text) == 41
    stop = text[10:12]
    assert main(["generate", run, "--max-new-tokens", "40", "--seed", "3", "--stop", stop]) == 0
    assert capsys.readouterr().out == text[: text.index(stop)] + "\n"


def test_eval_and_score_agree(run, source, capsys):
    assert main(["eval", run, source, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["num_tokens"] == len(TEXT) - 1
    assert main(["score", run, source, "--json", "--chars"]) == 0
    *lines, total = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    surprisal = [bits for line in lines for bits in line["surprisal"]]
    assert len(surprisal) == len(TEXT) == total["num_chars"]
    rest = sum(surprisal[1:]) / (len(TEXT) - 1)
    assert rest == pytest.approx(figures["bits_per_char"], rel=1e-6)


def test_score_text_top_and_page(run, source, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["score", run, source, "--top", "3", "--html", str(page)]) == 0
    rows = capsys.readouterr().out.splitlines()
    bits = [float(row.split()[0]) for row in rows]
    assert len(rows) == 3
    assert bits == sorted(bits, reverse=True)
    assert "<html" in page.read_text("utf-8")


def test_runs_lists_the_best_first(source, tmp_path, capsys):
    for name, size in (("small", "4"), ("large", "24")):
        arguments = [*QUICK, "--hidden-size", size, "--steps", "60", "--lr", "0.02"]
        assert main(["train", source, "--out", str(tmp_path / name), "--quiet", *arguments]) == 0
    assert main(["runs", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["hidden_size"] for row in rows} == {4, 24}
    assert rows[0]["val_nats"] < rows[1]["val_nats"]
    assert main(["runs", str(tmp_path)]) == 0
    assert "lstm 1 x 24" in capsys.readouterr().out


def test_data(capsys, monkeypatch, tmp_path):
    assert main(["data", "list"]) == 0
    assert "time-machine" in capsys.readouterr().out
    assert main(["data", "get", "english-story"]) == 0
    path = capsys.readouterr().out.strip()
    assert os.path.getsize(path) > 20_000
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    assert main(["data", "where", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["RECURRA_DATA"] == str(tmp_path)
    fails(capsys, ["data", "get"], 2, "name")


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert "torch" in findings["libraries"]
    assert "bptt" in findings["backends"]
    assert findings["kernels"]


def test_bench(capsys):
    assert main(["bench", "rnn", "256", "28", "--rounds", "1", "--json"]) == 0
    machine, *records = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["product_gflops"]["fp32"] > 0
    assert records[0]["name"] == "torch.nn, one-hot"
    assert records[0]["times_faster"] == 1
    assert all(record["milliseconds"] > 0 for record in records)
    assert main(["bench", "write", "256", "--rounds", "1"]) == 0
    assert "| loop over torch.nn.LSTM " in capsys.readouterr().out
    fails(capsys, ["bench", "nothing"], 2, "no row", "gru 256")
    fails(capsys, ["bench", "--rounds", "0"], 2, "rounds")
    fails(capsys, ["bench", "--threads", "0"], 2, "threads")


def test_help_is_quick_and_does_not_import_torch():
    program = (
        "import sys; from recurra.cli.main import main; code = main(['--help']);"
        "assert 'torch' not in sys.modules and 'tyro' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=30)
    for verb in VERBS:
        program = f"""
import sys
from recurra.cli.main import VERBS, main
try:
    main([{verb!r}, '--help'])
except SystemExit as leaving:
    assert leaving.code == 0
assert 'torch' not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert b"usage: recurra " + verb.encode() in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], ["fly", "train"]),
        (["train", "--hiden-size", "3"], ["--hiden-size", "--hidden-size"]),
        (["train", "--hidden-size", "0"], ["hidden_size must be at least 1"]),
        (["train", "--cell", "tree"], ["tree", "lstm"]),
        (["train", "--epochs", "1", "--minutes", "1"], ["epochs and minutes"]),
        (["train", "--tie-weights"], ["tie_weights", "embedding_size"]),
        (["train", "--bptt", "full", "--sampling", "random"], ["sequential"]),
        (["train", "--device", "gpu9"], ["gpu9"]),
        (["train", "--encoding", "klingon"], ["klingon"]),
        (["generate"], ["run"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, arguments, 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_show_the_verbs_and_exit_2(capsys):
    assert main([]) == 2
    assert "train" in capsys.readouterr().err


@pytest.fixture
def bad_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECURRA_DATA", raising=False)
    folder = tmp_path / "sources"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "a.png").write_bytes(b"\x89PNG\x00\x01" * 9)
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("too short", "utf-8")
    (folder / "latin1.txt").write_bytes("caf\u00e9 au lait\n".encode("latin-1") * 99)
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing.txt", ["nothing.txt"]),
        ("empty.txt", ["empty.txt"]),
        ("short.txt", ["batch", "--num-steps"]),
        ("latin1.txt", ["latin1.txt", "3", "--tokens byte"]),
        ("pictures", ["pictures"]),
    ],
)
def test_bad_sources_are_one_line_exit_1_and_leave_nothing(
    bad_sources, tmp_path, capsys, name, words
):
    out = tmp_path / "runs" / "new"
    fails(capsys, ["train", bad_sources / name, "--out", out, *QUICK], 1, *words)
    assert not out.parent.exists()


def test_a_corpus_without_network_says_where_to_put_the_file(
    bad_sources, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "recurra.text.catalogue._fetch", lambda corpus: (_ for _ in ()).throw(OSError("no route"))
    )
    arguments = ["train", "time-machine", "--out", tmp_path / "new", *QUICK]
    fails(capsys, arguments, 1, "time_machine.txt", "RECURRA_DATA", tmp_path / "cache")
    assert not (tmp_path / "new").exists()


def test_one_repeated_character_is_learned(tmp_path, capsys):
    file = tmp_path / "a.txt"
    file.write_text("a" * 500, "utf-8")
    folder = str(tmp_path / "run")
    assert main(["train", str(file), "--out", folder, "--quiet", *QUICK]) == 0
    assert main(["generate", folder, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "aaaaa\n"


def test_an_existing_folder_is_refused_and_stays(run, source, tmp_path, capsys):
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    fails(capsys, ["train", source, "--out", run, *QUICK], 1, run, "--force")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.txt").write_text("mine", "utf-8")
    fails(capsys, ["train", source, "--out", other, "--force", *QUICK], 1, "not a run")
    # With --force and a bad text the old run must survive.
    arguments = ["train", tmp_path / "missing.txt", "--out", run, "--force", *QUICK]
    fails(capsys, arguments, 1, "missing.txt")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert main(["train", source, "--out", run, "--force", "--quiet", *QUICK]) == 0


def test_unknown_character_in_the_prompt(run, source, tmp_path, capsys):
    fails(
        capsys,
        ["generate", run, "--prompt", "the \u732b sat"],
        1,
        "\u732b",
        "position 4",
        "replace",
    )
    arguments = ["generate", run, "--prompt", "the \u732b sat", "--unknown", "replace"]
    assert main([*arguments, "--max-new-tokens", "5"]) == 0
    capsys.readouterr()
    out = tmp_path / "new"
    fails(capsys, ["train", source, "--out", out, "--prompt", "\u732b", *QUICK], 1, "\u732b")
    assert not out.exists()


def test_a_resumed_run_refuses_other_settings_and_texts_by_name(run, source, tmp_path, capsys):
    resume = ["train", "--resume", run]
    fails(capsys, [*resume, "--lr", "1"], 2, "training.lr is 1.0, and was 0.004")
    fails(capsys, [*resume, "--hidden-size", "13"], 2, "model.hidden_size is 13, and was 12")
    fails(capsys, [*resume, "--minutes", "3", "--steps", "None"], 2, "steps", "and was 6")
    fails(capsys, [*resume, "--out", tmp_path / "other"], 2, "--out")
    other = tmp_path / "other.txt"
    other.write_text(TEXT, "utf-8")
    fails(capsys, [*resume, other], 1, "other.txt", source)
    assert main([*resume, source, "--threads", "1", "--checkpoint-every", "3", "--quiet"]) == 0
    Path(source).write_text(TEXT + "more", "utf-8")
    fails(capsys, [*resume, source, "--quiet"], 1, "text.txt has changed", "SHA-256")
    assert main(resume) == 0
    assert "note: " in capsys.readouterr().err


def test_exploding_training_says_so(source, tmp_path, capsys):
    arguments = [
        "train", source, "--out", tmp_path / "run", "--cell", "rnn-relu", "--lr", "1e6",
        "--warmup", "0", "--schedule", "constant", "--optimizer", "sgd",
        "--clip-norm", "None", "--quiet", *QUICK,
    ]  # fmt: skip
    fails(capsys, arguments, 1, "--lr")


def test_a_folder_that_is_no_run(tmp_path, capsys):
    for verb in ("generate", "eval", "score"):
        fails(capsys, [verb, tmp_path / "nowhere"], 1, "nowhere", "no run")
    fails(capsys, ["train", "--resume", tmp_path], 1, "no run")
    fails(capsys, ["runs", tmp_path / "nowhere"], 1, "nowhere")


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_a_damaged_run_is_one_line(run, capsys, name, damage):
    path = Path(run, name)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        contents = {"empty": b"", "cut": data[: len(data) // 2], "noise": b"\x93" * len(data)}
        path.write_bytes(contents[damage])
    fails(capsys, ["generate", run], 1, run)


def test_ctrl_c_saves_and_leaves_with_130(source, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "recurra", "train", source, "--out", str(folder), *QUICK]
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
def test_a_full_disk_is_one_line(run, capsys):
    fails(capsys, ["score", run, "--html", "/dev/full"], 1, "No space left")


def test_closed_and_narrow_streams(run, source, tmp_path):
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
    quick = " ".join(QUICK)
    done = shell(
        f"{recurra} train {zh} --out {tmp_path}/zh {quick} && {recurra} generate {tmp_path}/zh",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0
    assert b"\\u" in done.stdout


def test_training_goes_on_when_nobody_reads(source, tmp_path):
    folder = tmp_path / "run"
    command = f"{sys.executable} -m recurra train {source} --out {folder} --json {' '.join(QUICK)}"
    options = "--steps 40 --report-every 2"
    # bash waits for both sides of the pipe, so the training has ended when this returns.
    subprocess.run(["bash", "-c", f"{command} {options} 2>&1 | head -n 2"], timeout=60, check=True)
    metrics = (folder / "metrics.jsonl").read_text("utf-8")
    steps = [json.loads(line)["step"] for line in metrics.splitlines()]
    assert steps == list(range(2, 41, 2))
    assert main(["eval", str(folder)]) == 0


def test_a_folder_of_texts_with_a_run_in_it_reads_the_texts_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    for number in (1, 2):
        assert main(["train", ".", "--out", f"runs/{number}", "--quiet", *QUICK]) == 0
    record = json.loads((tmp_path / "runs" / "2" / "tokens.json").read_text("utf-8"))
    assert record["num_chars"] == len(TEXT)
