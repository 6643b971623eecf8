"""A comparison of two small models with two seeds each, in the directory `all`."""

import pytest

import recurra
from comparison.settings import SMALL, VARIANTS
from recurra.report.progress import Progress


@pytest.fixture
def compare(source, tmp_path):
    """A function that calls `recurra.compare` with small models and budgets."""

    def call(variants=VARIANTS, **options):
        settings = {"num_tokens": 640, "seeds": 2, "out": tmp_path / "all", "progress": Progress()}
        return recurra.compare(source, variants, **SMALL | settings | options)

    return call
