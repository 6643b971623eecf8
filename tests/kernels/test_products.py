"""`add_rows` and `apply_mask` against torch, for widths that fill no vector and several threads."""

import pytest
import torch

from recurra.kernels import library
from recurra.kernels.products import add_rows, apply_mask

pytestmark = pytest.mark.skipif(
    not library.is_available(), reason="the compiled kernels are not available"
)


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(library, "threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("clears", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 16, 50])
def test_add_rows_sums_rows_of_equal_ids(threads, width, dtype, clears):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (40,), generator=generator)
    rows = torch.randn(40, width, generator=generator).to(dtype)
    table = torch.randn(7, width, generator=generator)
    expected = (torch.zeros_like(table) if clears else table).index_add(0, ids, rows.float())
    add_rows(ids, rows, table, clears=clears)
    torch.testing.assert_close(table, expected)


@pytest.mark.parametrize("mask_shape", [(1, 3, 5), (4, 3, 5)])
@pytest.mark.parametrize("in_place", [False, True])
def test_apply_mask_repeats_the_mask_over_the_values(threads, in_place, mask_shape):
    generator = torch.Generator().manual_seed(0)
    values, mask = (torch.randn(shape, generator=generator) for shape in ((4, 3, 5), mask_shape))
    expected = values * mask
    out = values if in_place else torch.empty_like(values)
    apply_mask(values, mask, out)
    assert torch.equal(out, expected)
