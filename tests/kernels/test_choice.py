"""The choice of the products by measurement, and where it is stored and shown."""

import json

import pytest
import torch

from recurra.cli.main import main
from recurra.errors import KernelError
from recurra.kernels import builder, choice, library, trials
from recurra.runs import compatibility
from recurra.runtime import cores
from recurra.runtime.distributed import SINGLE_PROCESS

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

SLOW, FAST = 2.0, 1.0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Set RECURRA_CACHE to an empty directory, forget the choice, and return the directory."""
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path))
    monkeypatch.delenv("RECURRA_PRODUCT", raising=False)
    choice._stored.cache_clear()
    yield tmp_path
    choice._stored.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """Replace the measurement: return the calls, and let the kinds in `slow` take longer."""
    calls, slow = [], set()

    def layer_seconds(size, kinds):
        calls.append((str(size), list(kinds)))
        return [SLOW if kind in slow else FAST for kind in kinds]

    monkeypatch.setattr(choice, "layer_seconds", layer_seconds)
    return calls, slow


def available():
    return [name for name, kind in choice.KINDS.items() if library.load().recurra_has_kind(kind)]


def forget_and_choose():
    choice._stored.cache_clear()
    return choice.products()


def test_products_of_this_machine_are_all_correct():
    found = choice.products()
    assert found.wrong == []
    assert all(list(speeds) == available() for speeds in found.gflops.values())
    assert all(speed > 0 for speeds in found.gflops.values() for speed in speeds.values())


@pytest.mark.parametrize("kind", range(len(choice.KINDS)))
def test_is_correct_wrong_kind_is_detected(kind, monkeypatch):
    # A kind without its instructions cannot run: tiles without AMX, pairs without AVX-512 BF16.
    if not library.load().recurra_has_kind(kind):
        pytest.skip("not available on this machine")
    assert trials.is_correct(kind)
    for function in ("dense_product", "gradient_product"):
        original = getattr(trials, function)

        def damaged(*arguments, original=original):
            original(*arguments)
            arguments[3][-1, -1] += 0.01

        with monkeypatch.context() as patch:
            patch.setattr(trials, function, damaged)
            assert not trials.is_correct(kind)


def test_products_fastest_kind_is_chosen(timed):
    _, slow = timed
    for name in available()[1:]:
        slow.clear()
        slow.update(kind for other, kind in choice.KINDS.items() if other != name)
        (builder.build_folder() / choice.FILE).unlink(missing_ok=True)
        assert forget_and_choose().kind == name


def test_products_stored_choice_is_not_measured_again(timed):
    calls, slow = timed
    slow.add(choice.KINDS["rounded"])
    first = choice.products()
    assert calls
    calls.clear()
    slow.symmetric_difference_update(choice.KINDS.values())
    assert forget_and_choose() == first
    assert not calls


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[1]",
        b'{"format": 0}',
        b'{"format": 1, "kind": "pairs", "extra": 1}',
        b'{"format": 1, "kind": "unknown", "gflops": {"size": {"single": 1.0}}}',
    ],
)
def test_products_damaged_file_is_measured_again(timed, damage):
    calls, _ = timed
    path = builder.build_folder() / choice.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    assert choice.products().kind in available()
    assert calls
    assert json.loads(path.read_text("utf-8"))["kind"] == choice.products().kind


def test_products_directory_not_writable_is_measured_without_storing(cache, monkeypatch):
    blocked = cache / "file"
    blocked.touch()
    monkeypatch.setenv("RECURRA_CACHE", str(blocked))
    assert choice.products().kind in available()
    assert choice.bf16_ratio("rnn", 16, 4) > 0


def test_products_wrong_kind_is_never_used(monkeypatch, timed, caplog):
    names = available()[1:]
    # Without bf16 instructions, rounding is the only kind, and nothing is left if it is wrong.
    if len(names) < 2:
        pytest.skip("there is a single kind for bf16")
    bad = names[-1]
    monkeypatch.setattr(choice, "is_correct", lambda kind: kind != choice.KINDS[bad])
    _, slow = timed
    slow.update(kind for name, kind in choice.KINDS.items() if name != bad)
    found = choice.products()
    assert found.wrong == [bad]
    assert found.kind != bad
    assert "wrong" in caplog.text
    assert "wrong results, not used" in found.describe()
    monkeypatch.setenv("RECURRA_PRODUCT", bad)
    with pytest.raises(KernelError, match=f"RECURRA_PRODUCT={bad}"):
        choice.products()


def test_products_wrong_fp32_raises(monkeypatch):
    monkeypatch.setattr(choice, "is_correct", lambda kind: kind != choice.KINDS["single"])
    with pytest.raises(KernelError, match="RECURRA_KERNELS=0"):
        choice.product_kind(torch.float32)


def test_products_environment_variable_selects_kind(monkeypatch):
    monkeypatch.setenv("RECURRA_PRODUCT", "rounded")
    assert choice.product_kind(torch.bfloat16) == choice.KINDS["rounded"]
    assert choice.product_kind(torch.float32) == choice.KINDS["single"]
    for wrong in ("single", "fp32"):
        monkeypatch.setenv("RECURRA_PRODUCT", wrong)
        with pytest.raises(KernelError, match="rounded, pairs or tiles"):
            choice.products()


def test_bf16_ratio_is_measured_once_for_each_size(timed):
    calls, slow = timed
    slow.add(choice.KINDS["single"])
    choice.products()
    calls.clear()
    assert choice.bf16_ratio("gru", 40, 8) == SLOW / FAST
    choice._stored.cache_clear()
    assert choice.bf16_ratio("gru", 40, 8) == SLOW / FAST
    assert len(calls) == 1
    choice.bf16_ratio("gru", 48, 8)
    with cores.chosen(library.threads() + 1):
        choice.bf16_ratio("gru", 40, 8)
    assert len(calls) == 3


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_bf16_ratio_real_layers_of_odd_sizes_are_measured(cell):
    assert choice.bf16_ratio(cell, 33, 5) > 0


def test_doctor_and_bench_show_kind_and_speeds(monkeypatch, capsys):
    # The kernels of this process are loaded; the empty cache has no build.
    monkeypatch.setattr(
        builder, "built_library", lambda variant="native": builder.build_folder() / "library"
    )
    assert main(["doctor", "--json"]) == 0
    found = choice.products()
    findings = json.loads(capsys.readouterr().out)
    assert findings["products"] == found.describe()
    assert choice.DESCRIPTIONS[found.kind] in found.describe()
    from recurra.cli import bench

    machine = bench._machine()
    assert machine["bf16_products"] == found.kind
    assert choice.DESCRIPTIONS[found.kind] in bench._describe(machine)


def test_environment_names_products_and_older_ones_do_not_differ():
    now = compatibility.environment(SINGLE_PROCESS, "native")
    assert now["products"] == choice.products().kind
    assert compatibility.environment(SINGLE_PROCESS, "bptt")["products"] is None
    older = {name: value for name, value in now.items() if name != "products"}
    assert compatibility.other_environment(older, now) == []
    changed = compatibility.other_environment({**now, "products": "other"}, now)
    assert len(changed) == 1
    assert changed[0].startswith("products is ")
