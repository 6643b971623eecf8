"""Choose unspecified settings from the text, the time budget and the measured throughput.

The size of the model determines how many tokens can be processed in the time budget. The number of
epochs determines how much regularization is needed. `recipe_table.py` has the constants,
`recipe_rules.py` the rules, and `recipe_search.py` the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from recurra.config import RunConfig, RunOptions
from recurra.report.progress import format_count
from recurra.training import recipe_rules
from recurra.training.budget import Budget
from recurra.training.recipe_search import (
    SearchResult,
    SearchTask,
    Trial,
    search_on_cpu,
    search_on_gpu,
)
from recurra.training.recipe_table import TRAINING_TIME_FRACTION
from recurra.training.sizing import flops_per_token
from recurra.training.trials import attempt

__all__ = ["Recipe", "Trial", "choose", "resolve"]


@dataclass(frozen=True)
class Recipe:
    """A complete configuration, with its measured speed and lines that explain the choice.

    Attributes:
        config: the configuration.
        speed: floating-point operations per second of training, multiplied by the value of a token
            in batches of this size, see `recipe_rules.usefulness`; None if nothing was measured.
        reasons: three lines of text; none if nothing was chosen.
    """

    config: RunConfig
    speed: float | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """The measured number of tokens per second; 0 if nothing was measured."""
        config = self.config
        useful = flops_per_token(config.model) * recipe_rules.usefulness(config)
        return (self.speed or 0.0) / useful


def resolve(
    options: RunOptions, num_ids: int, device: torch.device, trial: Trial, elapsed: float
) -> Recipe:
    """Return the complete configuration of a run.

    With a time budget, settings that were not given are chosen by `choose`; without one, they have
    their defaults, and nothing is measured.

    Args:
        options: the settings that were given, and the vocabulary size.
        num_ids: number of tokens in the training part of the text.
        device: the device that trains.
        trial: measures the speed of training on it, such as `SpeedTrial`.
        elapsed: seconds since the run began.

    Raises:
        SourceError: the text does not fill one batch.
        TrialError: the model cannot be trained on the device.
    """
    minutes = Budget.minutes_of(options.config.training)
    if options.is_complete:
        return Recipe(options.config)
    if minutes is None:
        return Recipe(recipe_rules.with_parameters(options, _unchanged).config)
    seconds = max(minutes * 60 * TRAINING_TIME_FRACTION - elapsed, 1.0)
    return choose(options, num_ids, device, trial, seconds)


def measured(recipe: Recipe, trial: Trial) -> Recipe:
    """Return a recipe with its speed, which is measured if it has none.

    Raises:
        TrialError: the model cannot be trained on the device.
    """
    if recipe.speed is not None:
        return recipe
    speed = attempt(trial, recipe.config) * recipe_rules.usefulness(recipe.config)
    return replace(recipe, speed=speed)


def choose(
    options: RunOptions, num_ids: int, device: torch.device, trial: Trial, seconds: float
) -> Recipe:
    """Choose the hyperparameters that were not given; other settings keep their defaults.

    Args:
        options: the settings that were given, and the vocabulary size.
        num_ids: number of tokens in the training part of the text.
        device: the device that trains.
        trial: measures the speed of training.
        seconds: available time for training steps.

    Raises:
        SourceError: the text does not fill one batch.
        TrialError: the model cannot be trained on a GPU.
    """
    basics = options.filled(**recipe_rules.basics(options.config, num_ids))
    if options.num_parameters is not None:
        basics = recipe_rules.with_parameters(basics, recipe_rules.with_size)
    search = search_on_cpu if device.type == "cpu" else search_on_gpu
    task = SearchTask(basics, num_ids, device, seconds)
    found = search(task, trial)
    return _complete(found, task, max(seconds - found.seconds, 0.0))


def _complete(found: SearchResult, task: SearchTask, seconds: float) -> Recipe:
    """Return the recipe with the settings that depend on the number of tokens."""
    sized, num_ids = found.options, task.num_ids
    tokens = recipe_rules.num_tokens(sized.config, num_ids, found.speed * seconds)
    rated = sized.filled(**recipe_rules.rates(sized.config, num_ids, tokens, task.table))
    decay = recipe_rules.weight_decay(rated.config, num_ids)
    config = rated.filled(weight_decay=decay).config
    needed = tokens * flops_per_token(config.model) / found.speed
    reasons = _reasons(config, tokens, num_ids, needed, seconds)
    reasons[1] += found.remark
    return Recipe(config, found.speed * recipe_rules.usefulness(config), reasons)


def _unchanged(options: RunOptions, size: int) -> RunOptions:
    return options


def _reasons(
    config: RunConfig, tokens: float, num_ids: int, needed: float, seconds: float
) -> list[str]:
    model, training = config.model, config.training
    max_epochs = training.max_epochs
    window = "the whole text" if training.bptt == "full" else training.num_steps
    is_limited = max_epochs and needed < 0.9 * seconds
    limit = f" (limited to {max_epochs:g} epochs)" if is_limited else ""
    return [
        f"size      {model.hidden_size} units: about {format_count(tokens)} tokens in"
        f" {needed:,.0f} s of training, {format_count(num_ids)} tokens in the text{limit}",
        f"optimizer batch size {training.batch_size} x {window}, learning rate"
        f" {training.lr:g}, weight decay {training.weight_decay:g}, precision {model.precision}",
        f"dropout   {model.output_dropout:g} for outputs, {model.weight_dropout:g} for"
        f" recurrent weights: training takes about {tokens / num_ids:.3g} epochs",
    ]
