"""Named corpora: found in RECURRA_DATA or the cache, or downloaded from a local test server."""

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


def zip_archive(member: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(member, TEXT)
    return archive.getvalue()


PAGES = {
    "/text": TEXT,
    "/other": b"<html>log in first</html>",
    "/zip": zip_archive("stand_in.txt"),
    "/wrong.zip": zip_archive("else.txt"),
}


class Handler(BaseHTTPRequestHandler):
    def __init__(self, requests, *args):
        self.requests = requests
        super().__init__(*args)

    def do_GET(self):
        self.requests.append(self.path)
        body = PAGES.get(self.path, TEXT[:5] if self.path == "/short" else None)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(TEXT if self.path == "/short" else body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RECURRA_DATA", raising=False)


@pytest.fixture
def requests():
    return []


@pytest.fixture
def server(requests):
    with HTTPServer(("127.0.0.1", 0), partial(Handler, requests)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def add_corpus(monkeypatch):
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


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize(("page", "member"), [("/text", None), ("/zip", "stand_in.txt")])
def test_locate_downloads_once_and_caches(tmp_path, server, requests, add_corpus, page, member):
    add_corpus(server + page, member)
    path = locate("stand-in")
    assert path == tmp_path / "cache" / "stand_in.txt"
    assert path.read_bytes() == TEXT
    assert locate("stand-in") == path
    assert requests == [page]
    assert names_in(tmp_path / "cache") == ["stand_in.txt"]


@pytest.mark.parametrize(
    ("page", "member", "reason"),
    [
        ("/other", None, "stand-in.* SHA-256 "),
        ("/missing", None, "404"),
        ("/short", None, "stand-in"),
        ("/text", "stand_in.txt", "not a zip file"),
        ("/wrong.zip", "stand_in.txt", r"'stand_in\.txt'"),
    ],
)
def test_locate_failed_download_raises_and_leaves_no_file(
    tmp_path, server, add_corpus, page, member, reason
):
    add_corpus(server + page, member)
    with pytest.raises(CorpusError, match=reason) as caught:
        locate("stand-in")
    assert "RECURRA_DATA" in str(caught.value)
    assert str(tmp_path / "cache" / "stand_in.txt") in str(caught.value)
    assert names_in(tmp_path / "cache") == []


def test_locate_without_network_error_names_data_folder(tmp_path, server, add_corpus, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    add_corpus(f"http://127.0.0.1:{port}/text")
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path / "data"))
    with pytest.raises(CorpusError, match=r"stand-in .*refused") as caught:
        locate("stand-in")
    assert "stand_in.txt" in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)


def test_locate_prefers_recurra_data(tmp_path, server, requests, add_corpus, monkeypatch, caplog):
    add_corpus(server + "/text")
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    (tmp_path / "stand_in.txt").write_bytes(TEXT)
    with caplog.at_level(logging.WARNING, logger="recurra"):
        assert locate("stand-in") == tmp_path / "stand_in.txt"
        assert caplog.records == []
        (tmp_path / "stand_in.txt").write_bytes(b"changed")
        assert locate("stand-in") == tmp_path / "stand_in.txt"
    assert "published stand-in" in caplog.text
    assert requests == []


def test_locate_downloads_damaged_cache_file_again(tmp_path, server, add_corpus, caplog):
    add_corpus(server + "/text")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "stand_in.txt").write_bytes(TEXT[:-1])
    with caplog.at_level(logging.WARNING, logger="recurra"):
        assert locate("stand-in").read_bytes() == TEXT
    assert "is damaged" in caplog.text


def test_locate_unwritable_cache_raises(tmp_path, server, add_corpus):
    add_corpus(server + "/text")
    (tmp_path / "cache").write_bytes(b"a file in place of the directory")
    with pytest.raises(CorpusError, match=f"stand-in to {tmp_path / 'cache'}"):
        locate("stand-in")


def test_locate_failed_write_leaves_no_file(tmp_path, server, add_corpus, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    add_corpus(server + "/text")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CorpusError, match="No space left on device"):
        locate("stand-in")
    assert names_in(tmp_path / "cache") == []


def test_names_and_describe_cover_every_corpus():
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


def test_locate_unknown_name_error_lists_corpora():
    with pytest.raises(CorpusError, match=r"'bible'.* english-story"):
        locate("bible")
    assert nearest("Time_Machin.txt") == ["time-machine"]
    assert nearest("qqq") == []


@pytest.mark.parametrize("name", ["english-story", "chinese-lyrics"])
def test_locate_bundled_corpus_needs_no_network(name):
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
def test_cache_folder_follows_platform_and_environment(monkeypatch, platform, variables, folder):
    for name in ("RECURRA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"USERPROFILE": "/h", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(folder)


@pytest.mark.parametrize("name", ["time-machine", "jaychou-lyrics", "tiny-shakespeare"])
def test_describe_checksum_matches_published_file(name, monkeypatch, real_data_folder):
    monkeypatch.setenv("RECURRA_DATA", str(real_data_folder))
    path = locate(name)
    assert path.stat().st_size == describe(name).num_bytes
    assert hashlib.sha256(path.read_bytes()).hexdigest() == describe(name).sha256
