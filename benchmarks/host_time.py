"""Measure the time that the host needs for a training step with a graph, on any machine.

While the graph of a step runs on a GPU, the host prepares the next step: it reads the batch, copies
the inputs and launches the graph. If this takes longer than the graph, the GPU waits. Here the
graphs do nothing, so that only the work of the host is measured. On a GPU, the host also needs 10
to 20 us for a copy and a launch.

usage: python benchmarks/host_time.py [--steps N]
"""

import argparse
import statistics
import time
from contextlib import nullcontext

import numpy as np

from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import BatchStream
from recurra.engine.graph import GraphEngine
from recurra.engine.graph_recorder import Graph, GraphRecorder
from recurra.model import RecurrentLM
from recurra.runtime.devices import processor_name

SHAPES = [(32, 35), (64, 128), (512, 128)]
OPTIONS = {"without dropout": {}, "with dropout": {"output_dropout": 0.2, "weight_dropout": 0.2}}


class EmptyGraph(Graph):
    """A graph without operations."""

    def record(self, operations):
        """Record nothing."""

    def replay(self):
        """Do nothing."""


class EmptyRecorder(GraphRecorder):
    """Records empty graphs."""

    def new_graph(self):
        return EmptyGraph()

    def on_stream(self):
        return nullcontext()

    def max_text_bytes(self):
        return 2**30


class EmptyEngine(GraphEngine):
    """`GraphEngine` whose graphs are empty."""

    def _new_recorder(self):
        return EmptyRecorder()


def microseconds(shape, options, count):
    """Return the median time of a step in microseconds, from groups of 32 steps."""
    rows, steps = shape
    model = RecurrentLM(ModelConfig(hidden_size=8, vocab_size=65, backend="bptt", **options))
    config = TrainingConfig(steps=1, batch_size=rows, num_steps=steps)
    engine = EmptyEngine(model, config)
    text = np.random.default_rng(0).integers(65, size=4_000_000).astype(np.uint8)
    stream, times = BatchStream(text, config), []
    batches = (batch for epoch in range(10**6) for batch in stream.epoch(epoch))
    for _ in range(3):
        engine.step(next(batches), 0.1)
        engine.synchronize()
    for _ in range(max(count // engine.capacity, 1)):
        started = time.perf_counter()
        for _ in range(engine.capacity):
            engine.step(next(batches), 0.1)
        engine.synchronize()
        times.append((time.perf_counter() - started) / engine.capacity)
    return 1e6 * statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3200, help="number of steps of each row")
    count = parser.parse_args().steps
    print(processor_name())
    print("| tokens of a step | dropout | us a step |\n|---|---|---|")
    for shape in SHAPES:
        for name, options in OPTIONS.items():
            print(
                f"| {shape[0]} x {shape[1]} | {name} | {microseconds(shape, options, count):.1f} |"
            )


if __name__ == "__main__":
    main()
