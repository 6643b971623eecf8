"""The source file of the token file tests."""

import pytest

from text.token_file.files import TEXT


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path
