"""Products of AMX tiles: emulated, and the compilation of the instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recurra.kernels import builder, library, matmul_results
from recurra.kernels.variants import X86_64, architecture

FOLDER = Path(__file__).parent
EMULATION = FOLDER / "amx_emulation.h"

has_pairs = (
    architecture() == X86_64
    and library.is_available()
    and library.load().recurra_has_kind(matmul_results.KERNELS["pairs"])
)
pytestmark = pytest.mark.skipif(not has_pairs, reason="no AVX-512 BF16, which the tiles extend")


@pytest.mark.slow
def test_tiles_emulated_equal_rounded_products(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "emulated_tiles.py"],
        env={
            **os.environ,
            "CXXFLAGS": f"-DRECURRA_EMULATE_AMX -include {EMULATION}",
            "PYTHONPATH": os.pathsep.join([*sys.path, str(FOLDER.parent)]),
            "RECURRA_CACHE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


MISUSE = """
#include "{emulation}"
struct alignas(64) Configuration {{
  unsigned char palette = 1, start = 0, reserved[14] = {{}};
  unsigned short row_bytes[16] = {{64, 64, 64}};
  unsigned char rows[16] = {{16, 16, 16}};
}} configuration;
float numbers[256];
int main() {{
  {body}
}}
"""


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("_tile_zero(0);", "not configured"),
        ("configuration.rows[0] = 17; _tile_loadconfig(&configuration);", "at most 16 rows"),
        ("configuration.palette = 2; _tile_loadconfig(&configuration);", "palette"),
        ("_tile_loadconfig(&configuration); _tile_zero(3);", "not configured"),
        (
            "configuration.rows[0] = 8; _tile_loadconfig(&configuration);_tile_dpbf16ps(0, 1, 2);",
            "the rows of the left",
        ),
        ("_tile_loadconfig(&configuration); _tile_dpbf16ps(0, 1, 1);", "must be different"),
        (
            "_tile_loadconfig(&configuration); _tile_release(); _tile_stored(0, numbers, 64);",
            "not configured",
        ),
    ],
)
def test_emulation_misuse_ends_program(tmp_path, body, rule):
    source, program = tmp_path / "misuse.cpp", tmp_path / "misuse"
    source.write_text(MISUSE.format(emulation=EMULATION, body=body), encoding="utf-8")
    flags = ["-std=c++17", "-march=native", source, "-o", program]
    subprocess.run([*builder.compiler(), *flags], check=True, timeout=100)
    done = subprocess.run([program], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    assert rule in done.stderr


def test_tiles_compile_to_instructions_of_amx(tmp_path):
    out = tmp_path / "dense.s"
    source = builder.SOURCES / "dense.cpp"
    flags = ["-std=c++17", "-O2", "-march=sapphirerapids", "-S", source, "-o", out]
    done = subprocess.run(
        [*builder.compiler(), *flags], capture_output=True, text=True, timeout=200, check=False
    )
    # An older compiler rejects the flag, and builds no tiles either, so nothing is left to check.
    # Other errors fail below.
    if "sapphirerapids" in done.stderr:
        pytest.skip("the compiler does not know processors with AMX")
    assert done.returncode == 0, done.stderr
    code = out.read_text("utf-8")
    for instruction in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"):
        assert instruction in code
