"""The entry point of the command line: dispatches commands and maps errors to exit codes.

Exit codes: 0 done, 1 it failed, 2 wrong usage, 130 interrupted (143 by SIGTERM, 129 by a closed
terminal). The command that needs the library imports it, so that `--help` answers at once.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence

STARTED = time.monotonic()
"""When the command began: a budget in minutes counts from here."""

COMMANDS = {
    "train": "train a model on a text",
    "compare": "train several settings on one text for equal minutes or tokens",
    "generate": "continue a prompt",
    "eval": "report perplexity and bits per character of a text",
    "score": "report the surprisal of a text, per line and per character",
    "data": "list, download or locate the named corpora",
    "runs": "list the runs in a directory with their metrics",
    "bench": "measure training and generation speed against torch.nn",
    "kernels": "build or remove the compiled CPU kernels",
    "doctor": "report what this machine has and what is missing",
}

_HELP = """\
usage: recurra COMMAND [OPTIONS]

Recurrent language models: any text in, a trained model out.

commands:
{commands}

recurra COMMAND --help lists the options of a command; recurra --version prints the version.
Start with: recurra train
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import recurra

        print(f"recurra {recurra.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; choose one of {', '.join(COMMANDS)}", 2)
    with _log_shown():
        return _guarded(command, rest)


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """Show what recurra itself logs; other libraries' remarks are not for this program's user."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("recurra: %(message)s"))
    logger = logging.getLogger("recurra")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _open_streams() -> None:
    """Standard streams that are there and can print any character (as \\u732b if need be)."""
    codecs.register_error("recurra.escaped", _escaped)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="recurra.escaped")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What the encoding lacks, as JSON writes it: Python's own \\xe9 would spoil lines of JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{unit}" for unit in lacking.hex(" ", 2).split()), error.end


def help_text() -> str:
    """What `recurra --help` prints."""
    commands = "\n".join(f"  {name:<10} {meaning}" for name, meaning in COMMANDS.items())
    return _HELP.format(commands=commands)


def _guarded(command: str, arguments: list[str]) -> int:
    from recurra.errors import ConfigError, PeerError, RecurraError, TrainingInterrupted

    try:
        module = importlib.import_module(f"recurra.cli.{command}")
        code = module.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(str(error), 2)
    except PeerError:
        return 1  # the process that failed has said why
    except RecurraError as error:
        return _fail(str(error), 1)
    except TrainingInterrupted as stop:
        from recurra.runtime.distributed import started_rank

        if started_rank() > 0:
            return 128 + stop.signum  # the first process speaks for all
        return _fail(f"interrupted; {stop}" if str(stop) else "interrupted", 128 + stop.signum)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted; {error}" if str(error) else "interrupted", 130)
    except BrokenPipeError:
        # The reader closed the pipe (head, less), which is no failure. Python
        # would complain once more when it flushes stdout at exit, so give it somewhere to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", 1)
    assert isinstance(code, int)
    return code


def _fail(message: str, code: int) -> int:
    # One line, even when a file's name is two.
    try:
        print("recurra:", message.replace("\n", "\\n"), file=sys.stderr, flush=True)
    except OSError:
        # No one reads our errors any more (a pipe, a closed terminal); the exit code still says it.
        # Python would complain once more when it flushes at exit, so give it somewhere to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
