"""A text with everything in it, and what a folder of ids holds."""

TEXT = "The cat — “le chat” — sat.\r\nIt's 猫, 🙂!\n" * 20 + "zebra\n"


PUBLISHED = ["tokens.bin", "tokens.json", "vocabulary.json"]


def inside(folder):
    return sorted(path.name for path in folder.rglob("*"))
