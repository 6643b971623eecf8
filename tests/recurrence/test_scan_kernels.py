"""Triton compiles the kernels of the scan for GPUs; a GPU is not needed for it."""

import functools
import importlib
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch

from recurra.recurrence.backends import triton_scan

TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)]
VARIANTS = [
    (kernel, {constant: value})
    for kernel, constant in (
        ("forward", "is_chunked"),
        ("backward", "is_chunked"),
        ("fold_chunks", "is_reverse"),
    )
    for value in (False, True)
]
TYPES = {"steps": "i32", "columns": "i64", "length": "i32", "chunks": "i32", "scale": "fp32"}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Yield the module of the kernels, defined for the compiler, with an empty cache."""
    pytest.importorskip("triton.compiler", reason="Triton is not installed; the extra dev has it")
    module = importlib.import_module("recurra.recurrence.backends.scan_kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield importlib.reload(module)
    importlib.reload(module)


def compiled(kernels, name, constants, target):
    compiler = importlib.import_module("triton.compiler")
    gpu = importlib.import_module("triton.backends.compiler").GPUTarget(*target)
    function = getattr(kernels, name)
    constants = {**constants, "block": triton_scan.BLOCK}
    signature = {
        argument: "constexpr" if argument in constants else TYPES.get(argument, "*fp32")
        for argument in function.arg_names
    }
    places = {(function.arg_names.index(argument),): v for argument, v in constants.items()}
    source = compiler.ASTSource(fn=function, signature=signature, constexprs=places)
    options = {"num_warps": triton_scan.BLOCK // target[2]}
    return compiler.compile(source, target=gpu, options=options)


def resources(binary, tmp_path):
    """Return what cuobjdump states about a kernel, by name: REG, STACK, SHARED, LOCAL."""
    knobs = importlib.import_module("triton.knobs")
    path = tmp_path / "kernel.cubin"
    path.write_bytes(binary)
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", text)}


def check_compiled(found, target, tmp_path):
    """Check that a kernel keeps its values in registers: no shared memory and no spills."""
    assert found.metadata.shared == 0
    if target[0] == "cuda":
        used = resources(found.asm["cubin"], tmp_path)
        assert used["STACK"] == used["LOCAL"] == used["SHARED"] == 0
        # Eight programs fit on a multiprocessor, which has 65,536 registers.
        assert 16 < used["REG"] <= 128
        return
    spills = re.findall(r"\.[sv]gpr_spill_count: +(\d+)", found.asm["amdgcn"])
    assert len(spills) >= 2
    assert set(spills) == {"0"}


def test_scan_forward_compiles_for_sm_90(kernels, tmp_path):
    found = compiled(kernels, "forward", {"is_chunked": False}, TARGETS[1])
    check_compiled(found, TARGETS[1], tmp_path)
    loads, stores = (found.asm["ptx"].find(f"{name}.global") for name in ("ld", "st"))
    ahead = kernels.AHEAD.value
    assert 0 < loads < stores
    # All loads of a and b precede the first store, and that of the initial state.
    assert found.asm["ptx"][:stores].count("ld.global") == 2 * ahead + 1


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
@pytest.mark.parametrize(("name", "constants"), VARIANTS, ids=str)
def test_scan_kernel_compiles(name, constants, target, kernels, tmp_path):
    check_compiled(compiled(kernels, name, constants, target), target, tmp_path)


class Launches:
    """The kernels, whose launches only compile the kernel for the arguments."""

    def __init__(self, kernels):
        self.kernels = kernels

    def __getattr__(self, name):
        return Launch(getattr(self.kernels, name))


class Launch:
    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        return functools.partial(self.function.warmup, grid=grid)


def pretend_gpu(monkeypatch):
    """Let Triton compile for a GPU that this machine does not have."""
    runtime = importlib.import_module("triton.runtime")
    target = importlib.import_module("triton.backends.compiler").GPUTarget(*TARGETS[1])
    driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
    monkeypatch.setattr(runtime.driver, "_active", driver)


@pytest.mark.parametrize(
    "length", [None, pytest.param(3, marks=pytest.mark.slow)], ids=["whole", "chunks"]
)
def test_scan_launches_of_other_sizes_compile_nothing(length, kernels, monkeypatch):
    kernels = importlib.reload(kernels)
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(triton_scan, "_kernels", lambda: Launches(kernels))
    # Triton specializes a kernel for 1 and for multiples of 16, of integers and of addresses.
    for steps, columns, skipped in ((4, 3, 0), (5, 1, 0), (32, 16, 0), (17, 33, 1)):
        a, b, grad = (torch.zeros(steps + skipped, columns)[skipped:] for _ in range(3))
        initial = torch.zeros(columns + skipped)[skipped:]
        outputs = triton_scan.forward(a, b, initial, length or steps)
        scale = 1.0 if skipped else 0.5
        triton_scan.backward((a, initial, outputs), grad, scale, length or steps)
    compiled = {
        name: len(getattr(kernels, name).device_caches[0][0])
        for name in ("forward", "backward", "fold_chunks")
    }
    # Those of the chunks differ in direction.
    assert compiled == {"forward": 1, "backward": 1, "fold_chunks": 2 if length else 0}
