"""`recurra.train(text=...)`: strings, bytes, open files and iterables give the run of a file."""

import io

import pytest

import recurra
from recurra.data.token_file import load_token_file
from recurra.errors import ConfigError, SourceError
from recurra.report.progress import Progress

TEXT = "the cat sat on the mat and th\u00e9 dog sat on the log.\r\n" * 40
OPTIONS = {"hidden_size": 8, "batch_size": 2, "num_steps": 8, "steps": 2}
OPTIONS |= {"sample_length": 5, "progress": Progress()}


@pytest.fixture
def ids(tmp_path):
    """A function that returns the token ids of a run and of its validation part."""

    def train(name, source=(), **options):
        lm = recurra.train(source, out=tmp_path / name, **OPTIONS, **options)
        tokens = load_token_file(lm.path)
        return lm.vocabulary.decode(tokens.ids), tokens.num_train, tokens.tokens_sha256

    return train


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(lambda: TEXT, id="string"),
        pytest.param(lambda: TEXT.encode(), id="bytes"),
        pytest.param(lambda: io.StringIO(TEXT, newline=""), id="text file"),
        pytest.param(lambda: io.BytesIO(TEXT.encode()), id="binary file"),
        pytest.param(lambda: TEXT.split("\n"), id="list"),
        pytest.param(lambda: (line.encode() for line in TEXT.split("\n")), id="generator"),
    ],
)
@pytest.mark.parametrize("tokens", ["char", "byte", "word"])
def test_train_text_in_memory_equals_file(ids, tmp_path, text, tokens):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    expected = ids("file", file, tokens=tokens)
    assert ids("memory", text=text(), tokens=tokens) == expected


def test_train_strings_are_joined_by_separator(ids):
    text, *_ = ids("run", text=["one cat ", "two cats "] * 50, separator="#")
    assert text.startswith("one cat #two cats #one cat ")


def test_train_string_is_read_in_full_with_encoding_of_files(ids):
    text, *_ = ids("run", text="\u00e9t\u00e9 \u2605 " * 100, encoding="latin-1")
    assert text.startswith("\u00e9t\u00e9 \u2605 ")


def test_train_bytes_are_decoded_by_encoding(ids):
    text, *_ = ids("run", text=("\u00e9t\u00e9 " * 100).encode("latin-1"), encoding="latin-1")
    assert text.startswith("\u00e9t\u00e9 ")


def test_train_text_in_memory_is_recorded_and_can_be_resumed(ids, tmp_path, source):
    ids("run", text=TEXT)
    from recurra.cli.main import main

    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "4", "--quiet"]) == 0
    assert load_token_file(tmp_path / "run").sources == ("<memory>",)


def test_train_text_without_out_creates_named_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = recurra.train(text=TEXT, **OPTIONS)
    assert str(lm.path) == "runs/text-lstm"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", SourceError, "<memory> is empty"),
        ([], SourceError, "<memory> is empty"),
        (3, ConfigError, "text is 3; it must be a string"),
        (["a", 3], ConfigError, "item 1 of text is 3"),
        (["a", b"b"], ConfigError, "item 1 of text is b'b'"),
        ("cat \ud800 " * 50, SourceError, "lone surrogate"),
        (b"cat \xff " * 50, SourceError, "<memory> is not utf-8 text: byte 0xff at offset 4"),
    ],
)
def test_train_invalid_text_fails_and_writes_nothing(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        recurra.train(text=text, out=tmp_path / "run", **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_train_source_and_text_together_fail(source):
    with pytest.raises(ConfigError, match="source and text are both given"):
        recurra.train(source, text=TEXT)


def test_train_closed_file_fails_with_reason(tmp_path):
    file = io.StringIO("x")
    file.close()
    with pytest.raises(ConfigError, match="cannot be read: I/O operation on closed file"):
        recurra.train(text=file)


def test_train_path_as_text_is_refused(source):
    with pytest.raises(ConfigError, match="which is a file; pass it as source instead"):
        recurra.train(text=str(source))
