"""StopScanner is compared with a search through the whole text, character by character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.inference.stopping import StopScanner


def cut_by_hand(text: str, stop: list[str]) -> str:
    """Return the text before the stop string that ends first (the longest of several)."""
    for end in range(1, len(text) + 1):
        lengths = [len(s) for s in stop if text[:end].endswith(s)]
        if lengths:
            return text[: end - max(lengths)]
    return text


# With two letters, overlapping and nested stop strings are frequent.
letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


@given(st.lists(st.text("ab", max_size=6), max_size=10), stops)
def test_stop_scanner_pieces_equal_whole_text(pieces: list[str], stop: list[str]) -> None:
    scanner = StopScanner(stop)
    got = "".join(map(scanner.push, pieces)) + scanner.finish()
    text = "".join(pieces)
    assert got == cut_by_hand(text, stop)
    assert scanner.stopped == any(s in text for s in stop)


@given(letters, stops)
def test_stop_scanner_holds_back_only_possible_stops(text: str, stop: list[str]) -> None:
    scanner = StopScanner(stop)
    out = ""
    for position, character in enumerate(text):
        out += scanner.push(character)
        if scanner.stopped:
            break
        held = text[: position + 1].removeprefix(out)
        assert out + held == text[: position + 1]
        # Text is held back if and only if it is the beginning of a stop string.
        assert held == "" or any(s.startswith(held) and s != held for s in stop)
        assert not any(
            s.startswith(text[start : position + 1]) for s in stop for start in range(len(out))
        )


def test_stop_scanner_first_complete_string_wins() -> None:
    scanner = StopScanner(["abc", "b"])
    assert scanner.push("xabc") == "xa"
    assert scanner.stopped


def test_stop_scanner_longer_of_two_equal_ends_wins() -> None:
    assert StopScanner(["b", "ab"]).push("xab y") == "x"


def test_stop_scanner_partial_match_is_released() -> None:
    scanner = StopScanner(["END"])
    assert [scanner.push(c) for c in "aENx"] == ["a", "", "", "ENx"]
    assert [scanner.push(c) for c in "EN"] == ["", ""]
    assert scanner.finish() == "EN"
    assert scanner.finish() == ""


@pytest.mark.parametrize("pieces", [["END", "more"], ["E", "N", "Dmore", "END"]])
def test_stop_scanner_returns_nothing_after_stop(pieces: list[str]) -> None:
    scanner = StopScanner(["END"])
    assert [scanner.push(piece) for piece in pieces] == [""] * len(pieces)
    assert scanner.finish() == ""


def test_stop_scanner_without_strings_passes_text() -> None:
    scanner = StopScanner([])
    assert [scanner.push("ab"), scanner.push(""), scanner.finish()] == ["ab", "", ""]
