"""A comparison of two small models, two seeds each, in a folder `all`."""

import pytest

import recurra
from comparison.settings import CONTENDERS, SMALL
from recurra.report.progress import Progress


@pytest.fixture
def compare(source, tmp_path):
    def call(contenders=CONTENDERS, **options):
        settings = {"num_tokens": 640, "seeds": 2, "out": tmp_path / "all", "progress": Progress()}
        return recurra.compare(source, contenders, **SMALL | settings | options)

    return call
