"""Every engine is compared with AutogradEngine: losses, weights, states and averages."""

import math
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch

from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import Batch
from recurra.engine.autograd import AutogradEngine
from recurra.engine.compiled import CompiledEngine
from recurra.kernels import library
from recurra.model import RecurrentLM
from recurra.runtime.distributed import SINGLE_PROCESS, Processes
from support.recorded import RecordedEngine

VOCAB, ROWS, STEPS = 13, 4, 7
TEXT = np.random.default_rng(0).integers(VOCAB, size=200).astype(np.uint8)
ENGINES = [
    pytest.param(
        CompiledEngine,
        "native",
        marks=pytest.mark.skipif(not library.is_available(), reason="no compiled kernels"),
    ),
    (RecordedEngine, "reference"),
    (RecordedEngine, "bptt"),
    (RecordedEngine, "library"),
]
SETTINGS = {
    "plain": ({}, {}),
    "dropout": ({"num_layers": 2, "dropout": 0.3, "output_dropout": 0.2}, {}),
    "weight-dropout": ({"weight_dropout": 0.3, "output_dropout": 0.2, "locked_dropout": True}, {}),
    "clip-norm": ({}, {"clip_norm": 0.05}),
    "clip-value": ({}, {"clip_norm": 0.1, "clip_value": 0.01}),
    "no-clipping": ({}, {"clip_norm": None}),
    "sgd": ({}, {"optimizer": "sgd", "lr": 0.5}),
    "momentum": ({}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "lr": 0.5}),
    "adam": ({}, {"optimizer": "adam", "weight_decay": 0.01}),
    "averaging": ({}, {"weight_averaging": 0.9}),
    "tied": ({"embedding_size": 8, "hidden_size": 8, "tie_weights": True}, {}),
}


def make_model(cell="lstm", backend="auto", **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "embedding_size": 6} | options
    return RecurrentLM(ModelConfig(cell=cell, vocab_size=VOCAB, backend=backend, **sizes))


def make_batch(number, *, rows=slice(None), steps=STEPS, **options):
    starts = np.random.default_rng(number).integers(len(TEXT) - steps, size=ROWS)
    reset = options.pop("reset_state", number % 4 == 0)
    return Batch(TEXT, starts, steps, reset, rows, **options)


def train(engine, batches):
    """Execute one step per batch; return the results and the final state of the engine."""
    torch.manual_seed(1)
    results = []
    for number, batch in enumerate(batches, start=1):
        engine.step(batch, 0.02 / number)
        if number % engine.max_pending == 0:
            results += engine.synchronize()
    results += engine.synchronize()
    # An engine that cannot record a step executes it without a graph.
    assert not isinstance(engine, RecordedEngine) or engine.num_recorded
    return results, {name: t.clone() for name, t in engine.state_dict().items()}


def assert_same(found, expected, tolerance=2e-5):
    results, tensors = found
    for result, wanted in zip(results, expected[0], strict=True):
        assert result.loss == pytest.approx(wanted.loss, rel=tolerance)
        assert result.num_tokens == wanted.num_tokens
        assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=10 * tolerance)
    assert tensors.keys() == expected[1].keys()
    for name, tensor in expected[1].items():
        torch.testing.assert_close(
            tensors[name], tensor, rtol=10 * tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize(("kind", "backend"), ENGINES)
@pytest.mark.parametrize("name", SETTINGS)
def test_engine_steps_equal_autograd_steps(kind, backend, name):
    options, settings = SETTINGS[name]
    config = TrainingConfig(steps=1, **settings)
    expected = train(
        AutogradEngine(make_model(backend="reference", **options), config),
        [make_batch(number) for number in range(9)],
    )
    engine = kind(make_model(backend=backend, **options), config)
    assert_same(train(engine, [make_batch(number) for number in range(9)]), expected)


@pytest.mark.parametrize(("kind", "backend"), [ENGINES[0], (RecordedEngine, "bptt")])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_engine_batches_of_random_length_equal_autograd(kind, backend, cell):
    config = TrainingConfig(steps=1)
    batches = [
        make_batch(n, steps=steps, loss_weight=steps / 5, gradient_scale=1.25)
        for n, steps in enumerate([3, 5, 3, 8, 5, 3, 8, 1, 1, 3])
    ]
    expected = train(AutogradEngine(make_model(cell, "reference"), config), batches)
    assert_same(train(kind(make_model(cell, backend), config), batches), expected)


@pytest.mark.parametrize(("kind", "backend"), [(AutogradEngine, "reference"), *ENGINES[:2]])
def test_engine_gradients_equal_autograd_without_update(kind, backend):
    config = TrainingConfig(steps=1)
    found = []
    for engine in (
        AutogradEngine(make_model(backend="reference"), config),
        kind(make_model(backend=backend), config),
    ):
        before = [p.detach().clone() for p in engine.model.parameters()]
        state = tuple(torch.full((1, ROWS, 8), 0.1) for _ in range(2))
        loss, after = engine.gradients(make_batch(1), state)
        assert all(map(torch.equal, before, engine.model.parameters()))
        found.append([torch.tensor(loss), *after, *(p.grad for p in engine.model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("kind", "backend"), [(AutogradEngine, "reference"), *ENGINES])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_engine_non_finite_step_changes_nothing(kind, backend, optimizer, bad):
    config = TrainingConfig(
        steps=1, optimizer=optimizer, weight_averaging=0.9, weight_decay=0.1, clip_norm=1.0
    )
    engine = kind(make_model(backend=backend), config)
    _, before = train(engine, [make_batch(number) for number in range(3)])
    count = engine.num_updates
    engine.model.head_bias.data[3] = bad
    engine.step(make_batch(0), 0.1)
    (result,) = engine.synchronize()
    assert result.failure is not None
    after = engine.state_dict()
    # The hidden state is unchanged as well, although the batch asks for a reset.
    for name, tensor in before.items():
        if not name.startswith(("random.", "model.head_bias")):
            assert torch.equal(after[name], tensor), name
    assert engine.num_updates == count


@pytest.mark.parametrize(("kind", "backend"), [(AutogradEngine, "reference"), *ENGINES])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_engine_first_step_not_finite_changes_nothing(kind, backend, momentum):
    config = TrainingConfig(steps=1, optimizer="sgd", momentum=momentum, lr=0.5)
    expected = train(kind(make_model(backend=backend), config), [make_batch(0), make_batch(1)])
    engine = kind(make_model(backend=backend), config)
    bias = engine.model.head_bias.data
    bias[3] = math.nan
    engine.step(make_batch(0), 0.1)
    (result,) = engine.synchronize()
    assert result.failure is not None
    bias.zero_().copy_(make_model(backend=backend).head_bias)
    assert_same(train(engine, [make_batch(0), make_batch(1)]), expected)


@pytest.mark.parametrize(("kind", "backend"), [(AutogradEngine, "reference"), *ENGINES])
def test_engine_construction_draws_no_random_number(kind, backend):
    model = make_model(backend=backend)
    before = torch.get_rng_state()
    kind(model, TrainingConfig(steps=1, weight_averaging=0.5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("kind", "backend"), [(AutogradEngine, "reference"), *ENGINES])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_engine_loaded_state_continues_exactly(kind, backend, optimizer):
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = TrainingConfig(steps=1, optimizer=optimizer, momentum=momentum, weight_averaging=0.9)
    options = {"output_dropout": 0.2, "backend": backend}
    first = kind(make_model(**options), config)
    _, saved = train(first, [make_batch(number) for number in range(3)])
    second = kind(make_model(**options), config)
    specs = second.state_specs(ROWS)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in saved.items()} == {
        n: tuple(spec) for n, spec in specs.items() if n in saved
    }
    second.load_state_dict(saved, num_updates=3)
    ends = []
    for engine in (first, second):
        torch.set_rng_state(saved["random.cpu"])
        for number in (5, 6, 7):
            engine.step(make_batch(number), 0.01)
        engine.synchronize()
        ends.append(engine.state_dict())
    for name, tensor in ends[0].items():
        assert torch.equal(ends[1][name], tensor), name


@pytest.mark.parametrize(("kind", "backend"), [(AutogradEngine, "reference"), *ENGINES])
@pytest.mark.parametrize("num_updates", [0, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_engine_earlier_state_loaded_continues_like_a_new_engine(
    kind, backend, num_updates, optimizer
):
    """A rollback loads a state into an engine that has recorded steps."""
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = TrainingConfig(steps=1, optimizer=optimizer, momentum=momentum, weight_averaging=0.9)
    engine = kind(make_model(backend=backend), config)
    saved = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    if num_updates:
        _, saved = train(engine, [make_batch(number) for number in range(num_updates)])
    train(engine, [make_batch(number) for number in range(4)])
    new, ends = kind(make_model(backend=backend), config), []
    for loaded in (engine, new):
        loaded.load_state_dict({n: t.clone() for n, t in saved.items()}, num_updates)
        ends.append(train(loaded, [make_batch(number) for number in range(4, 8)]))
    assert_same(*ends, tolerance=1e-9)


@pytest.mark.parametrize("kind", [AutogradEngine, RecordedEngine])
def test_engine_fp16_state_after_skipped_steps_continues_exactly(kind):
    """The training loop counts skipped steps, but the weight of an average must not."""
    config, ends = TrainingConfig(steps=1, weight_averaging=0.999), []
    options = {"backend": "bptt", "precision": "fp16"}
    engine, resumed = (kind(make_model(**options), config) for _ in range(2))
    engine._loss_scale.values[0] = 2.0**24
    results, saved = train(engine, [make_batch(number) for number in range(9)])
    assert 0 < sum(result.skipped for result in results) < 9
    resumed.load_state_dict(saved, num_updates=9)
    for continued in (engine, resumed):
        ends.append(train(continued, [make_batch(number) for number in range(9, 14)]))
    assert resumed.num_updates == engine.num_updates
    assert_same(*ends, tolerance=1e-9)


@pytest.mark.parametrize("seconds", [(0.001, 0.01), (0.02, 0.5)])
def test_recorded_engine_processes_of_different_speed_have_equal_max_pending(seconds):
    """Otherwise they would notice a failure at different steps, and collectives would not match."""
    config = TrainingConfig(steps=1, batch_size=ROWS)
    engines = [
        RecordedEngine(make_model(backend="bptt"), config, ThreadProcesses(rank, 2))
        for rank in range(2)
    ]
    threads = []
    for engine, duration in zip(engines, seconds, strict=True):
        engine.capacity, engine.pending_seconds = 100, 0.2
        threads.append(threading.Thread(target=engine._limit_pending, args=(duration,)))
        threads[-1].start()
    for thread in threads:
        thread.join(timeout=30)
    expected = max(1, int(0.2 / (sum(seconds) / 2)))
    assert [engine.max_pending for engine in engines] == [expected, expected]


def test_recorded_engine_records_once_then_repeats():
    engine = RecordedEngine(make_model(backend="bptt"), TrainingConfig(steps=1))
    train(engine, [make_batch(number) for number in range(8)])
    assert (engine.num_recorded, engine.num_replayed) == (1, 7)


def test_recorded_engine_missing_operation_gives_nan():
    """Removing one operation from a recording shows that repetitions start from NaN."""
    engine = RecordedEngine(make_model(backend="reference"), TrainingConfig(steps=1))
    train(engine, [make_batch(number) for number in range(2)])
    ((graph,),) = (program.graphs for program in engine._programs.values())
    recording = graph.recording
    index = next(i for i, (f, *_) in enumerate(recording.operations) if "sigmoid" in str(f))
    del recording.operations[index]
    engine.step(make_batch(2), 0.01)
    (result,) = engine.synchronize()
    assert result.failure is not None


class ThreadProcesses(Processes):
    """Two threads that represent two processes."""

    barrier = threading.Barrier(2, timeout=20)
    parts: ClassVar[dict[int, torch.Tensor]] = {}

    def _reduce(self, tensor):
        self.parts[self.rank] = tensor.clone()
        self.barrier.wait()
        total = self.parts[0] + self.parts[1]
        self.barrier.wait()
        tensor.copy_(total)


@pytest.mark.parametrize("kind", [AutogradEngine, RecordedEngine])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_engine_in_two_processes_equals_whole_batch(kind, optimizer):
    config = TrainingConfig(steps=1, optimizer=optimizer, weight_averaging=0.9, batch_size=ROWS)
    expected = train(
        AutogradEngine(make_model(backend="reference"), config, SINGLE_PROCESS),
        [make_batch(number) for number in range(6)],
    )
    engines = [
        kind(make_model(backend="reference"), config, ThreadProcesses(rank, 2)) for rank in range(2)
    ]
    # The processes have different numbers of rows.
    shares = [slice(0, 1), slice(1, ROWS)]
    found = [None, None]

    def work(rank):
        # `state_dict` gathers the hidden state by `Processes.share`, which is not this division of
        # the rows: the state is not compared.
        engine, results = engines[rank], []
        for number in range(1, 7):
            engine.step(make_batch(number - 1, rows=shares[rank]), 0.02 / number)
            results += engine.synchronize()
        found[rank] = results

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for engine, results in zip(engines, found, strict=True):
        if kind is RecordedEngine:
            (program,) = engine._programs.values()
            assert (len(program.graphs), engine.num_replayed) == (2, 5)
        tensors = {f"model.{n}": p.detach() for n, p in engine.model.named_parameters()}
        tensors |= {f"average.{n}": t for n, t in engine.average.tensors.items()}
        wanted = {name: t for name, t in expected[1].items() if name in tensors}
        assert_same((results, tensors), (expected[0], wanted))
