"""Build torch's optimizers, fused where available."""

from __future__ import annotations

import torch

from recurra.config import TrainingConfig
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM


def build_optimizer(model: RecurrentLM, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser of the config; weight decay spares the biases."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    fused = model.device.type in ("cpu", "cuda")
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    raise ConfigError(f"unknown optimizer {config.optimizer!r}")
