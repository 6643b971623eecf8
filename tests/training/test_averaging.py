"""The exponential moving average of the weights, in validation and in saved models."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recurra.config import RunConfig
from recurra.data.batches import BatchStream
from recurra.data.token_file import load_token_file
from recurra.engine.averaging import WeightAverage
from recurra.engine.select import select_engine
from recurra.errors import TrainingInterrupted
from recurra.model import RecurrentLM
from recurra.training.schedules import learning_rate


def test_weight_average_add_follows_ema_equation():
    model = nn.Linear(2, 3).double()
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for n in range(1, 20):
        model.weight.data.normal_()
        average.add(n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_weight_average_in_place_swaps_and_restores_weights():
    model = nn.Linear(2, 3)
    average = WeightAverage(model, 0.9)
    mean = average.tensors["weight"].clone()
    own, pointer = model.weight.data.normal_().clone(), model.weight.data_ptr()
    with average.in_place():
        assert torch.equal(model.weight, mean)
        assert model.weight.data_ptr() == pointer
    assert torch.equal(model.weight, own)
    assert torch.equal(average.tensors["weight"], mean)


def test_train_weight_averaging_saves_the_average(run, tmp_path):
    options = {"steps": 9, "report_every": 4, "schedule": "constant", "hidden_size": 8}
    plain = run(tmp_path / "plain", **options)
    averaged = run(tmp_path / "averaged", **options, weight_averaging=0.7)
    # The updates of both runs, repeated here: averaging does not change them.
    config = averaged.config
    torch.manual_seed(config.training.seed)
    model = RecurrentLM(config.model)
    stream = BatchStream(load_token_file(tmp_path / "plain").train, config.training)
    engine = select_engine(model, config.training)
    average = WeightAverage(model, 0.7)
    for number, batch in zip(range(1, 10), stream.epoch(0), strict=False):
        engine.step(batch, learning_rate(config.training, (number - 1) / 9))
        average.add(number)
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name))
        torch.testing.assert_close(averaged.model.get_parameter(name), average.tensors[name])


def test_train_interrupted_before_report_saves_average(run, tmp_path, listener):
    options = {"steps": 50, "report_every": 40, "weight_averaging": 0.9}
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "run", progress=listener(stop_at=20), **options)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*20*")
    state = load_file(checkpoint / "state.safetensors")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(tensor, state[f"average.{name}"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_config_weight_averaging_out_of_range_raises(decay):
    with pytest.raises(Exception, match="weight_averaging"):
        RunConfig.from_options(weight_averaging=decay)
