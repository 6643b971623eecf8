"""recipe.choose: hyperparameters for a text, a time budget and a measured speed."""

import numpy as np
import pytest
import torch

import recurra
from recurra.config import RunConfig, RunOptions
from recurra.kernels import library
from recurra.report.progress import Progress
from recurra.runtime.distributed import SINGLE_PROCESS
from recurra.training import recipe, recipe_search, recipe_table, trials


def fixed_speed(config):
    return 2e11


def choose(seconds=160.0, length=1_000_000, vocab_size=65, trial=fixed_speed, **options):
    given = RunOptions.of(**options).with_vocab_size(vocab_size)
    return recipe.choose(given, length, torch.device("cpu"), trial, seconds)


def test_recipe_longer_time_and_text_give_larger_model():
    sizes = [choose(seconds).config.model.hidden_size for seconds in (5, 50, 160, 850)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    of_short_text = choose(850, length=18_000).config.model
    assert of_short_text.hidden_size < sizes[-1]


def test_recipe_shorter_text_gets_more_dropout():
    rates = [choose(160, length=n).config.model.output_dropout for n in (10**8, 10**6, 10**4)]
    assert rates == sorted(rates)
    assert rates[0] < 0.05
    assert 0.5 < rates[-1] <= 0.6


def test_recipe_small_text_limits_epochs():
    small = choose(850, length=18_000).config
    assert small.training.max_epochs == recipe_table.MAX_EPOCHS
    assert small.model.hidden_size < choose(850, length=10**6).config.model.hidden_size
    assert choose(850, length=18_000, max_epochs=9).config.training.max_epochs == 9


def with_measured_ratio(monkeypatch, ratio_of):
    """Let bf16 be as many times faster than fp32 as a function of the cell and the sizes says."""
    monkeypatch.setattr(library, "is_available", lambda: True)
    monkeypatch.setattr(recipe_search, "bf16_speedup", ratio_of)


def test_recipe_takes_bf16_only_where_it_was_measured_faster(monkeypatch):
    measured = []

    def ratio_of(cell, units, rows):
        measured.append((cell, units, rows))
        return 1.9 if units > 200 else 1.04

    with_measured_ratio(monkeypatch, ratio_of)
    large, small = choose(cell="gru"), choose(cell="gru", hidden_size=64)
    assert large.config.model.hidden_size > 200
    assert large.config.model.precision == "bf16"
    assert measured[0] == ("gru", 256, 16)
    assert ("gru", large.config.model.hidden_size, 16) in measured
    assert "precision bf16 (1.90x as fast)" in large.reasons[1]
    assert small.config.model.precision == "fp32"
    assert "precision fp32 (bf16: 1.04x)" in small.reasons[1]
    measured.clear()
    given = choose(cell="gru", precision="fp32")
    assert given.config.model.precision == "fp32"
    assert not measured
    assert "x)" not in given.reasons[1]


def test_recipe_model_without_kernels_uses_fp32(monkeypatch):
    with_measured_ratio(monkeypatch, lambda *size: 2.0)
    assert choose(cell="gru").config.model.precision == "bf16"
    for options in (
        {"cell": "sru"},
        {"zoneout": 0.1},
        {"residual": True, "hidden_size": 64, "embedding_size": 64},
    ):
        assert choose(**options).config.model.precision == "fp32"


def test_recipe_learning_rate_depends_on_cell():
    rates = [
        choose(cell=cell, hidden_size=256).config.training.lr for cell in ("lstm", "gru", "rnn")
    ]
    assert rates == sorted(rates, reverse=True)
    linear = {"cell": "mingru", "residual": True, "hidden_size": 256, "embedding_size": 256}
    assert choose(**linear).config.training.lr == rates[0] / 4


def test_recipe_shorter_text_gets_more_weight_decay():
    decays = [
        choose(160, length=n, vocab_size=2000).config.training.weight_decay
        for n in (10**8, 10**6, 10**5, 10**4)
    ]
    assert decays == sorted(decays)
    assert decays[0] < 1e-3
    assert decays[-1] == recipe_table.MAX_DECAY


def test_recipe_given_settings_are_kept():
    given = {
        "hidden_size": 100, "embedding_size": 7, "batch_size": 5, "num_steps": 9, "lr": 0.1,
        "output_dropout": 0.0, "weight_dropout": 0.01, "precision": "fp32", "init": "uniform",
        "forget_bias": 0.5, "cell": "lstm", "num_layers": 3, "final_lr": 0.3,
    }  # fmt: skip
    config = choose(**given).config
    for name, value in given.items():
        section = config.model if hasattr(config.model, name) else config.training
        assert getattr(section, name) == value, name
    assert config.model.dropout > 0.0


def test_recipe_large_vocabulary_is_embedded_and_tied():
    model = choose(vocab_size=3000).config.model
    assert model.tie_weights
    assert model.embedding_size == model.hidden_size
    assert not choose(vocab_size=3000, embedding_size=20).config.model.tie_weights
    narrow = choose(vocab_size=65).config.model
    assert (narrow.embedding_size, narrow.tie_weights) == (0, False)
    tied = choose(tie_weights=True, embedding_size=256).config.model
    assert (tied.hidden_size, tied.embedding_size, tied.tie_weights) == (256, 256, True)


@pytest.mark.parametrize("cell", ["rnn", "gru", "none"])
def test_recipe_skips_unsupported_settings_per_cell(cell):
    model = choose(cell=cell).config.model
    assert model.forget_bias == 0.0
    assert (model.weight_dropout == 0.0) == (cell == "none")


def test_recipe_model_size_keeps_five_tokens_per_weight():
    def tokens_per_weight(units, operations=2e11 * 160, vocab=65):
        weights = 4 * units * (vocab + units + 2) + vocab * (units + 1)
        per_token = 6 * (4 * units * units + vocab * units)
        return operations / per_token / weights

    size = choose(160).config.model.hidden_size
    larger = recipe_table.CPU_RECIPE.sizes[recipe_table.CPU_RECIPE.sizes.index(size) + 1]
    assert tokens_per_weight(size) >= 5.0 > tokens_per_weight(larger)


def test_recipe_model_size_is_limited_by_text():
    assert choose(1e6, length=1_003_854).config.model.hidden_size == 768
    assert choose(1e6, length=10**8).config.model.hidden_size == recipe_table.CPU_RECIPE.sizes[-1]


def test_recipe_fixed_settings_have_expected_values():
    config = choose().config
    training, model = config.training, config.model
    assert (training.schedule, training.warmup, training.final_lr) == ("linear", 0.1, 0.0)
    assert (training.clip_norm, training.batch_size, training.num_steps) == (0.25, 16, 64)
    assert (model.init, model.forget_bias, model.locked_dropout) == ("orthogonal", 1.0, True)


@pytest.mark.parametrize("backend", ["reference", "bptt", "library"])
def test_recipe_backend_without_fast_bf16_gets_fp32(backend):
    assert choose(backend=backend).config.model.precision == "fp32"


def test_speed_trial_returns_operations_per_second(monkeypatch):
    config = RunConfig.from_options(hidden_size=64, embedding_size=0, batch_size=8)
    trial = trials.SpeedTrial(np.zeros(10_000, dtype=np.uint16), SINGLE_PROCESS)
    monkeypatch.setattr(trials, "_seconds_per_step", lambda *_: 0.01)
    products = 6 * (4 * 64 * 64 + 2 * 64) * 8 * 64
    assert trial(config) == pytest.approx(products / 0.01)


def test_recipe_second_trial_measures_first_estimate():
    sizes = []

    def slower_for_large_models(config):
        sizes.append(config.model.hidden_size)
        return 2e11 if config.model.hidden_size <= 256 else 5e10

    found = choose(160, trial=slower_for_large_models).config.model.hidden_size
    assert sizes[0] == 256 < sizes[1]
    assert found < sizes[1]


def test_recipe_tied_or_residual_model_gets_chosen_size():
    for settings in ({"tie_weights": True}, {"residual": True, "cell": "mingru"}):
        models = [choose(seconds, **settings).config.model for seconds in (5, 850)]
        assert models[0].hidden_size < models[1].hidden_size
        assert all(model.embedding_size == model.hidden_size for model in models)
    plain = choose(5).config
    assert choose(5, tie_weights=False, residual=False).config == plain


def test_recipe_growth_divides_batch_and_window():
    for growth in (4, 32):
        training = choose(batch_growth=growth, window_growth=growth, length=3000).config.training
        assert training.batch_size % growth == training.num_steps % growth == 0
    training = choose(window_growth=128, num_steps=128).config.training
    assert training.num_steps == 128


def test_recipe_full_bptt_has_no_epoch_limit():
    chosen = choose(bptt="full")
    assert chosen.config.training.max_epochs is None
    assert "the whole text" in chosen.reasons[1]


def test_recipe_sgd_uses_d2l_learning_rate():
    training = choose(optimizer="sgd", vocab_size=2000).config.training
    assert (training.lr, training.clip_norm, training.weight_decay) == (1.0, 1.0, 0.0)


def test_recipe_tiny_text_gets_short_windows():
    training = choose(length=45).config.training
    assert (training.batch_size, training.num_steps) == (1, 11)


def test_recipe_epoch_limit_is_reported():
    (size, *_) = choose(850, length=18_000).reasons
    assert "100 epochs" in size
    assert "100 epochs" not in choose(160).reasons[0]


def test_recipe_reasons_are_three_short_lines():
    lines = choose().reasons
    assert len(lines) == 3
    assert all(len(line) <= 110 for line in lines)


def test_train_step_budget_does_not_apply_recipe(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("a quick brown fox jumps over the lazy dog\n" * 100, "utf-8")
    lm = recurra.train(file, out=tmp_path / "run", steps=2, progress=Progress())
    assert lm.config.model.hidden_size == RunConfig().model.hidden_size
    lm = recurra.train(file, out=tmp_path / "new", minutes=0.05, progress=Progress())
    assert lm.config.model.output_dropout > 0.0
    assert lm.config.training.minutes == 0.05
