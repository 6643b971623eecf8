"""scan_folder: the files that are read as text, and the reasons why others are skipped."""

import os
import re

import pytest

from recurra import api
from recurra.config import TextConfig
from recurra.errors import SourceError
from recurra.report.folders import describe_folder, format_bytes
from recurra.text.corpus import read_text, scan_folders
from recurra.text.folders import scan_folder


@pytest.fixture
def folder(tmp_path):
    """A directory with text files and several kinds of other files."""
    folder = tmp_path / "folder"
    files = {
        "b.txt": b"bb" * 1000,
        "a/z.txt": "é".encode(),
        "latin.txt": b"caf\xe9 au lait",
        "cut.txt": b"ok \xe2\x82",
        "picture": b"\x89PNG\x00",
        "empty": b"",
        ".hidden": b"no",
        ".git/config": b"no",
        "run/config.json": b"{}",
        "run/tokens.bin": b"",
        "all/comparison.json": b"{}",
        "all/results.json": b"{}",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def names(paths, folder):
    return [str(path.relative_to(folder)) for path in paths]


def test_scan_folder_finds_text_and_gives_reasons(folder):
    os.symlink(folder / "nowhere", folder / "broken")
    scan = scan_folder(folder, "utf-8", nul_is_text=False)
    assert names(scan.files, folder) == ["a/z.txt", "b.txt"]
    assert dict(zip(names(scan.skipped, folder), scan.skipped.values(), strict=True)) == {
        "latin.txt": "not utf-8: byte 0xe9 at offset 3",
        "cut.txt": "not utf-8: byte 0xe2 at offset 3",
        "picture": "contains NUL bytes",
        "empty": "empty",
        ".hidden": "hidden",
        ".git": "hidden",
        "run": "a run directory",
        "all/comparison.json": "a file of a comparison",
        "all/results.json": "a file of a comparison",
        "broken": "not a regular file",
    }


def test_scan_folder_long_file_cut_inside_a_character_is_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" + "é".encode() * 50_000)
    assert len(scan_folder(tmp_path, "utf-8", nul_is_text=False).files) == 1


def test_read_text_folder_skips_what_is_not_text(folder):
    config = TextConfig(separator="|")
    assert read_text([folder], config) == "é|" + "bb" * 1000
    (scan,) = scan_folders([folder, "english-story", "-"], config)
    assert names(scan.files, folder) == ["a/z.txt", "b.txt"]


def test_scan_folders_with_byte_tokens_accepts_any_encoding(folder):
    (scan,) = scan_folders([folder], TextConfig(tokens="byte"))
    assert "latin.txt" in names(scan.files, folder)
    assert "picture" not in names(scan.files, folder)


def test_read_text_folder_without_text_names_reasons(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(SourceError, match=re.escape("x: not utf-8: byte 0xff at offset 0")):
        read_text([tmp_path], TextConfig())


def test_train_folder_reports_names_sizes_and_skipped_files(folder, tmp_path, listener):
    progress = listener()
    sizes = {"hidden_size": 4, "batch_size": 2, "num_steps": 8, "steps": 2}
    api.train(folder, out=tmp_path / "run", progress=progress, **sizes)
    plan = "\n".join(progress.plans)
    assert f"2 files of {folder}, 2.0 kB: b.txt (2.0 kB), a/z.txt (2 B)" in plan
    assert "latin.txt (not utf-8: byte 0xe9 at offset 3)" in plan


def test_describe_folder_with_many_files_names_the_largest(tmp_path):
    for size in range(1, 21):
        (tmp_path / f"{size}.txt").write_bytes(b"x" * size)
    (line,) = describe_folder(scan_folder(tmp_path, "utf-8", nul_is_text=False))
    assert "20 files" in line
    assert "20.txt (20 B), 19.txt (19 B), " in line
    assert line.endswith("and 10 more")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_450_000, "3.5 MB")]
)
def test_format_bytes_uses_decimal_units(number, text):
    assert format_bytes(number) == text


def test_scan_folder_reports_linked_directory(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path)
    scan = scan_folder(tmp_path, "utf-8", nul_is_text=False)
    assert scan.skipped == {tmp_path / "link": "a symbolic link to a directory"}
