"""Describe the files of a directory that are read as one text."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from recurra.report.progress import format_list, one_line
from recurra.text.folders import FolderScan


def format_bytes(number: int) -> str:
    """Return a size with a unit: `17 B`, `1.2 kB` or `3.4 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


def describe_folder(scan: FolderScan) -> list[str]:
    """Return lines with the names and sizes of the files, and the reasons of skipped ones."""
    sizes = {path: path.stat().st_size for path in scan.files}
    # The largest files have the greatest effect on the model.
    names = [
        f"{_short(path, scan)} ({format_bytes(sizes[path])})"
        for path in sorted(sizes, key=lambda path: -sizes[path])
    ]
    count = f"{len(names):,} file{'s' if len(names) != 1 else ''}"
    lines = [
        f"files     {count} of {one_line(str(scan.folder))}, {format_bytes(sum(sizes.values()))}:"
        f" {format_list(names)}"
    ]
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for path, reason in scan.skipped.items():
        by_reason[reason].append(path)
    if by_reason:
        reasons = [
            f"{format_list([_short(path, scan) for path in sorted(paths)], 3)} ({reason})"
            for reason, paths in by_reason.items()
        ]
        lines.append(f"skipped   {'; '.join(reasons)}")
    return lines


def _short(path: Path, scan: FolderScan) -> str:
    """Return a path without the directory that was scanned."""
    return one_line(str(path.relative_to(scan.folder) if path != scan.folder else path))
