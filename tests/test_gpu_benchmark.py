"""benchmarks/gpu.py: the steps of torch.nn, without and with a graph, and the whole program."""

import contextlib
import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from recurra.errors import ConfigError
from support.recorded import Recording

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def torch_steps(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("torch_steps")


@pytest.fixture
def setup(torch_steps):
    def make(cell="lstm", precision="fp32", way="plain", optimizer="adam"):
        return torch_steps.Setup(cell, 8, 5, optimizer, precision, CPU, way)

    return make


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(pair[0], pair[1]) for pair in torch.randint(5, (3, 2, 4, 6))]


class RecordedCudaGraph:
    """Replaces torch.cuda.CUDAGraph on a CPU."""

    def __init__(self):
        self.recording = Recording()

    def replay(self):
        self.recording.poison()
        self.recording.repeat()


@contextlib.contextmanager
def recorded(graph):
    with graph.recording:
        yield
    graph.recording.undo()


class Stream:
    """Replaces torch.cuda.Stream on a CPU."""

    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedCudaGraph)
    monkeypatch.setattr(torch.cuda, "graph", recorded)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())


PRECISIONS = (("fp32", "plain"), ("tf32", "plain"), ("bf16", "copy"), ("bf16", "autocast"))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(("precision", "way"), PRECISIONS)
def test_torch_graph_replays_equal_plain_steps(
    torch_steps, setup, batches, graphs_on_cpu, cell, precision, way
):
    graph = torch_steps.TorchGraph(setup(cell, precision, way, "sgd"), batches)
    plain = torch_steps.TorchSteps(setup(cell, precision, way, "sgd"), batches)
    # The graph was warmed up on a batch of zeros.
    for _ in range(torch_steps.WARM_UP_STEPS):
        with torch_steps.fp32_products(precision):
            plain._compute()
    graph.run(4)
    plain.run(4)
    for ours, expected in zip(graph._weights, plain._weights, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@torch.no_grad()
def distance(weights, others):
    return sum(float((a - b).norm()) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_torch_steps_low_precision_stays_close_to_fp32(torch_steps, setup, batches, optimizer):
    fp32 = torch_steps.TorchSteps(setup(optimizer=optimizer), batches)
    before = [weight.detach().clone() for weight in fp32._weights]
    fp32.run(5)
    moved = distance(fp32._weights, before)
    for precision, way in (("bf16", "copy"), ("bf16", "autocast"), ("fp16", "copy")):
        low = torch_steps.TorchSteps(setup("lstm", precision, way, optimizer), batches)
        low.run(5)
        assert all(weight.dtype == torch.float32 for weight in low._weights)
        assert distance(low._weights, fp32._weights) < 0.15 * moved


def test_fp32_products_restores_the_settings(torch_steps):
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
    before = [setting.fp32_precision for setting in settings]
    for name, expected in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        with torch_steps.fp32_products(name):
            assert [setting.fp32_precision for setting in settings] == [expected] * 2
    assert [setting.fp32_precision for setting in settings] == before


@pytest.fixture
def gpu_benchmark(torch_steps, monkeypatch, capsys):
    """Return a function that runs the program with its arguments and returns status and output."""
    program = importlib.import_module("gpu")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        try:
            status = program.main()
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


def test_gpu_benchmark_on_the_cpu_writes_table_and_json(gpu_benchmark, tmp_path):
    file = tmp_path / "results.json"
    status, out, err = gpu_benchmark(
        "--device", "cpu", "--rows", "rnn", "256", "--precisions", "fp32", "bf16", "--rounds", "2",
        "--inference-tokens", "1", "--json", str(file),
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "| rnn 256, 32 x 35 | fp32 |" in out
    assert "| generation, 256 samples |" in out
    results = json.loads(file.read_text("utf-8"))
    assert results["machine"]["device"] == "cpu"
    (row,) = results["rows"]
    for precision, column in itertools.product(("fp32", "bf16"), ("recurra", "torch")):
        figure = row["steps"][precision][column]
        assert len(figure["all"]) == 2
        assert figure["milliseconds"] > 0
    assert "graph" not in row["steps"]["fp32"]
    assert row["steps"]["fp32"]["torch"]["how"] == "plain"
    assert len(results["inference"]) == 3


def test_gpu_benchmark_unsupported_precision_has_a_reason(gpu_benchmark, monkeypatch):
    program = importlib.import_module("gpu")

    def refuse(row, precision, device):
        raise ConfigError(f"{precision} needs a GPU")

    monkeypatch.setattr(program, "our_steps", refuse)
    monkeypatch.setattr(program, "ROUND_SECONDS", 0.0)
    status, out, _ = gpu_benchmark(
        "--device", "cpu", "--rows", "rnn", "256", "--precisions", "fp32", "--rounds", "1",
        "--inference-tokens", "0",
    )  # fmt: skip
    assert status == 0
    assert "| rnn 256, 32 x 35 | fp32 | – |" in out
    assert "rnn 256, 32 x 35: fp32 recurra was not measured: fp32 needs a GPU" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:99"], "'cuda:99' is not available"),
        (["--device", "cpu", "--rows", "transformer"], "no row contains 'transformer'"),
    ],
)
def test_gpu_benchmark_wrong_arguments_are_an_error(gpu_benchmark, arguments, message):
    status, out, err = gpu_benchmark(*arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_gpu_benchmark_time_limit_leaves_rows_out(gpu_benchmark, tmp_path):
    file = tmp_path / "results.json"
    status, out, _ = gpu_benchmark("--device", "cpu", "--seconds", "0", "--json", str(file))
    assert status == 0
    assert "Left out after 0 s: rnn 512, 32 x 35; rnn 256, 32 x 35;" in out
    assert json.loads(file.read_text("utf-8"))["rows"] == []
