"""Errors are one line on stderr with the right exit code, and leave no partial files."""

from pathlib import Path

import pytest

from recurra.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], ["fly", "train"]),
        (["train", "--hiden-size", "3"], ["--hiden-size", "--hidden-size"]),
        (["train", "--hidden-size", "0"], ["hidden_size", "at least 1"]),
        (["train", "--clip-norm", "None"], ["--clip-norm", "0 for no limit"]),
        (["train", "--cell", "None"], ["--cell", "'None'"]),
        (["train", "--cell", "tree"], ["tree", "lstm"]),
        (["train", "--epochs", "1", "--minutes", "1"], ["epochs", "minutes"]),
        (["train", "--tie-weights", "--embedding-size", "5"], ["tie_weights", "embedding_size"]),
        (["train", "--bptt", "full", "--sampling", "random"], ["sequential"]),
        (["train", "--device", "gpu9"], ["gpu9"]),
        (["train", "--encoding", "klingon"], ["klingon"]),
        (["generate"], ["Run directory"]),
    ],
)
def test_main_wrong_usage_is_one_line_and_exits_2(tmp_path, monkeypatch, arguments, words, fails):
    monkeypatch.chdir(tmp_path)
    fails(arguments, 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--cell"], "--cell needs a value"),
        (["train", "--prompt"], "--prompt needs a value"),
        (["train", "--hidden-size", "x"], "--hidden-size is 'x'; it must be an integer"),
        (["train", "--minutes=abc"], "--minutes is 'abc'; it must be a number"),
        (["train", "--lr-milestones", "x"], "--lr-milestones is 'x'; it must be a number"),
        (["score", "run", "--top", "x"], "--top is 'x'; it must be an integer"),
        (["eval", "run", "--unknown", "x"], "--unknown is 'x'; it must be one of error, replace"),
        (["data", "fly"], "action is 'fly'; it must be one of list, get, where"),
        (["compare", "--variant"], "--variant needs a value"),
        (["generate"], "missing argument: RUN (Run directory)"),
        (["kernels"], "missing argument: {build,measure,clean}"),
        (["generate", "a", "b"], "unexpected argument b"),
        (["generate", "a", "b", "c"], "unexpected arguments b, c"),
        (["eval", "run", "--nope", "3"], "unknown option --nope"),
        (
            ["train", "--hiden-size", "3"],
            "unknown option --hiden-size; perhaps you meant --hidden-size",
        ),
    ],
)
def test_main_usage_error_is_in_terms_of_the_help(arguments, message, fails):
    command = arguments[0]
    fails(arguments, 2, f"recurra: {message} (recurra {command} --help lists the options)\n")


@pytest.mark.parametrize("columns", [40, 63, 200])
def test_help_is_wrapped_at_terminal_width(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert columns - 20 < max(map(len, text.split("\n"))) <= columns or columns == 200
    unwrapped = " ".join(text.split())
    assert "report the surprisal of a text by line and character" in unwrapped
    assert "recurra --version prints the version. To get started" in unwrapped


def test_main_no_arguments_lists_commands_and_exits_2(capsys):
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
def test_train_bad_source_is_one_line_and_leaves_no_run(
    bad_sources, tmp_path, name, words, fails, quick
):
    out = tmp_path / "runs" / "new"
    fails(["train", bad_sources / name, "--out", out, *quick], 1, *words)
    assert not out.parent.exists()


def test_train_corpus_without_network_error_names_folders(
    bad_sources, tmp_path, monkeypatch, fails, quick
):
    monkeypatch.setattr(
        "recurra.text.catalogue._fetch", lambda corpus: (_ for _ in ()).throw(OSError("no route"))
    )
    arguments = ["train", "time-machine", "--out", tmp_path / "new", *quick]
    fails(arguments, 1, "time_machine.txt", "RECURRA_DATA", tmp_path / "cache")
    assert not (tmp_path / "new").exists()


def test_train_learns_one_repeated_character(tmp_path, capsys, quick):
    file = tmp_path / "a.txt"
    file.write_text("a" * 500, "utf-8")
    folder = str(tmp_path / "run")
    assert main(["train", str(file), "--out", folder, "--quiet", *quick]) == 0
    assert main(["generate", folder, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "aaaaa\n"


def test_train_precision_without_kernels_leaves_no_run(source, tmp_path, fails, quick):
    out = tmp_path / "other"
    arguments = ["train", source, "--out", out, "--precision", "fp16", "--backend", "native"]
    fails([*arguments, *quick], 2, "no products in torch.float16", "use auto, reference, bptt")
    assert not out.exists()


def test_train_existing_out_is_rejected_and_kept(run, source, tmp_path, fails, quick):
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    fails(["train", source, "--out", run, *quick], 1, run, "--force")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.txt").write_text("mine", "utf-8")
    fails(["train", source, "--out", other, "--force", *quick], 1, "not a run")
    # A bad source must not remove the old run, even with --force.
    arguments = ["train", tmp_path / "missing.txt", "--out", run, "--force", *quick]
    fails(arguments, 1, "missing.txt")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert main(["train", source, "--out", run, "--force", "--quiet", *quick]) == 0


def test_prompt_unknown_character_error_gives_position(run, source, tmp_path, capsys, fails, quick):
    fails(
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
    fails(["train", source, "--out", out, "--prompt", "\u732b", *quick], 1, "\u732b")
    assert not out.exists()


def test_train_resume_rejects_changed_settings_and_text(run, source, tmp_path, capsys, fails, text):
    resume = ["train", "--resume", run]
    fails([*resume, "--lr", "1"], 2, "training.lr", "1.0", "0.004")
    fails([*resume, "--hidden-size", "13"], 2, "model.hidden_size", "13", "12")
    fails([*resume, "--steps", "3"], 2, "6 steps", "--steps greater than 6")
    fails([*resume, "--steps", "9", "--minutes", "3"], 2, "only one budget")
    fails([*resume, "--batch-growth", "64"], 2, "training.batch_growth", "64", "1")
    fails([*resume, "--out", tmp_path / "other"], 2, "--out")
    other = tmp_path / "other.txt"
    other.write_text(text, "utf-8")
    fails([*resume, other], 1, "other.txt", source)
    assert main([*resume, source, "--threads", "1", "--checkpoint-every", "3", "--quiet"]) == 0
    Path(source).write_text(text + "more", "utf-8")
    fails([*resume, source, "--quiet"], 1, "text.txt", "has changed", "SHA-256")
    assert main(resume) == 0
    assert "note: " in capsys.readouterr().err


def test_train_diverging_error_suggests_lr(source, tmp_path, fails, quick):
    arguments = [
        "train", source, "--out", tmp_path / "run", "--cell", "rnn-relu", "--lr", "1e6",
        "--warmup", "0", "--schedule", "constant", "--optimizer", "sgd",
        "--clip-norm", "0", "--quiet", *quick,
    ]  # fmt: skip
    fails(arguments, 1, "--lr")


def test_commands_reject_folder_without_run(tmp_path, fails):
    for command in ("generate", "eval", "score"):
        fails([command, tmp_path / "nowhere"], 1, "nowhere", "no run")
    fails(["train", "--resume", tmp_path], 1, "no run")
    fails(["runs", tmp_path / "nowhere"], 1, "nowhere")


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_generate_damaged_run_error_is_one_line(run, name, damage, fails):
    path = Path(run, name)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        contents = {"empty": b"", "cut": data[: len(data) // 2], "noise": b"\x93" * len(data)}
        path.write_bytes(contents[damage])
    fails(["generate", run], 1, run)
