"""generate and stream are compared with a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recurra.engine import decoder
from recurra.errors import ConfigError, NonFiniteError, UnknownTokenError
from recurra.inference.generate import GenerationConfig, generate, generate_ids, stream
from recurra.model import RecurrentLM
from recurra.text.vocabulary import Vocabulary

MakeModel = Callable[..., RecurrentLM]
LETTERS = "abcdefgh"


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 30, "seed": 5, **options})


@pytest.fixture
def vocabulary(characters: Any) -> Vocabulary:
    return characters(LETTERS)


@torch.no_grad()
def greedy_by_hand(model: RecurrentLM, prompt: list[int], count: int) -> list[int]:
    """Return greedy tokens; the model reads the whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0][0, -1] if ids else model.initial_logits()[0]
        logits[0] = -math.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "none"])
@pytest.mark.parametrize("prompt", [[], [3], [1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("chunk", [2, 1024])
def test_generate_ids_greedy_equals_plain_loop(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    cell: str,
    prompt: list[int],
    chunk: int,
) -> None:
    monkeypatch.setattr(decoder, "PROMPT_CHUNK", chunk)
    model = make_model(9, cell, num_layers=2)
    steps = generate_ids(model, prompt, config(greedy=True, num_samples=2), banned_ids=[0])
    got = np.stack(list(steps), axis=1)
    assert got.tolist() == [greedy_by_hand(model, prompt, 30)] * 2


def test_generate_ids_reads_prompt_once_then_one_step_each(make_model: MakeModel) -> None:
    model = make_model(9, backend="bptt")
    calls: list[tuple[int, ...]] = []
    states: list[tuple[int, ...]] = []
    plain = model.hidden

    def counted(ids: torch.Tensor, state: Any = None, **options: Any) -> Any:
        calls.append(tuple(ids.shape))
        states.append(tuple(part.untyped_storage().nbytes() for part in state))
        return plain(ids, state, **options)

    model.hidden = counted  # type: ignore[method-assign]
    list(generate_ids(model, [1, 2, 3, 4], config(num_samples=3)))
    assert calls == [(1, 4)] + [(3, 1)] * 29
    assert len(set(states[1:])) == 1  # the carried state does not grow


def test_generate_output_depends_on_seed(make_model: MakeModel, vocabulary: Vocabulary) -> None:
    model = make_model(9)
    first = generate(model, vocabulary, "abc", config(num_samples=3))
    assert generate(model, vocabulary, "abc", config(num_samples=3)) == first
    assert len(set(first)) == 3
    assert generate(model, vocabulary, "abc", config(num_samples=3, seed=6)) != first
    unseeded = config(seed=None)
    assert generate(model, vocabulary, "a", unseeded) != generate(model, vocabulary, "a", unseeded)


def test_generate_frequencies_follow_model(make_model: MakeModel, vocabulary: Vocabulary) -> None:
    model = make_model(9)
    many = config(num_samples=20_000, max_new_tokens=1)
    texts = generate(model, vocabulary, "bad", many)
    with torch.no_grad():
        logits = model(torch.from_numpy(vocabulary.encode("bad"))[None])[0][0, -1].double()
    logits[0] = -math.inf
    expected = logits.softmax(-1).numpy()
    for letter in LETTERS:
        p = float(expected[vocabulary.encode(letter)[0]])
        # Six standard deviations of the frequency in 20,000 samples.
        assert abs(texts.count(letter) / 20_000 - p) < 6 * math.sqrt(p * (1 - p) / 20_000) + 1e-4


def test_generate_finished_sample_does_not_change_others(
    make_model: MakeModel, vocabulary: Vocabulary
) -> None:
    model = make_model(9)
    whole = generate(model, vocabulary, "abc", config(num_samples=6, max_new_tokens=60))
    stop = whole[0][10:12]
    cut = generate(model, vocabulary, "abc", config(num_samples=6, max_new_tokens=60, stop=(stop,)))
    assert cut == [text.split(stop)[0] for text in whole]
    assert len(cut[0]) <= 10


def test_generate_ends_with_last_sample(make_model: MakeModel, vocabulary: Vocabulary) -> None:
    model = make_model(9)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    endless = config(num_samples=3, max_new_tokens=10**9, stop=tuple(LETTERS))
    assert generate(model, vocabulary, "a", endless) == ["", "", ""]
    assert calls == []  # the prompt's logits are enough for the first token


@pytest.mark.parametrize("stop", [(), ("fgha",), ("hab", "ef", "zz"), ("a", "habcd")])
@pytest.mark.parametrize("prompt", ["", "a", "gh"])
def test_stream_joined_pieces_equal_generate(
    make_periodic_model: MakeModel,
    make_model: MakeModel,
    vocabulary: Vocabulary,
    stop: tuple[str, ...],
    prompt: str,
) -> None:
    for model in (make_periodic_model(9), make_model(9)):
        pieces = list(stream(model, vocabulary, prompt, config(stop=stop)))
        assert all(pieces)
        assert ["".join(pieces)] == generate(model, vocabulary, prompt, config(stop=stop))


def test_stream_stop_string_across_tokens_is_excluded(
    make_periodic_model: MakeModel, vocabulary: Vocabulary
) -> None:
    # Id 0 follows id 8 ("h"). It is <unk>, which is banned, so the alphabet is generated once.
    model = make_periodic_model(9)
    pieces = stream(model, vocabulary, "a", config(stop=("efg", "cx")))
    assert list(pieces) == ["b", "cd"]  # "c" is held back until "d"; "ef" is never yielded
    assert generate(model, vocabulary, "a", config(stop=("fgx",), max_new_tokens=6)) == ["bcdefg"]


def test_generate_never_writes_unknown_token(
    make_periodic_model: MakeModel, vocabulary: Vocabulary
) -> None:
    model = make_periodic_model(9)
    assert greedy_first(model, vocabulary.encode("h")) == 0
    text = generate(model, vocabulary, "h", config(max_new_tokens=200, temperature=3.0))[0]
    assert len(text) == 200
    assert set(text) <= set(LETTERS)


@torch.no_grad()
def greedy_first(model: RecurrentLM, ids: np.ndarray) -> int:
    return int(model(torch.from_numpy(ids)[None])[0][0, -1].argmax())


def test_generate_unknown_in_prompt_raises_or_is_replaced(
    make_model: MakeModel, vocabulary: Vocabulary
) -> None:
    model = make_model(9)
    with pytest.raises(UnknownTokenError) as caught:
        stream(model, vocabulary, "ab?", config())  # on the call, before the first next()
    assert (caught.value.symbol, caught.value.position) == ("?", 2)
    text = generate(model, vocabulary, "ab?", config(greedy=True), unknown="replace")[0]
    expected = greedy_by_hand(model, [*vocabulary.encode("ab").tolist(), 0], 30)
    assert text == vocabulary.decode(expected)


def test_stream_multibyte_character_is_yielded_whole(
    make_periodic_model: MakeModel, byte_vocabulary: Vocabulary
) -> None:
    model = make_periodic_model(256)
    data = "é水a".encode()
    with torch.no_grad():
        model.head_weight.zero_()
        for byte, next_byte in zip(data, data[1:] + data[:1], strict=True):
            model.head_weight[next_byte, byte] = 40.0
    got = list(stream(model, byte_vocabulary, "a", config(max_new_tokens=8)))
    assert got == ["é", "水", "a", "é"]
    # An incomplete character at the end is dropped.
    assert generate(model, byte_vocabulary, "a", config(max_new_tokens=4)) == ["é"]
    assert generate(model, byte_vocabulary, "a", config(stop=("水",))) == ["é"]


def test_generate_ids_restores_model_when_abandoned(make_model: MakeModel) -> None:
    model = make_model(9, num_layers=2, dropout=0.5)
    expected = list(generate_ids(model, [1, 2], config()))
    model.train()
    tokens = generate_ids(model, [1, 2], config())
    got = []
    for chosen in tokens:
        # Training can continue between two tokens.
        assert model.training
        assert torch.is_grad_enabled()
        got.append(chosen)
        if len(got) == 5:
            break
    tokens.close()  # type: ignore[attr-defined]
    assert model.training
    assert torch.is_grad_enabled()
    assert got == expected[:5]


def test_generate_on_device_equals_cpu(
    make_model: MakeModel, vocabulary: Vocabulary, device: str
) -> None:
    model = make_model(9)
    expected = generate(model, vocabulary, "abc", config(num_samples=2))
    assert generate(model.to(device), vocabulary, "abc", config(num_samples=2)) == expected


def test_stream_two_streams_are_independent(make_model: MakeModel, vocabulary: Vocabulary) -> None:
    model = make_model(9)
    alone = [generate(model, vocabulary, prompt, config())[0] for prompt in "ab"]
    pairs = zip(*(stream(model, vocabulary, p, config()) for p in "ab"), strict=True)
    assert ["".join(pieces) for pieces in zip(*pairs, strict=True)] == alone


def test_stream_several_samples_raise(make_model: MakeModel, vocabulary: Vocabulary) -> None:
    with pytest.raises(ConfigError, match="num_samples"):
        stream(make_model(9), vocabulary, "a", config(num_samples=2))


@pytest.mark.parametrize("greedy", [False, True])
def test_generate_nan_weights_raise(
    make_model: MakeModel, vocabulary: Vocabulary, greedy: bool
) -> None:
    model = make_model(9)
    with torch.no_grad():
        model.head_bias[3] = math.nan
    with pytest.raises(NonFiniteError):
        generate(model, vocabulary, "a", config(greedy=greedy))
