"""Messages about a text or a budget that is too small for a usable model."""

import math

import numpy as np
import pytest

from recurra.config import TrainingConfig
from recurra.data.dataset import TokenDataset
from recurra.report.usability import Outcome, describe_short_text, describe_unusable
from recurra.text.vocabulary import CharVocabulary


def outcome(nats, frequency_nats=3.0, num_train=100_000, steps=1000):
    return Outcome(
        {"val_nats": nats, "train_nats": 9.0}, frequency_nats, num_train, steps, "runs/a"
    )


def test_frequency_nats_equals_cross_entropy_of_smoothed_counts():
    train, val = np.array([1, 1, 1, 2, 2, 3]), np.array([1, 2])
    dataset = TokenDataset(train, val, 1, 1, CharVocabulary("abc"))
    # Of 6 + 4 counts, token 1 has 3 + 1, and token 2 has 2 + 1.
    expected = -(math.log(0.4) + math.log(0.3)) / 2
    assert dataset.frequency_nats() == pytest.approx(expected)


def test_describe_unusable_model_better_than_frequencies_is_none():
    assert describe_unusable(outcome(2.0), TrainingConfig(steps=5)) is None


@pytest.mark.parametrize(
    ("budget", "suggestion"),
    [
        ({}, "--minutes 4"),
        ({"minutes": 0.15}, "--minutes 2"),
        ({"minutes": 3.0}, "--minutes 6"),
        ({"steps": 12}, "--steps 120"),
        ({"epochs": 0.5}, "--epochs 5"),
    ],
)
def test_describe_unusable_after_few_steps_suggests_greater_budget(budget, suggestion):
    message = describe_unusable(outcome(2.9, steps=12), TrainingConfig(**budget))
    assert message.endswith(f"recurra train --resume runs/a {suggestion}")
    assert "2.90 nats" in message
    assert "12 steps" in message


def test_describe_unusable_short_text_suggests_longer_text():
    message = describe_unusable(outcome(2.9, num_train=153, steps=12), TrainingConfig(steps=12))
    assert "only 153 tokens" in message
    assert "longer text" in message


def test_describe_unusable_after_many_steps_suggests_smaller_learning_rate():
    message = describe_unusable(outcome(2.9), TrainingConfig(steps=1000, lr=3.0))
    assert "smaller --lr (it is 3)" in message


def test_train_short_text_and_budget_reports_both(run, tmp_path, listener):
    progress = listener()
    run(tmp_path / "run", progress, steps=2)
    assert any("1,836 characters for training are too few" in m for m in progress.messages)
    assert any(m.startswith("unusable") and "longer text" in m for m in progress.messages)


def test_train_usable_model_reports_nothing(run, tmp_path, listener):
    progress = listener()
    run(tmp_path / "run", progress, steps=200)
    assert not any(m.startswith("unusable") for m in progress.messages)


def test_describe_short_text_names_unit():
    assert describe_short_text(10_000, "char") is None
    assert "9,999 words for training" in describe_short_text(9_999, "word")
