"""`--config`: a run's config.json or a TOML file as defaults; the command line in the run."""

import json

import pytest

import recurra
from recurra.cli.main import main
from recurra.config import RunConfig, RunOptions
from recurra.errors import ConfigError
from recurra.report.progress import Progress
from recurra.runs.config_file import read_config_file
from recurra.runs.directory import RunDirectory

QUICK = ["--hidden-size", "8", "--batch-size", "4", "--num-steps", "16", "--quiet"]


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of settings and returns its path."""

    def write(text, name="settings.toml"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_train_with_config_of_run_repeats_it(source, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert (
        main(["train", str(source), "--steps", "4", "--cell", "gru", "--out", first, *QUICK]) == 0
    )
    config = f"{first}/config.json"
    assert main(["train", "--config", config, "--out", second, "--quiet"]) == 0
    assert RunDirectory(second).read_config() == RunDirectory(first).read_config()
    assert RunDirectory(second).read_sources() == [str(source)]
    assert RunDirectory(second).model.read_bytes() == RunDirectory(first).model.read_bytes()


def test_train_options_take_precedence_over_config(source, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    main(["train", str(source), "--steps", "4", "--cell", "gru", "--out", first, *QUICK])
    command = ["train", "--config", first, "--cell", "rnn", "--epochs", "0.5", "--out", second]
    assert main([*command, "--quiet"]) == 0
    config = RunDirectory(second).read_config()
    assert (config.model.cell, config.model.hidden_size) == ("rnn", 8)
    assert (config.training.steps, config.training.epochs) == (None, 0.5)


def test_train_function_reads_toml_with_sections_and_sources(source, write, tmp_path):
    file = write(
        f'sources = ["{source}"]\nsteps = 3\nclip_norm = 0\nlr_milestones = [0.2, 0.8]\n'
        '[text]\ntokens = "byte"\n[model]\nhidden_size = 8\n[training]\nbatch_size = 4\n'
    )
    lm = recurra.train(config=file, out=tmp_path / "run", progress=Progress())
    config = lm.config
    assert (config.text.tokens, config.model.hidden_size, config.training.steps) == ("byte", 8, 3)
    assert (config.training.clip_norm, config.training.lr_milestones) == (None, (0.2, 0.8))
    assert RunDirectory(lm.path).read_sources() == [str(source)]


def test_config_of_older_run_without_new_settings_is_complete(write):
    record = RunConfig.from_options(cell="gru").to_dict()
    del record["text"]["new_tokens"]
    file = write(json.dumps({"format": 1, "sources": [], **record}), "config.json")
    assert read_config_file(file).options.is_complete


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden = 3", "unknown option 'hidden'"),
        ("[model]\nhiden_size = 3", "unknown option 'hiden_size'; did you mean hidden_size"),
        ("hidden_size = 'x'", "hidden_size is 'x'"),
        ("[model]\nlr = 0.1", "lr belongs to the section training, not model"),
        ("model = 3", "model is 3; it must be a section"),
        ("steps = 3\nepochs = 2", "epochs"),
        ("sources = 3", "sources is 3"),
        ("= 3", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("format = 2", "format is 2, but recurra .* reads only format 1"),
    ],
)
def test_read_config_file_invalid_names_file(write, text, message):
    file = write(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config_file(file)
    assert str(file) in str(error.value)


def test_missing_config_file_is_refused(tmp_path):
    for name in ("none.toml", "none.json"):
        with pytest.raises(ConfigError, match=name):
            read_config_file(tmp_path / name)


def test_given_budget_replaces_budget_of_config(write):
    file = read_config_file(write("minutes = 3\nmax_epochs = 7.0\nlr = 0.1"))
    values = file.as_defaults_of(RunOptions.of(steps=5)).values
    assert values == {"lr": 0.1, "steps": 5}


def test_config_json_resumed_run_lists_all_commands(source, tmp_path):
    out = str(tmp_path / "a run")
    main(["train", str(source), "--steps", "3", "--out", out, *QUICK])
    main(["train", "--resume", out, "--steps", "6", "--quiet"])
    commands = RunDirectory(out).read_provenance().commands
    assert commands == (
        f"recurra train {source} --steps 3 --out '{out}' --hidden-size 8"
        " --batch-size 4 --num-steps 16 --quiet",
        f"recurra train --resume '{out}' --steps 6 --quiet",
    )


def test_resume_with_config_is_refused(tmp_path, capsys):
    assert main(["train", "--resume", "run", "--config", "x", "--from", "y"]) == 2
    assert "--resume cannot be combined with --from or --config" in capsys.readouterr().err
