"""Train several variants on one text with several seeds and equal budgets.

Each run is an ordinary run directory. All variants train with one seed before the next seed starts,
so that a change in the speed of the machine affects all of them. The first run of each variant is
prepared before any training starts, so that invalid settings are reported at once.

Settings that depend on the time budget and the speed of the machine are chosen for the first seed
of a variant and reused for its other seeds. The runs of a variant therefore differ only in their
random numbers. Finished runs are kept: the same comparison in the same directory is resumed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recurra.config import RunConfig, RunOptions
from recurra.config.checks import require
from recurra.config.options import given_values
from recurra.data.token_file import load_token_file
from recurra.errors import (
    DivergenceError,
    NonFiniteError,
    TrainingInterrupted,
)
from recurra.experiments.folder import ComparisonFolder, slug
from recurra.experiments.results import Comparison, Result, Row, Variant
from recurra.inference.language_model import LanguageModel, Source, as_list
from recurra.io.files import to_json, write_json
from recurra.report.curve import require_matplotlib, write_comparison_svg
from recurra.report.notebook import default_progress
from recurra.report.progress import Progress, StepMetrics, format_count
from recurra.runs.compatibility import FREE_SETTINGS
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import started_count
from recurra.training.batch_schedule import tokens_per_step
from recurra.training.creation import RunRequest, numbered, short_name
from recurra.training.run import prepare_run, resume_run

COMMON = (
    "epochs", "steps", "minutes", "seed", "device", "threads", "plot", "val_fraction", "min_freq",
    "letters_only", "max_tokens", "encoding", "newlines", "separator",
)  # fmt: skip
"""Settings that must be identical across all variants for the comparison to be valid."""


def compare(
    source: Source | Sequence[Source] = (),
    variants: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("rnn", "gru", "lstm"),
    *,
    seeds: int = 3,
    num_tokens: int | None = None,
    out: Source | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Train several variants on one text with several seeds, and compare the validation losses.

    Args:
        source: the text, as in `train`.
        variants: names of cells, or a mapping from the name of a variant to its options of `train`.
        seeds: number of runs per variant. Their seeds are consecutive, starting at the option
            `seed`.
        num_tokens: number of training tokens per run, instead of minutes, steps or epochs.
        out: directory of the comparison; by default, a new directory in `runs/`. If it contains the
            same comparison, that comparison is resumed.
        force: replace an existing comparison.
        progress: receives training events; the default is that of `train`.
        options: options of `train` for all variants.

    Returns:
        The results, sorted by mean validation loss.

    Raises:
        ConfigError: a setting is invalid, or variants differ in a setting that must be identical.
        SourceError, CorpusError: a source cannot be read.
        RunError: the directory contains something else than this comparison, or is in use.
        TrainingInterrupted: a signal was received. The same call with the same directory resumes.

    Examples:
        >>> import recurra
        >>> variants = {"small": {"hidden_size": 4}, "large": {"hidden_size": 8}}
        >>> comparison = recurra.compare(variants=variants, seeds=1, steps=5)
        >>> sorted(row.variant.name for row in comparison.rows)
        ['large', 'small']
    """
    common = given_values(options)
    parsed = [
        Variant(name, RunOptions.of(**{**common, **given_values(own)}))
        for name, own in _parse_variants(variants)
    ]
    shown = progress or default_progress()
    return run_comparison(as_list(source), parsed, seeds, num_tokens, out, shown, force=force)


def _parse_variants(variants: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and settings of each variant, given as a sequence or as a mapping."""
    is_mapping = isinstance(variants, Mapping)
    is_sequence = isinstance(variants, Sequence) and not isinstance(variants, str)
    require(
        is_mapping or is_sequence,
        "variants must be a sequence of names of cells, or a mapping from names to settings",
    )
    for name in variants:
        settings = variants[name] if is_mapping else {"cell": name}
        require(isinstance(name, str), f"the name of a variant is {name!r}; it must be a string")
        require(
            isinstance(settings, Mapping), f"the settings of variant {name!r} must be a mapping"
        )
        yield name, settings


def run_comparison(
    sources: Sequence[Source],
    variants: Sequence[Variant],
    seeds: int,
    num_tokens: int | None,
    out: Source | None,
    progress: Progress,
    *,
    force: bool = False,
) -> Comparison:
    """Run a comparison; see `compare` for the arguments, errors and result."""
    _check(sources, variants, seeds, num_tokens)
    plots = variants[0].options.config.training.plot
    variants = [_with_budget(variant, num_tokens) for variant in variants]
    stem = short_name(sources)
    path = Path(out) if out is not None else numbered(Path("runs") / f"{stem}-comparison")
    folder = ComparisonFolder(path)
    description = _describe(sources, variants, seeds)
    with progress, folder.locked():
        is_resumed = folder.holds(description, force=force)
        if is_resumed:
            _prepare_first_runs(sources, variants, folder, progress)
        else:
            with folder.prepared(description) as staging:
                _prepare_first_runs(sources, variants, staging, progress)
        progress.message(
            f"{'resuming' if is_resumed else 'comparing'} in {path}: {len(variants) * seeds} runs,"
            f" variants {len(variants)}, seeds {seeds}"
        )
        rows = _train(sources, variants, seeds, folder, progress)
        comparison = Comparison(path, sorted(rows, key=lambda row: row.mean))
        write_json(folder.results, {"runs": comparison.records()})
        if plots:
            write_comparison_svg(comparison.curves(), folder.plot, title=stem)
    return comparison


def _check(
    sources: Sequence[Source], variants: Sequence[Variant], seeds: Any, num_tokens: Any
) -> None:
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


def _setting(config: RunConfig, name: str) -> Any:
    return getattr(config.training if hasattr(config.training, name) else config.text, name)


def _with_budget(variant: Variant, num_tokens: int | None) -> Variant:
    """Return a variant with `num_tokens` converted to steps and without plots of single runs."""
    own: dict[str, Any] = {"plot": False}
    if num_tokens is not None:
        own["steps"] = max(1, round(num_tokens / tokens_per_step(variant.options.config.training)))
    return Variant(variant.name, variant.options.replaced(**own))


def _prepare_first_runs(
    sources: Sequence[Source],
    variants: Sequence[Variant],
    folder: ComparisonFolder,
    progress: Progress,
) -> None:
    """Create the first run of each variant without training it, unless it exists."""
    for variant in variants:
        run = folder.run(variant.name, variant.options.config.training.seed)
        if not run.is_run:
            shown = _ChosenSettings(progress, variant.name)
            prepare_run(RunRequest(sources, variant.options), run.path, shown, Clock())
        held_out = len(load_token_file(run.path).val)
        require(
            held_out >= 2, f"{variant.name}: too little text for validation; increase val_fraction"
        )


def _train(
    sources: Sequence[Source],
    variants: Sequence[Variant],
    seeds: int,
    folder: ComparisonFolder,
    progress: Progress,
) -> list[Row]:
    """Train or resume all runs, ordered by seed, and return the row of each variant."""
    results: dict[str, list[Result]] = {variant.name: [] for variant in variants}
    with _with_resume_hint(folder.path):
        for variant, seed in _run_order(variants, seeds):
            result = _run(sources, variant, seed, folder, progress)
            results[variant.name].append(result)
            progress.message(_summary(variant, result))
    return [Row(variant, results[variant.name]) for variant in variants]


@contextmanager
def _with_resume_hint(folder: Path) -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as stop:
        hint = f"saved in {folder}; run the same comparison with --out {folder} to resume"
        raise TrainingInterrupted(stop.signum, hint) from None


def _describe(sources: Sequence[Source], variants: Sequence[Variant], seeds: int) -> dict[str, Any]:
    """Return the settings that identify a comparison, as read back from JSON."""
    described = {
        variant.name: {
            name: value
            for section in variant.options.config.to_dict().values()
            for name, value in section.items()
            if variant.options.is_given(name) and name not in FREE_SETTINGS
        }
        for variant in variants
    }
    description = {
        "sources": [str(source) for source in sources],
        "seeds": seeds,
        "variants": described,
    }
    return dict(json.loads(to_json(description)))


def _settings_for_seed(variant: Variant, seed: int, folder: ComparisonFolder) -> RunOptions:
    """Return the complete settings of the first run of a variant, with another seed."""
    training = variant.options.config.training
    config = folder.run(variant.name, training.seed).read_config()
    free = {name: getattr(training, name) for name in FREE_SETTINGS}
    return RunOptions.from_config(config).replaced(seed=seed, **free)


def _run_order(variants: Sequence[Variant], seeds: int) -> Iterator[tuple[Variant, int]]:
    first = variants[0].options.config.training.seed
    for seed in range(first, first + seeds):
        for variant in variants:
            yield variant, seed


def _run(
    sources: Sequence[Source],
    variant: Variant,
    seed: int,
    folder: ComparisonFolder,
    progress: Progress,
) -> Result:
    run = folder.run(variant.name, seed)
    options = _settings_for_seed(variant, seed, folder)
    messages = _RunMessages(progress, f"{variant.name}, seed {seed}")
    try:
        if not run.is_run:
            prepare_run(RunRequest(sources, options), run.path, Progress(), Clock())
        lm = resume_run(run.path, messages, Clock(), options=options, sources=sources)
    except (DivergenceError, NonFiniteError) as error:
        progress.message(f"{messages.name}: {error}")
        return _result(seed, run, None)
    return _result(seed, run, lm)


def _result(seed: int, run: RunDirectory, lm: LanguageModel | None) -> Result:
    records = run.read_metrics()
    last: dict[str, Any] = records[-1] if records else {"tokens": 0, "seconds": 0.0}
    speeds = [record["tokens_per_second"] for record in records]
    found = None if lm is None else lm.validate()
    figures = {} if found is None else found.to_dict()
    return Result(
        seed=seed,
        folder=run.path,
        parameters=None if lm is None else lm.model.num_parameters,
        nats_per_token=figures.get("nats_per_token"),
        bits_per_char=figures.get("bits_per_char"),
        unknown=None if found is None else found.num_unknown / found.num_tokens,
        tokens=last["tokens"],
        seconds=last["seconds"],
        tokens_per_second=statistics.median(speeds) if speeds else 0.0,
        records=records,
    )


def _summary(variant: Variant, result: Result) -> str:
    if result.nats_per_token is None:
        return f"{variant.name}, seed {result.seed}: failed"
    config = RunDirectory(result.folder).read_config()
    return (
        f"{variant.name}, seed {result.seed}: {result.nats_per_token:.4f} nats per token,"
        f" {config.model.hidden_size} units, learning rate {config.training.lr:g},"
        f" {format_count(result.tokens)} tokens in {result.seconds:.0f} s"
    )


class _ChosenSettings(Progress):
    """Progress that forwards the settings that are chosen for a variant."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def plan(self, lines: Sequence[str]) -> None:
        self._progress.message(self._name)
        self._progress.plan([f"  {line}" for line in lines])

    def message(self, text: str) -> None:
        self._progress.message(f"{self._name}: {text}")


class _RunMessages(Progress):
    """Progress that forwards the steps and messages of one run of a comparison."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.name = progress, name

    def step(self, metrics: StepMetrics) -> None:
        self._progress.step(metrics)

    def message(self, text: str) -> None:
        self._progress.message(f"{self.name}: {text}")
