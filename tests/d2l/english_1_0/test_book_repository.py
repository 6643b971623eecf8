"""The code of the book itself, if RECURRA_BOOK names a checkout of the repository d2l-ai/d2l-en.

The code of the book is not part of this project.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAPTERS = {
    "chapter_linear-regression": ["oo-design"],
    "chapter_recurrent-neural-networks": [
        "sequence",
        "text-sequence",
        "language-model",
        "rnn",
        "rnn-scratch",
        "rnn-concise",
    ],
    "chapter_recurrent-modern": ["lstm", "gru", "deep-rnn", "bi-rnn"],
}
SECTIONS = [f"{folder}/{name}.md" for folder, names in CHAPTERS.items() for name in names]
NOTES = Path(__file__).parents[3] / "benchmarks" / "notes.py"


@pytest.fixture
def book():
    """Return the root of the checkout."""
    root = Path(os.environ.get("RECURRA_BOOK", ""))
    if "RECURRA_BOOK" not in os.environ or not (root / "d2l" / "torch.py").is_file():
        # The code of the book is not ours, so the repository does not contain it.
        pytest.skip("RECURRA_BOOK does not name a checkout of github.com/d2l-ai/d2l-en")
    return root


def run_python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "MPLBACKEND": "agg"},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("time_machine")
@pytest.mark.parametrize("section", SECTIONS)
def test_section_of_the_book_runs_with_changed_import(section, book, tmp_path):
    done = run_python(NOTES, book / section, "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == last[2] != "0"


COMPARISON = """
import importlib.util, sys
from unittest import mock

import matplotlib.pyplot
import torch
from recurra import d2l

# Libraries that the book's package imports for other chapters.
absent = ["torchvision", "torchvision.transforms", "pandas", "requests", "IPython",
          "matplotlib_inline", "scipy", "scipy.spatial"]
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in absent}):
    spec = importlib.util.spec_from_file_location("book", sys.argv[1])
    sys.modules["book"] = book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)
book.download = lambda *args: d2l.download("time_machine")

MODELS = {
    "scratch": lambda m, v: m.RNNLMScratch(m.RNNScratch(v, 8), v, lr=1),
    "rnn": lambda m, v: m.RNNLM(m.RNN(v, 8), v, lr=1),
    "gru": lambda m, v: m.RNNLM(m.GRU(v, 8, 2), v, lr=2),
}

def train(module, name):
    torch.manual_seed(1)
    data = module.TimeMachine(batch_size=256, num_steps=16, num_train=2000, num_val=500)
    model = MODELS[name](module, len(data.vocab))
    texts = [model.predict("it has", 10, data.vocab)]
    module.Trainer(max_epochs=2, gradient_clip_val=1, num_gpus=0).fit(model, data)
    return data, model, [*texts, model.predict("it has", 10, data.vocab)]

for name in MODELS:
    data, model, texts = train(d2l, name)
    book_data, book_model, book_texts = train(book, name)
    assert data.vocab.idx_to_token == book_data.vocab.idx_to_token
    assert torch.equal(data.X, book_data.X) and torch.equal(data.Y, book_data.Y)
    assert texts == book_texts
    for param, book_param in zip(model.parameters(), book_model.parameters(), strict=True):
        torch.testing.assert_close(param, book_param, rtol=1e-4, atol=1e-5)
    assert list(model.board.data) == list(book_model.board.data)
    for label, points in model.board.data.items():
        book_points = [(float(p.x), float(p.y)) for p in book_model.board.data[label]]
        torch.testing.assert_close(torch.tensor(points), torch.tensor(book_points))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("time_machine")
def test_training_equals_package_of_the_book_with_same_seed(book, tmp_path):
    """Same vocabulary, batches, initial weights, curves, trained weights and predictions."""
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    done = run_python("-c", COMPARISON, book / "d2l" / "torch.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
