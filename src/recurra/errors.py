"""The exceptions that recurra raises.

    Exception
    └── RecurraError                           base class; the command line exits with 1
        ├── ConfigError        ValueError       a setting is invalid; exits with 2
        ├── SourceError        ValueError       a text cannot be read or is unusable
        ├── UnknownTokenError  ValueError       a symbol is not in the vocabulary
        ├── CorpusError        LookupError      a corpus is unknown, unreachable or damaged
        ├── RunError           RuntimeError     a run directory is missing, in use or damaged
        ├── LostProcessError   RuntimeError     another training process ended or is unreachable
        ├── PeerError          RuntimeError     the first training process failed
        ├── DivergenceError    ArithmeticError  training diverged
        │   └── NonFiniteError                  a loss, gradient or logit is NaN or infinite
        ├── KernelError        RuntimeError     the compiled kernels cannot be built or loaded
        └── MissingExtraError  ImportError      an optional dependency is not installed

    KeyboardInterrupt
    └── TrainingInterrupted                    a signal stopped training; exits with 128 + signum

The second column is the built-in class that an exception is also derived from.
"""

from pathlib import Path

from recurra.installation import install_command


class RecurraError(Exception):
    """Base class of all errors that recurra raises. The message is one sentence.

    Examples:
        >>> import recurra
        >>> try:
        ...     recurra.load("missing-run")
        ... except recurra.errors.RecurraError as error:
        ...     print(type(error).__name__)
        RunError
    """


class ConfigError(RecurraError, ValueError):
    """A setting is out of range or unknown, or contradicts another setting."""


class SourceError(RecurraError, ValueError):
    """A text cannot be read, or is unusable (empty, too short, or not decodable)."""


class UnknownTokenError(RecurraError, ValueError):
    """A symbol of the text is not in the vocabulary.

    Attributes:
        symbol: the symbol.
        position: the index of the symbol in the text, in characters.
    """

    def __init__(self, symbol: str, position: int) -> None:
        self.symbol = symbol
        self.position = position
        super().__init__(
            f"unknown symbol {symbol!r} at position {position}: it is not in the vocabulary; to"
            " replace it by <unk>, use --unknown replace (from Python: unknown='replace')"
        )


class CorpusError(RecurraError, LookupError):
    """A named corpus is unknown, cannot be downloaded, or does not match its checksum."""


class RunError(RecurraError, RuntimeError):
    """A run directory is missing, already exists, is in use, incomplete or damaged."""


class LostProcessError(RecurraError, RuntimeError):
    """Another process of a distributed training run ended or cannot be reached."""


class PeerError(RecurraError, RuntimeError):
    """The first process of a distributed training run failed, so this process stops too.

    The first process reports the reason.
    """


class DivergenceError(RecurraError, ArithmeticError):
    """Training diverged: the loss is far above that of a uniform prediction."""


class NonFiniteError(DivergenceError):
    """A loss, gradient or logit became NaN or infinite. The weights were not changed."""


class KernelError(RecurraError, RuntimeError):
    """The compiled kernels cannot be built or loaded. The message states the reason."""


class MissingExtraError(RecurraError, ImportError):
    """An optional dependency is not installed. The message has the command that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the '{extra}' extra: {install_command(extra)}")


class TrainingInterrupted(KeyboardInterrupt):
    """A signal stopped training. The message states what was saved and how to resume.

    Attributes:
        signum: the number of the signal.
        run: the run directory with the model so far, or None if there is none.
    """

    def __init__(self, signum: int, message: str = "", run: Path | None = None) -> None:
        self.signum = signum
        self.run = run
        super().__init__(*([message] if message else []))
