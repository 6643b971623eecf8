"""The command line limits the spinning of torch's OpenMP threads."""

import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_main_limits_spinning_unless_environment_sets_it(environment, expected):
    outer = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = (
        "import os; from recurra.cli.main import main; main(['--version']);"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=outer | environment, capture_output=True, check=True)
    assert done.stdout.decode().split()[-1] == expected


def test_import_leaves_environment_unchanged():
    outer = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = "import os; before = dict(os.environ); import recurra.nn; assert before == os.environ"
    subprocess.run([sys.executable, "-c", code], env=outer, check=True)
