"""score_page: the page of a scored text."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from recurra.errors import ConfigError
from recurra.inference.score import Score
from recurra.report.score_page import EXCERPT, MAX_CHARS, NUM_RANKED, score_page

SHADES = {"i": 1, "b": 2, "u": 3, "mark": 4}


class _Page(HTMLParser):
    """Reads the rows of all tables and the shade of each character of their texts.

    The end tags of rows and cells are optional in HTML, as in the page.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[_Row]] = []
        self.external: list[str] = []
        self.shade = 0
        self.cell = -1
        self.is_in_body = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "link", "img", "iframe", "object") or "src" in values:
            self.external.append(tag)
        if not str(values.get("href", "#")).startswith("#"):
            self.external.append(tag)
        self.shade = SHADES.get(tag, 0)
        if tag == "tbody":
            self.tables.append([])
            self.is_in_body = True
        elif tag == "tr" and self.is_in_body:
            self.tables[-1].append(_Row(values.get("class"), values.get("id")))
        elif tag == "a":
            self.tables[-1][-1].link = values["href"]
        self.cell = self.cell + 1 if tag == "td" else -1 if tag == "tr" else self.cell

    def handle_endtag(self, tag: str) -> None:
        self.shade = 0
        if tag == "tbody":
            self.cell, self.is_in_body = -1, False

    def handle_data(self, data: str) -> None:
        if self.cell >= 0:
            row = self.tables[-1][-1]
            row.cells[self.cell] += data
            if self.cell == 2:
                row.shades += [self.shade] * len(data)


class _Row:
    def __init__(self, kind: str | None, anchor: str | None) -> None:
        self.is_marked, self.anchor = kind == "o", anchor
        self.link: str | None = None
        self.cells = ["", "", ""]
        self.shades: list[int] = []

    @property
    def text(self) -> str:
        return self.cells[2].removesuffix("\n")

    @property
    def number(self) -> int:
        return int(self.cells[0])


def lines_score(*bits: float, width: int = 8) -> Score:
    """Return a score of lines of `width` characters and a newline, each with its surprisal."""
    text = "".join(f"{number:0{width}}\n" for number in range(1, len(bits) + 1))
    return Score(text=text, surprisal=np.repeat(bits, width + 1))


def test_score_html_shows_every_character_with_its_shade() -> None:
    text = 'a<b>&"\t\x00\x9b\ré\n\nx\n'
    bits = [0.0, 2.99, 3.0, 4.99, 5.0, 7.0, 9.0, 31.0, 2.0, 3.0, 0.1, 0.0, 9.5, 0.0, 0.0]
    page = score_page(Score(text=text, surprisal=np.array(bits)), "a <title> & more", model="<m>")
    seen = _Page(page)
    assert seen.external == []
    ((first, second, third),) = seen.tables
    # Only a shaded newline is drawn.
    assert (first.text, second.text, third.text) == ('a<b>&"\t␀\ufffd␍é', "↵", "x")
    assert first.shades[: len(first.text)] == [0, 0, 1, 1, 2, 3, 4, 4, 0, 1, 0]
    assert second.shades[0] == 4
    assert "<title>a &lt;title&gt; &amp; more</title>" in page
    assert "scored by &lt;m&gt;" in page
    assert "3 lines · 15 characters · 77.6 bits · 5.172 bits per character" in page


def test_score_html_neighbours_of_one_shade_share_an_element() -> None:
    page = score_page(Score(text="abcdef", surprisal=np.array([3, 4, 4.5, 9, 99, 0.0])), "t")
    assert "<td><i>abc</i><mark>de</mark>f\n" in page


def test_score_html_of_a_log_is_at_most_three_times_its_text() -> None:
    generator = np.random.default_rng(0)
    lines = [
        f"2026-03-02 08:00:{n % 60:02} INFO web GET /items/{n} 200 12ms\n" for n in range(4000)
    ]
    text = "".join(lines)
    is_digit = np.array([c.isdigit() for c in text])
    bits = np.where(is_digit & (generator.random(len(text)) < 0.5), 3.3, 0.1)
    page = score_page(Score(text=text, surprisal=bits), "server.log")
    assert "not shown" not in page
    assert len(text) < len(page.encode()) < 3 * len(text)


def test_score_html_begins_with_most_surprising_lines_and_links_them() -> None:
    bits = [1.0, 2.0] * 20
    bits[30], bits[7] = 9.0, 8.0
    head, text = _Page(score_page(lines_score(*bits), "t")).tables
    assert [row.number for row in head][:2] == [31, 8]
    assert [row.link for row in head][:2] == ["#L31", "#L8"]
    assert len(head) == NUM_RANKED
    assert [row.number for row in text] == list(range(1, 41))
    assert [row.number for row in head if row.is_marked] == [31, 8]
    assert [row.number for row in text if row.is_marked] == [8, 31]
    assert {row.anchor for row in text} - {None} == {f"L{row.number}" for row in head}
    assert [float(row.cells[1]) for row in text] == bits


def test_score_html_states_the_criterion_of_marked_lines() -> None:
    page = score_page(lines_score(*[1.0, 2.0] * 20, 9.0), "t")
    assert "1 line is marked. It has more than 5.00 bits per character" in page
    assert "upper quartile of the lines plus three times the interquartile range" in page
    assert "No line stands out" in score_page(lines_score(*[1.0, 2.0] * 20), "t")


def test_score_html_top_shows_only_these_lines() -> None:
    score = lines_score(1.0, 3.0, 2.0, 9.0)
    (rows,) = _Page(score_page(score, "t", top=2)).tables
    assert [(row.number, row.text[:8], row.link) for row in rows] == [
        (4, "00000004", None), (2, "00000002", None),
    ]  # fmt: skip
    (none,) = _Page(score_page(score, "t", top=0)).tables
    assert none == []
    with pytest.raises(ConfigError, match="negative"):
        score_page(score, "t", top=-1)


def test_score_html_excerpt_has_the_most_surprising_part_of_a_long_line() -> None:
    long = "a" * 1000 + "b" * 50 + "c" * 1000
    bits = np.array([4.0 if c == "b" else 0.1 for c in long] + [0.0])
    short = lines_score(*[0.05] * 30)
    score = Score(text=long + "\n" + short.text, surprisal=np.concatenate([bits, short.surprisal]))
    head, text = _Page(score_page(score, "t")).tables
    assert head[0].text.startswith("…")
    assert head[0].text.endswith("…")
    assert head[0].text.count("b") == 50
    assert len(head[0].text) == EXCERPT + 2
    assert text[0].text == long


def test_score_html_omits_characters_beyond_max_chars_but_ranks_all_lines() -> None:
    bits = [1.0] * 30
    bits[28] = 9.0
    page = score_page(lines_score(*bits), "t", max_chars=24)
    head, text = _Page(page).tables
    assert [row.text for row in text] == ["00000001", "00000002", "000000"]
    assert (head[0].number, head[0].link) == (29, None)
    assert head[1].link == "#L1"
    assert "246 further characters in 27 further lines are not shown" in page
    assert MAX_CHARS >= 300_000
    with pytest.raises(ConfigError, match="max_chars"):
        score_page(lines_score(1.0), "t", max_chars=0)


def test_score_html_names_unknown_tokens() -> None:
    assert "3 unknown tokens" in score_page(Score("abc", np.ones(3), num_unknown=3), "t")
