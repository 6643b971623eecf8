"""Measure the linear scan, forward and backward, by every backend that the device has.

    python benchmarks/scan.py [--device cuda] [--rounds 7] [--sizes 64x16384 ...] [--json FILE]

Prints a Markdown table with the median milliseconds of each size (time steps x columns, in fp32)
and the bandwidth, for 8 numbers per step and column. On a GPU, every computation is recorded in a
CUDA graph, and Triton's kernels are measured with the number of chunks that `auto` chooses and with
others, which tests the rule of `triton_scan.chunk_length`. All results are compared with those of
the loop in torch. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from recurra.kernels import library
from recurra.recurrence.backends import triton_scan
from recurra.recurrence.backends.linear_scan import linear_scan

SIZES = ("35x8192", "64x16384", "128x131072", "512x4096", "2048x1024", "4096x512", "16384x256")
CHUNKS = (1, 4, 8, 16, 32, 64)
NUMBERS = 8
"""Numbers that a scan reads and writes per step and column, in both passes together."""


def gradients(leaves: list[Tensor], backend: str) -> list[Tensor]:
    """Return the states and the gradients of a, b and the initial state."""
    outputs = linear_scan(*leaves, backend)
    return [outputs, *torch.autograd.grad(outputs, leaves, leaves[1].detach())]


def recorded(compute: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """Return a function that replays the computation as a CUDA graph, and its result tensors."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = compute()
    return graph.replay, results


def median_ms(compute: Callable[[], Any], device: str, rounds: int) -> float:
    """Return the median time of a call in milliseconds; a round takes about 20 ms."""

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            compute()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / calls

    calls = max(1, int(20.0 / max(timed(1), timed(1), 1e-3)))
    return statistics.median(timed(calls) for _ in range(rounds))


def variants(steps: int, columns: int, device: str) -> Iterator[tuple[str, str, int | None]]:
    """Yield the name, the backend and the steps of a chunk of each computation; the loop first."""
    yield "loop", "bptt", None
    if device == "cpu" and library.is_available():
        yield "native", "native", None
    if device != "cuda":
        return
    reason = triton_scan.unavailable(torch.device("cuda", torch.cuda.current_device()))
    if reason is not None:
        raise SystemExit(reason)
    count = torch.cuda.get_device_properties(0).multi_processor_count
    automatic = triton_scan.chunk_length(steps, columns, count)
    yield f"triton, auto: {-(-steps // automatic)}", "triton", automatic
    for chunks in CHUNKS:
        if steps // chunks >= 16:
            yield f"triton, chunks: {chunks}", "triton", -(-steps // chunks)


def measure(size: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """Return a record for each computation of one size."""
    steps, columns = map(int, size.split("x"))
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "generator": generator}
    leaves = [torch.rand(steps, columns, **options), torch.randn(steps, columns, **options)]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, torch.randn(columns, **options))]
    expected, records = gradients(leaves, "bptt"), []
    for name, backend, length in variants(steps, columns, device):
        with mock.patch.object(triton_scan, "chunk_length", lambda *_, length=length: length):
            call, found = lambda backend=backend: gradients(leaves, backend), None
            if device == "cuda":
                call, found = recorded(call)
            milliseconds = median_ms(call, device, rounds)
            for one, other in zip(found or call(), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        gigabytes = 4e-9 * NUMBERS * steps * columns / (1e-3 * milliseconds)
        records.append({"size": size, "computed by": name, "ms": milliseconds, "GB/s": gigabytes})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="TxC")
    parser.add_argument("--json", type=Path, help="file for the records")
    arguments = parser.parse_args()
    records = []
    print("| size | computed by | ms | GB/s |\n|---|---|---|---|")
    for size in arguments.sizes:
        for record in measure(size, arguments.device, arguments.rounds):
            print("| {size} | {computed by} | {ms:.4f} | {GB/s:.1f} |".format(**record), flush=True)
            records.append(record)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
