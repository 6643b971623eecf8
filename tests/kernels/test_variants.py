"""Every variant of the kernels that this machine can execute, against the reference backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recurra.errors import KernelError
from recurra.kernels import selection
from recurra.kernels.variants import architecture, variants_of

TESTS = Path(__file__).resolve().parent.parent
COMPARISONS = (
    "recurrence/test_native.py", "recurrence/test_linear_scan.py", "test_output_layer.py",
    "engine/test_compiled_gradients.py", "training/test_compiled_update.py",
    "inference/test_compiled_decoder.py",
)  # fmt: skip
"""The tests that compare the kernels with PyTorch: outputs, states, gradients and updates."""


def executable() -> list[str]:
    """Return the names of the variants, or none where they cannot be built."""
    try:
        return [variant.name for variant in selection.executable_variants()]
    except KernelError:
        return []


def run_tests(variant: str, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs"]
    return subprocess.run(
        [*command, "-m", "not slow", *(str(TESTS / file) for file in files)],
        env=os.environ | {"RECURRA_KERNELS": variant},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", executable())
def test_variant_equals_reference(variant):
    done = run_tests(variant, *COMPARISONS)
    assert done.returncode == 0, done.stdout
    assert "no compiler" not in done.stdout
    # The processes did use the variant.
    program = "from recurra.kernels import library; print(library.describe())"
    described = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"RECURRA_KERNELS": variant},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert described.startswith(f"{variant}, ")


def test_executable_variants_include_the_one_of_every_processor():
    assert not executable() or executable()[-1] == variants_of(architecture())[-1].name
