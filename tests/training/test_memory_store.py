"""The training loop on a store in memory: metrics, weights, resume and rollback without files."""

import contextlib
import itertools

import pytest
import torch

from recurra.config import ModelConfig, RunConfig
from recurra.data.dataset import TokenDataset
from recurra.errors import NonFiniteError, RunError, TrainingInterrupted
from recurra.model import RecurrentLM
from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import SINGLE_PROCESS
from recurra.runtime.signals import stop_signals
from recurra.text.vocabulary import CharVocabulary
from recurra.training.context import RunContext
from recurra.training.loop import TrainingLoop
from support.memory_store import MemoryStore

TEXT = "the cat sat on the mat and the dog sat on the log. " * 40
OPTIONS = {
    "steps": 20, "report_every": 5, "checkpoint_every": 3, "hidden_size": 8, "batch_size": 4,
    "num_steps": 8, "embedding_size": 4, "sample_length": 5, "lr": 0.01,
}  # fmt: skip


@contextlib.contextmanager
def opened_loop(store, progress=None, **options):
    """Yield a training loop of a small model on `TEXT`."""
    config = RunConfig.from_options(**OPTIONS | options)
    vocabulary = CharVocabulary.from_text(TEXT)
    ids = vocabulary.encode(TEXT)
    dataset = TokenDataset(ids[:1800], ids[1800:], len(TEXT) - 1800, len(TEXT) - 1800, vocabulary)
    torch.manual_seed(config.training.seed)
    sizes = {"hidden_size": 8, "embedding_size": 4, "backend": "reference"}
    model = RecurrentLM(ModelConfig(vocab_size=len(vocabulary), **sizes))
    with stop_signals() as signals, torch.random.fork_rng():
        context = RunContext(progress or Progress(), Clock(), SINGLE_PROCESS, signals)
        yield TrainingLoop(model, dataset, config.training, {"run": 1}, store, context)


def trained(store, **options):
    with opened_loop(store, **options) as loop:
        return loop.fit()


def losses(records):
    return [(record["step"], record["train_nats"], record["val_nats"]) for record in records]


def test_training_loop_in_memory_writes_metrics_and_best_weights():
    store = MemoryStore()
    with opened_loop(store) as loop:
        records = loop.fit()
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert records[-1]["val_nats"] < records[0]["val_nats"]
    assert store.read_metrics() == records
    assert len(store.checkpoints.names()) == 2
    best = RecurrentLM(loop.session.model.config)
    store.load_best_weights(best)
    expected = loop.session.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in best.state_dict().items())


def test_training_loop_in_memory_resumes_exactly(listener):
    uninterrupted, store = MemoryStore(), MemoryStore()
    expected = trained(uninterrupted)
    with pytest.raises(TrainingInterrupted), opened_loop(store, listener(stop_at=12)) as loop:
        loop.fit()
    with opened_loop(store) as loop:
        loop.resume()
        records = loop.fit()
    assert losses(records) == losses(expected)
    assert store.weights == uninterrupted.weights


def test_training_loop_in_memory_skips_damaged_checkpoint(listener):
    store = MemoryStore()
    with pytest.raises(TrainingInterrupted), opened_loop(store, listener(stop_at=12)) as loop:
        loop.fit()
    older, newest = store.checkpoints.names()
    store.checkpoints.files[newest]["state.safetensors"] = b"damaged"
    progress = listener()
    with opened_loop(store, progress) as loop:
        loop.resume()
    assert any(newest in message and older in message for message in progress.messages)
    store.checkpoints.files[older]["state.safetensors"] = b"damaged"
    with pytest.raises(RunError, match="no checkpoint of memory is intact"):
        trained_resumed(store)


def trained_resumed(store):
    with opened_loop(store) as loop:
        loop.resume()


def test_training_loop_in_memory_rolls_back_after_nan():
    store = MemoryStore()
    with opened_loop(store, on_nan="rollback") as loop:
        _fail_once_at(loop, step=13)
        records = loop.fit()
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert records[2]["lr"] < 0.6 * records[1]["lr"]
    assert b"the loss is nan" in store.histories["failures.jsonl"]


def test_training_loop_in_memory_stops_at_nan():
    with opened_loop(MemoryStore()) as loop:
        _fail_once_at(loop, step=13)
        with pytest.raises(NonFiniteError, match=r"memory.failures\.jsonl"):
            loop.fit()


def _fail_once_at(loop, step):
    """Let a weight be NaN before one step."""
    session, steps = loop.session, itertools.count(1)
    take_step = session.step

    def failing():
        if next(steps) == step:
            with torch.no_grad():
                session.model.head_bias.fill_(float("nan"))
        take_step()

    session.step = failing
