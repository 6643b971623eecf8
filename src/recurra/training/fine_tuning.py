"""Fine-tuning: start a run from the weights of another run.

The new run has the settings of the other one, its vocabulary and, after them, the new tokens of its
own text. The weights of each new token are the mean of those of all other tokens (Hewitt, 2021,
"Initializing New Word Embeddings for Pretrained Language Models"), so that the new tokens are
neither more nor less probable than an average one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from recurra.config import RunOptions
from recurra.config.training import BUDGETS
from recurra.data.token_file import TokenFile, load_token_file
from recurra.errors import ConfigError, RunError
from recurra.inference.evaluate import evaluate
from recurra.inference.language_model import LanguageModel
from recurra.io.files import sha256_of
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.progress import format_list
from recurra.runs.directory import RunDirectory
from recurra.text.vocabulary import Vocabulary

STRUCTURE = (
    "tokens",
    "cell",
    "hidden_size",
    "num_layers",
    "residual",
    "embedding_size",
    "tie_weights",
)
"""Settings that determine the shapes of the weights; they cannot differ from those of the base."""
INITIALIZATION = ("init", "forget_bias", "chrono")
"""Settings that determine the weights before the first step; the base determines them instead."""
OWN_SETTINGS = (
    *("encoding", "separator", "max_tokens", "shuffle_lines", "new_tokens"),
    *(*BUDGETS, "max_epochs", "patience", "report_every", "checkpoint_every", "sample_every"),
    *("device", "threads", "plot"),
)
"""Settings that a run does not inherit: those of the text, the budget and the machine."""
LR_FACTOR = 0.5
"""The learning rate, relative to that of the base; see docs/results/quality.md."""
MAX_EVALUATED_TOKENS = 2**16
"""Maximum number of tokens in the evaluation before the first step."""


def inherit_settings(options: RunOptions, base: LanguageModel) -> RunOptions:
    """Return the options with the settings of a base run added.

    Args:
        options: the settings that were given.
        base: the model to fine-tune.

    Raises:
        ConfigError: a given setting does not fit the weights of the base.
    """
    settings = RunOptions.from_config(base.config).values
    for name in (*STRUCTURE, *INITIALIZATION):
        if options.is_given(name) and options.values[name] != settings[name]:
            raise ConfigError(
                f"{name} is {options.values[name]}, but that of {base.path}, which is fine-tuned,"
                f" is {settings[name]}; remove {name}, or train a new model without a base"
            )
    kept = {name: value for name, value in settings.items() if name not in OWN_SETTINGS}
    kept["lr"] = LR_FACTOR * settings["lr"]
    # A given value replaces the inherited one, also where that is None (no limit).
    return RunOptions({**kept, **options.values}, options.vocab_size)


def limit_batches_to_text(options: RunOptions, given: Collection[str], num_ids: int) -> RunOptions:
    """Return the options with smaller inherited batches if the text is short.

    Args:
        options: the settings with those of the base.
        given: the names of the settings that the user gave; they are kept.
        num_ids: number of tokens in the training part of the text.
    """
    config = options.config.training
    num_steps, rows = config.num_steps, config.batch_size
    if "num_steps" not in given:
        limit = max(config.window_growth, min(num_steps, num_ids // 4))
        num_steps = limit - limit % config.window_growth
    if "batch_size" not in given:
        limit = max(config.batch_growth, min(rows, num_ids // (4 * num_steps)))
        rows = limit - limit % config.batch_growth
    return options.replaced(num_steps=num_steps, batch_size=rows)


def initial_model(base: LanguageModel, model: RecurrentLM) -> RecurrentLM:
    """Copy the weights of a base into a new model; new tokens have the mean of the others.

    Args:
        base: the model to fine-tune.
        model: a model of the same structure, with a vocabulary that begins with that of the base.
    """
    old = base.model.state_dict()
    num_new = model.config.vocab_size - len(base.vocabulary)
    is_one_hot = not model.config.embedding_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_extended(name, old[name], num_new, is_one_hot=is_one_hot))
    return model


def _extended(name: str, weight: Tensor, num_new: int, *, is_one_hot: bool) -> Tensor:
    """Return a parameter for more tokens.

    Args:
        name: the name of the parameter.
        weight: the parameter of the base.
        num_new: number of new tokens.
        is_one_hot: whether the first layer reads tokens without an embedding.
    """
    if name in ("embedding", "head_weight", "head_bias"):
        mean = weight.mean(dim=0, keepdim=True)
        return torch.cat([weight, mean.expand(num_new, *weight.shape[1:])])
    if name == "weight_ih_l0" and is_one_hot:
        # A token is a column.
        mean = weight.mean(dim=1, keepdim=True)
        return torch.cat([weight, mean.expand(-1, num_new)], dim=1)
    return weight


def describe_base(base: LanguageModel, vocabulary: Vocabulary) -> str:
    """Return a line that names the base and the new tokens."""
    new = range(len(base.vocabulary), len(vocabulary))
    added = (
        f"new tokens: {format_list([vocabulary.label(i) for i in new])}" if new else "no new tokens"
    )
    return f"base      {base.path}: {base!r}; {added}"


def describe_start(model: RecurrentLM, tokens: TokenFile) -> list[str]:
    """Return a line with the validation loss before the first step; [] without validation."""
    if len(tokens.val) < 2:
        return []
    loss = evaluate(model, tokens.val[:MAX_EVALUATED_TOKENS]).nats_per_token
    return [f"base      validation loss on this text before training: {loss:.3f} nats"]


def base_record(base: LanguageModel, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the record of the base in config.json, see `provenance.BASE_FIELDS`."""
    assert base.path is not None
    directory = RunDirectory(base.path)
    new = range(len(base.vocabulary), len(vocabulary))
    return {
        "run": str(base.path),
        "weights_sha256": sha256_of(directory.model),
        "sources": directory.read_sources(),
        "text_sha256": _text_digest(directory),
        "new_tokens": [vocabulary.decode([token]) for token in new],
    }


def _text_digest(directory: RunDirectory) -> str | None:
    """Return the SHA-256 of the text of a run; None if the directory has only the model."""
    try:
        return load_token_file(directory.path).sha256
    except RunError:
        return None
