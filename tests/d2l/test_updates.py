"""Gradient clipping, SGD, metrics and device selection of `recurra.d2l`."""

import math

import pytest
import torch
from torch import nn

from recurra import d2l
from recurra.errors import NonFiniteError


class Scratch:
    def __init__(self, *gradients):
        self.params = [_param(gradient) for gradient in gradients]


def _param(gradient):
    param = torch.zeros(len(gradient), requires_grad=True)
    param.grad = torch.tensor(gradient)
    return param


def test_grad_clipping_scales_all_gradients_to_threshold():
    net = Scratch([3.0, 0.0], [0.0, 4.0])
    d2l.grad_clipping(net, 1)
    assert [p.grad.tolist() for p in net.params] == [
        pytest.approx([0.6, 0.0]),
        pytest.approx([0.0, 0.8]),
    ]


def test_grad_clipping_keeps_small_gradients():
    net = Scratch([0.3], [0.4])
    d2l.grad_clipping(net, 0.6)
    assert [p.grad.item() for p in net.params] == [pytest.approx(0.3), pytest.approx(0.4)]


def test_grad_clipping_ignores_frozen_parameters():
    net = nn.Linear(2, 2)
    net(torch.tensor([[30.0, 40.0]])).sum().backward()
    net.bias.requires_grad_(False)
    d2l.grad_clipping(net, 5.0)
    assert net.weight.grad.norm().item() == pytest.approx(5.0)
    assert net.bias.grad.tolist() == [1.0, 1.0]


def test_grad_clipping_v1_accepts_list_and_iterator(device):
    for make in (list, iter):
        params = Scratch([3.0, 4.0]).params
        d2l.grad_clipping(make(params), 0.01, torch.device(device))
        assert params[0].grad.tolist() == pytest.approx([0.006, 0.008])


def test_grad_clipping_and_sgd_skip_missing_gradients():
    net = Scratch([3.0, 4.0])
    net.params.append(torch.zeros(2, requires_grad=True))
    d2l.grad_clipping(net, 1)
    assert net.params[0].grad.tolist() == pytest.approx([0.6, 0.8])
    d2l.sgd(net.params, 1.0, 1)
    assert net.params[1].tolist() == [0.0, 0.0]
    d2l.grad_clipping([net.params[1]], 1)
    assert net.params[1].grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_grad_clipping_non_finite_gradient_raises(value):
    net = Scratch([1.0, value])
    with pytest.raises(NonFiniteError, match="learning rate"):
        d2l.grad_clipping(net, 1)
    assert net.params[0].grad[0].item() == 1.0


def test_sgd_steps_by_lr_over_batch_size_and_clears_grad():
    param = torch.tensor([1.0, 2.0], requires_grad=True)
    param.grad = torch.tensor([4.0, -8.0])
    d2l.sgd([param], lr=0.5, batch_size=4)
    assert param.tolist() == [0.5, 3.0]
    assert param.grad.tolist() == [0.0, 0.0]
    assert param.requires_grad


def test_accumulator_sums_and_resets():
    metric = d2l.Accumulator(2)
    metric.add(1, torch.tensor(2.5, requires_grad=True) * 2)
    metric.add(0.5, 1)
    assert (metric[0], metric[1]) == (1.5, 6.0)
    metric.reset()
    assert metric.data == [0.0, 0.0]


def test_timer_measures_intervals(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = d2l.Timer()
    assert timer.stop() == 2.0
    timer.start()
    assert timer.stop() == 3.0
    assert (timer.sum(), timer.avg(), timer.cumsum()) == (5.0, 2.5, [2.0, 5.0])


@pytest.mark.parametrize("count", [0, 2])
def test_try_gpu_and_try_all_gpus_return_available_devices(monkeypatch, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    names = ["cuda:0", "cuda:1"][:count] or ["cpu"]
    assert [str(device) for device in d2l.try_all_gpus()] == names
    assert str(d2l.try_gpu()) == names[0]
    assert str(d2l.try_gpu(7)) == "cpu"
