"""Compare a resumed run with its checkpoint: required and recommended equality.

The settings, the text and the vocabulary determine the result, so a difference is an error. The
machine and the versions affect only its last bits, so a difference is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from recurra.config import RunConfig
from recurra.config.training import BUDGETS
from recurra.data.token_file import TokenFile
from recurra.kernels.matmul_selection import matmul_kernels
from recurra.runtime import cores
from recurra.runtime.devices import device_name, processor_name
from recurra.runtime.distributed import Processes
from recurra.version import __version__

FREE_SETTINGS = ("threads", "device", "plot", "checkpoint_every", "on_nan")
"""Training settings that can change when a run is resumed; they do not affect the result."""
BUDGET_SETTINGS = (*BUDGETS, "max_epochs")
"""Training settings that can change when a run is resumed, although they affect the result."""


def identity(config: RunConfig, tokens: TokenFile) -> dict[str, Any]:
    """Return the values that determine the result of training, as JSON-compatible objects."""
    settings = config.to_dict()
    for name in FREE_SETTINGS:
        del settings["training"][name]
    return {
        **settings,
        "tokens": {
            "total": tokens.num_tokens,
            "training_part": tokens.num_train,
            "sha256": tokens.tokens_sha256,
        },
        "vocabulary": {"fingerprint": tokens.vocabulary_fingerprint},
    }


def environment(processes: Processes, backend: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the values that affect the last bits of a result, as JSON-compatible objects.

    Args:
        processes: the processes that train.
        backend: the name of the backend in use, never "auto".
        dtype: the dtype of the operands of matrix products.
    """
    has_bf16_kernel = backend == "native" and dtype == torch.bfloat16
    return {
        "recurra": __version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "device": device_name(processes.device),
        "backend": backend,
        "matmul": matmul_kernels().bf16 if has_bf16_kernel else None,
        "threads": cores.threads(),
        "processes": processes.count,
    }


def other_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two identities, except in `FREE_SETTINGS` and the budget.

    A setting that an older checkpoint lacks is assumed to have its default.
    """
    return differences(_comparable(before), _comparable(now))


def other_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two environments, except in values that an older one lacks."""
    return differences({**now, **before}, now)


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    ignored = (*FREE_SETTINGS, *BUDGET_SETTINGS)
    found = dict(identity)
    for section, defaults in RunConfig().to_dict().items():
        if isinstance(values := identity.get(section), Mapping):
            settings = {**defaults, **values}
            found[section] = {k: v for k, v in settings.items() if k not in ignored}
    return found


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Return a description of each difference, in the form `name is X, but was Y`."""
    old, new = dict(_flattened(before)), dict(_flattened(now))
    return [
        f"{name} is {_displayed(new.get(name))}, but was {_displayed(old.get(name))}"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]


def _flattened(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings as pairs of `section.name` and value."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        # JSON has lists where the settings have tuples.
        yield prefix, list(values) if isinstance(values, tuple) else values


def _displayed(value: Any) -> str:
    return "not set" if value is None else repr(value)
