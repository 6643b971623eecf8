"""An example backend that follows docs/architecture.md: Elman layers in a Python loop."""

import torch

from recurra.recurrence.backends.reference import project


def unsupported(needs):
    """Return why this backend cannot compute a layer, or None if it can."""
    if needs.cell.name != "rnn":
        return f"the toy backend has no {needs.cell.name} cell"
    if needs.has_zoneout or needs.recurrent_gradient_scale != 1.0:
        return "the toy backend computes plain layers only"
    return None


def run_layer(cell, inputs, state, parameters, *, dtype, recurrent_gradient_scale):
    """Compute one layer over all steps; arguments and results are those of `layer.run`."""
    (h,), weight = state, parameters.weight_hh
    outputs = []
    for projected in project(inputs, parameters, dtype):
        h = torch.tanh((weight @ h.t()).t() + projected + parameters.bias_hh)
        outputs.append(h)
    return torch.stack(outputs), (h,)
