"""The command that installs an optional extra, for each way in which a copy can be installed."""

import json
import shlex
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from recurra import installation
from recurra.cli.main import main
from recurra.errors import MissingExtraError

ROOT = Path(__file__).resolve().parent.parent
COMMIT = {"vcs": "git", "commit_id": "0" * 40}


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """Return a function that installs a distribution with this direct_url.json."""

    def install(origin):
        info = tmp_path / "recurra-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recurra\nVersion: 0\n")
        if origin is not None:
            (info / "direct_url.json").write_text(json.dumps(origin), "utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(installation, "_PACKAGE", tmp_path / "recurra")

    return install


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "recurra[bpe]"),
        ({"url": "file:///my%20code/recurra", "dir_info": {}}, "/my code/recurra[bpe]"),
        ({"url": "file:///w/recurra.whl", "archive_info": {}}, "recurra[bpe] @ file:///w/recurra.whl"),
        (
            {"url": "https://host/recurra.git", "vcs_info": COMMIT},
            "recurra[bpe] @ git+https://host/recurra.git",
        ),
    ],
    ids=["index", "directory", "wheel", "git"],
)  # fmt: skip
def test_install_command_installed_copy_names_its_origin(site_packages, origin, expected):
    site_packages(origin)
    assert shlex.split(installation.install_command("bpe")) == ["pip", "install", expected]


def test_install_command_clone_is_editable_with_its_directory(tmp_path, monkeypatch):
    clone = tmp_path / "a clone"
    (clone / "src" / "recurra").mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    monkeypatch.setattr(installation, "_PACKAGE", clone / "src" / "recurra")
    expected = ["pip", "install", "-e", f"{clone}[plot]"]
    assert shlex.split(installation.install_command("plot")) == expected


def test_missing_extra_messages_of_this_copy_have_one_command(monkeypatch, capsys):
    command = installation.install_command("bpe")
    assert command in str(MissingExtraError("--tokens bpe", "bpe"))
    version = metadata.version

    def version_without_tokenizers(name):
        if name == "tokenizers":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", version_without_tokenizers)
    assert main(["doctor", "--json"]) == 0
    assert command in json.loads(capsys.readouterr().out)["extra bpe"]


def test_demo_installs_all_extras_but_dev():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    # The compiler is installed where there is none.
    names = [n for n in extras["optional-dependencies"] if n not in ("dev", "compiler")]
    wanted = ",".join(names)
    assert f"extras={wanted}\n" in (ROOT / "scripts" / "demo").read_text("utf-8")
    for name in ("README.md", "README.zh-CN.md"):
        assert f'-e ".[{wanted}]"' in (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize(
    ("programs", "extras"), [(["clang++"], "plot,bpe"), ([], "plot,bpe,compiler")]
)
def test_demo_installs_compiler_where_there_is_none(tmp_path, programs, extras):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    demo = shutil.copy(ROOT / "scripts" / "demo", tmp_path / "scripts")
    (tmp_path / "scripts" / "environment").write_text('#!/bin/sh\necho "$1"; exit 3\n', "utf-8")
    for name in ("bash", "dirname", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    for name in programs:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n", "utf-8")
    for file in (*tmp_path.glob("bin/*"), *tmp_path.glob("scripts/*")):
        if not file.is_symlink():
            file.chmod(0o755)
    environment = {"PATH": str(tmp_path / "bin")}
    done = subprocess.run([demo], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (3, extras), done.stderr
