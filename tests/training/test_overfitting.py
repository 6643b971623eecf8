"""describe_overfitting: the message about a model that memorized its text."""

import math
import random

import pytest

from recurra import api
from recurra.report.overfitting import describe_overfitting


def records(*losses):
    return [
        {"step": 10 * i, "train_nats": train, "val_nats": val}
        for i, (train, val) in enumerate(losses, 1)
    ]


def test_describe_overfitting_rising_val_loss_reports_losses():
    message = describe_overfitting(records((2.0, 2.1), (1.5, 1.9), (0.6, 2.4)))
    assert message is not None
    for part in ("step 20", "1.50 to 0.60", "1.90 to 2.40"):
        assert part in message


def test_describe_overfitting_large_gap_is_reported():
    message = describe_overfitting(records((2.0, 2.1), (0.9, 1.9)))
    assert message is not None
    assert "0.90" in message
    assert "1.90" in message


@pytest.mark.parametrize(
    "losses",
    [
        [(2.0, 2.1), (1.5, 1.7)],
        [(2.0, 2.1), (1.5, 1.7), (1.45, 1.71)],
        [(2.0, 2.1), (3.0, 3.5)],
        [(2.0, None), (0.5, None)],
        [],
    ],
)
def test_describe_overfitting_normal_training_returns_none(losses):
    assert describe_overfitting(records(*losses)) is None


def test_train_random_text_reports_overfitting(tmp_path, listener):
    generator = random.Random(0)
    file = tmp_path / "noise.txt"
    file.write_text("".join(generator.choice("abcdefgh") for _ in range(2000)), "utf-8")
    progress = listener()
    options = {"hidden_size": 64, "batch_size": 4, "num_steps": 32, "lr": 1e-2, "steps": 600}
    lm = api.train(file, out=tmp_path / "run", progress=progress, **options)
    (message,) = [line for line in progress.messages if line.startswith("overfit")]
    assert "fell" in message
    assert "rose" in message
    # The saved weights predict the uniform distribution of the eight letters.
    assert lm.validate().nats_per_token == pytest.approx(math.log(8), abs=0.1)
