"""Render a scored text as a self-contained HTML page, shaded by surprisal.

The page is plain HTML and CSS with a light and a dark theme, without scripts or external files.
"""

from __future__ import annotations

import html

from recurra.errors import ConfigError
from recurra.inference.score import LineScore, Score

# One shade per half bit; the darkest shade applies to 8 bits and more.
LEVELS_PER_BIT = 2
NUM_LEVELS = 17
DARKEST_ALPHA = 0.8
# A character takes about 30 bytes of HTML, and browsers become slow beyond a few megabytes.
MAX_CHARS = 100_000

_CSS = """
:root { color-scheme: light dark; --hot: 235, 94, 40; --text: #1d1d1f; --page: #fdfdfc;
  --faint: #75757c; --rule: #e4e4e0; }
@media (prefers-color-scheme: dark) { :root { --hot: 224, 82, 32; --text: #e8e8ea;
  --page: #17181a; --faint: #98989f; --rule: #303134; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
p { color: var(--faint); margin: .2rem 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td { vertical-align: top; padding: .1rem 0; }
th { text-align: right; font-weight: normal; }
thead th:last-child { text-align: left; }
th, .n { color: var(--faint); font-size: .8rem; font-variant-numeric: tabular-nums;
  text-align: right; padding-right: .8rem; white-space: nowrap; width: 1%; user-select: none; }
thead th { border-bottom: 1px solid var(--rule); }
pre { margin: 0; font: .95rem/1.6 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
b { font-weight: normal; border-radius: 2px; }
u { text-decoration: none; color: var(--faint); user-select: none; }
.scale b { padding: .1rem .45rem; font-size: .8rem; border-radius: 0; }
"""


def score_html(score: Score, title: str, *, max_chars: int = MAX_CHARS) -> str:
    """Return the HTML page as a string, to be saved as UTF-8.

    Each character is shaded by its surprisal and has a tooltip with its bits. Each line is shown
    with its number, bits and bits per character. Newlines are drawn as return signs.

    Args:
        score: the scored text.
        title: title in plain text. It is escaped, as is the scored text.
        max_chars: maximum number of characters to show. The page states how many are omitted. The
            metrics of the text and of each line include the omitted characters.

    Raises:
        ConfigError: `max_chars` is less than 1.
    """
    if max_chars < 1:
        raise ConfigError(f"max_chars must be at least 1, not {max_chars}")
    shown = min(max_chars, len(score.text))
    rows: list[str] = []
    first = 0
    for line in score.lines:
        if first >= shown:
            break
        end = min(first + len(line.text) + 1, shown)
        rows.append(_row(line, score.text[first:end], score.surprisal[first:end].tolist()))
        first = end
    missing = len(score.text) - shown
    note = f"<p>{missing:,} further characters are not shown.</p>\n" if missing else ""
    return (
        '<!DOCTYPE html>\n<html lang="und">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}{_shades()}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{_summary(score)}</p>\n{_scale()}"
        "<table>\n<thead><tr><th>line</th><th>bits</th><th>bits/char</th><th>text</th></tr></thead>"
        f"\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n{note}</body>\n</html>\n"
    )


def _row(line: LineScore, text: str, bits: list[float]) -> str:
    characters = "".join(map(_character, text, bits))
    return (
        f'<tr><td class="n">{line.number}</td><td class="n">{line.bits:.1f}</td>'
        f'<td class="n">{line.bits_per_char:.2f}</td><td><pre>{characters}</pre></td></tr>\n'
    )


def _character(character: str, bits: float) -> str:
    return f'<b class="s{_level(bits)}" title="{bits:.2f} bits">{_shown(character)}</b>'


def _shown(character: str) -> str:
    if character == "\n":
        return "<u>\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}</u>"
    if character < " " and character != "\t":
        return chr(0x2400 + ord(character))  # U+2400 to U+241F: symbols for control characters
    return html.escape(character)


def _level(bits: float) -> int:
    return min(NUM_LEVELS - 1, round(bits * LEVELS_PER_BIT))


def _shades() -> str:
    return "".join(
        f".s{level} {{ background: rgba(var(--hot), {DARKEST_ALPHA * level / (NUM_LEVELS - 1):.2f})"
        " }\n"
        for level in range(1, NUM_LEVELS)
    )


def _scale() -> str:
    last = (NUM_LEVELS - 1) // LEVELS_PER_BIT
    steps = "".join(
        f'<b class="s{_level(bits)}">{bits}{"+" if bits == last else ""}</b>'
        for bits in range(last + 1)
    )
    return f'<p class="scale">bits {steps}</p>\n'


def _summary(score: Score) -> str:
    parts = [
        f"{len(score.text):,} characters",
        f"{score.total_bits:,.1f} bits",
        f"{score.bits_per_char:.3f} bits per character",
    ]
    if score.num_unknown:
        parts.append(f"{score.num_unknown:,} unknown tokens")
    return " \N{MIDDLE DOT} ".join(parts)
