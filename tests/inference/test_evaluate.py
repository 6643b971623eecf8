"""evaluate: every result is compared with a plain loop over single tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recurra.inference.reading as reading
from recurra.config import ModelConfig, TextConfig
from recurra.errors import ConfigError, NonFiniteError, SourceError, UnknownTokenError
from recurra.inference.document import encode_document
from recurra.inference.evaluate import Evaluation, evaluate, evaluate_document
from recurra.kernels import library
from recurra.model import RecurrentLM

MakeModel = Callable[..., RecurrentLM]


def random_ids(count: int, vocab_size: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, count)


@torch.no_grad()
def nats_by_hand(model: RecurrentLM, ids: np.ndarray, restarts: set[int]) -> float:
    """Return the total loss token by token; the state is reset before positions in `restarts`."""
    total, state = 0.0, model.zero_state(1)
    for position in range(len(ids) - 1):
        if position in restarts:
            state = model.zero_state(1)
        logits, state = model(torch.tensor([[int(ids[position])]]), state)
        total -= float(logits[0, 0].double().log_softmax(-1)[int(ids[position + 1])])
    return total


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "none"])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_evaluate_carried_state_equals_plain_loop(
    make_model: MakeModel, cell: str, chunk: int
) -> None:
    model, ids = make_model(9, cell, num_layers=2), random_ids(100)
    result = evaluate(model, ids, chunk=chunk)
    assert result.num_tokens == 99
    assert result.total_nats == pytest.approx(nats_by_hand(model, ids, set()), rel=1e-6)


@pytest.mark.parametrize("window", [1, 7, 11, 98, 99, 500])
@pytest.mark.parametrize("chunk", [3, 512])
def test_evaluate_windows_reset_state_and_count_all_targets(
    make_model: MakeModel, window: int, chunk: int
) -> None:
    model, ids = make_model(9), random_ids(100)
    result = evaluate(model, ids, window=window, chunk=chunk)
    expected = nats_by_hand(model, ids, set(range(0, 99, window)))
    assert result.num_tokens == 99
    assert result.total_nats == pytest.approx(expected, rel=1e-6)


def test_evaluate_windows_in_several_batches_equal_plain_loop(make_model: MakeModel) -> None:
    model, ids = make_model(9), random_ids(64 * 3 * 2 + 5)
    expected = nats_by_hand(model, ids, set(range(0, len(ids), 3)))
    assert evaluate(model, ids, window=3).total_nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_streams", [2, 4, 7, 99, 400])
def test_evaluate_streams_cover_every_target(make_model: MakeModel, num_streams: int) -> None:
    model, ids = make_model(9), random_ids(100)
    # np.array_split divides in the same way: longer parts first, by at most one element.
    restarts = {int(part[0]) for part in np.array_split(np.arange(99), min(num_streams, 99))}
    result = evaluate(model, ids, num_streams=num_streams, chunk=5)
    assert result.num_tokens == 99
    assert result.total_nats == pytest.approx(nats_by_hand(model, ids, restarts), rel=1e-6)


@pytest.mark.parametrize("vocab_size", [2, 28, 1027])
def test_evaluate_uniform_model_perplexity_is_vocab_size(
    make_model: MakeModel, vocab_size: int
) -> None:
    model = make_model(vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = evaluate(model, random_ids(50, vocab_size), num_chars=98, num_bytes=196)
    assert result.perplexity == pytest.approx(vocab_size, rel=1e-13)
    assert result.bits_per_token == pytest.approx(math.log2(vocab_size), rel=1e-13)
    assert result.bits_per_char == pytest.approx(math.log2(vocab_size) / 2, rel=1e-13)
    assert result.bits_per_byte == pytest.approx(math.log2(vocab_size) / 4, rel=1e-13)


def test_evaluate_logits_per_call_stay_below_limit(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = make_model(9), random_ids(300)
    expected = evaluate(model, ids, window=20).total_nats
    monkeypatch.setattr(reading, "LOGITS_PER_CALL", 9 * 64)
    sizes: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(output[0].numel()))
    assert evaluate(model, ids, window=20).total_nats == pytest.approx(expected, rel=1e-6)
    assert max(sizes) <= 9 * 64
    assert sum(sizes) == 299 * 9


@pytest.mark.parametrize("options", [{}, {"embedding_size": 12, "tie_weights": True}])
def test_evaluate_large_vocabulary_equals_plain_loop(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 4099, "hidden_size": 12, "embedding_size": 8} | options
    model, ids = RecurrentLM(ModelConfig(cell="gru", **sizes)), random_ids(90, 4099)
    by_hand = nats_by_hand(model, ids, set(range(0, 90, 20)))
    assert evaluate(model, ids, window=20).total_nats == pytest.approx(by_hand, rel=1e-6)
    with torch.no_grad():
        model.head_bias[-1] = math.nan
    with pytest.raises(NonFiniteError):
        evaluate(model, ids)


@pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")
def test_evaluate_large_vocabulary_computes_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RecurrentLM(ModelConfig(cell="gru", vocab_size=4099, hidden_size=12, embedding_size=8))
    monkeypatch.setattr(model, "logits", None)
    assert evaluate(model, random_ids(90, 4099)).num_tokens == 89


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64"])
def test_evaluate_accepts_memmap_and_tensor(
    make_model: MakeModel, tmp_path: Path, dtype: str
) -> None:
    model, ids = make_model(9), random_ids(70)
    ids.astype(dtype).tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
    expected = evaluate(model, ids.tolist()).total_nats
    assert evaluate(model, mapped, chunk=9).total_nats == pytest.approx(expected, rel=1e-6)
    assert evaluate(model, torch.from_numpy(ids)).total_nats == expected


def test_evaluate_on_device_equals_cpu(make_model: MakeModel, device: str) -> None:
    model, ids = make_model(9, "lstm"), random_ids(100)
    expected = nats_by_hand(model, ids, set())
    model.to(device)
    assert evaluate(model, ids).total_nats == pytest.approx(expected, rel=1e-5)
    on_device = torch.from_numpy(ids).to(device)
    assert evaluate(model, on_device).total_nats == pytest.approx(expected, rel=1e-5)


def test_evaluate_max_tokens_reads_start_and_scales_counts(make_model: MakeModel) -> None:
    model, ids = make_model(9), random_ids(101)
    result = evaluate(model, ids, max_tokens=40, num_chars=200, num_bytes=300)
    assert result.total_nats == evaluate(model, ids[:41]).total_nats
    assert (result.num_tokens, result.num_chars, result.num_bytes) == (40, 80, 120)
    assert evaluate(model, ids, max_tokens=1000).num_tokens == 100


def test_evaluate_restores_training_mode_without_dropout(make_model: MakeModel) -> None:
    model, ids = make_model(9, num_layers=2, dropout=0.5), random_ids(60)
    expected = evaluate(model, ids).total_nats
    model.train()
    frozen = torch.nn.Dropout().eval()
    model.add_module("frozen", frozen)
    assert evaluate(model, ids).total_nats == expected
    assert model.training
    assert not frozen.training
    assert torch.is_grad_enabled()


def test_evaluate_allows_later_backward(make_model: MakeModel) -> None:
    model, ids = make_model(9), torch.from_numpy(random_ids(33))[None]
    evaluate(model, ids[0])
    loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(evaluate(model, ids[0]).nats_per_token, rel=1e-6)
    assert all(p.grad is not None for p in model.parameters())


def test_evaluate_document_counts_chars_and_bytes(make_model: MakeModel, characters: Any) -> None:
    text = "naïve 水 x"
    vocabulary = characters(text)
    model = make_model(len(vocabulary))
    result = evaluate_document(model, encode_document(text, vocabulary, TextConfig()))
    assert (result.num_tokens, result.num_chars) == (8, 8)
    assert result.num_bytes == len(text.encode()) - 1
    assert result.bits_per_byte == pytest.approx(
        result.bits_per_char * 8 / (len(text.encode()) - 1)
    )


def test_evaluate_document_counts_char_at_its_last_byte(
    make_model: MakeModel, byte_vocabulary: Any
) -> None:
    model = make_model(256)
    result = evaluate_document(model, encode_document("éé", byte_vocabulary, TextConfig()))
    assert (result.num_tokens, result.num_bytes, result.num_chars) == (3, 3, 2)
    shorter = evaluate_document(
        model, encode_document("éé", byte_vocabulary, TextConfig()), max_tokens=2
    )
    assert (shorter.num_tokens, shorter.num_bytes, shorter.num_chars) == (2, 2, 1)


def test_evaluate_document_unknown_counted_or_rejected(
    make_model: MakeModel, characters: Any
) -> None:
    vocabulary = characters("abc ")
    model = make_model(len(vocabulary))
    result = evaluate_document(model, encode_document("?ab?c?", vocabulary, TextConfig()))
    assert (result.num_tokens, result.num_unknown) == (5, 2)
    with pytest.raises(UnknownTokenError) as caught:
        evaluate_document(model, encode_document("ab?c", vocabulary, TextConfig(), unknown="error"))
    assert (caught.value.symbol, caught.value.position) == ("?", 2)


@pytest.mark.parametrize("ids", [[], [3]])
def test_evaluate_too_few_ids_raises(make_model: MakeModel, ids: list[int]) -> None:
    with pytest.raises(SourceError, match=r"\b2\b"):
        evaluate(make_model(9), ids)


def test_evaluate_float_or_2d_ids_raise(make_model: MakeModel) -> None:
    with pytest.raises(SourceError, match="float64"):
        evaluate(make_model(9), np.array([0.5, 1.0]))
    with pytest.raises(SourceError, match=r"\(1, 2\)"):
        evaluate(make_model(9), np.array([[1, 2]]))


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"num_streams": 0}, {"chunk": 0}, {"max_tokens": 0}]
)
def test_evaluate_size_below_one_error_names_option(
    make_model: MakeModel, options: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(options))} .*\b1\b"):
        evaluate(make_model(9), [1, 2, 3], **options)


def test_evaluate_window_with_num_streams_raises(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="num_streams"):
        evaluate(make_model(9), [1, 2, 3], window=2, num_streams=2)


def test_evaluate_nan_weights_raise(make_model: MakeModel) -> None:
    model = make_model(9)
    with torch.no_grad():
        model.head_bias[3] = math.nan
    with pytest.raises(NonFiniteError):
        evaluate(model, [1, 2, 3])


def test_evaluation_to_dict_non_finite_values_are_none() -> None:
    result = Evaluation(total_nats=2000.0, num_tokens=2)
    assert result.perplexity == math.inf
    assert math.isnan(result.bits_per_char)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["nats_per_token"] == 1000.0
    assert values["perplexity"] is None
    assert values["bits_per_char"] is None
    assert values["num_unknown"] == 0
