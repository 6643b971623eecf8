"""The training loop on a store in memory: metrics, weights, resume and rollback without files."""

import contextlib
import dataclasses
import itertools
import json

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
from recurra.training.callbacks.checkpointing import SECONDS_BETWEEN
from recurra.training.context import RunContext
from recurra.training.loop import TrainingLoop
from support.memory_store import MemoryStore

TEXT = "the cat sat on the mat and the dog sat on the log. " * 40
OPTIONS = {
    "steps": 20, "report_every": 5, "checkpoint_every": 3, "hidden_size": 8, "batch_size": 4,
    "num_steps": 8, "embedding_size": 4, "sample_length": 5, "lr": 0.01,
}  # fmt: skip


@contextlib.contextmanager
def opened_loop(store, progress=None, clock=None, **options):
    """Yield a training loop of a small model on `TEXT`."""
    config = RunConfig.from_options(**OPTIONS | options)
    vocabulary = CharVocabulary.from_text(TEXT)
    ids = vocabulary.encode(TEXT)
    dataset = TokenDataset(ids[:1800], ids[1800:], len(TEXT) - 1800, len(TEXT) - 1800, vocabulary)
    torch.manual_seed(config.training.seed)
    identity = {"training": dataclasses.asdict(config.training)}
    sizes = {"hidden_size": 8, "embedding_size": 4, "backend": "reference"}
    model = RecurrentLM(ModelConfig(vocab_size=len(vocabulary), **sizes))
    with stop_signals() as signals, torch.random.fork_rng():
        context = RunContext(progress or Progress(), clock or Clock(), SINGLE_PROCESS, signals)
        yield TrainingLoop(model, dataset, config.training, identity, store, context)


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


def test_training_loop_in_memory_saves_after_interval(monkeypatch):
    store, names, sessions = MemoryStore(), [], []
    write = store.checkpoints.write

    def recording_write(name, files):
        names.append(name)
        return write(name, files)

    def seconds_of_steps():
        """Every training step takes a fifth of the interval, and all else no time."""
        return sessions[0].state.step * SECONDS_BETWEEN / 5 if sessions else 0.0

    monkeypatch.setattr(store.checkpoints, "write", recording_write)
    options = {"checkpoint_every": None, "report_every": 20}
    with opened_loop(store, clock=Clock(source=seconds_of_steps), **options) as loop:
        sessions.append(loop.session)
        loop.fit()
    steps = [int(name.split("-")[1]) for name in names]
    assert steps == [0, 5, 10, 15, 20, 20]


def test_training_loop_in_memory_samples_at_first_multiple_of_interval():
    store = MemoryStore()
    trained(store, sample_every=5)
    samples = [json.loads(line) for line in store.histories["samples.jsonl"].splitlines()]
    assert [sample["step"] for sample in samples] == [5, 10, 15, 20]


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
