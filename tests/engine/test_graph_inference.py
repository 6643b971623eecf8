"""Generation and evaluation by graphs, with an emulation of CUDA graphs on the CPU."""

import gc
import math
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from recurra.config import ModelConfig
from recurra.engine import device_sampling, graph_decoder, sampling, select
from recurra.engine.decoder import PlainDecoder
from recurra.engine.reader import GraphReader, PlainReader
from recurra.engine.sampling import GenerationConfig, Sampler
from recurra.errors import NonFiniteError
from recurra.inference.evaluate import evaluate
from recurra.inference.generate import generate_ids
from recurra.model import RecurrentLM
from support.recorded import CpuRecorder, RecordedDecoder

VOCAB, SAMPLES = 19, 3
TEXT = np.random.default_rng(0).integers(VOCAB, size=400)
CONFIGS = [
    {},
    {"greedy": True},
    {"temperature": 0.01},
    {"top_k": 5},
    {"top_k": 100},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5, "greedy": True},
]


def make_model(cell="gru", **options):
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, vocab_size=VOCAB, hidden_size=16, backend="bptt", **options)
    return RecurrentLM(config).eval()


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_device_choose_equals_sampler(settings):
    config = GenerationConfig(num_samples=60, seed=1, **settings)
    sampler = Sampler(config, VOCAB, TEXT[:5], [2, 7])
    random = np.random.default_rng(3)
    logits = np.round(random.normal(0.0, 3.0, (60, VOCAB)), 1)  # With ties.
    uniforms = None if sampler.is_greedy else random.random(60)
    seen = None if sampler.seen is None else torch.from_numpy(sampler.seen.copy())
    banned = torch.zeros(VOCAB, dtype=torch.bool)
    banned[[2, 7]] = True
    found = device_sampling.choose(
        torch.from_numpy(logits.copy()),
        None if uniforms is None else torch.from_numpy(uniforms),
        config,
        banned=banned,
        seen=seen,
    )
    if uniforms is not None:
        sampler.uniforms = lambda steps: uniforms[None]
    assert np.array_equal(found, sampler.choose(logits))


def test_device_draw_smallest_and_largest_number_draw_possible_tokens():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]] * 2, dtype=torch.float64)
    uniforms = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert device_sampling.draw(logits, uniforms).tolist() == [1, 2]
    assert sampling.draw(logits.numpy(), uniforms.numpy()).tolist() == [1, 2]


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_graph_decoder_equals_plain_decoder(settings):
    found = []
    for kind in (PlainDecoder, RecordedDecoder):
        decoder = kind(make_model(), SAMPLES)
        config = GenerationConfig(num_samples=SAMPLES, seed=2, **settings)
        sampler = Sampler(config, VOCAB, TEXT[:5], [4])
        first = sampler.choose(decoder.prefill(TEXT[:5]))
        blocks = [decoder.decode(first, 6, sampler)]
        blocks.append(decoder.decode(blocks[0][-1], 7, sampler))
        found.append((np.concatenate(blocks), decoder.state, sampler.seen))
    (plain, state, seen), (other, other_state, other_seen) = found
    assert np.array_equal(other, plain)
    for part, expected in zip(other_state, state, strict=True):
        torch.testing.assert_close(part, expected)
    assert seen is None or np.array_equal(other_seen, seen)
    (graph,) = decoder._recorder.graphs
    assert graph.num_replayed == 12


def test_graph_decoder_long_block_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(graph_decoder, "MAX_STEPS", 8)
    sampler = Sampler(GenerationConfig(seed=0), VOCAB)
    expected = Sampler(GenerationConfig(seed=0), VOCAB)
    decoder, plain = RecordedDecoder(make_model()), PlainDecoder(make_model())
    tokens = np.array([3])
    found = decoder.decode(tokens, 30, sampler)
    assert found.shape == (30, 1)
    assert np.array_equal(found, plain.decode(tokens, 30, expected))


def test_graph_decoder_later_step_not_finite_returns_valid_steps():
    """The embedding of one token is NaN: the step after it fails."""
    model = make_model()
    sampler = Sampler(GenerationConfig(seed=0), VOCAB)
    expected = RecordedDecoder(model).decode(np.array([3]), 40, sampler)[:, 0]
    place = next(i for i in range(5, 40) if expected[i] not in expected[:i])
    with torch.no_grad():
        model.embedding[expected[place]] = math.nan
    decoder = RecordedDecoder(model)
    found = decoder.decode(np.array([3]), 40, Sampler(GenerationConfig(seed=0), VOCAB))
    assert np.array_equal(found[:, 0], expected[: place + 1])
    assert all(torch.isfinite(part).all() for part in decoder.state)
    with pytest.raises(NonFiniteError, match="weights are damaged"):
        decoder.decode(found[-1], 3, sampler)


def test_generate_ids_with_graphs_equals_plain(monkeypatch):
    config = GenerationConfig(num_samples=2, seed=4, max_new_tokens=50)
    model = make_model("lstm")
    plain = list(generate_ids(model, TEXT[:7], config))
    monkeypatch.setattr(select, "_new_recorder", lambda model: CpuRecorder())
    assert isinstance(select.select_decoder(model, 2), graph_decoder.GraphDecoder)
    assert np.array_equal(list(generate_ids(model, TEXT[:7], config)), plain)


@pytest.mark.parametrize("num_streams", [1, 4])
def test_evaluate_with_graphs_equals_plain(monkeypatch, num_streams):
    model, recorders = make_model(), []
    plain = evaluate(model, TEXT, num_streams=num_streams, chunk=10)

    def new_recorder(model):
        recorders.append(CpuRecorder())
        return recorders[-1]

    monkeypatch.setattr(select, "_new_recorder", new_recorder)
    for _ in range(2):
        found = evaluate(model, TEXT, num_streams=num_streams, chunk=10)
        assert found.total_nats == pytest.approx(plain.total_nats, rel=1e-6)
    (recorder,) = recorders
    assert sum(graph.num_replayed for graph in recorder.graphs) > 10


def test_graph_reader_changed_weights_are_read(monkeypatch):
    monkeypatch.setattr(select, "_new_recorder", lambda model: CpuRecorder())
    model = make_model()
    evaluate(model, TEXT, chunk=10)
    with torch.no_grad():
        model.head_weight.mul_(2.0)
    expected = evaluate_plainly(model)
    assert evaluate(model, TEXT, chunk=10).total_nats == pytest.approx(expected, rel=1e-6)
    # With weights in other memory, the graph must be recorded again.
    model.head_weight.data = model.head_weight.data * 0.5
    expected = evaluate_plainly(model)
    assert evaluate(model, TEXT, chunk=10).total_nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("modes", [(True, False, True), (False, True, True, False)])
def test_graph_reader_in_and_outside_of_inference_mode_gives_same_result(monkeypatch, modes):
    monkeypatch.setattr(select, "_new_recorder", lambda model: CpuRecorder())
    model = make_model()
    expected = evaluate_plainly(model)
    for mode in modes:
        with torch.inference_mode(mode):
            assert evaluate(model, TEXT, chunk=10).total_nats == pytest.approx(expected, rel=1e-6)


def test_graph_decoder_in_and_outside_of_inference_mode_gives_same_tokens():
    sampler, found = Sampler(GenerationConfig(num_samples=SAMPLES, greedy=True), VOCAB), []
    for modes in ((False, False), (True, False), (False, True)):
        decoder = RecordedDecoder(make_model(), SAMPLES)
        decoder.prefill(TEXT[:5])
        tokens = TEXT[:SAMPLES]
        for mode in modes:
            with torch.inference_mode(mode):
                tokens = decoder.decode(tokens, 4, sampler)[-1]
        found.append(tokens.tolist())
    assert found[0] == found[1] == found[2]


def test_graph_reader_in_several_threads_gives_same_results(monkeypatch):
    monkeypatch.setattr(select, "_new_recorder", lambda model: CpuRecorder())
    model, switch = make_model(), sys.getswitchinterval()
    texts = [np.random.default_rng(number).integers(VOCAB, size=300) for number in range(3)]
    expected = [evaluate(model, text, chunk=10).total_nats for text in texts]
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda t: evaluate(model, t, chunk=10).total_nats, texts * 3))
    finally:
        sys.setswitchinterval(switch)
    assert found == expected * 3


def evaluate_plainly(model):
    tokens = torch.from_numpy(TEXT)[None]
    with torch.no_grad():
        nats, _ = PlainReader(model).read(tokens, model.zero_state(1))
    return float(nats.sum())


def test_selected_reader_does_not_keep_the_model_alive(monkeypatch):
    monkeypatch.setattr(select, "_new_recorder", lambda model: CpuRecorder())
    model = make_model()
    evaluate(model, TEXT, chunk=10)
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


def test_graphs_are_freed_without_the_garbage_collector(monkeypatch):
    """The garbage collector does not know how much memory of a GPU they have."""
    known = []

    def new_recorder(model):
        recorder = CpuRecorder()
        known.append(weakref.ref(recorder))
        return recorder

    model, config = make_model(), GenerationConfig(seed=4, max_new_tokens=5)
    list(generate_ids(model, TEXT[:7], config))
    monkeypatch.setattr(select, "_new_recorder", new_recorder)
    gc.disable()
    try:
        list(generate_ids(model, TEXT[:7], config))
        evaluate(model, TEXT, chunk=10)
        del model
        assert [recorder() for recorder in known] == [None, None]
    finally:
        gc.enable()


def test_graph_reader_many_shapes_are_computed_without_graph():
    model, recorder = make_model(), CpuRecorder()
    reader, plain = GraphReader(model, recorder), PlainReader(model)
    with torch.no_grad():
        for _ in range(2):
            for steps in range(2, 9):
                tokens, state = torch.from_numpy(TEXT[None, :steps]), model.zero_state(1)
                torch.testing.assert_close(reader.read(tokens, state), plain.read(tokens, state))
    assert len(recorder.graphs) == 4
