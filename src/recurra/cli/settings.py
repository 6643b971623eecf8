"""The training options that several commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from recurra.cli.escapes import unescape
from recurra.cli.options import metadata_of, type_of
from recurra.cli.parsing import decode_argument
from recurra.config import ModelConfig, RunOptions, TextConfig, TrainingConfig
from recurra.config.training import LIMITS


def _options_class(config: type) -> Any:
    """Return a dataclass with the options of a configuration, all of them unspecified by
    default."""
    made = [
        (name, *_not_given(name, hint))
        for name, hint in get_type_hints(config, include_extras=True).items()
        if tyro.conf.Suppress not in metadata_of(hint)
    ]
    return dataclasses.make_dataclass(
        config.__name__, made, frozen=True, kw_only=True, namespace={"described_by": config}
    )


def _not_given(name: str, hint: Any) -> tuple[Any, Any]:
    """Return the type of an option on the command line, and its value if it is unspecified."""
    kind = type_of(hint)
    if kind is bool:
        return hint, False
    if get_origin(kind) is tuple:
        return hint, ()
    return Annotated[kind | None, _parser(name, kind)], None


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != ()


def _parser(name: str, kind: Any) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """Return a parser of one value.

    The parser of tyro for `kind | None` would read the text "None" as None.
    """
    choices = get_args(kind) if get_origin(kind) is Literal else None
    convert = str if choices else kind

    def parse(texts: list[str]) -> Any:
        if kind in (int, float) and texts[0].lower() == "none":
            limit = ", or set it to 0 for no limit" if name in LIMITS else ""
            raise ValueError(f"None is not a number; omit the option for its default{limit}")
        return convert(texts[0])

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="VALUE",
        instance_from_str=parse,
        is_instance=lambda value: value is None or isinstance(value, convert),
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )


if TYPE_CHECKING:
    # mypy cannot analyze generated classes; these have the same fields.
    from recurra.config import ModelConfig as ModelOptions
    from recurra.config import TextConfig as TextOptions
    from recurra.config import TrainingConfig as TrainingOptions
else:
    TextOptions, ModelOptions, TrainingOptions = map(
        _options_class, (TextConfig, ModelConfig, TrainingConfig)
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The text, model and training options of a command line."""

    text: TextOptions = field(default_factory=TextOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def to_options(self) -> RunOptions:
        """Return the options that the user gave.

        Raises:
            ConfigError: a value or a combination is invalid.
        """
        return RunOptions.of(**self.given())

    def given(self) -> dict[str, Any]:
        """Return the values that the user gave by option, with strings decoded.

        Raises:
            ConfigError: the escapes of --separator are invalid.
        """
        given: dict[str, Any] = {}
        for section in (self.text, self.model, self.training):
            given |= {name: value for name, value in vars(section).items() if _is_given(value)}
        if "separator" in given:
            given["separator"] = unescape("--separator", given["separator"])
        if "prompt" in given:
            given["prompt"] = tuple(map(decode_argument, given["prompt"]))
        return given
