"""The message about a model that has memorised its text."""

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


def test_a_validation_loss_that_rises_while_the_other_falls_is_told_with_both():
    said = describe_overfitting(records((2.0, 2.1), (1.5, 1.9), (0.6, 2.4)))
    assert said is not None
    for part in ("step 20", "1.50 to 0.60", "1.90 to 2.40"):
        assert part in said


def test_a_large_gap_at_the_best_step_is_told():
    said = describe_overfitting(records((2.0, 2.1), (0.9, 1.9)))
    assert said is not None
    assert "0.90" in said
    assert "1.90" in said


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
def test_nothing_is_said_where_nothing_was_learned_by_heart(losses):
    assert describe_overfitting(records(*losses)) is None


def test_a_text_without_any_rule_can_only_be_memorised(tmp_path, listener):
    letters = random.Random(0)
    file = tmp_path / "noise.txt"
    file.write_text("".join(letters.choice("abcdefgh") for _ in range(2000)), "utf-8")
    progress = listener()
    options = {"hidden_size": 64, "batch_size": 4, "num_steps": 32, "lr": 1e-2, "steps": 600}
    lm = api.train(file, out=tmp_path / "run", progress=progress, **options)
    (said,) = [line for line in progress.messages if line.startswith("overfit")]
    assert "validation loss rose" in said
    # What is kept knows no more than that there are eight letters.
    assert lm.validate().nats_per_token == pytest.approx(math.log(8), abs=0.1)
