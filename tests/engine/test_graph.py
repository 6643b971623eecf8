"""Engines that record and replay steps, with an emulation of CUDA graphs on the CPU."""

import logging
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from recurra.config import ModelConfig, TrainingConfig
from recurra.config.cells import CELL_TRAITS
from recurra.data.batches import Batch
from recurra.engine import graph, loss_scaling
from recurra.engine.autograd import AutogradEngine
from recurra.engine.cuda_graph import CudaGraphEngine
from recurra.engine.loss_scaling import LossScale
from recurra.model import RecurrentLM
from recurra.recurrence import dropout
from recurra.runtime.distributed import SINGLE_PROCESS
from support.gpu_backends import backends_of
from support.recorded import RecordedEngine

VOCAB, ROWS, STEPS, UNITS = 13, 4, 6, 8
TEXT = np.random.default_rng(0).integers(VOCAB, size=300)
READS_STATE = [name for name, traits in CELL_TRAITS.items() if traits.reads_state]


def make_model(cell="lstm", backend="auto", **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": UNITS, "embedding_size": UNITS} | options
    return RecurrentLM(ModelConfig(cell=cell, vocab_size=VOCAB, backend=backend, **sizes))


def make_batch(number, text=TEXT, **options):
    starts = np.random.default_rng(number).integers(len(text) - STEPS, size=ROWS)
    return Batch(text, starts, STEPS, number % 3 == 0, **options)


def train(engine, batches, lr=0.02):
    torch.manual_seed(1)
    results = []
    for number, batch in enumerate(batches, start=1):
        engine.step(batch, lr)
        if number % engine.max_pending == 0:
            results += engine.synchronize()
    return results + engine.synchronize(), {n: t.clone() for n, t in engine.state_dict().items()}


def assert_equal_training(engine, reference, batches):
    """Compare results and final states of two engines; tolerance for another summation order."""
    found, expected = (train(e, batches) for e in (engine, reference))
    for result, wanted in zip(found[0], expected[0], strict=True):
        assert result.nats == pytest.approx(wanted.nats, rel=1e-5)
        assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


class Devices(TorchDispatchMode):
    """Dispatch mode that collects the operations with a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.on_host = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        tensors = tree_flatten((args, kwargs, results))[0]
        if any(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in tensors):
            self.on_host.add(str(function))
        return results


@pytest.mark.parametrize(("cell", "backend"), [(c, b) for c in CELL_TRAITS for b in backends_of(c)])
def test_step_on_a_device_uses_no_tensor_of_the_host(cell, backend, monkeypatch):
    """A CUDA graph cannot capture a copy from pageable memory of the host. The device is meta."""
    reads_state = CELL_TRAITS[cell].reads_state
    options = {"num_layers": 2, "dropout": 0.2, "weight_dropout": 0.2 * reads_state}
    if backend == "reference":
        options |= {"zoneout": 0.1 * reads_state, "residual": True}
    model = make_model(cell, **options)
    scale = 1.0 if backend == "library" else 1.1
    object.__setattr__(model.config, "backend", backend)
    engine = AutogradEngine(
        model.to("meta"), TrainingConfig(steps=1, weight_averaging=0.9, clip_value=1.0)
    )
    # torch's fused optimizers do not run on meta.
    monkeypatch.setattr(engine.optimizer, "_step_supports_amp_scaling", True, raising=False)
    monkeypatch.setattr(engine.optimizer, "step", lambda: None)
    buffers = engine._new_buffers(ROWS, STEPS)
    seed = torch.zeros((), dtype=torch.int64, device="meta")
    with dropout.seeds_from(lambda: seed), Devices() as devices:
        engine._backward(buffers, make_batch(0, gradient_scale=scale))
        engine._update(buffers)
    assert devices.on_host == set()


@pytest.mark.parametrize("cell", CELL_TRAITS)
@pytest.mark.parametrize("residual", [False, True])
def test_graph_engine_every_cell_equals_autograd(cell, residual):
    options = {"residual": residual, "output_dropout": 0.2, "backend": "bptt"}
    if cell not in ("rnn", "gru", "lstm") and CELL_TRAITS[cell].reads_state:
        options["backend"] = "reference"
    config = TrainingConfig(steps=1, weight_averaging=0.9)
    engine = RecordedEngine(make_model(cell, **options), config)
    reference = AutogradEngine(make_model(cell, **options | {"backend": "reference"}), config)
    assert_equal_training(engine, reference, [make_batch(n) for n in range(5)])
    assert (engine.num_recorded, engine.num_replayed) == (1, 4)


@pytest.mark.parametrize("cell", READS_STATE)
def test_graph_engine_zoneout_equals_autograd(cell):
    options = {"zoneout": 0.2, "backend": "reference"}
    config = TrainingConfig(steps=1)
    engine = RecordedEngine(make_model(cell, **options), config)
    reference = AutogradEngine(make_model(cell, **options), config)
    assert_equal_training(engine, reference, [make_batch(n) for n in range(4)])
    assert engine.num_replayed == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("max_bytes", [0, 2**20])
def test_graph_engine_text_on_device_or_host_gives_same_steps(dtype, max_bytes):
    text, config = TEXT.astype(dtype), TrainingConfig(steps=1)
    engine = RecordedEngine(make_model(backend="bptt"), config)
    engine._recorder.text_limit = max_bytes
    reference = AutogradEngine(make_model(backend="bptt"), config)
    assert_equal_training(engine, reference, [make_batch(n, text) for n in range(5)])
    assert engine.num_replayed == 4
    (program,) = engine._programs.values()
    assert (program.text is None) == (max_bytes == 0)


def test_graph_engine_two_texts_are_not_confused():
    other, config = TEXT[::-1].copy(), TrainingConfig(steps=1)
    batches = [make_batch(n, (TEXT, other)[n % 2]) for n in range(8)]
    engine = RecordedEngine(make_model(backend="bptt"), config)
    assert_equal_training(engine, AutogradEngine(make_model(backend="bptt"), config), batches)
    assert engine.num_recorded == 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_graph_engine_state_loaded_between_replays_equals_autograd(optimizer):
    """A rollback loads an earlier state into an engine that has recorded graphs."""
    config = TrainingConfig(steps=1, optimizer=optimizer, momentum=0.9 * (optimizer == "sgd"))
    found = []
    for kind in (RecordedEngine, AutogradEngine):
        engine = kind(make_model(backend="bptt"), config)
        _, saved = train(engine, [make_batch(n) for n in range(3)])
        train(engine, [make_batch(n) for n in range(3, 6)])
        engine.load_state_dict(saved, 3)
        found.append(train(engine, [make_batch(n) for n in range(6, 10)]))
    for result, wanted in zip(found[0][0], found[1][0], strict=True):
        assert result.nats == pytest.approx(wanted.nats, rel=1e-5)
    for name, tensor in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_graph_engine_step_that_reads_on_the_host_runs_without_graph(monkeypatch, caplog):
    original = RecurrentLM.logits

    def logits(self, hidden):
        assert bool((hidden == hidden).any())
        return original(self, hidden)

    monkeypatch.setattr(RecurrentLM, "logits", logits)
    monkeypatch.setattr(RecurrentLM, "loss", loss_of_logits)
    config, options = TrainingConfig(steps=1), {"output_dropout": 0.2, "backend": "bptt"}
    engine = RecordedEngine(make_model(**options), config)
    reference = AutogradEngine(make_model(**options), config)
    with caplog.at_level(logging.INFO, "recurra"):
        assert_equal_training(engine, reference, [make_batch(n) for n in range(5)])
    assert (engine.num_recorded, engine.num_replayed) == (0, 0)
    assert "without a graph: the host reads a tensor" in caplog.text


def loss_of_logits(self, ids, targets, state=None, **options):
    hidden, state = self.hidden(ids, state, **options)
    logits = self.logits(hidden).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, targets.t().flatten()), state


def test_graph_engine_more_shapes_than_graphs_equals_autograd(monkeypatch):
    monkeypatch.setattr(graph, "MAX_GRAPHS", 2)
    config = TrainingConfig(steps=1)
    batches = [Batch(TEXT, np.arange(2) * 20, 3 + n % 4, n == 0) for n in range(12)]
    engine = RecordedEngine(make_model(backend="bptt"), config)
    assert_equal_training(engine, AutogradEngine(make_model(backend="bptt"), config), batches)
    assert engine.num_recorded == 2


def test_graph_engine_failed_pending_step_names_its_gradient():
    engine = RecordedEngine(make_model(backend="bptt"), TrainingConfig(steps=1))
    train(engine, [make_batch(n) for n in range(3)])
    engine.step(make_batch(3), 0.01)
    bias = engine.model.bias_ih_l0.data
    before, bias[0] = float(bias[0]), math.nan
    engine.step(make_batch(4), 0.01)
    bias[0] = before
    engine.step(make_batch(5), 0.01)
    good, bad, later = engine.synchronize()
    assert (good.failure, later.failure) == (None, None)
    assert bad.failure == "the loss is nan"
    assert engine.num_updates == 5


@pytest.mark.parametrize(("seconds", "expected"), [(1e-4, 32), (0.05, 4), (0.3, 1), (9.0, 1)])
def test_graph_engine_pending_steps_are_limited_by_their_duration(seconds, expected):
    engine = RecordedEngine(make_model(backend="bptt"), TrainingConfig(steps=1))
    engine.capacity, engine.pending_seconds = 32, 0.2
    engine._limit_pending(seconds)
    assert engine.max_pending == expected


def test_graph_engine_infinite_gradient_is_attributed_to_its_parameter():
    engine = RecordedEngine(make_model(backend="bptt"), TrainingConfig(steps=1))
    train(engine, [make_batch(n) for n in range(2)])
    row = [1.0, math.inf, 1.0, 0.0, *([2.0] * 6)]
    row[graph._NORMS + 2] = math.inf
    names = [name for name, _ in engine.model.named_parameters()]
    engine.model.zero_grad()
    failure = engine._result(row, make_batch(0)).failure
    assert failure == f"the norm of the gradient of {names[2]} is not finite"


def test_cuda_graph_engine_model_on_cpu_is_unsupported():
    reason = CudaGraphEngine.unsupported(make_model(), TrainingConfig(), SINGLE_PROCESS)
    assert reason == "CUDA graphs need a CUDA device, not cpu"


def test_graph_engine_optimizer_that_reads_on_the_host_is_unsupported(monkeypatch):
    from recurra.config import optimizers

    class Plain(torch.optim.SGD):
        """A registered optimizer without support for tensors of the device."""

    row = optimizers.OptimizerSpec(Plain)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "plain", row)
    reason = RecordedEngine.unsupported(
        make_model(backend="bptt"), TrainingConfig(optimizer="plain"), SINGLE_PROCESS
    )
    assert reason == "the optimizer plain reads its state on the host"


@pytest.mark.parametrize("kind", [AutogradEngine, RecordedEngine])
def test_engine_fp16_trains_like_fp32(kind):
    config = TrainingConfig(steps=1, weight_averaging=0.9)
    batches = [make_batch(n) for n in range(12)]
    engine = kind(make_model(backend="bptt", precision="fp16"), config)
    found, tensors = train(engine, batches)
    expected, _ = train(AutogradEngine(make_model(backend="bptt"), config), batches)
    for result, wanted in zip(found, expected, strict=True):
        assert (result.failure, result.skipped) == (None, False)
        assert result.nats == pytest.approx(wanted.nats, rel=2e-3)
        assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=2e-2)
    assert tensors["loss_scale"].tolist() == [2.0**16, 12.0]


@pytest.mark.parametrize("kind", [AutogradEngine, RecordedEngine])
def test_engine_overflow_of_scaled_gradients_skips_the_step(kind):
    config = TrainingConfig(steps=1, weight_averaging=0.9)
    engine = kind(make_model(backend="bptt", precision="fp16"), config)
    train(engine, [make_batch(n) for n in range(3)])
    engine._loss_scale.values[0] = 2.0**40
    before = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    engine.step(make_batch(3), 0.02)
    (result,) = engine.synchronize()
    assert (result.failure, result.skipped) == (None, True)
    assert engine.num_updates == 3
    after = engine.state_dict()
    assert after.pop("loss_scale").tolist() == [2.0**24, 0.0]
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    # The scale is halved until the gradients are finite.
    results, _ = train(engine, [make_batch(n) for n in range(4, 20)])
    assert [result.failure for result in results] == [None] * 16
    assert results[0].skipped
    assert not results[-1].skipped
    assert engine.num_updates == 3 + sum(not result.skipped for result in results)


def test_loss_scale_grows_after_many_steps_and_has_limits():
    scale = LossScale(2.0**23, torch.device("cpu"))
    no, yes = torch.tensor(False), torch.tensor(True)
    for _ in range(loss_scaling.GROWTH_INTERVAL):
        scale.update(no)
    assert scale.values.tolist() == [2.0**24, 0.0]
    for _ in range(loss_scaling.GROWTH_INTERVAL):
        scale.update(no)
    assert scale.values.tolist() == [2.0**24, 0.0]
    for _ in range(30):
        scale.update(yes)
    assert scale.values.tolist() == [1.0, 0.0]
    # At the minimum, another gradient that is not finite is a failure.
    finite, infinite = torch.tensor(1.0), torch.tensor(math.inf)
    assert not scale.overflowed(finite, infinite)
