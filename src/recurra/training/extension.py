"""Change the budget of a run, so that it trains longer than it was created for.

A budget counts from the start of the run: a run that has trained 1,000 steps trains 500 more with
`steps=1500`. Training continues exactly where it stopped. The learning rate schedule and all other
settings that depend on the spent fraction of the budget use the new budget from there on, so that
the learning rate usually rises again; stages of growing batches are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recurra.config import RunOptions, TrainingConfig
from recurra.config.training import BUDGETS
from recurra.errors import ConfigError
from recurra.runs.compatibility import BUDGET_SETTINGS
from recurra.training.budget import DEFAULT_MINUTES
from recurra.training.callbacks.evaluation import REPORTS_PER_RUN
from recurra.training.schedules import learning_rate
from recurra.training.session import TrainingSession


def with_budget(config: TrainingConfig, options: RunOptions) -> TrainingConfig:
    """Return the configuration with the budget of the options, if they have one.

    A new budget replaces the old one together with `max_epochs`, which the recipe may have chosen
    and the run may have reached.

    Raises:
        ConfigError: several budgets are given.
    """
    given = {name: options.values[name] for name in BUDGET_SETTINGS if options.is_given(name)}
    changed = any(name in given and given[name] != getattr(config, name) for name in BUDGETS)
    dropped: dict[str, Any] = dict.fromkeys(BUDGET_SETTINGS) if changed else {}
    return replace(config, **dropped | given)


def previous_budget(identity: Mapping[str, Any], config: TrainingConfig) -> TrainingConfig | None:
    """Return the configuration with the budget of a checkpoint, or None if it is the same.

    Args:
        identity: the identity in the checkpoint, see `compatibility.identity`.
        config: the configuration of the run.
    """
    saved = {name: identity["training"].get(name) for name in BUDGET_SETTINGS}
    before = replace(config, **saved)
    return None if before == config else before


def extend(session: TrainingSession, before: TrainingConfig) -> None:
    """Let a resumed training continue with the budget of its configuration, and report it.

    Args:
        session: the training, after its checkpoint was loaded.
        before: the configuration with the previous budget.

    Raises:
        ConfigError: the new budget is spent already.
    """
    session.share_progress()
    state = session.state
    if session.fraction >= 1.0:
        raise ConfigError(_spent_message(session))
    previous = replace(session.budget, config=before)
    spent = previous.spent(state.step, state.epochs(previous.epoch_length))
    rate = learning_rate(before, 1.0 if state.finished else spent) * state.lr_scale
    state.finished, state.reports_since_best = False, 0
    state.reports = int(session.fraction * REPORTS_PER_RUN)
    unit, amount = _budget(session.config)
    session.context.progress.message(
        f"the budget is now {amount:,g} {unit.removesuffix('s') if amount == 1 else unit}, counted"
        f" from the start of the run; {session.fraction:.0%} of it is spent"
    )
    session.context.progress.message(
        f"the {session.config.schedule} schedule continues at this point of the new budget: the"
        f" learning rate is {session.learning_rate():.3g}, and was {rate:.3g}"
    )


def _budget(config: TrainingConfig) -> tuple[str, float]:
    """Return the unit of the budget and its amount."""
    unit = next((name for name in BUDGETS if getattr(config, name) is not None), "minutes")
    return unit, getattr(config, unit) or DEFAULT_MINUTES


def _spent_message(session: TrainingSession) -> str:
    config, trained = session.config, _trained(session)
    amounts = ", ".join(f"{amount:,.4g} {unit}" for unit, amount in trained.items())
    unit, amount = _budget(config)
    remedy = f"specify --{unit} greater than {max(trained[unit], amount):,.4g}"
    if config.max_epochs is not None and trained["epochs"] >= config.max_epochs:
        remedy = f"specify --max-epochs greater than {config.max_epochs:g}, or 0 for no limit"
    return (
        f"this run has trained for {amounts}, and a budget counts from the start of the run;"
        f" {remedy}"
    )


def _trained(session: TrainingSession) -> dict[str, float]:
    state = session.state
    return {
        "epochs": state.epochs(session.budget.epoch_length),
        "steps": float(state.step),
        "minutes": session.timing.seconds / 60,
    }
