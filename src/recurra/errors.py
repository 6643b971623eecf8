"""The exceptions that recurra raises.

    Exception
    └── RecurraError                           one clear sentence; the command line exits 1
        ├── ConfigError        ValueError       a setting is wrong, or two disagree; exits 2
        ├── SourceError        ValueError       a text cannot be read, or is of no use as it is
        ├── UnknownTokenError  ValueError       a symbol is not in the vocabulary
        ├── CorpusError        LookupError      a named corpus is unknown, unreachable or damaged
        ├── RunError           RuntimeError     a run folder is missing, taken or damaged
        ├── LostProcessError   RuntimeError     another process of the training is gone
        ├── PeerError          RuntimeError     the first process of the training failed
        ├── DivergenceError    ArithmeticError  training no longer learns
        │   └── NonFiniteError                  a loss or gradient became NaN or infinite
        ├── KernelError        RuntimeError     the compiled kernels cannot be built or loaded
        └── MissingExtraError  ImportError      an optional dependency is not installed

    KeyboardInterrupt
    └── TrainingInterrupted                    a signal stopped the training; exits 128 + its number

The third column is the built-in class that each one is too.

Knows nothing else of the package, so that every other module can import it.
"""


class RecurraError(Exception):
    """Base of all errors raised on purpose; its text is one clear sentence."""


class ConfigError(RecurraError, ValueError):
    """A setting is out of range, unknown, or contradicts another one."""


class SourceError(RecurraError, ValueError):
    """A text cannot be read, or is of no use as it is (empty, too short, not decodable)."""


class UnknownTokenError(RecurraError, ValueError):
    """A symbol of the text is not in the vocabulary.

    Attributes: `symbol` (str) and `position` (its index in the text, counted in characters).
    """

    def __init__(self, symbol: str, position: int) -> None:
        self.symbol = symbol
        self.position = position
        super().__init__(
            f"unknown symbol {symbol!r} at position {position}: the model never saw it in training"
            " (--unknown replace, or unknown='replace', reads it as <unk>)"
        )


class CorpusError(RecurraError, LookupError):
    """A named corpus is unknown, cannot be fetched, or does not match its checksum."""


class RunError(RecurraError, RuntimeError):
    """A run folder is missing, already taken, incomplete or damaged."""


class LostProcessError(RecurraError, RuntimeError):
    """Another process of a training in several processes is gone, or cannot be reached."""


class PeerError(RecurraError, RuntimeError):
    """The first process of a training in several failed, and has said why; this one ends too."""


class DivergenceError(RecurraError, ArithmeticError):
    """Training no longer learns: the loss is far above that of a blind guess."""


class NonFiniteError(DivergenceError):
    """A loss, a gradient or a logit became NaN or infinite; the weights were not touched."""


class KernelError(RecurraError, RuntimeError):
    """The compiled kernels cannot be built or loaded; the text says why."""


class MissingExtraError(RecurraError, ImportError):
    """An optional dependency is not installed; the text names the extra that brings it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the '{extra}' extra: pip install 'recurra[{extra}]'")


class TrainingInterrupted(KeyboardInterrupt):
    """A signal stopped the training; its text states what was saved and how to resume.

    Attributes: `signum`, the signal's number.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        self.signum = signum
        super().__init__(*([message] if message else []))
