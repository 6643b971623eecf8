"""Create a run directory: the text as token ids, the vocabulary and the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from recurra.config import RunConfig, RunOptions
from recurra.config.run import OWNER
from recurra.config.training import LIMITS
from recurra.data.batches import BatchStream
from recurra.data.token_file import build_token_file
from recurra.errors import ConfigError, SourceError, UnknownTokenError
from recurra.inference.language_model import Source
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runs.compatibility import BUDGET_SETTINGS, FREE_SETTINGS, differences
from recurra.runs.directory import RunDirectory
from recurra.runs.staging import staged_run
from recurra.runtime.distributed import is_restart, job_name, may_be_restarted
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.text.corpus import prepare_text
from recurra.text.vocabulary import Vocabulary
from recurra.training import recipe
from recurra.training.context import RunContext
from recurra.training.estimate import SpeedTrial


def create_run(
    directory: RunDirectory,
    sources: Sequence[Source],
    options: RunOptions,
    context: RunContext,
    *,
    force: bool = False,
) -> str:
    """Create a run up to its first step; its directory stays locked. Return the path.

    Settings that were not given are chosen here (`recipe.resolve`). If torchrun has restarted the
    job that created the directory, nothing is created.

    Args:
        directory: the directory of the run, which need not exist.
        sources: the text.
        options: the settings that were given.
        context: the context of the run.
        force: replace an older run in the directory.

    Raises:
        ConfigError, SourceError, RunError: invalid options, text or directory.
    """
    if is_restart() and directory.is_made_by(job_name()):
        refuse_other_settings(directory, options)
        return str(directory.path)
    for line in options.config.ignored():
        context.progress.message(f"note: {line}")
    processes = context.processes
    with staged_run(directory, force=force) as staging:
        tokens, vocabulary = build_token_file(sources, options.config.text, staging.path)
        # Errors must show before the directory changes.
        _check_prompts(vocabulary, options.config)
        config = recipe.resolve(
            options.with_vocab_size(len(vocabulary)),
            len(tokens.train),
            SpeedTrial(tokens.train, processes),
            context,
        )
        BatchStream(tokens.train, config.training, processes)
        staging.write_config(config, [str(source) for source in sources])
        if may_be_restarted():
            staging.claim(job_name())
        create_model(config, processes.device)
    return str(directory.path)


def default_path(sources: Sequence[Source], cell: str) -> Path:
    """Return a new directory: runs/<text>-<cell>, with a number if that exists."""
    return numbered(Path("runs") / f"{short_name(sources)}-{cell}")


def short_name(sources: Sequence[Source]) -> str:
    """Return a short name of a text, for the name of a directory."""
    first = str(sources[0]) if sources else DEFAULT_CORPUS
    return "text" if first == "-" else Path(first).stem or "text"


def numbered(path: Path) -> Path:
    """Return the path, or, if it exists, the path with the first free number from 2 on."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def refuse_other_settings(directory: RunDirectory, options: RunOptions) -> None:
    """Raise an error if a given setting differs from the run's and would change its results."""
    saved, given = RunOptions.from_config(directory.read_config()).values, dict(options.values)
    # The limit 0 is stored as None.
    given |= {name: None for name in LIMITS if given.get(name) == 0}
    free = (*FREE_SETTINGS, *BUDGET_SETTINGS)
    fixed = [name for name in OWNER if name in given and name not in free]
    saved, given = (
        {f"{OWNER[name]}.{name}": values[name] for name in fixed} for values in (saved, given)
    )
    if found := differences(saved, given):
        raise ConfigError(
            f"{directory.path} continues with its original settings, and these differ:"
            f" {'; '.join(found)}; remove these settings, or train a new run with --out"
        )


def create_model(config: RunConfig, device: torch.device) -> RecurrentLM:
    """Return the untrained model of a run, with weights drawn from its seed.

    Raises:
        ConfigError: there is not enough memory for it.
    """
    torch.manual_seed(config.training.seed)
    try:
        return RecurrentLM(config.model).to(device)
    except (RuntimeError, MemoryError) as error:
        size = f"{config.model.num_layers} x {config.model.hidden_size}"
        raise ConfigError(f"there is not enough memory for a model of {size} units") from error


def _check_prompts(vocabulary: Vocabulary, config: RunConfig) -> None:
    for prompt in prepared_prompts(config):
        try:
            vocabulary.encode(prompt)
        except UnknownTokenError as error:
            raise SourceError(
                f"the prompt {prompt!r} contains {error.symbol!r} at position {error.position},"
                " which does not occur in the training part of the text"
            ) from error


def prepared_prompts(config: RunConfig) -> tuple[str, ...]:
    """Return the prompts of the samples, converted like the training text."""
    return tuple(prepare_text(prompt, config.text) for prompt in config.training.prompt)
