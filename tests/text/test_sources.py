"""Resolution of source arguments to byte streams, and its errors."""

import hashlib
import io
import re
import sys

import pytest

from recurra.config import TextConfig
from recurra.errors import SourceError
from recurra.text import sources
from recurra.text.catalogue import locate
from recurra.text.corpus import read_text
from recurra.text.sources import RawSource, SourceReader, digest_of, resolve

CONFIG = TextConfig(separator="|")


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))


def write_tree(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_resolve_no_source_gives_bundled_story():
    assert [source.name for source in resolve([])] == ["english-story"]
    assert read_text([], CONFIG).encode() == locate("english-story").read_bytes()


def test_read_text_dash_reads_standard_input(monkeypatch, tmp_path):
    write_tree(tmp_path, {"a.txt": b"file"})
    monkeypatch.setattr(sys, "stdin", Stdin("中\r\n".encode()))
    assert read_text(["-", tmp_path / "a.txt"], CONFIG) == "中\n|file"


def test_read_text_empty_or_repeated_stdin_raises(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    with pytest.raises(SourceError, match="standard input is empty"):
        read_text(["-"], CONFIG)
    with pytest.raises(SourceError, match="specified twice"):
        resolve(["-", "-"])


def test_read_text_folder_reads_text_files_in_order(tmp_path):
    write_tree(
        tmp_path,
        {
            "b.txt": b"b",
            "a/z.txt": b"az",
            "a/b/c.md": b"abc",
            "a.txt": b"a",
            "empty.txt": b"",
            "picture": b"\x89PNG\x00",
            ".hidden": b"no",
            ".git/config": b"no",
        },
    )
    assert read_text([tmp_path], CONFIG) == "abc|az|a|b"


def test_read_text_folder_accepts_utf_16(tmp_path):
    write_tree(tmp_path, {"a.txt": "ab".encode("utf-16")})
    assert read_text([tmp_path], TextConfig(encoding="utf-16")) == "ab"


@pytest.mark.parametrize("files", [{}, {".hidden": b"a"}, {"empty": b""}, {"binary": b"\0"}])
def test_resolve_folder_without_text_raises(tmp_path, files):
    write_tree(tmp_path, files)
    with pytest.raises(SourceError, match=rf"{re.escape(str(tmp_path))} .*text files"):
        resolve([tmp_path])


def test_read_text_empty_file_raises(tmp_path):
    write_tree(tmp_path, {"none.txt": b""})
    with pytest.raises(SourceError, match=r"none\.txt .*empty"):
        read_text([tmp_path / "none.txt"], CONFIG)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("time_machine", "did you mean time-machine"),
        ("tiny-shakespear", "did you mean tiny-shakespeare"),
        ("no/such/book.txt", "english-story, chinese-lyrics, time-machine"),
        ("x" * 5000, "english-story"),
        ("nul\0byte", "english-story"),
    ],
)
def test_resolve_unknown_name_suggests_corpora(name, hint):
    with pytest.raises(SourceError, match=f"no such file.*{hint}") as caught:
        resolve([name])
    assert len(str(caught.value)) < 400


def test_read_text_prefers_file_to_corpus_name(tmp_path, monkeypatch):
    write_tree(tmp_path, {"time-machine": b"mine"})
    monkeypatch.chdir(tmp_path)
    assert read_text(["time-machine"], CONFIG) == "mine"


@pytest.mark.parametrize("in_folder", [False, True])
def test_read_text_unreadable_file_raises(tmp_path, monkeypatch, in_folder):
    write_tree(tmp_path, {"secret.txt": b"x"})

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    source = tmp_path if in_folder else tmp_path / "secret.txt"
    with pytest.raises(SourceError, match=r"secret\.txt.*Permission denied"):
        read_text([source], CONFIG)


def test_resolve_accepts_single_string(tmp_path):
    write_tree(tmp_path, {"a.txt": b"a"})
    assert resolve(str(tmp_path / "a.txt")) == [
        RawSource(str(tmp_path / "a.txt"), tmp_path / "a.txt")
    ]


def read_all(reader):
    for _, chunks in reader.files():
        for _ in chunks:
            pass
    return reader


def test_source_reader_counts_and_hashes_bytes(tmp_path):
    write_tree(tmp_path, {"a": b"ab", "b": b"c"})
    reader = read_all(SourceReader(resolve([tmp_path / "a"])))
    assert (reader.num_bytes, reader.complete) == (2, True)
    assert reader.sha256 == hashlib.sha256(b"ab").hexdigest()
    assert read_all(SourceReader(resolve([tmp_path / "a", tmp_path / "b"]))).num_bytes == 3


def test_digest_of_depends_on_file_borders(tmp_path):
    write_tree(tmp_path, {"1/a": b"ab", "1/b": b"c", "2/a": b"a", "2/b": b"bc"})
    assert digest_of(resolve([tmp_path / "1"])) != digest_of(resolve([tmp_path / "2"]))


def test_digest_of_stops_at_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2)
    write_tree(tmp_path, {"a": b"abcdef"})
    assert digest_of(resolve([tmp_path / "a"]), 4) == hashlib.sha256(b"abcd").hexdigest()
