"""The docs say what is: the map of the tree, the command line's page, links, the public names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import recurra

ROOT = Path(__file__).resolve().parent.parent
MAP = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def _mapped() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", MAP, flags=re.MULTILINE)


def test_the_map_names_every_file_and_no_other():
    files = [p for p in (ROOT / "src" / "recurra").rglob("*") if p.suffix in (".py", ".txt")]
    there = {p.relative_to(ROOT / "src" / "recurra").as_posix() for p in files}
    # A folder's __init__ stands for the folder; only those that do something are on the map.
    there = {name for name in there if not name.endswith("__init__.py")}
    assert sorted(_mapped()) == sorted(there)


@pytest.mark.parametrize("folder", ["scripts", "benchmarks"])
def test_the_map_names_scripts_and_benchmarks(folder):
    for file in (ROOT / folder).iterdir():
        if file.is_file():
            assert f"`{folder}/{file.name}`" in MAP


def test_cli_page_is_what_the_program_prints():
    script = ROOT / "scripts" / "write-cli-docs"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_both_readmes_show_the_same_commands():
    def commands(name):
        blocks = re.findall(r"```(?:sh|python)\n(.*?)```", (ROOT / name).read_text("utf-8"), re.S)
        return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]

    assert commands("README.md") == commands("README.zh-CN.md")


def test_public_names_are_the_documented_ones():
    assert recurra.__all__ == [
        "LanguageModel", "__version__", "compare", "config", "d2l", "errors", "load", "model", "nn",
        "train",
    ]  # fmt: skip
    for name in recurra.__all__:
        assert getattr(recurra, name) is not None
    with pytest.raises(AttributeError, match="trian"):
        recurra.trian  # noqa: B018
