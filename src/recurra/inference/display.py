"""HTML representations of models and results, which notebooks show."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from recurra.io.html import escape, table
from recurra.text.unicode import without_controls

if TYPE_CHECKING:
    from recurra.inference.evaluate import Evaluation
    from recurra.inference.language_model import LanguageModel
    from recurra.inference.score import LineScore, Score

MAX_CHARS = 2_000
"""Maximum number of characters of a scored text; `recurra score --html` shows more of it."""
_BITS_OF_FULL_SHADE = 8.0
_LEVELS = 16
_STYLE = "white-space: pre-wrap; overflow-wrap: anywhere"


def model_html(lm: LanguageModel) -> str:
    """Return the properties of a model as a table."""
    model, training = lm.config.model, lm.config.training
    rows = [
        ("cell", f"{model.cell}, {model.num_layers} x {model.hidden_size} units"),
        ("parameters", f"{lm.model.num_parameters:,}"),
        ("vocabulary", f"{len(lm.vocabulary):,} {lm.config.text.tokens} tokens"),
        ("training", f"{training.optimizer}, lr {training.lr:g}, seed {training.seed}"),
        ("run", "none" if lm.path is None else without_controls(str(lm.path))),
    ]
    return table(("language model", ""), rows)


def evaluation_html(evaluation: Evaluation) -> str:
    """Return the metrics of an evaluation as a table, with the remarks of its text."""
    metrics, *remarks = str(evaluation).split("\nnote: ")
    rows = [_name_and_value(line) for line in metrics.split("\n")]
    return table((), rows) + "".join(f"<p>{escape(remark)}</p>" for remark in remarks)


def score_excerpt_html(score: Score) -> str:
    """Return the beginning of a scored text, shaded by surprisal, and its totals."""
    shown = _shaded(score.text[:MAX_CHARS], score.surprisal[:MAX_CHARS].tolist())
    rest = len(score.text) - MAX_CHARS
    more = f"<p>{rest:,} further characters are not shown.</p>" if rest > 0 else ""
    unknown = f", {score.num_unknown:,} unknown tokens" if score.num_unknown else ""
    return (
        f"<p>{score.bits_per_char:.3f} bits per character, {len(score.text):,}"
        f" characters{unknown}</p>{shown}{more}"
    )


def line_html(line: LineScore) -> str:
    """Return a scored line, shaded by surprisal, after its number and its bits per character."""
    text = f"{line.text}\n"[: len(line.surprisal)][:MAX_CHARS]
    shown = _shaded(text, line.surprisal[:MAX_CHARS].tolist())
    return f"<p>line {line.number}, {line.bits_per_char:.3f} bits per character</p>{shown}"


def _name_and_value(line: str) -> tuple[str, str]:
    # At least two spaces separate the name of a metric from its value.
    name, _, value = line.partition("  ")
    return name, value.strip()


def _shaded(text: str, bits: list[float]) -> str:
    levels = [min(_LEVELS, round(b * _LEVELS / _BITS_OF_FULL_SHADE)) for b in bits]
    parts = []
    for level, group in groupby(zip(text, levels, strict=True), key=lambda pair: pair[1]):
        piece = without_controls("".join(character for character, _ in group), but="\n\t")
        shade = f"background: rgba(235, 94, 40, {0.8 * level / _LEVELS:.2f})"
        parts.append(f"<span style='{shade}'>{escape(piece)}</span>")
    return f"<pre style='{_STYLE}'>{''.join(parts)}</pre>"
