"""The package as a whole: what importing it does, and what its functions take."""

import os
import subprocess
import sys

import pytest

import recurra
from recurra.errors import ConfigError


@pytest.mark.parametrize("source", [3, None, [3], {"a": 1}])
def test_a_source_that_is_none_is_one_sentence(source):
    with pytest.raises(ConfigError, match="source is"):
        recurra.train(source)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_do_not_spin_long_unless_somebody_wants_it(environment, expected):
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, recurra; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=own | environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == expected
