"""Configuration: invalid values, settings without effect, and conversion to and from JSON."""

import json
import math

import pytest

from recurra.config import ModelConfig, RunConfig, RunOptions, TextConfig, TrainingConfig
from recurra.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TextConfig, {"tokens": "syllable"}, "char, byte, word, bpe"),
        (TextConfig, {"val_fraction": 1.0}, "val_fraction"),
        (TextConfig, {"letters_only": True, "tokens": "byte"}, "letters_only"),
        (ModelConfig, {"hidden_size": 0}, "hidden_size"),
        (ModelConfig, {"dropout": 1.0}, "dropout"),
        (ModelConfig, {"cell": "gru", "forget_bias": 1.0}, "forget_bias"),
        (ModelConfig, {"forget_bias": math.nan}, "finite"),
        (TrainingConfig, {"lr": math.inf}, r"\blr\b"),
        (TrainingConfig, {"lr": math.nan}, "lr"),
        (TrainingConfig, {"minutes": math.nan}, "minutes"),
        (TrainingConfig, {"steps": 0}, "steps"),
        (TrainingConfig, {"epochs": 1, "steps": 1}, "epochs and steps"),
        (TrainingConfig, {"lr_milestones": (0.5, 7.0)}, "lr_milestones"),
        (TrainingConfig, {"clip_norm": -1.0}, "clip_norm"),
        (TrainingConfig, {"seed": -1}, "seed"),
        (TrainingConfig, {"bptt": "full", "sampling": "random"}, "sequential"),
    ],
)
def test_config_invalid_value_error_names_field(kind, values, words):
    with pytest.raises(ConfigError, match=words):
        kind(**values)


def test_run_config_randomized_bptt_with_library_raises():
    with pytest.raises(ConfigError, match="library"):
        RunConfig.from_options(bptt="randomized", backend="library")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 0.5}, "dropout"),
        ({"momentum": 0.9}, "momentum"),
        ({"schedule": "constant", "final_lr": 0.5}, "final_lr"),
        ({"lr_decay": 0.5}, "lr_decay"),
        ({"tokens": "byte", "encoding": "latin-1"}, "encoding"),
    ],
)
def test_ignored_names_setting_without_effect(options, words):
    (line,) = RunConfig.from_options(**options).ignored()
    assert words in line


def test_ignored_is_empty_if_all_settings_have_effect():
    options = {"dropout": 0.5, "num_layers": 2, "momentum": 0.9, "optimizer": "sgd"}
    assert RunConfig.from_options(**options).ignored() == []
    assert RunConfig().ignored() == []


def test_from_options_assigns_options_to_sections():
    config = RunConfig.from_options(vocab_size=99, hidden_size=7, lr=0.5)
    assert (config.text.vocab_size, config.model.hidden_size, config.training.lr) == (99, 7, 0.5)
    with pytest.raises(ConfigError, match="did you mean hidden_size"):
        RunConfig.from_options(hiden_size=3)


def test_run_config_round_trips_through_json():
    config = RunConfig.from_options(tokens="word", cell="gru", prompt=("a", "b"), epochs=2.5)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("model"),
        lambda v: v["model"].update(cells="gru"),
        lambda v: v["model"].update(cell="tree"),
        lambda v: v.update(text=[]),
    ],
)
def test_from_dict_damaged_values_raise(damage):
    values = RunConfig().to_dict()
    damage(values)
    with pytest.raises(ConfigError):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": math.inf}, {"clip_value": 1e300}, {"lr_decay": math.inf}, {"minutes": 1e308},
     {"epochs": 1e308}, {"report_every": 10**30}, {"patience": 10**30}, {"steps": 10**30},
     {"forget_bias": 1e300}, {"hidden_size": 10**9}],
)  # fmt: skip
def test_from_options_huge_number_raises(options):
    with pytest.raises(ConfigError):
        RunConfig.from_options(**options)


def test_embedding_size_default_depends_on_tying_and_residual():
    assert ModelConfig(tie_weights=True, hidden_size=100).embedding_size == 100
    assert ModelConfig(residual=True, hidden_size=100).embedding_size == 100
    assert ModelConfig(hidden_size=100).embedding_size == 64
    with pytest.raises(ConfigError, match="embedding_size"):
        ModelConfig(residual=True, hidden_size=100, embedding_size=50)


@pytest.mark.parametrize("name", ["clip_norm", "clip_value", "max_epochs"])
def test_training_config_zero_means_no_limit(name):
    assert getattr(TrainingConfig(**{name: 0}), name) is None


@pytest.mark.parametrize("name", ["clip_norm", "max_epochs"])
def test_run_options_none_for_limit_raises(name):
    with pytest.raises(ConfigError, match=f"{name} is None"):
        RunOptions.of(**{name: None})


def test_run_options_none_means_not_given():
    options = RunOptions.of(lr=None, hidden_size=3, tie_weights=False)
    assert dict(options.values) == {"hidden_size": 3, "tie_weights": False}
    assert options.config == RunConfig.from_options(hidden_size=3)


def test_run_options_filled_keeps_explicit_settings():
    options = RunOptions.of(lr=0.5, max_epochs=0).filled(lr=0.1, max_epochs=100.0, batch_size=7)
    training = options.config.training
    assert (training.lr, training.max_epochs, training.batch_size) == (0.5, None, 7)


def test_run_options_replaced_raises_for_invalid_combination():
    with pytest.raises(ConfigError, match="steps"):
        RunOptions.of(minutes=1).replaced(steps=3)


def test_run_options_from_config_gives_every_setting():
    config = RunConfig.from_options(clip_norm=0, hidden_size=9, prompt=("a", "b"))
    options = RunOptions.from_config(config)
    assert options.is_complete
    assert options.config == config
    assert not RunOptions.of(hidden_size=9).is_complete


def test_run_config_from_options_named_cls_is_an_unknown_option():
    with pytest.raises(ConfigError, match="'cls'"):
        RunOptions.of(cls=3)


def test_model_config_cell_of_wrong_type_raises_config_error():
    with pytest.raises(ConfigError, match="cell"):
        ModelConfig(cell=["gru"])
