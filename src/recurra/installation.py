"""State how this copy of recurra was installed, and the command that adds an optional extra to it.

recurra is not in a package index, so `pip install 'recurra[bpe]'` would fail for a clone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

_NAME = "recurra"
_PACKAGE = Path(__file__).resolve().parent


def install_command(extra: str) -> str:
    """Return the shell command that installs an optional extra for this copy of the package.

    A clone is installed again in editable mode, a copy from an address or a file again from there,
    and a copy from a package index by its name.

    Args:
        extra: the name of the extra, such as "bpe".

    Examples:
        >>> from recurra.installation import install_command
        >>> install_command("bpe").startswith("pip install ")
        True
    """
    if (clone := _clone()) is not None:
        return f"pip install -e {_quoted(f'{clone}[{extra}]')}"
    origin = _direct_url()
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        return f"pip install {_quoted(f'{_path_of(url)}[{extra}]')}"
    if "vcs_info" in origin:
        url = f"{origin['vcs_info'].get('vcs', 'git')}+{url}"
    requirement = f"{_NAME}[{extra}]"
    return f"pip install {_quoted(f'{requirement} @ {url}' if url else requirement)}"


def _clone() -> Path | None:
    """Return the root of the source tree from which the package is imported, if it is one."""
    root = _PACKAGE.parent.parent
    is_clone = _PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file()
    return root if is_clone else None


def _direct_url() -> dict[str, Any]:
    """Return the origin that pip recorded (PEP 610); empty for a copy from a package index."""
    try:
        text = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return {}
    record = json.loads(text) if text else {}
    return record if isinstance(record, dict) else {}


def _path_of(url: str) -> str:
    return urllib.request.url2pathname(urllib.parse.urlsplit(url).path)


def _quoted(argument: str) -> str:
    return f'"{argument}"' if os.name == "nt" else shlex.quote(argument)
