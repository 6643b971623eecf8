"""Choose between a GPU and the CPU by measured training steps, for the device `auto`.

The choice is made once, when a run is created, and stored in config.json. A resumed run stays on
the type of device on which it began, because another measurement could select another device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from recurra.config import RunConfig, RunOptions
from recurra.data.batches import Ids
from recurra.data.token_file import load_token_file
from recurra.errors import RunError
from recurra.report.progress import format_count
from recurra.runs.directory import RunDirectory
from recurra.training import recipe
from recurra.training.context import RunContext
from recurra.training.recipe import Recipe, Trial
from recurra.training.sizing import flops_per_token
from recurra.training.trials import SpeedTrial, TrialError, attempt

CPU = torch.device("cpu")

LONG_STEP = 2e11
"""Number of floating-point operations of a step from which the CPU is first measured with a single
row per process, because the whole step takes a second or more."""

TrialOn = Callable[[torch.device], Trial]
"""Returns the trial that measures the speed of training on a device."""


@dataclass(frozen=True)
class DeviceChoice:
    """The recipe for the chosen device.

    Attributes:
        recipe: the recipe; the device is recorded in its configuration.
        line: a line of output that states the reason of the choice.
    """

    recipe: Recipe
    line: str


def settle(options: RunOptions, num_ids: int, trial_on: TrialOn, context: RunContext) -> RunConfig:
    """Return the complete configuration of a new run with its device, and report the choices.

    On a machine without a GPU, the device remains `auto` in the configuration.

    Args:
        options: the settings that were given, and the vocabulary size.
        num_ids: number of tokens in the training part of the text.
        trial_on: returns the trial for a device, for example a `SpeedTrial`.
        context: the context of the run, on the GPU if there is one.

    Raises:
        SourceError: the text does not fill one batch.
        TrialError: the model cannot be trained.
    """
    device = context.processes.device

    def resolved(on: torch.device, trial: Trial) -> Recipe:
        return recipe.resolve(options, num_ids, on, trial, context.clock.seconds())

    if options.config.training.device != "auto" or device.type == "cpu":
        found = resolved(device, trial_on(device))
        context.progress.plan(found.reasons)
        return found.config
    choice = choose(device, trial_on, resolved, context.processes.count)
    context.progress.plan([choice.line, *choice.recipe.reasons])
    return choice.recipe.config


def choose(
    gpu: torch.device,
    trial_on: TrialOn,
    resolved: Callable[[torch.device, Trial], Recipe],
    num_processes: int = 1,
) -> DeviceChoice:
    """Return the recipe for the GPU if it is measured to be faster there, else that for the CPU.

    If one of the devices cannot train the model, the other one is chosen.

    Args:
        gpu: the GPU.
        trial_on: returns the trial for a device.
        resolved: returns the recipe for a device, given the device and its trial.
        num_processes: number of processes that train together.

    Raises:
        TrialError: neither device can train the model.
    """
    found: dict[torch.device, Recipe] = {}
    failures: dict[torch.device, str] = {}
    # The measurements on a GPU take longer. The CPU is last, so that its recipe can subtract this
    # time from the budget.
    for device in (gpu, CPU):
        trial = partial(attempt, trial_on(device))
        try:
            ready = resolved(device, trial)
            if device == CPU and gpu in found:
                _refuse_long_step(ready, trial, found[gpu], num_processes)
            found[device] = recipe.measured(ready, trial)
        except TrialError as error:
            failures[device] = str(error)
    if not found:
        raise TrialError(f"{gpu.type}: {failures[gpu]}; cpu: {failures[CPU]}")
    speeds = {device: recipe.speed or 0.0 for device, recipe in found.items()}
    # With equal speeds, `max` returns the first device, the CPU.
    chosen = max((device for device in (CPU, gpu) if device in found), key=speeds.__getitem__)
    other = gpu if chosen == CPU else CPU
    if other in failures:
        line = f"{chosen.type}; {other.type} is not used: {failures[other]}"
    else:
        line = (
            f"{chosen.type}: {_describe(found[chosen], found[other])}; {other.type} is not faster:"
        )
        line += f" {_describe(found[other], found[chosen])}"
    return DeviceChoice(_on(found[chosen], chosen), f"device    {line}")


def _refuse_long_step(ready: Recipe, trial: Trial, gpu: Recipe, num_processes: int) -> None:
    """Check that the CPU can be the faster device, without a whole step, which can take minutes.

    Raises:
        TrialError: a step with one row per process takes longer on the CPU than a step with the
            whole batch on the GPU.
    """
    config, training = ready.config, ready.config.training
    tokens = training.batch_size * training.num_steps
    is_short = tokens * flops_per_token(config.model) < LONG_STEP
    if ready.speed is not None or is_short or training.bptt == "full":
        return
    few = replace(config, training=replace(training, batch_size=num_processes, batch_growth=1))
    share = recipe.measured(Recipe(few), trial).tokens_per_second / gpu.tokens_per_second
    if share * tokens <= num_processes * training.num_steps:
        raise TrialError("a step with a single row takes longer than the whole batch on the GPU")


def settle_resumed(directory: RunDirectory, config: RunConfig, context: RunContext) -> RunContext:
    """Return the context of a resumed run on the type of device on which the run began.

    If the run has no checkpoint yet, the faster device is chosen. If the run began on a GPU and
    this machine has none, the context remains on the CPU.

    Args:
        directory: the run.
        config: its configuration. The context is unchanged if its device is not `auto`.
        context: the context of the run, on the GPU if there is one.

    Raises:
        RunError: the text of the run is missing or damaged.
        TrialError: the model cannot be trained.
    """
    gpu = context.processes.device
    if config.training.device != "auto" or gpu.type == "cpu":
        return context

    def decide() -> str:
        began_on = _recorded_device(directory)
        if began_on == "cpu":
            context.progress.message(
                f"this run began on the CPU and stays there; --device {gpu.type} moves it"
            )
        if began_on is not None:
            return "cpu" if began_on == "cpu" else gpu.type
        ids = load_token_file(directory.path).train
        trial_on = partial(trial_of, ids, context)
        count = context.processes.count
        choice = choose(gpu, trial_on, lambda *_: Recipe(config), count)
        context.progress.plan([choice.line])
        return choice.recipe.config.training.device

    return context.on(context.processes.run_on_first(decide))


def trial_of(ids: Ids, context: RunContext, device: torch.device) -> SpeedTrial:
    """Return the trial that measures this process's share of the batches on a device.

    Args:
        ids: the training part of the text.
        context: the context of the run.
        device: the device.
    """
    return SpeedTrial(ids, replace(context.processes, device=device))


def _recorded_device(directory: RunDirectory) -> str | None:
    """Return the device in the newest intact checkpoint; None without a checkpoint."""
    for name in reversed(directory.checkpoints.names()):
        try:
            return str(directory.checkpoints.read_record(name).environment["device"])
        except (RunError, KeyError):
            continue  # Loading the checkpoint reports the damage.
    return None


def _on(found: Recipe, device: torch.device) -> Recipe:
    """Return a recipe with the type of its device; torchrun's local rank selects the GPU."""
    training = replace(found.config.training, device=device.type)
    return replace(found, config=replace(found.config, training=training))


def _describe(found: Recipe, other: Recipe) -> str:
    """Return the speed of a recipe as text, with its number of units if that of `other` differs."""
    units = found.config.model.hidden_size
    size = "" if units == other.config.model.hidden_size else f" with {units} units"
    return f"{format_count(found.tokens_per_second)} tokens/s{size}"
