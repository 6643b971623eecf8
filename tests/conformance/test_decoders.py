"""Every decoder is compared with the plain decoder and with the model."""

import numpy as np
import pytest
import torch

from recurra.config import ModelConfig
from recurra.engine.compiled_decoder import CompiledDecoder
from recurra.engine.decoder import PlainDecoder
from recurra.engine.sampling import GenerationConfig, Sampler
from recurra.kernels import library
from recurra.model import RecurrentLM
from support.recorded import RecordedDecoder

needs_kernels = pytest.mark.skipif(not library.is_available(), reason="no compiled kernels")
DECODERS = [PlainDecoder, RecordedDecoder, pytest.param(CompiledDecoder, marks=needs_kernels)]
VOCAB = 17
PROMPT = np.array([3, 1, 4, 1, 5])


def make_model(cell="lstm"):
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, vocab_size=VOCAB, hidden_size=24, num_layers=2)
    return RecurrentLM(config).eval()


def make_sampler(num_samples, **settings):
    return Sampler(GenerationConfig(num_samples=num_samples, seed=5, **settings), VOCAB, PROMPT)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("settings", [{}, {"greedy": True}, {"top_k": 4, "temperature": 0.7}])
def test_decoder_equals_plain_decoder(kind, cell, settings):
    found = []
    for decoder in (PlainDecoder(make_model(cell), 3), kind(make_model(cell), 3)):
        sampler = make_sampler(3, **settings)
        first = sampler.choose(decoder.prefill(PROMPT))
        tokens = decoder.decode(first, 20, sampler)
        found.append((first, tokens, decoder.step(tokens[-1])))
    for plain, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoder_step_equals_model(kind):
    model = make_model()
    decoder = kind(model, 1)
    found = [decoder.prefill(PROMPT[:2]), *(decoder.step(PROMPT[i : i + 1]) for i in (2, 3, 4))]
    with torch.no_grad():
        logits, state = model(torch.from_numpy(PROMPT)[None])
    np.testing.assert_allclose(np.concatenate(found), logits[0, 1:], rtol=1e-4, atol=1e-5)
    for part, expected in zip(decoder.state, state, strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoder_restored_state_repeats_exactly(kind):
    decoder = kind(make_model(), 2)
    decoder.prefill(PROMPT)
    kept = tuple(part.clone() for part in decoder.state)
    tokens = np.array([2, 7])
    first = decoder.decode(tokens, 30, make_sampler(2))
    assert not all(map(torch.equal, kept, decoder.state))
    decoder.state = kept
    again = decoder.decode(tokens, 30, make_sampler(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoder_empty_prompt_starts_at_zero_state(kind):
    model = make_model()
    decoder = kind(model, 2)
    decoder.prefill(PROMPT)
    logits = decoder.prefill(PROMPT[:0])
    np.testing.assert_allclose(logits, model.initial_logits(2).detach().numpy(), rtol=1e-6)
    assert not any(part.any() for part in decoder.state)
