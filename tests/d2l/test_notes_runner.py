"""benchmarks/notes.py: the code cells it finds in a note, its changes to them, and its report."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTES = Path(__file__).parents[2] / "benchmarks" / "notes.py"


@pytest.fixture(scope="module")
def notes():
    spec = importlib.util.spec_from_file_location("notes", NOTES)
    module = importlib.util.module_from_spec(spec)
    sys.modules["notes"] = module
    spec.loader.exec_module(module)
    return module


MARKDOWN = """# One
```python
from d2l import torch as d2l
x = 1
```
## Inner
```python
# Not a heading
print(x + 1)
```
```
not python
```
# Two
```python
```
```python
raise KeyError(x)
```
"""

NOTEBOOK = """# 标题
In [1]:
%matplotlib inline
import sys
sys.path.append("/somewhere")
import d2l_jay9460 as d2l

text = "%d" % 3

In [7]:
y = [1.0, 2.0]

def f():
    return 5

f(), y

(5, [1.0, 2.0])

tensor([1., 2.])
一句话

## 下一节
散文，不是代码。

In [None]:
f() +

In [9]: f()

'5'
"""


def test_read_note_finds_fenced_blocks_and_headings(notes):
    cells = notes.read_note(MARKDOWN)
    assert [(c.line, c.headings) for c in cells] == [
        (3, ("One",)),
        (8, ("One", "Inner")),
        (18, ("Two",)),
    ]
    assert cells[1].code == "# Not a heading\nprint(x + 1)"


def test_read_note_ends_notebook_cells_at_prose_and_output(notes):
    cells = notes.read_note(NOTEBOOK)
    assert [c.label for c in cells] == ["In [1]", "In [7]", "In [None]", "In [9]"]
    assert cells[0].code.splitlines()[1] == "pass  # %matplotlib inline"
    assert cells[0].code.endswith('text = "%d" % 3')
    assert cells[1].code == "\ny = [1.0, 2.0]\n\ndef f():\n    return 5\n\nf(), y"
    assert cells[2].code == "\nf() +"
    assert cells[2].headings == ("标题", "下一节")
    assert cells[3].code == "f()"


BOOK_SOURCE = """# Section
```{.python .input  n=1}
%load_ext d2lbook.tab
tab.interact_select(['mxnet', 'pytorch'])
```
```{.python .input}
%%tab mxnet
raise ImportError
```
```{.python .input  n=3}
%%tab mxnet, pytorch
from d2l import torch as d2l
x = "torch" if tab.selected('pytorch', 'jax') else "other"
```
:begin_tab:`pytorch`
Prose of one library.
:end_tab:
```{.python .input}
%%tab all
fit(max_epochs=7)
if not tab.selected('mxnet'):
    print(x)
```
```text
not python
```
"""


def test_read_note_selects_pytorch_blocks_of_book_source(notes):
    cells = notes.read_note(BOOK_SOURCE)
    assert [c.line for c in cells] == [3, 11, 19]
    assert cells[0].code.startswith("pass  # %load_ext")
    assert cells[1].code.splitlines()[0] == "pass  # %%tab mxnet, pytorch"
    assert notes.use_recurra(cells[1].code).splitlines()[1] == "from recurra import d2l"
    assert "fit(max_epochs=3)" in notes.cap_epochs(cells[2].code, 3)
    assert "fit(max_epochs=7)" in notes.cap_epochs(cells[2].code, 9)


def test_notes_book_source_runs_with_tab_of_pytorch(tmp_path):
    done = run(tmp_path, BOOK_SOURCE.replace("fit(max_epochs=7)", ""))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-2:] == ["    | torch", "3 of 3 cells ran"]


def test_use_recurra_changes_only_d2l_imports(notes):
    code = "import sys\nsys.path.append('x')\nimport d2lzh_pytorch as d2l\nif 1:\n    import d2l"
    assert notes.use_recurra(code).splitlines() == [
        "import sys",
        "pass  # sys.path.append('x')",
        "from recurra import d2l",
        "if 1:",
        "    from recurra import d2l",
    ]
    other = "import sys\nsys.path.append('x')\nfrom torch import nn"
    assert notes.use_recurra(other) == other


def test_cap_epochs_limits_num_epochs_and_pred_period(notes):
    code = "名 = 9; num_epochs, lr = 500, 100\nnum_epochs = 2\npred_period, n = 50, 50"
    assert notes.cap_epochs(code, 3).splitlines() == [
        "名 = 9; num_epochs, lr = 3, 100",
        "num_epochs = 2",
        "pred_period, n = 3, 50",
    ]


def run(tmp_path, text, *options):
    (tmp_path / "note.txt").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(NOTES), str(tmp_path / "note.txt"), *options],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def test_notes_failing_cell_is_reported_and_others_run(tmp_path):
    done = run(tmp_path, MARKDOWN)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("cell 1 (block 1, line 3)")
    assert lines[0].endswith(": ok")
    assert lines[2] == "    | 2"
    assert lines[3].endswith("FAILED at line 18 of the note: KeyError: 1")
    assert lines[4] == "2 of 3 cells ran"


def test_notes_syntax_error_in_cell_is_reported(tmp_path):
    done = run(tmp_path, NOTEBOOK)
    assert done.returncode == 1
    assert "FAILED at line 27 of the note: SyntaxError" in done.stdout
    assert "    | (5, [1.0, 2.0])" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 of 4 cells ran"


def test_notes_section_and_print_code_select_cells(tmp_path):
    done = run(tmp_path, MARKDOWN, "--section", "Inner")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "0 of 1 cells ran")
    done = run(tmp_path, MARKDOWN, "--section", "One", "--print-code")
    assert done.returncode == 0
    assert "from recurra import d2l\nx = 1" in done.stdout
    done = run(tmp_path, MARKDOWN, "--section", "nowhere")
    assert done.returncode == 2
