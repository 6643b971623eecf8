"""Run a learner's notes with recurra.d2l, changing only the import of d2l.

    python benchmarks/notes.py NOTE.txt [--section TEXT] [--epochs N] [--print-code]

A note is Markdown with ```python blocks, or a notebook pasted as text, with "In [3]:" cells between
prose and outputs. Sources of the book itself (chapter_*/*.md in the repository d2l-ai/d2l-en) are
read too; of the blocks for several libraries (`%%tab`), those for PyTorch run. The cells run in one
namespace, as in a notebook. If a cell fails, the failure is reported and the next cell runs. Exit
status: 0 if all cells ran, 1 if some failed, 2 for invalid usage or if no code was found.

The code of the note is executed as it is, so run only notes that you trust. Python's own parser
separates code from prose.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CELL = re.compile(r"^In \[([\d ]*|None)\]:\s*(.*)$")
HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
FENCE = re.compile(r"^\s*(```+|~~~+)\s*(?:\{\.(?=python \.input))?([\w+-]*)")
MAGIC = re.compile(r"^([%!]{1,2}\w.*)$")
TAB = re.compile(r"^%%tab +(.*)$")
"""First line of a block of the book: the names of the libraries that it is for."""
BOOK = re.compile(r"^(d2l|d2l\.torch|d2l_\w+|d2lzh\w*)$")
EPOCH_SETTINGS = {"num_epochs", "max_epochs", "pred_period"}
"""Variables and arguments that --epochs limits: the number of epochs, and the epochs between two
predictions."""
TAIL_LINES = 6
"""Number of output lines that are shown for a cell."""


@dataclass(frozen=True)
class Cell:
    """A piece of code of a note, the line at which it starts, and the headings above it."""

    code: str
    line: int
    label: str
    headings: tuple[str, ...]


class Headings:
    """The headings above the current line, outermost first."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def read(self, line: str) -> None:
        """Record the line if it is a heading."""
        if match := HEADING.match(line):
            depth = len(match[1])
            self._open = [(d, t) for d, t in self._open if d < depth] + [(depth, match[2])]

    def titles(self) -> tuple[str, ...]:
        """Return the texts of the headings."""
        return tuple(title for _, title in self._open)


def read_note(text: str) -> list[Cell]:
    """Return the code cells of a note in order, without empty ones."""
    lines = text.splitlines()
    is_notebook = any(CELL.match(line) for line in lines)
    cells = _notebook_cells(lines) if is_notebook else _fenced_cells(lines)
    return [cell for cell in cells if cell.code.strip()]


def _fenced_cells(lines: list[str]) -> Iterator[Cell]:
    headings, start, language, mark, number = Headings(), None, "", "", 0
    for i, line in enumerate(lines):
        fence = FENCE.match(line)
        if start is None:
            headings.read(line)
            if fence:
                start, mark, language = i + 1, fence[1], fence[2].lower()
        elif line.strip() == mark:
            if language in ("python", "py", "python3") and _is_for_torch(lines[start]):
                number += 1
                code = "\n".join(_without_magic(lines[start:i]))
                yield Cell(code, start + 1, f"block {number}", headings.titles())
            start = None


def _is_for_torch(first_line: str) -> bool:
    tab = TAB.match(first_line)
    return tab is None or bool({"pytorch", "all"} & set(re.split(r"[,\s]+", tab[1])))


class Tab:
    """The object `tab` of the book's sources: the reader selected PyTorch."""

    def selected(self, *names: str) -> bool:
        """Return whether PyTorch is among the names."""
        return "pytorch" in names

    def interact_select(self, *names: object) -> None:
        """Let the reader select a library; here, the selection is fixed."""


def _notebook_cells(lines: list[str]) -> Iterator[Cell]:
    headings = Headings()
    starts = [i for i, line in enumerate(lines) if CELL.match(line)]
    for line in lines[: starts[0]]:
        headings.read(line)
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        match = CELL.match(lines[start])
        assert match is not None
        body = _without_magic([match[2], *lines[start + 1 : end]])
        length = code_length(body)
        code = "\n".join(body[:length])
        yield Cell(code, start + 1, f"In [{match[1]}]", headings.titles())
        for line in body[length:]:
            headings.read(line)


def _without_magic(lines: list[str]) -> list[str]:
    # `pass` and a comment in its place keep the line numbers of the note.
    return [MAGIC.sub(r"pass  # \1", line) for line in lines]


def code_length(lines: list[str]) -> int:
    """Return how many of the lines below "In [n]:" are code; outputs and prose follow them.

    The code is the longest sequence of lines, from the first, that Python can parse. Excluded are
    results printed below the cell (`tensor([1., 2.])`), one-word prose, and Markdown headings,
    which are valid comments. If text follows without a blank line, it is code that cannot be
    parsed. The whole paragraph is then kept, so that the run reports the author's mistake.
    """
    end = _end_of_code(lines)
    # The first line is the text beside "In [n]:", which is usually empty.
    after = end or (1 if lines and not lines[0].strip() else 0)
    while after < len(lines) and lines[after].lstrip().startswith("#"):
        after += 1
    if after < len(lines) and lines[after].strip():
        while after < len(lines) and lines[after].strip():
            after += 1
        return after
    return end


def _end_of_code(lines: list[str]) -> int:
    for length in range(len(lines), 0, -1):
        try:
            # A regular expression in plain quotes warns about its escapes.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                body = ast.parse("\n".join(lines[:length])).body
        except (SyntaxError, ValueError):
            continue
        while len(body) > 1 and _is_no_code(body[-1], lines[body[0].lineno : body[-1].lineno - 1]):
            body.pop()
        return body[-1].end_lineno or 0 if body else 0
    return 0


def _is_no_code(node: ast.stmt, before: list[str]) -> bool:
    """Return whether a statement below the lines `before` looks like output or prose."""
    if not isinstance(node, ast.Expr) or all(line.strip() for line in before):
        return False
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    if names and not any(name.isascii() for name in names):
        return True
    attributes = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    return names <= {"tensor", "torch", "array"} and attributes <= {"Size"}


def use_recurra(code: str) -> str:
    """Return the code with every import of the book's package replaced.

    A top-level `sys.path.append(...)` in a cell with such an import is disabled, because it names
    the location of that package. Line numbers stay the same. Code that cannot be parsed is
    returned unchanged.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return code
    lines = code.splitlines()
    imports = [node for node in ast.walk(tree) if _imports_book(node)]
    for node in imports:
        assert isinstance(node, ast.stmt)
        indent = lines[node.lineno - 1][: node.col_offset]
        lines[node.lineno - 1] = f"{indent}from recurra import d2l"
    for statement in tree.body if imports else []:
        if "sys.path.append(" in ast.unparse(statement) and isinstance(statement, ast.Expr):
            lines[statement.lineno - 1] = "pass  # " + lines[statement.lineno - 1]
    return "\n".join(lines)


def _imports_book(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return bool(BOOK.match(node.module or ""))
    return isinstance(node, ast.Import) and any(BOOK.match(name.name) for name in node.names)


def cap_epochs(code: str, epochs: int) -> str:
    """Return the code with the settings of EPOCH_SETTINGS limited to `epochs`."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return code
    lines = [line.encode() for line in code.splitlines()]  # the parser counts bytes
    numbers = [number for node in ast.walk(tree) for number in _epoch_numbers(node)]
    for number in sorted(numbers, key=lambda n: (n.lineno, n.col_offset), reverse=True):
        if isinstance(number.value, int) and number.value > epochs:
            line = lines[number.lineno - 1]
            lines[number.lineno - 1] = (
                line[: number.col_offset] + str(epochs).encode() + line[number.end_col_offset :]
            )
    return b"\n".join(lines).decode()


def _epoch_numbers(node: ast.AST) -> Iterator[ast.Constant]:
    if isinstance(node, ast.keyword):
        if node.arg in EPOCH_SETTINGS and isinstance(node.value, ast.Constant):
            yield node.value
        return
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=False))
        for name, value in pairs:
            is_setting = isinstance(name, ast.Name) and name.id in EPOCH_SETTINGS
            if is_setting and isinstance(value, ast.Constant):
                yield value


def run_cell(code: str, name: str, namespace: dict[str, Any]) -> None:
    """Run one cell and print the value of its last expression, as in a notebook."""
    tree = ast.parse(code, name)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    exec(compile(tree, name, "exec"), namespace)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        if value is not None:
            print(repr(value))


def _failed_line(error: BaseException, name: str) -> int:
    """Return the line of the cell, counted from 1, at which it failed."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return error.lineno or 1
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
    return frames[-1].lineno or 1 if frames else 1


def run_note(cells: list[Cell], full_output: bool) -> int:
    """Run the cells in one namespace, print the status of each, and return how many failed."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
    namespace: dict[str, Any] = {"__name__": "__main__", "tab": Tab()}
    failed = 0
    for number, cell in enumerate(cells, 1):
        name, output, start = f"<cell {number}>", io.StringIO(), time.perf_counter()
        status = "ok"
        with contextlib.redirect_stdout(output):
            try:
                run_cell(cell.code, name, namespace)
            except Exception as error:  # any failure of the note's code is a result to report
                line = cell.line + _failed_line(error, name) - 1
                status = f"FAILED at line {line} of the note: {type(error).__name__}: {error}"
                failed += 1
        seconds = time.perf_counter() - start
        print(f"cell {number} ({cell.label}, line {cell.line}), {seconds:.1f} s: {status}")
        _show(output.getvalue(), full_output)
    return failed


def _show(output: str, full: bool) -> None:
    lines = output.splitlines()
    hidden = 0 if full else max(len(lines) - TAIL_LINES, 0)
    if hidden:
        print(f"    | ({hidden} lines before these)")
    for line in lines[hidden:]:
        print(f"    | {line}")
    sys.stdout.flush()


def main() -> int:
    """Parse the command line and run the note."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("note", type=Path, help="the note, a text file")
    parser.add_argument(
        "--section", help="run only the code under a heading that contains this text"
    )
    parser.add_argument("--epochs", type=int, help="maximum of num_epochs, max_epochs, pred_period")
    parser.add_argument(
        "--print-code", action="store_true", help="print the code without running it"
    )
    parser.add_argument(
        "--full-output",
        action="store_true",
        help=f"show all output, not only {TAIL_LINES} lines per cell",
    )
    options = parser.parse_args()
    cells = read_note(options.note.read_text(encoding="utf-8"))
    if options.section:
        cells = [c for c in cells if any(options.section in title for title in c.headings)]
    if not cells:
        parser.error("no Python code found in the note")
    cells = [Cell(use_recurra(c.code), c.line, c.label, c.headings) for c in cells]
    if options.epochs is not None:
        cells = [
            Cell(cap_epochs(c.code, options.epochs), c.line, c.label, c.headings) for c in cells
        ]
    if options.print_code:
        for number, cell in enumerate(cells, 1):
            print(f"# cell {number} ({cell.label}, line {cell.line})\n{cell.code}\n")
        return 0
    failed = run_note(cells, options.full_output)
    print(f"{len(cells) - failed} of {len(cells)} cells ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
