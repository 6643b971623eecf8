"""The threads of the kernels, under ThreadSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

from recurra.kernels import builder

SOURCES = builder.SOURCES
STRESS = Path(__file__).with_name("pool_stress.cpp")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ has ThreadSanitizer")
@pytest.mark.parametrize("limit", [2, 8, 16])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_run_stages_with_random_grids_has_no_race(tmp_path, sanitizer, limit):
    program = tmp_path / "stress"
    command = ["g++", "-std=c++17", "-O1", "-g", f"-fsanitize={sanitizer}", "-pthread"]
    command += [f"-I{SOURCES}", str(STRESS), str(SOURCES / "pool.cpp"), "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run(
        [program, "3000", str(limit)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stderr
