"""Fixtures of the tests of recurra.nn."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """Seed torch, so that weights and inputs of each test are the same in every run."""
    torch.manual_seed(0)
