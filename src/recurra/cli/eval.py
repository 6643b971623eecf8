"""`recurra eval`: how well a model predicts a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from recurra.cli.parsing import parse
from recurra.config import UnknownRule


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

    device: str = "cpu"
    """Where to compute: auto, cpu, cuda, cuda:N or mps."""

    json: bool = False
    """Print the figures as one line of JSON."""


def run(arguments: Sequence[str]) -> int:
    """Print the figures."""
    command = parse(Eval, "eval", arguments)
    from recurra.api import load

    lm = load(command.run, command.device)
    if command.sources:
        text = lm.read(command.sources)
        result = lm.evaluate(text, window=command.window, unknown=command.unknown)
    else:
        result = lm.validate(window=command.window)
    if command.json:
        print(json.dumps(result.to_dict()))
        return 0
    print(f"perplexity      {result.perplexity:.4f}")
    print(f"nats per token  {result.nats_per_token:.4f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    print(f"bits per char   {result.bits_per_char:.4f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")
    unknown = f", {result.num_unknown:,} of them unknown" if result.num_unknown else ""
    print(f"tokens          {result.num_tokens:,}{unknown}")
    return 0
