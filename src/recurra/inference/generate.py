"""Generate token ids, a stream of text pieces, or whole strings.

The prompt is read once. After that, each token takes one step of the model, in constant time and
memory, because only the hidden state is kept.

`sampling` chooses the tokens, `stopping` detects stop strings, and the vocabulary decodes the ids.
The prompt is continued as given, without a prompt format.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from recurra.config import UnknownRule
from recurra.engine.sampling import GenerationConfig, Ids, Sampler
from recurra.engine.select import select_decoder
from recurra.errors import ConfigError
from recurra.inference.reading import IdArray, as_id_array, evaluation_mode
from recurra.inference.stopping import StopScanner

if TYPE_CHECKING:
    from recurra.model.recurrent_lm import RecurrentLM
    from recurra.text.vocabulary import Vocabulary

__all__ = ["GenerationConfig", "generate", "generate_ids", "stream"]

BLOCK_SECONDS, MAX_BLOCK_IDS, BLOCK_GROWTH = 0.04, 4096, 4
"""Limits of the blocks in which a decoder generates ahead, and the factor by which they grow.

Blocks grow by the factor `BLOCK_GROWTH` while the next one is expected to take at most
`BLOCK_SECONDS` and has at most `MAX_BLOCK_IDS` ids over all samples. Signals are therefore handled
soon, and few tokens are wasted after a stop string. Blocks grow fast, because the threads of the
kernels fall asleep between two blocks.
"""


def generate_ids(
    model: RecurrentLM,
    prompt_ids: IdArray | Tensor | Sequence[int],
    config: GenerationConfig,
    banned_ids: Sequence[int] = (),
) -> Iterator[Ids]:
    """Continue a prompt in `config.num_samples` parallel samples, one token at a time.

    Stop strings are ignored, because ids have no text. Between two tokens, the mode and the
    gradients of the model are restored, so the caller can stop or train at any time. The compiled
    kernels generate some tokens ahead, so an update of the weights affects only later tokens.

    Args:
        model: the model.
        prompt_ids: (N,) integers. If empty, the first token is drawn from `model.initial_logits`.
        config: settings of generation.
        banned_ids: ids that are never generated.

    Yields:
        (num_samples,) int64, the next token of each sample, `config.max_new_tokens` times.

    Raises:
        ConfigError: every token is banned.
        SourceError: the prompt is not a sequence of integers in one dimension.
        IndexError: an id is not in the vocabulary (raised while iterating).
        NonFiniteError: the logits are NaN or infinite (raised while iterating).
    """
    ids = as_id_array(prompt_ids)
    sampler = Sampler(config, model.config.vocab_size, ids, banned_ids)
    return _continue(model, ids, sampler, config)


def stream(
    model: RecurrentLM,
    vocabulary: Vocabulary,
    prompt: str,
    config: GenerationConfig,
    unknown: UnknownRule = "error",
) -> Iterator[str]:
    """Return an iterator over the continuation of a prompt, in pieces, without the prompt.

    A piece is never empty and never contains an incomplete character or a part of a stop string.
    The joined pieces equal the result of `generate`. Stop strings are searched for in the new text
    only, not in the prompt.

    Raises:
        ConfigError: `config.num_samples` is not 1.
        UnknownTokenError: a symbol of the prompt is not in the vocabulary and unknown is "error".
        NonFiniteError: the logits are NaN or infinite (raised while iterating).
    """
    if config.num_samples != 1:
        raise ConfigError(f"num_samples is {config.num_samples}; it must be 1 for a stream")
    return _pieces(_tokens(model, vocabulary, prompt, config, unknown), vocabulary, config)


def generate(
    model: RecurrentLM,
    vocabulary: Vocabulary,
    prompt: str,
    config: GenerationConfig,
    unknown: UnknownRule = "error",
) -> list[str]:
    """Return the continuations of a prompt, one string per sample, without the prompt.

    Each sample ends at a stop string or after `config.max_new_tokens` tokens, independently of the
    others. Generation ends when all samples have ended. `<unk>` is never generated.

    Raises:
        UnknownTokenError: a symbol of the prompt is not in the vocabulary and unknown is "error".
        NonFiniteError: the logits are NaN or infinite.
    """
    decoders = [_SampleDecoder(vocabulary, config) for _ in range(config.num_samples)]
    texts: list[list[str]] = [[] for _ in decoders]
    for chosen in _tokens(model, vocabulary, prompt, config, unknown):
        for decoder, text, token in zip(decoders, texts, chosen, strict=True):
            text.append(decoder.push(int(token)))
        if all(decoder.stopped for decoder in decoders):
            break
    return ["".join(text) + decoder.finish() for decoder, text in zip(decoders, texts, strict=True)]


class _SampleDecoder:
    """Decoder of the tokens of one sample, up to its stop string."""

    def __init__(self, vocabulary: Vocabulary, config: GenerationConfig) -> None:
        self._decoder = vocabulary.decoder()
        self._scanner = StopScanner(config.stop)

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def push(self, token: int) -> str:
        return self._scanner.push(self._decoder.push(token))

    def finish(self) -> str:
        return self._scanner.push(self._decoder.finish()) + self._scanner.finish()


def _pieces(
    tokens: Iterator[Ids], vocabulary: Vocabulary, config: GenerationConfig
) -> Iterator[str]:
    decoder = _SampleDecoder(vocabulary, config)
    for chosen in tokens:
        piece = decoder.push(int(chosen[0]))
        if piece:
            yield piece
        if decoder.stopped:
            return
    piece = decoder.finish()
    if piece:
        yield piece


def _tokens(
    model: RecurrentLM,
    vocabulary: Vocabulary,
    prompt: str,
    config: GenerationConfig,
    unknown: UnknownRule,
) -> Iterator[Ids]:
    banned = [] if vocabulary.unknown_id is None else [vocabulary.unknown_id]
    return generate_ids(model, vocabulary.encode(prompt, unknown), config, banned)


def _continue(
    model: RecurrentLM, prompt_ids: IdArray, sampler: Sampler, config: GenerationConfig
) -> Iterator[Ids]:
    # Leave evaluation mode before each yield, so that the caller can train the model in between.
    decoder = select_decoder(model, config.num_samples)
    with evaluation_mode(model):
        logits = decoder.prefill(prompt_ids)
    chosen = sampler.choose(logits)
    yield chosen
    remaining, size = config.max_new_tokens - 1, 8 if decoder.generates_ahead else 1
    while remaining:
        started = time.perf_counter()
        with evaluation_mode(model):
            block = decoder.decode(chosen, min(size, remaining), sampler)
        is_short = BLOCK_GROWTH * (time.perf_counter() - started) <= BLOCK_SECONDS
        grown = BLOCK_GROWTH * size
        if decoder.generates_ahead and is_short and grown * len(chosen) <= MAX_BLOCK_IDS:
            size = grown
        yield from block
        remaining -= len(block)
        chosen = block[-1]
