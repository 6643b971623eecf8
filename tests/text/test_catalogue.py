"""Named corpora: RECURRA_DATA, the cache, and downloads from a server on this machine."""

import hashlib
import io
import logging
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from recurra.errors import CorpusError
from recurra.io.files import cache_folder
from recurra.text import catalogue
from recurra.text.catalogue import Corpus, describe, locate, names, nearest

TEXT = "a small text, 中\r\n".encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


def zipped(member: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(member, TEXT)
    return archive.getvalue()


PAGES = {
    "/text": TEXT,
    "/other": b"<html>log in first</html>",
    "/zip": zipped("stand_in.txt"),
    "/wrong.zip": zipped("else.txt"),
}


class Handler(BaseHTTPRequestHandler):
    def __init__(self, asked, *args):
        self.asked = asked
        super().__init__(*args)

    def do_GET(self):
        self.asked.append(self.path)
        body = PAGES.get(self.path, TEXT[:5] if self.path == "/short" else None)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(TEXT if self.path == "/short" else body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RECURRA_DATA", raising=False)
    return tmp_path


@pytest.fixture
def asked():
    return []


@pytest.fixture
def server(asked):
    with HTTPServer(("127.0.0.1", 0), partial(Handler, asked)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def stand_in(monkeypatch):
    def install(url, zip_member=None):
        entry = Corpus(
            name="stand-in",
            file_name="stand_in.txt",
            description="a test",
            licence="none",
            url=url,
            zip_member=zip_member,
            sha256=SHA256,
            num_bytes=len(TEXT),
        )
        monkeypatch.setitem(catalogue._CATALOGUE, "stand-in", entry)

    return install


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize(("page", "member"), [("/text", None), ("/zip", "stand_in.txt")])
def test_a_download_is_kept_and_not_repeated(folders, server, asked, stand_in, page, member):
    stand_in(server + page, member)
    path = locate("stand-in")
    assert path == folders / "cache" / "stand_in.txt"
    assert path.read_bytes() == TEXT
    assert locate("stand-in") == path
    assert asked == [page]
    assert left_in(folders / "cache") == ["stand_in.txt"]


@pytest.mark.parametrize(
    ("page", "member", "reason"),
    [
        ("/other", None, "is not stand-in: its SHA-256 is "),
        ("/missing", None, "HTTP Error 404"),
        ("/short", None, "cannot download stand-in|is not stand-in"),
        ("/text", "stand_in.txt", "File is not a zip file"),
        ("/wrong.zip", "stand_in.txt", "There is no item named 'stand_in.txt'"),
    ],
)
def test_a_bad_download_leaves_nothing(folders, server, stand_in, page, member, reason):
    stand_in(server + page, member)
    with pytest.raises(CorpusError, match=reason) as caught:
        locate("stand-in")
    assert "copy the file stand_in.txt to a directory that RECURRA_DATA names" in str(caught.value)
    assert f"save it as {folders / 'cache' / 'stand_in.txt'}" in str(caught.value)
    assert left_in(folders / "cache") == []


def test_without_a_network_the_error_says_what_to_do(folders, server, stand_in, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    stand_in(f"http://127.0.0.1:{port}/text")
    monkeypatch.setenv("RECURRA_DATA", str(folders / "data"))
    with pytest.raises(CorpusError, match=r"cannot download stand-in from .*refused") as caught:
        locate("stand-in")
    assert f"copy the file stand_in.txt to {folders / 'data'}, or" in str(caught.value)


def test_recurra_data_comes_first(folders, server, asked, stand_in, monkeypatch, caplog):
    stand_in(server + "/text")
    monkeypatch.setenv("RECURRA_DATA", str(folders))
    (folders / "stand_in.txt").write_bytes(TEXT)
    with caplog.at_level(logging.WARNING, logger="recurra"):
        assert locate("stand-in") == folders / "stand_in.txt"
        assert caplog.records == []
        (folders / "stand_in.txt").write_bytes(b"changed")
        assert locate("stand-in") == folders / "stand_in.txt"
    assert "differs from the published stand-in" in caplog.text
    assert asked == []


def test_a_damaged_cache_is_fetched_again(folders, server, stand_in, caplog):
    stand_in(server + "/text")
    (folders / "cache").mkdir()
    (folders / "cache" / "stand_in.txt").write_bytes(TEXT[:-1])
    with caplog.at_level(logging.WARNING, logger="recurra"):
        assert locate("stand-in").read_bytes() == TEXT
    assert "is damaged" in caplog.text


def test_a_cache_that_cannot_be_written(folders, server, stand_in):
    stand_in(server + "/text")
    (folders / "cache").write_bytes(b"a file is in the way")
    with pytest.raises(CorpusError, match="cannot write stand-in to "):
        locate("stand-in")


def test_a_failed_write_leaves_nothing(folders, server, stand_in, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    stand_in(server + "/text")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CorpusError, match="No space left on device"):
        locate("stand-in")
    assert left_in(folders / "cache") == []


def test_the_catalogue():
    assert names() == [
        "english-story",
        "chinese-lyrics",
        "time-machine",
        "jaychou-lyrics",
        "tiny-shakespeare",
    ]
    for name in names():
        corpus = describe(name)
        assert corpus.name == name
        assert corpus.bundled == (corpus.sha256 is None) == (corpus.num_bytes is None)
    assert describe("time-machine").file_name == "time_machine.txt"
    assert "personal study" in describe("jaychou-lyrics").licence


def test_an_unknown_name():
    with pytest.raises(
        CorpusError, match="unknown corpus 'bible'; it must be one of english-story"
    ):
        locate("bible")
    assert nearest("Time_Machin.txt") == ["time-machine"]
    assert nearest("qqq") == []


@pytest.mark.parametrize("name", ["english-story", "chinese-lyrics"])
def test_bundled_texts_need_no_network(name):
    text = locate(name).read_text(encoding="utf-8")
    assert len(text) > 1000
    assert "\r" not in text


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/recurra"),
        ("linux", {"HOME": "/h"}, "/h/.cache/recurra"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/recurra"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/recurra/Cache"),
        ("win32", {"HOME": "/h", "USERPROFILE": "/h"}, "/h/AppData/Local/recurra/Cache"),
        ("linux", {"RECURRA_CACHE": "/c"}, "/c"),
    ],
)
def test_cache_folders(monkeypatch, platform, variables, folder):
    for name in ("RECURRA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"USERPROFILE": "/h", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(folder)


@pytest.mark.parametrize("name", ["time-machine", "jaychou-lyrics", "tiny-shakespeare"])
def test_the_published_files_have_their_checksums(name, monkeypatch, real_data_folder):
    monkeypatch.setenv("RECURRA_DATA", str(real_data_folder))
    path = locate(name)
    assert path.stat().st_size == describe(name).num_bytes
    assert hashlib.sha256(path.read_bytes()).hexdigest() == describe(name).sha256
