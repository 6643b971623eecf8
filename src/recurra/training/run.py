"""Create or resume a training run.

This module connects the lower-level packages and contains no computation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from recurra.config import RunConfig, RunOptions, TrainingConfig
from recurra.data.dataset import TokenDataset
from recurra.data.token_file import (
    TokenFile,
    load_token_file,
    load_vocabulary,
    source_change,
)
from recurra.errors import (
    ConfigError,
    RunError,
    TrainingInterrupted,
)
from recurra.inference.language_model import LanguageModel, predicted_sizes
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.curve import write_svg
from recurra.report.progress import Progress
from recurra.runs.compatibility import BUDGET_SETTINGS, FREE_SETTINGS, identity
from recurra.runs.directory import RunDirectory
from recurra.runs.staging import remove_unfinished
from recurra.runs.weights import load_weights
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import (
    Processes,
    is_restart,
    may_be_restarted,
)
from recurra.text.sources import TextSource
from recurra.text.vocabulary import Vocabulary
from recurra.training.context import RunContext, open_context
from recurra.training.creation import (
    RunRequest,
    create_model,
    create_run,
    default_path,
    prepared_prompts,
    refuse_other_settings,
)
from recurra.training.device_choice import settle_resumed
from recurra.training.extension import with_budget
from recurra.training.loop import TrainingLoop


def start_run(
    request: RunRequest, out: str | Path | None, progress: Progress, clock: Clock
) -> LanguageModel:
    """Train a new run: `recurra.train` with explicit arguments.

    The directory is changed only after the text and the options have been validated. If torchrun
    restarted this process after a failure, the run is resumed instead.

    Raises:
        ConfigError, SourceError, RunError: invalid options, text or directory.
    """
    if may_be_restarted() and out is None:
        raise ConfigError("torchrun can restart this training; specify --out")
    config = request.options.config

    def choose_path() -> str:
        return str(default_path(request.sources, config.model.cell))

    with open_context(config, progress, clock) as context:
        directory = RunDirectory(out or context.processes.run_on_first(choose_path))
        context.processes.run_on_first(lambda: create_run(directory, request, context))
        training = directory.read_config().training
        return _run(directory, training, context.on(training.device), resumed=is_restart())


def prepare_run(request: RunRequest, out: str | Path, progress: Progress, clock: Clock) -> None:
    """Create a run without training it: `resume_run` starts its training."""
    directory = RunDirectory(out)
    with open_context(request.options.config, progress, clock) as context:
        context.processes.run_on_first(lambda: create_run(directory, request, context))
        directory.unlock()


def resume_run(
    path: str | Path,
    progress: Progress,
    clock: Clock,
    *,
    options: RunOptions | None = None,
    sources: Sequence[TextSource] = (),
    command: str | None = None,
) -> LanguageModel:
    """Resume an interrupted run exactly, or train a run longer; start it if it has no step yet.

    Args:
        path: the directory of the run.
        options: settings to resume with. Those in `FREE_SETTINGS` and the budget replace the
            settings of the run; the others must be equal to them. A budget counts from the start
            of the run, see `extension.py`.
        sources: the text, which must be that of the run; by default it is not compared.
        command: the command line, which is added to those of the run; None in Python.

    Raises:
        ConfigError, RunError: there is no run, another process trains in it, its checkpoints are
            damaged, or text or settings differ.
    """
    directory = RunDirectory(path)
    config = _with_free_settings(directory.read_config(), options)
    with open_context(config, progress, clock) as context:
        if options is not None:
            refuse_other_settings(directory, options)
        change = source_change(directory.path)
        _refuse_other_text(directory, sources, change)
        if change:
            context.progress.message(f"note: {change}; the run continues with its original text")
        context = settle_resumed(directory, config, context)
        return _run(directory, config.training, context, resumed=True, command=command)


def _with_free_settings(config: RunConfig, options: RunOptions | None) -> RunConfig:
    """Return the configuration of a run with the given settings that may change when it resumes."""
    if options is None:
        return config
    free = {name: options.values[name] for name in FREE_SETTINGS if options.is_given(name)}
    training = with_budget(dataclasses.replace(config.training, **free), options)
    return dataclasses.replace(config, training=training)


def _refuse_other_text(
    directory: RunDirectory, sources: Sequence[TextSource], change: str | None
) -> None:
    if not sources:
        return
    saved, given = directory.read_sources(), [str(source) for source in sources]
    if saved != given:
        change = f"sources is {given}, but was {saved}"
    if change:
        raise RunError(
            f"{directory.path} continues with its original text, and this differs: {change};"
            " remove the sources, or train a new run with --out"
        )


def _run(
    directory: RunDirectory,
    training: TrainingConfig,
    context: RunContext,
    *,
    resumed: bool,
    command: str | None = None,
) -> LanguageModel:
    """Train the run in the directory, from its newest checkpoint if there is one."""
    with _locked(directory, context.processes):
        config = dataclasses.replace(directory.read_config(), training=training)
        vocabulary = load_vocabulary(directory.path)
        tokens = load_token_file(directory.path)
        if resumed:
            context.processes.run_on_first(lambda: _check_text(tokens, vocabulary, config))
        trainer = TrainingLoop(
            _initialized_model(directory, config, context),
            TokenDataset(
                tokens.train, tokens.val, *predicted_sizes(tokens, vocabulary), vocabulary
            ),
            config.training,
            identity(config, tokens),
            directory,
            context,
            prepared_prompts(config),
        )
        try:
            if directory.checkpoints.names():
                trainer.resume()
            context.processes.run_on_first(lambda: _update_config(directory, training, command))
            records = trainer.fit()
        except TrainingInterrupted as stop:
            if stop.args:
                raise
            how = f"resume with recurra train --resume {directory.path}"
            raise TrainingInterrupted(stop.signum, how) from None
        if training.plot and context.processes.is_first:
            try:
                losses = directory.read_losses()
            except RunError as error:
                losses = []
                context.progress.message(f"warning: {error}; the plot lacks the training loss")
            write_svg(records, directory.curve, title=directory.path.name, losses=losses)
        if (number := context.signals.received) is not None:
            # The run is complete, but the caller may have more runs, which the signal must stop.
            raise TrainingInterrupted(
                number, f"the run had finished; it is in {directory.path}", directory.path
            )
    return LanguageModel(trainer.session.model, vocabulary, config, directory.path)


def _initialized_model(
    directory: RunDirectory, config: RunConfig, context: RunContext
) -> RecurrentLM:
    """Return the model before the first step: random, or with the weights of its base."""
    model = create_model(config, context.processes.device)
    if directory.initial.is_file():
        load_weights(directory.initial, model)
    return model


def _update_config(directory: RunDirectory, training: TrainingConfig, command: str | None) -> str:
    """Write a new budget and the command line to config.json, if there are any."""
    stored, provenance = directory.read_config(), directory.read_provenance()
    budget = {name: getattr(training, name) for name in BUDGET_SETTINGS}
    config = dataclasses.replace(stored, training=dataclasses.replace(stored.training, **budget))
    if config != stored or command is not None:
        directory.write_config(config, provenance.with_command(command))
    return ""


@contextmanager
def _locked(directory: RunDirectory, processes: Processes) -> Iterator[None]:
    """Lock the directory in the first process, on behalf of all processes."""
    with ExitStack() as stack:

        def lock() -> str:
            stack.enter_context(directory.locked())
            remove_unfinished(directory)
            directory.checkpoints.remove_unfinished()
            return ""

        processes.run_on_first(lock)
        yield


def _check_text(tokens: TokenFile, vocabulary: Vocabulary, config: RunConfig) -> str:
    """Check that the text of a run is the one that it was created with.

    Raises:
        RunError: the vocabulary or the token file has changed or is damaged.
    """
    if vocabulary.fingerprint != tokens.vocabulary_fingerprint:
        raise RunError(
            f"{tokens.path.parent / 'vocabulary.json'} is not the vocabulary of {tokens.path}: its"
            f" fingerprint is {vocabulary.fingerprint}, but was {tokens.vocabulary_fingerprint}"
        )
    if len(vocabulary) != config.model.vocab_size:
        raise RunError(
            f"config.json of {tokens.path.parent} does not match the text: model.vocab_size is"
            f" {config.model.vocab_size}, but the vocabulary has {len(vocabulary)} tokens"
        )
    tokens.verify()
    tokens.check_ids(len(vocabulary))
    return ""
