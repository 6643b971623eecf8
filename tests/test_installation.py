"""The command that installs an optional extra, for each way in which a copy can be installed."""

import json
import shlex
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
    wanted = ",".join(name for name in extras["optional-dependencies"] if name != "dev")
    assert f"scripts/environment {wanted}\n" in (ROOT / "scripts" / "demo").read_text("utf-8")
    for name in ("README.md", "README.zh-CN.md"):
        assert f'-e ".[{wanted}]"' in (ROOT / name).read_text("utf-8")
