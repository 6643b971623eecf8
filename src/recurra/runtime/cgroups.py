"""Read the CPU quota of this process from its control groups (Linux, versions 1 and 2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the quota of CPU time of this process in CPUs, or None if there is none.

    The quota of a control group also limits the groups below it. The result is the smallest quota
    of the group of the process and the groups above it, as far as they are mounted.

    Args:
        root: the directory that contains `proc` and `sys`.

    Examples:
        >>> from recurra.runtime.cgroups import cpu_quota
        >>> quota = cpu_quota()
        >>> quota is None or quota > 0.0
        True
    """
    quotas = (_quota(folder) for folder in _groups(root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the directories of the control groups of this process that can have a CPU quota."""
    version_2, version_1 = _memberships(root)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount, system = before.split(), after.split()
        if len(mount) < 5 or len(system) < 3:
            continue
        if system[0] == "cgroup2":
            path = version_2
        elif system[0] == "cgroup" and "cpu" in system[2].split(","):
            path = version_1
        else:
            continue
        top = root / _unescaped(mount[4]).lstrip("/")
        group = top / _below(path, PurePosixPath(_unescaped(mount[3])))
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(top))


def _memberships(root: Path) -> tuple[PurePosixPath | None, PurePosixPath | None]:
    """Return the paths of the group of version 2, and of that of version 1 with the CPU quota."""
    version_2 = version_1 = None
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version_2 = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            version_1 = PurePosixPath(path)
    return version_2, version_1


def _below(path: PurePosixPath | None, top: PurePosixPath) -> PurePosixPath:
    """Return the path of a group relative to the mounted one.

    In a container, the path can be that of the host. The mounted group is then that of the
    container, and the path is not below it.
    """
    if path is None or not path.is_relative_to(top):
        return PurePosixPath()
    below = path.relative_to(top)
    return PurePosixPath() if ".." in below.parts else below


def _unescaped(path: str) -> str:
    # Linux writes spaces, tabs, line breaks and backslashes as octal numbers.
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _quota(folder: Path) -> float | None:
    """Return the quota of one group in CPUs, or None if there is none or it cannot be read."""
    limit = _text(folder / "cpu.max").split()
    if len(limit) != 2:
        limit = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = map(int, limit)
    except ValueError:  # "max", no such file, or no number
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(file: Path) -> str:
    """Return the contents of a file in /proc or /sys; empty if it is missing or unreadable."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
