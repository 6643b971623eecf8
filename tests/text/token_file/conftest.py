"""A book to read, by large pieces and by small ones."""

import pytest

from text.token_file.files import TEXT


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    return path
