"""`recurra eval`: perplexity and bits of a text under a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli.parsing import parse
from recurra.config import UnknownRule
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.inference.evaluate import Evaluation
    from recurra.inference.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model on a text: exact sums over all tokens, the state carried from end to end.

    The first token is only read; every other one is predicted once.
    """

    run: tyro.conf.Positional[str]
    """The run's folder."""

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, folders, - for standard input, or corpus names; by default the run's own validation
    part."""

    window: int | None = None
    """Read windows of this many tokens, each from the zero state, instead of carrying the state."""

    unknown: UnknownRule = "replace"
    """What to do with a symbol that the model never saw."""

    dynamic: bool = False
    """Report dynamic evaluation as well: the model adapts to each segment after
    it was predicted."""

    dynamic_lr: float | None = None
    """How far dynamic evaluation moves a weight for a gradient of its usual size (0.0005)."""

    device: str = "cpu"
    """Where to compute: auto, cpu, cuda, cuda:N or mps."""

    json: bool = False
    """Print the figures as one line of JSON."""


def run(arguments: Sequence[str]) -> int:
    """Print the figures."""
    command = parse(Eval, "eval", arguments)
    if command.dynamic and command.window is not None:
        raise ConfigError("--dynamic carries the state from end to end; drop --window")
    if command.dynamic_lr is not None and not command.dynamic:
        raise ConfigError("--dynamic-lr is for --dynamic")
    from recurra.api import load

    lm = load(command.run, command.device)
    text = lm.read(command.sources) if command.sources else None
    if text is None:
        result = lm.validate(window=command.window)
    else:
        result = lm.evaluate(text, window=command.window, unknown=command.unknown)
    dynamic = _evaluate_dynamically(lm, text, command) if command.dynamic else None
    if command.json:
        figures: dict[str, Any] = dict(result.to_dict())
        if dynamic is not None:
            figures["dynamic"] = dynamic.to_dict()
        print(json.dumps(figures))
        return 0
    print(result)
    if dynamic is not None:
        print("\nlearning on from what was read (dynamic evaluation)")
        print(dynamic)
    return 0


def _evaluate_dynamically(lm: LanguageModel, text: str | bytes | None, command: Eval) -> Evaluation:
    settings = {} if command.dynamic_lr is None else {"lr": command.dynamic_lr}
    return lm.evaluate_dynamically(text, unknown=command.unknown, **settings)
