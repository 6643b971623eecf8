"""Batch iterators and loaders of `recurra.d2l`."""

import random

import pytest
import torch

from recurra import d2l
from recurra.errors import ConfigError

SIZES = [(35, 2, 5), (101, 4, 7), (10_000, 32, 35), (23, 3, 1)]


@pytest.mark.parametrize(("length", "batch_size", "num_steps"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_seq_data_iter_sequential_rows_continue_across_batches(length, batch_size, num_steps, seed):
    random.seed(seed)
    batches = list(d2l.seq_data_iter_sequential(range(length), batch_size, num_steps))
    first = int(batches[0][0][0, 0])
    assert 0 <= first <= num_steps
    row_length = (length - first - 1) // batch_size
    assert len(batches) == row_length // num_steps
    for number, (x, y) in enumerate(batches):
        rows = first + number * num_steps + torch.arange(batch_size)[:, None] * row_length
        assert torch.equal(x, rows + torch.arange(num_steps))
        assert torch.equal(y, x + 1)
        assert x.dtype == torch.int64


@pytest.mark.parametrize(("length", "batch_size", "num_steps"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_seq_data_iter_random_yields_each_window_once(length, batch_size, num_steps, seed):
    random.seed(seed)
    batches = list(d2l.seq_data_iter_random(range(length), batch_size, num_steps))
    starts = torch.cat([x[:, 0] for x, _ in batches])
    for x, y in batches:
        assert torch.equal(x, x[:, :1] + torch.arange(num_steps))
        assert torch.equal(y, x + 1)
        assert x.shape == (batch_size, num_steps)
        assert x.dtype == torch.int64
    skipped = int(starts[0]) % num_steps
    windows = (length - skipped - 1) // num_steps
    assert len(batches) == windows // batch_size
    assert len(set(starts.tolist())) == len(starts)
    assert set(starts.tolist()) <= set(range(skipped, skipped + windows * num_steps, num_steps))


def test_seq_data_iter_random_reshuffles_every_epoch():
    epochs = [
        torch.cat([x[:, 0] for x, _ in d2l.seq_data_iter_random(range(500), 2, 5)]).tolist()
        for _ in range(20)
    ]
    assert {epoch[0] % 5 for epoch in epochs} == {0, 1, 2, 3, 4}
    assert all(epoch != sorted(epoch) for epoch in epochs)


@pytest.mark.parametrize(
    "iterate",
    [d2l.seq_data_iter_random, d2l.seq_data_iter_sequential],
    ids=["random", "sequential"],
)
def test_seq_data_iter_same_seed_gives_same_batches(iterate):
    epochs = []
    for _ in range(2):
        random.seed(11)
        epochs.append(torch.stack([x for x, _ in iterate(torch.arange(200), 3, 4)]))
    assert torch.equal(*epochs)


def test_seq_data_iter_random_draws_numbers_as_d2l():
    random.seed(5)
    skipped = random.randint(0, 4)
    starts = list(range(0, (35 - skipped - 1) // 5 * 5, 5))
    random.shuffle(starts)
    random.seed(5)
    x, _ = next(d2l.seq_data_iter_random(list(range(35)), 2, 5))
    assert x[:, 0].tolist() == [skipped + start for start in starts[:2]]


def test_data_iterators_too_short_text_gives_no_batch():
    for length in range(7):
        assert list(d2l.seq_data_iter_random(list(range(length)), 2, 5)) == []
        assert list(d2l.seq_data_iter_sequential(list(range(length)), 2, 5)) == []
        assert list(d2l.data_iter_random(list(range(length)), 2, 5)) == []
        assert list(d2l.data_iter_consecutive(list(range(length)), 2, 5)) == []


def test_seq_data_iter_size_below_one_raises():
    with pytest.raises(ConfigError, match="batch_size"):
        next(d2l.seq_data_iter_random([1, 2, 3], 0, 1))
    with pytest.raises(ConfigError, match="num_steps"):
        next(d2l.seq_data_iter_sequential([1, 2, 3], 1, 0))


@pytest.mark.usefixtures("small_corpora")
@pytest.mark.parametrize("use_random_iter", [False, True])
def test_seq_data_loader_yields_one_epoch_per_iteration(use_random_iter):
    train_iter, vocab = d2l.load_data_time_machine(2, 5, use_random_iter, max_tokens=400)
    assert isinstance(train_iter, d2l.SeqDataLoader)
    assert train_iter.vocab is vocab
    text = train_iter.corpus
    assert len(text) == 400
    for _ in range(3):
        batches = list(train_iter)
        assert len(batches) == 39
        for x, y in batches:
            for row, target in zip(x.tolist(), y.tolist(), strict=True):
                assert row[1:] == target[:-1]
                assert any(text[i : i + 6] == [*row, target[-1]] for i in range(395))


@pytest.mark.parametrize(("length", "batch_size", "num_steps"), [(30, 2, 6), (10_000, 32, 35)])
def test_data_iterators_v1_yield_floats_and_v1_batch_count(length, batch_size, num_steps, device):
    corpus = list(range(length))
    batches = list(d2l.data_iter_consecutive(corpus, batch_size, num_steps, device))
    row_length = length // batch_size
    assert len(batches) == (row_length - 1) // num_steps
    for number, (x, y) in enumerate(batches):
        rows = number * num_steps + torch.arange(batch_size)[:, None] * row_length
        assert torch.equal(x.cpu(), (rows + torch.arange(num_steps)).float())
        assert torch.equal(y, x + 1)
        assert (x.dtype, x.device.type) == (torch.float32, device)

    batches = list(d2l.data_iter_random(corpus, batch_size, num_steps, device))
    assert len(batches) == (length - 1) // num_steps // batch_size
    starts = torch.cat([x[:, 0] for x, _ in batches]).tolist()
    assert len(set(starts)) == len(starts)
    assert all(start % num_steps == 0 for start in starts)
    for x, y in batches:
        assert torch.equal(x.cpu(), x[:, :1].cpu() + torch.arange(num_steps))
        assert torch.equal(y, x + 1)
        assert x.dtype == torch.float32


def test_load_array_yields_every_example_once():
    features, labels = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    batches = list(d2l.load_array((features, labels), 2, is_train=False))
    assert [y.tolist() for _, y in batches] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([x for x, _ in batches]), features)
    shuffled = torch.cat([y for _, y in d2l.load_array((features, labels), 2)])
    assert sorted(shuffled.tolist()) == [0, 1, 2, 3, 4]
