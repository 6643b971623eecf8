"""Training and results in a real Jupyter kernel: one display, the stop button, and HTML."""

import sys
import threading
import time

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
NotebookClient = pytest.importorskip("nbclient", reason="nbclient is not installed").NotebookClient
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="interrupts by a POSIX signal")

TRAIN = """
import recurra
options = {"hidden_size": 8, "batch_size": 4, "num_steps": 8, "threads": 1, "device": "cpu"}
lm = recurra.train(SOURCE, out="run", report_every=10, steps=STEPS, **options)
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Return a function that runs cells in a kernel, and interrupts it if asked to."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    text = tmp_path / "text <b>.txt"
    text.write_text("the cat & the dog sat on the log.\n" * 40, "utf-8")

    def execute(*cells, interrupt_after=None):
        cells = [cell.replace("SOURCE", repr(str(text))) for cell in cells]
        book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
        client = NotebookClient(
            book, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        if interrupt_after is not None:
            watcher = threading.Thread(target=_interrupt, args=(client, interrupt_after))
            watcher.start()
        client.execute()
        return book.cells

    return execute


def _interrupt(client, file):
    deadline = time.monotonic() + 60
    # The kernel trains in another process, and writes the file when training has begun.
    while not file.is_file():
        assert time.monotonic() < deadline, f"the kernel has not written {file}"
        time.sleep(0.05)
    client.km.provisioner.process.send_signal(2)


def html_of(cell):
    return [o["data"]["text/html"] for o in cell.outputs if "text/html" in o.get("data", {})]


def test_notebook_training_updates_one_display(notebook):
    (cell,) = notebook(TRAIN.replace("STEPS", "200"))
    (output,) = cell.outputs
    assert output["output_type"] == "display_data"
    text, page = output["data"]["text/plain"], output["data"]["text/html"]
    assert text.startswith("━" * 24 + " 100%")
    assert "step    200  train" in text
    assert len(text.splitlines()) <= 6
    assert "<progress value='1.000' max='1'>" in page
    assert "<b>" not in page


def test_notebook_stop_button_returns_model_so_far(notebook, tmp_path):
    after = "print(lm.path, len(lm.generate('the ', max_new_tokens=5)))"
    cells = notebook(
        TRAIN.replace("STEPS", "10_000_000"),
        after,
        "print(recurra.load('run').validate().perplexity == lm.validate().perplexity)",
        interrupt_after=tmp_path / "run" / "metrics.jsonl",
    )
    (display,) = cells[0].outputs
    assert (
        "interrupted; saved in run; recurra train --resume run continues from step"
        in (display["data"]["text/plain"])
    )
    assert cells[1].outputs[0]["text"] == "run 5\n"
    assert cells[2].outputs[0]["text"] == "True\n"
    assert any((tmp_path / "run" / "checkpoints").glob("step-*/manifest.sha256"))


def test_notebook_results_have_escaped_html(notebook):
    cells = notebook(
        TRAIN.replace("STEPS", "20"),
        "lm",
        "lm.evaluate('the \\u732b cat ' * 30)",
        "lm.score('<b>the\\x1b' * 1000)",
        "lm.score('the dog').top(1)[0]",
        "recurra.compare(SOURCE, variants={'<b>': {}}, seeds=1, steps=5, out='c', **options)",
    )
    model, evaluation, score, line = (html_of(cell)[-1] for cell in cells[1:5])
    assert "lstm, 1 x 8 units" in model
    assert "perplexity" in evaluation
    assert "30 of them unknown" in evaluation
    assert "are &lt;unk&gt;, which makes" in evaluation
    assert "&lt;" in score
    assert "5,000 further characters are not shown" in score
    assert len(score) < 150_000
    assert "line 1, " in line
    (_, comparison) = html_of(cells[5])
    assert "&lt;b&gt;" in comparison
    assert "<table>" in comparison
    for page in (model, evaluation, score, line, comparison):
        assert "<b>" not in page
        assert "\x1b" not in page
