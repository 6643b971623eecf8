"""The settings that the recipe chooses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import recurra
from recurra.config import RunConfig, RunOptions
from recurra.kernels import library
from recurra.report.progress import Progress
from recurra.runtime.distributed import SINGLE_PROCESS
from recurra.training import estimate, recipe


def known_speed(config):
    return 2e11


def completed(seconds=160.0, length=1_000_000, vocab_size=65, trial=known_speed, **options):
    given = RunOptions.of(**options).with_vocab_size(vocab_size)
    return recipe.choose(given, length, torch.device("cpu"), trial, seconds)


def test_more_time_and_more_text_give_larger_models():
    sizes = [completed(seconds).config.model.hidden_size for seconds in (5, 50, 160, 850)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    few = completed(850, length=18_000).config.model
    assert few.hidden_size < sizes[-1]


def test_a_text_that_is_read_often_gets_more_dropout():
    rates = [completed(160, length=n).config.model.output_dropout for n in (10**8, 10**6, 10**4)]
    assert rates == sorted(rates)
    assert rates[0] < 0.05
    assert 0.5 < rates[-1] <= 0.6


def test_a_small_text_is_not_read_forever():
    small = completed(850, length=18_000).config
    assert small.training.max_epochs == recipe.MAX_EPOCHS
    assert small.model.hidden_size < completed(850, length=10**6).config.model.hidden_size
    assert completed(850, length=18_000, max_epochs=9).config.training.max_epochs == 9


def test_what_has_no_kernels_computes_in_fp32(monkeypatch):
    kernels = SimpleNamespace(recurra_best_kind=lambda: 2)
    monkeypatch.setattr(library, "is_available", lambda: True)
    monkeypatch.setattr(library, "load", lambda: kernels)
    assert completed(cell="gru").config.model.precision == "bf16"
    for options in (
        {"cell": "sru"},
        {"zoneout": 0.1},
        {"residual": True, "hidden_size": 64, "embedding_size": 64},
    ):
        assert completed(**options).config.model.precision == "fp32"


def test_other_cells_learn_more_slowly():
    rates = [
        completed(cell=cell, hidden_size=256).config.training.lr for cell in ("lstm", "gru", "rnn")
    ]
    assert rates == sorted(rates, reverse=True)
    linear = {"cell": "mingru", "residual": True, "hidden_size": 256, "embedding_size": 256}
    assert completed(**linear).config.training.lr == rates[0] / 4


def test_rare_symbols_get_weight_decay():
    decays = [
        completed(160, length=n, vocab_size=2000).config.training.weight_decay
        for n in (10**8, 10**6, 10**5, 10**4)
    ]
    assert decays == sorted(decays)
    assert decays[0] < 1e-3
    assert decays[-1] == recipe.MAX_DECAY


def test_what_was_given_stays():
    given = {
        "hidden_size": 100, "embedding_size": 7, "batch_size": 5, "num_steps": 9, "lr": 0.1,
        "output_dropout": 0.0, "weight_dropout": 0.01, "precision": "fp32", "init": "uniform",
        "forget_bias": 0.5, "cell": "lstm", "num_layers": 3, "final_lr": 0.3,
    }  # fmt: skip
    config = completed(**given).config
    for name, value in given.items():
        section = config.model if hasattr(config.model, name) else config.training
        assert getattr(section, name) == value, name
    assert config.model.dropout > 0.0


def test_a_wide_vocabulary_is_embedded_and_tied():
    model = completed(vocab_size=3000).config.model
    assert model.tie_weights
    assert model.embedding_size == model.hidden_size
    assert not completed(vocab_size=3000, embedding_size=20).config.model.tie_weights
    narrow = completed(vocab_size=65).config.model
    assert (narrow.embedding_size, narrow.tie_weights) == (0, False)
    tied = completed(tie_weights=True, embedding_size=256).config.model
    assert (tied.hidden_size, tied.embedding_size, tied.tie_weights) == (256, 256, True)


@pytest.mark.parametrize("cell", ["rnn", "gru", "none"])
def test_other_cells_get_what_they_can_use(cell):
    model = completed(cell=cell).config.model
    assert model.forget_bias == 0.0
    assert (model.weight_dropout == 0.0) == (cell == "none")


def test_a_model_leaves_itself_five_tokens_a_weight():
    def tokens_per_weight(units, operations=2e11 * 160, vocab=65):
        weights = 4 * units * (vocab + units + 2) + vocab * (units + 1)
        per_token = 6 * (4 * units * units + vocab * units)
        return operations / per_token / weights

    size = completed(160).config.model.hidden_size
    larger = recipe.SIZES[recipe.SIZES.index(size) + 1]
    assert tokens_per_weight(size) >= 5.0 > tokens_per_weight(larger)


def test_however_long_the_time_a_model_fits_its_text():
    assert completed(1e6, length=1_003_854).config.model.hidden_size == 768
    assert completed(1e6, length=10**8).config.model.hidden_size == recipe.SIZES[-1]


def test_what_depends_on_nothing():
    config = completed().config
    training, model = config.training, config.model
    assert (training.schedule, training.warmup, training.final_lr) == ("linear", 0.1, 0.0)
    assert (training.clip_norm, training.batch_size, training.num_steps) == (0.25, 16, 64)
    assert (model.init, model.forget_bias, model.locked_dropout) == ("orthogonal", 1.0, True)


def test_speed_trial_returns_operations_per_second(monkeypatch):
    config = RunConfig.from_options(hidden_size=64, embedding_size=0, batch_size=8)
    trial = estimate.SpeedTrial(np.zeros(10_000, dtype=np.uint16), SINGLE_PROCESS)
    monkeypatch.setattr(estimate, "seconds_per_step", lambda *_: 0.01)
    products = 6 * (4 * 64 * 64 + 2 * 64) * 8 * 64
    assert trial(config) == pytest.approx(products / 0.01)


def test_recipe_second_trial_has_the_size_of_the_first_choice():
    sizes = []

    def slower_when_larger(config):
        sizes.append(config.model.hidden_size)
        return 2e11 if config.model.hidden_size <= 256 else 5e10

    found = completed(160, trial=slower_when_larger).config.model.hidden_size
    assert sizes[0] == 256 < sizes[1]
    assert found < sizes[1]


def test_what_is_tied_or_residual_has_its_size_chosen_as_well():
    for settings in ({"tie_weights": True}, {"residual": True, "cell": "mingru"}):
        models = [completed(seconds, **settings).config.model for seconds in (5, 850)]
        assert models[0].hidden_size < models[1].hidden_size
        assert all(model.embedding_size == model.hidden_size for model in models)
    plain = completed(5).config
    assert completed(5, tie_weights=False, residual=False).config == plain


def test_sizes_can_grow():
    for growth in (4, 32):
        training = completed(batch_growth=growth, window_growth=growth, length=3000).config.training
        assert training.batch_size % growth == training.num_steps % growth == 0
    training = completed(window_growth=128, num_steps=128).config.training
    assert training.num_steps == 128


def test_full_bptt_is_not_cut_short():
    recipe_ = completed(bptt="full")
    assert recipe_.config.training.max_epochs is None
    assert "the whole text" in recipe_.reasons[1]


def test_sgd_has_the_rate_of_the_book():
    training = completed(optimizer="sgd", vocab_size=2000).config.training
    assert (training.lr, training.clip_norm, training.weight_decay) == (1.0, 1.0, 0.0)


def test_a_tiny_text_has_short_windows():
    training = completed(length=45).config.training
    assert (training.batch_size, training.num_steps) == (1, 11)


def test_that_the_text_is_read_often_enough_is_said():
    (size, *_) = completed(850, length=18_000).reasons
    assert "limited to 100 epochs" in size
    assert "enough" not in completed(160).reasons[0]


def test_three_lines_say_why():
    lines = completed().reasons
    assert len(lines) == 3
    assert all(len(line) <= 110 for line in lines)


def test_a_budget_in_steps_changes_no_default(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("a quick brown fox jumps over the lazy dog\n" * 100, "utf-8")
    lm = recurra.train(file, out=tmp_path / "run", steps=2, progress=Progress())
    assert lm.config.model.hidden_size == RunConfig().model.hidden_size
    lm = recurra.train(file, out=tmp_path / "new", minutes=0.05, progress=Progress())
    assert lm.config.model.output_dropout > 0.0
    assert lm.config.training.minutes == 0.05
