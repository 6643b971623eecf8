"""Batches: windows and epoch lengths of d2l, and resuming an epoch at any batch."""

import itertools

import numpy as np
import pytest

from recurra.config import TrainingConfig
from recurra.data.batches import BatchStream, random_windows, sequential_windows
from recurra.errors import SourceError


def test_sequential_windows_rows_are_contiguous():
    batches = list(sequential_windows(np.arange(35), 2, itertools.repeat(5), offset=1))
    assert [b.reset_state for b in batches] == [True, False, False]
    # 33 tokens can be inputs: two rows of 16 tokens, which start at 1 and 17.
    assert batches[0].ids.tolist() == [[1, 2, 3, 4, 5], [17, 18, 19, 20, 21]]
    assert batches[2].ids.tolist() == [[11, 12, 13, 14, 15], [27, 28, 29, 30, 31]]
    for batch in batches:
        assert np.array_equal(batch.targets, batch.ids + 1)
        assert batch.ids.dtype == np.int64


def test_random_windows_use_each_window_once():
    generator = np.random.default_rng(0)
    batches = list(random_windows(np.arange(36), 2, 5, offset=0, random=generator))
    starts = sorted(int(row[0]) for batch in batches for row in batch.ids)
    assert len(batches) == 3
    assert set(starts) <= {0, 5, 10, 15, 20, 25, 30}
    assert len(set(starts)) == 6
    assert all(
        batch.reset_state and np.array_equal(batch.targets, batch.ids + 1) for batch in batches
    )


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("size", [10_000, 1_121, 2_305])
def test_batch_stream_epoch_length_equals_d2l(sampling, size):
    config = TrainingConfig(batch_size=32, num_steps=35, sampling=sampling)
    stream = BatchStream(np.zeros(size, dtype=np.uint8), config)
    for epoch in range(20):
        offset = int(np.random.default_rng([1, epoch]).integers(0, stream._max_offset + 1))
        if sampling == "sequential":
            expected = (size - offset - 1) // 32 // 35
        else:
            expected = (size - offset - 1) // 35 // 32
        assert sum(1 for _ in stream.epoch(epoch)) == expected >= 1


@pytest.mark.parametrize(
    ("sampling", "bptt"),
    [
        ("sequential", "truncated"),
        ("sequential", "randomized"),
        ("sequential", "full"),
        ("random", "truncated"),
    ],
)
def test_batch_stream_epoch_resumes_at_any_batch(sampling, bptt):
    config = TrainingConfig(batch_size=3, num_steps=7, sampling=sampling, bptt=bptt, seed=9)
    stream = BatchStream(np.arange(400), config)
    batches = list(stream.epoch(2))
    for start in range(len(batches) + 1):
        rest = list(stream.epoch(2, start))
        assert len(rest) == len(batches) - start
        for a, b in zip(rest, batches[start:], strict=True):
            assert np.array_equal(a.ids, b.ids)
            assert a.reset_state == b.reset_state


def test_batch_stream_order_depends_on_seed_and_epoch():
    def first(seed, epoch):
        config = TrainingConfig(batch_size=2, num_steps=9, sampling="random", seed=seed)
        return next(BatchStream(np.arange(500), config).epoch(epoch)).ids.tolist()

    assert first(1, 0) == first(1, 0)
    assert first(1, 0) != first(1, 1)
    assert first(1, 0) != first(2, 0)


def test_batch_stream_full_bptt_yields_one_batch():
    stream = BatchStream(np.arange(101), TrainingConfig(batch_size=4, bptt="full"))
    (batch,) = stream.epoch(0)
    assert batch.ids.shape == (4, 25)
    assert sorted(batch.ids.ravel().tolist()) == list(range(100))


def test_batch_stream_randomized_windows_cover_row():
    stream = BatchStream(
        np.arange(1001), TrainingConfig(batch_size=2, num_steps=5, bptt="randomized")
    )
    row = np.concatenate([batch.ids[0] for batch in stream.epoch(0)])
    assert np.array_equal(row, np.arange(row[0], row[0] + len(row)))
    assert row[-1] == row[0] + (1001 - row[0] - 1) // 2 - 1
    lengths = [batch.ids.shape[1] for epoch in range(30) for batch in stream.epoch(epoch)]
    assert np.mean(lengths) == pytest.approx(5, rel=0.1)
    assert min(lengths) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_batch_stream_accepts_memory_mapped_ids(tmp_path, dtype):
    np.arange(200, dtype=dtype).tofile(tmp_path / "ids")
    ids = np.memmap(tmp_path / "ids", dtype=dtype, mode="r")
    batch = next(BatchStream(ids, TrainingConfig(batch_size=2, num_steps=4)).epoch(0))
    assert batch.ids.dtype == np.int64
    assert np.array_equal(batch.targets, batch.ids + 1)


def test_batch_stream_short_text_error_names_sizes():
    with pytest.raises(SourceError, match=r"\b50\b.*\b65\b.*8 x 8"):
        BatchStream(np.zeros(50), TrainingConfig(batch_size=8, num_steps=8))
    assert sum(
        1 for _ in BatchStream(np.zeros(65), TrainingConfig(batch_size=8, num_steps=8)).epoch(0)
    )
