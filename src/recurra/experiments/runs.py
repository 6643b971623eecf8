"""Train several variants on one text with several seeds and equal budgets.

Each run is an ordinary run directory. All variants train with one seed before the next seed starts,
so that a change in the speed of the machine affects all of them. The first run of each variant is
prepared before any training starts, so that invalid settings are reported at once. Each variant is
warmed up before the first run, so that the start-up of the process does not count against any run.

Settings that depend on the time budget and the speed of the machine are chosen for the first seed
of a variant and reused for its other seeds. The runs of a variant therefore differ only in their
random numbers. Finished runs are kept: the same comparison in the same directory is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recurra.config import RunOptions
from recurra.config.checks import require
from recurra.config.options import given_values
from recurra.data.token_file import load_token_file
from recurra.errors import (
    DivergenceError,
    NonFiniteError,
    TrainingInterrupted,
)
from recurra.experiments.checks import check_comparison
from recurra.experiments.design import Design
from recurra.experiments.folder import ComparisonFolder
from recurra.experiments.results import Comparison, Result, Row, Variant
from recurra.inference.language_model import LanguageModel, Source, as_list
from recurra.io.json_files import to_json, write_json
from recurra.report.curve import write_comparison_svg
from recurra.report.notebook import default_progress
from recurra.report.progress import Progress, StepMetrics, format_count
from recurra.runs.compatibility import FREE_SETTINGS
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training.batch_schedule import tokens_per_step
from recurra.training.creation import RunRequest, numbered, short_name
from recurra.training.run import prepare_run, resume_run
from recurra.training.sizing import describe_size, num_parameters
from recurra.training.warm_up import warm_up


def compare(
    source: Source | Sequence[Source] = (),
    variants: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("rnn", "gru", "lstm"),
    *,
    seeds: int = 3,
    num_tokens: int | None = None,
    equal_parameters: bool = False,
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
        equal_parameters: choose the hidden size of each variant but the first so that all models
            have about the same number of parameters; see `training/sizing.py`.
        out: directory of the comparison; by default, a new directory in `runs/`. If it contains the
            same comparison, that comparison is resumed; with more seeds, it is extended.
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
    design = Design(seeds, num_tokens, equal_parameters)
    return run_comparison(as_list(source), parsed, design, out, shown, force=force)


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
    design: Design,
    out: Source | None,
    progress: Progress,
    *,
    force: bool = False,
) -> Comparison:
    """Run a comparison; see `compare` for the arguments, errors and result."""
    check_comparison(sources, variants, design)
    plots = variants[0].options.config.training.plot
    variants = [_with_budget(variant, design.num_tokens) for variant in variants]
    stem = short_name(sources)
    path = Path(out) if out is not None else numbered(Path("runs") / f"{stem}-comparison")
    folder = ComparisonFolder(path)
    description = _describe(sources, variants, design)
    with progress, folder.locked():
        is_resumed = folder.holds(description, force=force)
        if is_resumed:
            _prepare_first_runs(sources, variants, folder, design, progress)
        else:
            with folder.prepared(description) as staging:
                _prepare_first_runs(sources, variants, staging, design, progress)
        progress.message(
            f"{'resuming' if is_resumed else 'comparing'} in {path}:"
            f" {len(variants) * design.seeds} runs, variants {len(variants)}, seeds {design.seeds}"
        )
        rows = _train(sources, variants, design.seeds, folder, progress)
        comparison = Comparison(path, sorted(rows, key=lambda row: row.mean))
        write_json(folder.results, comparison.to_dict())
        if plots:
            write_comparison_svg(comparison.curves(), folder.plot, title=stem)
    return comparison


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
    design: Design,
    progress: Progress,
) -> None:
    """Create the first run of each variant without training it, unless it exists."""
    target: int | None = None
    for variant in variants:
        run = folder.run(variant.name, variant.options.config.training.seed)
        if not run.is_run:
            shown = _ChosenSettings(progress, variant.name)
            options = dataclasses.replace(variant.options, num_parameters=target)
            prepare_run(RunRequest(sources, options), run.path, shown, Clock())
        held_out = len(load_token_file(run.path).val)
        require(
            held_out >= 2, f"{variant.name}: too little text for validation; increase val_fraction"
        )
        if design.equal_parameters:
            model = run.read_config().model
            target = target or num_parameters(model)
            progress.message(describe_size(variant.name, model, target))


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
        # Otherwise the start-up of the process would count against the first run of each variant.
        for variant in variants:
            warm_up(folder.run(variant.name, variant.options.config.training.seed))
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


def _describe(
    sources: Sequence[Source], variants: Sequence[Variant], design: Design
) -> dict[str, Any]:
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
    description: dict[str, Any] = {
        "sources": [str(source) for source in sources],
        "seeds": design.seeds,
        "variants": described,
    }
    if design.equal_parameters:  # Otherwise the description is that of earlier versions.
        description["equal_parameters"] = True
    return dict(json.loads(to_json(description)))


def _settings_for_seed(variant: Variant, seed: int, folder: ComparisonFolder) -> RunOptions:
    """Return the complete settings of the first run of a variant, with another seed."""
    training = variant.options.config.training
    config = folder.run(variant.name, training.seed).read_config()
    free = {name: getattr(training, name) for name in FREE_SETTINGS}
    if training.device == "auto":
        del free["device"]  # The device that the first run chose is used for all seeds.
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
        hidden_size=None if lm is None else lm.config.model.hidden_size,
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
