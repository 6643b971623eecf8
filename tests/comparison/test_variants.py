"""Every variant is trained on the same text with the same budget."""

import dataclasses

import pytest

import recurra
from comparison.settings import SMALL, VARIANTS
from recurra.errors import ConfigError, TrainingInterrupted
from recurra.experiments import runs
from recurra.training import run as run_module
from recurra.training.trials import SpeedTrial
from support.simulated_device import simulate_gpu


def test_compare_every_variant_trains_each_seed_on_equal_tokens(compare, tmp_path):
    result = compare(seed=5)
    assert {row.variant.name for row in result.rows} == set(VARIANTS)
    assert [row.mean for row in result.rows] == sorted(row.mean for row in result.rows)
    for row in result.rows:
        assert [r.seed for r in row.results] == [5, 6]
        assert {r.tokens for r in row.results} == {640}
        for r in row.results:
            lm = recurra.load(r.folder)
            assert lm.config.training.seed == r.seed
            assert lm.validate().bits_per_char == pytest.approx(r.bits_per_char)
            assert lm.model.num_parameters == r.parameters
    assert (tmp_path / "all" / "wide-rnn-6" / "model.safetensors").is_file()


def test_compare_batch_sizes_train_on_equal_tokens(compare):
    variants = {"small": {"batch_size": 2}, "large": {"batch_size": 8}}
    for row in compare(variants, seeds=1).rows:
        assert {r.tokens for r in row.results} == {640}


def test_compare_growth_trains_on_about_equal_tokens(compare):
    growing = {"rows": {"batch_growth": 4}, "steps": {"window_growth": 2}, "neither": {}}
    for row in compare(growing, seeds=1, num_tokens=64 * 84).rows:
        assert row.mean_of("tokens") == pytest.approx(64 * 84, rel=0.02)


def test_compare_minutes_applies_recipe_per_variant(compare):
    options = {"num_tokens": None, "minutes": 0.05, "seeds": 1, "hidden_size": 8}
    result = compare({"lstm": {}, "gru": {"cell": "gru"}}, **options)
    for r in (row.results[0] for row in result.rows):
        training = recurra.load(r.folder).config.training
        assert training.final_lr == 0.0  # the value of training/recipe.py, not the default
        assert training.lr == SMALL["lr"]


def test_compare_recipe_is_chosen_once_for_all_seeds(compare, monkeypatch):
    speeds = iter([1e6, 1e6, 1e12, 1e12])
    monkeypatch.setattr(SpeedTrial, "__call__", lambda *_: next(speeds))
    options = {"num_tokens": None, "minutes": 0.03, "seeds": 2, "max_epochs": 1e9}
    (row,) = compare({"lstm": {}}, **options).rows
    first, second = (recurra.load(r.folder).config for r in row.results)
    assert first.model == second.model
    assert dataclasses.replace(second.training, seed=1) == first.training


def test_compare_device_is_chosen_once_for_all_seeds(compare, monkeypatch):
    speeds = {"cpu": 2e9, "mps": 1e9}
    simulate_gpu(monkeypatch, speeds)
    monkeypatch.setattr(runs, "warm_up", lambda run: speeds.update(mps=1e10))
    (row,) = compare({"lstm": {}}, num_tokens=64).rows
    assert [recurra.load(r.folder).config.training.device for r in row.results] == ["cpu", "cpu"]


@pytest.mark.parametrize("budget", [{"num_tokens": 640}, {"minutes": 0.03, "num_tokens": None}])
def test_compare_equal_parameters_chooses_hidden_sizes(compare, listener, budget):
    progress = listener()
    variants = {name: {"cell": name} for name in ("lstm", "gru", "rnn", "mingru")}
    options = {"seeds": 1, "hidden_size": 64, "equal_parameters": True, "progress": progress}
    comparison = compare(variants, **options | budget)
    sizes = {row.variant.name: row.results[0] for row in comparison.rows}
    assert sizes["lstm"].hidden_size == 64
    for result in sizes.values():
        assert result.parameters == pytest.approx(sizes["lstm"].parameters, rel=0.02)
        assert recurra.load(result.folder).model.num_parameters == result.parameters
        assert recurra.load(result.folder).config.model.hidden_size == result.hidden_size
    assert sizes["rnn"].hidden_size > sizes["gru"].hidden_size > 64
    rnn = sizes["rnn"]
    shown = f"rnn: {rnn.hidden_size} units, {rnn.parameters:,} parameters"
    assert any(line.startswith(shown) for line in progress.messages)
    assert "differ in size" not in str(comparison)


def test_compare_equal_parameters_first_variant_gives_the_size(compare):
    variants = {"lstm": {"hidden_size": 24}, "rnn": {"cell": "rnn", "hidden_size": None}}
    rows = compare(variants, seeds=1, equal_parameters=True, hidden_size=None).rows
    sizes = {row.variant.name: row.results[0].hidden_size for row in rows}
    assert sizes["lstm"] == 24
    assert 24 < sizes["rnn"] < 72


def test_compare_equal_parameters_resumes_with_the_same_sizes(compare, listener):
    variants = {"lstm": {}, "rnn": {"cell": "rnn"}}
    options = {"hidden_size": 32, "equal_parameters": True}
    with pytest.raises(TrainingInterrupted):
        compare(variants, progress=listener(stop_at=7), **options)
    rows = compare(variants, **options).rows
    assert len({result.hidden_size for row in rows for result in row.results}) == 2


def test_compare_warms_up_every_variant_before_the_first_run(compare, monkeypatch):
    events = []

    def warm_up(run):
        events.append(f"warm up {run.path.name}")

    def resume(path, *arguments, **options):
        events.append(f"train {path.name}")
        return run_module.resume_run(path, *arguments, **options)

    monkeypatch.setattr(runs, "warm_up", warm_up)
    monkeypatch.setattr(runs, "resume_run", resume)
    compare(seeds=1)
    assert events == ["warm up gru-1", "warm up wide-rnn-1", "train gru-1", "train wide-rnn-1"]


def test_compare_diverged_run_is_counted_others_continue(compare):
    diverging = {"cell": "rnn-relu", "lr": 1e9, "clip_norm": 0, "optimizer": "sgd", "warmup": 0.0}
    good, bad = compare({"diverging": diverging, "gru": {"cell": "gru"}}, num_tokens=6400).rows
    assert good.variant.name == "gru"
    assert len(good.scores) == 2
    assert bad.scores == []
    assert [r.nats_per_token for r in bad.results] == [None, None]


def test_compare_messages_name_their_run(compare, listener):
    progress = listener()
    variants = {"deep": {"dropout": 0.5}}
    compare(variants, seeds=1, progress=progress)
    assert any(line.startswith("deep: ") and "dropout" in line for line in progress.messages)
    assert any(
        line.startswith("deep, seed 1: ") and "unusable" in line for line in progress.messages
    )
    assert not any("saving" in line or "checkpoint" in line for line in progress.messages)


def test_compare_long_name_gets_short_directory(compare):
    names = ["long " * 60 + "1", "long " * 60 + "2", "\U00020000" * 60]
    rows = compare({name: {} for name in names}, seeds=1).rows
    folders = {result.folder.name for row in rows for result in row.results}
    assert len(folders) == 3
    assert all(len(folder.encode()) < 80 for folder in folders)


@pytest.mark.parametrize(
    ("variants", "options", "words"),
    [
        ({"a": {"steps": 3}, "b": {"steps": 4}}, {"num_tokens": None}, "differ in steps"),
        ({"a": {}, "b": {"seed": 4}}, {}, "differ in seed"),
        (["gru", "gru "], {}, "cell"),
        ({"gru 1": {}, "Gru-1": {}}, {}, "Gru-1"),
        ([], {}, "variants is empty"),
        (["gru"], {"seeds": 0}, "seeds is 0"),
        (["gru"], {"num_tokens": 0}, "num_tokens is 0"),
        (["gru"], {"num_tokens": 1.5}, "num_tokens is 1.5"),
        (["gru"], {"seeds": 2.5}, "seeds is 2.5"),
        (["gru"], {"seed": 2**63 - 1}, "seed"),
        (["gru"], {"minutes": 1}, "minutes"),
        (["gru"], {"bptt": "full"}, "full"),
        ({"a": {}, "b": {"min_freq": 9}}, {}, "differ in min_freq"),
        ({"a": {}, "b": {"max_tokens": 900}}, {}, "differ in max_tokens"),
        ({"a": {}, "b": {"letters_only": True}}, {}, "differ in letters_only"),
        ({"a": {}, "b": {"vocab_size": 9}}, {}, "differ in vocab_size"),
        ("gru", {}, "cells"),
        ({"gru": "gru"}, {}, "mapping"),
        ({1: {}}, {}, r"\b1\b"),
        (["gru", "gru"], {}, "'gru'"),
        (["gru"], {"val_fraction": 0.0}, "val_fraction is 0"),
        (["gru"], {"hiden_size": 3}, "hidden_size"),
        ({"a": {}, "b": {"hidden_size": 9}}, {"equal_parameters": True}, "b: .*hidden_size"),
        (
            {"a": {}, "b": {"embedding_size": 8, "tie_weights": True}},
            {"equal_parameters": True},
            "b: .*tie_weights",
        ),
    ],
)
def test_compare_invalid_arguments_raise_before_writing(
    compare, tmp_path, variants, options, words
):
    with pytest.raises(ConfigError, match=words):
        compare(variants, **options)
    assert not (tmp_path / "all").exists()


def test_compare_standard_input_is_rejected(compare):
    with pytest.raises(ConfigError, match="file"):
        recurra.compare("-", ["gru"], **SMALL)


def test_compare_several_processes_are_rejected(compare, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        compare()


def test_compare_none_in_a_variant_keeps_the_common_option(compare):
    rows = compare({"a": {"lr": None}, "b": {}}, seeds=1, lr=0.02).rows
    assert [recurra.load(row.results[0].folder).config.training.lr for row in rows] == [0.02, 0.02]
