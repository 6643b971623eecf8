"""`recurra generate`: continue a prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import tyro

from recurra.cli.parsing import decode_argument, parse
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.config import UnknownRule
from recurra.engine.sampling import GenerationConfig
from recurra.errors import SourceError

if TYPE_CHECKING:
    from recurra.api import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt and print the text while it is generated.

    By default, tokens are sampled from the full distribution, without top-k, top-p or min-p
    truncation.
    """

    run: tyro.conf.Positional[str]
    """Run directory."""

    prompt: str = ""
    """Text to continue; - reads it from standard input. The prompt is printed before the new text
    unless --only-new is set."""

    only_new: bool = False
    """Print the new text without the prompt."""

    unknown: UnknownRule = "error"
    """Handling of prompt symbols that are not in the vocabulary: report an error, or replace them
    by <unk>."""

    device: str = "cpu"
    """Device: auto, cpu, cuda, cuda:N or mps."""

    json: bool = False
    """Print the prompt, the samples and the settings as one line of JSON."""

    settings: GenerationConfig = field(default_factory=GenerationConfig)


def run(arguments: Sequence[str]) -> int:
    """Generate and print the samples, and return the exit code."""
    command = parse(Generate, "generate", arguments)
    from recurra.api import load

    lm = load(command.run, command.device)
    prompt = _read_prompt(command.prompt)
    if command.json:
        _print_json(lm, prompt, command)
    elif command.settings.num_samples == 1:
        _print_stream(lm, prompt, command)
    else:
        _print_samples(lm, prompt, command)
    return 0


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return decode_argument(prompt)
    if sys.stdin is None:
        raise SourceError("standard input is closed")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"the prompt is not valid UTF-8 at byte {error.start}") from error


def _settings(command: Generate) -> dict[str, Any]:
    settings = asdict(command.settings)
    return settings | {"stop": tuple(map(decode_argument, command.settings.stop))}


def _print_stream(lm: LanguageModel, prompt: str, command: Generate) -> None:
    pieces = lm.stream(prompt, unknown=command.unknown, **_settings(command))
    if not command.only_new:
        sys.stdout.write(safe_for_stdout(prompt))
    for piece in pieces:
        sys.stdout.write(safe_for_stdout(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _samples(lm: LanguageModel, prompt: str, command: Generate) -> list[str]:
    texts = lm.generate(prompt, unknown=command.unknown, **_settings(command))
    return [texts] if isinstance(texts, str) else texts


def _print_samples(lm: LanguageModel, prompt: str, command: Generate) -> None:
    for number, text in enumerate(_samples(lm, prompt, command), start=1):
        print(f"--- {number} ---")
        print(safe_for_stdout(text if command.only_new else prompt + text))


def _print_json(lm: LanguageModel, prompt: str, command: Generate) -> None:
    record = {
        "prompt": prompt,
        "samples": _samples(lm, prompt, command),
        "settings": _settings(command),
    }
    print(json_line(record))
