"""Resuming is exact for every cell, bptt mode and training option."""

import pytest

from recurra import api
from recurra.engine import loss_scaling
from recurra.engine.loss_scaling import LossScale
from recurra.errors import TrainingInterrupted
from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.training import run as run_module

OPTIONS = {
    "steps": 30, "num_layers": 2, "dropout": 0.3, "report_every": 6, "checkpoint_every": 4,
}  # fmt: skip


@pytest.fixture
def assert_resumes(run, tmp_path, listener, crash):
    """A function that asserts that an interrupted and resumed run has identical files."""

    def check(step, **options):
        lm = run(tmp_path / "uninterrupted", **OPTIONS | options)
        with pytest.raises(TrainingInterrupted):
            run(tmp_path / "parts", listener(stop_at=step), **OPTIONS | options)
        run_module.resume_run(tmp_path / "parts", Progress(), Clock())
        assert crash.differences(tmp_path / "uninterrupted", tmp_path / "parts") == []
        return lm, api.load(tmp_path / "parts")

    return check


@pytest.mark.parametrize("cell", ["rnn", "gru", "none"])
@pytest.mark.parametrize("bptt", ["full", "randomized"])
def test_resume_d2l_cells_and_bptt_modes_is_exact(assert_resumes, cell, bptt):
    assert_resumes(13, cell=cell, bptt=bptt)


@pytest.mark.parametrize("cell", ["lstm-ln", "mogrifier", "mingru", "minlstm", "sru", "rglru"])
@pytest.mark.parametrize("residual", [False, True])
def test_resume_other_cells_and_residual_blocks_is_exact(assert_resumes, cell, residual):
    lm, loaded = assert_resumes(
        13, cell=cell, residual=residual, hidden_size=16, embedding_size=16, num_layers=2,
        dropout=0.1, output_dropout=0.1, weight_dropout=0.1,
    )  # fmt: skip
    assert loaded.validate() == lm.validate()
    assert len(loaded.generate("the", max_new_tokens=30, seed=1)) == 30


@pytest.mark.parametrize("step", [3, 10, 11, 23])
@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_resume_growing_batches_is_exact(assert_resumes, step, sampling):
    assert_resumes(step, batch_growth=4, window_growth=2, sampling=sampling)


def test_resume_zoneout_is_exact(assert_resumes):
    assert_resumes(13, zoneout=0.2)


@pytest.mark.parametrize("step", [1, 17])
def test_resume_weight_averaging_is_exact(assert_resumes, step):
    assert_resumes(step, weight_averaging=0.9)


@pytest.mark.parametrize("step", [3, 21])
def test_resume_fp16_with_skipped_steps_is_exact(assert_resumes, monkeypatch, step):
    """The scale of the loss grows until a step overflows."""
    monkeypatch.setattr(loss_scaling, "GROWTH_INTERVAL", 1)
    monkeypatch.setattr(loss_scaling, "MAX_SCALE", 2.0**60)
    skipped, original = [], LossScale.overflowed

    def overflowed(self, nats, norm):
        skipped.append(original(self, nats, norm))
        return skipped[-1]

    monkeypatch.setattr(LossScale, "overflowed", overflowed)
    assert_resumes(step, precision="fp16", weight_averaging=0.999)
    assert any(map(bool, skipped))
