"""The entry point of the command line: dispatches commands and maps errors to exit codes.

Exit codes: 0 success, 1 failure, 2 invalid usage, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
Each command imports the library on demand, so that `--help` responds immediately.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence

STARTED = time.monotonic()
"""Start time of the command, in seconds of `time.monotonic`; a time budget starts here."""

COMMANDS = {
    "train": "train a model on a text",
    "compare": "compare variants trained on one text with equal budgets",
    "generate": "continue a prompt",
    "eval": "report perplexity and bits per character of a text",
    "score": "report the surprisal of a text by line and character",
    "data": "list, download or locate the named corpora",
    "runs": "list, delete and move runs",
    "bench": "benchmark training and generation against torch.nn",
    "kernels": "build, measure or remove the compiled CPU kernels",
    "doctor": "report the environment and missing components",
}

_HELP = """\
usage: recurra COMMAND [OPTIONS]

Train and use recurrent language models.

commands:
{commands}

recurra COMMAND --help lists the options of a command; recurra --version prints the version.
To get started, run: recurra train
"""
_MIN_COLUMNS, _DEFAULT_COLUMNS = 40, 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    _shorten_spinning()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(terminal_columns()), end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import recurra

        print(f"recurra {recurra.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; choose one of {', '.join(COMMANDS)}", 2)
    with _console_logging():
        return _run_command(command, rest)


def _shorten_spinning() -> None:
    """Let torch's OpenMP threads spin briefly, which GNU OpenMP reads when torch is loaded.

    They would spin for milliseconds after an operation of torch, on cores that the threads of the
    compiled kernels use next. In a Python program, `runtime/openmp.py` has the same effect.
    """
    if "torch" not in sys.modules and not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


class _MessageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _one_line(super().format(record))


@contextlib.contextmanager
def _console_logging() -> Iterator[None]:
    """Print log messages of recurra, but not those of other libraries, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_MessageFormatter("recurra: %(message)s"))
    logger = logging.getLogger("recurra")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _prepare_streams() -> None:
    """Replace closed standard streams, and make them escape unencodable characters (as \\u732b)."""
    codecs.register_error("recurra.escaped", _escape_unencodable)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="recurra.escaped")


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return a JSON escape for unencodable characters; `backslashreplace` would give invalid
    JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{unit}" for unit in units.hex(" ", 2).split()), error.end


def terminal_columns() -> int:
    """Return the width of help texts: that of the terminal, or 100 columns without one."""
    return max(shutil.get_terminal_size((_DEFAULT_COLUMNS, 24)).columns, _MIN_COLUMNS)


def help_text(columns: int) -> str:
    """Return the text that `recurra --help` prints, wrapped at a number of columns."""
    commands = "\n".join(
        textwrap.fill(meaning, columns, initial_indent=f"  {name:<10} ", subsequent_indent=" " * 13)
        for name, meaning in COMMANDS.items()
    )
    lines = _HELP.format(commands=commands).split("\n")
    return "\n".join(
        textwrap.fill(line, columns) if len(line) > columns else line for line in lines
    )


def _run_command(command: str, arguments: list[str]) -> int:
    from recurra.errors import ConfigError, PeerError, RecurraError, TrainingInterrupted

    try:
        module = importlib.import_module(f"recurra.cli.{command}")
        code = module.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(str(error), 2)
    except PeerError:
        return 1  # The process that failed has reported the error.
    except RecurraError as error:
        return _fail(str(error), 1)
    except TrainingInterrupted as stop:
        from recurra.runtime.distributed import started_rank

        if started_rank() > 0:
            return 128 + stop.signum  # Rank 0 reports for all processes.
        return _fail(f"interrupted; {stop}" if str(stop) else "interrupted", 128 + stop.signum)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted; {error}" if str(error) else "interrupted", 130)
    except BrokenPipeError:
        # The reader closed the pipe (as head and less do), which is not a failure. Python flushes
        # stdout at exit and would report the error again, so redirect it to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", 1)
    assert isinstance(code, int)
    return code


def _fail(message: str, code: int) -> int:
    try:
        print("recurra:", _one_line(message), file=sys.stderr, flush=True)
    except OSError:
        # stderr is closed (a pipe or a terminal); only the exit code reports the failure. Python
        # flushes stderr at exit and would raise again, so redirect it to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code


def _one_line(message: str) -> str:
    """Return a message on one line without control characters, which a file name can contain."""
    from recurra.text.unicode import escape_controls

    return escape_controls(message.replace("\n", "\\n"))


if __name__ == "__main__":
    sys.exit(main())
