"""Compare a run with its checkpoint: what must be equal, and what should be.

The settings, the text and the vocabulary decide the result: a difference is refused. The machine
and the versions decide the last bits of it: a difference is reported as a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from recurra.config import RunConfig
from recurra.data.token_file import TokenFile
from recurra.runtime.devices import device_name, processor_name
from recurra.runtime.distributed import Processes
from recurra.version import __version__

FREE_SETTINGS = ("threads", "device", "plot", "checkpoint_every", "on_nan")
"""Training options that a resumed run may change: they do not change what it computes."""


def identity(config: RunConfig, tokens: TokenFile) -> dict[str, Any]:
    """Return all that decides how training continues, ready for JSON."""
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


def environment(processes: Processes, backend: str) -> dict[str, Any]:
    """All that may change the last bits of a result, ready for JSON.

    `backend` is the one that computes: `auto` resolved.
    """
    return {
        "recurra": __version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "device": device_name(processes.device),
        "backend": backend,
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """What differs, each as `name is X, and was Y`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name} is {_shown(new.get(name))}, and was {_shown(old.get(name))}"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of `section.name` and value."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        # JSON has lists where the settings have tuples.
        yield prefix, list(values) if isinstance(values, tuple) else values


def _shown(value: Any) -> str:
    return "not there" if value is None else repr(value)
