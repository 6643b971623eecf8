"""`recurra eval`: perplexity and bits of a text under a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli.parsing import parse
from recurra.cli.reading import shown_progress
from recurra.cli.showing import json_line
from recurra.config import UnknownRule
from recurra.errors import ConfigError

if TYPE_CHECKING:
    from recurra.inference.evaluate import Evaluation
    from recurra.inference.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Report perplexity and bits per token, character and byte of a text under a model.

    Every token except the first is predicted exactly once. By default, the hidden state is carried
    through the whole text.
    """

    run: tyro.conf.Positional[str]
    """Run directory."""

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE ...]")
    ] = ()
    """Files, directories, corpus names (see recurra data list), or - for standard input. By
    default, the validation split of the run."""

    window: int | None = None
    """Number of tokens in a window. With it, each window is read from a zero state instead of
    carrying the state through the text."""

    unknown: UnknownRule = "replace"
    """Handling of symbols that are not in the vocabulary: report an error, or replace them by
    <unk>."""

    dynamic: bool = False
    """Also report dynamic evaluation, in which the model adapts to each segment of the text after
    predicting it."""

    dynamic_lr: float | None = None
    """Learning rate of dynamic evaluation; by default 0.0005."""

    device: str = "cpu"
    """Device: auto (the CPU, which is faster for a single stream of tokens), cpu, cuda, cuda:N or
    mps."""

    json: bool = False
    """Print the result as one line of JSON."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print the result, and return the exit code."""
    command = parse(Eval, "eval", arguments)
    if command.dynamic and command.window is not None:
        raise ConfigError("--dynamic cannot be combined with --window; remove one of them")
    if command.dynamic_lr is not None and not command.dynamic:
        raise ConfigError("--dynamic-lr requires --dynamic")
    from recurra.api import load

    lm = load(command.run, command.device)
    text = lm.read(command.sources) if command.sources else None
    settings: dict[str, Any] = {"window": command.window}
    with shown_progress() as progress:
        if text is None:
            result = lm.validate(progress=progress, **settings)
        else:
            result = lm.evaluate(text, unknown=command.unknown, progress=progress, **settings)
    dynamic = _evaluate_dynamically(lm, text, command) if command.dynamic else None
    if command.json:
        figures: dict[str, Any] = dict(result.to_dict())
        if dynamic is not None:
            figures["dynamic"] = dynamic.to_dict()
        print(json_line(figures))
        return 0
    print(result)
    if dynamic is not None:
        print("\ndynamic evaluation")
        print(dynamic)
    return 0


def _evaluate_dynamically(lm: LanguageModel, text: str | bytes | None, command: Eval) -> Evaluation:
    settings = {} if command.dynamic_lr is None else {"lr": command.dynamic_lr}
    with shown_progress() as progress:
        return lm.evaluate_dynamically(text, unknown=command.unknown, progress=progress, **settings)
