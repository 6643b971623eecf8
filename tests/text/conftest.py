import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data_folder() -> Path:
    """The folder of the published corpora; taken before a test changes the environment."""
    if not (folder := os.environ.get("RECURRA_DATA")):
        pytest.skip("RECURRA_DATA is not set")
    return Path(folder)
