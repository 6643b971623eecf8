"""Batches that grow: sizes by the share of the budget that is spent."""

import pytest

from recurra.config import TrainingConfig
from recurra.engine.autograd import AutogradEngine
from recurra.engine.compiled import CompiledEngine
from recurra.errors import ConfigError
from recurra.training.batch_schedule import at_stage, stage_at


def sizes(config, spent):
    settings = at_stage(config, stage_at(config, spent))
    return settings.batch_size, settings.num_steps


def test_sizes_double_in_equal_shares_until_all_are_full():
    config = TrainingConfig(batch_size=32, num_steps=64, batch_growth=4, window_growth=2)
    assert sizes(config, 0.0) == (8, 32)
    assert sizes(config, 0.33) == (8, 32)
    assert sizes(config, 0.34) == (16, 64)
    assert sizes(config, 0.67) == (32, 64)
    assert sizes(config, 1.5) == (32, 64)


def test_without_growth_there_is_one_stage():
    config = TrainingConfig()
    assert stage_at(config, 0.99) == 0
    assert at_stage(config, 0) == config


def test_every_update_has_the_size_of_its_stage(run, tmp_path, monkeypatch):
    seen = []

    for engine in (CompiledEngine, AutogradEngine):

        def watched(self, batch, lr, original=engine.step):
            seen.append(batch.ids.shape)
            original(self, batch, lr)

        monkeypatch.setattr(engine, "step", watched)
    run(tmp_path / "run", steps=9, batch_growth=4, window_growth=2)
    assert seen == [(1, 8)] * 3 + [(2, 16)] * 3 + [(4, 16)] * 3


def test_what_is_left_out_when_a_stage_begins_was_not_read(run, tmp_path, lines):
    run(tmp_path / "run", steps=9, batch_growth=4, window_growth=2, report_every=1)
    records = lines(tmp_path / "run")
    length = 2040 * 9 // 10
    for record in records:
        assert record["epoch"] == pytest.approx(record["tokens"] / length, abs=0.01)
    assert records[-1]["epoch"] < 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_growth": 3}, "power of 2"),
        ({"window_growth": 0}, "power of 2"),
        ({"batch_growth": 64}, "divisible"),
        ({"batch_growth": 2, "epochs": 3.0}, "budget in minutes"),
        ({"window_growth": 2, "bptt": "full"}, "bptt=truncated, not full"),
    ],
)
def test_what_cannot_grow_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        TrainingConfig(**options)
