"""Sampling of the next token, compared with an independent implementation on Python lists."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.engine.sampling import GenerationConfig, Sampler, draw, penalize, softmax, warp
from recurra.errors import ConfigError, NonFiniteError

INFINITY = float("inf")


def softmax_by_hand(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [p / sum(powers) for p in powers]


def probabilities_by_hand(
    logits: list[float],
    seen: set[int],
    penalty: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> list[float]:
    """Return the probabilities of one row; filters are applied in the order of Hugging Face."""
    row = [
        (x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(logits)
    ]
    row = [x / temperature for x in row]
    if top_k is not None:
        kth = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
        row = [x if x >= kth else -INFINITY for x in row]
    if top_p is not None:
        p = softmax_by_hand(row)
        # Hugging Face's form: from the rarest up, drop while the dropped mass stays <= 1 - top_p.
        rarest_first = sorted(range(len(row)), key=lambda i: (p[i], -i))
        mass = 0.0
        for i in rarest_first[:-1]:
            mass += p[i]
            if mass <= 1 - top_p:
                row[i] = -INFINITY
    if min_p is not None:
        p = softmax_by_hand(row)
        row = [x if q >= min_p * max(p) else -INFINITY for x, q in zip(row, p, strict=True)]
    return softmax_by_hand(row)


# These numbers keep sums of probabilities away from the thresholds, where rounding decides.
@pytest.mark.parametrize("penalty", [1.0, 1.37, 0.8])
@pytest.mark.parametrize("temperature", [0.61, 1.0, 2.3])
def test_warp_equals_plain_python(penalty: float, temperature: float) -> None:
    rows = np.random.default_rng(3).normal(0, 2, (3, 11))
    seen = np.random.default_rng(4).random((3, 11)) < 0.4
    penalized = penalize(rows, seen, penalty)
    choices = product([None, 1, 4, 50], [None, 0.1234, 0.777, 1.0], [None, 0.0, 0.11, 1.0])
    for top_k, top_p, min_p in choices:
        config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        got = softmax(warp(penalized, config))
        for row in range(3):
            ids = set(np.flatnonzero(seen[row]).tolist())
            expected = probabilities_by_hand(
                rows[row].tolist(), ids, penalty, temperature, top_k, top_p, min_p
            )
            assert [p == 0 for p in expected] == (got[row] == 0).tolist(), config
            assert got[row] == pytest.approx(expected, abs=1e-12), config


def test_warp_top_k_keeps_ties() -> None:
    got = warp(np.array([[1.0, 3.0, 1.0, 0.0]]), GenerationConfig(top_k=2))
    assert np.isfinite(got).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("top_p", [1e-9, 0.5])
def test_warp_top_p_keeps_at_least_one_token(top_p: float) -> None:
    got = warp(np.array([[0.0, 5.0, 1.0], [0.0, 0.0, 0.0]]), GenerationConfig(top_p=top_p))
    assert np.isfinite(got[0]).tolist() == [False, True, False]
    assert np.isfinite(got[1]).tolist() == [True, top_p > 1 / 3, False]


def test_warp_top_p_reached_exactly_excludes_the_rest() -> None:
    got = warp(np.array([[0.0, 0.0]]), GenerationConfig(top_p=0.5))
    assert got.tolist() == [[0.0, -INFINITY]]


def test_warp_tiny_temperature_is_greedy_and_finite() -> None:
    got = softmax(warp(np.array([[-1e4, 2.0, 1.0]]), GenerationConfig(temperature=1e-320)))
    assert got.tolist() == [[0.0, 1.0, 0.0]]


def test_draw_frequencies_equal_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.0625, 0.1875, 0.25]))
    uniforms = (np.arange(1600) + 0.5) / 1600
    drawn = draw(np.tile(logits, (1600, 1)), uniforms)
    assert np.bincount(drawn).tolist() == [800, 100, 300, 400]


@given(
    st.lists(st.one_of(st.floats(-30, 30), st.just(-INFINITY)), min_size=2, max_size=8).filter(
        lambda row: max(row) > -INFINITY
    ),
    st.one_of(st.floats(0, 1, exclude_max=True), st.just(float(np.nextafter(1.0, 0.0)))),
)
def test_draw_never_returns_zero_probability_token(row: list[float], uniform: float) -> None:
    logits = np.array([row])
    chosen = int(draw(logits, np.array([uniform]))[0])
    assert softmax(logits)[0, chosen] > 0


def test_sampler_penalty_counts_prompt_and_own_output() -> None:
    config = GenerationConfig(num_samples=2, repetition_penalty=2.0, greedy=True)
    sampler = Sampler(config, 4, prompt_ids=[3, 3])
    first = np.array([[1.0, 0.9, -1.0, 1.9], [0.0, 0.96, -1.0, 1.9]])
    assert sampler.choose(first.copy()).tolist() == [0, 1]  # 3 was in the prompt: 1.9 / 2
    # Sample 0 has seen 3 and 0, sample 1 has seen 3 and 1; a negative logit is multiplied.
    assert sampler.choose(np.array([[1.0, 0.9, 0.4, 0.0]] * 2)).tolist() == [1, 0]
    assert sampler.choose(np.array([[-1.0, -1.0, -1.9, -1.0]] * 2)).tolist() == [2, 2]


@pytest.mark.parametrize("options", [{"greedy": True}, {"temperature": 0.0}])
def test_sampler_greedy_tie_chooses_first_token(options: dict[str, Any]) -> None:
    sampler = Sampler(GenerationConfig(**options), 4)
    assert sampler.choose(np.array([[0.0, 2.0, 1.0, 2.0]])).tolist() == [1]


def test_sampler_banned_tokens_are_never_chosen() -> None:
    sampler = Sampler(GenerationConfig(seed=1), 3, banned_ids=[1])
    drawn = {int(sampler.choose(np.array([[0.0, 30.0, 0.0]]))[0]) for _ in range(50)}
    assert drawn == {0, 2}
    with pytest.raises(ConfigError, match="banned"):
        Sampler(GenerationConfig(), 1, banned_ids=[0])


@pytest.mark.parametrize("bad", [math.nan, INFINITY])
@pytest.mark.parametrize("greedy", [False, True])
def test_sampler_non_finite_logits_raise(bad: float, greedy: bool) -> None:
    with pytest.raises(NonFiniteError):
        Sampler(GenerationConfig(greedy=greedy), 3).choose(np.array([[0.0, bad, 1.0]]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", INFINITY),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("num_samples", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_generation_config_invalid_value_error_names_field(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        GenerationConfig(**{name: value})


def test_generation_config_stop_accepts_string_or_list() -> None:
    assert GenerationConfig(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="empty"):
        GenerationConfig(stop=("a", ""))


def test_generation_config_accepts_repetition_penalty_below_one():
    assert GenerationConfig(repetition_penalty=0.5).repetition_penalty == 0.5
    with pytest.raises(ConfigError, match="repetition_penalty"):
        GenerationConfig(repetition_penalty=0.0)
