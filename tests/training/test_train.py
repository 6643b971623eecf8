"""The training loop: learning, reports, budgets, interruption and exact resumption."""

import itertools
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from recurra import api
from recurra.config import ModelConfig, RunConfig
from recurra.data.batches import BatchStream
from recurra.data.token_file import load_token_file
from recurra.engine.autograd import AutogradEngine
from recurra.engine.compiled import CompiledEngine
from recurra.errors import DivergenceError, NonFiniteError, RunError
from recurra.model import RecurrentLM
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training import run as run_module

TEXT = "the cat sat on the mat and the dog sat on the log. " * 40
SMALL = {"hidden_size": 24, "batch_size": 4, "num_steps": 16, "lr": 1e-2, "sample_length": 20}


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def run(source, folder, progress=None, **options):
    options = SMALL | options
    return api.train(source, out=folder, progress=progress or Progress(), **options)


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("cell", ["rnn", "rnn-relu", "gru", "lstm"])
def test_train_every_cell_learns_simple_text(source, tmp_path, cell):
    lm = run(source, tmp_path / "run", cell=cell, epochs=25)
    assert lm.evaluate(TEXT).perplexity < 1.6


def test_train_cell_none_learns_only_bigrams(source, tmp_path):
    lm = run(source, tmp_path / "run", cell="none", epochs=25)
    pairs, singles = {}, {}
    for a, b in itertools.pairwise(TEXT):
        pairs[a, b] = pairs.get((a, b), 0) + 1
        singles[a] = singles.get(a, 0) + 1
    total = sum(pairs.values())
    entropy = -sum(n / total * math.log(n / singles[a]) for (a, _), n in pairs.items())
    assert lm.evaluate(TEXT).nats_per_token == pytest.approx(entropy, abs=0.05)


def test_train_run_directory_has_expected_files(source, tmp_path):
    folder = tmp_path / "run"
    run(source, folder, steps=40, prompt=("the ", "a"), plot=True)
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    names = {str(p.relative_to(folder)) for p in files}
    assert names == {
        "config.json", "vocabulary.json", "tokens.bin", "tokens.json", "model.safetensors",
        "metrics.jsonl", "loss.jsonl", "samples.jsonl", "loss.svg",
    } | {
        f"checkpoints/{name}/{file}"
        for name in ("step-00000040", "step-00000040-final")
        for file in (
            "state.safetensors", "training.json", "session.json", "best.safetensors",
            "manifest.sha256",
        )
    }  # fmt: skip
    metrics = lines(folder)
    assert [m["step"] for m in metrics] == list(range(2, 41, 2))
    for record in metrics:
        assert record["perplexity"] == pytest.approx(math.exp(record["val_nats"]))
        assert record["bits_per_char"] == pytest.approx(record["val_nats"] / math.log(2))
    assert [s["prompt"] for s in lines(folder, "samples.jsonl")[:2]] == ["the ", "a"]
    assert "<svg" in (folder / "loss.svg").read_text("utf-8")


def test_load_returns_best_weights(source, tmp_path):
    folder = tmp_path / "run"
    lm = run(source, folder, steps=60, lr=0.05, schedule="constant", report_every=5)
    best = min(m["val_nats"] for m in lines(folder))
    val = lm.read()
    loaded = api.load(folder)
    ids = lm.vocabulary.encode(val)
    from recurra.inference.evaluate import evaluate

    assert evaluate(loaded.model, ids, num_streams=4).nats_per_token == pytest.approx(
        best, rel=1e-5
    )


class StopAt(Progress):
    """Sends SIGINT to this process after step `step`."""

    def __init__(self, step):
        self._stop_at = step

    def step(self, metrics):
        if metrics.step == self._stop_at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("stop", [1, 17, 33])
def test_resume_interrupted_run_is_bit_identical(source, tmp_path, sampling, stop):
    options = {
        "steps": 40, "num_layers": 2, "dropout": 0.3, "sampling": sampling, "report_every": 6,
    }  # fmt: skip
    run(source, tmp_path / "uninterrupted", **options)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "parts", StopAt(stop), **options)
    api.load(tmp_path / "parts")
    run_module.resume_run(tmp_path / "parts", Progress(), Clock())
    for name in ("model.safetensors", "samples.jsonl", "config.json"):
        assert (tmp_path / "uninterrupted" / name).read_bytes() == (
            tmp_path / "parts" / name
        ).read_bytes()
    timed = ("seconds", "tokens_per_second")
    for a, b in zip(lines(tmp_path / "uninterrupted"), lines(tmp_path / "parts"), strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


def test_resume_finished_run_changes_nothing(source, tmp_path):
    run(source, tmp_path / "run", steps=10)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run_module.resume_run(tmp_path / "run", Progress(), Clock())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_train_equal_seeds_give_equal_weights(source, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(source, tmp_path / name, steps=12, dropout=0.2, num_layers=2, seed=seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_train_patience_stops_early(source, tmp_path):
    folder = tmp_path / "run"
    run(source, folder, steps=4000, lr=0.3, schedule="constant", report_every=5, patience=3)
    metrics = lines(folder)
    best = min(range(len(metrics)), key=lambda i: metrics[i]["val_nats"])
    assert len(metrics) - 1 - best == 3
    assert metrics[-1]["step"] < 4000


def test_train_diverging_lr_raises_divergence_error(source, tmp_path):
    options = {"cell": "rnn-relu", "optimizer": "sgd", "clip_norm": 0, "schedule": "constant"}
    with pytest.raises(DivergenceError, match=r"--lr .*1e\+06"):
        run(source, tmp_path / "run", lr=1e6, steps=200, warmup=0.0, **options)


def test_train_non_finite_gradient_raises_before_update(source, tmp_path, monkeypatch):
    monkeypatch.setattr(RecurrentLM, "reset_parameters", lambda self: _fill(self, 1e30))
    with pytest.raises(NonFiniteError, match=r"\bupdate 1\b"):
        run(source, tmp_path / "run", steps=5, cell="rnn-relu")
    (failure,) = lines(tmp_path / "run", "failures.jsonl")
    assert (failure["step"], failure["epoch"], failure["batch"]) == (0, 0, 0)
    assert "weight" in failure["reason"] or "the loss is" in failure["reason"]
    train = TEXT[: load_token_file(tmp_path / "run").num_train]
    for start, text in zip(failure["starts"], failure["text"], strict=True):
        assert text == train[start : start + SMALL["num_steps"]]


def _fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_train_full_bptt_has_one_update_per_epoch(source, tmp_path):
    run(source, tmp_path / "run", bptt="full", epochs=3, report_every=1)
    assert [m["step"] for m in lines(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.slow
def test_randomized_bptt_gradient_is_unbiased():
    """The mean gradient of many draws is within four standard errors of full BPTT."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 5, size=41)
    model = RecurrentLM(ModelConfig(cell="rnn", hidden_size=4, vocab_size=5)).double()
    options = {"batch_size": 2, "hidden_size": 4}

    def gradient(seed, **settings):
        config = RunConfig.from_options(**options, **settings, seed=seed).training
        stream = BatchStream(ids, config)
        # Every epoch starts at the same token, so that only the truncation differs.
        stream._max_offset = 0
        model.zero_grad()
        state, tokens = None, 0
        for batch in stream.epoch(0):
            loss, state = model.loss(
                torch.from_numpy(batch.ids),
                torch.from_numpy(batch.targets),
                state,
                recurrent_gradient_scale=stream.recurrent_gradient_scale,
            )
            (loss * batch.num_tokens).backward()
            state = tuple(s.detach() for s in state)
            tokens += batch.num_tokens
        assert tokens == 40
        return model.weight_hh_l0.grad.flatten().clone()

    full = gradient(0, bptt="full")
    draws = torch.stack([gradient(seed, bptt="randomized", num_steps=3) for seed in range(1500)])
    error = draws.std(0) / len(draws) ** 0.5
    assert float(((draws.mean(0) - full).abs() / error).max()) < 4.0
    truncated = gradient(0, bptt="truncated", num_steps=2)
    assert float(((truncated - full).abs() / error).max()) > 8.0


@pytest.mark.parametrize("backend", ["auto", "bptt"])
def test_engine_state_is_detached_and_carried(source, tmp_path, monkeypatch, backend):
    states = []

    for engine in (CompiledEngine, AutogradEngine):

        def record_states(self, batch, lr, original=engine.step):
            before = self.state and [part.clone() for part in self.state]
            original(self, batch, lr)
            after = [part.clone() for part in self.state]
            states.append((self, before, after))

        monkeypatch.setattr(engine, "step", record_states)
    run(source, tmp_path / "run", steps=4, report_every=100, cell="lstm", backend=backend)
    # The first steps measure the speed, with a separate engine.
    steps = [(before, after) for engine, before, after in states if engine is states[-1][0]]
    assert len(steps) == 4
    assert steps[0][0] is None
    for (_, after), (before, _) in itertools.pairwise(steps):
        assert all(
            torch.equal(a, b) and not b.requires_grad for a, b in zip(after, before, strict=True)
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_train_backends_give_equal_losses(source, tmp_path, optimizer):
    options = {"steps": 12, "report_every": 4, "lr": 0.02, "cell": "gru", "optimizer": optimizer}
    options |= {"weight_decay": 0.1, "momentum": 0.9 if optimizer == "sgd" else 0.0}
    options |= {"clip_norm": 0.5, "num_layers": 2, "dropout": 0.1}
    losses = []
    for backend in ("auto", "reference"):
        run(source, tmp_path / backend, backend=backend, **options)
        losses.append([line["train_nats"] for line in lines(tmp_path / backend)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


@pytest.mark.parametrize(
    ("tokens", "extra"), [("byte", {}), ("word", {"min_freq": 2}), ("bpe", {"vocab_size": 280})]
)
def test_train_other_tokens_load_and_generate(source, tmp_path, tokens, extra):
    folder = tmp_path / "run"
    run(source, folder, tokens=tokens, steps=10, batch_size=2, num_steps=8, **extra)
    lm = api.load(folder)
    assert lm.config.model.vocab_size == len(lm.vocabulary)
    assert lm.generate(" cat", max_new_tokens=5, seed=0) == lm.generate(
        " cat", max_new_tokens=5, seed=0
    )
    record = lines(folder)[-1]
    assert record["bits_per_char"] > 0
    assert RunDirectory(folder).best_metrics()["step"] <= 10


def test_bits_per_char_counts_characters_of_unknown_tokens(tmp_path):
    """Rare words become <unk>, but their characters still count."""
    file = tmp_path / "text.txt"
    words = ["alpha", "beta", "gamma", "delta"]
    file.write_text(" ".join(words[n % 4] if n % 5 else f"rare{n}" for n in range(900)), "utf-8")
    folder = tmp_path / "run"
    lm = run(file, folder, tokens="word", min_freq=3, steps=20, report_every=20)
    val = file.read_text("utf-8")[-load_token_file(folder).val_chars :]
    expected, found = lm.evaluate(val), lm.validate()
    assert found.num_unknown > 10
    assert found.total_nats == pytest.approx(expected.total_nats, rel=1e-4)
    # The first token is not predicted; if it is unknown, it counts as one character.
    assert found.bits_per_char == pytest.approx(expected.bits_per_char, rel=0.02)
    assert lines(folder)[-1]["bits_per_char"] == pytest.approx(found.bits_per_char, rel=0.02)


@pytest.mark.parametrize("stop", [4, 8])
def test_resume_interrupt_at_report_keeps_all_reports(source, tmp_path, stop):
    options = {"steps": 12, "report_every": 4}
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "run", StopAt(stop), **options)
    run_module.resume_run(tmp_path / "run", Progress(), Clock())
    assert [m["step"] for m in lines(tmp_path / "run")] == [4, 8, 12]


def test_resume_without_checkpoints_starts_over(source, tmp_path):
    run(source, tmp_path / "uninterrupted", steps=8)
    run(source, tmp_path / "cut", steps=8)
    (tmp_path / "cut" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    run_module.resume_run(tmp_path / "cut", Progress(), Clock())
    files = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("uninterrupted", "cut")
    ]
    assert files[0] == files[1]
    assert [m["step"] for m in lines(tmp_path / "cut")] == list(range(1, 9))


def test_resume_discards_incomplete_metrics_line(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "run", StopAt(6), steps=9, report_every=2)
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "trai')
    run_module.resume_run(tmp_path / "run", Progress(), Clock())
    assert [m["step"] for m in lines(tmp_path / "run")] == [2, 4, 6, 8, 9]


def test_train_prompts_are_normalized_like_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    run(file, tmp_path / "run", letters_only=True, prompt="The CAT!", steps=3)
    assert {s["prompt"] for s in lines(tmp_path / "run", "samples.jsonl")} == {"the cat"}


def test_train_force_replaces_only_run_files(source, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(source, folder, steps=2)
    (folder / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(RunError, match=r"notes\.txt"):
        run(source, folder, steps=2, force=True)
    (folder / "notes.txt").unlink()
    monkeypatch.chdir(folder)
    with pytest.raises(RunError, match=r"(folder|directory).*--out"):
        run(source, ".", steps=2, force=True)
    api.load(folder)
    monkeypatch.chdir(tmp_path)
    run(source, "run", steps=3, force=True)
    assert lines(folder)[-1]["step"] == 3
    for name in (".notes", "checkpoints/mine/thesis.txt"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine", "utf-8")
        with pytest.raises(RunError, match=name):
            run(source, "run", steps=3, force=True)
        (tmp_path / "run" / name).unlink()
    foreign = tmp_path / "other"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"architectures": []}', "utf-8")
    with pytest.raises(RunError, match=r"run.*--out"):
        run(source, foreign, steps=2, force=True)


def test_train_early_failure_keeps_record_and_checkpoint(source, tmp_path):
    with pytest.raises(DivergenceError):
        run(
            source, tmp_path / "run", cell="rnn-relu", optimizer="sgd", clip_norm=0,
            lr=1e30, warmup=0.0, schedule="constant", steps=100, report_every=100,
        )  # fmt: skip
    assert lines(tmp_path / "run", "failures.jsonl")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000000"]
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        api.load(tmp_path / "run")
