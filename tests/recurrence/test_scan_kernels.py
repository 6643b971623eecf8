"""Triton compiles the kernels of the scan for GPUs, which needs none."""

import importlib
import re
import subprocess

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
    """The module of the kernels, defined for the compiler, without results of earlier runs."""
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
    """Check that a kernel keeps its numbers in registers: no shared memory and no spills."""
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


@pytest.mark.parametrize("name", ["forward", "backward", "fold_chunks"])
def test_scan_kernel_other_sizes_and_alignments_compile_nothing(name, kernels):
    jit = importlib.import_module("triton.runtime.jit")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    function = getattr(kernels, name)
    bind = jit.create_function_from_signature(
        function.signature, function.params, compiler.make_backend(target)
    )
    memory = torch.zeros(8)
    keys = []
    # Triton specializes a kernel for 1 and for multiples of 16, of integers and of addresses.
    for tensor, size in ((memory, 1), (memory, 16), (memory[1:], 17), (memory[1:], 2**31 - 1)):
        values = {
            "columns": size + 2**31 if size > 17 else size,
            "scale": float(size), "is_chunked": True, "is_reverse": True, "block": 64,
        }  # fmt: skip
        arguments = [
            values.get(argument, size if argument in TYPES else tensor)
            for argument in function.arg_names
        ]
        keys.append(bind(*arguments)[1])
    assert all(key == keys[0] for key in keys)
