"""The loop: it learns, reports, saves, stops when told, and resumes bit for bit."""

import itertools
import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from recurra import api
from recurra.config import ModelConfig, RunConfig
from recurra.errors import DivergenceError, NonFiniteError, RunError
from recurra.model import RecurrentLM
from recurra.recurrence import scan
from recurra.training.batches import BatchStream
from recurra.training.budget import Clock
from recurra.training.progress import Progress
from recurra.training.run_folder import RunFolder

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
def test_every_cell_learns_a_simple_text(source, tmp_path, cell):
    lm = run(source, tmp_path / "run", cell=cell, epochs=25)
    assert lm.evaluate(TEXT).perplexity < 1.6


def test_the_cell_without_state_learns_only_pairs(source, tmp_path):
    lm = run(source, tmp_path / "run", cell="none", epochs=25)
    pairs, singles = {}, {}
    for a, b in itertools.pairwise(TEXT):
        pairs[a, b] = pairs.get((a, b), 0) + 1
        singles[a] = singles.get(a, 0) + 1
    total = sum(pairs.values())
    entropy = -sum(n / total * math.log(n / singles[a]) for (a, _), n in pairs.items())
    assert lm.evaluate(TEXT).nats_per_token == pytest.approx(entropy, abs=0.05)


def test_a_run_is_a_folder_of_readable_files(source, tmp_path):
    folder = tmp_path / "run"
    run(source, folder, steps=40, prompt=("the ", "a"), plot=True)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "config.json", "vocabulary.json", "tokens.bin", "tokens.json", "model.safetensors",
        "metrics.jsonl", "samples.jsonl", "checkpoints/last.safetensors", "loss.svg",
    }  # fmt: skip
    metrics = lines(folder)
    assert [m["step"] for m in metrics] == list(range(2, 41, 2))
    for record in metrics:
        assert record["perplexity"] == pytest.approx(math.exp(record["val_nats"]))
        assert record["bits_per_char"] == pytest.approx(record["val_nats"] / math.log(2))
    assert [s["prompt"] for s in lines(folder, "samples.jsonl")[:2]] == ["the ", "a"]
    assert "<svg" in (folder / "loss.svg").read_text("utf-8")


def test_the_best_weights_are_the_ones_loaded(source, tmp_path):
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
    """Presses Ctrl-C after a number of updates."""

    def __init__(self, step):
        self.step = step

    def moment(self, moment):
        if moment.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("stop", [1, 17, 33])
def test_an_interrupted_run_goes_on_bit_for_bit(source, tmp_path, sampling, stop):
    options = {
        "steps": 40, "num_layers": 2, "dropout": 0.3, "sampling": sampling, "report_every": 6,
    }  # fmt: skip
    run(source, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "parts", StopAt(stop), **options)
    api.load(tmp_path / "parts")
    api.resume_run(tmp_path / "parts", Progress(), Clock())
    for name in ("model.safetensors", "samples.jsonl", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    timed = ("seconds", "tokens_per_second")
    for a, b in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


def test_resuming_a_finished_run_changes_nothing(source, tmp_path):
    run(source, tmp_path / "run", steps=10)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    api.resume_run(tmp_path / "run", Progress(), Clock())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_other_settings_is_refused(source, tmp_path):
    run(source, tmp_path / "run", steps=10)
    config = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    config["training"]["lr"] = 0.5
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(RunError, match="other settings"):
        api.resume_run(tmp_path / "run", Progress(), Clock())


def test_same_seed_same_run_other_seed_other_run(source, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(source, tmp_path / name, steps=12, dropout=0.2, num_layers=2, seed=seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_early_stopping(source, tmp_path):
    folder = tmp_path / "run"
    run(source, folder, steps=4000, lr=0.3, schedule="constant", report_every=5, patience=3)
    metrics = lines(folder)
    best = min(range(len(metrics)), key=lambda i: metrics[i]["val_nats"])
    assert len(metrics) - 1 - best == 3
    assert metrics[-1]["step"] < 4000


def test_a_minute_budget_includes_everything(source, tmp_path):
    clock = Clock()
    run(source, tmp_path / "run", minutes=0.05, schedule="cosine")
    assert 1.5 < clock.seconds() < 6.0
    assert lines(tmp_path / "run")[-1]["lr"] < 1e-2 * 0.5


def test_exploding_learning_rate_stops_with_a_reason(source, tmp_path):
    options = {"cell": "rnn-relu", "optimizer": "sgd", "clip_norm": None, "schedule": "constant"}
    with pytest.raises(DivergenceError, match=r"try a smaller --lr \(it is 1e\+06\)"):
        run(source, tmp_path / "run", lr=1e6, steps=200, warmup=0.0, **options)


def test_a_non_finite_gradient_stops_before_the_update(source, tmp_path, monkeypatch):
    monkeypatch.setattr(RecurrentLM, "reset_parameters", lambda self: _fill(self, 1e30))
    with pytest.raises(NonFiniteError, match="before update 1"):
        run(source, tmp_path / "run", steps=5, cell="rnn-relu")


def _fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_full_bptt_makes_one_update_an_epoch(source, tmp_path):
    run(source, tmp_path / "run", bptt="full", epochs=3, report_every=1)
    assert [m["step"] for m in lines(tmp_path / "run")] == [1, 2, 3]


def test_randomised_truncation_is_unbiased():
    """Its mean gradient over many draws is that of full BPTT, within four standard errors."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 5, size=41)
    model = RecurrentLM(ModelConfig(cell="rnn", hidden_size=4, vocab_size=5)).double()
    options = {"batch_size": 2, "hidden_size": 4}

    def gradient(seed, **settings):
        config = RunConfig.from_options(**options, **settings, seed=seed).training
        stream = BatchStream(ids, config)
        # Every epoch begins at the same token, so that only the truncation differs.
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


def test_the_carried_state_is_detached_and_passed_on(source, tmp_path, monkeypatch):
    seen = []
    original = scan.run_stack

    def spy(cell, inputs, state, *args, **kwargs):
        outputs, final = original(cell, inputs, state, *args, **kwargs)
        if torch.is_grad_enabled():
            seen.append((state, final))
        return outputs, final

    monkeypatch.setattr("recurra.model.run_stack", spy)
    run(source, tmp_path / "run", steps=4, report_every=100, cell="lstm")
    training = seen[-4:]
    assert training[0][0] is None
    for (_, final), (state, _) in itertools.pairwise(training):
        assert all(
            torch.equal(a, b) and not b.requires_grad for a, b in zip(final, state, strict=True)
        )


@pytest.mark.parametrize(
    ("tokens", "extra"), [("byte", {}), ("word", {"min_freq": 2}), ("bpe", {"vocab_size": 280})]
)
def test_other_tokens_train_report_and_load(source, tmp_path, tokens, extra):
    folder = tmp_path / "run"
    run(source, folder, tokens=tokens, steps=10, batch_size=2, num_steps=8, **extra)
    lm = api.load(folder)
    assert lm.config.model.vocab_size == len(lm.vocabulary)
    assert lm.generate(" cat", max_new_tokens=5, seed=0) == lm.generate(
        " cat", max_new_tokens=5, seed=0
    )
    record = lines(folder)[-1]
    assert record["bits_per_char"] > 0
    assert RunFolder(folder).best_metrics()["step"] <= 10
