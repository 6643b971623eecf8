"""A short text, options of a quick training, its run, and a check of failing commands."""

import pytest

from recurra.cli.main import main


@pytest.fixture
def text():
    return "the cat sat on the mat and the dog sat on the log.\n" * 40


@pytest.fixture
def quick():
    return [
        "--steps", "6", "--hidden-size", "12", "--batch-size", "2", "--num-steps", "8",
        "--sample-length", "10", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture
def source(tmp_path, text):
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.fixture
def run(source, tmp_path, capsys, quick):
    folder = str(tmp_path / "run")
    assert main(["train", source, "--out", folder, "--quiet", *quick]) == 0
    capsys.readouterr()
    return folder


@pytest.fixture
def fails(capsys):
    def check(arguments, code, *expected):
        """Assert that the command exits with `code` and one stderr line with these words."""
        assert main([str(a) for a in arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("recurra: ")
        assert err.count("\n") == 1, err
        for word in expected:
            assert str(word) in err

    return check
