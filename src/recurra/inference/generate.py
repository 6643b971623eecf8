"""Generation of ids, of a stream of text pieces, and of whole strings.

The prompt is read once; after that a token costs one step of the model, in constant time and
memory, however long the text becomes: all that is kept is the model's state.

How a token is chosen is `sampling`'s business, where a text ends `stopping`'s, and how ids become
text the vocabulary's. Knows no prompt format: the text is continued as it stands.
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

SHORTEST_BLOCK, MOST_IDS = 0.02, 4096
"""A decoder that generates ahead does so in blocks, which grow until one takes this many seconds or
has this many ids: a signal is handled soon, and a text that ends at a stop string costs little more
than its own tokens."""


def generate_ids(
    model: RecurrentLM,
    prompt_ids: IdArray | Tensor | Sequence[int],
    config: GenerationConfig,
    banned_ids: Sequence[int] = (),
) -> Iterator[Ids]:
    """Continue a prompt, one token at a time, in `config.num_samples` samples side by side.

    Stop strings are not looked at here: ids have no text. Between two tokens the model is as it
    was found, training mode and gradients included, so the caller may stop, or train, at any time.
    Where the compiled kernels write, they write some tokens ahead: what is learned meanwhile shows
    in those after them.

    Args:
        prompt_ids: (N,) integers; with none, the first token is drawn from `model.initial_logits`.
        banned_ids: never written.

    Yields:
        (num_samples,) int64, the next token of every sample, `config.max_new_tokens` times.

    Raises:
        ConfigError: every token is banned.
        NonFiniteError: the model's logits are NaN or infinite (while iterating).
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
    """The continuation of a prompt (without the prompt), piece by piece as it becomes certain.

    A piece is never empty and never holds half a character or part of a stop string; joined, the
    pieces are what `generate` returns. Only new text can stop it, not the prompt's own end.

    Raises:
        ConfigError: `config.num_samples` is not 1.
        UnknownTokenError: a symbol of the prompt is not in the vocabulary and unknown is "error".
        NonFiniteError: the model's logits are NaN or infinite (while iterating).
    """
    if config.num_samples != 1:
        raise ConfigError(f"a stream is one text; num_samples is {config.num_samples}")
    return _pieces(_tokens(model, vocabulary, prompt, config, unknown), vocabulary, config)


def generate(
    model: RecurrentLM,
    vocabulary: Vocabulary,
    prompt: str,
    config: GenerationConfig,
    unknown: UnknownRule = "error",
) -> list[str]:
    """Continuations of a prompt (without the prompt), one string per sample.

    Each ends at its own stop string or after `config.max_new_tokens` tokens; a sample that has
    ended does not change the others, and the work ends with the last of them. `<unk>` is never
    written.

    Raises:
        UnknownTokenError: a symbol of the prompt is not in the vocabulary and unknown is "error".
        NonFiniteError: the model's logits are NaN or infinite.
    """
    writers = [_Writer(vocabulary, config) for _ in range(config.num_samples)]
    texts: list[list[str]] = [[] for _ in writers]
    for chosen in _tokens(model, vocabulary, prompt, config, unknown):
        for writer, text, token in zip(writers, texts, chosen, strict=True):
            text.append(writer.push(int(token)))
        if all(writer.stopped for writer in writers):
            break
    return ["".join(text) + writer.finish() for writer, text in zip(writers, texts, strict=True)]


class _Writer:
    """Turns the tokens of one sample into text, up to its stop string."""

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
    writer = _Writer(vocabulary, config)
    for chosen in tokens:
        piece = writer.push(int(chosen[0]))
        if piece:
            yield piece
        if writer.stopped:
            return
    piece = writer.finish()
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
    # Evaluation mode is entered for each call of the model and left before each yield.
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
        is_short = time.perf_counter() - started < SHORTEST_BLOCK
        if decoder.generates_ahead and is_short and 2 * size * len(chosen) <= MOST_IDS:
            size *= 2
        yield from block
        remaining -= len(block)
        chosen = block[-1]
