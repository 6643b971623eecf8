"""Render a scored text as a self-contained HTML page, shaded by surprisal.

The page is plain HTML and CSS with a light and a dark theme, without scripts or external files.
Shades are elements with names of one letter, and neighbouring characters of one shade share an
element, so that a page is two to four times as large as its text.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np

from recurra.errors import ConfigError
from recurra.inference.reading import FloatArray
from recurra.inference.score import LineScore, Score
from recurra.text.unicode import without_controls

THRESHOLDS = (3.0, 5.0, 7.0, 9.0)
"""Lowest surprisal of each shade, in bits. Characters below 3 bits, which the model gives a
probability of at least 1/8, have no shade."""
MAX_CHARS = 500_000
"""Number of characters of the text on the page. A browser needs a few seconds for them."""
NUM_RANKED = 10
"""Number of lines at the head of a page that shows the whole text."""
EXCERPT = 240
"""Number of characters that the head of the page shows of a longer line."""

_TAGS = ("", "i", "b", "u", "mark")
_NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
_DOT = " \N{MIDDLE DOT} "

_CSS = """
:root { color-scheme: light dark; --text: #1d1d1f; --page: #fdfdfc; --faint: #65656b;
  --rule: #e4e4e0; --odd: #b8370c; --odd-row: #fdf3ec; --s1: #fbe0d1; --s2: #f9c0a1;
  --s3: #f69b6d; --s4: #f07540; }
@media (prefers-color-scheme: dark) { :root { --text: #ececee; --page: #17181a;
  --faint: #a0a0a7; --rule: #303134; --odd: #ff9162; --odd-row: #221d1b; --s1: #46281c;
  --s2: #6e3319; --s3: #923d17; --s4: #b84915; } }
body { margin: 2rem auto; max-width: 92rem; padding: 0 clamp(.6rem, 2.5vw, 2rem);
  background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.8rem 0 .2rem; }
p { color: var(--faint); font-size: .9rem; margin: .2rem 0 .6rem; overflow-wrap: anywhere; }
p mark, p u, p b, p i { color: var(--text); padding: .15rem .5rem; border-radius: 0;
  white-space: nowrap; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; }
th { color: var(--faint); font-size: .8rem; font-weight: normal; text-align: left;
  border-bottom: 1px solid var(--rule); vertical-align: bottom; }
th:first-child, th:nth-child(2) { text-align: right; padding-right: .9rem; }
.n { width: 5.2rem; }
td { vertical-align: top; padding: .05rem 0; unicode-bidi: plaintext; white-space: pre-wrap;
  overflow-wrap: anywhere; tab-size: 4; font: .92rem/1.55 ui-monospace, monospace; }
td:first-child, td:nth-child(2) { color: var(--faint); font: .8rem/1.8 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; text-align: right; padding-right: .9rem;
  white-space: nowrap; user-select: none; -webkit-user-select: none; }
.o { background: var(--odd-row); box-shadow: inset 3px 0 var(--odd); }
.o td:first-child, .o td:nth-child(2) { color: var(--odd); font-weight: 600; }
tr:target { outline: 2px solid var(--odd); outline-offset: -2px; }
a { color: inherit; }
i, b, u, mark { color: inherit; font: inherit; text-decoration: none; border-radius: 2px; }
i { background: var(--s1); }
b { background: var(--s2); }
u { background: var(--s3); }
mark { background: var(--s4); }
@media (max-width: 40rem) { .n { width: 3.3rem; } td { font-size: .82rem; }
  th:first-child, th:nth-child(2), td:first-child, td:nth-child(2) { padding-right: .5rem;
  font-size: .74rem; } }
"""


def score_page(
    score: Score,
    title: str,
    *,
    model: str = "",
    top: int | None = None,
    max_chars: int = MAX_CHARS,
) -> str:
    """Return the HTML page as a string, to be saved as UTF-8.

    Characters are shaded by their surprisal, in the steps of `THRESHOLDS`. By default, the page
    begins with the `NUM_RANKED` most surprising lines, followed by the whole text, in which the
    lines of `Score.outliers` are marked. Each line has its number and its bits per
    character. A newline is drawn as a return sign if it is shaded.

    Args:
        score: the scored text.
        title: title in plain text, the name of the text. It is escaped, as is the scored text.
        model: name of the model, for the summary.
        top: show only this many lines, those with the most bits per character, in descending order.
        max_chars: maximum number of characters of the text to show. The page states how many lines
            are omitted. The most surprising lines are selected among all lines.

    Raises:
        ConfigError: `max_chars` is less than 1, or `top` is negative.
    """
    if max_chars < 1:
        raise ConfigError(f"max_chars must be at least 1, not {max_chars}")
    ranked = score.top(NUM_RANKED if top is None else top)
    body = _whole_text(score, ranked, max_chars) if top is None else _ranking(score, ranked)
    return (
        '<!DOCTYPE html>\n<html lang="und">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{_summary(score, model)}</p>\n{_legend()}"
        f"<p>{_rule(score)}</p>\n{body}</body>\n</html>\n"
    )


def _ranking(score: Score, ranked: Sequence[LineScore]) -> str:
    marked = _marked(score)
    rows = (_row(line, _shaded(line), is_marked=line.number in marked) for line in ranked)
    return f"<h2>{_most_surprising(len(ranked))}</h2>\n{_table(rows)}"


def _whole_text(score: Score, ranked: Sequence[LineScore], max_chars: int) -> str:
    """Return the most surprising lines, unless the text is short, and the text in its order."""
    marked = _marked(score)
    shown = list(_first_lines(score.lines, max_chars))
    targets: set[int] = set()
    head = ""
    if len(score.lines) > 2 * NUM_RANKED:
        targets = {line.number for line in ranked}
        links = {line.number for line in shown} & targets
        rows = (
            _row(n, _excerpt(n), is_marked=n.number in marked, is_link=n.number in links)
            for n in ranked
        )
        head = f"<h2>{_most_surprising(len(ranked))}</h2>\n{_table(rows)}<h2>The text</h2>\n"
    rows = (
        _row(n, _shaded(n), is_marked=n.number in marked, is_target=n.number in targets)
        for n in shown
    )
    return f"{head}{_table(rows)}{_omitted(score, shown)}"


def _marked(score: Score) -> set[int]:
    return {line.number for line in score.outliers}


def _first_lines(lines: Sequence[LineScore], max_chars: int) -> Iterator[LineScore]:
    """Yield lines until they have `max_chars` characters; the last line is cut."""
    left = max_chars
    for line in lines:
        if left <= 0:
            return
        yield line if len(line.surprisal) <= left else _part(line, 0, left)
        left -= len(line.surprisal)


def _part(line: LineScore, first: int, end: int) -> LineScore:
    return LineScore(
        line.number, line.text[first:end], line.bits, line.bits_per_char, line.surprisal[first:end]
    )


def _omitted(score: Score, shown: Sequence[LineScore]) -> str:
    num_chars = len(score.text) - sum(len(line.surprisal) for line in shown)
    if not num_chars:
        return ""
    num_lines = len(score.lines) - len(shown)
    lines = f" in {num_lines:,} further lines" if num_lines else ""
    return f"<p>{num_chars:,} further characters{lines} are not shown.</p>\n"


def _table(rows: Iterator[str]) -> str:
    # The end tags of rows and cells are optional in HTML. Without them, a page is smaller.
    return (
        '<table>\n<colgroup><col class="n"><col class="n"><col></colgroup>\n'
        "<thead><tr><th>line<th>bits/<wbr>char<th>text</thead>\n<tbody>\n"
        f"{''.join(rows)}</tbody>\n</table>\n"
    )


def _row(
    line: LineScore,
    text: str,
    *,
    is_marked: bool,
    is_target: bool = False,
    is_link: bool = False,
) -> str:
    number = f'<a href="#L{line.number}">{line.number}</a>' if is_link else line.number
    mark = " class=o" if is_marked else ""
    anchor = f" id=L{line.number}" if is_target else ""
    return f"<tr{mark}{anchor}><td>{number}<td>{line.bits_per_char:.2f}<td>{text}\n"


def _excerpt(line: LineScore) -> str:
    """Return a line, or the `EXCERPT` characters of a long line with the highest surprisal."""
    if len(line.text) <= EXCERPT:
        return _shaded(line)
    sums = np.concatenate([[0.0], np.cumsum(line.surprisal[: len(line.text)])])
    first = int(np.argmax(sums[EXCERPT:] - sums[:-EXCERPT]))
    before = "\N{HORIZONTAL ELLIPSIS}" if first else ""
    after = "\N{HORIZONTAL ELLIPSIS}" if first + EXCERPT < len(line.text) else ""
    return f"{before}{_shaded(_part(line, first, first + EXCERPT))}{after}"


def _shaded(line: LineScore) -> str:
    """Return the HTML of a line, with one element per run of characters of the same shade."""
    levels = _levels(line.surprisal)
    text = line.text
    if len(levels) > len(text) and levels[-1]:
        text += _NEWLINE
    parts, first = [], 0
    for level, run in groupby(levels[: len(text)]):
        end = first + sum(1 for _ in run)
        parts.append(_element(_TAGS[level], text[first:end]))
        first = end
    return "".join(parts)


def _levels(surprisal: FloatArray) -> list[int]:
    return [int(level) for level in np.digitize(surprisal, THRESHOLDS)]


def _element(tag: str, text: str) -> str:
    escaped = html.escape(without_controls(text, but="\t"), quote=False)
    return f"<{tag}>{escaped}</{tag}>" if tag else escaped


def _legend() -> str:
    lows = [f"{low:g}" for low in THRESHOLDS]
    ranges = [*map("\N{EN DASH}".join, pairwise(lows)), f"{lows[-1]} and more"]
    steps = "".join(_element(tag, text) for tag, text in zip(_TAGS[1:], ranges, strict=True))
    return f"<p>bits of a character: {steps}</p>\n"


def _most_surprising(count: int) -> str:
    return "The most surprising line" if count == 1 else f"The {count:,} most surprising lines"


def _rule(score: Score) -> str:
    count, threshold = len(score.outliers), score.outlier_threshold
    if not count:
        return "No line stands out from the others."
    subject = "1 line is marked. It has" if count == 1 else f"{count:,} lines are marked. They have"
    return (
        f"{subject} more than {threshold:.2f} bits per character: the upper quartile of the lines"
        " plus three times the interquartile range."
    )


def _summary(score: Score, model: str) -> str:
    parts = [
        *([f"scored by {html.escape(model)}"] if model else []),
        f"{len(score.lines):,} lines",
        f"{len(score.text):,} characters",
        f"{score.total_bits:,.1f} bits",
        f"{score.bits_per_char:.3f} bits per character",
    ]
    if score.num_unknown:
        parts.append(f"{score.num_unknown:,} unknown tokens")
    return _DOT.join(parts)
