"""Tokens per second of generation and evaluation beside torch.nn, for benchmarks/gpu.py.

The model is an LSTM of 512 units with a vocabulary of 65 tokens, in fp32. torch.nn generates with
one call of nn.LSTM, nn.Linear and torch.multinomial per token, and transfers no token to the host.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from recurra.config import ModelConfig
from recurra.engine.sampling import GenerationConfig
from recurra.inference.evaluate import evaluate
from recurra.inference.generate import generate_ids
from recurra.model.recurrent_lm import RecurrentLM
from torch_steps import fp32_products

HIDDEN_SIZE, VOCAB_SIZE = 512, 65
MANY = 256
NUM_STREAMS, NUM_CHUNKS = 64, 2
TITLE = f"LSTM {HIDDEN_SIZE} in fp32, tokens per second"

Work = Callable[[], int]


def measure(device: torch.device, rounds: int, tokens: int = 256) -> list[dict[str, Any]]:
    """Return a record for generation of 1 and of `MANY` samples, and for evaluation.

    Args:
        device: the device.
        rounds: number of measurements of each.
        tokens: number of tokens of each generated sample. Evaluation reads `NUM_STREAMS` parts of
            a text, each four times as long, in two chunks.
    """
    torch.manual_seed(0)
    model = RecurrentLM(
        ModelConfig(cell="lstm", vocab_size=VOCAB_SIZE, hidden_size=HIDDEN_SIZE, embedding_size=0)
    )
    model = model.to(device).eval()
    layer = nn.LSTM(VOCAB_SIZE, HIDDEN_SIZE).to(device)
    head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE).to(device)
    works = {
        "generation, 1 sample": (
            _generation(model, 1, tokens),
            _torch_generation(layer, head, 1, tokens),
        ),
        f"generation, {MANY} samples": (
            _generation(model, MANY, tokens),
            _torch_generation(layer, head, MANY, tokens),
        ),
        f"evaluation, {NUM_STREAMS} parts of the text": (
            _evaluation(model, 2 * tokens),
            _torch_evaluation(layer, head, 2 * tokens),
        ),
    }
    records = []
    for name, pair in works.items():
        speeds: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 1):
            for work, measured in zip(pair, speeds, strict=True):
                measured.append(_speed(work, device))
        # The first round warms up.
        ours, theirs = (statistics.median(measured[1:]) for measured in speeds)
        records.append({"name": name, "recurra": ours, "torch": theirs})
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the records."""
    lines = ["| work | recurra | torch.nn | recurra / torch.nn |", "|---|---|---|---|"]
    for r in records:
        ratio = r["recurra"] / r["torch"]
        lines.append(f"| {r['name']} | {r['recurra']:,.0f} | {r['torch']:,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all operations that were launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _speed(work: Work, device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    count = work()
    wait_for(device)
    return count / (time.perf_counter() - started)


def _generation(model: RecurrentLM, samples: int, tokens: int) -> Work:
    config = GenerationConfig(max_new_tokens=tokens, num_samples=samples, seed=0)

    def work() -> int:
        return sum(len(ids) for ids in generate_ids(model, [0], config))

    return work


def _torch_generation(layer: nn.LSTM, head: nn.Linear, samples: int, tokens: int) -> Work:
    device = head.weight.device

    @torch.no_grad()
    def work() -> int:
        ids, state = torch.zeros(samples, dtype=torch.int64, device=device), None
        with fp32_products("fp32"):
            for _ in range(tokens):
                inputs = nn.functional.one_hot(ids, VOCAB_SIZE).float()
                outputs, state = layer(inputs[None], state)
                ids = torch.multinomial(head(outputs[0]).softmax(-1), 1)[:, 0]
        return samples * tokens

    return work


def _evaluation(model: RecurrentLM, chunk: int) -> Work:
    text = np.random.default_rng(0).integers(VOCAB_SIZE, size=NUM_STREAMS * chunk * NUM_CHUNKS + 1)

    def work() -> int:
        return evaluate(model, text, num_streams=NUM_STREAMS, chunk=chunk).num_tokens

    return work


def _torch_evaluation(layer: nn.LSTM, head: nn.Linear, chunk: int) -> Work:
    ids = torch.randint(VOCAB_SIZE, (NUM_CHUNKS, chunk, NUM_STREAMS)).to(head.weight.device)

    @torch.no_grad()
    def work() -> int:
        state, total = None, torch.zeros((), device=head.weight.device)
        with fp32_products("fp32"):
            for part in ids:
                outputs, state = layer(nn.functional.one_hot(part, VOCAB_SIZE).float(), state)
                losses = nn.functional.cross_entropy(head(outputs.flatten(0, 1)), part.flatten())
                total += losses * part.numel()
        float(total)
        return ids.numel()

    return work
