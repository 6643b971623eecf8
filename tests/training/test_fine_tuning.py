"""Fine-tuning: weights, settings and vocabulary of another run, and the record of it."""

import pytest
import torch

import recurra
from recurra.cli.main import main
from recurra.errors import ConfigError, RunError, SourceError, TrainingInterrupted
from recurra.model import RecurrentLM
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runs.weights import load_weights
from recurra.runtime.clock import Clock
from recurra.training.run import resume_run

NEW_TEXT = "the cat \u2605 sat on th\u00e9 mat. " * 80


@pytest.fixture
def make_base(source, tmp_path):
    """A function that trains a small model and returns it."""

    def make(**options):
        settings = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "steps": 5}
        settings |= {"sample_length": 5, "progress": Progress()}
        return recurra.train(source, out=tmp_path / "base", **settings | options)

    return make


@pytest.fixture
def tune(tmp_path):
    """A function that fine-tunes the run in `base`."""

    def train(**options):
        settings = {"text": NEW_TEXT, "steps": 5, "out": tmp_path / "tuned"}
        settings |= {"progress": Progress(), "base": tmp_path / "base"}
        return recurra.train(**settings | options)

    return train


def initial_weights(path):
    model = RecurrentLM(RunDirectory(path).read_config().model)
    load_weights(RunDirectory(path).initial, model)
    return model.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru"},
        {"embedding_size": 0},
        {"tie_weights": True},
        {"cell": "minlstm", "num_layers": 2, "residual": True},
    ],
)
def test_train_from_base_starts_with_logits_of_base_and_their_average(make_base, tune, options):
    base = make_base(**options)
    tuned = tune()
    model = RecurrentLM(tuned.config.model)
    model.load_state_dict(initial_weights(tuned.path))
    old = len(base.vocabulary)
    assert tuned.vocabulary.tokens == (*base.vocabulary.tokens, "\u00e9", "\u2605")
    ids = torch.arange(old)[None]
    expected, actual = base.model(ids)[0], model.eval()(ids)[0]
    torch.testing.assert_close(actual[..., :old], expected)
    average = expected.mean(dim=-1, keepdim=True).expand(-1, -1, 2)
    torch.testing.assert_close(actual[..., old:], average, atol=1e-5, rtol=1e-5)


def test_train_from_base_without_new_tokens_starts_with_weights_of_base(make_base, tune):
    base = make_base()
    tuned = tune(text=base.read() * 5)
    assert tuned.vocabulary == base.vocabulary
    start = initial_weights(tuned.path)
    assert all(torch.equal(start[name], value) for name, value in base.model.state_dict().items())


def test_train_from_base_inherits_settings_except_text_budget_and_machine(make_base, tune):
    make_base(
        cell="gru", dropout=0.1, num_layers=2, lr=0.02, patience=3, threads=1, max_tokens=2000
    )
    config = tune(output_dropout=0.3).config
    assert (config.model.cell, config.model.num_layers) == ("gru", 2)
    assert (config.model.dropout, config.model.output_dropout) == (0.1, 0.3)
    assert config.training.lr == pytest.approx(0.01)
    assert config.training.steps == 5
    assert (config.training.patience, config.training.threads) == (None, None)


def test_train_from_base_with_other_structure_is_refused_with_reason(make_base, tune, tmp_path):
    make_base()
    for options in ({"cell": "gru"}, {"hidden_size": 9}, {"tokens": "byte"}, {"init": "normal"}):
        (name,) = options
        with pytest.raises(ConfigError, match=f"{name} is .*, but that of .*base.*remove {name}"):
            tune(**options)
    assert not (tmp_path / "tuned").exists()


def test_train_from_base_keeps_vocabulary_if_new_tokens_are_replaced(make_base, tune):
    base = make_base()
    tuned = tune(new_tokens="replace")
    assert tuned.vocabulary == base.vocabulary
    assert tuned.validate().num_unknown > 0


def test_train_from_base_refuses_new_tokens_as_asked(make_base, tune):
    make_base()
    with pytest.raises(ConfigError, match="lacks 2 tokens of this text: \u2605, \u00e9"):
        tune(new_tokens="error")


def test_train_new_tokens_without_base_raises(source):
    with pytest.raises(ConfigError, match="new_tokens has an effect only in fine-tuning"):
        recurra.train(source, new_tokens="replace")


@pytest.mark.parametrize("tokens", ["word", "byte", "bpe"])
def test_train_from_base_of_other_tokens_keeps_ids_of_base(make_base, tune, tokens):
    pytest.importorskip("tokenizers")
    base = make_base(tokens=tokens)
    tuned = tune(text="the cat flew over the green mat\n" * 100)
    size = len(base.vocabulary)
    labels = [base.vocabulary.label(token) for token in range(size)]
    assert [tuned.vocabulary.label(token) for token in range(size)] == labels
    assert (len(tuned.vocabulary) > size) == (tokens == "word")


def test_train_from_base_of_words_at_size_limit_of_base_adds_none(make_base, tune):
    base = make_base(tokens="word", vocab_size=6)
    tuned = tune(text="the cat flew over the green mat\n" * 100)
    assert tuned.vocabulary == base.vocabulary


def test_train_from_base_records_base(make_base, tune, source):
    base = make_base()
    record = RunDirectory(tune().path).read_provenance().base
    assert record["run"] == str(base.path)
    assert record["sources"] == [str(source)]
    assert record["new_tokens"] == ["\u00e9", "\u2605"]
    assert len(record["weights_sha256"]) == len(record["text_sha256"]) == 64


def test_train_from_base_reports_base_and_loss_before_training(make_base, tune, listener):
    make_base()
    progress = listener()
    tune(progress=progress)
    plan = "\n".join(progress.plans)
    assert "new tokens: \u00e9, \u2605" in plan
    assert "validation loss on this text before training: " in plan


def test_train_from_base_with_short_text_uses_smaller_batches(make_base, tune):
    make_base(batch_size=16, num_steps=64)
    training = tune(text="the cat sat on the mat.\n" * 12).config.training
    assert training.batch_size * training.num_steps < 16 * 64


def test_train_from_base_resumed_before_first_step_starts_from_base(
    make_base, tune, tmp_path, monkeypatch
):
    make_base()
    whole = tune(out=tmp_path / "whole")
    monkeypatch.setattr("recurra.training.run._run", _stop)
    with pytest.raises(TrainingInterrupted):
        tune(out=tmp_path / "parts")
    monkeypatch.undo()
    resume_run(tmp_path / "parts", Progress(), Clock())
    parts = RunDirectory(tmp_path / "parts").model.read_bytes()
    assert parts == RunDirectory(whole.path).model.read_bytes()


def _stop(directory, *args, **kwargs):
    directory.unlock()
    raise TrainingInterrupted(2)


def test_train_from_base_is_replaced_with_force(make_base, tune):
    make_base()
    tune()
    assert tune(force=True).path.is_dir()


def test_train_from_base_with_minutes_keeps_inherited_settings(make_base, tune):
    make_base(hidden_size=12, output_dropout=0.2)
    config = tune(steps=None, minutes=0.03).config
    assert (config.model.hidden_size, config.model.output_dropout) == (12, 0.2)


def test_train_from_directory_without_run_fails(tune, tmp_path):
    (tmp_path / "base").mkdir()
    with pytest.raises(RunError, match="contains no run"):
        tune()


def test_train_command_from_run_writes_tuned_run(make_base, tmp_path, source, capsys):
    base = make_base()
    out = str(tmp_path / "tuned")
    command = ["train", str(source), "--from", str(base.path), "--steps", "3", "--out", out]
    assert main(command) == 0
    assert "no new tokens" in capsys.readouterr().err
    assert RunDirectory(out).read_config().model.hidden_size == 8


def test_train_from_base_with_vocabulary_as_large_as_embedding_adds_tokens(make_base, tune):
    base = make_base(embedding_size=15)
    assert len(base.vocabulary) == 15
    assert len(tune().vocabulary) == 17


def test_train_from_base_keeps_given_batches_or_refuses_them(make_base, tune):
    make_base()
    text = "the cat sat on the mat.\n" * 12
    training = tune(text=text, batch_size=2, num_steps=64).config.training
    assert (training.batch_size, training.num_steps) == (2, 64)
    with pytest.raises(SourceError, match="one batch needs 2,049"):
        tune(text=text, batch_size=32, num_steps=64, force=True)


def test_train_from_language_model_uses_its_run(make_base, tune):
    base = make_base()
    assert RunDirectory(tune(base=base).path).read_provenance().base["run"] == str(base.path)
