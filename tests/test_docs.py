"""The documentation agrees with the code: file map, command-line page, links, public names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import recurra

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("script", ["write-cli-docs", "write-file-map"])
def test_generated_docs_are_up_to_date(script):
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("folder", ["scripts", "benchmarks"])
def test_architecture_doc_lists_scripts_and_benchmarks(folder):
    for file in (ROOT / folder).iterdir():
        if file.is_file():
            assert f"`{folder}/{file.name}`" in ARCHITECTURE


@pytest.mark.parametrize(
    "name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/clusters.md"]
)
def test_markdown_links_point_to_existing_files(name):
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_readme_translations_show_equal_commands():
    def commands(name):
        blocks = re.findall(r"```(?:sh|python)\n(.*?)```", (ROOT / name).read_text("utf-8"), re.S)
        return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]

    assert commands("README.md") == commands("README.zh-CN.md")


def test_recurra_all_lists_public_names():
    assert recurra.__all__ == [
        "Cell", "LanguageModel", "__version__", "compare", "config", "d2l", "errors", "load",
        "model", "nn", "register_cell", "register_optimizer", "resume", "train",
    ]  # fmt: skip
    for name in recurra.__all__:
        assert getattr(recurra, name) is not None
    with pytest.raises(AttributeError, match="trian"):
        recurra.trian  # noqa: B018
