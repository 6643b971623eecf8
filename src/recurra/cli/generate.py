"""`recurra generate`: continue a prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import tyro

from recurra.cli.escapes import unescape
from recurra.cli.parsing import decode_argument, parse
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.config import UnknownRule
from recurra.engine.sampling import GenerationConfig
from recurra.errors import ConfigError, SourceError, UnknownTokenError

if TYPE_CHECKING:
    from recurra.api import LanguageModel


_LINE_BREAK = "for a line break, use $'...\\n...' in the shell, or pass the prompt to --prompt -"


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt and print the text while it is generated.

    By default, tokens are sampled from the full distribution, without top-k, top-p or min-p
    truncation.
    """

    run: tyro.conf.Positional[str]
    """Run directory."""

    prompt: str = ""
    """Text to continue; - reads it from standard input. It is used as it is, without escapes. The
    prompt is printed before the new text unless --no-prompt is set."""

    no_prompt: bool = False
    """Print the new text without the prompt."""

    only_new: bool = False
    """Leave out generated lines that also occur in the training or validation text. The first line
    includes the end of the prompt, so --prompt $'\\n' begins with a whole line. The last line is
    printed even if --max-new-tokens cuts it off."""

    unknown: UnknownRule = "error"
    """Handling of prompt symbols that are not in the vocabulary: report an error, or replace them
    by <unk>."""

    device: str = "cpu"
    """Device: auto (the CPU, which is faster for a single stream of tokens), cpu, cuda, cuda:N or
    mps."""

    json: bool = False
    """Print the prompt, the samples and the settings as one line of JSON."""

    settings: GenerationConfig = field(default_factory=GenerationConfig)


def run(arguments: Sequence[str]) -> int:
    """Generate and print the samples, and return the exit code."""
    command = parse(Generate, "generate", arguments)
    if command.no_prompt and command.only_new:
        raise ConfigError("--only-new prints whole lines; remove --no-prompt")
    from recurra.api import load

    lm = load(command.run, command.device)
    prompt = _read_prompt(command.prompt)
    if command.json:
        show = _print_json
    else:
        show = _print_stream if command.settings.num_samples == 1 else _print_samples
    try:
        show(lm, prompt, command)
    except UnknownTokenError as error:
        if error.symbol != "\\":
            raise
        raise SourceError(f"{error}; a prompt has no escapes: {_LINE_BREAK}") from error
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
    return settings | {"stop": tuple(unescape("--stop", s) for s in command.settings.stop)}


def _options(command: Generate) -> dict[str, Any]:
    return {"unknown": command.unknown, "only_new": command.only_new, **_settings(command)}


def _shows_prompt(command: Generate) -> bool:
    return not (command.no_prompt or command.only_new)


def _print_stream(lm: LanguageModel, prompt: str, command: Generate) -> None:
    pieces = lm.stream(prompt, **_options(command))
    if command.only_new:
        for lines in pieces:
            print(safe_for_stdout(lines.removesuffix("\n")), flush=True)
        return
    sys.stdout.write(safe_for_stdout(prompt if _shows_prompt(command) else ""))
    for piece in pieces:
        sys.stdout.write(safe_for_stdout(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _samples(lm: LanguageModel, prompt: str, command: Generate) -> list[str]:
    texts = lm.generate(prompt, **_options(command))
    return [texts] if isinstance(texts, str) else texts


def _print_samples(lm: LanguageModel, prompt: str, command: Generate) -> None:
    shown = prompt if _shows_prompt(command) else ""
    for number, text in enumerate(_samples(lm, prompt, command), start=1):
        print(f"--- {number} ---")
        print(safe_for_stdout(shown + text))


def _print_json(lm: LanguageModel, prompt: str, command: Generate) -> None:
    record = {
        "prompt": prompt,
        "samples": _samples(lm, prompt, command),
        "settings": _settings(command),
    }
    print(json_line(record))
