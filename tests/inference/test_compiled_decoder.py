"""CompiledDecoder generates the tokens of PlainDecoder for the same seed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from recurra.config import ModelConfig
from recurra.engine import compiled_decoder
from recurra.engine.sampling import Sampler
from recurra.errors import NonFiniteError
from recurra.inference.generate import GenerationConfig, generate_ids
from recurra.kernels import library
from recurra.model import RecurrentLM

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "plain": {},
    "cold": {"temperature": 0.3},
    "top k": {"top_k": 5},
    "top p": {"top_p": 0.8},
    "min p": {"min_p": 0.1},
    "all": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.4},
    "greedy with penalty": {"temperature": 0.0, "repetition_penalty": 1.2},
}
MODELS: dict[str, dict[str, Any]] = {
    "one-hot": {"embedding_size": 0},
    "odd": {"embedding_size": 5, "hidden_size": 13},
    "layers": {"embedding_size": 6, "num_layers": 3},
    "tied": {"embedding_size": 40, "tie_weights": True, "hidden_size": 40, "num_layers": 2},
}


def make(backend: str, **options: Any) -> RecurrentLM:
    torch.manual_seed(3)
    sizes = {"vocab_size": 23, "hidden_size": 40} | options
    model = RecurrentLM(ModelConfig(backend=backend, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            # Small weights let rounding errors decay; a larger head keeps predictions distinct.
            parameter.uniform_(-0.25, 0.25)
        model.output_weight.mul_(4)
    return model.eval()


def generated(model: RecurrentLM, prompt: list[int], banned: list[int], **options: Any) -> Any:
    config = GenerationConfig(**{"max_new_tokens": 120, "seed": 5} | options)
    return np.stack(list(generate_ids(model, prompt, config, banned))).tolist()


def assert_same(options: dict[str, Any], settings: dict[str, Any], prompt: list[int]) -> None:
    results = [
        generated(make(backend, **options), prompt, [2], **settings)
        for backend in ("reference", "native")
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_compiled_decoder_every_setting_equals_plain(settings: dict[str, Any]) -> None:
    assert_same({"cell": "lstm"}, settings | {"num_samples": 3}, [1, 7, 4])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("samples", [1, 2, 19])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("cell", ["rnn", "rnn-relu", "gru", "lstm"])
def test_compiled_decoder_every_model_equals_plain(
    monkeypatch: pytest.MonkeyPatch, cell: str, options: dict[str, Any], samples: int, threads: int
) -> None:
    monkeypatch.setattr(compiled_decoder, "MIN_VALUES_PER_THREAD", 1)
    torch.set_num_threads(threads)
    assert_same({"cell": cell} | options, {"num_samples": samples, "top_p": 0.9}, [])


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.3}, {"top_p": 0.95}, {"top_p": 0.9, "top_k": 300}]
)
def test_compiled_decoder_large_vocabulary_equals_plain(settings: dict[str, Any]) -> None:
    assert_same({"cell": "gru", "embedding_size": 8, "vocab_size": 4099}, settings, [4])


def test_compiled_decoder_unfolded_embedding_equals_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_decoder, "MAX_FOLDED_VOCAB", 22)
    for width in (5, 16):
        assert_same({"cell": "gru", "embedding_size": width}, {"num_samples": 3}, [4])


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_compiled_decoder_bf16_equals_plain(options: dict[str, Any]) -> None:
    # Sums in another order may round a state differently, and then the later tokens differ.
    results = [
        generated(make(backend, cell="lstm", precision="bf16", **options), [1, 2], [], greedy=True)
        for backend in ("reference", "native")
    ]
    assert results[0][:20] == results[1][:20]


def test_compiled_decoder_repacks_weights_after_update() -> None:
    model = make("native", cell="gru")
    config = GenerationConfig(max_new_tokens=60, greedy=True)
    plain = list(itertools.chain(*generate_ids(model, [1], config)))
    tokens = generate_ids(model, [1], config)
    changed = list(itertools.chain(*itertools.islice(tokens, 12)))
    with torch.no_grad():
        model.head_bias[7] += 1e6
    changed += list(itertools.chain(*tokens))
    assert changed[:12] == plain[:12]
    assert changed[-1] == 7


def test_compiled_decoder_yields_tokens_before_nan_then_raises() -> None:
    model = make("native", cell="rnn", embedding_size=0)
    config = GenerationConfig(max_new_tokens=60, seed=0)
    plain = [int(token[0]) for token in generate_ids(model, [1], config)]
    victim = next(token for token in plain[5:] if token not in plain[:5])
    with torch.no_grad():
        model.weight_ih_l0[:, victim] = math.nan
    tokens = generate_ids(model, [1], config)
    position = plain.index(victim)
    assert [int(next(tokens)[0]) for _ in range(position + 1)] == plain[: position + 1]
    with pytest.raises(NonFiniteError, match="NaN"):
        next(tokens)


def test_compiled_decoder_nan_in_one_sample_stops_all_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_decoder, "MIN_VALUES_PER_THREAD", 1)
    torch.set_num_threads(4)  # two groups of two threads, each with four or five samples
    model = make("native", cell="lstm", embedding_size=0)
    config = GenerationConfig(max_new_tokens=200, num_samples=9, seed=5)
    plain = np.stack(list(generate_ids(model, [1], config)))
    for victim in set(plain[:-1].flat) - {1}:
        with torch.no_grad():
            kept = model.weight_ih_l0[:, victim].clone()
            model.weight_ih_l0[:, victim] = math.nan
        tokens: list[Any] = []
        with pytest.raises(NonFiniteError, match="NaN"):
            tokens.extend(generate_ids(model, [1], config))
        assert np.array_equal(tokens, plain[: len(tokens)])
        with torch.no_grad():
            model.weight_ih_l0[:, victim] = kept


def test_compiled_decoder_nan_in_one_sample_leaves_states_of_valid_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_decoder, "MIN_VALUES_PER_THREAD", 1)
    torch.set_num_threads(2)  # two groups of one thread: only one of them reads the NaN
    model = make("native", cell="lstm", embedding_size=8)
    config = GenerationConfig(num_samples=16, seed=0, repetition_penalty=1.2)
    with torch.no_grad():
        model.embedding[5] = math.nan
    decoder = compiled_decoder.CompiledDecoder(model, 16)
    sampler = Sampler(config, model.config.vocab_size, ())
    chosen = sampler.choose(decoder.prefill(np.array([1, 2])))
    block = decoder.decode(chosen, 50, sampler)
    assert 0 < len(block) < 50
    read = [np.full(16, 1), np.full(16, 2), chosen, *block[:-1]]
    _, expected = model(torch.from_numpy(np.stack(read, 1)), model.zero_state(16))
    for got, want in zip(decoder.state, expected, strict=True):
        torch.testing.assert_close(got, want.detach())
    assert sampler.seen is not None
    seen = np.zeros_like(sampler.seen)
    for tokens in (chosen, *block):
        seen[np.arange(16), tokens] = 1
    assert np.array_equal(sampler.seen, seen)
