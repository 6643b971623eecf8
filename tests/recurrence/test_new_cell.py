"""A cell added as docs/architecture.md describes, in Python and in the compiled kernels."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import recurra
from conformance import checks
from recurra.config import ModelConfig
from recurra.config.cells import CELL_TRAITS
from recurra.errors import ConfigError, RunError
from recurra.kernels import builder
from recurra.model import RecurrentLM
from recurra.recurrence.backends import require_backend
from recurra.recurrence.cells import CELLS, Cell


class MguCell(Cell):
    """Minimal gated unit: Zhou et al. 2016, with the gate after the product, as in torch's GRU.

    f = s(x_f + h_f), n = tanh(x_n + f * h_n), h_t = (1 - f) * h_{t-1} + f * n.
    """

    def step(self, projected, state, parameters, dtype):
        (h,) = state
        x_f, x_n = projected.chunk(2, dim=1)
        h_f, h_n = parameters.recurrent_product(h, dtype).chunk(2, dim=1)
        f = torch.sigmoid(x_f + h_f)
        n = torch.tanh(x_n + f * h_n)
        h = (1 - f) * h + f * n
        return h, (h,)


MODULE = f"""
import torch
from recurra.recurrence.cells.cell import Cell


{inspect.getsource(MguCell)}
"""

ROW = """
        CellTraits(name="mgu", implementation=f"{_PACKAGE}.mgu:MguCell", num_gates=2),
"""

HEADER = """
#pragma once

#include "cell.h"

namespace recurra {

struct Mgu {
  static constexpr int kGates = 2, kStates = 1, kSaved = 3, kInnerGates = 1;
  static constexpr bool kCarries = true;

  INLINE static Vec forward(const Spot& at, const ForwardRow& row, const Vec* product) {
    Vec f = sigmoid(at.read(row.projected, 0) + product[0]);
    Vec h_n = row.inner_bias ? product[1] + at.read(row.inner_bias) : product[1];
    Vec n = tanh(at.read(row.projected, 1) + f * h_n);
    if (row.saved) {
      at.write(row.saved, f, 0);
      at.write(row.saved, n, 1);
      at.write(row.saved, h_n, 2);
    }
    Vec h = at.read(row.hidden_before);
    return h + f * (n - h);
  }

  INLINE static void backward(const Spot& at, const BackwardRow& row, Vec grad, float scale,
                              Vec* deltas) {
    const Vec one = splat(1.0f);
    Vec f = at.read(row.saved, 0), n = at.read(row.saved, 1), h_n = at.read(row.saved, 2);
    Vec h = at.read(row.hidden_before);
    deltas[1] = grad * f * (one - n * n);
    deltas[2] = deltas[1] * f;
    deltas[0] = (grad * (n - h) + deltas[1] * h_n) * f * (one - f);
    at.write(row.carried, grad * (one - f) * splat(scale));
  }
};

}  // namespace recurra
"""

COMPARISON = """
import torch
from recurra.config import ModelConfig
from recurra.engine.autograd import AutogradGradients
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.model import RecurrentLM

torch.manual_seed(0)
sizes = {"hidden_size": 37, "embedding_size": 5, "vocab_size": 11, "num_layers": 2}
found = []
for backend, kind in (
    ("reference", AutogradGradients), ("native", AutogradGradients), ("native", CompiledGradients)
):
    torch.manual_seed(0)
    model = RecurrentLM(ModelConfig(cell="mgu", backend=backend, **sizes))
    if backend == "native":
        assert model.compiled_unsupported() is None
    else:
        assert "backend" in model.compiled_unsupported()
    ids, targets = torch.randint(11, (2, 19, 13)).unbind()
    loss, state = kind(model).compute(ids, targets, recurrent_gradient_scale=0.75)
    found.append([torch.tensor(loss), *state, *(p.grad for p in model.parameters())])
for actual in found[1:]:
    for a, e in zip(actual, found[0], strict=True):
        assert (a - e).abs().max() <= 1e-5 * e.abs().max(), (a, e)
print("equal")
"""


@pytest.fixture
def mgu():
    """Register the cell for one test."""
    with mock.patch.dict(CELL_TRAITS), mock.patch.dict(CELLS):
        recurra.register_cell(MguCell, name="mgu", num_gates=2)
        yield


def make(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "embedding_size": 8, "vocab_size": 11}
    return RecurrentLM(ModelConfig(cell="mgu", **(sizes | options)))


def test_register_cell_existing_name_raises():
    with pytest.raises(ConfigError, match="recurra itself has the cell gru"):
        recurra.register_cell(MguCell, name="gru", num_gates=2)
    with pytest.raises(ConfigError, match=r"cell is 'mgu'.* rnn.*recurra.register_cell"):
        make()


def test_new_cell_passes_the_checks_of_cells(mgu):
    checks.check_cell("mgu")


def test_new_cell_trains_in_recurrent_lm(mgu):
    model = make(num_layers=2)
    assert model.backend == "reference"
    assert model.compiled_unsupported() == "the compiled kernels have no mgu cell"
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ids = torch.arange(4 * 12).view(4, 12) % 11
    losses = []
    for _ in range(20):
        loss, _ = model.loss(ids, (ids + 1) % 11)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("backend", ["bptt", "library", "native"])
def test_new_cell_unsupported_backend_raises(mgu, backend):
    with pytest.raises(ConfigError, match="no mgu cell; use auto, reference"):
        require_backend(backend, "mgu", torch.device("cpu"))


def test_new_cell_run_trains_and_loads(mgu, tmp_path):
    options = {"steps": 2, "hidden_size": 8, "batch_size": 2, "num_steps": 8, "threads": 1}
    (tmp_path / "text.txt").write_text("abcd " * 200, "utf-8")
    recurra.train(tmp_path / "text.txt", cell="mgu", out=tmp_path / "run", **options)
    model = recurra.load(tmp_path / "run")
    assert len(model.generate("a", max_new_tokens=5, seed=0)) == 5


@pytest.mark.slow
@pytest.mark.skipif(builder.reason_not_buildable() is not None, reason="no compiler")
def test_new_compiled_cell_equals_reference(tmp_path):
    package = tmp_path / "src" / "recurra"
    shutil.copytree(Path(recurra.__file__).parent, package)
    (package / "recurrence" / "cells" / "mgu.py").write_text(MODULE, "utf-8")
    (package / "kernels" / "source" / "cell_mgu.h").write_text(HEADER, "utf-8")
    insert(package / "config" / "cells.py", "    for traits in (\n", ROW)
    cells = package / "kernels" / "source" / "cells.h"
    insert(cells, '#include "cell_lstm.h"\n', '#include "cell_mgu.h"\n')
    insert(cells, "#define RECURRA_CELLS(CELL)     \\\n", '  CELL("mgu", Mgu) \\\n')
    environment = os.environ | {
        "PYTHONPATH": str(package.parent),
        "RECURRA_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPARISON],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


def insert(file: Path, after: str, addition: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(after) == 1
    file.write_text(text.replace(after, after + addition), "utf-8")


@pytest.mark.usefixtures("mgu")
def test_registered_cell_again_replaces_cell():
    class Other(MguCell):
        pass

    recurra.register_cell(Other, name="mgu", num_gates=2)
    assert isinstance(CELLS["mgu"], Other)


class WrongStep(Cell):
    """A cell whose step returns all gates instead of the units."""

    def step(self, projected, state, parameters, dtype):
        return projected, (projected,)


class FailingStep(Cell):
    """A cell whose step fails."""

    def step(self, projected, state, parameters, dtype):
        return projected @ projected, state


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (MguCell, {"name": "my cell"}, "must start with a letter"),
        (MguCell, {"name": ""}, "must start with a letter"),
        (MguCell, {"gates": 3}, "cannot be registered.*gates"),
        (torch.nn.GRUCell, {}, "not a subclass of recurra.Cell"),
        (MguCell(CELL_TRAITS["gru"]), {}, "not a subclass of recurra.Cell"),
        (WrongStep, {}, r"returned tensors of shapes .*\(2, 6\).* all \(2, 3\)"),
        (FailingStep, {}, "the step of the cell mgu failed"),
        (MguCell, {"reads_state": False}, "the step of the cell mgu failed: AssertionError"),
        (MguCell, {"num_gates": -1}, "num_gates must be at least 1"),
        (MguCell, {"num_gates": "2"}, "num_gates is '2'; it must be an integer"),
        (MguCell, {"lr_factor": 0.0}, "lr_factor must be positive"),
    ],
)
def test_register_cell_invalid_raises(cell, options, message):
    with pytest.raises(ConfigError, match=message):
        recurra.register_cell(cell, **{"name": "mgu", "num_gates": 2} | options)
    assert "mgu" not in CELL_TRAITS


def test_run_with_registered_cell_loads_resumes_and_names_missing_cell(
    mgu, source, tmp_path, monkeypatch
):
    options = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "steps": 5}
    recurra.train(source, cell="mgu", out=tmp_path / "run", **options)
    assert recurra.resume(tmp_path / "run", steps=10).generate("the", max_new_tokens=5)
    monkeypatch.delitem(CELL_TRAITS, "mgu")
    message = r"cell is 'mgu'; it must be one of rnn, .*register it with recurra.register_cell"
    with pytest.raises(RunError, match=message):
        recurra.load(tmp_path / "run")
    with pytest.raises(RunError, match=message):
        recurra.resume(tmp_path / "run", steps=20)
