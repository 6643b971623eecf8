"""Follow the recipe of a compiled cell in a copy of the package, and use the cell there.

Run as a script with the copy on the path; `make_copy` makes it.
"""

import shutil
from pathlib import Path

STRUCT = """
struct Leaky {
  static constexpr int kGates = 1, kSaved = 0, kDeltas = 1;
  static constexpr bool kHasCells = false, kCarries = false;

  INLINE static Vec forward(const Spot& at, const ForwardRow& row, const Vec* product) {
    Vec a = at.read(row.projected) + product[0];
    return a > splat(0.0f) ? a : a * splat(0.125f);
  }

  INLINE static void backward(const Spot& at, const BackwardRow& row, Vec grad, float,
                              Vec* deltas) {
    deltas[0] = at.read(row.hidden) > splat(0.0f) ? grad : grad * splat(0.125f);
  }
};

}  // namespace recurra
"""
ROW = '    "leaky": CellTraits("recurra.recurrence.cells.leaky:LeakyCell", kernel="kLeaky"),\n'


def make_copy(package: Path, folder: Path) -> list[str]:
    """Copy the package and add the cell; return the files that were touched."""
    copy = folder / "recurra"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "kernels" / "source"
    _insert(source / "cells.h", "\n}  // namespace recurra\n", STRUCT, replaces=True)
    _insert(source / "kernels.h", "  ROW(kTanh, Elman<false>) \\\n", "  ROW(kLeaky, Leaky) \\\n")
    _insert(copy / "config" / "cells.py", "CELL_TRAITS: dict[str, CellTraits] = {\n", ROW)
    shutil.copy(Path(__file__).with_name("leaky_cell.py"), copy / "recurrence/cells/leaky.py")
    return [
        str(file.relative_to(copy))
        for file in sorted(copy.rglob("*"))
        if file.is_file() and _differs(file, package / file.relative_to(copy))
    ]


def _differs(file: Path, original: Path) -> bool:
    return not original.is_file() or file.read_bytes() != original.read_bytes()


def _insert(file: Path, place: str, text: str, *, replaces: bool = False) -> None:
    before, found, after = file.read_text("utf-8").partition(place)
    assert found
    file.write_text(before + ("" if replaces else found) + text + after, "utf-8")


def main() -> None:
    """Train by the kernels and by the reference, and compare."""
    import torch

    from recurra.config import ModelConfig
    from recurra.engine.compiled_gradients import CompiledGradients
    from recurra.engine.select import select_gradients
    from recurra.model import RecurrentLM

    found = []
    for backend in ("reference", "native"):
        torch.manual_seed(0)
        config = ModelConfig(cell="leaky", vocab_size=11, hidden_size=19, backend=backend)
        model = RecurrentLM(config)
        ids, targets = torch.randint(11, (2, 3, 9)).unbind()
        gradients = select_gradients(model)
        assert isinstance(gradients, CompiledGradients) == (backend == "native")
        loss, state = gradients.compute(ids, targets)
        found.append([torch.tensor(loss), *state, *(p.grad for p in model.parameters())])
    for reference, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, reference, rtol=1e-4, atol=1e-6)
    print("the same")


if __name__ == "__main__":
    main()
