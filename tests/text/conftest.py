import os
from pathlib import Path

import pytest

# Read before any test changes the environment.
_DATA = os.environ.get("RECURRA_DATA")


@pytest.fixture
def real_data_folder() -> Path:
    """Return the directory of the published corpora; skip the test if there is none."""
    if not _DATA:
        pytest.skip("RECURRA_DATA is not set")
    return Path(_DATA)
