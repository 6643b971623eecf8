"""The text and the file names that the token file tests share."""

from pathlib import Path

TEXT = "The cat — “le chat” — sat.\r\nIt's 猫, 🙂!\n" * 20 + "zebra\n"


PUBLISHED = ["tokens.bin", "tokens.json", "vocabulary.json"]


def names_in(folder: Path) -> list[str]:
    """Return the names of all files and directories below a directory, sorted."""
    return sorted(path.name for path in folder.rglob("*"))
