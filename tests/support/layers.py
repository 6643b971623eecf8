"""Random layers, and their outputs, states and gradients, for tests that compare computations."""

import itertools

import torch

from recurra.recurrence import layer as recurrent_layer
from recurra.recurrence.cells import LayerParameters, find_cell


def make_layer(name, inputs, units, dtype=torch.float64, device="cpu", *, bias=True, proj_size=0):
    """Return random parameters of one layer, which require gradients."""
    cell = find_cell(name)

    def parameter(*shape):
        return (torch.randn(*shape, dtype=dtype) / units**0.5).to(device).requires_grad_()

    gates = cell.num_gates * units
    extra = tuple(parameter(*shape) for shape in cell.extra_shapes(units, inputs).values())
    return LayerParameters(
        weight_ih=parameter(gates, inputs),
        weight_hh=parameter(gates, proj_size or units) if cell.reads_state else None,
        bias_ih=parameter(gates) if bias else None,
        bias_hh=parameter(gates) if bias and cell.reads_state else None,
        weight_hr=parameter(proj_size, units) if proj_size else None,
        extra=extra or None,
    )


def make_state(name, batch, parameters):
    """Return a random state of one layer, which requires gradients."""
    zero = recurrent_layer.zero_state(name, batch, parameters)
    return tuple(torch.randn_like(part).mul_(0.5).requires_grad_() for part in zero)


def leaves_of(inputs, state, layers):
    """Return the tensors for which a gradient is computed."""
    parameters = itertools.chain(*((*p.of_torch, *(p.extra or ())) for p in layers))
    found = (inputs, *state, *parameters)
    return [tensor for tensor in found if tensor is not None and tensor.requires_grad]


def outcome(name, inputs, state, layers, backend, **options):
    """Return outputs, final state and all gradients of a randomly weighted sum of both.

    Args:
        name, inputs, backend, options: as in `layer.run_stack`.
        state: each tensor (L, B, H); () without a state.
        layers: the parameters of each layer.
    """
    values = recurrent_layer.run_stack(name, inputs, state or None, layers, backend, **options)
    return _values_and_gradients(values, leaves_of(inputs, state, layers))


def layer_outcome(name, inputs, state, parameters, backend, **options):
    """Return the same for one layer, with a state whose tensors are (B, H)."""
    values = recurrent_layer.run(name, inputs, state, parameters, backend, **options)
    return _values_and_gradients(values, leaves_of(inputs, state, [parameters]))


def _values_and_gradients(values, leaves):
    outputs, final = values
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros((), dtype=torch.float64)
    for part in (outputs, *final):
        weights = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        total = total + (part.cpu().double() * weights).sum()
    # An output that does not depend on a leaf is an error, which `grad` raises.
    gradients = torch.autograd.grad(total, leaves)
    return [outputs.detach(), *(part.detach() for part in final), *gradients]


def assert_same(actual, expected, tolerance):
    """Compare tensors; the error is relative to the largest entry of each."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"tensor {index} has another shape"
        assert a.dtype == e.dtype, f"tensor {index} has another dtype"
        # A tensor of zeros must be zero to 1e-30.
        scale = max(float(e.detach().abs().max()), 1e-30)
        assert float((a - e).detach().abs().max()) <= tolerance * scale, f"tensor {index} differs"
