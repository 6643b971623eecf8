"""The selection of the matrix-product kernel by measurement, and where it is stored and shown."""

import json

import pytest
import torch
from filelock import FileLock

from recurra.cli.main import main
from recurra.errors import KernelError
from recurra.kernels import builder, library, matmul_results, matmul_selection, matmul_trials
from recurra.kernels.matmul_results import KERNELS
from recurra.kernels.matmul_trials import LayerTimes
from recurra.runs import compatibility
from recurra.runtime import cores
from recurra.runtime.distributed import SINGLE_PROCESS

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

SLOW, FAST = 2.0, 1.0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Set RECURRA_CACHE to an empty directory, forget the selection, and return the directory."""
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path))
    monkeypatch.delenv("RECURRA_MATMUL", raising=False)
    matmul_selection._load_or_measure.cache_clear()
    yield tmp_path
    matmul_selection._load_or_measure.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """Replace the measurement: return the calls, and let the kernels in `slow` take longer."""
    calls, slow = [], set()

    def layer_times(size, kinds):
        calls.append((str(size), list(kinds)))
        return LayerTimes([SLOW if kind in slow else FAST for kind in kinds], True)

    monkeypatch.setattr(matmul_selection, "layer_times", layer_times)
    return calls, slow


def available():
    return [name for name, kind in KERNELS.items() if library.load().recurra_has_kind(kind)]


def forget_and_select():
    matmul_selection._load_or_measure.cache_clear()
    return matmul_selection.matmul_kernels()


def test_matmul_kernels_of_this_machine_are_all_correct():
    found = matmul_selection.matmul_kernels()
    assert found.wrong == []
    assert all(list(speeds) == available() for speeds in found.gflops.values())
    assert all(speed > 0 for speeds in found.gflops.values() for speed in speeds.values())


@pytest.mark.parametrize("kernel", range(len(KERNELS)))
def test_is_correct_wrong_kernel_is_detected(kernel, monkeypatch):
    # A kernel without its instructions cannot run. AMX tiles are checked in an emulation by
    # test_tiles.py, and the instructions of ARM in one by test_emulated.py.
    if not library.load().recurra_has_kind(kernel):
        pytest.skip("not available on this machine")
    assert matmul_trials.is_correct(kernel)
    for function in ("dense_product", "gradient_product"):
        original = getattr(matmul_trials, function)

        def damaged(*arguments, original=original):
            original(*arguments)
            arguments[3][-1, -1] += 0.01

        with monkeypatch.context() as patch:
            patch.setattr(matmul_trials, function, damaged)
            assert not matmul_trials.is_correct(kernel)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("tile", [4, 8])
def test_is_correct_products_have_each_number_of_rows_in_a_tile(tile, threads, monkeypatch):
    original, seen = matmul_trials.dense_product, set()

    def recorded(kind, left, *arguments):
        rows, rest = divmod(len(left), threads)
        assert rest == 0
        seen.add(rows % tile or tile)
        original(kind, left, *arguments)

    monkeypatch.setattr(matmul_trials, "dense_product", recorded)
    with cores.use_threads(threads):
        assert matmul_trials.is_correct(KERNELS["single"])
    assert seen == set(range(1, tile + 1))


def test_matmul_kernels_fastest_is_selected(timed):
    _, slow = timed
    for name in available()[1:]:
        slow.clear()
        slow.update(kind for other, kind in KERNELS.items() if other != name)
        matmul_results.path().unlink(missing_ok=True)
        assert forget_and_select().bf16 == name


def test_matmul_kernels_stored_result_is_not_measured_again(timed):
    calls, slow = timed
    slow.add(KERNELS["rounded"])
    first = matmul_selection.matmul_kernels()
    assert calls
    calls.clear()
    slow.symmetric_difference_update(KERNELS.values())
    assert forget_and_select() == first
    assert not calls


SPEEDS = {"single": 1.0, "rounded": 1.0}
VALID = {"format": 1, "bf16": "rounded", "wrong": [], "gflops": {"size": SPEEDS}, "speedups": {}}


def test_read_valid_file_returns_it(cache):
    matmul_results.path().parent.mkdir(parents=True)
    matmul_results.path().write_text(json.dumps(VALID), "utf-8")
    assert matmul_results.read().gflops == {"size": SPEEDS}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[1]",
        b'{"format": 0}',
        {**VALID, "extra": 1},
        {**VALID, "bf16": "unknown"},
        {**VALID, "bf16": "single"},
        {**VALID, "bf16": ["rounded"]},
        {**VALID, "wrong": ["rounded"]},
        {**VALID, "wrong": None},
        {**VALID, "wrong": [[]]},
        {**VALID, "gflops": {}},
        {**VALID, "gflops": [1]},
        {**VALID, "gflops": {"size": [1.0]}},
        {**VALID, "gflops": {"size": {**SPEEDS, "unknown": 1.0}}},
        {**VALID, "gflops": {"size": {**SPEEDS, "rounded": 0.0}}},
        {**VALID, "gflops": {"size": {**SPEEDS, "rounded": "1"}}},
        {**VALID, "gflops": {"size": {"single": 1.0}}},
        {**VALID, "speedups": None},
        {**VALID, "speedups": {"size": "abc"}},
        {**VALID, "speedups": {"size": True}},
        {**VALID, "speedups": {"size": 1e-300}},
    ],
)
def test_matmul_kernels_damaged_file_is_measured_again(timed, damage):
    calls, _ = timed
    path = matmul_results.path()
    path.parent.mkdir(parents=True)
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(damage).encode())
    assert matmul_selection.matmul_kernels().bf16 in available()
    assert calls
    assert json.loads(path.read_text("utf-8"))["bf16"] == matmul_selection.matmul_kernels().bf16


def test_matmul_kernels_unreliable_measurement_is_not_stored(monkeypatch, caplog):
    calls = []

    def layer_times(size, kinds):
        calls.append(size)
        return LayerTimes([FAST] * len(kinds), False)

    monkeypatch.setattr(matmul_selection, "layer_times", layer_times)
    with caplog.at_level("INFO"):
        assert matmul_selection.matmul_kernels().bf16 in available()
    assert "varied too much" in caplog.text
    assert not matmul_results.path().exists()
    before = len(calls)
    assert matmul_selection.bf16_speedup("gru", 40, 8) == 1.0
    assert matmul_selection.bf16_speedup("gru", 40, 8) == 1.0
    assert len(calls) == before + 1
    assert not matmul_results.path().exists()
    forget_and_select()
    assert len(calls) > before + 1


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([[1.0, 1.0, 1.0]], True),
        ([[1.0, 3.0, 1.04, 2.0, 1.02]], True),
        ([[1.0, 1.1, 1.2, 1.0]], False),
        ([[1.0, 1.0]], False),
        ([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]], False),
    ],
)
def test_are_reliable_needs_repeated_shortest_times(times, expected):
    assert matmul_trials._are_reliable(times) is expected


def test_matmul_kernels_complete_file_needs_no_lock(timed, monkeypatch):
    first = matmul_selection.matmul_kernels()
    monkeypatch.setattr(matmul_results, "locked", lambda: pytest.fail("waits for the lock"))
    assert forget_and_select() == first


def test_matmul_kernels_lock_is_held_measures_after_a_while(timed, monkeypatch, caplog):
    monkeypatch.setattr(matmul_results, "LOCK_SECONDS", 0.05)
    path = matmul_results.path()
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f"{path.name}.lock"), is_singleton=False):
        assert matmul_selection.matmul_kernels().bf16 in available()
    assert "waiting for another process" in caplog.text


def test_measure_again_replaces_stored_result(timed):
    calls, slow = timed
    slow.add(KERNELS["single"])
    matmul_selection.matmul_kernels()
    calls.clear()
    slow.clear()
    found = matmul_selection.measure_again()
    assert calls
    assert found == matmul_results.read() == matmul_selection.matmul_kernels()


def test_measure_again_disturbed_keeps_stored_result(timed, monkeypatch):
    before = matmul_selection.matmul_kernels()
    unreliable = lambda size, kinds: LayerTimes([FAST] * len(kinds), False)  # noqa: E731
    monkeypatch.setattr(matmul_selection, "layer_times", unreliable)
    with pytest.raises(KernelError, match="stored result is unchanged"):
        matmul_selection.measure_again()
    assert matmul_results.read() == before


@pytest.mark.parametrize(("waited", "expected"), [(0.0, True), (10.0, False)])
def test_layer_times_thread_that_waits_for_a_processor_is_not_reliable(
    monkeypatch, waited, expected
):
    totals = iter([5.0, 5.0 + waited])
    monkeypatch.setattr(matmul_trials, "_seconds_waited", lambda: next(totals))
    monkeypatch.setattr(matmul_trials, "_are_reliable", lambda times: True)
    size = matmul_trials.LayerSize("rnn", 16, 4, 1)
    assert matmul_trials.layer_times(size, [KERNELS["single"]]).is_reliable is expected


def test_matmul_kernels_directory_not_writable_is_measured_without_storing(cache, monkeypatch):
    blocked = cache / "file"
    blocked.touch()
    monkeypatch.setenv("RECURRA_CACHE", str(blocked))
    assert matmul_selection.matmul_kernels().bf16 in available()
    assert matmul_selection.bf16_speedup("rnn", 16, 4) > 0


def test_matmul_kernels_wrong_one_is_never_used(monkeypatch, timed, caplog):
    names = available()[1:]
    # Without bf16 instructions, rounding is the only kernel for bf16. If it is wrong, an error is
    # raised; test_matmul_kernel_wrong_base_raises covers that.
    if len(names) < 2:
        pytest.skip("there is a single kernel for bf16")
    bad = names[-1]
    monkeypatch.setattr(matmul_selection, "is_correct", lambda kind: kind != KERNELS[bad])
    _, slow = timed
    slow.update(kind for name, kind in KERNELS.items() if name != bad)
    found = matmul_selection.matmul_kernels()
    assert found.wrong == [bad]
    assert found.bf16 != bad
    assert "wrong" in caplog.text
    assert "wrong results, not used" in matmul_selection.describe(found)
    monkeypatch.setenv("RECURRA_MATMUL", bad)
    with pytest.raises(KernelError, match=f"RECURRA_MATMUL is {bad!r}"):
        matmul_selection.matmul_kernels()


@pytest.mark.parametrize("name", ["single", "rounded"])
def test_matmul_kernel_wrong_base_raises(monkeypatch, name):
    monkeypatch.setattr(matmul_selection, "is_correct", lambda kind: kind != KERNELS[name])
    with pytest.raises(KernelError, match="RECURRA_KERNELS=off"):
        matmul_selection.matmul_kernel(torch.float32)


@pytest.mark.parametrize("value", ["rounded", " Rounded"])
def test_matmul_kernel_environment_variable_selects_one(monkeypatch, value):
    monkeypatch.setenv("RECURRA_MATMUL", value)
    assert matmul_selection.matmul_kernel(torch.bfloat16) == KERNELS["rounded"]
    assert matmul_selection.matmul_kernel(torch.float32) == KERNELS["single"]


@pytest.mark.parametrize("value", ["", "auto", "1"])
def test_matmul_kernels_automatic_value_selects_fastest(monkeypatch, timed, value):
    monkeypatch.setenv("RECURRA_MATMUL", value)
    found = matmul_selection.matmul_kernels()
    assert found.bf16 == matmul_results.read().bf16


@pytest.mark.parametrize("value", ["single", "fp32"])
def test_matmul_kernels_unknown_value_raises_with_choices_for_bf16_only(monkeypatch, timed, value):
    monkeypatch.setenv("RECURRA_MATMUL", value)
    with pytest.raises(KernelError, match="choices on this machine are auto, rounded"):
        matmul_selection.matmul_kernels()
    assert matmul_selection.matmul_kernel(torch.float32) == KERNELS["single"]
    assert compatibility.environment(SINGLE_PROCESS, "native", torch.float32)["matmul"] is None


def test_bf16_speedup_is_measured_once_for_each_size(timed):
    calls, slow = timed
    slow.add(KERNELS["single"])
    matmul_selection.matmul_kernels()
    calls.clear()
    assert matmul_selection.bf16_speedup("gru", 40, 8) == SLOW / FAST
    matmul_selection._load_or_measure.cache_clear()
    assert matmul_selection.bf16_speedup("gru", 40, 8) == SLOW / FAST
    assert len(calls) == 1
    matmul_selection.bf16_speedup("gru", 48, 8)
    with cores.use_threads(library.threads() + 1):
        matmul_selection.bf16_speedup("gru", 40, 8)
    assert len(calls) == 3


def test_bf16_speedup_of_two_processes_keeps_both(timed):
    matmul_selection.matmul_kernels()
    stored = matmul_results.read()
    stored.speedups["of another process"] = 2.0
    matmul_results.write(stored)
    matmul_selection.bf16_speedup("gru", 40, 8)
    assert len(matmul_results.read().speedups) == 2


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_bf16_speedup_real_layers_of_odd_sizes_are_measured(cell):
    assert matmul_selection.bf16_speedup(cell, 33, 5) > 0


def test_doctor_and_bench_show_kernel_and_speeds(monkeypatch, capsys):
    # The kernels of this process are loaded; the empty cache has no build.
    monkeypatch.setattr(
        builder, "built_library", lambda variant="native": builder.build_folder() / "library"
    )
    assert main(["doctor", "--json"]) == 0
    found = matmul_selection.matmul_kernels()
    findings = json.loads(capsys.readouterr().out)
    assert findings["bf16 matmul"] == matmul_selection.describe(found)
    assert matmul_selection.DESCRIPTIONS[found.bf16] in matmul_selection.describe(found)
    from recurra.cli import bench

    machine = bench._machine()
    assert machine["bf16_matmul"] == found.bf16
    assert matmul_selection.DESCRIPTIONS[found.bf16] in bench._describe(machine)


def test_kernels_measure_prints_new_result(timed, capsys):
    assert main(["kernels", "measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bf16"] in available()
    assert main(["kernels", "measure"]) == 0
    assert "GFLOP/s" in capsys.readouterr().out


def test_environment_names_kernel_and_older_ones_do_not_differ():
    now = compatibility.environment(SINGLE_PROCESS, "native", torch.bfloat16)
    assert now["matmul"] == matmul_selection.matmul_kernels().bf16
    assert compatibility.environment(SINGLE_PROCESS, "bptt", torch.bfloat16)["matmul"] is None
    older = {name: value for name, value in now.items() if name != "matmul"}
    assert compatibility.other_environment(older, now) == []
    changed = compatibility.other_environment({**now, "matmul": "other"}, now)
    assert len(changed) == 1
    assert changed[0].startswith("matmul is ")


def test_train_with_unknown_matmul_kernel_leaves_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECURRA_MATMUL", "unknown")
    command = ["train", "english-story", "--steps", "2", "--precision", "bf16", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 1
    assert "RECURRA_MATMUL is 'unknown'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
