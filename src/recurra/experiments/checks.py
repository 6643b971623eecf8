"""Check that variants can be compared: equal text, budget and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recurra.config import RunConfig
from recurra.config.checks import require
from recurra.experiments.design import Design
from recurra.experiments.folder import slug
from recurra.experiments.results import Variant
from recurra.inference.language_model import Source
from recurra.report.curve import require_matplotlib
from recurra.runtime.distributed import started_count

COMMON = (
    "epochs", "steps", "minutes", "seed", "device", "threads", "plot", "val_fraction", "min_freq",
    "letters_only", "max_tokens", "encoding", "newlines", "separator", "shuffle_lines",
)  # fmt: skip
"""Settings that must be identical across all variants for the comparison to be valid."""


def check_comparison(
    sources: Sequence[Source], variants: Sequence[Variant], design: Design
) -> None:
    """Check that the variants can be compared.

    Raises:
        ConfigError: a setting is invalid, or variants differ in a setting that must be identical.
        MissingExtraError: a plot is requested, and matplotlib is not installed.
    """
    seeds, num_tokens = design.seeds, design.num_tokens
    require(len(variants) >= 1, "variants is empty; specify at least one")
    require(
        started_count() == 1, "a comparison runs in a single process; start it without torchrun"
    )
    require(
        "-" not in map(str, sources),
        "a comparison reads its text once per run, so it cannot use standard input; use a file",
    )
    for name, value in (("seeds", seeds), ("num_tokens", num_tokens)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        is_unset = name == "num_tokens" and value is None
        require(is_count or is_unset, f"{name} is {value}; it must be a positive integer")
    last_seed = variants[0].options.config.training.seed + seeds - 1
    require(last_seed < 2**63, f"the last seed is {last_seed}; it must be at most 2**63 - 1")
    _check_names([variant.name for variant in variants])
    for variant in variants:
        training = variant.options.config.training
        require(
            not variant.options.is_given("new_tokens"),
            f"{variant.name}: new_tokens has an effect only in fine-tuning; remove it",
        )
        require(
            variant.options.config.text.val_fraction > 0.0,
            "val_fraction is 0; a comparison requires text for validation",
        )
        require(
            num_tokens is None or training.minutes is training.steps is training.epochs is None,
            "specify only one budget: num_tokens, minutes, steps or epochs",
        )
        require(
            num_tokens is None or training.bptt != "full",
            "num_tokens cannot be combined with bptt=full; use a budget in epochs or minutes",
        )
        _check_common(variant.options.config, variants[0].options.config)
    if design.equal_parameters:
        _check_adjustable(variants)
    if variants[0].options.config.training.plot:
        require_matplotlib()


def _check_names(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        for other in names[:index]:
            require(name != other, f"duplicate variant {name!r}")
            # Some file systems are case-insensitive.
            is_same = slug(name).casefold() == slug(other).casefold()
            require(
                not is_same,
                f"variants {other!r} and {name!r} would use the same directory; rename one",
            )


def _check_common(config: RunConfig, other: RunConfig) -> None:
    for name in COMMON:
        own, common = _setting(config, name), _setting(other, name)
        require(own == common, f"variants cannot differ in {name} ({common} and {own})")
    # With bpe, vocab_size affects only the tokenization. With other tokens, a smaller vocabulary
    # has more <unk> tokens, which makes the text easier to predict.
    sizes = {c.text.vocab_size for c in (config, other) if c.text.tokens != "bpe"}
    require(len(sizes) < 2, "variants cannot differ in vocab_size unless their tokens are bpe")


def _check_adjustable(variants: Sequence[Variant]) -> None:
    """Check that the hidden size of each variant but the first can be chosen."""
    first, *others = variants
    given = first.options.values.get("hidden_size")
    for variant in others:
        model = variant.options.config.model
        require(
            variant.options.values.get("hidden_size") in (None, given),
            f"{variant.name}: equal_parameters chooses the hidden size of every variant but the"
            " first; remove its hidden_size",
        )
        is_bound = variant.options.is_given("embedding_size") and model.embedding_size > 0
        require(
            not (is_bound and (model.tie_weights or model.residual)),
            f"{variant.name}: equal_parameters cannot choose the hidden size, because tie_weights"
            " and residual bind it to embedding_size, which is given",
        )


def _setting(config: RunConfig, name: str) -> Any:
    return getattr(config.training if hasattr(config.training, name) else config.text, name)
