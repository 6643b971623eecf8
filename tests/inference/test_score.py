"""score_document and Score: bits per character and per line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import TextConfig
from recurra.errors import ConfigError, NonFiniteError, SourceError, UnknownTokenError
from recurra.inference.document import encode_document
from recurra.inference.evaluate import evaluate_document
from recurra.inference.score import Score, score_document
from recurra.inference.spans import character_sizes, characters_completed, spread_over_characters
from recurra.model import RecurrentLM
from recurra.text.vocabulary import WordVocabulary

MakeModel = Callable[..., RecurrentLM]
TEXT = "one line\nanöther 水 line\n\nthe lâst"


@torch.no_grad()
def first_bits(model: RecurrentLM, token: int) -> float:
    return -float(model.initial_logits()[0].double().log_softmax(-1)[token]) / math.log(2)


@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_score_document_surprisal_equals_plain_loop(
    make_model: MakeModel, characters: Any, chunk: int
) -> None:
    vocabulary = characters(TEXT)
    model = make_model(len(vocabulary), "lstm")
    ids = vocabulary.encode(TEXT).tolist()
    expected = [first_bits(model, ids[0])]
    for position in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:position]]))[0][0, -1].double()
        expected.append(-float(logits.log_softmax(-1)[ids[position]]) / math.log(2))
    score = score_document(model, encode_document(TEXT, vocabulary, TextConfig()), chunk=chunk)
    assert score.surprisal == pytest.approx(expected, rel=1e-5)
    assert score.surprisal.dtype == np.float64
    assert score.total_bits == pytest.approx(sum(expected), rel=1e-6)


def test_score_document_total_equals_evaluation_plus_first(
    make_model: MakeModel, characters: Any, byte_vocabulary: Any
) -> None:
    for vocabulary in (characters(TEXT), byte_vocabulary, WordVocabulary.from_text(TEXT)):
        model = make_model(len(vocabulary))
        rest = evaluate_document(
            model, encode_document(TEXT, vocabulary, TextConfig())
        ).total_nats / math.log(2)
        first = first_bits(model, int(vocabulary.encode(TEXT)[0]))
        score = score_document(model, encode_document(TEXT, vocabulary, TextConfig()))
        assert len(score.surprisal) == len(TEXT)
        assert score.total_bits == pytest.approx(first + rest, rel=1e-9)


def test_score_document_sums_bytes_of_a_character(
    make_model: MakeModel, byte_vocabulary: Any
) -> None:
    model = make_model(256)
    score = score_document(model, encode_document("a水b", byte_vocabulary, TextConfig()))
    single = score_document(model, encode_document("a水b", byte_vocabulary, TextConfig()), chunk=1)
    data = "a水b".encode()
    with torch.no_grad():
        logits = model(torch.tensor([list(data)]))[0][0].double().log_softmax(-1)
    bits = [first_bits(model, data[0])]
    bits += [-float(logits[i, data[i + 1]]) / math.log(2) for i in range(4)]
    assert score.surprisal == pytest.approx([bits[0], sum(bits[1:4]), bits[4]], rel=1e-6)
    assert single.surprisal == pytest.approx(score.surprisal, rel=1e-6)


def test_spread_over_characters_splits_by_bytes() -> None:
    sizes = character_sizes("aé水b")
    assert sizes.tolist() == [1, 2, 3, 1]
    # Tokens: "a" with half of "é", the other half with all of "水", "b".
    got = spread_over_characters(np.array([4.0, 8.0, 1.0]), np.array([2, 4, 1]), sizes)
    assert got.tolist() == [2.0, 2.0 + 2.0, 6.0, 1.0]


@given(st.text(min_size=1), st.data())
def test_character_sizes_equal_utf8_and_ranges_add_up(text: str, data: st.DataObject) -> None:
    sizes = character_sizes(text)
    assert sizes.tolist() == [len(c.encode("utf-8", "surrogatepass")) for c in text]
    end = int(sizes.sum())
    middle = data.draw(st.integers(0, end))
    before = characters_completed(sizes, 0, middle)
    assert before == len(text.encode("utf-8", "surrogatepass")[:middle].decode("utf-8", "ignore"))
    assert before + characters_completed(sizes, middle, end) == len(text)


def test_score_lines_include_their_newline() -> None:
    score = Score(text="ab\n\ncde\nf", surprisal=np.arange(1.0, 10.0))
    found = [(n.number, n.text, n.bits, n.bits_per_char, n.surprisal.tolist()) for n in score.lines]
    assert found == [
        (1, "ab", 6.0, 2.0, [1.0, 2.0, 3.0]),
        (2, "", 4.0, 4.0, [4.0]),
        (3, "cde", 26.0, 6.5, [5.0, 6.0, 7.0, 8.0]),
        (4, "f", 9.0, 9.0, [9.0]),
    ]
    assert sum(line.bits for line in score.lines) == score.total_bits
    assert score.bits_per_char == 5.0


@pytest.mark.parametrize(
    ("text", "lines"),
    [("a\n", ["a"]), ("\n", [""]), ("\n\n", ["", ""]), ("a\nb", ["a", "b"]), ("a", ["a"])],
)
def test_score_final_newline_starts_no_line(text: str, lines: list[str]) -> None:
    score = Score(text=text, surprisal=np.ones(len(text)))
    assert [line.text for line in score.lines] == lines
    assert [line.bits_per_char for line in score.lines] == [1.0] * len(lines)


def test_score_top_sorts_lines_by_bits_per_char() -> None:
    score = Score(text="aa\nb\nc\nddd", surprisal=np.array([2, 2, 2, 5, 5, 5, 5, 1, 1, 1.0]))
    assert [line.number for line in score.top(3)] == [2, 3, 1]
    assert [line.number for line in score.top(99)] == [2, 3, 1, 4]
    assert score.top(0) == []
    with pytest.raises(ConfigError):
        score.top(-1)


def test_score_top_leaves_out_blank_lines() -> None:
    score = Score(text="a\n\n \t\nb", surprisal=np.array([1, 1, 9, 8, 8, 8, 2.0]))
    assert [line.number for line in score.top(9)] == [4, 1]
    blank = Score(text="\n\n", surprisal=np.array([9.0, 9.0]))
    assert blank.top(1) == blank.outliers == []
    assert blank.outlier_threshold == math.inf


def test_score_outliers_are_lines_above_outer_fence() -> None:
    bits = [1.0, 2.0, 3.0, 4.0, 5.0]
    # The quartiles are 2 and 4; the fence is at 4 + 3 * 2 = 10 without the last two lines.
    text, values = "a\n" * 40, np.repeat(bits * 8, 2)
    calm = Score(text=text, surprisal=values)
    assert calm.outlier_threshold == 10.0
    assert calm.outliers == []
    odd = Score(text=text + "b\n\nc\n", surprisal=np.append(values, [10.5, 10.5, 99, 11, 11]))
    assert odd.outlier_threshold == 10.0
    assert [(line.number, line.text) for line in odd.outliers] == [(41, "b"), (43, "c")]


def test_score_document_unknown_counted_or_rejected(make_model: MakeModel, characters: Any) -> None:
    vocabulary = characters("abc")
    model = make_model(len(vocabulary))
    score = score_document(model, encode_document("?a?", vocabulary, TextConfig()))
    assert score.num_unknown == 2
    assert score.surprisal[0] == pytest.approx(first_bits(model, 0), rel=1e-6)
    with pytest.raises(UnknownTokenError):
        score_document(model, encode_document("?a?", vocabulary, TextConfig(), unknown="error"))


def test_score_document_invalid_input_raises(make_model: MakeModel, characters: Any) -> None:
    vocabulary = characters("abc")
    model = make_model(len(vocabulary))
    with pytest.raises(SourceError, match="empty"):
        score_document(model, encode_document("", vocabulary, TextConfig()))
    with pytest.raises(ConfigError, match="chunk"):
        score_document(model, encode_document("abc", vocabulary, TextConfig()), chunk=0)
    with torch.no_grad():
        model.head_bias[1] = math.inf
    with pytest.raises(NonFiniteError):
        score_document(model, encode_document("abc", vocabulary, TextConfig()))
