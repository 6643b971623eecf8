"""Settings from a file: the `config.json` of a run, or TOML with the same fields."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from recurra.config import RunConfig, RunOptions
from recurra.config.checks import require
from recurra.config.run import OWNER
from recurra.errors import ConfigError, RunError
from recurra.io.json_files import MAX_JSON_BYTES, read_json
from recurra.runs.compatibility import BUDGET_SETTINGS
from recurra.runs.directory import FORMAT
from recurra.runs.provenance import Provenance
from recurra.version import __version__

SECTIONS = ("text", "model", "training")
_DESCRIPTION = ("format", "recurra", "commands", "base", "sources")
"""Fields of config.json that are not settings."""


@dataclass(frozen=True)
class ConfigFile:
    """The contents of a file of settings.

    Attributes:
        options: the settings in the file.
        provenance: the sources of the text and the base, if the file has them.
    """

    options: RunOptions
    provenance: Provenance

    def as_defaults_of(self, given: RunOptions) -> RunOptions:
        """Return given options, with the settings of the file as defaults.

        A given budget replaces the budget of the file.
        """
        defaults = dict(self.options.values)
        if any(given.is_given(name) for name in BUDGET_SETTINGS):
            for name in BUDGET_SETTINGS:
                defaults.pop(name, None)
        return RunOptions(defaults).replaced(**given.values)


def read_config_file(path: Path) -> ConfigFile:
    """Read a file of settings.

    The settings are in the sections text, model and training, as in config.json, or outside of
    sections. The config.json of a run gives every setting; a TOML file can omit settings.

    Args:
        path: a TOML file, if its name ends in .toml; otherwise a JSON file, or a run directory.

    Raises:
        ConfigError: the file cannot be read, or has an unknown field or an invalid value.
    """
    file = path / "config.json" if path.is_dir() else path
    record = _read(file)
    try:
        provenance = Provenance.from_dict(record)
        if "format" in record:
            require(
                record["format"] == FORMAT,
                f"format is {shortened(record['format'])}, but recurra {__version__} reads only"
                f" format {FORMAT}",
            )
            config = RunConfig.from_dict({name: record.get(name) for name in SECTIONS})
            options = RunOptions.from_config(config)
        else:
            options = RunOptions({}).replaced(**_settings(record))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return ConfigFile(options, provenance)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.suffix.lower() != ".toml":
            return read_json(file)
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{file} has more than {MAX_JSON_BYTES:,} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except RunError as error:
        raise ConfigError(str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record by name, without sections."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{name} is {shortened(value)}; it must be a section")
            for setting in value:
                section = OWNER.get(setting, name)
                if section != name:
                    raise ConfigError(f"{setting} belongs to the section {section}, not {name}")
            found |= value
        elif name not in _DESCRIPTION:
            found[name] = value
    # JSON and TOML have lists where the configuration has tuples.
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
