"""Create a run directory: the text as token ids, the vocabulary and the configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from recurra.config import RunConfig, RunOptions
from recurra.config.run import OWNER
from recurra.config.training import LIMITS
from recurra.data.batches import BatchStream
from recurra.data.split import describe_split
from recurra.data.token_file import TokenFile, build_token_file, load_vocabulary
from recurra.errors import ConfigError, SourceError, UnknownTokenError
from recurra.inference.language_model import LanguageModel
from recurra.inference.loading import load_language_model
from recurra.kernels.matmul_selection import matmul_kernel
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.folders import describe_folder
from recurra.report.usability import describe_short_text
from recurra.runs.compatibility import BUDGET_SETTINGS, FREE_SETTINGS, differences
from recurra.runs.config_file import read_config_file
from recurra.runs.directory import RunDirectory
from recurra.runs.provenance import Provenance
from recurra.runs.staging import staged_run
from recurra.runs.weights import save_weights
from recurra.runtime.distributed import is_restart, job_name, may_be_restarted
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.text.corpus import prepare_text, scan_folders
from recurra.text.memory import MEMORY
from recurra.text.sources import STDIN, TextSource
from recurra.text.vocabulary import Vocabulary
from recurra.training import device_choice, fine_tuning
from recurra.training.context import RunContext


@dataclass(frozen=True)
class RunRequest:
    """What a new run is created from.

    Attributes:
        sources: the text; () is the bundled story.
        options: the settings that were given, with those of the base.
        base: the model to fine-tune; None to train from random weights.
        given: the names of the settings that the user gave, without those of the base.
        command: the command line, or None in Python.
        force: whether to replace an older run in the directory.
    """

    sources: Sequence[TextSource]
    options: RunOptions
    base: LanguageModel | None = None
    given: Collection[str] = ()
    command: str | None = None
    force: bool = False


def create_request(
    sources: Sequence[TextSource],
    options: RunOptions,
    config: str | Path | None,
    base: str | Path | None,
) -> RunRequest:
    """Return the request of a user, with the settings of a file and of a base run added.

    Args:
        sources: the text; without any, that of the file.
        options: the settings that were given.
        config: a file of settings, see `config_file.py`, or None.
        base: the directory of the run to fine-tune, or None.

    Raises:
        ConfigError: the file is invalid, or a setting does not fit the base.
        RunError: the base contains no model, or is damaged.
    """
    if config is not None:
        file = read_config_file(Path(config))
        options, sources = file.as_defaults_of(options), sources or file.provenance.sources
    if base is None:
        if options.is_given("new_tokens") and config is None:
            raise ConfigError(
                "new_tokens has an effect only in fine-tuning; remove it, or specify a base run"
                " (--from; from Python: base=...)"
            )
        return RunRequest(sources, options)
    model = load_language_model(base, "cpu")
    settings = fine_tuning.inherit_settings(options, model)
    return RunRequest(sources, settings, model, options.values.keys())


def create_run(directory: RunDirectory, request: RunRequest, context: RunContext) -> str:
    """Create a run up to its first step; its directory stays locked. Return the path.

    Settings that were not given are chosen here (`device_choice.settle`). If torchrun has restarted
    the job that created the directory, nothing is created.

    Args:
        directory: the directory of the run, which need not exist.
        request: what the run is created from.
        context: the context of the run.

    Raises:
        ConfigError, SourceError, RunError: invalid options, text or directory.
    """
    options, base = request.options, request.base
    if is_restart() and directory.is_made_by(job_name()):
        refuse_other_settings(directory, options)
        return str(directory.path)
    for line in options.config.ignored():
        context.progress.message(f"note: {line}")
    processes = context.processes
    for scan in scan_folders(request.sources, options.config.text):
        if scan.files:  # Otherwise, reading the text raises an error.
            context.progress.plan(describe_folder(scan))
    with staged_run(directory, force=request.force) as staging:
        tokens, vocabulary = build_token_file(
            request.sources,
            options.config.text,
            staging.path,
            None if base is None else base.vocabulary,
        )
        # Errors must show before the directory changes.
        _check_prompts(vocabulary, options.config)
        if base is not None:
            options = fine_tuning.limit_batches_to_text(options, request.given, len(tokens.train))
        config = device_choice.settle(
            options.with_vocab_size(len(vocabulary)),
            len(tokens.train),
            partial(device_choice.trial_of, tokens.train, context),
            context,
        )
        processes = context.on(config.training.device).processes
        BatchStream(tokens.train, config.training, processes)
        _note_about_text(tokens, vocabulary, request, context)
        provenance = Provenance(tuple(str(source) for source in request.sources))
        if base is not None:
            provenance = replace(provenance, base=fine_tuning.base_record(base, vocabulary))
        staging.write_config(config, provenance.with_command(request.command))
        if may_be_restarted():
            staging.claim(job_name())
        model = create_model(config, processes.device)
        if model.backend_for(1.0) == "native":
            # RECURRA_MATMUL may name a kernel that this machine lacks: then no run is created.
            matmul_kernel(model.product_dtype)
        if base is not None:
            _write_initial_weights(staging, base, model, tokens, context)
    return str(directory.path)


def _note_about_text(
    tokens: TokenFile, vocabulary: Vocabulary, request: RunRequest, context: RunContext
) -> None:
    """Report a text that is too short, or whose validation part is not representative."""
    text = request.options.config.text
    notes = [
        describe_short_text(len(tokens.train), text.tokens) if request.base is None else None,
        None if text.shuffle_lines else describe_split(tokens, vocabulary),
    ]
    for note in filter(None, notes):
        context.progress.message(note)


def _write_initial_weights(
    staging: RunDirectory,
    base: LanguageModel,
    model: RecurrentLM,
    tokens: TokenFile,
    context: RunContext,
) -> None:
    """Write the weights that a fine-tuned run starts from, and report them."""
    fine_tuning.initial_model(base, model).eval()
    save_weights(staging.initial, model, {})
    lines = [fine_tuning.describe_base(base, load_vocabulary(staging.path))]
    context.progress.plan(lines + fine_tuning.describe_start(model, tokens))


def default_path(sources: Sequence[TextSource], cell: str) -> Path:
    """Return a new directory: runs/<text>-<cell>, with a number if that exists."""
    return numbered(Path("runs") / f"{short_name(sources)}-{cell}")


def short_name(sources: Sequence[TextSource]) -> str:
    """Return a short name of a text, for the name of a directory."""
    first = str(sources[0]) if sources else DEFAULT_CORPUS
    return "text" if first in (STDIN, MEMORY) else Path(first).stem or "text"


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
        model = RecurrentLM(config.model).to(device)
    except (RuntimeError, MemoryError) as error:
        size = f"{config.model.num_layers} x {config.model.hidden_size}"
        raise ConfigError(f"there is not enough memory for a model of {size} units") from error
    model.precision.log_fallback(device)
    return model


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
