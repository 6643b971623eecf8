"""Growing batches and windows: their sizes as a function of the progress in [0, 1]."""

import pytest

from recurra.config import TrainingConfig
from recurra.engine.autograd import AutogradEngine
from recurra.engine.compiled import CompiledEngine
from recurra.errors import ConfigError
from recurra.training.batch_schedule import at_stage, stage_at


def sizes(config, progress):
    settings = at_stage(config, stage_at(config, progress))
    return settings.batch_size, settings.num_steps


def test_batch_schedule_sizes_double_in_equal_stages():
    config = TrainingConfig(batch_size=32, num_steps=64, batch_growth=4, window_growth=2)
    assert sizes(config, 0.0) == (8, 32)
    assert sizes(config, 0.33) == (8, 32)
    assert sizes(config, 0.34) == (16, 64)
    assert sizes(config, 0.67) == (32, 64)
    assert sizes(config, 1.5) == (32, 64)


def test_batch_schedule_without_growth_has_one_stage():
    config = TrainingConfig()
    assert stage_at(config, 0.99) == 0
    assert at_stage(config, 0) == config


def test_train_growth_batches_have_size_of_their_stage(run, tmp_path, monkeypatch, without_trial):
    shapes = []

    for engine in (CompiledEngine, AutogradEngine):

        def record_shape(self, batch, lr, original=engine.step):
            shapes.append(batch.ids.shape)
            original(self, batch, lr)

        monkeypatch.setattr(engine, "step", record_shape)
    run(tmp_path / "run", steps=9, batch_growth=4, window_growth=2)
    assert shapes == [(1, 8)] * 3 + [(2, 16)] * 3 + [(4, 16)] * 3


def test_train_growth_epoch_counts_only_read_tokens(run, tmp_path, lines):
    run(tmp_path / "run", steps=9, batch_growth=4, window_growth=2, report_every=1)
    records = lines(tmp_path / "run")
    length = 2040 * 9 // 10
    for record in records:
        assert record["epoch"] == pytest.approx(record["tokens"] / length, abs=0.01)
    assert records[-1]["epoch"] < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_growth": 3}, "batch_growth is 3"),
        ({"window_growth": 0}, "window_growth is 0"),
        ({"batch_growth": 64}, "batch_size"),
        ({"batch_growth": 2, "epochs": 3.0}, "minutes"),
        ({"window_growth": 2, "bptt": "full"}, "bptt"),
    ],
)
def test_config_invalid_growth_raises(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)
