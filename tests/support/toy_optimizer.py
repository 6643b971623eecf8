"""An example optimizer that follows docs/architecture.md."""

import torch


class SignMomentum(torch.optim.Optimizer):
    """Optimizer that moves every weight by `lr` against the sign of its mean gradient."""

    def __init__(self, params, lr, momentum=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(parameter)
                state["mean"].lerp_(parameter.grad, 1.0 - group["momentum"])
                parameter.sub_(group["lr"] * state["mean"].sign())
