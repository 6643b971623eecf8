"""recipe.choose for a GPU, with trials that simulate one: precision, batch size and model size."""

import pytest
import torch

from recurra.config import RunOptions
from recurra.training import recipe, recipe_rules, recipe_search, recipe_table
from recurra.training.sizing import flops_per_token
from recurra.training.trials import TrialError

GPU = torch.device("cuda")
TEXT = 1_003_854


class SimulatedGPU:
    """A trial of a GPU whose step has a fixed duration and a duration per token.

    Attributes:
        measured: the configurations that were measured, in order.
    """

    def __init__(self, fixed=5e-4, operations=4e13, ratios=None, max_rows=10**6):
        self.fixed, self.operations, self.max_rows = fixed, operations, max_rows
        self.ratios = ratios or {"fp32": 1.0}
        self.measured = []

    def __call__(self, config):
        self.measured.append(config)
        rows, precision = config.training.batch_size, config.model.precision
        if rows > self.max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if precision not in self.ratios:
            raise NotImplementedError(f"no {precision} on this device")
        tokens = rows * config.training.num_steps
        work = tokens * flops_per_token(config.model)
        return work / (self.fixed + work / (self.operations * self.ratios[precision]))

    @property
    def rows(self):
        return [config.training.batch_size for config in self.measured]


def choose(gpu, seconds=53.0, length=TEXT, **options):
    given = RunOptions.of(**options).with_vocab_size(65)
    return recipe.choose(given, length, GPU, gpu, seconds)


def test_recipe_gpu_chooses_fastest_precision():
    bf16 = choose(SimulatedGPU(fixed=1e-5, ratios={"fp32": 1.0, "bf16": 2.0}))
    assert bf16.config.model.precision == "bf16"
    assert "precision bf16 (fp32: 0." in bf16.reasons[1]
    as_fast = choose(SimulatedGPU(fixed=1e-5, ratios={"fp32": 1.0, "bf16": 1.02}))
    assert as_fast.config.model.precision == "fp32"
    given = SimulatedGPU(ratios={"fp32": 1.0, "bf16": 2.0})
    assert choose(given, precision="fp32").config.model.precision == "fp32"
    assert {config.model.precision for config in given.measured} == {"fp32"}


def test_recipe_gpu_unsupported_precision_uses_another():
    only = choose(SimulatedGPU(ratios={"fp32": 1.0}))
    assert only.config.model.precision == "fp32"
    assert choose(SimulatedGPU(ratios={"bf16": 1.0})).config.model.precision == "bf16"


def test_recipe_gpu_long_text_gets_larger_batch_than_short_one():
    launch_bound = {"fixed": 2e-3, "operations": 1e14}
    short = choose(SimulatedGPU(**launch_bound), seconds=200.0).config.training
    long = choose(SimulatedGPU(**launch_bound), seconds=200.0, length=10**8).config.training
    # The number of epochs limits training on the short text, so the batch with the most useful
    # tokens is a small one.
    assert 16 <= short.batch_size < long.batch_size


def test_recipe_gpu_with_constant_throughput_uses_batch_of_cpu():
    gpu = SimulatedGPU(fixed=0.0, operations=1e13)
    assert choose(gpu).config.training.batch_size == recipe_table.CPU_RECIPE.batch_sizes[0]


@pytest.mark.parametrize("fixed", [0.0, 2e-3])
@pytest.mark.parametrize("operations", [1e12, 1e14])
def test_recipe_gpu_trains_on_at_least_as_many_useful_tokens_as_batch_of_cpu(fixed, operations):
    gpu = SimulatedGPU(fixed, operations)
    found = choose(gpu).config
    alone = choose(SimulatedGPU(fixed, operations), batch_size=16).config

    def useful(config):
        done = 53.0 * gpu(config)
        updates = recipe_rules.num_updates(config, TEXT, done)
        few = min(1.0, updates / recipe_table.MIN_UPDATES)
        return few * recipe_rules.useful_tokens(config, TEXT, done)

    same_size = RunOptions.from_config(found).with_vocab_size(65).replaced(batch_size=16)
    assert useful(found) >= 0.999 * useful(same_size.config)
    assert found.model.hidden_size >= alone.model.hidden_size


def test_recipe_gpu_in_few_seconds_gets_smaller_batch():
    # A step of 64 rows takes 10 ms, and one of 16 rows half of that.
    device = {"fixed": 3.3e-3, "operations": 4096 * 6 * 1.2e6 / 6.7e-3}
    rows = [
        choose(SimulatedGPU(**device), seconds, 10**8, hidden_size=512).config.training.batch_size
        for seconds in (2.0, 200.0)
    ]
    assert rows[0] < rows[1]


def test_recipe_gpu_out_of_memory_gives_smaller_batch():
    roomy, small = SimulatedGPU(fixed=3e-3), SimulatedGPU(fixed=3e-3, max_rows=32)
    assert choose(roomy, length=10**8, seconds=500.0).config.training.batch_size > 32
    found = choose(small, length=10**8, seconds=500.0)
    assert found.config.training.batch_size == 32
    assert max(small.rows) == 64
    with pytest.raises(TrialError, match=r"^CUDA out of memory$"):
        choose(SimulatedGPU(max_rows=8))


def test_recipe_gpu_slow_gpu_gets_small_model():
    sizes = [
        choose(SimulatedGPU(operations=x)).config.model.hidden_size for x in (1e10, 1e12, 1e14)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 512 < sizes[-1]


def test_recipe_gpu_given_settings_are_not_searched(monkeypatch):
    gpu = SimulatedGPU()
    config = choose(gpu, batch_size=48, hidden_size=100, num_layers=2, precision="fp32").config
    assert (config.training.batch_size, config.model.hidden_size) == (48, 100)
    assert config.model.num_layers == 2
    assert len(gpu.measured) == 1


def test_recipe_gpu_short_text_limits_batch():
    config = choose(SimulatedGPU(fixed=1e-2), length=4000).config
    assert config.training.batch_size <= 4000 // (4 * 64)


def test_recipe_gpu_measures_for_a_tenth_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recipe_search.time, "perf_counter", lambda: now[0])
    gpu = SimulatedGPU(operations=1e11)

    def slow(config):
        now[0] += 7.0 if not gpu.measured else 1.5  # The first trial loads the libraries.
        return gpu(config)

    found = choose(slow, seconds=25.0)
    assert now[0] == 7.0 + 2 * 1.5
    # The size follows from the speed that was measured, although there was no time to try it.
    assert found.config.model.hidden_size < 512


def test_recipe_gpu_limits_dropout_of_light_models():
    light = choose(SimulatedGPU(), hidden_size=768).config.model
    assert (light.output_dropout, light.weight_dropout) == (0.45, 0.35)
    heavy = choose(SimulatedGPU(), length=50_000, hidden_size=768).config.model
    assert heavy.output_dropout > 0.55
    trial = SimulatedGPU(0.0, 4e13)
    given = RunOptions.of(hidden_size=768, precision="fp32").with_vocab_size(65)
    on_cpu = recipe.choose(given, TEXT, torch.device("cpu"), trial, 500.0).config.model
    assert on_cpu.output_dropout > 0.55


def test_recipe_learning_rate_increases_with_batch():
    rates = [
        choose(SimulatedGPU(), batch_size=rows, hidden_size=512).config.training.lr
        for rows in (4, 16, 64)
    ]
    assert rates[0] == rates[1] == pytest.approx(rates[2] / 2)


def test_recipe_usefulness_decreases_with_batch():
    def usefulness(**options):
        return recipe_rules.usefulness(RunOptions.of(num_steps=64, **options).config)

    worth = [usefulness(batch_size=rows) for rows in (4, 16, 32, 64, 128)]
    assert worth[:2] == [1.0, 1.0]
    assert worth == sorted(worth, reverse=True)
    assert usefulness(batch_size=128, bptt="full") == 1.0
