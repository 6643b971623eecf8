"""clip_gradients: clipping by value, then by norm; errors name non-finite gradients."""

import math

import pytest
import torch

from recurra.engine.clipping import clip_gradients
from recurra.errors import NonFiniteError


def named(**gradients):
    parameters = []
    for name, gradient in gradients.items():
        parameter = torch.zeros(len(gradient), requires_grad=True)
        parameter.grad = torch.tensor(gradient)
        parameters.append((name, parameter))
    return parameters


def test_clip_gradients_norm_covers_all_parameters():
    parameters = named(a=[3.0, 0.0], b=[4.0])
    assert clip_gradients(parameters, max_norm=1.0) == pytest.approx(5.0)
    assert parameters[0][1].grad.tolist() == pytest.approx([0.6, 0.0], abs=1e-6)
    assert parameters[1][1].grad.tolist() == pytest.approx([0.8], abs=1e-6)


def test_clip_gradients_small_gradients_are_unchanged():
    parameters = named(a=[0.3, -0.4])
    assert clip_gradients(parameters, max_norm=1.0, max_value=1.0) == pytest.approx(0.5)
    assert torch.equal(parameters[0][1].grad, torch.tensor([0.3, -0.4]))


def test_clip_gradients_clips_value_before_norm():
    parameters = named(a=[3.0, -40.0])
    assert clip_gradients(parameters, max_norm=1.0, max_value=3.0) == pytest.approx(
        math.hypot(3, 40)
    )
    # Clipped by value to (3, -3), then by norm. The reverse order would give (0.07, -1).
    assert parameters[0][1].grad.tolist() == pytest.approx([0.70711, -0.70711], abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_clip_gradients_non_finite_gradient_names_parameter(bad):
    parameters = named(weight_hh_l0=[1.0, bad, bad], head_bias=[bad])
    with pytest.raises(NonFiniteError, match=r"weight_hh_l0 .*2 of 3"):
        clip_gradients(parameters, max_norm=1.0)
    assert parameters[0][1].grad[0] == 1.0


def test_clip_gradients_norm_overflow_names_parameter():
    parameters = named(a=[1e30], b=[3e38, 3e38])
    with pytest.raises(NonFiniteError, match=r"overflow.*\bb\b"):
        clip_gradients(parameters, max_norm=1.0)


def test_clip_gradients_skips_parameters_without_gradient():
    frozen = ("frozen", torch.zeros(3))
    assert clip_gradients([frozen, *named(a=[2.0])], max_norm=1.0) == pytest.approx(2.0)
