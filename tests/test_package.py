"""The package as a whole: effects of importing it, and types of sources."""

import os
import subprocess
import sys

import pytest

import recurra
from recurra.errors import ConfigError


@pytest.mark.parametrize("source", [3, None, [3], {"a": 1}])
def test_train_source_of_wrong_type_raises(source):
    with pytest.raises(ConfigError, match="source is"):
        recurra.train(source)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_import_limits_spinning_unless_environment_sets_it(environment, expected):
    outer = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, recurra; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=outer | environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == expected
