"""Train several settings on one text with several seeds, at equal minutes or tokens.

Every run is an ordinary run directory that every command reads. All variants train with one seed
before the next seed begins, so that a change of the machine's speed affects all of them. All runs
are prepared before the first one trains, so that invalid settings are reported at once. Settings
that depend on the minutes and on the machine's speed are chosen once, for a variant's first seed,
and kept for the others, so that seeds differ in their random numbers only. Finished runs are kept:
the same comparison in the same directory resumes where it stopped.
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
from recurra.report.progress import ConsoleProgress, Progress, StepMetrics, format_count
from recurra.runs.compatibility import FREE_SETTINGS
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import started_count
from recurra.training.batch_schedule import tokens_per_step
from recurra.training.creation import numbered, short_name
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
    """Train several settings on one text with several seeds, and say which is ahead.

    Args:
        source: as in `train`.
        variants: names of cells, or a mapping from a name to its options of `train`.
        seeds: runs of each; the first has the option `seed`, the next that plus one.
        num_tokens: budget of every run, instead of minutes, steps or epochs.
        out: folder of the runs; by default a new one under `runs/`. A comparison of the same
            settings in it continues.
        force: replace an older comparison.
        progress: receives training events.
        options: of `train`, for all variants.

    Raises:
        ConfigError: a setting is invalid, or is not one that variants may differ in.
        RunError: the folder holds another comparison.
        TrainingInterrupted: a signal came; the same call with the same directory continues.
    """
    made = [Variant(name, RunOptions.of(**{**options, **own})) for name, own in _named(variants)]
    shown = progress or ConsoleProgress()
    return run_comparison(as_list(source), made, seeds, num_tokens, out, shown, force=force)


def _named(variants: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and settings of each variant, given as a sequence or as a mapping."""
    is_mapping = isinstance(variants, Mapping)
    is_sequence = isinstance(variants, Sequence) and not isinstance(variants, str)
    require(is_mapping or is_sequence, "variants are names of cells, or settings by name")
    for name in variants:
        settings = variants[name] if is_mapping else {"cell": name}
        require(isinstance(name, str), f"the name of a variant is a text, not {name!r}")
        require(isinstance(settings, Mapping), f"the settings of {name!r} are no mapping")
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
    """`compare` with explicit arguments."""
    _check(sources, variants, seeds, num_tokens)
    plots = variants[0].options.config.training.plot
    variants = [_with_budget(variant, num_tokens) for variant in variants]
    stem = short_name(sources)
    path = Path(out) if out is not None else numbered(Path("runs") / f"{stem}-comparison")
    folder = ComparisonFolder(path)
    description = _describe(sources, variants, seeds)
    with progress, folder.locked():
        goes_on = folder.holds(description, force=force)
        if goes_on:
            _make_ready(sources, variants, folder, progress)
        else:
            with folder.prepared(description) as staging:
                _make_ready(sources, variants, staging, progress)
        progress.message(
            f"{'resuming' if goes_on else 'comparing'} in {path}: {len(variants) * seeds} runs,"
            f" variants {len(variants)}, seeds {seeds}"
        )
        rows = _train(sources, variants, seeds, folder, progress)
        comparison = Comparison(path, sorted(rows, key=lambda row: row.mean))
        write_json(folder.results, {"runs": comparison.records()})
        if plots:
            write_comparison_svg(comparison.curves(), folder.picture, title=stem)
    return comparison


def _check(
    sources: Sequence[Source], variants: Sequence[Variant], seeds: Any, num_tokens: Any
) -> None:
    require(len(variants) >= 1, "there is nothing to compare")
    require(started_count() == 1, "a comparison is made by one process; start it without torchrun")
    require(
        "-" not in map(str, sources),
        "every run of a comparison reads the text, and standard input can be read once: put it"
        " into a file",
    )
    for name, value in (("seeds", seeds), ("num_tokens", num_tokens)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        none_will_do = name == "num_tokens" and value is None
        require(
            is_count or none_will_do, f"{name} must be a whole number of at least 1, not {value}"
        )
    last_seed = variants[0].options.config.training.seed + seeds - 1
    require(last_seed < 2**63, "the last seed must be at most 2**63 - 1")
    _check_names([variant.name for variant in variants])
    for variant in variants:
        training = variant.options.config.training
        require(
            variant.options.config.text.val_fraction > 0.0,
            "a comparison needs text to validate on; val_fraction is 0",
        )
        require(
            num_tokens is None or training.minutes is training.steps is training.epochs is None,
            "one budget, please: num_tokens, or minutes, steps or epochs",
        )
        require(
            num_tokens is None or training.bptt != "full",
            "with bptt full an update is a whole epoch; give the budget in epochs or minutes",
        )
        _check_common(variant.options.config, variants[0].options.config)
    if variants[0].options.config.training.plot:
        require_matplotlib()


def _check_names(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        for other in names[:index]:
            require(name != other, f"{name!r} is there twice")
            # Some file systems do not tell large letters from small ones.
            is_same = slug(name).casefold() == slug(other).casefold()
            require(not is_same, f"{other!r} and {name!r} would share a folder; rename one")


def _check_common(config: RunConfig, other: RunConfig) -> None:
    for name in COMMON:
        own, common = _setting(config, name), _setting(other, name)
        require(own == common, f"variants cannot differ in {name} ({common} and {own})")
    # Of bpe it is a way to cut the text; of others, how much of it need not be predicted.
    sizes = {c.text.vocab_size for c in (config, other) if c.text.tokens != "bpe"}
    require(len(sizes) < 2, "variants cannot differ in vocab_size, unless their tokens are bpe")


def _setting(config: RunConfig, name: str) -> Any:
    return getattr(config.training if hasattr(config.training, name) else config.text, name)


def _with_budget(variant: Variant, num_tokens: int | None) -> Variant:
    """Return a variant whose budget in tokens is one in steps, and that draws no curve per run."""
    own: dict[str, Any] = {"plot": False}
    if num_tokens is not None:
        own["steps"] = max(1, round(num_tokens / tokens_per_step(variant.options.config.training)))
    return Variant(variant.name, variant.options.replaced(**own))


def _make_ready(
    sources: Sequence[Source],
    variants: Sequence[Variant],
    folder: ComparisonFolder,
    progress: Progress,
) -> None:
    """Create the first run of every variant, without training it, unless it exists."""
    for variant in variants:
        run = folder.run(variant.name, variant.options.config.training.seed)
        if not run.is_run:
            shown = _Choices(progress, variant.name)
            prepare_run(sources, variant.options, run.path, shown, Clock())
        held_out = len(load_token_file(run.path).val)
        require(held_out >= 2, f"{variant.name}: no text was left to validate on")


def _train(
    sources: Sequence[Source],
    variants: Sequence[Variant],
    seeds: int,
    folder: ComparisonFolder,
    progress: Progress,
) -> list[Row]:
    """Train all runs, interleaved by seed, from their current state."""
    results: dict[str, list[Result]] = {c.name: [] for c in variants}
    with _saying_how_to_go_on(folder.path):
        for variant, seed in _turns(variants, seeds):
            result = _run(sources, variant, seed, folder, progress)
            results[variant.name].append(result)
            progress.message(_tell(variant, result))
    return [Row(variant, results[variant.name]) for variant in variants]


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as stop:
        how = f"saved in {folder}; the same comparison resumes with --out {folder}"
        raise TrainingInterrupted(stop.signum, how) from None


def _describe(sources: Sequence[Source], variants: Sequence[Variant], seeds: int) -> dict[str, Any]:
    """What makes a comparison this one, as JSON has it."""
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


def _settled(variant: Variant, seed: int, folder: ComparisonFolder) -> RunOptions:
    """Return the settings of the first run of a variant, none left to choose, for another seed."""
    training = variant.options.config.training
    config = folder.run(variant.name, training.seed).read_config()
    free = {name: getattr(training, name) for name in FREE_SETTINGS}
    return RunOptions.from_config(config).replaced(seed=seed, **free)


def _turns(variants: Sequence[Variant], seeds: int) -> Iterator[tuple[Variant, int]]:
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
    options = _settled(variant, seed, folder)
    brief = _Brief(progress, f"{variant.name}, seed {seed}")
    try:
        if not run.is_run:
            prepare_run(sources, options, run.path, Progress(), Clock())
        lm = resume_run(run.path, brief, Clock(), options=options, sources=sources)
    except (DivergenceError, NonFiniteError) as error:
        progress.message(f"{brief.name}: {error}")
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


def _tell(variant: Variant, result: Result) -> str:
    if result.nats_per_token is None:
        return f"{variant.name}, seed {result.seed}: failed"
    config = RunDirectory(result.folder).read_config()
    return (
        f"{variant.name}, seed {result.seed}: {result.nats_per_token:.4f} nats per token,"
        f" {config.model.hidden_size} units, learning rate {config.training.lr:g},"
        f" {format_count(result.tokens)} tokens in {result.seconds:.0f} s"
    )


class _Choices(Progress):
    """Reports the settings that were chosen for a variant."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def plan(self, lines: Sequence[str]) -> None:
        self._progress.message(self._name)
        self._progress.plan([f"  {line}" for line in lines])

    def message(self, text: str) -> None:
        self._progress.message(f"{self._name}: {text}")


class _Brief(Progress):
    """Forwards the messages of one run among many."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.name = progress, name

    def step(self, metrics: StepMetrics) -> None:
        self._progress.step(metrics)

    def message(self, text: str) -> None:
        self._progress.message(f"{self.name}: {text}")
