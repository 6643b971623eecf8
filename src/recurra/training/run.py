"""Create or resume a training run.

This module connects the lower-level packages and contains no computation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from recurra.config import RunConfig, RunOptions, TrainingConfig
from recurra.data.batches import BatchStream
from recurra.data.dataset import TokenDataset
from recurra.data.token_file import (
    TokenFile,
    build_token_file,
    load_token_file,
    load_vocabulary,
    source_change,
)
from recurra.errors import (
    ConfigError,
    RunError,
    SourceError,
    TrainingInterrupted,
    UnknownTokenError,
)
from recurra.inference.language_model import LanguageModel, Source, predicted_sizes
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.layer import require_backend
from recurra.report.curve import require_matplotlib, write_svg
from recurra.report.progress import Progress
from recurra.runs.checkpoint_store import CheckpointStore
from recurra.runs.compatibility import FREE_SETTINGS, differences, identity
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.runtime.devices import choose_device
from recurra.runtime.distributed import (
    Processes,
    is_restart,
    job_name,
    joined_processes,
    local_rank,
    may_be_restarted,
)
from recurra.runtime.signals import stop_signals
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.text.corpus import prepare_text
from recurra.text.vocabulary import Vocabulary
from recurra.training import recipe
from recurra.training.context import RunContext
from recurra.training.loop import TrainingLoop


def start_run(
    sources: Sequence[Source],
    options: RunOptions,
    out: Source | None,
    progress: Progress,
    clock: Clock,
    *,
    force: bool = False,
) -> LanguageModel:
    """Train a new run: `recurra.train` with explicit arguments.

    The directory changes only after the text and the options were found valid. When torchrun has
    started the training again after a process died, the run is resumed instead.

    Raises:
        ConfigError, SourceError, RunError: invalid options, text or directory.
    """
    if may_be_restarted() and out is None:
        raise ConfigError("torchrun may restart this training; name its folder with --out")
    with _open_context(options.config, progress, clock) as context:
        cell = options.config.model.cell
        path = context.processes.run_on_first(lambda: str(_choose_path(out, sources, cell)))
        folder = RunDirectory(path)
        own = context.processes.run_on_first(
            lambda: job_name() if folder.is_made_by(job_name()) else ""
        )
        if is_restart() and own:
            _refuse_other_settings(folder, options)
            return _run(folder, folder.read_config().training, context, resumed=True)
        context.processes.run_on_first(
            lambda: _prepare(folder, sources, options, context, force=force)
        )
        return _run(folder, folder.read_config().training, context, resumed=False)


def prepare_run(
    sources: Sequence[Source],
    options: RunOptions,
    out: Source,
    progress: Progress,
    clock: Clock,
) -> None:
    """Create a run without training it: `resume_run` starts its training."""
    folder = RunDirectory(out)
    with _open_context(options.config, progress, clock) as context:
        context.processes.run_on_first(
            lambda: _prepare(folder, sources, options, context, force=False)
        )
        folder.unlock()


def resume_run(
    path: Source,
    progress: Progress,
    clock: Clock,
    *,
    options: RunOptions | None = None,
    sources: Sequence[Source] = (),
) -> LanguageModel:
    """Resume an interrupted run exactly; start it if it has no step yet.

    Args:
        path: the directory of the run.
        options: settings to resume with. Those in `FREE_SETTINGS` replace the settings of the run;
            the others must be equal to them.
        sources: the text, which must be that of the run; by default it is not compared.

    Raises:
        ConfigError, RunError: there is no run, another process trains in it, its checkpoints are
            damaged, or text or settings differ.
    """
    folder = RunDirectory(path)
    config = _with_free_settings(folder.read_config(), options)
    with _open_context(config, progress, clock) as context:
        if options is not None:
            _refuse_other_settings(folder, options)
        change = source_change(folder.path)
        _refuse_other_text(folder, sources, change)
        if change:
            context.progress.message(f"note: {change}; the run continues with its original text")
        return _run(folder, config.training, context, resumed=True)


def _with_free_settings(config: RunConfig, options: RunOptions | None) -> RunConfig:
    """Return the configuration of a run with the given settings that may change when it resumes."""
    if options is None:
        return config
    given = options.config.training
    free = {name: getattr(given, name) for name in FREE_SETTINGS if options.is_given(name)}
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **free))


@contextmanager
def _open_context(config: RunConfig, progress: Progress, clock: Clock) -> Iterator[RunContext]:
    """Yield the context of a run; signals, threads and torch's generators are restored after it."""
    training = config.training
    if training.plot:
        require_matplotlib()
    device = choose_device(training.device, local_rank())
    require_backend(config.model.backend, config.model.cell, device)
    with (
        stop_signals() as signals,
        joined_processes(device) as processes,
        _num_threads(training.threads),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        shown = progress if processes.is_first else Progress()
        yield RunContext(shown, clock, processes, signals)


@contextmanager
def _num_threads(count: int | None) -> Iterator[None]:
    """Let torch and the kernels compute with this many threads; None leaves torch's choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_path(out: Source | None, sources: Sequence[Source], cell: str) -> Path:
    """Return `out`, or a new directory: runs/<text>-<cell>, with a number if that exists."""
    if out is not None:
        return Path(out)
    return numbered(Path("runs") / f"{short_name(sources)}-{cell}")


def short_name(sources: Sequence[Source]) -> str:
    """What a text is called where a folder is named after it."""
    first = str(sources[0]) if sources else DEFAULT_CORPUS
    return "text" if first == "-" else Path(first).stem or "text"


def numbered(path: Path) -> Path:
    """The path itself, or with the first number from 2 on that nothing has yet."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _prepare(
    folder: RunDirectory,
    sources: Sequence[Source],
    options: RunOptions,
    context: RunContext,
    *,
    force: bool,
) -> str:
    """Create a run up to its first step, and return the name of its directory."""
    processes = context.processes
    for line in options.config.ignored():
        context.progress.message(f"note: {line}")
    with folder.prepared(force=force) as staging:
        tokens, vocabulary = build_token_file(sources, options.config.text, staging.path)
        # Errors must show before the directory changes.
        _check_prompts(vocabulary, options.config)
        config = recipe.resolve(options.with_vocab_size(len(vocabulary)), tokens.train, context)
        BatchStream(tokens.train, config.training, processes)
        staging.write_config(config, [str(source) for source in sources])
        if may_be_restarted():
            staging.claim(job_name())
        _first_model(config, processes.device)
    return str(folder.path)


def _refuse_other_settings(folder: RunDirectory, options: RunOptions) -> None:
    """Raise an error if a given setting differs from the run's and would change its results."""
    fixed = options.values.keys() - set(FREE_SETTINGS)
    saved, given = (
        {
            section: {name: value for name, value in values.items() if name in fixed}
            for section, values in config.to_dict().items()
        }
        for config in (folder.read_config(), options.config)
    )
    for sections in (saved, given):
        sections["model"].pop("vocab_size", None)  # It follows from the text.
    if found := differences(saved, given):
        raise ConfigError(
            f"{folder.path} continues with its original settings, and these differ:"
            f" {'; '.join(found)}"
        )


def _refuse_other_text(folder: RunDirectory, sources: Sequence[Source], change: str | None) -> None:
    if not sources:
        return
    saved, given = folder.read_sources(), [str(source) for source in sources]
    if saved != given:
        change = f"sources is {given}, and was {saved}"
    if change:
        raise RunError(
            f"{folder.path} continues with its original text, and this differs: {change}"
        )


def _run(
    folder: RunDirectory, training: TrainingConfig, context: RunContext, *, resumed: bool
) -> LanguageModel:
    """Train the run in the directory, from its newest checkpoint if there is one."""
    with _locked(folder, context.processes):
        config = dataclasses.replace(folder.read_config(), training=training)
        vocabulary = load_vocabulary(folder.path)
        tokens = load_token_file(folder.path)
        if resumed:
            context.processes.run_on_first(lambda: _check_text(tokens, vocabulary, config))
        trainer = TrainingLoop(
            _first_model(config, context.processes.device),
            TokenDataset(
                tokens.train, tokens.val, *predicted_sizes(tokens, vocabulary), vocabulary
            ),
            config.training,
            identity(config, tokens),
            folder,
            context,
            _prompts(config),
        )
        try:
            if CheckpointStore(folder.checkpoints).names():
                trainer.resume()
            records = trainer.fit()
        except TrainingInterrupted as stop:
            if stop.args:
                raise
            how = f"resume with recurra train --resume {folder.path}"
            raise TrainingInterrupted(stop.signum, how) from None
        if training.plot and context.processes.is_first:
            write_svg(records, folder.curve, title=folder.path.name)
        if (number := context.signals.received) is not None:
            # Too late to stop this run, but who asked may have more of them in mind.
            raise TrainingInterrupted(number, f"it had just finished; all is in {folder.path}")
    return LanguageModel(trainer.session.model, vocabulary, config, folder.path)


@contextmanager
def _locked(folder: RunDirectory, processes: Processes) -> Iterator[None]:
    """Hold the folder, through the first process, for all of them."""
    with ExitStack() as stack:

        def lock() -> str:
            stack.enter_context(folder.locked())
            folder.remove_unfinished()
            CheckpointStore(folder.checkpoints).remove_unfinished()
            return ""

        processes.run_on_first(lock)
        yield


def _check_text(tokens: TokenFile, vocabulary: Vocabulary, config: RunConfig) -> str:
    """Hold the run's own text against what was written when it was made."""
    if vocabulary.fingerprint != tokens.vocabulary_fingerprint:
        raise RunError(
            f"{tokens.path.parent / 'vocabulary.json'} is not the vocabulary of {tokens.path}: its"
            f" fingerprint is {vocabulary.fingerprint}, and was {tokens.vocabulary_fingerprint}"
        )
    if len(vocabulary) != config.model.vocab_size:
        raise RunError(
            f"config.json of {tokens.path.parent} is not of this text: model.vocab_size is"
            f" {config.model.vocab_size}, and the vocabulary has {len(vocabulary)}"
        )
    tokens.verify()
    tokens.check_ids(len(vocabulary))
    return ""


def _first_model(config: RunConfig, device: torch.device) -> RecurrentLM:
    torch.manual_seed(config.training.seed)
    try:
        return RecurrentLM(config.model).to(device)
    except (RuntimeError, MemoryError) as error:
        size = f"{config.model.num_layers} x {config.model.hidden_size}"
        raise ConfigError(f"there is not the memory for a model of {size} units") from error


def _check_prompts(vocabulary: Vocabulary, config: RunConfig) -> None:
    for prompt in _prompts(config):
        try:
            vocabulary.encode(prompt)
        except UnknownTokenError as error:
            raise SourceError(
                f"the prompt {prompt!r} has {error.symbol!r} at position {error.position}, which"
                " the training part of the text never has"
            ) from error


def _prompts(config: RunConfig) -> tuple[str, ...]:
    return tuple(prepare_text(prompt, config.text) for prompt in config.training.prompt)
